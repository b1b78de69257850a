"""What a sampler proposes, from a study in memory.

Its parameters are indices into the space's ordered lists, which TPE and QMC make use of.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from labkit.errors import LabkitError
from labkit.runtime import quiet_optuna
from labkit.study.known_cost import Known, KnownCostSampler
from labkit.study.limits import Limits
from labkit.study.record import Direction, Failure, FailureKind, Trial
from labkit.study.space import UNCHANGED, SearchSpaceBase
from labkit.study.studies import CONSTRAINTS, frozen_trial
from labkit.transform import Plan

DRAWS, DRAWN = 8, 2_000  # of a sampler, and at random, until one is within the limits


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Returns one of Optuna's samplers by the name that a configuration gives it."""
    samplers = optuna.samplers
    kinds: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "tpe": functools.partial(samplers.TPESampler, constant_liar=True),
        "gp": samplers.GPSampler,
        "nsgaii": samplers.NSGAIISampler,
        "nsgaiii": samplers.NSGAIIISampler,
        "qmc": functools.partial(samplers.QMCSampler, scramble=True),
    }
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        # Brute force does without one; see Store.ask.
        return kinds.get(name, samplers.RandomSampler)(seed=seed)


@dataclass(frozen=True)
class Asked:
    """A proposal.

    Attributes:
        indices: Key of the space → index of its option; empty for a network outside it.
        pass_config: The same as a pass configuration.
        plan: The network; `None` where the configuration resolves to none.
        failure: Why, then.
        trial: Of the study in memory; `None` where that is not told.
        once: Whether it is of no use where its network is known by then: no sampler asked for it.
        started: When it was asked for.
    """

    indices: dict[str, int]
    pass_config: dict[str, Any]
    plan: Plan | None = None
    failure: Failure | None = None
    trial: optuna.Trial | None = None
    once: bool = False
    started: datetime = field(default_factory=datetime.now)


class Proposals:
    """A sampler, and the study in memory that it proposes from.

    Args:
        space: What is searched.
        directions: Of the values.
        sampler: Its name.
        seed: Of the sampler. One that continues is seeded anew, so that it does not draw again what
            it drew first.
        known: What the sampler `known-cost` takes as known.
        limits: What is proposed is within them, as far as that is known beforehand; with a sampler
            of Optuna's, if some of its draws are.
        elsewhere: Whether somebody else trains a network.
    """

    def __init__(
        self, space: SearchSpaceBase, directions: Sequence[Direction], sampler: str, seed: int, *,
        known: Known, limits: Limits, elsewhere: Callable[[Plan], bool],
    ):  # fmt: skip
        self._space, self._directions, self._limits = space, directions, limits
        self._name, self._seed, self._rng = sampler, seed, random.Random(seed)
        self._own = None
        if sampler == "known-cost":
            self._own = KnownCostSampler(space, known, seed, elsewhere, limits.admits)
        self._study = self._empty(self._own or make_sampler(sampler, seed))

    def _empty(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        with quiet_optuna():
            return optuna.create_study(directions=self._directions, sampler=sampler)

    def restart(self, trials: Iterable[Trial]) -> None:
        """Forgets what was asked for and not told, if anything; these trials have ended."""
        if self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study = self._empty(self._study.sampler)
            self.add(trials)

    def add(self, trials: Iterable[Trial]) -> None:
        """Adds trials that others ran; samplers have no place for a network outside the space."""
        self._study.add_trials(
            frozen_trial(
                t, self._space.indices(t.params), self._space.distributions, keep_record=False
            )
            for t in trials
            if t.params
        )

    def reseed(self, n_trials: int, driver: int) -> None:
        """Seeds the sampler anew: by the trials that there are, each driver its own."""
        if self._own is not None:  # anew for each trial
            self._own.seed = self._seed + driver
        else:
            seed = (self._seed + n_trials + driver) % 2**32
            self._study.sampler, self._rng = make_sampler(self._name, seed), random.Random(seed)

    def ask(self) -> Asked:
        """Returns a proposal of the sampler, or else one at random, within the limits if it can."""
        for _ in range(DRAWS):
            asked = self._ask()
            if asked.plan is None or self._limits.admits(asked.plan):
                return asked
            assert asked.trial is not None
            self._constrain(asked.trial, self._limits.known(asked.plan))
            self._study.tell(asked.trial, state=TrialState.PRUNED)  # which the sampler learns from
        for _ in range(DRAWN):
            indices = self._space.draw(self._rng)
            with contextlib.suppress(LabkitError):
                if self._limits.admits(self._space.resolve(self._space.sampled_config(indices))):
                    break
        self._study.enqueue_trial(indices)
        return self._ask()

    def _ask(self) -> Asked:
        trial = self._study.ask(self._space.distributions)
        config = self._space.sampled_config(trial.params)
        try:
            return Asked(trial.params, config, self._space.resolve(config), trial=trial)
        except LabkitError as error:
            failure = Failure.of(FailureKind.CONFIGURATION, error)
            return Asked(trial.params, config, failure=failure, trial=trial)

    def ask_for(self, plan: Plan) -> Asked:
        """Returns a network that no sampler proposes."""
        found, indices = self._space.nearest(plan)
        if found == plan:
            self._study.enqueue_trial(indices)
            return replace(self._ask(), once=True)
        return Asked({}, copy.deepcopy(UNCHANGED), plan, once=True)  # the samplers have no place

    def tell(self, asked: Asked, trial: Trial | None) -> None:
        """Tells the sampler what became of a proposal; `None`: nothing."""
        if asked.trial is None:
            return
        if trial is None:
            self._study.tell(asked.trial, state=TrialState.FAIL)
            return
        self._constrain(asked.trial, trial.record.constraints)
        self._study.tell(asked.trial, trial.values, TrialState[trial.state])

    def _constrain(self, trial: optuna.Trial, excess: Mapping[str, float]) -> None:
        if excess:
            values = list(excess.values())
            self._study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, values)
