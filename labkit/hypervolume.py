"""The hypervolume of a Pareto front: how much of the space of objectives it dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from optuna._hypervolume import compute_hypervolume  # Optuna offers it only as a figure

from labkit.errors import LabkitError
from labkit.results import Results


def hypervolume_history(
    results: Mapping[str, Results], *, reference: Sequence[float] | None = None
) -> pd.DataFrame:
    """Returns the hypervolume of each search's front after each trial.

    Objectives are scaled so that the reference point is 0 and the best value of any search is 1,
    and the hypervolume is a share of that box. It can only be compared under one reference point.

    Args:
        results: Name → results of searches with the same objectives.
        reference: A value for each objective, in their order; what is worse counts nothing. By
            default the worst that any of these searches found.

    Returns:
        One row a finished trial: search, trial (from 1), seconds (that trials took so far), and
        hypervolume, 0 to 1.

    Raises:
        LabkitError: The searches have different objectives, or no finished trial.
    """
    objectives = next(iter(results.values())).objectives
    if any(dict(other.objectives) != dict(objectives) for other in results.values()):
        raise LabkitError("results: the searches have different objectives")
    signs = np.array([-1 if way == "maximize" else 1 for way in objectives.values()])
    finished = {
        name: one.trials[one.trials["state"] == "COMPLETE"] for name, one in results.items()
    }
    losses = {
        name: signs * rows[list(objectives)].to_numpy(float) for name, rows in finished.items()
    }
    everything = np.concatenate(list(losses.values()))
    if not len(everything):
        raise LabkitError("results: no trial has finished")
    worst = everything.max(axis=0) if reference is None else signs * np.asarray(reference, float)
    best = np.minimum(everything.min(axis=0), worst)
    scale = np.where(worst > best, worst - best, 1.0)
    tables = []
    for name, rows in finished.items():
        scaled = (losses[name] - best) / scale
        volumes = [
            compute_hypervolume(scaled[: n + 1], np.ones(len(objectives)))
            for n in range(len(scaled))
        ]
        tables.append(
            pd.DataFrame(
                {
                    "search": name,
                    "trial": range(1, len(rows) + 1),
                    "seconds": rows["seconds"].cumsum().to_numpy(),
                    "hypervolume": volumes,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
