"""Figures of one network, layer by layer: before a transform and after it."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from labkit.show.style import BLUE, GREY, Figure, finished, metric_text, names_axis, subtitle, text

FEW = 25  # layers, at most, whose widths are in their bars
WHEN = (("before", GREY), ("after", BLUE))


def layer_costs(comparison: pd.DataFrame, cost: str = "flops") -> go.Figure:
    """Returns what each layer costs before and after, as bars.

    Args:
        comparison: A table of `labkit.compare`.
        cost: `"flops"` or `"parameters"`.
    """
    layers = comparison.iloc[:-1]  # the last row is the total
    figure = Figure()
    for when, colour in WHEN:
        costs = layers[cost, when].astype(float)
        figure.add_bar(name=when, x=layers.index.map(text), y=costs, marker={"color": colour})
    what = metric_text({"flops": "total_flops"}.get(cost, cost))
    convention = f"counted by the convention '{comparison.attrs['convention']}'"
    return finished(
        figure,
        title={"text": f"{what} of each layer", "subtitle": subtitle(convention)},
        xaxis=names_axis(list(layers.index)),
        yaxis={"title": what},
    )


def network_drawing(comparison: pd.DataFrame) -> go.Figure:
    """Returns a network as one bar a layer, as tall as the layer is wide, before and after.

    Args:
        comparison: A table of `labkit.compare`.
    """
    figure = Figure()
    for when, colour in WHEN:
        figure.add_bar(name=when, marker={"color": colour}, **bars(comparison, when))
    return finished(
        figure,
        title="Channels that each layer puts out",
        legend={"yref": "paper", "y": 1, "x": 1, "xanchor": "right"},
        bargap=0.1,
        height=330,
        margin={"l": 50, "r": 10, "t": 60, "b": 30},
        xaxis=names_axis(list(comparison["out"].dropna().index)),
        yaxis={"title": "channels", "showticklabels": False, "showgrid": False},
    )


def bars(comparison: pd.DataFrame, when: str) -> dict[str, Any]:
    """Returns the bars of a drawing, `"before"` or `"after"`; those of few layers have numbers."""
    widths = comparison["out"].dropna()[when]
    return {
        "x": widths.index.map(text), "y": widths, "base": -widths / 2, "text": widths,
        "textposition": "auto" if len(widths) <= FEW else "none",
        "marker_line_width": 0, "hovertemplate": "%{x}: %{text} channels",
    }  # fmt: skip
