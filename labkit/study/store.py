"""The store: a study that a search continues.

A trial that has ended is added to the storage whole, in one transaction: it is either recorded,
with its values, or not there at all, and a kill leaves none that runs or waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Container, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from optuna.storages import BaseStorage

from labkit.errors import LabkitError
from labkit.study.claims import Claims, locked
from labkit.study.front import Front
from labkit.study.known_cost import Known
from labkit.study.limits import Limits
from labkit.study.proposals import Asked, Proposals
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


class Store:
    """A study that a search continues.

    Args:
        storage: As `open_storage` takes it, or `None` for memory.
        name: Of the study. A file holds one study only.
        description: What the study is; one that exists must be the same.
        space: Which parameters a trial has.
        sampler: The name of what proposes.
        known: What the sampler `known-cost` takes as known.
        limits: What breaks one that is known beforehand is not proposed, as far as can be.
        first: Networks that are proposed before all others.
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
        space: SearchSpaceBase, *, sampler: str, known: Known, limits: Limits, seed: int,
        first: Sequence[Plan] = (), shared: bool = False,
    ):  # fmt: skip
        if shared and (storage is None or database_file(storage) is not None):
            raise LabkitError(
                "shared: expected a storage that several machines reach, such as "
                f"postgresql://user@host/name or grpc://host:port, got {named(storage)!r}"
            )
        self.description, self.space, self.shared = description, space, shared
        self._first, self._every = first, None
        if sampler == "bruteforce":
            self._every = {p: one for p, one in space.networks.items() if limits.admits(p)}
        self._storage = storage
        self._claims: Claims | None = None  # while it is driven, where other machines may be
        self.study = open_or_create(storage, name, description)
        self.trials: list[Trial] = []
        self.tried: set[Plan] = set()
        self.known: dict[Plan, Trial] = {}
        self.added_replicates: dict[int, list[Metrics | None]] = {}
        self._front: Front[Trial] = Front(description.directions.values())
        self._proposals = Proposals(
            space, list(description.directions.values()), sampler, seed, known=known,
            limits=limits, elsewhere=self._is_elsewhere,
        )  # fmt: skip
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
            self._proposals.restart(self.trials)  # a run was stopped
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
        self._proposals.add(others)
        self._reseed()

    def _reseed(self) -> None:
        driver = 0 if self._claims is None else 7919 * self._claims.driver  # each draws its own
        self._proposals.reseed(len(self.trials), driver)

    @property
    def n_elsewhere(self) -> int:
        """How many networks other drivers were training at the last `refresh`."""
        return 0 if self._claims is None else len(self._claims.elsewhere)

    def ask(self, n: int, running: Container[Plan] = ()) -> list[Asked]:
        """Returns n proposals; fewer where brute force has no more networks.

        Args:
            n: How many.
            running: The networks of proposals that are not told yet, which brute force passes over,
                as it does those that other drivers train.
        """
        if self.shared:
            self.refresh()
        first = [plan for plan in self._first if self._is_new(plan, running)][:n]
        asked = [self._proposals.ask_for(plan) for plan in first]
        n -= len(first)
        if self._every is None:
            return asked + [self._proposals.ask() for _ in range(n)]
        untried = (
            Asked(indices, self.space.sampled_config(indices), plan, once=True)
            for plan, indices in self._every.items()
            if plan not in first and self._is_new(plan, running)
        )
        return asked + list(itertools.islice(untried, n))

    def _is_new(self, plan: Plan, running: Container[Plan]) -> bool:
        return not (plan in self.tried or plan in running or self._is_elsewhere(plan))

    def drop(self, asked: Asked) -> None:
        """Forgets a proposal."""
        self._proposals.tell(asked, None)

    def tell(self, asked: Asked, record: Record, values: Sequence[float] | None) -> Trial:
        """Records a trial whole: in the storage, for the sampler, and for look-ups.

        Args:
            asked: The proposal.
            record: All that is to be kept of it.
            values: Of the objectives; `None` where it failed, or was not trained.
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
        self._proposals.tell(asked, trial)
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
        if trial.values is not None and trial.record.competes:
            self._front.add(trial, trial.values)

    def _is_elsewhere(self, plan: Plan) -> bool:
        elsewhere = () if self._claims is None else self._claims.elsewhere
        return bool(elsewhere) and _key(plan) in elsewhere


def _key(plan: Plan) -> str:
    """Returns what a network is called in claims."""
    return hashlib.sha256(str(plan).encode()).hexdigest()[:16]
