"""What labkit changes of the process, and that the process is afterwards as it was before."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

from labkit import runtime


@pytest.fixture
def _three_threads() -> Iterator[None]:
    """A process with three threads, and an Optuna that other tests have not made quiet."""
    before, level = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(3)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    yield
    torch.set_num_threads(before)
    optuna.logging.set_verbosity(level)


def python(code: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=env,
    )  # fmt: skip


def output(code: str, env: dict[str, str]) -> str:
    process = python(code, env)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err


# Each way to change the process → what can be read of it.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "threads": (lambda: runtime.threads(spare=1), torch.get_num_threads),
    "switch_interval": (lambda: runtime.switch_interval(0.0005), sys.getswitchinterval),
    "quiet_optuna": (runtime.quiet_optuna, optuna.logging.get_verbosity),
    "importable_from": (lambda: runtime.importable_from("/nowhere"), lambda: list(sys.path)),
    "signals_stop": (
        lambda: runtime.signals_stop(lambda: None), lambda: signal.getsignal(signal.SIGINT)
    ),
}  # fmt: skip


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("name", CHANGES)
def test_the_process_is_afterwards_as_before(name: str) -> None:
    change, read = CHANGES[name]
    before = read()
    with change():
        once = read()
        assert once != before
        with contextlib.suppress(ZeroDivisionError), change():
            assert read() != before
            raise ZeroDivisionError
        assert read() == once
    assert read() == before
    with pytest.raises(runtime.Stopped), change():
        raise runtime.Stopped
    assert read() == before


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("name", ["threads", "switch_interval", "quiet_optuna", "importable_from"])
def test_blocks_in_several_threads_leave_the_process_as_it_was(name: str) -> None:
    """Block 0 opens, 1 opens, 0 ends, 2 opens, 1 ends, 2 ends."""
    change, read = CHANGES[name]
    before, inside, after = read(), [], []
    opened, close = ([threading.Event() for _ in range(3)] for _ in range(2))

    def work(index: int) -> None:
        with change():
            inside.append(read())
            opened[index].set()
            close[index].wait(300)
        after.append(read())

    workers = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for start, end in ((0, None), (1, 0), (2, 1), (None, 2)):
        if start is not None:
            workers[start].start()
            opened[start].wait(300)
        if end is not None:
            close[end].set()
            workers[end].join(300)
    if name != "importable_from":
        assert inside == [inside[0]] * 3  # no block takes more because another has taken some
    assert after[-1] == before == read()
    with ThreadPoolExecutor(1) as pool:  # nor does a thread to come
        assert pool.submit(read).result() == before


def test_the_block_that_began_last_decides() -> None:
    before = sys.getswitchinterval()
    first, second = runtime.switch_interval(0.25), runtime.switch_interval(0.125)
    with contextlib.ExitStack() as stack:
        stack.enter_context(first)
        with second:
            assert sys.getswitchinterval() == 0.125
        assert sys.getswitchinterval() == 0.25
        with pytest.raises(ValueError, match="positive"), runtime.switch_interval(-1):
            pass
        assert sys.getswitchinterval() == 0.25
    assert sys.getswitchinterval() == before


@pytest.mark.usefixtures("_three_threads")
def test_threads_are_spared_of_those_that_torch_had() -> None:
    for spare, left in ((0, 3), (1, 2), (2, 1), (9, 1)):
        with runtime.threads(spare=spare):
            assert torch.get_num_threads() == left
    with runtime.threads(spare=1), runtime.threads(spare=1):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize(("together", "settled"), [(0.5, 3), (1.0, 3), (2.0, 1)])
def test_threads_settle_on_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, together: float, settled: int
) -> None:
    now, used = 0.0, []
    monkeypatch.setattr(runtime, "time", SimpleNamespace(perf_counter=lambda: now))
    with runtime.faster_threads() as threads:
        for step in range(1000):
            threads.before_step()
            used.append(torch.get_num_threads())
            now += together if used[-1] == 3 else 1.0
            now += 10 * (step % 5 == 2)  # the end of an epoch
            now += 100 * (step % 4 == 0)  # the first step after a change
        with runtime.faster_threads() as others:  # one block at a time chooses
            for _ in range(10):
                others.before_step()
                assert torch.get_num_threads() == used[-1]
        assert torch.get_num_threads() == used[-1]
    assert used == 2 * ([3] * 4 + [1] * 4 + [settled] * 492)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
def test_a_choice_of_threads_is_given_back() -> None:
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), runtime.threads(spare=1):
            with contextlib.suppress(ZeroDivisionError), runtime.faster_threads() as threads:
                for _ in range(6):
                    threads.before_step()
                assert torch.get_num_threads() == 1
                raise ZeroDivisionError
            assert torch.get_num_threads() == 2
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 3


def test_torch_is_loaded_with_threads_that_sleep() -> None:
    show = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    show.pop("GOMP_SPINCOUNT", None)
    code = "import os, labkit.runtime; print(os.environ.get('GOMP_SPINCOUNT'))"
    told = output(code, show)
    assert told.startswith("None\n")
    if "GOMP_SPINCOUNT" in told:  # GNU's OpenMP
        assert "GOMP_SPINCOUNT = '10000'" in told
        assert "GOMP_SPINCOUNT = '77'" in output(code, show | {"GOMP_SPINCOUNT": "77"})
    assert output(code, show | {"GOMP_SPINCOUNT": "77"}).startswith("77\n")


@pytest.mark.parametrize("variable", [None, "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    calls: list[tuple[int, ...]] = []
    library = SimpleNamespace(
        mallopt=lambda *args: calls.append(args), malloc_trim=lambda *args: calls.append(args)
    )
    monkeypatch.setattr(runtime, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(runtime, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    environment = {variable: "1"} if variable else {}
    monkeypatch.setattr(runtime, "os", SimpleNamespace(environ=environment))
    kept, given_back = [(-3, 2**25), (-1, 2**28)], [(-3, 2**25), (-1, 2**26), (0,)]
    with contextlib.suppress(ZeroDivisionError), runtime.kept_memory():
        assert calls == ([] if variable else kept)
        with runtime.kept_memory():
            pass
        assert calls == ([] if variable else 3 * kept)
        raise ZeroDivisionError
    assert calls == ([] if variable else 3 * kept + given_back)
    calls.clear()
    monkeypatch.setattr(runtime, "sys", SimpleNamespace(platform="darwin"))
    with runtime.kept_memory():
        pass
    monkeypatch.setattr(runtime, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(runtime, "ctypes", SimpleNamespace(CDLL=lambda _: SimpleNamespace()))
    with runtime.kept_memory():  # of another C library
        pass
    assert not calls


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_kept_memory_is_given_back() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    told = output(
        """
import ctypes, psutil, torch
from labkit.runtime import kept_memory
megabytes = lambda: psutil.Process().memory_info().rss / 2**20
def free_some():
    rows = [torch.ones(2**18) for _ in range(200)]  # of 1 MiB each
    rows.clear()
torch.ones(2**18).sum()  # what torch sets up
before = megabytes()
with kept_memory():
    with kept_memory():
        free_some()
    inside = megabytes()
print(hasattr(ctypes.CDLL(None), "mallopt"), inside - before, megabytes() - before)
""",
        environment,
    )
    glibc, inside, after = told.split()
    if glibc == "True":
        assert float(inside) > 150
        assert float(after) < 50


def test_optuna_is_quiet_but_for_its_warnings(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with caplog.at_level(logging.INFO):
        with runtime.quiet_optuna():
            optuna.create_study()
            logging.getLogger("optuna.study").warning("beware")
        assert {record.message for record in caplog.records} == {"beware"}
        optuna.create_study()
        assert "new study" in caplog.records[-1].message
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with runtime.quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    optuna.logging.set_verbosity(before)
    optuna.logging.disable_propagation()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Windows are others")
@pytest.mark.parametrize("handler", ["default_int_handler", "SIG_IGN", "SIG_DFL"])
def test_ctrl_c_asks_and_a_second_one_interrupts(handler: str) -> None:
    process = python(
        f"before = __import__('signal').{handler}"  # SIG_IGN: as in the background of a script
        """
import signal, time
from labkit.runtime import signals_stop
signal.signal(signal.SIGINT, before)
try:
    with signals_stop(lambda: print("asked", flush=True)):
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is before, flush=True)
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300)[0] == "interrupted True\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Windows are others")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN", "lambda n, _: print('own', n)"])
def test_other_signals_ask_and_then_act_as_before(name: str, handler: str) -> None:
    number = getattr(signal, name)
    process = python(
        f"import signal; name = signal.{name}; before = {handler.replace('SIG_', 'signal.SIG_')}"
        """
import time
from labkit.runtime import signals_stop
signal.signal(name, before)
asked = []
with signals_stop(lambda: asked.append("asked")):
    print("ready", flush=True)
    while not asked and input() == "wait":
        time.sleep(0.01)
    print(*asked, "files written", flush=True)
print("went on", signal.getsignal(name) == before, flush=True)
"""
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate("wait\n" * 10 + "end\n", timeout=300)
    if handler == "SIG_IGN":  # as by nohup
        assert (said, process.returncode) == ("files written\nwent on True\n", 0)
    elif handler == "SIG_DFL":
        assert (said, process.returncode) == ("asked files written\n", -number)
    else:
        own = f"asked files written\nown {number}\nwent on True\n"
        assert (said, process.returncode) == (own, 0)


def test_a_program_is_interrupted_by_other_signals_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as interrupt, runtime.signals_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.value.args == (signal.SIGTERM,)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Windows are others")
def test_processes_of_the_tests_are_interrupted_wherever_the_tests_run() -> None:
    """In the background of a script, which ignores Ctrl-C, too."""
    process = python(
        """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import tests.conftest
code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", code], check=True)
"""
    )
    assert process.communicate(timeout=300)[0] == "True\n"


def test_a_handler_of_the_users_own_gets_the_second_ctrl_c() -> None:
    heard: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("own"))
    try:
        with runtime.signals_stop(lambda: heard.append("stop")):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["stop", "own"]


def test_other_threads_leave_ctrl_c_alone() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> Any:
        with runtime.signals_stop(lambda: None):
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is before


def test_stopped_is_no_exception_that_a_runner_would_catch() -> None:
    assert issubclass(runtime.Stopped, BaseException)
    assert not issubclass(runtime.Stopped, Exception)


def test_modules_are_imported_from_a_folder(tmp_path: Path) -> None:
    name = f"module_{time.time_ns()}"
    (tmp_path / f"{name}.py").write_text("import sys\nsys.path[:] = sys.path[1:]\n")
    before = list(sys.path)
    with runtime.importable_from(tmp_path):
        assert sys.path == [str(tmp_path), *before]
        __import__(name)  # it takes the folder out itself
    assert sys.path == before
    with pytest.raises(ModuleNotFoundError):
        __import__(f"{name}_other")
