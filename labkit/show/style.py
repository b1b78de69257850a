"""What all figures share: colours, names, titles, axes; and that a page may be dark."""

import contextlib
import functools
import html
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from labkit.show.pictures import PictureRenderer
from labkit.study.results import Results
from labkit.table import shortened

# Okabe and Ito's colours, which colour-blind people can tell apart (jfly.uni-koeln.de/color).
# Without the two that cannot be seen on white.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
GREY = "#767676"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, GREY)
SYMBOLS = 25  # of plotly's, those that are filled
TEMPLATE = "labkit"
BELOW = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
LAYOUT = {"colorway": COLOURS, "legend": BELOW}
pio.templates[TEMPLATE] = pio.templates["plotly_white"].update(layout=LAYOUT)

if "ipykernel" in sys.modules:  # elsewhere it would take seconds: plotly then loads nbformat
    pio.renderers["picture"] = PictureRenderer()
    shown_by = pio.renderers.default
    # Unless the user chose what shows figures.
    if shown_by in ("plotly_mimetype", "vscode") and "PLOTLY_RENDERER" not in os.environ:
        pio.renderers.default += "+picture"

# Figures are drawn on white; a dark page inverts them, and turns their hues back. White becomes
# the dark of JupyterLab (#111111). What is drawn dark by someone else stays as it is.
DARK = "#111111"
INVERTED = """:is(.plot-container:has(> * > .main-svg[style*="white"]), .plot-img)
{filter: invert(0.9333) hue-rotate(180deg)}"""
IN_JUPYTER = f'[data-jp-theme-light="false"] {INVERTED}'
CONFIG = {"displaylogo": False, "showSendToCloud": False}  # of plotly.js: no way to a cloud

AXIS_TITLES = {
    "accuracy": "validation accuracy",
    "accuracy_macro": "validation accuracy, mean over classes",
    "r2": "validation R²",
    "loss": "validation loss",
    "total_flops": "FLOPs (MAC = 1)",
    "total_bitops": "bitops",
    "parameters": "parameters",
    "latency": "latency (ms)",
}
COUNTED = ("total_flops", "total_bitops", "parameters")  # of a plan, without a measurement


def _offline(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method of plotly's figures that leads to no cloud."""

    @functools.wraps(method)
    def offline(self: go.Figure, *args: Any, **options: Any) -> Any:
        return method(self, *args, **{"config": CONFIG} | options)

    return offline


class Figure(go.Figure):
    """A figure of plotly's that leads to no cloud, and is dark in a dark notebook."""

    show = _offline(go.Figure.show)
    to_html = _offline(go.Figure.to_html)
    write_html = _offline(go.Figure.write_html)

    def _ipython_display_(self) -> None:
        follow_theme()
        self.show()


@functools.cache
def follow_theme() -> None:
    """Gives the notebook's page the rule by which a dark one shows figures: once a kernel."""
    with contextlib.suppress(ImportError):
        import anywidget

        class Theme(anywidget.AnyWidget):
            _esm, _css = "export default {}", IN_JUPYTER

        Theme()


def text(name: object) -> str:
    """Returns a name as plotly shows it letter by letter: it is no markup, template or TeX."""
    return html.escape(str(name), quote=False).replace("%", "&#37;").replace("$", "&#36;")


def metric_text(metric: str) -> str:
    """Returns what an axis or a legend calls a metric."""
    return AXIS_TITLES.get(metric, text(metric))


def conditions(results: Results) -> str:
    """Returns under which conditions a search measured, which every figure must say."""
    about = results.about
    return f"seed {about.get('seed')}; FLOPs counted by the convention '{about.get('convention')}'"


def title(results: Results, what: str = "", *notes: str) -> dict[str, Any]:
    """Returns a title that names network and data, above the counts, the conditions and notes."""
    name = text(f"{results.about.get('model')} on {results.about.get('dataset')}")
    return {
        "text": what + name,
        "subtitle": subtitle(results.counts(), conditions(results), *notes),
    }


def subtitle(*lines: str) -> dict[str, str]:
    """Returns lines below a title, wrapped: a long one would be cut at the figure's edge."""
    short = (part for line in lines for part in textwrap.wrap(line, 64, break_long_words=False))
    return {"text": "<br>".join(map(text, short))}


def look(i: int, dash: str = "solid") -> dict[str, Any]:
    """Returns how the i-th of several lines looks: colour alone must not tell them apart."""
    line = {"color": COLOURS[i % len(COLOURS)], "dash": dash}
    return {"mode": "lines+markers", "line": line, "marker": {"symbol": i % SYMBOLS}}


def finite(value: object) -> bool:
    """Returns whether a value may be in a figure."""
    return isinstance(value, int | float) and math.isfinite(value)


def cost_axis(metric: str, values: Sequence[float]) -> dict[str, Any]:
    """Returns a horizontal axis: logarithmic, unless some of its values have no logarithm."""
    low, high = min(values, default=0), max(values, default=0)
    return {
        "title": metric_text(metric),
        "tickformat": ",",
        "type": "log" if low > 0 else "linear",
        "dtick": _dtick(low, high) if low > 0 else None,
    }


def names_axis(names: Sequence[object], most: int = 60) -> dict[str, Any]:
    """Returns an axis of names: the middle of a long one is left out; of many, some are shown."""
    labelled = names[:: -(-len(names) // most) or 1]
    return {
        "type": "category",
        "tickvals": [text(name) for name in labelled],
        "ticktext": [text(shortened(str(name), 20)) for name in labelled],
    }


def _dtick(low: float, high: float) -> str | int | None:
    """Returns which ticks of a logarithmic axis have labels: 1, 2 and 5, or powers of ten.

    Plotly would label each digit, or none but powers. Where fewer than two of these lie in the
    range, each digit is what is left.
    """
    ticks = [digit * 10**power for power in range(-9, 19) for digit in (1, 2, 5)]
    if low < high < 10 * low and sum(low <= tick <= high for tick in ticks) < 2:
        return None
    return "D2" if high <= 1e4 * low else 1


def finished(figure: go.Figure, why_empty: str = "", **layout: Any) -> go.Figure:
    """Returns the figure in labkit's look; where it has nothing to draw, it says why."""
    drawn = (getattr(trace, "x", trace.type) for trace in figure.data)
    empty = all(values is None or not len(values) for values in drawn)
    note = {"text": text(why_empty), "showarrow": False, "font": {"size": 16}}
    figure.update_layout(template=TEMPLATE, annotations=[note] if empty else [], **layout)
    if (more := (figure.layout.title.subtitle.text or "").count("<br>") - 1) > 0:
        figure.update_layout(margin_t=100 + 30 * more)  # lest they lie on what is drawn
    return figure.update_xaxes(visible=not empty).update_yaxes(visible=not empty)
