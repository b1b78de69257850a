"""Limits: what a network may cost, and what it must reach.

What is counted, as FLOPs are, is known before a network trains; what is measured, only afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from labkit.errors import LabkitError
from labkit.study.record import Bounds, Metrics
from labkit.study.search_tables import StrategyTable
from labkit.study.space import MAX_ENUMERATED, SearchSpaceBase, count
from labkit.training import direction_of
from labkit.transform import Plan


def bounds_of(strategy: StrategyTable) -> dict[str, tuple[str, float]]:
    """Returns the limits of a search: of an objective by its direction, of others by their kind."""
    ways: dict[str, str] = {
        name: "maximize" if (metric.direction == "maximize") == (metric.scale > 0) else "minimize"
        for name, metric in strategy.metrics.items()
    }
    signs = {"maximize": "≥", "minimize": "≤"}
    return {m: (signs[direction_of(m, ways)], bound) for m, bound in strategy.limits.items()}


def limits_text(bounds: Bounds) -> str:
    """Returns limits in words, such as `total_flops ≤ 2,000`."""
    return ", ".join(f"{metric} {sign} {bound:,.12g}" for metric, (sign, bound) in bounds.items())


class Limits:
    """The limits of a search.

    Args:
        bounds: As `bounds_of` returns them.
        counted: What is known of a network before it trains.
    """

    def __init__(self, bounds: Bounds, counted: Callable[[Plan], Metrics]):
        self.bounds, self._counted = bounds, counted
        self.known = functools.lru_cache(MAX_ENUMERATED)(self._known)

    def excess(self, metrics: Metrics) -> dict[str, float]:
        """Returns metric → by which share of its bound it is beyond it, of those that are there.

        These are Optuna's constraints: a limit is kept where its value is not positive.
        """
        return {
            metric: (1 if sign == "≤" else -1) * (metrics[metric] - bound) / (abs(bound) or 1)
            for metric, (sign, bound) in self.bounds.items()
            if metric in metrics
        }

    def _known(self, plan: Plan) -> dict[str, float]:
        """Returns the `excess` of what is known of a network before it trains."""
        return self.excess(self._counted(plan)) if self.bounds else {}

    def admits(self, plan: Plan) -> bool:
        """Returns whether a network breaks no limit that is known before it trains."""
        return all(value <= 0 for value in self.known(plan).values())

    def within(self, space: SearchSpaceBase) -> tuple[int, str]:
        """Returns how many networks of a space are within what is known, at most; and in words.

        Of a large space some are drawn at random.

        Raises:
            LabkitError: None is; it says how near they come.
        """
        n_networks = count(space).networks
        if not self.bounds:
            return n_networks, ""
        every = space.sample
        n = sum(map(self.admits, every))
        of = f"of {len(every):,} networks{'' if space.enumerable else ' drawn at random'}"
        known = self.known(every[0])
        bounds = {metric: self.bounds[metric] for metric in known}
        if n:
            text = f"{of} {n:,} are within {limits_text(bounds)}" if known else ""
            return n if space.enumerable else n_networks, text
        for metric in known:
            nearest = min(every, key=lambda plan: self.known(plan)[metric])
            if self.known(nearest)[metric] > 0:
                bounds = {metric: self.bounds[metric]}
                of += f": the nearest has {self._counted(nearest)[metric]:,.12g}"
                break
        raise LabkitError(f"search.strategy.limits: none is within {limits_text(bounds)} {of}")
