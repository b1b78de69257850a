"""The loop: workers are kept busy, and each network is trained once."""

import concurrent.futures
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from labkit.data import Dataset
from labkit.study.executor import LocalExecutor, Outcomes, Shares, Task
from labkit.study.record import Candidate
from labkit.study.search import Search, search
from labkit.transform import Plan


@pytest.fixture
def setup(tables: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = tables["search"]["strategy"]["setup"]
    return table


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[Plan]:
    """How often each network was built to be trained."""
    plans: Counter[Plan] = Counter()
    build = Task.build

    def spy(task: Task, candidate: Candidate) -> nn.Module:
        plans[candidate.plan] += 1
        return build(task, candidate)

    monkeypatch.setattr(Task, "build", spy)
    return plans


def test_a_slow_network_does_not_hold_the_others_back(
    tables: dict[str, Any], setup: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one trains until all others are told."""
    setup |= {"n_trials": 16, "n_jobs": 1, "sampler": "bruteforce"}
    pool = concurrent.futures.ThreadPoolExecutor(4)
    run = Search(tables, data=blobs, executor=pool)
    build, tell = Task.build, run.store.tell
    slow = next(iter(run.space.networks))
    others_are_told = threading.Event()

    def wait(task: Task, candidate: Candidate) -> nn.Module:
        if candidate.plan == slow:
            assert others_are_told.wait(60)
        return build(task, candidate)

    def told(*args: Any) -> Any:
        trial = tell(*args)
        if trial.number == 14:
            others_are_told.set()
        return trial

    monkeypatch.setattr(Task, "build", wait)
    monkeypatch.setattr(run.store, "tell", told)
    with pool:
        results = run.run(progress=False)
    assert results.records[-1].record.plan == slow
    assert results.trials["failure"].isna().all()


@pytest.mark.parametrize("sampler", ["tpe", "random", "bruteforce"])
@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.usefixtures("stacks")  # the clock does not decide
def test_what_trains_at_once_is_trained_once(
    tables: dict[str, Any], blobs: Dataset, sampler: str, n_jobs: int, trained: Counter[Plan]
) -> None:
    options = {"n_trials": 40, "n_jobs": n_jobs, "sampler": sampler}
    tables["search"]["strategy"]["setup"] |= options
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = search(tables, data=blobs, executor=pool, progress=False)
    assert len(results.trials) == (16 if sampler == "bruteforce" else 40)
    assert set(trained.values()) == {1}
    assert set(trained) == {trial.record.plan for trial in results.records}
    assert results.networks["network"].is_unique
    for trial in results.records:
        twin = results.records[trial.record.trained_in or 0]
        assert twin.record.plan == trial.record.plan
        assert (twin.number == trial.number) == (trial.record.source == "trained")


class Three(LocalExecutor):
    """Takes three shares before it trains the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = 3
        self.sizes: list[int] = []

    def run(self, task: Task, shares: Shares, **options: Any) -> Outcomes:
        shares, taken, waits = iter(shares), list[Sequence[Candidate]](), False
        while taken or not waits:
            while len(taken) < 3 and (share := next(shares, ())):
                taken.append(share)
                self.sizes.append(len(share))
            waits = not taken
            if taken:
                yield from self.train(task, taken.pop(0))


@pytest.mark.parametrize(("n_jobs", "sizes"), [(16, [6, 6, 4]), (4, [4, 4, 4, 4]), (2, [2] * 8)])
def test_the_last_trials_are_spread_over_the_workers(
    tables: dict[str, Any], setup: dict[str, Any], blobs: Dataset, n_jobs: int, sizes: list[int]
) -> None:
    setup |= {"n_trials": 16, "n_jobs": n_jobs, "sampler": "bruteforce"}
    executor = Three()
    results = search(tables, data=blobs, executor=executor, progress=False)
    assert len(results.networks) == 16
    assert executor.sizes == sizes


def test_a_network_that_another_driver_trains_waits(
    tables: dict[str, Any], setup: dict[str, Any], blobs: Dataset, trained: Counter[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its claim is refused until the other driver is dead."""
    setup |= {"n_trials": 40}
    run = Search(tables, data=blobs)
    asked: Counter[Plan] = Counter()
    theirs = next(iter(run.space.networks))

    def claim(plan: Plan) -> bool:
        asked[plan] += 1
        return plan != theirs or asked[plan] == 3

    monkeypatch.setattr(run.store, "claim", claim)
    results = run.run(progress=False)
    assert asked[theirs] == 3
    assert trained[theirs] == 1
    assert len(results.trials) == 40
