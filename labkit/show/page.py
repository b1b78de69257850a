"""All figures of a search on one page, which needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go

from labkit.show import plots
from labkit.show.tables import html_table
from labkit.study.files import write
from labkit.study.results import Results

STYLE = "body {font-family: sans-serif; max-width: 75em; margin: 1em auto; padding: 0 1em}"
CURVES = 20  # of the front's networks, at most: more could not be told apart


def figures(results: Results) -> Iterator[go.Figure]:
    """Yields the figures that there are data for."""
    yield plots.pareto_front(results)
    for against in ("trial", "seconds"):
        yield from _drawn(plots.hypervolume({"this search": results}, against=against))
    yield from _drawn(plots.widths_along_front(results))
    yield from _drawn(plots.width_importance(results))
    trained = [trial for trial in results.front_trials if trial.record.history]
    shown = trained[:: -(-len(trained) // CURVES) or 1]
    histories = {f"trial {trial.number}": trial.record.history for trial in shown}
    about = f"{len(shown)} of the front's {len(trained)} networks; {plots.conditions(results)}"
    yield from _drawn(plots.training_curves(histories, about=about))


def _drawn(figure: go.Figure) -> list[go.Figure]:
    return [figure] if figure.data else []


def write_page(results: Results, path: Path) -> None:
    """Writes the table of the front and all figures as one HTML file, plotly.js included."""
    title = html.escape(f"{results.about.get('model')} on {results.about.get('dataset')}")
    drawn = (
        figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displaylogo": False})
        for i, figure in enumerate(figures(results))
    )
    page = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{html.escape(f"{results.counts()}; {plots.conditions(results)}")}</p>
<h2>The Pareto front</h2>
{html_table(results.front_table())}
{"".join(drawn)}
</body>
</html>
"""
    write(path, page)
