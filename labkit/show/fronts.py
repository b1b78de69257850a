"""Figures of a search's networks: what each achieves and costs, and how wide the best ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from labkit.errors import LabkitError
from labkit.show.style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    TEMPLATE,
    cost_axis,
    finite,
    look,
    metric_text,
    say_if_empty,
    text,
    title,
)
from labkit.study.results import Results

# The report's table of best trials: FLOPs, and accuracy while training.
PUBLISHED = ((352768, 0.680), (512512, 0.680), (832000, 0.681), (2355712, 0.682))


def _axes(results: Results) -> tuple[str, str]:
    """Returns the metrics that a front is drawn over: quality, cost."""
    names = list(results.objectives)
    quality = next((n for n in names if results.objectives[n] == "maximize"), names[0])
    cost = next((n for n in names if n != quality and results.objectives[n] == "minimize"), None)
    return quality, cost or ("total_flops" if "total_flops" in results.trials else names[-1])


def _finite(networks: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Returns the networks that have a place on a figure, from cheap to dear."""
    values = networks[list(metrics)].to_numpy(float)
    return networks[np.isfinite(values).all(axis=1)].sort_values(metrics[-1])


def pareto_front(results: Results, *, published: bool = False) -> go.Figure:
    """Returns what each network achieves against what it costs, with the Pareto front stepped.

    The first maximised objective is on the vertical axis, the first minimised one, or else FLOPs,
    on the horizontal, in logarithmic scale. Each network is one point, by the trial that trained
    it; the network that the search set out from is ringed. Where networks were trained with several
    seeds, a bar is one standard deviation to each side. Fronts of two objectives have a line.

    Args:
        results: Of a search.
        published: Add the points of the report's own table.

    Raises:
        LabkitError: `published`, and the axes are not those that the report's figures belong on.
    """
    quality, cost = _axes(results)
    convention = results.about.get("convention")
    if published and (quality, cost, convention) != ("accuracy", "total_flops", "reference"):
        raise LabkitError(
            "published: the report's points are accuracy against FLOPs by the convention "
            f"'reference', and this search has {quality} against {cost} by {convention!r}"
        )
    networks = _finite(results.networks, quality, cost)
    on_front = networks.index.isin([trial.number for trial in results.front_trials])
    is_step = {quality, cost} == set(results.description.directions)
    figure = go.Figure()
    for name, rows, style in (
        ("dominated", networks[~on_front], {"mode": "markers", "marker": _marker(GREY, 8, 0.5)}),
        ("Pareto front", networks[on_front], {"mode": "lines+markers" if is_step else "markers", "marker": _marker(BLUE, 12, 1)}),
    ):
        figure.add_scatter(
            name=name,
            x=rows[cost],
            y=rows[quality],
            line={"shape": "hv", "color": style["marker"]["color"], "width": 2},
            **style,
            **_spread_and_hover(results, rows, quality, cost),
        )
    original = [results.plan(n).to_dict() == results.about.get("original") for n in networks.index]
    figure.add_scatter(
        name="original network",
        x=networks.loc[original, cost],
        y=networks.loc[original, quality],
        mode="markers",
        marker={"symbol": "circle-open", "color": ORANGE, "size": 20, "line": {"width": 2}},
        hoverinfo="skip",
    )
    if published:
        figure.add_scatter(
            name="report (training accuracy)",
            x=[flops for flops, _ in PUBLISHED],
            y=[accuracy for _, accuracy in PUBLISHED],
            mode="markers",
            marker={"symbol": "x", "color": PURPLE, "size": 10},
        )
    return figure.update_layout(
        template=TEMPLATE,
        title=title(results),
        xaxis=cost_axis(cost, networks[cost]),
        yaxis={"title": metric_text(quality)},
    )


def _marker(colour: str, size: int, opacity: float) -> dict[str, Any]:
    return {"color": colour, "size": size, "opacity": opacity}


def _spread_and_hover(
    results: Results, rows: pd.DataFrame, quality: str, cost: str
) -> dict[str, Any]:
    """Returns what points say of replicates, and what they say when the pointer is over them."""
    # Networks that were trained once have no spread.
    spread = rows.get(f"{quality}_std", pd.Series(None, rows.index, dtype=float))
    known = [value if finite(value) else None for value in spread]
    widths = [
        "<br>".join(f"{text(group)}: {n}" for group, n in results.plan(number).widths)
        for number in rows.index
    ]
    said = ["" if value is None else f" ± {value:.4f}" for value in known]
    return {
        "error_y": {"array": known, "thickness": 1} if any(said) else None,
        "customdata": list(zip(rows.index, widths, said)),
        "hovertemplate": (
            f"{text(quality)} %{{y:.4f}}%{{customdata[2]}}<br>{text(cost)} %{{x:,}}<br>"
            "%{customdata[1]}<extra>trial %{customdata[0]}</extra>"
        ),
    }


def widths_along_front(results: Results) -> go.Figure:
    """Returns the width of each channel group for each network of the front, from cheap to dear."""
    _, cost = _axes(results)
    front = _finite(results.front, cost)
    widths = pd.DataFrame([results.plan(number).to_dict() for number in front.index])
    figure = go.Figure()
    for i, group in enumerate(widths):
        figure.add_scatter(
            name=text(group),
            x=front[cost],
            y=widths[group],
            **look(i),
        )
    figure.update_traces(line={"shape": "hv"}, marker={"size": 10})
    figure.update_layout(
        template=TEMPLATE,
        title=title(results, "Widths along the front: "),
        xaxis=cost_axis(cost, front[cost]),
        yaxis={"title": "channels", "type": "log", "tickvals": sorted(set(widths.stack()))},
        showlegend=True,
    )
    return say_if_empty(figure, "No network is on a front yet.")
