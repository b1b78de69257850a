"""Who drives a study: one search at a time, or several that share it.

An SQLite file has a lock beside it. In other storages drivers make claims, in a second study: a
claim is a running trial there. Every storage numbers trials one after the other, so that of several
claims of one thing the first holds. A driver is such a claim itself, which all its others name and
end with. It counts beats there: who hears none of a driver for ten of its own beats ends it. No
clocks are compared, and nobody beats while the storage is away.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from labkit.errors import LabkitError
from labkit.runtime import quiet_optuna
from labkit.study.storage import DATABASE

log = logging.getLogger(__name__)

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
BEAT_SECONDS = 3.0
SILENT_BEATS = 10
TURN_SECONDS = 0.05
DRIVER, TURN = "driver", "turn"  # what is claimed, beside networks


def this_driver() -> str:
    """Returns what others are told of this process."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M}"


@contextlib.contextmanager
def locked(databases: Iterable[Path]) -> Iterator[None]:
    """Lets this process alone drive the studies in SQLite files, and write the folders around them.

    The system ends the lock together with the process.

    Raises:
        LabkitError: Another process is at it, or the folder is read-only.
    """
    with contextlib.ExitStack() as stack:
        for database in {database.resolve() for database in databases}:
            folder = str(database.parent)
            own = database.name == DATABASE  # of the folder
            file = database.with_name(".lock" if own else f".{database.name}.lock")
            try:
                stack.enter_context(filelock.FileLock(file, timeout=0))
                file.write_text(this_driver())
            except filelock.Timeout as error:
                who = file.read_text(errors="replace")[:120] or "a process that just began"
                raise LabkitError(f"out: another search is running in {folder!r}: {who}") from error
            except OSError as error:
                reason = "it is read-only" if error.errno in READ_ONLY else error.strerror
                raise LabkitError(f"out: cannot write in {folder!r}: {reason}") from error
        yield


@functools.cache
def _place() -> str:
    """Returns where process ids mean the same as here: the host, and the container."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _runs(pid: int, started: float) -> bool:
    """Whether a process of this place runs; another one may have got its number."""
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - started) < 2
        return is_it and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Claims:
    """What the drivers of a study have claimed.

    Args:
        storage: Where the study is.
        name: Of the study.
        shared: Whether several may drive it, if all of them say so.
    """

    def __init__(self, storage: BaseStorage, name: str, *, shared: bool):
        self.shared = shared
        self.driver = -1  # the claim that this driver is
        self.elsewhere: set[str] = set()  # the networks that others had at the last `refresh`
        self._storage, self._name = storage, name
        self._study = -1
        self._mine: dict[str, int] = {}
        self._beats = 0
        self._heard: dict[int, tuple[int, int]] = {}  # driver → its beats, and mine when they came
        self._alive: set[int] = set()  # drivers that were heard to beat

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Makes this process a driver of the study.

        Raises:
            LabkitError: Another one drives it, and they do not both share it.
        """
        with quiet_optuna():
            study = optuna.create_study(
                study_name=f"{self._name}:claims", storage=self._storage, load_if_exists=True
            )
        self._study = study._study_id
        ended = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(ended,), daemon=True)
        try:
            self._join()
            beating.start()
            yield
        finally:
            ended.set()
            if beating.ident is not None:
                beating.join(1)  # it may wait for the storage
            with contextlib.suppress(LabkitError, KeyError):  # then others hear no more beats
                self._end(self.driver)

    def claim(self, key: str) -> bool:
        """Returns whether this driver holds a claim, which it makes unless another one has it."""
        if key in self._mine or key in self.elsewhere:
            return key in self._mine
        self._be_driver()  # or else the claim would not count, nor any later one
        claim = self._add(key)
        if self._first(key) != claim:
            self._end(claim)
            return False
        self._mine[key] = claim
        return True

    def release(self, key: str) -> None:
        """Ends a claim of this driver, if it has made it."""
        if key in self._mine:
            self._end(self._mine.pop(key))

    def refresh(self) -> None:
        """Looks which networks others have claimed."""
        claims = (claim.user_attrs for claim in self._running())
        self.elsewhere = {
            claim["key"] for claim in claims if claim.get("driver", self.driver) != self.driver
        } - {TURN}

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Excludes all other drivers."""
        self._be_driver()
        try:
            if self.shared:
                self._mine[TURN] = self._add(TURN)
                while (first := self._first(TURN)) != self._mine[TURN]:
                    time.sleep(TURN_SECONDS)
                    if first is None:  # this driver was ended meanwhile
                        del self._mine[TURN]  # or else it would be claimed twice
                        self._be_driver()
                        self._mine[TURN] = self._add(TURN)
            yield
        finally:
            self.release(TURN)

    def check_turn(self) -> None:
        """Makes sure that nobody else is at it, who took this driver for dead.

        Raises:
            LabkitError: Somebody may be.
        """
        claim = self._mine.get(TURN, self.driver)
        if self._storage.get_trial(claim).state != TrialState.RUNNING:
            raise LabkitError(
                f"storage: this process slept while it recorded a trial of {self._name!r}, and "
                "others went on; the same command continues"
            )

    def _be_driver(self) -> None:
        """Joins again where others took this driver for dead, with all that nobody else claimed."""
        if self._storage.get_trial(self.driver).state == TrialState.RUNNING:
            return
        log.warning("this process was not heard of for long; it joins %r again", self._name)
        keys = list(self._mine)
        self._mine.clear()
        self._join()
        for key in keys:
            self.claim(key)

    def _join(self) -> None:
        """Claims to be a driver."""
        self._heard.clear()
        self._alive.clear()
        process = psutil.Process()
        self.driver = self._add(
            DRIVER, who=this_driver(), shared=self.shared, place=_place(), pid=process.pid,
            started=process.create_time(), beats=0,
        )  # fmt: skip
        while rivals := [claim for claim in self._running() if self._excludes(claim)]:
            for rival in rivals:
                if rival._trial_id in self._alive:
                    raise LabkitError(
                        f"storage: the search {self._name!r} is run by {rival.user_attrs['who']}; "
                        "end it, or start both with --shared"
                    )
            time.sleep(BEAT_SECONDS / 2)
            self._beat()

    def _excludes(self, claim: FrozenTrial) -> bool:
        """Whether another driver, which came first, does not drive beside this one."""
        is_first = claim.user_attrs["key"] == DRIVER and claim._trial_id < self.driver
        return is_first and not (self.shared and claim.user_attrs["shared"])

    def _beat_until(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(LabkitError, UpdateFinishedTrialError):
                self._beat()

    def _beat(self) -> None:
        self._storage.set_trial_user_attr(self.driver, "beats", self._beats + 1)
        self._beats += 1

    def _running(self) -> list[FrozenTrial]:
        """Returns the claims of all drivers that live, in their order; those of others end."""
        trials = self._storage.get_all_trials(
            self._study, deepcopy=False, states=(TrialState.RUNNING,)
        )
        drivers = {
            trial._trial_id
            for trial in trials
            if trial.user_attrs["key"] == DRIVER and self._lives(trial._trial_id, trial.user_attrs)
        }
        claims = []
        for trial in sorted(trials, key=lambda trial: trial._trial_id):
            if trial.user_attrs.get("driver", trial._trial_id) in drivers:
                claims.append(trial)
            else:
                self._end(trial._trial_id)
        return claims

    def _lives(self, driver: int, claim: Mapping[str, Any]) -> bool:
        if driver == self.driver:
            return True
        if claim["place"] == _place() and not _runs(claim["pid"], claim["started"]):
            return False
        beats, since = self._heard.get(driver, (-1, 0))
        if claim["beats"] == beats:
            return self._beats - since <= SILENT_BEATS
        if driver in self._heard:
            self._alive.add(driver)
        self._heard[driver] = claim["beats"], self._beats
        return True

    def _first(self, key: str) -> int | None:
        """Returns the claim of a key that holds."""
        claims = (c._trial_id for c in self._running() if c.user_attrs["key"] == key)
        return next(claims, None)

    def _add(self, key: str, **attributes: Any) -> int:
        attributes = {"key": key} | (attributes or {"driver": self.driver})
        claim = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        return self._storage.create_new_trial(self._study, claim)

    def _end(self, claim: int) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # somebody else has ended it
            self._storage.set_trial_state_values(claim, TrialState.FAIL)
