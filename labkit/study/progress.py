"""How far a search is: epochs of networks that are done, the best so far, the time that is left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

from labkit.study.record import Candidate, Metrics
from labkit.training import main_of
from labkit.transform import Plan

RECENT = 12  # networks whose curves are kept when they are trained
SAID_SECONDS = 30  # for which a longer time left says why
LOOK_SECONDS = 0.5  # between steps after which the time left is expected anew


class Progress:
    """How far a run is, counted in epochs of networks. One thread tells it, any may read.

    What is looked up, fails or stops early counts as trained to its end.

    Args:
        trials: Those to come.
        networks: How many of the space are untrained, at most.
        trained: How many are trained.
        seeds: Of each network.
        epochs: Of each network with each seed.
        jobs: For how many trials networks train together.
        repeats: Whether trials may propose a network again.
        best: The best accuracy, or R², of what is trained.
        steps: Of an epoch.

    Attributes:
        total: Epochs of all networks that may train: of no more than trials are left, or untrained.
        metric: Which of them it is.
        best: The best so far, after any epoch, or `None`.
        histories: Candidate → its metrics after each epoch, of those that train or did so last.
        training: The candidates that train.
    """

    def __init__(
        self, trials: int, networks: float = math.inf, *, trained: int = 0, seeds: int = 1,
        epochs: int = 1, jobs: int = 1, repeats: bool = False, best: float | None = None,
        steps: int = 1,
    ):  # fmt: skip
        self._trials, self._networks, self._in_space = trials, networks, networks + trained
        self._seeds, self._epochs, self._jobs, self._repeats = seeds, epochs, jobs, repeats
        self.total = int(trained + min(trials, networks)) * seeds * epochs
        self.metric, self.best = "accuracy", best
        self.histories: dict[Candidate, list[Metrics]] = {}
        self.training: set[Candidate] = set()
        self._lock = threading.Lock()
        self._widest, self._n_together = 1, 1  # networks: ever; in the epoch that is trained
        self._steps, self._steps_an_epoch = 0, steps
        # Epochs of a network alone that were trained in how many seconds; where it was elsewhere.
        self._work, self._seconds, self._elsewhere = 0.0, 0.0, False
        self._since, self._begun = time.monotonic(), False  # when an epoch began; whether one ended
        # How long it is expected to go on, and when that was; at which pace; why it is longer.
        self._left, self._at, self._pace, self._said = math.inf, 0.0, 0.0, ("", -math.inf)

    def on_step(self) -> None:
        """Takes in a step of what trains in this process."""
        self._steps += 1
        if self._begun and time.monotonic() > self._at + LOOK_SECONDS:
            with self._lock:
                self._expect()

    def on_epoch(self, metrics: Mapping[Candidate, Metrics], seconds: float | None = None) -> None:
        """Takes in an epoch of networks that train together.

        Args:
            metrics: Of each.
            seconds: For how long it held a run up, where networks train elsewhere.
        """
        now = time.monotonic()
        with self._lock:
            for candidate, one in metrics.items():
                self.histories[candidate] = [*self.histories.get(candidate, ()), one]
                self.metric = main_of(one)
                self.best = max(
                    one[self.metric], one[self.metric] if self.best is None else self.best
                )
            self.training |= metrics.keys()
            self._widest, self._steps = max(self._widest, len(metrics)), 0
            if seconds is not None and not self._elsewhere:  # another pace begins
                self._elsewhere, self._work, self._seconds = True, 0.0, 0.0
            self._work += _work(len(metrics))
            self._seconds += now - self._since if seconds is None else seconds
            self._since = now
            unfinished = [one for one in self.training if self._n_epochs(one) < self._epochs]
            self._n_together = len(unfinished or metrics)
            self._expect()
            if not self._begun and seconds is None:  # what came before the first epoch comes once
                self._work, self._seconds = 0.0, 0.0
            self._begun = True

    def on_trial(self, plan: Plan, trials: int, networks: float = math.inf) -> None:
        """Takes in the end of a network's trial, and what is left then, as when it was made."""
        with self._lock:
            ended = {candidate for candidate in self.training if candidate.plan == plan}
            if not ended and networks < self._networks:  # other drivers do not tell epochs
                self._work += self._seeds * self._epochs
            self.training -= ended
            for candidate in [one for one in self.histories if one not in self.training][:-RECENT]:
                del self.histories[candidate]
            self._trials, self._networks = trials, networks
            self._expect()

    @property
    def done(self) -> int:
        """How many epochs of the total are done, or will never be."""
        with self._lock:
            left = min(self._trials, self._networks) * self._seeds * self._epochs
            return self.total - int(max(left - sum(map(self._n_epochs, self.training)), 0))

    @property
    def left(self) -> tuple[float, str] | None:
        """For how many seconds it will go on, and why that is longer than before, where it is.

        `None` before the first epoch.
        """
        with self._lock:
            why, at = self._said
            if self._left == math.inf:
                return None
            return self._left, why if time.monotonic() < at + SAID_SECONDS else ""

    def said(self, *, left: bool = True) -> str:
        """Returns it in words, with or without the time left."""
        what = "networks" if self._seeds * self._epochs == 1 else "epochs of networks"
        text = f"{self.done:,} of {self.total:,} {what}"
        if self.best is not None:
            text += f", best {self.metric} {self.best:.3f}"
        if left and self.left is not None and self.done < self.total:
            seconds, why = self.left
            text += f", {clock(seconds)} left" + (f" ({why})" if why else "")
        return text

    def _n_epochs(self, candidate: Candidate) -> int:
        return len(self.histories[candidate])

    def _expect(self) -> None:
        """Expects the end anew: a time left rises only where the one before was clearly wrong."""
        now = time.monotonic()
        since, seconds, work = now - self._since, self._seconds, self._work
        left = self._work_left()
        if not self._elsewhere:
            part = min(self._steps / self._steps_an_epoch, 1) * _work(self._n_together)
            seconds, work, left = seconds + since, work + part, max(left - part, 0)
        if not work:
            return
        pace = seconds / work
        expected = pace * left - (since if self._elsewhere else 0)
        if expected > self._left + max(0.15 * expected, 3):
            slower = pace > 1.05 * self._pace
            why = "networks take longer than before" if slower else "more networks are new"
            self._said = f"longer than expected: {why}", now
        else:
            expected = max(min(expected, self._left), 0)
        self._pace, self._left, self._at = pace, expected, now

    def _work_left(self) -> float:
        """Returns what is expected to train, in epochs of a network alone."""
        epochs = [self._epochs - self._n_epochs(one) for one in self.training]
        here = max(epochs, default=0) * _work(sum(left > 0 for left in epochs))
        n_plans = len({candidate.plan for candidate in self.training})
        trials, unseen = max(self._trials - n_plans, 0), max(self._networks - n_plans, 0)
        new = min(trials, unseen)
        if self._repeats and self._in_space < math.inf:  # as if each network were as likely
            new = unseen * (1 - (1 - 1 / self._in_space) ** trials)
        stacks = max(min(trials / self._jobs, new), new * self._seeds / self._widest)
        return here + (self._epochs * stacks * _work(new * self._seeds / stacks) if stacks else 0)


def clock(seconds: float) -> str:
    """Returns a duration as a clock shows it."""
    return "{}:{:02}".format(*divmod(round(seconds), 60))


def _work(n: float) -> float:
    """Returns about how many epochs of a network alone one of n networks together takes."""
    return 1 + (n - 1) / 4 if n else 0
