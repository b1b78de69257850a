"""Training the networks of a round: each plan with every seed, and others that come nearly free."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from labkit.study.executor import Executor, OnEpoch
from labkit.study.experiment import Experiment
from labkit.study.record import Candidate, Outcome
from labkit.study.space import MAX_ENUMERATED
from labkit.study.store import Store
from labkit.transform import Plan

log = logging.getLogger(__name__)


class Trainer:
    """Trains the plans of an experiment by an executor.

    Args:
        experiment: What is trained, and with which seeds.
        executor: Where.
        on_epoch: As `Executor.run` takes it.
        on_step: As there.
    """

    def __init__(
        self,
        experiment: Experiment,
        executor: Executor,
        on_epoch: OnEpoch,
        on_step: Callable[[], None],
    ):
        self._experiment, self._executor = experiment, executor
        self._on_epoch, self._on_step = on_epoch, on_step
        self._ready: dict[Plan, list[Outcome]] = {}  # trained along with others

    def outcomes(self, candidates: Sequence[Candidate]) -> Iterator[Outcome]:
        """Yields the outcome of each candidate, as they come."""
        return self._executor.run(
            self._experiment.task, candidates, on_epoch=self._on_epoch, on_step=self._on_step
        )

    def train(
        self, plans: Sequence[Plan], store: Store, n_running: int
    ) -> Iterator[tuple[Plan, list[Outcome]]]:
        """Yields each plan with the outcomes of its trainings, one a seed, as plans are finished.

        Args:
            plans: Not trained yet, as far as the store knows.
            store: The study.
            n_running: Trials that are asked for and not told yet.
        """
        if self._experiment.training is None:
            yield from ((plan, []) for plan in plans)
            return
        ready = [plan for plan in plans if plan in self._ready]
        yield from ((plan, self._ready.pop(plan)) for plan in ready)
        untrained = [plan for plan in plans if plan not in ready]
        if not untrained:
            return
        everything = [*untrained, *self._rest(untrained, store, n_running)]
        seeds = self._experiment.seeds
        gathered: dict[Plan, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes([Candidate(p, seed) for p in everything for seed in seeds]):
            plan = outcome.candidate.plan
            gathered[plan].append(outcome)
            if len(gathered[plan]) == len(seeds):
                outcomes = sorted(gathered.pop(plan), key=lambda one: one.candidate.seed)
                if plan in untrained:
                    yield plan, outcomes
                else:  # it waits for a trial of its own
                    self._ready[plan] = outcomes

    def missing(self, store: Store, seeds: int) -> dict[Candidate, int]:
        """Returns each training that networks of the front lack for so many seeds → the trial."""
        first = self._experiment.config.seed
        return {
            Candidate(trial.record.plan, first + index): trial.number
            for trial in store.front
            for index in store.missing_replicates(trial.number, seeds)
        }

    def replicate(self, missing: Mapping[Candidate, int], store: Store) -> Iterator[Outcome]:
        """Trains what is missing and records each training as it ends, unless it failed.

        Yields:
            The outcome of each training, once it is recorded.
        """
        for outcome in self.again(missing):
            if outcome.failure is None:
                seed = outcome.candidate.seed - self._experiment.config.seed
                store.add_replicate(missing[outcome.candidate], seed, outcome.history[-1])
            yield outcome

    def again(self, candidates: Mapping[Candidate, int]) -> Iterator[Outcome]:
        """Trains networks of trials once more, `n_jobs` at once; a failure is logged.

        Yields:
            The outcome of each training, as they come.
        """
        left = iter(candidates)
        n_jobs = self._experiment.config.search.strategy.setup.n_jobs
        while part := list(itertools.islice(left, n_jobs)):
            for outcome in self.outcomes(part):
                if outcome.failure is not None:
                    number, seed = candidates[outcome.candidate], outcome.candidate.seed
                    log.warning("trial %d, seed %d: %s", number, seed, outcome.failure.message)
                yield outcome

    def _rest(self, untrained: Sequence[Plan], store: Store, n_running: int) -> list[Plan]:
        """Returns all other networks of the space, where they may as well train now.

        That is, where they fit into the stack beside the untrained ones of this round, which makes
        them nearly free, and the trials left over are enough to meet them.
        """
        space, setup = self._experiment.space, self._experiment.config.search.strategy.setup
        if not self._executor.stacks or space.n_configurations > MAX_ENUMERATED:
            return []
        known = store.known.keys() | self._ready.keys() | set(untrained)
        rest = [plan for plan in space.networks if plan not in known]
        trials_left = setup.n_trials - len(store.trials) - n_running
        return rest if len(rest) <= min(setup.n_jobs - len(untrained), trials_left) else []
