"""Plotly figures: pure functions of results."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from labkit.errors import LabkitError
from labkit.runtime import quiet_optuna
from labkit.study.hypervolume import hypervolume_history
from labkit.study.results import Results, widths_of

# Okabe and Ito's colours, which colour-blind people can tell apart (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#999999"
pio.templates["labkit"] = pio.templates["plotly_white"].update(
    layout={"colorway": [BLUE, ORANGE, GREEN, PURPLE, SKY, GREY]}
)
TEMPLATE = "labkit"

AXIS_TITLES = {
    "accuracy": "validation accuracy",
    "accuracy_macro": "validation accuracy, mean over classes",
    "loss": "validation loss",
    "total_flops": "FLOPs (MAC = 1)",
    "total_bitops": "bitops",
    "parameters": "parameters",
    "latency": "latency (ms)",
}

# The report's table of best trials: FLOPs, and accuracy while training.
PUBLISHED = ((352768, 0.680), (512512, 0.680), (832000, 0.681), (2355712, 0.682))


def _axes(results: Results) -> tuple[str, str]:
    """Returns the metrics that a front is drawn over: quality, cost."""
    names = list(results.objectives)
    quality = next((n for n in names if results.objectives[n] == "maximize"), names[0])
    cost = next((n for n in names if n != quality and results.objectives[n] == "minimize"), None)
    return quality, cost or ("total_flops" if "total_flops" in results.trials else names[-1])


def conditions(results: Results) -> str:
    """Returns under which conditions a search measured, which every figure must say."""
    about = results.about
    return f"seed {about.get('seed')}; FLOPs counted by the convention '{about.get('convention')}'"


def _title(results: Results, what: str = "") -> dict[str, object]:
    about = results.about
    return {
        "text": what + html.escape(f"{about.get('model')} on {about.get('dataset')}"),
        "subtitle": {"text": f"{results.counts()}; {conditions(results)}"},
    }


def pareto_front(results: Results, *, published: bool = False) -> go.Figure:
    """Returns what each network achieves against what it costs, with the Pareto front stepped.

    The first maximised objective is on the vertical axis, the first minimised one on the
    horizontal, in logarithmic scale. Each network is one point, by the trial that trained it; the
    network that the search set out from is ringed. Where networks were trained with several seeds,
    a bar is one standard deviation to each side.

    Args:
        results: Of a search with an objective of each direction; others are drawn over the first
            two objectives.
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
    networks = results.networks.sort_values(cost)
    spread = f"{quality}_std" if f"{quality}_std" in networks else None
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
            error_y={"array": rows[spread], "thickness": 1} if spread else None,
            customdata=[
                (number, str(network).replace(", ", "<br>"))
                for number, network in zip(rows.index, rows["network"], strict=True)
            ],
            hovertemplate=(
                f"{quality} %{{y:.4f}}{' ± %{error_y.array:.4f}' if spread else ''}<br>"
                f"{cost} %{{x:,}}<br>%{{customdata[1]}}"
                "<extra>trial %{customdata[0]}</extra>"
            ),
        )
    original = networks[networks["network"] == results.about.get("original")]
    figure.add_scatter(
        name="original network",
        x=original[cost],
        y=original[quality],
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
    figure.update_layout(
        template=TEMPLATE,
        title=_title(results),
        xaxis={
            "title": AXIS_TITLES.get(cost, cost),
            "type": "log",
            "dtick": "D2",
            "tickformat": ",",
        },
        yaxis={"title": AXIS_TITLES.get(quality, quality)},
    )
    return figure


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
    histories = hypervolume_history(results, reference=reference)
    figure = go.Figure()
    for name, history in histories.groupby("search", sort=False):
        figure.add_scatter(
            name=html.escape(str(name)),
            x=history[against],
            y=history["hypervolume"],
            mode="lines",
            line={"shape": "hv", "width": 2},
        )
    one = next(iter(results.values()))
    title = _title(one, "Hypervolume of the front: ")
    if len(results) > 1:
        title["subtitle"] = {"text": conditions(one)}
    return figure.update_layout(
        template=TEMPLATE,
        title=title,
        xaxis={"title": "trials" if against == "trial" else "seconds", "rangemode": "tozero"},
        yaxis={"title": "share of the box to the reference point", "rangemode": "tozero"},
        showlegend=len(results) > 1,
    )


def widths_along_front(results: Results) -> go.Figure:
    """Returns the width of each channel group for each network of the front, from cheap to dear."""
    _, cost = _axes(results)
    front = results.front.sort_values(cost)
    widths = pd.DataFrame([widths_of(network) for network in front["network"]], index=front[cost])
    figure = go.Figure()
    for i, group in enumerate(widths):
        figure.add_scatter(
            name=str(group),
            x=widths.index,
            y=widths[group],
            mode="lines+markers",
            line={"shape": "hv"},
            marker={"symbol": i, "size": 10},  # colour alone must not tell them apart
        )
    return figure.update_layout(
        template=TEMPLATE,
        title=_title(results, "Widths along the front: "),
        xaxis={
            "title": AXIS_TITLES.get(cost, cost),
            "type": "log",
            "dtick": "D2",
            "tickformat": ",",
        },
        yaxis={"title": "channels", "type": "log", "tickvals": sorted(set(widths.stack()))},
        showlegend=True,
    )


def width_importance(results: Results) -> go.Figure:
    """Returns how much of each objective's variance each width explains, by fANOVA.

    Widths, not the keys of the configuration: of two keys that write the same channels one has no
    effect, and the plan says which.

    Raises:
        LabkitError: No width differs between the networks that were trained.
    """
    networks = results.networks
    widths = pd.DataFrame([widths_of(network) for network in networks["network"]])
    varied = widths.loc[:, widths.nunique() > 1]
    if varied.empty:
        raise LabkitError("results: the importance of widths needs networks of different widths")
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        str(group): optuna.distributions.IntDistribution(int(low), int(high))
        for group, low, high in zip(varied, varied.min(), varied.max())
    }
    figure = go.Figure()
    for metric in results.objectives:
        with quiet_optuna():
            study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        for (_, row), value in zip(varied.iterrows(), networks[metric], strict=True):
            params = {group: int(row[group]) for group in distributions}
            study.add_trial(
                optuna.create_trial(params=params, distributions=distributions, value=value)
            )
        importances = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        figure.add_bar(
            name=AXIS_TITLES.get(metric, metric),
            y=list(distributions),
            x=[importances[group] for group in distributions],
            orientation="h",
        )
    return figure.update_layout(
        template=TEMPLATE,
        title=_title(results, "Importance of widths: "),
        xaxis={"title": "share of the variance (fANOVA)", "range": [0, 1]},
        yaxis={"autorange": "reversed", "automargin": True},
        showlegend=True,
    )


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
    colours = pio.templates[TEMPLATE].layout.colorway
    for i, (name, history) in enumerate(histories.items()):
        for key, dash in ((metric, "solid"), (f"train_{metric}", "dash")):
            figure.add_scatter(
                name=html.escape(name),
                legendgroup=name,
                showlegend=key == metric,
                x=list(range(1, len(history) + 1)),
                y=[epoch[key] for epoch in history],
                mode="lines+markers",
                line={"dash": dash, "color": colours[i % len(colours)]},
                marker={"symbol": i},
            )
    n_epochs = max(map(len, histories.values()))
    return figure.update_layout(
        template=TEMPLATE,
        title={
            "text": "Training curves",
            "subtitle": {"text": f"solid: validation data; dashed: training data. {about}"},
        },
        xaxis={"title": "epoch", "tick0": 0, "dtick": -(-n_epochs // 10)},
        yaxis={"title": metric},
    )


def layer_costs(comparison: pd.DataFrame, cost: str = "flops") -> go.Figure:
    """Returns what each layer costs before and after, as bars.

    Args:
        comparison: A table of `labkit.show.tables.compare`.
        cost: `"flops"` or `"parameters"`.
    """
    layers = comparison.drop(index="total")
    figure = go.Figure()
    for when, colour in (("before", GREY), ("after", BLUE)):
        figure.add_bar(name=when, x=layers.index, y=layers[cost, when], marker={"color": colour})
    return figure.update_layout(
        template=TEMPLATE,
        title={
            "text": f"{AXIS_TITLES.get(f'total_{cost}', cost)} of each layer",
            "subtitle": {"text": f"counted by the convention '{comparison.attrs['convention']}'"},
        },
        yaxis={"title": AXIS_TITLES.get(f"total_{cost}", cost)},
    )


def network_drawing(comparison: pd.DataFrame) -> go.Figure:
    """Returns a network as one bar a layer, as tall as the layer is wide, before and after.

    Args:
        comparison: A table of `labkit.show.tables.compare`.
    """
    widths = comparison["out"].dropna()
    figure = go.Figure()
    for when, colour in (("before", GREY), ("after", BLUE)):
        figure.add_bar(
            name=when,
            x=widths.index,
            y=widths[when],
            base=-widths[when] / 2,
            marker={"color": colour},
            text=widths[when],
            hovertemplate="%{x}: %{text} channels",
        )
    return figure.update_layout(
        template=TEMPLATE,
        title="Channels that each layer puts out",
        yaxis={"title": "channels", "showticklabels": False, "showgrid": False},
    )


def save_image(figure: go.Figure, path: str | Path) -> None:
    """Writes a figure as PNG, SVG or PDF, by the name's ending; needs Chromium, and no network.

    Raises:
        LabkitError: The ending is another, or there is no Chromium or Chrome.
    """
    suffix = Path(path).suffix
    if suffix not in (".png", ".svg", ".pdf"):
        raise LabkitError(f"path: expected a name ending in .png, .svg or .pdf, got {str(path)!r}")
    try:
        figure.write_image(path, scale=2)
    except RuntimeError as error:
        raise LabkitError(f"path: images are drawn by Chromium: {error}") from error
