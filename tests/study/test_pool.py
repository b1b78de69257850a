"""Executors over pools: kept full, and nothing is lost where a worker is."""

import concurrent.futures
import itertools
import json
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit import runtime
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study import pool as module
from labkit.study.executor import LocalExecutor, Task, device_of
from labkit.study.pool import AutoExecutor, PoolExecutor, ProcessExecutor, as_executor, train_share
from labkit.study.processes import ProcessPool, WorkerLostError
from labkit.study.record import Candidate, Outcome
from labkit.study.search import search
from labkit.study.studies import open_study, read_trials
from labkit.training import TrainSettings
from labkit.transform import Plan
from tests.study.test_executor import CANDIDATES, check


def processes() -> concurrent.futures.Executor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=context)


@pytest.mark.parametrize(
    "pool", [lambda: concurrent.futures.ThreadPoolExecutor(2), processes], ids=["threads", "spawn"]
)
def test_over_a_pool(task: Task, pool: Callable[[], concurrent.futures.Executor]) -> None:
    with pool() as opened:
        shares = [CANDIDATES[:2], [], CANDIDATES[2:]]
        check(task, list(PoolExecutor(opened).run(task, shares)))


def test_processes_train_to_the_same_bits_and_are_sent_the_task_once(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    submit = ProcessPool.submit

    def spy(pool: ProcessPool, function: Any, *args: Any) -> Any:
        sent.append(len(args[-1]))
        return submit(pool, function, *args)

    monkeypatch.setattr(ProcessPool, "submit", spy)
    shares = [[candidate] for candidate in CANDIDATES] * 2
    away = ProcessExecutor(2).run(task, shares)
    n_threads = torch.get_num_threads()  # which the two processes share
    with runtime.threads(spare=n_threads - n_threads // 2):
        at_home = {outcome.candidate: outcome for outcome in LocalExecutor().run(task, shares)}
    for outcome in away:
        expected = at_home[outcome.candidate]
        assert outcome.history == expected.history
        for name, tensor in expected.weights.items():
            assert torch.equal(outcome.weights[name], tensor)
    assert sorted(map(bool, sent)) == [False] * 8 + [True] * 2


class Losing(concurrent.futures.ThreadPoolExecutor):
    """A pool of one worker, which dies where it trains 16 channels."""

    def __init__(self) -> None:
        super().__init__(1)
        self.tried: list[tuple[Candidate, ...]] = []

    def submit(self, function: Any, name: str, share: Sequence[Candidate], *args: Any) -> Any:  # type: ignore[override]
        self.tried.append(tuple(share))
        if any(candidate.plan.to_dict()["seq_blocks_2"] == 16 for candidate in share):
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_exception(WorkerLostError("it is gone"))
            return future
        return super().submit(function, name, share, *args)


def test_only_the_network_that_loses_its_worker_twice_fails(task: Task) -> None:
    with Losing() as pool:
        outcomes = {o.candidate: o for o in PoolExecutor(pool).run(task, [CANDIDATES])}
    killer = CANDIDATES[1]
    assert pool.tried == [tuple(CANDIDATES), *((candidate,) for candidate in CANDIDATES)]
    assert [c for c, outcome in outcomes.items() if outcome.failure is not None] == [killer]
    failure = outcomes[killer].failure
    assert failure is not None
    assert failure.kind == "worker"
    assert failure.message == "training it ended its worker 2 times; at last, it is gone"
    assert len(outcomes) == len(CANDIDATES)


class Fragile(concurrent.futures.ThreadPoolExecutor):
    """A pool that breaks after some calls."""

    def __init__(self, calls: int):
        super().__init__(1)
        self.calls = calls

    def submit(self, *args: Any) -> Any:  # type: ignore[override]
        self.calls -= 1
        if self.calls < 0:
            raise concurrent.futures.BrokenExecutor("a process ended abruptly")
        return super().submit(*args)


def test_a_broken_pool_ends_the_search_in_words_and_the_same_search_continues(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.study.executor.step_seconds", lambda *_: (1, 2))
    tables["search"]["strategy"]["setup"] |= {"sampler": "bruteforce", "n_jobs": 2, "n_trials": 16}
    with (
        Fragile(3) as pool,
        pytest.raises(LabkitError, match=r"^executor: it cannot go on: BrokenExecutor: a process"),
    ):
        search(tables, data=blobs, executor=pool, folder=tmp_path, progress=False)
    before = read_trials(open_study(tmp_path))
    assert len(before) == 6
    assert len(json.loads((tmp_path / "log.json").read_text())) == 6
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert list(results.records[:6]) == before
    assert results.networks["network"].nunique() == 16


def test_a_network_that_cannot_be_sent_is_said(task: Task) -> None:
    task.model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(
        LabkitError, match="model: it cannot be sent to another process: cannot pickle"
    ):
        list(ProcessExecutor(1).run(task, [CANDIDATES]))


def test_a_worker_says_what_it_lacks() -> None:
    assert train_share("new", CANDIDATES, module.VERSIONS, b"") is None
    other = module.VERSIONS | {"torch": "1.0"}
    with pytest.raises(LabkitError, match=r"a worker on .* has torch 2.*, and the search 1\.0"):
        train_share("new", CANDIDATES, other, b"x")
    unknown = b"cnowhere\nNetwork\n."
    with pytest.raises(LabkitError, match="cannot load the network and the data: ModuleNotFound"):
        train_share("new", CANDIDATES, module.VERSIONS, unknown)


def test_a_worker_trains_on_its_own_device(task: Task) -> None:
    there = pickle.loads(pickle.dumps(replace(task, accelerator="auto")))
    assert there.data.x_train.device == device_of("auto")
    if not torch.cuda.is_available():
        task.accelerator = "cuda"  # of a search on another machine
        package = pickle.dumps(task)
        with pytest.raises(LabkitError, match=r"cannot load .* 'cuda' needs a CUDA device"):
            train_share("gpu", CANDIDATES, module.VERSIONS, package)


def test_a_worker_keeps_the_latest_tasks(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tasks", {})
    packed = pickle.dumps(task)
    for name in ("a", "b", "c"):
        train_share(name, [], module.VERSIONS, packed)
    assert list(module._tasks) == ["b", "c"]


def test_where_networks_train_one_by_one_the_rest_of_a_share_goes_to_other_workers(
    blobs: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(16, 10), nn.Softmin(dim=1), nn.Linear(10, 5))
    together = Task(model, blobs, TrainSettings(max_epochs=1))
    plans = [Plan((("_0", width),)) for width in (5, 10, 20, 30, 40)]
    candidates = [Candidate(plan, 0) for plan in plans]
    name, packed = "alone", pickle.dumps(together)
    outcomes, why, _ = train_share(name, candidates, module.VERSIONS, packed) or ([], None, 0)
    assert [outcome.candidate for outcome in outcomes] == candidates[:1]
    assert why is not None
    assert "mixes channels" in why
    with concurrent.futures.ThreadPoolExecutor(2) as opened:
        pool = PoolExecutor(opened)
        assert {o.candidate for o in pool.run(together, [candidates])} == {*candidates}
    assert not pool.stacks
    assert "networks train one by one: '_1' (Softmin) mixes channels" in caplog.text


def test_a_stop_ends_a_run_over_a_pool(task: Task) -> None:
    def stop() -> None:
        raise runtime.Stopped

    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        pytest.raises(runtime.Stopped),
    ):
        list(PoolExecutor(pool).run(task, [CANDIDATES], on_step=stop))


class Answering(concurrent.futures.ThreadPoolExecutor):
    """A pool of one worker, which stacks networks or does not, as a list says share by share."""

    def __init__(self, *stacks: bool) -> None:
        super().__init__(1)
        self.stacks = iter(stacks)
        self.sizes: list[int] = []

    def submit(self, function: Any, name: str, share: Sequence[Candidate], *args: Any) -> Any:  # type: ignore[override]
        self.sizes.append(len(share))
        if len(share) == 1:
            return super().submit(lambda: ([Outcome(one) for one in share], None, 0))
        n, why = (len(share), None) if next(self.stacks) else (1, "it is slow")
        return super().submit(lambda: ([Outcome(one) for one in share[:n]], why, 0))


def test_whether_networks_stack_is_asked_again(task: Task) -> None:
    candidates = iter([Candidate(Plan((("_0", width),)), 0) for width in range(60)])
    with Answering(False, False, True, True, True) as pool:
        executor = PoolExecutor(pool)

        def shares() -> Iterator[list[Candidate]]:
            while share := [*itertools.islice(candidates, 10 if executor.stacks else 1)]:
                yield share

        outcomes = list(executor.run(task, shares()))
    assert len({outcome.candidate for outcome in outcomes}) == len(outcomes) == 60
    assert [size for size in pool.sizes if size > 1] == [10, 10, 10, 10, 8]
    assert executor.stacks


def test_what_has_ended_is_kept_where_a_run_is_stopped(task: Task) -> None:
    futures: list[Any] = []

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args: Any) -> Any:  # type: ignore[override]
            futures.append(super().submit(*args))
            return futures[-1]

    def stop() -> None:
        concurrent.futures.wait(futures)
        raise runtime.Stopped

    outcomes: list[Outcome] = []
    with Pool(2) as pool:
        run = PoolExecutor(pool).run(task, [[one] for one in CANDIDATES[:2]], on_step=stop)
        with pytest.raises(runtime.Stopped):
            outcomes.extend(run)
    assert {outcome.candidate for outcome in outcomes} == set(CANDIDATES[:2])


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many processes an executor moved; threads stand in for them."""
    numbers: list[int] = []

    class Threads(PoolExecutor):
        def __init__(self, workers: int, *, stacks: bool):
            assert not stacks
            numbers.append(workers)
            super().__init__(concurrent.futures.ThreadPoolExecutor(workers))

    monkeypatch.setattr(module, "ProcessExecutor", Threads)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    return numbers


@pytest.mark.parametrize("seconds", [0, 1000])
def test_the_default_moves_to_processes_where_networks_train_one_by_one_for_long(
    blobs: Dataset, moved: list[int], seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", seconds)
    model = nn.Sequential(nn.Linear(16, 10), nn.Softmin(dim=1), nn.Linear(10, 5))
    task = Task(model, blobs, TrainSettings(max_epochs=1))
    candidates = [Candidate(Plan((("_0", width),)), 0) for width in range(4, 14)]
    executor = AutoExecutor()
    outcomes = list(executor.run(task, [candidates[:4], candidates[4:]]))
    assert sorted(o.candidate.plan.widths for o in outcomes) == sorted(
        c.plan.widths for c in candidates
    )
    assert (moved, executor.workers) == (([3], 3) if seconds == 0 else ([], 1))


def test_the_default_stays_in_this_process_where_networks_stack(
    task: Task, moved: list[int], stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0)
    list(AutoExecutor().run(task, [CANDIDATES]))
    assert (moved, stacks) == ([], [4])


def test_what_a_search_takes_as_an_executor() -> None:
    assert isinstance(as_executor(None), AutoExecutor)
    assert as_executor(None, 3).workers == as_executor(3, 5).workers == 3
    assert type(as_executor(1)) is type(as_executor(None, 1)) is LocalExecutor
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        assert as_executor(pool).workers == 5
    for wrong in (0, -1, True, 2.5, []):
        with pytest.raises(LabkitError, match="executor: expected a concurrent.futures.Executor"):
            as_executor(wrong)  # type: ignore[arg-type]
