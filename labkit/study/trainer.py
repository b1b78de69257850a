"""The loop of a search: ask for a configuration, resolve it, look it up or train it, tell."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from labkit.study.executor import POLL_SECONDS, Executor, OnEpoch
from labkit.study.experiment import Experiment
from labkit.study.networks import FrontNetworks
from labkit.study.proposals import Asked
from labkit.study.record import Candidate, Outcome, Record, Source, Trial
from labkit.study.store import Store
from labkit.training import main_of
from labkit.transform import Plan

log = logging.getLogger(__name__)


class Trainer:
    """Runs the trials of a study, and keeps an executor full with what they train.

    Args:
        experiment: What is trained, and with which seeds.
        store: The study.
        networks: Those of its front.
        executor: Where they train.
        on_epoch: As `Executor.run` takes it.
        on_step: As there.
        on_trial: Called with each trial, once it is recorded.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        networks: FrontNetworks,
        executor: Executor,
        *,
        on_epoch: OnEpoch,
        on_step: Callable[[], None],
        on_trial: Callable[[Trial], object],
    ):
        self._experiment, self._store, self._networks = experiment, store, networks
        self._executor = executor
        self._on_epoch, self._on_step, self._on_trial = on_epoch, on_step, on_trial
        self._setup = experiment.config.search.strategy.setup
        # Proposals that wait for a network, and those of the networks that another driver trains.
        self._waiting: dict[Plan, list[Asked]] = defaultdict(list)
        self._elsewhere: list[Plan] = []
        self._ready: dict[Plan, list[Outcome]] = {}  # trained along with others

    def run(self) -> None:
        """Runs trials until the study has `n_trials`, or time is up."""
        self._waiting.clear()
        self._elsewhere.clear()
        for plan, outcomes in self._train(self._shares()):
            if plan in self._waiting:
                self._finish(plan, outcomes)
            else:  # it waits for a trial of its own
                self._ready[plan] = outcomes

    @property
    def _unasked(self) -> int:
        waiting = sum(len(proposals) for proposals in self._waiting.values())
        others = self._store.n_elsewhere - len(self._elsewhere)
        return self._setup.n_trials - len(self._store.trials) - waiting - others

    def _shares(self) -> Iterator[list[Plan]]:
        """Yields what to train next, each time that the executor has room; nothing, where it waits.

        It ends when no trials are left.
        """
        started, exhausted_at = time.monotonic(), -1
        while not self._setup.timeout or time.monotonic() - started < self._setup.timeout:
            self._on_step()
            # Where all proposals wait for what trains now, its outcome is worth more than others.
            n = 0 if len(self._store.trials) == exhausted_at else self._share_size()
            asked = self._store.ask(n, self._waiting) if n else []
            if share := self._untrained(asked):
                yield [*share, *self._rest(share)]
            elif self._waiting:
                exhausted_at = len(self._store.trials)
                if len(self._waiting) > len(self._elsewhere):
                    yield []
                else:
                    time.sleep(POLL_SECONDS)
            elif self._store.n_elsewhere:  # which come back if that driver is lost
                time.sleep(POLL_SECONDS)
                self._store.refresh()
            elif not asked:  # no trials are left, or brute force has no more networks
                return

    def _share_size(self) -> int:
        """Returns for how many trials to ask at once, so that all workers end at about one time."""
        n_workers = self._executor.workers
        n_jobs = self._setup.n_jobs if n_workers == 1 or self._executor.stacks else 1
        unfinished = self._setup.n_trials - len(self._store.trials)
        return max(min(n_jobs, self._unasked, -(-unfinished // n_workers)), 0)

    def _untrained(self, asked: Sequence[Asked]) -> list[Plan]:
        """Returns which networks of proposals are to be trained; what is known is told."""
        if self._elsewhere:
            self._store.refresh()
        plans, self._elsewhere = self._elsewhere, []
        for proposal in asked:
            plan = proposal.plan
            if plan is None:
                self._tell(proposal, Record(failure=proposal.failure))
            elif not self._experiment.limits.admits(plan):
                self._tell(proposal, self._experiment.untrained(plan))
            else:
                if plan not in self._waiting:
                    plans.append(plan)
                self._waiting[plan].append(proposal)
        share = []
        for plan in plans:
            if plan in self._store.known:
                for proposal in self._waiting.pop(plan):
                    if proposal.once:
                        self._store.drop(proposal)
                    else:
                        self._tell(proposal, self._store.known[plan].record.looked_up())
            elif plan in self._ready:
                self._finish(plan, self._ready.pop(plan))
            elif self._store.claim(plan):
                share.append(plan)
            else:
                self._elsewhere.append(plan)
        return share

    def _rest(self, share: Sequence[Plan]) -> list[Plan]:
        """Returns all other networks of the space, where they may as well train now.

        That is, where they fit into the stack beside those of this share, which makes them nearly
        free, and the trials left over are enough to meet them.
        """
        space = self._experiment.space
        alone = self._executor.workers > 1 or not self._executor.stacks or self._store.shared
        if self._experiment.training is None or alone or not space.enumerable:
            return []
        known = self._store.known.keys() | self._ready.keys() | self._waiting.keys()
        admits = self._experiment.limits.admits
        rest = [plan for plan in space.networks if plan not in known and admits(plan)]
        room = min(self._setup.n_jobs - len(share), self._unasked)
        return rest if len(rest) <= room else []

    def _train(self, shares: Iterable[Sequence[Plan]]) -> Iterator[tuple[Plan, list[Outcome]]]:
        """Yields each plan with its outcomes, one a seed, as plans are finished."""
        if self._experiment.training is None:
            yield from ((plan, []) for share in shares for plan in share)
            return
        trainings = self._experiment.candidates
        candidates = ([c for plan in share for c in trainings(plan)] for share in shares)
        gathered: dict[Plan, list[Outcome]] = defaultdict(list)
        for outcome in self._outcomes(candidates):
            plan = outcome.candidate.plan
            gathered[plan].append(outcome)
            if len(gathered[plan]) == len(trainings(plan)):
                yield plan, _best(self._experiment, gathered.pop(plan))

    def _outcomes(self, shares: Iterator[Sequence[Candidate]]) -> Iterator[Outcome]:
        outcomes = self._executor.run(
            self._experiment.task, shares, on_epoch=self._on_epoch, on_step=self._on_step
        )
        with contextlib.closing(outcomes):  # its workers end with it
            yield from outcomes

    def _finish(self, plan: Plan, outcomes: Sequence[Outcome]) -> None:
        """Measures a network that was trained, and records all trials that waited for it."""
        record = self._experiment.measure(plan, outcomes)
        first, *twins = self._waiting.pop(plan)
        told = self._tell(first, record, outcomes)
        for twin in twins:
            self._tell(twin, told.record.looked_up())

    def _tell(self, proposal: Asked, record: Record, outcomes: Sequence[Outcome] = ()) -> Trial:
        """Records a trial; the network of one that belongs on the front is kept before."""
        with self._store.turn():
            if record.source == Source.TRAINED and record.plan in self._store.known:
                # Another driver trained it, too: it took this one for lost.
                known = self._store.known[record.plan].record
                record, outcomes = known.looked_up(), ()
            record = record.model_copy(update={"pass_config": proposal.pass_config})
            values = self._experiment.values(record)
            number = len(self._store.trials)
            if (record.source or record.failure) and record.widths and record.trained_in is None:
                record = record.model_copy(update={"trained_in": number})
            joins = bool(outcomes) and values is not None and record.feasible
            joins = joins and self._store.is_on_front(values or ())
            if joins:
                self._networks.keep(number, record, outcomes[0])
            trial = self._store.tell(proposal, record, values)
            if joins:  # which may have pushed others off
                self._networks.drop_others(trial.number for trial in self._store.front)
        if record.failure is not None and record.trained_in in (None, number):
            log.warning("trial %d failed: %s", number, record.failure.message)
        self._on_trial(trial)
        return trial

    # More trainings of the front's networks.

    def missing(self, seeds: int) -> dict[Candidate, int]:
        """Returns each training that is lacking for so many seeds → the trial.

        Of the networks of the front, and of the original one, which tables compare them with.
        """
        first = self._experiment.config.seed
        trials = {trial.number: trial for trial in self._store.front}
        original = self._store.known.get(self._experiment.space.original)
        if original is not None and original.record.source == Source.TRAINED:
            trials[original.number] = original
        return {
            Candidate(trial.record.plan, first + index, **trial.record.rates): trial.number
            for trial in trials.values()
            for index in self._store.missing_replicates(trial.number, seeds)
        }

    def replicate(self, missing: Mapping[Candidate, int]) -> Iterator[Outcome]:
        """Trains what is missing, and yields each outcome once it is recorded, unless it failed."""
        for outcome in self.again(missing):
            if outcome.failure is None:
                seed = outcome.candidate.seed - self._experiment.config.seed
                metrics = self._experiment.selected(outcome.history)
                self._store.add_replicate(missing[outcome.candidate], seed, metrics)
            yield outcome

    def again(self, candidates: Mapping[Candidate, int]) -> Iterator[Outcome]:
        """Trains networks of trials once more, and yields the outcomes; a failure is logged."""
        if not candidates:  # nothing is started for them
            return
        left = iter(candidates)
        n = min(self._setup.n_jobs, -(-len(candidates) // self._executor.workers))
        for outcome in self._outcomes(iter(lambda: list(itertools.islice(left, n)), [])):
            if outcome.failure is not None:
                number, seed = candidates[outcome.candidate], outcome.candidate.seed
                log.warning("trial %d, seed %d: %s", number, seed, outcome.failure.message)
            yield outcome


def _best(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns of a network's trainings those with the rates that do best, one a seed."""

    def quality(group: Sequence[Outcome]) -> float:
        if any(outcome.failure is not None for outcome in group):
            return -math.inf
        metrics = [experiment.selected(outcome.history) for outcome in group]
        return statistics.fmean(one[main_of(one)] for one in metrics)

    outcomes = sorted(outcomes, key=lambda outcome: outcome.candidate.seed)
    groups = ([o for o in outcomes if o.candidate.rates == one] for one in experiment.variants)
    return max(groups, key=quality)
