"""The pool of processes: one that dies is replaced, and none outlives its driver."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from labkit.study.processes import ProcessPool, WorkerLostError


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(1) as pool:
        yield pool


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_calls_run_elsewhere_and_errors_come_back(pool: ProcessPool) -> None:
    pid = pool.submit(os.getpid).result()
    assert pid != os.getpid()
    assert pool.submit(print, "this is no answer").result() is None
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    pool.submit(os.kill, pid, signal.SIGINT).result()  # which it does not answer to
    assert pool.submit(os.getpid).result() == pid
    assert os.getpgid(pid) != os.getpgid(0)  # nor is a terminal's sent to it


def test_one_that_dies_is_replaced(pool: ProcessPool) -> None:
    before = pool.submit(os.getpid).result()
    with pytest.raises(WorkerLostError, match="its process ended with exit code 7"):
        pool.submit(os._exit, 7).result()
    with pytest.raises(WorkerLostError, match="its process was killed by signal 6"):
        pool.submit(os.abort).result()
    assert pool.submit(os.getpid).result() != before


def test_they_end_with_the_pool_whatever_they_do() -> None:
    with ProcessPool(1) as pool:
        pid = pool.submit(os.getpid).result()
        busy = pool.submit(time.sleep, 1000)
        queued = pool.submit(time.sleep, 1000)
        while not busy.running():
            time.sleep(0.01)
    assert queued.cancelled()
    assert isinstance(busy.exception(), WorkerLostError)
    wait_for(pid)
    with pytest.raises(RuntimeError):
        pool.submit(os.getpid)


DRIVER = """
import os, time
from labkit.study.processes import ProcessPool
pool = ProcessPool(1)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 1000).result()
"""


def test_they_end_with_a_driver_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        assert not ended(pid)
        driver.kill()
    wait_for(pid)


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    with ProcessPool(3) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "2"
