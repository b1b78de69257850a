"""Figures of what grew: the front while a search ran, a metric while networks trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from labkit.errors import LabkitError
from labkit.show.style import (
    TEMPLATE,
    conditions,
    finite,
    look,
    say_if_empty,
    text,
    title,
)
from labkit.study.hypervolume import hypervolume_history
from labkit.study.results import Results


def hypervolume(
    results: Mapping[str, Results],
    *,
    against: str = "trial",
    reference: Sequence[float] | None = None,
) -> go.Figure:
    """Returns how the hypervolume of each search's front grew.

    Args:
        results: Name → results of searches with the same objectives.
        against: `"trial"` or `"seconds"`.
        reference: As `hypervolume_history` takes it; by default the worst of all searches, so that
            they can be compared.

    Raises:
        LabkitError: `against` is neither, or the searches have other objectives.
    """
    if against not in ("trial", "seconds"):
        raise LabkitError(f"against: expected 'trial' or 'seconds', got {against!r}")
    figure = go.Figure()
    for name, history in hypervolume_history(results, reference=reference).groupby(
        "search", sort=False
    ):
        grown = history["hypervolume"].diff() != 0
        grown.iloc[-1] = True  # so far the step that was reached last goes on
        figure.add_scatter(
            name=text(name),
            x=history.loc[grown, against],
            y=history.loc[grown, "hypervolume"],
            mode="lines",
            line={"shape": "hv", "width": 2},
        )
    one = next(iter(results.values()))
    heading = title(one, "Hypervolume of the front: ")
    if len(results) > 1:
        heading["subtitle"] = {"text": text(conditions(one))}
    figure.update_layout(
        template=TEMPLATE,
        title=heading,
        xaxis={"title": "trials" if against == "trial" else "seconds", "rangemode": "tozero"},
        yaxis={"title": "share of the box to the reference point", "rangemode": "tozero"},
        showlegend=len(results) > 1,
    )
    return say_if_empty(figure, "No trial has finished.")


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    metric: str = "accuracy",
    *,
    about: str = "",
) -> go.Figure:
    """Returns a metric after each epoch: on training data dashed, on validation data solid.

    Args:
        histories: Name of a network → what `train` returned, or one of `Results.histories`.
        metric: `"accuracy"` or `"loss"`.
        about: What the figure says of the data and the seeds.
    """
    figure = go.Figure()
    for i, (name, history) in enumerate(histories.items()):
        for key, dash in ((metric, "solid"), (f"train_{metric}", "dash")):
            values = [value if finite(value := epoch.get(key)) else None for epoch in history]
            if not any(value is not None for value in values):
                continue
            figure.add_scatter(
                name=text(name),
                legendgroup=name,
                showlegend=key == metric,
                x=list(range(1, len(history) + 1)),
                y=values,
                **look(i, dash),
            )
    n_epochs = max(map(len, histories.values()), default=1)
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": "Training curves",
            "subtitle": {"text": text(f"solid: validation data; dashed: training data. {about}")},
        },
        xaxis={"title": "epoch", "tick0": 0, "dtick": -(-n_epochs // 10) or 1},
        yaxis={"title": text(metric)},
    )
    return say_if_empty(figure, f"No epoch has a {metric} to draw.")
