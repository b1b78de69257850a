"""All figures of a search on one page, which needs no network."""

import html
from pathlib import Path

import plotly.graph_objects as go

from labkit.show import plots
from labkit.show.style import DARK, INVERTED, title
from labkit.study.files import write
from labkit.study.results import Results
from labkit.study.runs import read_runs
from labkit.table import html_table

STYLE = f"""
:root {{color-scheme: light dark}}
body {{font-family: sans-serif; max-width: 75em; margin: 1em auto; padding: 0 1em}}
h1 {{overflow-wrap: anywhere}}
.js-plotly-plot {{break-inside: avoid}}
@media screen and (prefers-color-scheme: dark) {{
  body {{background: {DARK}; color: #ddd}}
  {INVERTED}
}}
@page {{margin: 1.5cm}}
@media print {{
  :root {{color-scheme: light}}
  body {{margin: 0; padding: 0}}
  .labkit {{font-size: 8pt; overflow: visible}}
}}"""
# Of the latest run, above the figures.
SETTINGS = ("training_rows", "validation_rows", "sampler", "epochs", "learning_rate")
CURVES = 20  # of the front's networks, at most: more could not be told apart


def figures(results: Results) -> list[go.Figure]:
    """Returns the figures that there are data for."""
    trained = [trial for trial in results.front_trials if trial.record.history]
    shown = trained[:: -(-len(trained) // CURVES) or 1]
    histories = {f"trial {trial.number}": trial.record.history for trial in shown}
    about = f"{len(shown)} of the front's {len(trained)} networks; {plots.conditions(results)}"
    drawn = [
        plots.pareto_front(results),
        plots.hypervolume({"this search": results}),
        plots.hypervolume({"this search": results}, against="seconds"),
        plots.widths_along_front(results),
        plots.width_importance(results),
        plots.training_curves(histories, about=about),
        *([plots.parallel_coordinates(results)] if len(results.objectives) > 2 else []),
    ]
    return [figure for figure in drawn if figure.data]


def write_page(results: Results, path: Path) -> None:
    """Writes the table of the front, all figures and the latest run of the file's folder.

    It is one HTML file, plotly.js included.
    """
    heading = title(results)
    drawn = (
        figure.to_html(full_html=False, include_plotlyjs=i == 0)
        for i, figure in enumerate(figures(results))
    )
    latest = (read_runs(path.parent) or [{}])[-1]
    settings = [f"{key.replace('_', ' ')} {latest[key]}" for key in SETTINGS if latest.get(key)]
    foot = ", ".join(f"{key} {value}" for key, value in latest.items())
    page = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{heading["text"]}</title><style>{STYLE}</style></head>
<body>
<h1>{heading["text"]}</h1>
<p>{heading["subtitle"]["text"]}<br>{html.escape("; ".join(settings))}</p>
<h2>The Pareto front</h2>
{html_table(results.front_table())}
{"".join(drawn)}
<footer><small>{html.escape(foot)}</small></footer>
</body>
</html>
"""
    write(path, page)
