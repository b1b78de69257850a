"""A lab write-up of one search: Markdown, and the page and the PDF that are made of it.

A student's own text stands between marked lines, and stays when it is written again.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from labkit import names
from labkit.data import Dataset
from labkit.errors import LabkitError, in_words
from labkit.show.pictures import picture, printed
from labkit.show.plots import pareto_front
from labkit.show.style import AXIS_TITLES
from labkit.show.tables import layer_table
from labkit.study.config import SearchConfig, load_config
from labkit.study.files import write
from labkit.study.heldout import Heldout, measure_once
from labkit.study.results import Results, as_markdown
from labkit.study.runs import read_runs
from labkit.table import markdown_table

OWN = re.compile(r"<!-- yours: (\w+) -->\n(.*?)\n?<!-- end -->", re.DOTALL)
STYLE = """body {font: 11pt/1.5 sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em}
table {border-collapse: collapse; font-size: 85%; display: block; overflow-x: auto}
:is(th, td) {padding: 0.2em 0.7em; text-align: right; border-bottom: 1px solid #ccc}
:is(th, td):first-child {text-align: left} img {max-width: 100%}
pre {background: #f4f4f4; padding: 0.7em; white-space: pre-wrap; font-size: 85%}
img, pre, tr {break-inside: avoid} h2, p:has(+ pre) {break-after: avoid}
@page {size: A4; margin: 2cm} @media print {body {margin: 0; padding: 0; max-width: none}}"""


def write_report(
    results: Results, folder: Path, path: Path, *, data: Dataset | None, trust: bool
) -> None:
    """Writes a search's write-up; see `Results.report`."""
    if path.suffix not in (".html", ".md", ".pdf"):
        raise LabkitError(f"path: expected a name ending in .html, .md or .pdf, got {str(path)!r}")
    best = results.best_trial(next(iter(results.objectives)))
    with names.opening(trust=trust):
        config = load_config(folder / "config.toml")
        try:
            measured: Heldout | str = measure_once(results, folder, data)
        except LabkitError as error:
            measured = as_markdown(str(error))
    drawn = path.with_name(f"{path.stem}-front.png")
    method = _listed(_method(results, config, folder, measured))
    text = _text(results, best, method, measured, drawn.name)
    own, of_a_page = _own_texts(path, text)
    if path.suffix == ".md":
        write(drawn, picture(pareto_front(results)))
        return write(path, _with_own(text, own))
    # What was written for a page goes into it as it is; the rest is Markdown, between blank lines.
    text = text if of_a_page else _with_own(text, {name: f"\n{t}\n" for name, t in own.items()})
    with in_words("report: a page needs the extra 'lab', pip install 'labkit[lab]'"):
        import mistune

        body = str(mistune.html(text))
    image = base64.b64encode(picture(pareto_front(results), "svg")).decode()
    body = body.replace(f'src="{drawn.name}"', f'src="data:image/svg+xml;base64,{image}"')
    page = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><style>{STYLE}</style>'
        f"<title>{text.splitlines()[0][2:]}</title></head>\n"
        f"<body>\n{_with_own(body, own) if of_a_page else body}</body>\n</html>\n"
    )
    write(path, page if path.suffix == ".html" else printed(page))


def _own_texts(path: Path, text: str) -> tuple[dict[str, str], bool]:
    """Returns what stands between the marks of an earlier write-up, and whether that is a page.

    Raises:
        LabkitError: It lacks marks of this one, and what it has would be lost.
    """
    new = dict(OWN.findall(text))
    for file in (path, path.with_suffix(".html"), path.with_suffix(".md")):
        if file.suffix != ".pdf" and file.exists():
            with in_words(f"path: cannot read {str(file)!r}"):
                own = dict(OWN.findall(file.read_text(encoding="utf-8")))
            if own.keys() != new.keys():
                lacks = "lacks lines such as <!-- yours: overview --> and <!-- end -->"
                raise LabkitError(f"path: {str(file)!r} {lacks}; mend it or move it away")
            return own, file.suffix == ".html"
    return new, False


def _with_own(text: str, own: dict[str, str]) -> str:
    return OWN.sub(lambda mark: f"<!-- yours: {mark[1]} -->\n{own[mark[1]]}\n<!-- end -->", text)


def _text(results: Results, best: int, method: str, measured: Heldout | str, drawn: str) -> str:
    about, objectives = results.about, results.objectives
    titles = {metric: AXIS_TITLES.get(metric, as_markdown(metric)) for metric in objectives}
    table = results.front_table()
    if "ties" in results.best_trials:
        ties = results.best_trials.set_index("number")["ties"]
        table["ties"] = [", ".join(map(str, ties[number])) for number in table.index]
    what = as_markdown(f"{about['model']} on {about['dataset']}")
    return f"""# How wide each layer should be: {what}

*Written by labkit. Only what stands between lines marked “yours” stays when it is written again.*

## Overview

The search tried to {" and ".join(f"{way} {titles[m]}" for m, way in objectives.items())}.
{results.counts()}. {len(table)} form the Pareto front: no other network is as good in all of this
and better in some.

<!-- yours: overview -->
*What did you want to know, and what did you expect?*
<!-- end -->

## The network

The layers of trial {best}, the best of the front by {titles[next(iter(objectives))]}:

{_layers(results, best)}

## Pass configurations

{_configurations(results, best)}

## Method

{method}

## Results

{markdown_table(table.rename(columns=titles))}

![The Pareto front: accuracy against cost]({drawn})

{_listed(_common(results)) or "No width is common to the networks of the front."}

{_test(measured)}

<!-- yours: discussion -->
*What do these results show, and what surprised you?*
<!-- end -->

## Limits

{_listed(_limits(results, measured))}

<!-- yours: conclusion -->
*Which network would you use, and what would you try next?*
<!-- end -->
"""


def _listed(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _layers(results: Results, number: int) -> str:
    try:
        if results.open_network is None:
            raise LabkitError("the results were read without networks")
        example = torch.zeros(1, *results.about["input_shape"])
        table = layer_table(results.open_network(number), example_input=example)
    except LabkitError as error:
        return f"(They cannot be listed here: {as_markdown(str(error))}.)"
    return markdown_table(table[["type", "in", "out", "parameters", "flops", "share"]])


def _configurations(results: Results, best: int) -> str:
    """Returns the configurations of the best network and of the cheapest."""
    shown = []
    for number in dict.fromkeys([best, results.front_table().index[0]]):
        keys = results.records[number].record.pass_config.items()
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in keys)
        plan = as_markdown(str(results.plan(number)))
        shown.append(f"Trial {number}, {plan}:\n\n```json\n{{\n{lines}\n}}\n```")
    return "\n\n".join([*shown, "Those of all networks of the front are in `best.json`."])


def _method(
    results: Results, config: SearchConfig, folder: Path, measured: Heldout | str
) -> Iterator[str]:
    """Yields what another would need to do the same."""
    rows = measured.rows.items() if isinstance(measured, Heldout) else ()
    split = "".join(f", {n:,} {which} rows" for which, n in rows)
    yield f"Data: {as_markdown(results.about['dataset'])}{split}"
    if config.training is not None:
        used = config.training.model_dump(exclude_none=True, exclude={"name", "data_loader"})
        yield "Training: " + ", ".join(f"{key} {value}" for key, value in used.items())
    setup, seed = config.search.strategy.setup, results.about["seed"]
    yield f"Sampler: {setup.sampler}; seed {seed}; {_seeds(results)} for each network of the front"
    yield f"FLOPs: counted by the convention '{results.about['convention']}'"
    runs = read_runs(folder)
    commands = dict.fromkeys(as_markdown(str(run.pop("command", "unknown"))) for run in runs)
    yield f"Commands: {'; '.join(commands)}"
    last = {key: as_markdown(str(value)) for run in runs for key, value in run.items()}
    yield "Last run: " + ", ".join(f"{key} {value}" for key, value in last.items())


def _seeds(results: Results) -> str:
    n = min(len(results.replicates(number)) for number in results.front.index)
    return f"{n} seeds" if n > 1 else "one seed"


def _common(results: Results) -> Iterator[str]:
    """Yields what is true of all networks on the front."""
    plans = pd.DataFrame([results.plan(number).to_dict() for number in results.front.index])
    everywhere = "In the only network" if len(plans) == 1 else f"In all {len(plans)} networks"
    everywhere += " of the front"
    for group, width in results.about["original"].items():
        widths, name = plans[group], as_markdown(group)
        if widths.nunique() == 1:
            was = "as in the original" if widths[0] == width else f"where the original has {width}"
            yield f"{everywhere} {name} is {widths[0]}, {was}."
        elif (widths > width).all() or (widths < width).all():
            way = "wider" if widths[0] > width else "narrower"
            yield f"{everywhere} {name} is {way} than the original's {width}."


def _test(measured: Heldout | str) -> str:
    if isinstance(measured, str):
        return (
            f"The accuracy on the test split was not measured: {measured}. A search that was given "
            "its data needs them for it: `results.report(path, data=…)`."
        )
    return (
        f"The network of trial {measured.trial} has, by its first seed, an accuracy of "
        f"**{measured.accuracy:.4f}** on the {measured.rows['test']:,} rows of the test split. "
        "It was measured once, and nothing was chosen by it."
    )


def _limits(results: Results, measured: Heldout | str) -> Iterator[str]:
    """Yields what the results cannot tell."""
    seeds, front = _seeds(results), results.front
    if seeds == "one seed":
        yield (
            "Each network was trained once: seeds alone move an accuracy, so neighbours on the "
            "front may be equal. `labkit replicate` trains them with more."
        )
    else:
        yield (
            f"± is one standard deviation over {seeds}. Networks tie that a paired t-test at 5% "
            "does not tell apart, uncorrected for several tests."
        )
    accuracies = [
        [epoch["accuracy"] for epoch in history]
        for number in front.index
        if (history := results.records[number].record.history)
    ]
    if rising := sum(max(curve) == curve[-1] for curve in accuracies):
        yield (
            f"{rising} of {len(accuracies)} networks were at their best after the last epoch: "
            "longer training may raise them, and change their order."
        )
    if isinstance(measured, Heldout):
        n, p = measured.rows["validation"], front["accuracy"].max()
        yield (
            f"An accuracy on {n:,} validation rows has a standard error of "
            f"{(p * (1 - p) / n) ** 0.5:.4f}: smaller differences say little."
        )
