"""Figures of one network, layer by layer: before a transform and after it."""

import pandas as pd
import plotly.graph_objects as go

from labkit.show.style import BLUE, GREY, Figure, finished, metric_text, subtitle, text

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
        xaxis={"type": "category"},
        yaxis={"title": what},
    )


def network_drawing(comparison: pd.DataFrame) -> go.Figure:
    """Returns a network as one bar a layer, as tall as the layer is wide, before and after.

    Args:
        comparison: A table of `labkit.compare`.
    """
    widths = comparison["out"].dropna()
    figure = Figure()
    for when, colour in WHEN:
        figure.add_bar(
            name=when, x=widths.index.map(text), y=widths[when], base=-widths[when] / 2,
            marker={"color": colour}, text=widths[when], hovertemplate="%{x}: %{text} channels",
        )  # fmt: skip
    return finished(
        figure,
        title="Channels that each layer puts out",
        xaxis={"type": "category"},
        yaxis={"title": "channels", "showticklabels": False, "showgrid": False},
    )
