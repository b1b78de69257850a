"""How far a run is, by a clock of the test's own."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import labkit
from labkit.data import Dataset
from labkit.study.progress import Progress
from labkit.study.record import Candidate
from labkit.transform import Plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("labkit.study.progress.time", clock)
    return clock


def network(width: int) -> Plan:
    return Plan((("a", width),))


class Run:
    """A search as its trainer tells it, over equally likely networks; it notes what was shown."""

    def __init__(self, clock: Any, seconds: Callable[[int], float], trials: int, space: int):
        self.clock, self.seconds, self.rng = clock, seconds, np.random.default_rng(0)
        self.trials, self.space, self.known, self.told = trials, space, set[int](), 0
        self.shown: list[tuple[float, int, tuple[float, str]]] = []

    def search(self, jobs: int, epochs: int) -> Progress:
        self.progress = Progress(
            self.trials, self.space, epochs=epochs, jobs=jobs, repeats=True, best=None
        )
        self.clock.now += 2  # what comes before the first step
        while self.told < self.trials:
            asked = [
                int(self.rng.integers(self.space))
                for _ in range(min(jobs, self.trials - self.told))
            ]
            new = {plan: Candidate(network(plan), 0) for plan in asked if plan not in self.known}
            for _ in range(epochs if new else 0):
                self.clock.now += self.seconds(len(new))
                self.progress.on_epoch({one: {"accuracy": 0.5} for one in new.values()})
                self.look()
            for plan in asked:
                self.known.add(plan)
                self.told += 1
                left = self.trials - self.told, self.space - len(self.known)
                self.progress.on_trial(network(plan), *left)
                self.look()
        return self.progress

    def look(self) -> None:
        left = self.progress.left
        assert left is not None
        self.shown.append((self.clock.now, self.progress.done, left))


@pytest.mark.parametrize(("trials", "space"), [(96, 10**6), (96, 64), (400, 64), (48, 5)])
@pytest.mark.parametrize("jobs", [1, 16])
def test_the_time_left_is_right_after_a_fifth(
    clock: SimpleNamespace, trials: int, space: int, jobs: int
) -> None:
    run = Run(clock, lambda n: 10 * (1 + n / 10), trials, space)
    progress = run.search(jobs, epochs=4)
    assert progress.done == progress.total == min(trials, space) * 4
    for now, done, (left, _) in run.shown:
        if done >= progress.total / 5:
            assert left == pytest.approx(clock.now - now, rel=0.3, abs=130)  # three networks
    for (_, _, (before, _)), (_, _, (left, why)) in zip(run.shown, run.shown[1:]):
        assert left <= before or why
    done = [each[1] for each in run.shown]
    assert done == sorted(done)


def test_steps_tell_within_an_epoch(clock: SimpleNamespace) -> None:
    progress = Progress(1, epochs=5, steps=100)
    said = []
    clock.now += 20  # until the first step
    for epoch in range(5):
        for _ in range(100):
            clock.now += 0.3
            progress.on_step()
            if epoch:
                said.append((clock.now, progress.left))
        clock.now += 2  # the evaluation
        progress.on_epoch({Candidate(network(1), 0): {"accuracy": epoch / 10}})
    for now, left in said[5:]:  # which is asked for again every half a second
        assert left == (pytest.approx(clock.now - now, rel=0.1, abs=3), "")
    assert progress.left == (0, "")


def test_where_networks_train_elsewhere_their_own_time_counts(clock: SimpleNamespace) -> None:
    progress = Progress(40, epochs=5, steps=100)
    ends = clock.now + 30 + 20 * 10  # two workers start in half a minute, then train 20 each
    for n in range(20):
        clock.now += 30 * (n == 0) + 10
        for twin in (0, 1):
            for _ in range(5):
                progress.on_epoch({Candidate(network(2 * n + twin), 0): {"accuracy": 0.5}}, 1.0)
            progress.on_trial(network(2 * n + twin), 39 - 2 * n - twin)
        progress.on_step()  # a pool looks often whether it is to stop
        assert progress.left == (pytest.approx(ends - clock.now, abs=1e-6), "")


def test_what_becomes_slower_is_said(clock: SimpleNamespace) -> None:
    progress = Progress(4, epochs=10)
    told = []
    for epoch in range(10):
        clock.now += 1 if epoch < 5 else 8
        progress.on_epoch({Candidate(network(1), 0): {"accuracy": epoch / 10}})
        told.append(progress.left)
    assert told[4] == (pytest.approx(35, abs=3), "")
    assert told[9][0] > 100  # type: ignore[index]
    assert told[9][1] == "longer than expected: networks take longer than before"  # type: ignore[index]
    assert "best accuracy 0.900" in progress.said()


def test_what_is_looked_up_counts_as_done(clock: SimpleNamespace) -> None:
    progress = Progress(4, epochs=5, seeds=2)
    assert (progress.done, progress.total, progress.left) == (0, 40, None)
    both = {Candidate(network(1), seed): {"accuracy": 0.1} for seed in (0, 1)}
    progress.on_epoch(both)
    assert progress.done == 2
    assert progress.said().startswith("2 of 40 epochs of networks, best accuracy 0.100, ")
    progress.on_trial(network(1), 3, math.inf)
    assert progress.done == 10
    progress.on_trial(network(1), 2, math.inf)
    assert progress.done == 20
    assert [len(history) for history in progress.histories.values()] == [1, 1]


def test_a_search_tells_each_epoch(tables: dict[str, Any], blobs: Dataset) -> None:
    tables["search"]["strategy"]["setup"] |= {"n_trials": 12, "n_jobs": 4}
    search = labkit.Search(tables, data=blobs, epochs=3)
    assert search.progress is None
    seen: list[int] = []
    told = Progress.on_epoch

    def on_epoch(progress: Progress, *epoch: Any) -> None:
        told(progress, *epoch)
        seen.append(progress.done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "on_epoch", on_epoch)
        results = search.run(progress=False)
    progress = search.progress
    assert progress is not None
    assert progress.done == progress.total == 36
    assert 1 <= seen[0] <= 4
    assert seen == sorted(seen)
    assert progress.best == pytest.approx(results.networks["accuracy"].max())
    history = {Candidate(results.plan(n), 42): own for n, own in results.histories.items()}
    assert progress.histories
    assert all(own == history[candidate] for candidate, own in progress.histories.items())
    search = labkit.Search(tables, data=blobs, epochs=3)
    search.stop()
    search.run(progress=False)
    assert search.progress is not None
    assert (search.progress.done, search.progress.best) == (0, None)


def test_replicates_are_counted(tables: dict[str, Any], blobs: Dataset) -> None:
    search = labkit.Search(tables, data=blobs, epochs=2, trials=3)
    results = search.run(progress=False)
    n = len({*results.front.index, results.original})
    search.replicate(3, progress=False)
    assert search.progress is not None
    assert search.progress.done == search.progress.total == 4 * n
