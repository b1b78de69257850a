"""All that labkit changes of the process it runs in. Whatever it changes, it gives back.

What a block asks for here holds while it runs, also where it ends in an error. Blocks may be nested
and may run in several threads at once; the end of the last one leaves the process as it was.
"""

import contextlib
import ctypes
import itertools
import logging
import operator
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

# By default a thread of OpenMP that waits for another holds its core for long, and where other
# programs run, training becomes up to a hundred times slower. OpenMP reads it when torch loads it.
_is_set = "GOMP_SPINCOUNT" in os.environ
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
try:
    import torch
finally:
    if not _is_set:
        del os.environ["GOMP_SPINCOUNT"]

from labkit.errors import in_words, shown  # noqa: E402

T = TypeVar("T")

TIMED_STEPS = 4  # with all threads, and with one
STEPS_A_CHOICE = 500


class Stopped(BaseException):
    """Ends a training from within `on_step`: not an error, and no `except Exception` holds it."""


class _Setting(Generic[T]):
    """A setting of the process that several blocks may ask for at once.

    The block that began last decides. The end of the last block gives back what was there before
    the first.

    Args:
        get, set_: Read and write the setting.
        own: Whether each thread has a value of its own, which only its own blocks decide.
    """

    def __init__(self, get: Callable[[], T], set_: Callable[[T], object], *, own: bool = False):
        self._get, self._set, self._own = get, set_, own
        self._lock = threading.Lock()
        self._asked: dict[object, tuple[int, T]] = {}  # block → its thread, what it asks for

    @contextlib.contextmanager
    def changed(self, change: Callable[[T], T]) -> Iterator[None]:
        """Asks for what `change` makes of the value that was there before all blocks."""
        block, thread = object(), threading.get_ident()
        with self._lock:
            if not self._asked:
                self._before = self._get()
            value = change(self._before)
            self._set(value)  # what it refuses was not asked for
            self._asked[block] = thread, value
        try:
            yield
        finally:
            with self._lock:
                del self._asked[block]
                others = [v for t, v in self._asked.values() if t == thread or not self._own]
                self._set(others[-1] if others else self._before)


# torch keeps a number for each thread, and the latest one for threads to come.
_torch_threads = _Setting(torch.get_num_threads, torch.set_num_threads, own=True)
_switch_interval = _Setting(sys.getswitchinterval, sys.setswitchinterval)


def threads(*, spare: int) -> contextlib.AbstractContextManager[None]:
    """Keeps torch, in this thread, to all but some of its threads, and at least one.

    Args:
        spare: How many are left to the rest of the process.
    """
    return _torch_threads.changed(lambda n: max(n - spare, 1))


def switch_interval(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Lets threads hand Python's lock over after this time; by default Python takes 0.005 s."""
    return _switch_interval.changed(lambda _: seconds)


class ThreadChoice:
    """Keeps torch to all its threads or to one, whichever is faster; see `faster_threads`."""

    def __init__(self, n_threads: int):
        self._n_threads = n_threads
        self._starts: list[float] = []  # of the steps since the last choice

    def before_step(self) -> None:
        """Is to be called before every step, by the thread that takes it."""
        if self._n_threads == 1:
            return
        self._starts.append(time.perf_counter())
        step = len(self._starts) - 1
        if step % STEPS_A_CHOICE == 0:
            del self._starts[:-1]
            torch.set_num_threads(self._n_threads)
        elif step == TIMED_STEPS:
            torch.set_num_threads(1)
        elif step == 2 * TIMED_STEPS:
            together, alone = self._seconds(0), self._seconds(TIMED_STEPS)
            torch.set_num_threads(self._n_threads if together <= alone else 1)

    def _seconds(self, first: int) -> float:
        """Returns how long a step takes, from the timed steps that begin with the first.

        It is slower itself, after a change, and one of them may have an epoch's end in it.
        """
        starts = self._starts[first + 1 : first + TIMED_STEPS + 1]
        return statistics.median(b - a for a, b in itertools.pairwise(starts))


_one_chooses = threading.Lock()


@contextlib.contextmanager
def faster_threads() -> Iterator[ThreadChoice]:
    """Lets torch use all its threads or one, whichever makes the steps of this block faster.

    Threads wait for each other a hundred times a step. That takes longer than they save where other
    programs use the cores, and where another thread of this process has used OpenMP too, as in a
    notebook: GNU's OpenMP then lets them sleep at once. So of every 500 steps the first few are
    timed both ways. Steps of two blocks would be timed against each other: one at a time chooses.

    Example:
        >>> with faster_threads() as threads:
        ...     for batch in batches:
        ...         threads.before_step()
    """
    n_threads = torch.get_num_threads()
    if not _one_chooses.acquire(blocking=False):
        yield ThreadChoice(1)
        return
    try:
        with _torch_threads.changed(lambda _: n_threads):
            yield ThreadChoice(n_threads)
    finally:
        _one_chooses.release()


def _keep_freed_memory(keep: bool) -> None:
    variables = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
    if sys.platform != "linux" or variables & os.environ.keys():
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        library.mallopt(m_mmap_threshold, 2**25)
        library.mallopt(m_trim_threshold, 2**28 if keep else 2**26)
        if not keep:
            library.malloc_trim(0)


_freed_memory = _Setting(lambda: False, _keep_freed_memory)


def kept_memory() -> contextlib.AbstractContextManager[None]:
    """Lets the process keep up to 256 MiB that a training step frees for the next one.

    By default glibc gives it back after every step, and the system clears it page by page when it
    is asked for again, which took up to a third of a stack's step. Tensors above 32 MiB are still
    given back. Other allocators, and what the environment sets of glibc's, are left alone.

    Afterwards what is free goes back to the system, and glibc is set to where it adjusts itself to
    in a program that frees large tensors: it asks the system for blocks above 32 MiB, and keeps up
    to 64 MiB. (Its 128 KiB at the start would leave a program slower than it was, since whoever
    sets a threshold ends the adjusting.)
    """
    return _freed_memory.changed(lambda _: True)


_generator = threading.RLock()  # PyTorch's own generator of random numbers is the process's


def _draw_from(seed: int) -> None:
    with in_words(f"seed: expected a whole number, got {shown(seed)}"):
        torch.manual_seed(seed)


def _forked() -> contextlib.AbstractContextManager[None]:
    # Of all devices it would warn, where there are several, and wake those that nobody uses.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from PyTorch's generator as from a seed, one thread at a time; it is left as it was."""
    with _generator, _forked():
        _draw_from(seed)
        yield


@contextlib.contextmanager
def seeded_training(seed: int) -> Iterator[None]:
    """The same for what takes long: other threads may draw meanwhile, but none within `seeded`."""
    with contextlib.ExitStack() as stack:
        with _generator:
            stack.enter_context(_forked())
            _draw_from(seed)
        try:
            yield
        finally:
            with _generator:
                stack.close()


_optuna = logging.getLogger("optuna")
_optuna_level = _Setting(lambda: _optuna.level, _optuna.setLevel)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna from announcing studies and trials: only its warnings are logged."""
    import optuna

    optuna.logging.get_verbosity()  # when first asked, it sets its level
    with _optuna_level.changed(lambda level: max(level, logging.WARNING)):
        yield


_labkit = logging.getLogger("labkit")
_labkit_level = _Setting(lambda: _labkit.level, _labkit.setLevel)


def told() -> contextlib.AbstractContextManager[None]:
    """Lets labkit log what it decides, too, and not just what goes wrong."""
    return _labkit_level.changed(lambda _: logging.INFO)


# Ctrl-C; a scheduler that ends a job; a terminal that is closed, where there are such.
_ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[dict[int, Any]]:
    """Handles the signals that end a process; yields the handlers from before.

    Python handles signals in the main thread only: in others this does nothing.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _ENDING}
    for number, own in [*before.items()]:
        # None is not Python's to handle. What `nohup` ignores stays ignored. So is Ctrl-C in a
        # background job of a shell, but what is sent to that is meant.
        if own is None or (own == signal.SIG_IGN and number != signal.SIGINT):
            del before[number]
        else:
            signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def signals_stop(stop: Callable[[], object]) -> Iterator[None]:
    """Lets Ctrl-C, SIGTERM and SIGHUP ask for an end, by calling `stop`, and interrupt nothing.

    A second one acts at once, for what does not come to an end. After the block SIGTERM and SIGHUP
    act as they would have before it.
    """
    came: list[int] = []

    def on_signal(number: int, _: object) -> None:
        came.append(number)
        for each, own in before.items():
            plain = each == signal.SIGINT and not callable(own)
            signal.signal(each, signal.default_int_handler if plain else own)
        stop()

    with _handled(on_signal) as before:
        yield
    if came and came[0] != signal.SIGINT:
        signal.raise_signal(came[0])


def signals_interrupt() -> contextlib.AbstractContextManager[object]:
    """Lets SIGTERM and SIGHUP raise a KeyboardInterrupt, as Ctrl-C does, with their number."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    return _handled(interrupt)


_path = _Setting(lambda: list(sys.path), lambda path: operator.setitem(sys.path, slice(None), path))


def importable_from(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Lets Python import modules from a folder too, and from there first.

    What they change of `sys.path` themselves ends with it.
    """
    return _path.changed(lambda path: [str(folder), *path])
