"""Candidates on a Dask cluster of three processes, of which one dies, and then the driver."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import nn

from labkit import runtime
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study import cluster as module
from labkit.study.cluster import DaskExecutor, connect
from labkit.study.executor import LocalExecutor, Task
from labkit.study.results import Results
from labkit.study.search import Search, search
from labkit.study.studies import open_study, read_trials
from tests.study.test_executor import CANDIDATES

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


def make_cluster(n_workers: int) -> Any:
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
        silence_logs=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with make_cluster(3) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def exhaustive(tables: dict[str, Any]) -> dict[str, Any]:
    """The report's space, each network once."""
    setup = {"sampler": "bruteforce", "n_trials": 16, "n_jobs": 2}
    tables["search"]["strategy"]["setup"] |= setup
    return tables


def check(results: Results, undisturbed: Results) -> None:
    """The same networks, trained to the same numbers."""
    # After few steps accuracies are no measure: biases below a BatchNorm are rounding, and its
    # statistics have not followed them yet.
    losses = [
        {str(r.plan(n)): history[-1]["train_loss"] for n, history in r.histories.items()}
        for r in (results, undisturbed)
    ]
    assert len(results.trials) == len(losses[0]) == 16
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert results.trials["failure"].isna().all()


def test_weights_are_those_of_this_process_to_the_bit_and_the_task_is_sent_once(
    task: Task, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    deliver = module._Delivery.__init__
    monkeypatch.setattr(
        module._Delivery, "__init__", lambda self, *a: sent.append(a[0]) or deliver(self, *a)
    )
    shares = [[candidate] for candidate in CANDIDATES] * 2
    with runtime.threads(spare=torch.get_num_threads() - 1):  # as in Dask's workers
        at_home = {outcome.candidate: outcome for outcome in LocalExecutor().run(task, shares)}
    outcomes = list(DaskExecutor(client.get_executor()).run(task, shares))
    assert len(outcomes) == len(shares)
    for outcome in outcomes:
        expected = at_home[outcome.candidate]
        assert outcome.history == expected.history
        for name, tensor in expected.weights.items():
            assert torch.equal(outcome.weights[name], tensor)
    assert len(sent) == 1
    assert set(client.run(lambda: len(module.packages)).values()) == {0}  # it is taken away


def test_a_worker_killed_in_the_middle_loses_nothing(
    exhaustive: dict[str, Any], blobs: Dataset, client: Any
) -> None:
    undisturbed = search(exhaustive, data=blobs, progress=False)
    run = Search(exhaustive, data=blobs, executor=client.get_executor())
    killed: list[int] = []
    tell = run.store.tell

    def kill_after_the_first(*args: Any) -> Any:
        if not killed:
            pids = client.run(os.getpid)
            busy = next(address for address, keys in client.processing().items() if keys)
            killed.append(pids[busy])
            os.kill(pids[busy], signal.SIGKILL)
        return tell(*args)

    run.store.tell = kill_after_the_first  # type: ignore[method-assign]
    check(run.run(progress=False), undisturbed)
    assert len(killed) == 1


class Killer(nn.ReLU):
    """Ends the process that computes it for 16 channels."""

    def __init__(self, log: Path):
        super().__init__()
        self.log = str(log)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] == 16:
            with Path(self.log).open("a") as log:
                log.write("killed\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.relu(x)


@pytest.mark.parametrize("pool", ["dask", "processes"])
def test_a_network_that_kills_its_worker_is_failed_after_two_tries(
    blobs: Dataset, client: Any, pool: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(16, 8), Killer(tmp_path / "log"), nn.Linear(8, 5))
    results = search(
        {
            "search": {
                "search_space": {
                    "name": "transform/channel_multiplier", "setup": {"by": "name"},
                    "seed": {"default": {"config": {"channel_multiplier": [0.5, 1, 2, 4]}}},
                },
                "strategy": {
                    "sw_runner": {"basic_train": {"max_epochs": 1}},
                    "setup": {"sampler": "bruteforce", "n_jobs": 2},
                    "metrics": {"accuracy": {"direction": "maximize"}},
                },
            }
        },
        model=model, data=blobs, executor=client.get_executor() if pool == "dask" else 2,
        progress=False,
    )  # fmt: skip
    assert (tmp_path / "log").read_text() == "killed\n" * 2
    failed = results.trials[results.trials["failure"].notna()]
    assert failed["network"].tolist() == ["_0: 16"]
    assert failed["failure"].str.startswith("training it ended its worker 2 times").all()
    assert sorted(results.networks["network"]) == ["_0: 32", "_0: 4", "_0: 8"]


def test_a_driver_that_is_killed_continues(
    exhaustive: dict[str, Any], client: Any, tmp_path: Path
) -> None:
    exhaustive["dataset"] = "jsc"
    exhaustive["search"]["strategy"]["sw_runner"]["basic_train"]["num_samples"] = 20_000
    (tmp_path / "search.toml").write_text(tomli_w.dumps(exhaustive))
    folder = tmp_path / "out"
    address = client.scheduler.address
    command = [
        *(sys.executable, "-m", "labkit.cli", "search", str(tmp_path / "search.toml")),
        *("--out", str(folder), "--dask", address),
    ]
    with subprocess.Popen(command) as driver:
        until(lambda: (folder / "study.db").is_file() and len(open_study(folder).trials) >= 3)
        driver.kill()
    before = read_trials(open_study(folder))
    assert 3 <= len(before) < 16
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results = Results.from_study(open_study(folder))
    assert list(results.records[: len(before)]) == before
    assert results.trials["network"].nunique() == len(results.trials) == 16
    assert results.trials["failure"].isna().all()
    assert "distributed" not in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_may_come_later(
    exhaustive: dict[str, Any], blobs: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with make_cluster(0) as cluster, distributed.Client(cluster) as client:
        run = Search(exhaustive, data=blobs, executor=client.get_executor())
        thread = threading.Thread(target=run.run, kwargs={"progress": False})
        thread.start()
        until(lambda: "the cluster has no workers; the search waits for them" in caplog.text)
        cluster.scale(1)
        thread.join()
        assert len(run.results().networks) == 16


def test_a_lost_scheduler_ends_the_search_in_words_and_it_continues(
    exhaustive: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    with make_cluster(1) as cluster:
        run = Search(exhaustive, data=blobs, folder=tmp_path, executor=cluster.scheduler_address)
        tell = run.store.tell

        def told(*args: Any) -> Any:
            trial = tell(*args)
            if trial.number == 1:
                cluster.close()
            return trial

        run.store.tell = told  # type: ignore[method-assign]
        with pytest.raises(LabkitError, match=r"^executor: it cannot go on: "):
            run.run(progress=False)
    before = read_trials(open_study(tmp_path))
    assert len(before) >= 2
    assert (tmp_path / "log.json").is_file()
    results = search(exhaustive, data=blobs, folder=tmp_path, progress=False)
    assert list(results.records[: len(before)]) == before
    assert len(results.networks) == 16


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1"])
def test_an_address_where_no_scheduler_answers(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1)
    with pytest.raises(LabkitError, match=r"expected the address of a Dask scheduler, such as"):
        connect(address)
