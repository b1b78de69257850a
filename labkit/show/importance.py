"""The figure of what each width matters for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go

from labkit.runtime import quiet_optuna
from labkit.show.style import TEMPLATE, finite, metric_text, say_if_empty, text, title
from labkit.study.results import Results

# On all of 2,000 networks 64 trees take seven times as long, and shares differ by less than 0.01.
TREES, NETWORKS = 16, 1000


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
    figure = go.Figure()
    for metric in results.objectives if varied else ():
        shares = _shares(widths[varied], networks[metric].tolist())
        if shares is None:
            notes.append(f"{metric} does not vary")
            continue
        figure.add_bar(
            name=metric_text(metric),
            y=[text(group) for group in varied],
            x=[shares[group] for group in varied],
            orientation="h",
        )
    figure.update_layout(
        template=TEMPLATE,
        title=title(results, "Importance of widths: ", *notes),
        xaxis={"title": "share of the variance that a width explains alone", "range": [0, 1]},
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        showlegend=True,
    )
    why = "No objective varies." if varied else "No width differs between the trained networks."
    return say_if_empty(figure, why)


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
