"""The store: a study that a search continues.

A sampler proposes from a study in memory. A trial that has ended is added to the storage whole, in
one transaction: it is either recorded, with its values, or not there at all, and a kill leaves none
that runs or waits. The storage's parameters are in words; those in memory are indices into the
space's ordered lists, which TPE and QMC make use of.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from labkit.errors import LabkitError
from labkit.runtime import quiet_optuna
from labkit.study.claims import Claims, locked
from labkit.study.front import Front
from labkit.study.known_cost import Known, KnownCostSampler
from labkit.study.record import FailureKind, Metrics, Record, Source, Trial
from labkit.study.space import SearchSpaceBase
from labkit.study.storage import DATABASE, database_file, named
from labkit.study.studies import (
    REPLICATES,
    Description,
    frozen_trial,
    open_or_create,
    read_replicates,
    read_trials,
)
from labkit.transform import Plan


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
    """A proposal: an index for each choice of the space.

    Attributes:
        indices: Key → index of its option.
        started: When it was asked for.
        trial: Of the study in memory; `None` where no sampler proposed it.
    """

    indices: dict[str, int]
    started: datetime
    trial: optuna.Trial | None = None


class Store:
    """A study that a search continues.

    Args:
        storage: As `open_storage` takes it, or `None` for memory.
        name: Of the study. A file holds one study only.
        description: What the study is; one that exists must be the same.
        space: Which parameters a trial has.
        sampler: The name of what proposes.
        known: What the sampler `known-cost` takes as known.
        seed: Its seed. A sampler that continues is seeded anew, so that it does not draw again what
            it drew first.
        shared: Whether other searches may add to the study at the same time, if they say so, too.

    Attributes:
        study: The Optuna study in the storage.
        description: As given.
        trials: All its trials, by number.
        tried: The plans of all trials.
        known: Plan → the trial that trained it, or in which its training diverged.
        added_replicates: As `read_replicates` returns them.
        front: The trials that no other dominates, each network once.

    Raises:
        LabkitError: The storage cannot be opened, or holds another search.
    """

    def __init__(
        self, storage: str | Path | BaseStorage | None, name: str, description: Description,
        space: SearchSpaceBase, *, sampler: str, known: Known, seed: int, shared: bool = False,
    ):  # fmt: skip
        if shared and (storage is None or database_file(storage) is not None):
            raise LabkitError(
                "shared: expected a storage that several machines reach, such as "
                f"postgresql://user@host/name or grpc://host:port, got {named(storage)!r}"
            )
        self.description, self.space, self.shared = description, space, shared
        self._every = space.networks if sampler == "bruteforce" else None
        self._storage, self._sampler, self._seed = storage, sampler, seed
        self._claims: Claims | None = None  # while it is driven, where other machines may be
        self.study = open_or_create(storage, name, description)
        self.trials: list[Trial] = []
        self.tried: set[Plan] = set()
        self.known: dict[Plan, Trial] = {}
        self.added_replicates: dict[int, list[Metrics | None]] = {}
        self._front: Front[Trial] = Front(description.directions.values())
        is_own = sampler == "known-cost"
        own = KnownCostSampler(space, known, seed, self._is_elsewhere) if is_own else None
        self._memory = self._remember(own or make_sampler(sampler, seed))
        self.refresh()

    @property
    def front(self) -> list[Trial]:
        """The trials that no other dominates, each network once, by its first trial."""
        return self._front.members

    @contextlib.contextmanager
    def driven(self, folder: Path | None) -> Iterator[None]:
        """Lets this search alone add to the study and write a folder; or with others that share it.

        Raises:
            LabkitError: Another one does; it says which.
        """
        file = database_file(self._storage)
        databases = [] if folder is None else [folder / DATABASE]
        with contextlib.ExitStack() as stack:
            if not self.shared:
                stack.enter_context(locked([*databases, file] if file else databases))
            if self._storage is not None and file is None:
                claims = Claims(self.study._storage, self.study.study_name, shared=self.shared)
                stack.enter_context(claims.driving())
                self._claims = claims
                stack.callback(setattr, self, "_claims", None)
            if self._memory.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._memory = self._remember(self._memory.sampler)  # a run was stopped
            self.refresh()
            if self.shared:
                self._reseed()
            yield

    def refresh(self) -> None:
        """Takes in what others have added to the storage."""
        if self._claims is not None and self.shared:
            self._claims.refresh()  # first: a network is recorded before its claim ends
        self.added_replicates |= read_replicates(self.study)
        others = read_trials(self.study, len(self.trials))
        if not others:
            return
        for trial in others:
            self._add(trial)
        self._memory.add_trials([self._in_memory(trial) for trial in others])
        self._reseed()

    def _reseed(self) -> None:
        driver = 0 if self._claims is None else 7919 * self._claims.driver  # each draws its own
        if isinstance(self._memory.sampler, KnownCostSampler):  # anew for each trial
            self._memory.sampler.seed = self._seed + driver
        else:
            seed = (self._seed + len(self.trials) + driver) % 2**32
            self._memory.sampler = make_sampler(self._sampler, seed)

    @property
    def n_elsewhere(self) -> int:
        """How many networks other drivers were training at the last `refresh`."""
        return 0 if self._claims is None else len(self._claims.elsewhere)

    def ask(self, n: int, running: Container[Plan] = ()) -> list[Asked]:
        """Returns n proposals of the sampler; fewer where brute force has no more networks.

        Args:
            n: How many.
            running: The networks of proposals that are not told yet, which brute force passes over,
                as it does those that other drivers train.
        """
        if self.shared:
            self.refresh()
        if self._every is None:
            trials = [self._memory.ask(self.space.distributions) for _ in range(n)]
            return [Asked(trial.params, datetime.now(), trial) for trial in trials]
        untried = (
            indices
            for plan, indices in self._every.items()
            if not (plan in self.tried or plan in running or self._is_elsewhere(plan))
        )
        return [Asked(indices, datetime.now()) for indices in itertools.islice(untried, n)]

    def tell(self, asked: Asked, record: Record, values: Sequence[float] | None) -> Trial:
        """Records a trial whole: in the storage, for the sampler, and for look-ups.

        Args:
            asked: The proposal.
            record: All that is to be kept of it.
            values: Of the objectives; `None` where it failed.
        """
        trial = Trial(
            number=len(self.trials),
            params=self.space.labels(asked.indices),
            values=None if values is None else tuple(map(float, values)),
            record=record,
            started=asked.started,
            ended=datetime.now(),
        )
        if self._claims is not None:
            self._claims.check_turn()
        self.study.add_trial(
            frozen_trial(trial, trial.params, self.space.label_distributions, keep_record=True)
        )
        if asked.trial is not None:
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._memory.tell(asked.trial, values, state)
        self._add(trial)
        if self._claims is not None:
            self._claims.release(_key(record.plan))
        return trial

    def claim(self, plan: Plan) -> bool:
        """Returns whether this search is to train a network; otherwise another one is at it."""
        if self._claims is None or not self.shared:
            return True
        claimed = self._claims.claim(_key(plan))
        if claimed:
            self.refresh()  # another one may have trained it a moment ago
            if plan in self.known:
                self._claims.release(_key(plan))
        return claimed and plan not in self.known

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Keeps the numbers of trials from changing, while one is numbered and recorded."""
        with contextlib.nullcontext() if self._claims is None else self._claims.turn():
            if self.shared:
                self.refresh()
            yield

    def is_on_front(self, values: Sequence[float]) -> bool:
        """Returns whether no trial dominates these values."""
        return self._front.admits(values)

    def add_replicate(self, number: int, index: int, metrics: Metrics) -> None:
        """Records one more training of a trial's network, by the seed of this index."""
        by_seed = self._by_seed(number)
        by_seed += [None] * (index + 1 - len(by_seed))
        by_seed[index] = metrics
        self.study.set_user_attr(f"{REPLICATES}{number}", by_seed)
        self.added_replicates[number] = by_seed

    def missing_replicates(self, number: int, seeds: int) -> list[int]:
        """Returns the indices of the seeds, of so many, that a trial's network lacks."""
        by_seed = self._by_seed(number)
        return [i for i in range(seeds) if i >= len(by_seed) or by_seed[i] is None]

    def _by_seed(self, number: int) -> list[Metrics | None]:
        return [*self.added_replicates.get(number, self.trials[number].record.replicates)]

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.tried.add(trial.record.plan)
        failure = trial.record.failure
        diverged = failure is not None and failure.kind == FailureKind.DIVERGED
        if diverged or trial.record.source == Source.TRAINED:
            self.known.setdefault(trial.record.plan, trial)
        if trial.values is not None and trial.record.source == Source.TRAINED:
            self._front.add(trial, trial.values)

    def _is_elsewhere(self, plan: Plan) -> bool:
        elsewhere = () if self._claims is None else self._claims.elsewhere
        return bool(elsewhere) and _key(plan) in elsewhere

    def _remember(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """Returns a study in memory that has all trials."""
        with quiet_optuna():
            directions = list(self.description.directions.values())
            memory = optuna.create_study(directions=directions, sampler=sampler)
        memory.add_trials([self._in_memory(trial) for trial in self.trials])
        return memory

    def _in_memory(self, trial: Trial) -> FrozenTrial:
        indices = self.space.indices(trial.params)
        return frozen_trial(trial, indices, self.space.distributions, keep_record=False)


def _key(plan: Plan) -> str:
    """Returns what a network is called in claims."""
    return hashlib.sha256(str(plan).encode()).hexdigest()[:16]
