"""A lab write-up of one search: Markdown, and the page and the PDF that are made of it.

A student's own text stands between marked lines, and stays when it is written again.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
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
from labkit.study.front_tables import as_markdown
from labkit.study.heldout import Heldout, measure_once
from labkit.study.results import Results
from labkit.study.runs import read_runs
from labkit.table import markdown_table
from labkit.training import main_of

OWN = re.compile(r"<!-- yours: (\w+) -->\n(.*?)\n?<!-- end -->", re.DOTALL)
ONE_SEED = (
    "Each network was trained once: seeds alone move results, so neighbours on the front may "
    "be equal. `labkit replicate` trains them with more."
)
SEVERAL_SEEDS = (
    "± is one standard deviation over {}. Networks tie that a paired t-test at 5% does not tell "
    "apart, uncorrected for several tests."
)
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
    results.best_trial(_first(results))  # raises where none has finished
    with names.opening(trust=trust):
        config = load_config(folder / "config.toml")
        try:
            measured: Heldout | str = measure_once(results, folder, data)
        except LabkitError as error:
            measured = as_markdown(str(error))
    drawn = path.with_name(f"{path.stem}-front.png")
    method = _listed(_method(results, config, folder, measured))
    text = _text(results, method, measured, drawn.name)
    own, of_a_page = _own_texts(path, text)
    if path.suffix == ".md":
        write(drawn, picture(pareto_front(results)))
        return write(path, _with_own(text, own))
    with in_words("report: a page needs the extra 'lab', pip install 'labkit[lab]'"):
        import mistune

        own = own if of_a_page else {name: str(mistune.html(t)) for name, t in own.items()}
        body = _with_own(str(mistune.html(text)), own)
    image = base64.b64encode(picture(pareto_front(results), "svg")).decode()
    body = body.replace(f'src="{drawn.name}"', f'src="data:image/svg+xml;base64,{image}"')
    head = f'<meta charset="utf-8"><title>{text.splitlines()[0][2:]}</title><style>{STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'
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


def _first(results: Results) -> str:
    return next(iter(results.objectives))


def _text(results: Results, method: str, measured: Heldout | str, drawn: str) -> str:
    titles = {m: AXIS_TITLES.get(m, as_markdown(m)) for m in results.objectives}
    table, first = results.front_table(), _first(results)
    best = results.best_trial(first)
    what = as_markdown(f"{results.about['model']} on {results.about['dataset']}")
    return f"""# How wide each layer should be: {what}

*Written by labkit. Only what stands between lines marked “yours” stays when it is written again.*

## Overview

The search tried to {" and ".join(f"{way} {titles[m]}" for m, way in results.objectives.items())}.
{results.counts()}. {len(table)} form the Pareto front: no other network is as good in all of this
and better in some.

<!-- yours: overview -->
*What did you want to know, and what did you expect?*
<!-- end -->

## The network

The layers of trial {best}, the best of the front by {titles[first]}:

{_layers(results)}

## Pass configurations

{_configurations(results, [best, table.index[0]])}

## Method

{method}

## Results

{markdown_table(table.rename(columns=titles))}

![The Pareto front: quality against cost]({drawn})

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


def _layers(results: Results) -> str:
    try:
        network = results.best(_first(results))
        table = layer_table(network, example_input=torch.zeros(1, *results.about["input_shape"]))
    except LabkitError as error:
        return f"(They cannot be listed here: {as_markdown(str(error))}.)"
    return markdown_table(table[["type", "in", "out", "parameters", "flops", "share"]])


def _configurations(results: Results, numbers: Sequence[int]) -> str:
    shown = []
    for number in dict.fromkeys(numbers):
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
    for group, width in results.about["original"].items():
        widths = plans[group]
        if widths.nunique() == 1:
            was = "as in the original" if widths[0] == width else f"where the original has {width}"
            said = f"{widths[0]}, {was}"
        elif (widths > width).all() or (widths < width).all():
            said = f"{'wider' if widths[0] > width else 'narrower'} than the original's {width}"
        else:
            continue
        yield f"{as_markdown(group)} is {said}, in all {len(plans)} networks of the front."


def _test(measured: Heldout | str) -> str:
    if isinstance(measured, str):
        return (
            f"The test split was not measured: {measured}. A search that was given "
            "its data needs them for it: `results.report(path, data=…)`."
        )
    return (
        f"The network of trial {measured.trial} is judged by its first seed: its {measured.metric} "
        f"is **{measured.value:.4f}** on the {measured.rows['test']:,} rows of the test split. "
        "It was measured once, and nothing was chosen by it."
    )


def _limits(results: Results, measured: Heldout | str) -> Iterator[str]:
    """Yields what the results cannot tell."""
    yield {"one seed": ONE_SEED}.get(seeds := _seeds(results), SEVERAL_SEEDS.format(seeds))
    histories = [t.record.history for t in results.front_trials if t.record.history]
    main = main_of(results.trials)
    curves = [[epoch[main] for epoch in history] for history in histories]
    if rising := sum(max(curve) == curve[-1] for curve in curves):
        yield (
            f"{rising} of {len(curves)} networks were at their best after the last epoch: longer "
            "training may raise them, and change their order."
        )
    if isinstance(measured, Heldout) and measured.metric == "accuracy":
        n, p = measured.rows["validation"], results.front["accuracy"].max()
        error = (p * (1 - p) / n) ** 0.5
        yield f"An accuracy on {n:,} validation rows has a standard error of {error:.4f}."
