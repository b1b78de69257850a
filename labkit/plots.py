"""Plotly figures: pure functions of results."""

from __future__ import annotations

import plotly.graph_objects as go

from labkit.results import Results

# Okabe and Ito's colours, which colour-blind people can tell apart (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
TEMPLATE = "plotly_white"

AXIS_TITLES = {
    "accuracy": "validation accuracy",
    "accuracy_macro": "validation accuracy, mean over classes",
    "loss": "validation loss",
    "total_flops": "FLOPs (MAC = 1)",
    "total_bitops": "bitops",
    "parameters": "parameters",
    "latency": "latency (ms)",
}


def pareto_front(results: Results) -> go.Figure:
    """Returns what each network achieves against what it costs, with the Pareto front stepped.

    The first maximised objective is on the vertical axis, the first minimised one on the
    horizontal, in logarithmic scale. Each network is one point, by the trial that trained it; the
    network that the search set out from is ringed.

    Args:
        results: Of a search with an objective of each direction; others are drawn over the first
            two objectives.
    """
    names = list(results.objectives)
    quality = next((n for n in names if results.objectives[n] == "maximize"), names[0])
    cost = next((n for n in names if n != quality and results.objectives[n] == "minimize"), None)
    cost = cost or ("total_flops" if "total_flops" in results.trials else names[-1])
    networks = results.networks.sort_values(cost)
    on_front = networks.index.isin(results.best["number"])

    figure = go.Figure()
    for name, rows, colour, size in (
        ("dominated", networks[~on_front], GREY, 8),
        ("Pareto front", networks[on_front], BLUE, 12),
    ):
        figure.add_scatter(
            name=name,
            x=rows[cost],
            y=rows[quality],
            mode="markers" if name == "dominated" else "lines+markers",
            line={"shape": "hv", "color": colour, "width": 2},
            marker={"color": colour, "size": size, "opacity": 0.5 if name == "dominated" else 1},
            customdata=[
                (number, str(network).replace(", ", "<br>"))
                for number, network in zip(rows.index, rows["network"], strict=True)
            ],
            hovertemplate=(
                f"{quality} %{{y:.4f}}<br>{cost} %{{x:,}}<br>%{{customdata[1]}}"
                "<extra>trial %{customdata[0]}</extra>"
            ),
        )
    about = results.about
    original = networks[networks["network"] == about.get("original")]
    figure.add_scatter(
        name="original network",
        x=original[cost],
        y=original[quality],
        mode="markers",
        marker={"symbol": "circle-open", "color": ORANGE, "size": 20, "line": {"width": 2}},
        hoverinfo="skip",
    )
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"{about.get('model')} on {about.get('dataset')}",
            "subtitle": {
                "text": f"{results.counts()}; seed {about.get('seed')}; "
                f"FLOPs counted by the convention '{about.get('convention')}'"
            },
        },
        xaxis={
            "title": AXIS_TITLES.get(cost, cost),
            "type": "log",
            "dtick": "D2",
            "tickformat": ",",
        },
        yaxis={"title": AXIS_TITLES.get(quality, quality)},
        legend={"x": 0.99, "y": 0.01, "xanchor": "right", "yanchor": "bottom"},
    )
    return figure
