"""All figures, each a pure function of results. None raises on the results of an honest search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go

from labkit.errors import LabkitError, shown
from labkit.runtime import quiet_optuna
from labkit.show import style
from labkit.show.confusion import confusion_matrix
from labkit.show.layers import layer_costs, network_drawing
from labkit.show.pictures import save_image
from labkit.show.style import conditions, finished, finite, metric_text, text, title
from labkit.study.front import Front
from labkit.study.hypervolume import hypervolume_history
from labkit.study.limits import limits_text
from labkit.study.results import Results
from labkit.table import shortened
from labkit.training import direction_of, main_of

__all__ = [
    "conditions", "confusion_matrix", "hypervolume", "layer_costs", "network_drawing",
    "parallel_coordinates", "pareto_front", "save_image", "training_curves", "width_importance",
    "widths_along_front",
]  # fmt: skip

# The report's table of best trials: FLOPs, and accuracy while training.
PUBLISHED = {352768: 0.680, 512512: 0.680, 832000: 0.681, 2355712: 0.682}
# On all of 2,000 networks 64 trees take seven times as long, and shares differ by less than 0.01.
TREES, NETWORKS = 16, 1000


def pareto_front(
    results: Results, *, axes: tuple[str, str] | None = None, published: bool = False
) -> go.Figure:
    """Returns what each network achieves against what it costs, with the Pareto front stepped.

    The first maximised objective is on the vertical axis, the first minimised one, or else FLOPs,
    on the horizontal, in logarithmic scale. Each network is one point, by the trial that trained
    it; the network that the search set out from is ringed. Where networks were trained with several
    seeds, a bar is one standard deviation to each side. Fronts of two objectives have a line, and a
    limit has a dotted one.

    Args:
        results: Of a search.
        axes: The metrics of the vertical and the horizontal axis, in place of these; the front is
            that of the two.
        published: Add the points of the report's own table.

    Raises:
        LabkitError: An axis was not measured; or `published`, and the axes are not those that the
            report's figures belong on.
    """
    quality, cost = _axes(results) if axes is None else _measured(results, axes)
    convention = results.about.get("convention")
    if published and (quality, cost, convention) != ("accuracy", "total_flops", "reference"):
        raise LabkitError(
            "published: the report's points are accuracy against FLOPs by the convention "
            f"'reference', and this search has {quality} against {cost} by {convention!r}"
        )
    networks = _finite(results.networks, quality, cost)
    on_front = networks.index.isin(
        [trial.number for trial in results.front_trials] if axes is None
        else _front_over(results, networks, quality, cost)
    )  # fmt: skip
    stepped = axes is not None or {quality, cost} == set(results.description.directions)
    joined = "lines+markers" if stepped else "markers"
    figure = style.Figure()
    for name, rows, mode, colour, size, opacity in (
        ("dominated", networks[~on_front], "markers", style.GREY, 8, 0.8),
        ("Pareto front", networks[on_front], joined, style.BLUE, 12, 1),
    ):
        figure.add_scatter(
            name=name, x=rows[cost], y=rows[quality], mode=mode,
            line={"shape": "hv", "color": colour, "width": 2},
            marker={"color": colour, "size": size, "opacity": opacity},
            **_spread_and_hover(results, rows, quality, cost),
        )  # fmt: skip
    original = _finite(results.trials[results.trials.index == results.original], quality, cost)
    ring = {"symbol": "circle-open", "color": style.ORANGE, "size": 20, "line": {"width": 2}}
    figure.add_scatter(
        name="original network", mode="markers", marker=ring, hoverinfo="skip",
        x=original[cost], y=original[quality],
    )  # fmt: skip
    _add_limits(figure, results, quality, cost)
    if published:
        cross = {"symbol": "x", "color": style.PURPLE, "size": 10}
        figure.add_scatter(
            name="report (training accuracy)", mode="markers", marker=cross,
            x=list(PUBLISHED), y=list(PUBLISHED.values()),
        )  # fmt: skip
    return finished(
        figure,
        "No network yet.",
        title=title(results),
        xaxis=style.cost_axis(cost, [*networks[cost], *original[cost]]),
        yaxis={"title": metric_text(quality)},
    )


def _add_limits(figure: go.Figure, results: Results, quality: str, cost: str) -> None:
    """Draws the limits of what is on the axes."""
    for metric, (sign, bound) in results.description.limits.items():
        if metric in (quality, cost):
            line = {"name": text(limits_text({metric: (sign, bound)})), "showlegend": True}
            line |= {"line": {"color": style.BLACK, "dash": "dot", "width": 1}}
            draw = figure.add_vline if metric == cost else figure.add_hline
            draw(bound, **line)


def _axes(results: Results) -> tuple[str, str]:
    """Returns the metrics that a front is drawn over: quality, cost."""
    names = list(results.objectives)
    quality = next((n for n in names if results.objectives[n] == "maximize"), names[0])
    cost = next((n for n in names if n != quality and results.objectives[n] == "minimize"), None)
    return quality, cost or ("total_flops" if "total_flops" in results.trials else names[-1])


def _measured(results: Results, axes: Any) -> tuple[str, str]:
    """Returns two different metrics, once it is checked that they are there."""
    known = [*results.networks.select_dtypes("number")]
    found = [metric for metric in known if isinstance(axes, tuple | list) and metric in axes]
    if len(found) != 2 or len(axes) != 2:
        raise LabkitError(f"axes: expected two of {', '.join(known)}, got {shown(axes)}")
    return axes[0], axes[1]


def _front_over(results: Results, networks: pd.DataFrame, *metrics: str) -> list[int]:
    """Returns which trials within the limits no other dominates in these metrics."""
    front: Front[int] = Front(direction_of(metric, results.objectives) for metric in metrics)
    for number, values in zip(networks.index, networks[[*metrics]].to_numpy(float)):
        if results.records[number].record.competes:
            front.add(number, values.tolist())
    return front.members


def parallel_coordinates(results: Results) -> go.Figure:
    """Returns each network as a line over its widths and its objectives; the front's are blue.

    For three objectives and more, of which a front has only two. In a notebook, a range that is
    drawn on an axis with the pointer shows the networks within it.
    """
    networks = _finite(results.networks, *results.objectives)
    on_front = networks.index.isin(results.front.index).astype(int)
    order = on_front.argsort(kind="stable")  # the front's lines are drawn last, above the others
    widths = pd.DataFrame([results.plan(n).to_dict() for n in networks.index], networks.index)
    varied = widths.loc[:, widths.nunique() > 1]
    axes = pd.concat([varied, networks[[*results.objectives]]], axis=1).iloc[order]
    figure = style.Figure()
    if len(networks):
        shades = [(0, style.GREY), (1, style.BLUE)]
        figure.add_parcoords(
            line={"color": on_front[order], "colorscale": shades, "cmin": 0, "cmax": 1},
            dimensions=[
                {"label": text(shortened(str(name), 12)), "values": values,
                 "tickvals": sorted({*values}) if name in varied else None}
                for name, values in axes.items()
            ],
            labelside="bottom", rangefont={"color": "rgba(0,0,0,0)"},  # ticks say as much
        )  # fmt: skip
    heading = title(results, "Widths and objectives: ", "blue: networks of the Pareto front")
    return finished(figure, "No network yet.", title=heading)


def _finite(networks: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Returns the networks that have a place on a figure, from cheap to dear."""
    values = networks[list(metrics)].to_numpy(float)
    return networks[np.isfinite(values).all(axis=1)].sort_values(metrics[-1])


def _spread_and_hover(
    results: Results, rows: pd.DataFrame, quality: str, cost: str
) -> dict[str, Any]:
    """Returns what points say of replicates, and what they say when the pointer is over them."""
    # Networks that were trained once have no spread.
    spread = rows.get(f"{quality}_std", pd.Series(None, rows.index, dtype=float))
    known = [value if finite(value) else None for value in spread]
    plans = [results.plan(number).widths for number in rows.index]
    widths = ["<br>".join(f"{text(group)}: {n}" for group, n in plan) for plan in plans]
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
    figure = style.Figure()
    for i, group in enumerate(widths):
        figure.add_scatter(
            name=text(shortened(str(group))), x=front[cost], y=widths[group], **style.look(i)
        )
    figure.update_traces(line={"shape": "hv"}, marker={"size": 10})
    ticks = sorted(set(widths.stack()))  # and another one, lest there be one alone
    return finished(
        figure,
        "No network is on a front yet.",
        title=title(results, "Widths along the front: "),
        xaxis=style.cost_axis(cost, front[cost].tolist()),
        yaxis={"title": "channels", "type": "log", "tickvals": [*ticks, 2 * max(ticks, default=1)]},
        showlegend=True,
    )


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
    if not isinstance(against, str) or against not in ("trial", "seconds"):
        raise LabkitError(f"against: expected 'trial' or 'seconds', got {against!r}")
    figure = style.Figure()
    histories = hypervolume_history(results, reference=reference)
    for name, history in histories.groupby("search", sort=False):
        grown = history["hypervolume"].diff() != 0
        grown.iloc[-1] = True  # so far the step that was reached last goes on
        steps, line = history[grown], {"shape": "hv", "width": 2}
        figure.add_scatter(
            name=text(name), x=steps[against], y=steps["hypervolume"], mode="lines", line=line
        )
    one = next(iter(results.values()))
    heading = title(one, "Hypervolume of the front: ")
    if len(results) > 1:
        heading["subtitle"] = style.subtitle(conditions(one))
    return finished(
        figure,
        "No trial has finished.",
        title=heading,
        xaxis={"title": "trials" if against == "trial" else "seconds", "rangemode": "tozero"},
        yaxis={"title": "share of the box", "rangemode": "tozero"},
        showlegend=len(results) > 1,
    )


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    metric: str | None = None,
    *,
    about: str = "",
) -> go.Figure:
    """Returns a metric after each epoch: on training data dashed, on validation data solid.

    Args:
        histories: Name of a network → what `train` returned, or one of `Results.histories`.
        metric: `"accuracy"`, `"loss"`, …; by default `accuracy`, or `r2` of a regression.
        about: What the figure says of the data and the seeds.
    """
    figure = style.Figure()
    first = next((history[0] for history in histories.values() if history), {})
    metric = main_of(first) if metric is None else metric
    for i, (name, history) in enumerate(histories.items()):
        for key, dash in ((metric, "solid"), (f"train_{metric}", "dash")):
            values = [value if finite(value := epoch.get(key)) else None for epoch in history]
            if any(value is not None for value in values):
                epochs = list(range(1, len(history) + 1))
                figure.add_scatter(
                    name=text(name), legendgroup=name, showlegend=key == metric,
                    x=epochs, y=values, **style.look(i, dash),
                )  # fmt: skip
    n_epochs = max(map(len, histories.values()), default=1)
    said = style.subtitle("solid: validation data; dashed: training data", about)
    return finished(
        figure,
        f"No epoch has a {metric} to draw.",
        title={"text": "Training curves", "subtitle": said},
        xaxis={"title": "epoch", "tick0": 0, "dtick": -(-n_epochs // 10) or 1},
        yaxis={"title": text(metric)},
    )


def width_importance(results: Results) -> go.Figure:
    """Returns how much of each objective's variance each width explains by itself, by fANOVA.

    The variance is that of a random forest fitted to the networks that were trained, over all
    combinations of the widths that occur, each equally likely. What widths explain only together
    is in no bar. Of more than 1,000 networks as many are drawn at random.

    Widths, not the keys of the configuration: of two keys that write the same channels one has no
    effect, and the plan says which. An objective that is the same for all networks has no bars, and
    the figure says so.

    Hutter, Hoos & Leyton-Brown, "An efficient approach for assessing hyperparameter importance",
    ICML 2014.
    """
    networks, notes = results.networks, []
    if len(networks) > NETWORKS:
        notes.append(f"from {NETWORKS:,} of {len(networks):,} networks, drawn at random")
        networks = networks.sample(NETWORKS, random_state=0).sort_index()
    widths = pd.DataFrame([results.plan(number).to_dict() for number in networks.index])
    varied = [str(group) for group in widths if widths[group].nunique() > 1]
    figure = style.Figure()
    for metric in results.objectives if varied else ():
        shares = _shares(widths[varied], networks[metric].tolist())
        if shares is None:
            notes.append(f"{metric} does not vary")
            continue
        x, y = [shares[group] for group in varied], [text(group) for group in varied]
        figure.add_bar(name=metric_text(metric), x=x, y=y, orientation="h")
    return finished(
        figure,
        "No objective varies." if varied else "No width differs between the trained networks.",
        title=title(results, "Importance of widths: ", *notes),
        xaxis={"title": "share of variance explained alone", "range": [0, 1]},
        yaxis={"autorange": "reversed"} | style.names_axis(varied),
        showlegend=True,
    )


def _shares(widths: pd.DataFrame, values: Sequence[float]) -> dict[str, float] | None:
    """Returns group → the share of the variance that it explains, or `None` where there is none.

    Args:
        widths: One row a network, a column a group.
        values: Of a metric; networks without a finite one are left out.
    """
    # A width counts by its rank among those that occur: the forest's space is the search's own.
    ranks = widths.rank(method="dense").astype(int)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        str(group): optuna.distributions.IntDistribution(1, ranks[group].max()) for group in ranks
    }
    trials = [
        optuna.create_trial(params=dict(zip(space, row)), distributions=space, value=value)
        for row, value in zip(ranks.to_numpy().tolist(), values)
        if finite(value)
    ]
    if len({trial.value for trial in trials}) < 2:
        return None
    with quiet_optuna():
        study = optuna.create_study()
        study.add_trials(trials)
    fanova = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    try:
        shares = fanova.evaluate(study)
    except RuntimeError:  # differences below what floating point tells apart
        return None
    return {group: float(np.clip(share, 0, 1)) for group, share in shares.items()}
