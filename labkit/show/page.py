"""All figures of a search on one page, which needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go

from labkit.show import plots
from labkit.show.tables import html_table
from labkit.study.results import Results

STYLE = "body {font-family: sans-serif; max-width: 75em; margin: 1em auto; padding: 0 1em}"


def figures(results: Results) -> Iterator[go.Figure]:
    """Yields the figures that there are data for."""
    yield plots.pareto_front(results)
    if not results.best.empty:
        for against in ("trial", "seconds"):
            yield plots.hypervolume({"this search": results}, against=against)
        yield plots.widths_along_front(results)
    if results.networks["network"].nunique() > 1:
        yield plots.width_importance(results)
    front = [n for n in results.best["number"] if n in results.histories]
    if front:
        histories = {f"trial {n}": results.histories[n] for n in front}
        yield plots.training_curves(histories, about=plots.conditions(results))


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
    path.write_text(page, encoding="utf-8")
