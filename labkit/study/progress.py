"""How far a search is: epochs of networks that are done, the best so far, the time that is left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

from labkit.study.record import Candidate, Metrics
from labkit.transform import Plan

RECENT = 12  # networks whose curves are kept when they are trained
SAID_SECONDS = 30  # for which a longer time left says why


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
        best: The best accuracy of what is trained.

    Attributes:
        total: Epochs of all networks that may train: of no more than trials are left, or untrained.
        best: The best accuracy so far, after any epoch, or `None`.
        histories: Candidate → its metrics after each epoch, of those that train or did so last.
        training: The candidates that train.
    """

    def __init__(
        self, trials: int, networks: float = math.inf, *, trained: int = 0, seeds: int = 1,
        epochs: int = 1, jobs: int = 1, repeats: bool = False, best: float | None = None,
    ):  # fmt: skip
        self._trials, self._networks, self._in_space = trials, networks, networks + trained
        self._seeds, self._epochs, self._jobs, self._repeats = seeds, epochs, jobs, repeats
        self.total = int(trained + min(trials, networks)) * seeds * epochs
        self.best = best
        self.histories: dict[Candidate, list[Metrics]] = {}
        self.training: set[Candidate] = set()
        self._lock = threading.Lock()
        self._work, self._widest = 0.0, 1  # in epochs of a network alone; of the stacks so far
        self._since = time.monotonic(), 0.0  # from where the pace is measured
        self._pace, self._ends, self._said = 0.0, math.inf, ("", -math.inf)

    def on_epoch(self, metrics: Mapping[Candidate, Metrics]) -> None:
        """Takes in an epoch of networks that train together."""
        with self._lock:
            for candidate, one in metrics.items():
                self.histories[candidate] = [*self.histories.get(candidate, ()), one]
                self.best = max(one["accuracy"], self.best or 0)
            self.training |= metrics.keys()
            self._work += _work(len(metrics))
            self._widest = max(self._widest, len(metrics))
            self._expect()
            if not self._since[1]:  # what came before the first epoch comes once
                self._since = time.monotonic(), self._work

    def on_trial(self, plan: Plan, trials: int, networks: float = math.inf) -> None:
        """Takes in the end of a network's trial, and what is left then, as when it was made."""
        with self._lock:
            ended = {candidate for candidate in self.training if candidate.plan == plan}
            if not ended and networks < self._networks:  # other processes do not tell epochs
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
        now, (why, at) = time.monotonic(), self._said
        if self._ends == math.inf:
            return None
        return max(self._ends - now, 0), why if now < at + SAID_SECONDS else ""

    def said(self, *, left: bool = True) -> str:
        """Returns it in words, with or without the time left."""
        what = "networks" if self._seeds * self._epochs == 1 else "epochs of networks"
        text = f"{self.done:,} of {self.total:,} {what}"
        if self.best is not None:
            text += f", best accuracy {self.best:.3f}"
        if left and self.left is not None and self.done < self.total:
            seconds, why = self.left
            text += f", {clock(seconds)} left" + (f" ({why})" if why else "")
        return text

    def _n_epochs(self, candidate: Candidate) -> int:
        return len(self.histories[candidate])

    def _expect(self) -> None:
        """Expects the end anew; a later one only where the one before was clearly wrong."""
        now, (since, work) = time.monotonic(), self._since
        if self._work == work:
            return
        pace = (now - since) / (self._work - work)
        left = pace * self._work_left()
        if now + left > self._ends + max(0.15 * left, 3):
            slower = pace > 1.05 * self._pace
            why = "networks take longer than before" if slower else "more networks are new"
            self._said = f"longer than expected: {why}", now
        elif now + left > self._ends:
            return
        self._pace, self._ends = pace, now + left

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
