"""What a panel says of one trial: its network beside the one that the search set out from."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.show.style import AXIS_TITLES, COUNTED
from labkit.show.tables import compare
from labkit.show.widgets import COPIES
from labkit.study.results import Results
from labkit.table import html_table
from labkit.training import main_of
from labkit.transform import Channels, cost_of


def trial_report(
    results: Results, number: int, channels: Channels, folder: Path, *, given: bool,
    **cost_options: Any,
) -> str:  # fmt: skip
    """Returns a trial's network in HTML: accuracy and cost beside the original's, code, layers.

    Args:
        results: Of the search.
        number: The trial, which finished.
        channels: Of the network that is searched.
        folder: Where the search left its networks.
        given: Whether it was given the network itself, and not a name.
        **cost_options: As `labkit.cost_of` takes them.
    """
    said = _said(results, number, channels, **cost_options)
    listed = "".join(f"<li>{line}</li>" for line in said)
    feasible = results.records[number].record.feasible
    why = "Others are better or cheaper" if feasible else "It is beyond a limit"
    code = f"{why}: only networks of the front are kept."
    if number in results.front.index:
        own = ", trust=True" if ":" in results.about["model"] else ""
        call = f"load_best({str(folder)!r}, {number}{', model=model' if given else own})"
        button = f'<button class="jupyter-button widget-button {COPIES}">Copy</button>'
        code = f"<code>{html.escape(call)}</code> {button}"
    layers = html_table(compare(channels, results.plan(number), **cost_options))
    return f"<h4>Trial {number}</h4><ul>{listed}</ul><p>{code}</p>{layers}"


def _said(results: Results, number: int, channels: Channels, **cost_options: Any) -> Iterator[str]:
    plan, original = results.plan(number), results.original
    yield html.escape(str(plan))
    if (main := main_of(results.trials)) in results.trials:
        accuracy = results.trials[main]
        yield f"{AXIS_TITLES[main]}: <b>{accuracy[number]:.4f}</b>"
        if original not in (None, number):
            difference = accuracy[number] - accuracy[original]
            yield f"{difference:+.4f} to the original network's {main}, trial {original}"
    before, after = (cost_of(channels, each, **cost_options) for each in (None, plan))
    for name in COUNTED:
        count, was = getattr(after, name), getattr(before, name)
        ratio = f" ({count / was:.3g} × the original network's)" if was else ""
        yield f"{AXIS_TITLES[name]}: <b>{count:,}</b>{ratio}"
