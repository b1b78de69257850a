"""The hypervolume of a Pareto front: how much of the space of objectives it dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from labkit.errors import LabkitError
from labkit.study.results import Results

Points = npt.NDArray[np.float64]


def dominated_volume(losses: Points, reference: Points) -> float:
    """Returns the volume between a reference point and the points that dominate it.

    In the plane it is a staircase. Above, the space is cut into slabs along the last axis, at the
    points; within a slab the dominated volume has one axis fewer.

    Args:
        losses: (points, axes), what is to be minimised.
        reference: (axes,); points that are not better than it on every axis count nothing.
    """
    losses = losses[(losses < reference).all(axis=1)]
    if not len(losses):
        return 0.0
    if losses.shape[1] == 1:
        return float(reference[0] - losses.min())
    losses = losses[losses[:, -1].argsort()]
    thickness = np.diff(losses[:, -1], append=reference[-1])
    if losses.shape[1] == 2:
        return float(thickness @ (reference[0] - np.minimum.accumulate(losses[:, 0])))
    return sum(
        t * dominated_volume(losses[: n + 1, :-1], reference[:-1])
        for n, t in enumerate(thickness)
        if t
    )


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
        One row a finished trial, in the order in which they ended: search, trial (from 1), seconds
        (that the search took so far, by the clock), and hypervolume, 0 to 1. A trial with a value
        that is not finite, or beyond a limit, adds nothing.

    Raises:
        LabkitError: The searches have different objectives.
    """
    objectives = next(iter(results.values())).objectives
    if any(dict(other.objectives) != dict(objectives) for other in results.values()):
        raise LabkitError("results: the searches have different objectives")
    signs = np.array([-1 if way == "maximize" else 1 for way in objectives.values()])
    finished = {
        name: one.trials[one.trials["state"] == "COMPLETE"].sort_values("elapsed", kind="stable")
        for name, one in results.items()
    }
    losses = {
        name: signs * rows[list(objectives)].to_numpy(float) for name, rows in finished.items()
    }
    for name, one in results.items():
        broken = [trial.number for trial in one.records if not trial.record.feasible]
        losses[name][finished[name].index.isin(broken)] = np.nan
    everything = np.concatenate(list(losses.values()))
    everything = everything[np.isfinite(everything).all(axis=1)]
    if not len(everything):
        everything = np.zeros((1, len(objectives)))  # there is nothing to scale
    worst = everything.max(axis=0) if reference is None else signs * np.asarray(reference, float)
    best = np.minimum(everything.min(axis=0), worst)
    scale = np.where(worst > best, worst - best, 1.0)
    tables = []
    for name, rows in finished.items():
        scaled = (losses[name] - best) / scale
        tables.append(
            pd.DataFrame(
                {
                    "search": name,
                    "trial": range(1, len(rows) + 1),
                    "seconds": rows["elapsed"].to_numpy(),
                    "hypervolume": _volumes(scaled, np.ones(len(objectives))),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _volumes(losses: Points, reference: Points) -> list[float]:
    """Returns the volume that the first n points dominate, for each n."""
    front = losses[:0]
    volumes, volume = [], 0.0
    for point in losses:
        if np.isfinite(point).all() and not (front <= point).all(axis=1).any():
            volume += _gain(front, point, reference)
            front = np.vstack([front[(front < point).any(axis=1)], point])
        volumes.append(volume)
    return volumes


def _gain(front: Points, point: Points, reference: Points) -> float:
    """Returns the volume that a point dominates and no point of the front does.

    It is the point's own box, less what the front dominates of that: there, each of the front's
    points is as good as the worse of it and the new one on every axis.
    """
    if (point >= reference).any():
        return 0.0
    shared = np.unique(np.maximum(front, point), axis=0)  # in lexical order
    better = [~(shared[:i] <= one).all(axis=1).any() for i, one in enumerate(shared)]
    return float(np.prod(reference - point)) - dominated_volume(shared[better], reference)
