"""A sampler for searches in which some objectives are known before a network trains, as FLOPs are.

A Gaussian process predicts what has to be measured from the logarithms of the widths (Rasmussen and
Williams 2006, Gaussian Processes for Machine Learning). Proposed is the network whose improvement
of the hypervolume is expected to be the largest (Emmerich et al. 2006,
doi:10.1109/TEVC.2005.859463). As its cost is known, that is a sum over the steps of the front: the
improvement over a step's level, times how much of the step the network would cover.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from labkit.errors import LabkitError
from labkit.study.front import Front
from labkit.study.space import MAX_ENUMERATED, SearchSpaceBase
from labkit.transform import Plan

DESIGN = 16  # trials that only spread over costs and widths
# Networks that are compared: all of a space; or some of it, and others near those of the front.
LISTED, DRAWN, REDRAWN, NEIGHBOURS = 2_500, 1_000, 20, 64
ROWS, FITTED_ROWS = 1_024, 256  # networks that predict others, and that say how

Floats = npt.NDArray[np.float64]
# Plan → a value for each objective; NaN for one that has to be measured.
Known = Callable[[Plan], Sequence[float]]


class _Network(NamedTuple):
    plan: Plan
    configuration: dict[str, int]  # choice → index of the option
    widths: list[float]  # logarithms of their multipliers
    known: Sequence[float]


_Done = list[tuple[_Network, FrozenTrial]]


class KnownCostSampler(optuna.samplers.RandomSampler):
    """Learns what widths alone do not decide; proposes each network once while there are others.

    What it draws depends on its seed and a trial's number: after equal trials it proposes the same,
    whoever proposed those. Of several objectives that are measured, or known, each proposal has
    weights of its own (ParEGO, Knowles 2006, doi:10.1109/TEVC.2005.851274). A trial that breaks a
    constraint counts as the worst, and one that runs as it is predicted.

    Args:
        space: What is searched; a trial's parameters are indices of its options.
        known: What is known of a network.
        seed: Of what is drawn.
        elsewhere: Whether somebody else trains a network.
        within: Whether a network may be proposed.
    """

    def __init__(
        self, space: SearchSpaceBase, known: Known, seed: int, elsewhere: Callable[[Plan], bool],
        within: Callable[[Plan], bool] = lambda _: True,
    ):  # fmt: skip
        super().__init__(seed)
        self.seed = seed
        self._space, self._known = space, known
        self._elsewhere, self._within = elsewhere, within
        self._network = functools.lru_cache(MAX_ENUMERATED)(self._describe)
        self._lasts = {key: len(space.choices[key]) - 1 for key in space.distributions}
        self._is_listed = space.enumerable and len(space.networks) <= LISTED
        self._kernel: tuple[int, Any] = 0, None  # of how many networks, and what they say

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, trial.number])
        done, running, tried = self._seen(study, trial.number)
        front: Front[_Network] = Front(d.name.lower() for d in study.directions)
        if not self._is_listed:
            for network, one in done:
                front.add(network, one.values or ())
        pool = [*self._pool, *self._near(front.members, rng)]
        candidates = [one for one in pool if one.plan not in tried]
        if len(candidates) < 2:
            drawn = {key: int(rng.integers(last + 1)) for key, last in self._lasts.items()}
            return candidates[0].configuration if candidates else drawn
        networks = [*(network for network, _ in done), *running, *candidates]
        n, new = len(done), len(done) + len(running)
        x = np.array([one.widths for one in networks])[:, self._vary]
        known = np.array([one.known for one in networks])
        is_known = ~np.isnan(known[0])
        signs = np.array([-1 if d == StudyDirection.MAXIMIZE else 1 for d in study.directions])
        weights = rng.exponential(size=len(signs))
        cost = _merged((signs * known)[:, is_known], weights[is_known])
        values = np.reshape([one.values for _, one in done], (n, len(signs)))
        losses = (signs * values)[:, ~is_known]
        y = -_merged(losses, weights[~is_known])
        limits = [getattr(one, "constraints", {}).values() for _, one in done]
        y[[any(value > 0 for value in broken) for broken in limits]] = y.min(initial=0)
        n_design = min(DESIGN, len(self._pool) // 2)
        if is_known.all():
            scores = -cost[new:]
        elif len(tried) < n_design or n < 2:
            size = cost if is_known.any() else _merged(x.mean(axis=1, keepdims=True), np.ones(1))
            scores = spread(x[new:], size[new:], len(tried), n_design)
            scores += 0.03 * rng.standard_normal(len(scores))
        else:
            kernel = self._kernel_of(x[:n], -_merged(losses, np.ones(losses.shape[1])))
            kept = np.arange(n)
            if n > ROWS:
                kept = np.union1d(_front(cost[:n], y), rng.choice(n, ROWS))
            parts = (kept, slice(n, new), slice(new, None))
            scores = _gains(
                kernel, y[kept], [x[one] for one in parts], [cost[one] for one in parts]
            )
        return candidates[int(scores.argmax())].configuration

    def _seen(self, study: optuna.Study, number: int) -> tuple[_Done, list[_Network], set[Plan]]:
        """Returns what was measured, as trials ended; what is being trained; all that was tried."""
        done: dict[Plan, tuple[_Network, FrozenTrial]] = {}
        running, tried = [], set()
        trials = study.get_trials(deepcopy=False)
        for trial in sorted(trials, key=lambda one: one.datetime_complete or datetime.max):
            network = self._network(tuple(trial.params.items()))
            if network is None or trial.number == number:
                continue
            tried.add(network.plan)
            if trial.state == TrialState.RUNNING:
                running.append(network)
            elif trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all():
                done[network.plan] = network, trial
        running += [n for n in self._pool if n.plan not in tried and self._elsewhere(n.plan)]
        return list(done.values()), running, tried.union(network.plan for network in running)

    def _kernel_of(self, x: Floats, y: Floats) -> Any:
        """Returns what the first networks say of others; there are a tenth more at a time."""
        n = math.ceil(1.1 ** (math.log(len(x)) // math.log(1.1)))
        if n != self._kernel[0]:
            rows = slice(max(n - FITTED_ROWS, 0), n)
            self._kernel = n, _fit(x[rows], y[rows])
        return self._kernel[1]

    @functools.cached_property
    def _pool(self) -> list[_Network]:
        if self._is_listed:
            return self._networks(self._space.networks.values())
        rng = np.random.default_rng(self.seed)
        pool: list[_Network] = []
        for _ in range(REDRAWN):
            # All of one's options about as far along their lists, so that sizes of all kinds are
            # there.
            places = rng.normal(rng.uniform(size=(DRAWN, 1)), 0.15, (DRAWN, len(self._lasts)))
            pool += self._networks(
                {
                    key: round(min(max(p, 0), 1) * last)
                    for p, (key, last) in zip(row, self._lasts.items())
                }
                for row in places.tolist()
            )
            if len(pool) >= DRAWN // 4:  # unless limits are narrow
                break
        return list({one.plan: one for one in pool}.values())

    @functools.cached_property
    def _vary(self) -> npt.NDArray[np.bool]:
        if len(self._pool) < 2:
            return np.ones(len(self._space.channels.free), bool)
        return np.ptp([one.widths for one in self._pool], axis=0) > 0

    def _near(self, networks: Sequence[_Network], rng: np.random.Generator) -> list[_Network]:
        """Returns networks that differ from one of these in a choice or two."""
        chosen = rng.choice(len(networks), NEIGHBOURS) if networks else ()
        keys = list(self._lasts)
        return self._networks(
            networks[row].configuration
            | {key: int(rng.integers(self._lasts[key] + 1)) for key in rng.choice(keys, 2)}
            for row in chosen
        )

    def _networks(self, configurations: Iterable[dict[str, int]]) -> list[_Network]:
        networks = [self._network(tuple(one.items())) for one in configurations]
        within = (one for one in networks if one is not None and self._within(one.plan))
        return list({one.plan: one for one in within}.values())

    def _describe(self, indices: tuple[tuple[str, int], ...]) -> _Network | None:
        """Returns the network of a configuration; `None` where it, or what is known, fails."""
        original = {group.name: group.width for group in self._space.channels.groups}
        with contextlib.suppress(LabkitError):
            plan = self._space.resolve(self._space.sampled_config(dict(indices)))
            widths = [math.log(width / original[name]) for name, width in plan.widths]
            return _Network(plan, dict(indices), widths, self._known(plan))
        return None


def _warped(y: Floats) -> tuple[Floats, float]:
    """Returns `u = −log(ceiling − y)`, and the ceiling, which is above all of `y`.

    Near the best, networks differ less, and so do seeds; in `u` they differ alike everywhere.
    """
    ceiling = y.max() + 0.1 * max(y.max() - np.median(y), 0.05 * (np.ptp(y) or 1))
    return -np.log(ceiling - y), ceiling


def _fit(x: Floats, y: Floats) -> Any:
    """Returns the most likely kernel of a Gaussian process: how much networks say of others."""
    from sklearn.gaussian_process import GaussianProcessRegressor, kernels

    alike = kernels.Matern(np.ones(x.shape[1]), (0.3, 60), nu=2.5)
    noise = kernels.WhiteKernel(0.01, (1e-4, 0.7))
    kernel = kernels.ConstantKernel(1, (0.05, 100)) * alike + noise
    with warnings.catch_warnings(action="ignore"):  # of a bound that is met
        return GaussianProcessRegressor(kernel, normalize_y=True).fit(x, _warped(y)[0]).kernel_


def _gains(kernel: Any, y: Floats, x: Sequence[Floats], cost: Sequence[Floats]) -> Floats:
    """Returns the hypervolume that new networks are expected to add to what was measured, `y`.

    `x` and `cost` are those of networks that were measured, that are being trained, that are new.
    """
    from scipy.linalg import cholesky, solve_triangular

    n = len(y)
    u, ceiling = _warped(y)
    middle, scale = u.mean(), u.std() or 1.0
    tried, new = np.concatenate(x[:2]), x[2]
    lower = cholesky(kernel(tried), lower=True)
    whitened = solve_triangular(lower[:n, :n], (u - middle) / scale, lower=True)
    # Taken as measured, what is predicted of a network says nothing new of the mean of others.
    believed = middle + scale * (lower[n:, :n] @ whitened)
    y = np.append(y, ceiling - np.exp(-believed))
    seen = solve_triangular(lower, kernel(tried, new), lower=True, check_finite=False)
    mean = middle + scale * (whitened @ seen[:n])
    std = scale * np.sqrt(kernel.diag(new) - np.einsum("ij,ij->j", seen, seen))

    costs = np.concatenate(cost[:2])
    front = _front(costs, y)
    starts, levels = np.append(0, costs[front]), np.append(y.min(), y[front])
    covered = (np.append(costs[front], 1) - np.maximum(starts, cost[2][:, None])).clip(0)
    gains = expected_improvement(mean[:, None], std[:, None], levels, ceiling)
    return (gains * covered).sum(axis=1)


def _front(cost: Floats, y: Floats) -> npt.NDArray[np.intp]:
    """Returns which networks none dominates, by cost."""
    order = np.lexsort((-y, cost))
    best = np.maximum.accumulate(y[order])
    return order[np.append(True, best[1:] > best[:-1])]


def expected_improvement(mean: Floats, std: Floats, level: Floats, ceiling: float) -> Floats:
    """Returns `E[max(y − level, 0)]` of `y = ceiling − exp(−u)`, for a normal `u`."""
    from scipy.special import ndtr

    gap = ceiling - level
    above = (mean + np.log(gap)) / std
    return gap * ndtr(above) - np.exp(std**2 / 2 - mean) * ndtr(above - std)


def _merged(losses: Floats, weights: Floats) -> Floats:
    """Returns the augmented Chebyshev norm of losses, `[networks, objectives]`, scaled to 0…1."""
    if not losses.size:
        return np.zeros(len(losses))
    span = np.ptp(losses, axis=0)
    weighed = weights / weights.max() * (losses - losses.min(axis=0)) / np.where(span > 0, span, 1)
    return (weighed.max(axis=1) + 0.05 * weighed.sum(axis=1)) / 1.05


def spread(x: Floats, cost: Floats, n: int, n_design: int) -> Floats:
    """Returns how well networks suit as the n-th of a design, from 0: wide and even at a cost."""
    along = np.log(1 + cost / 0.05) / math.log(1 + 1 / 0.05)
    place = int(f"{n + 1:b}"[::-1], 2) / 2 ** (n + 1).bit_length()  # van der Corput's sequence
    return x.mean(axis=1) - 0.4 * x.std(axis=1) - (2 * n_design * (along - place)) ** 2
