"""A pool of processes of this machine, each handled by a thread, which replaces one that dies.

`concurrent.futures.ProcessPoolExecutor` would not do: one process that dies ends the whole pool.
Its processes live on where the one that made them is killed, import the user's script again,
and answer to Ctrl-C.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class WorkerLostError(Exception):
    """What ran a call ended before it returned."""


class ProcessPool(concurrent.futures.ThreadPoolExecutor):
    """Calls functions in processes, which start when they are needed and end with the pool.

    The threads of PyTorch are divided among them.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int):
        super().__init__(workers)
        self._open = threading.Lock()
        self._closed = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []
        threads = max(torch.get_num_threads() // workers, 1)
        self._environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }

    def submit(  # type: ignore[override]
        self, function: Callable[..., Any], /, *args: Any
    ) -> concurrent.futures.Future[Any]:
        """Returns a future of what a function, which a process can import, returns there.

        It raises `WorkerLostError` where the process ended.
        """
        return super().submit(self._call, function, args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends all processes, whatever they do."""
        with self._open:
            self._closed = True
        for process in self._processes:
            process.kill()
        super().shutdown(wait, cancel_futures=True)
        for process in self._processes:
            process.wait()  # or else its entry stays in the system's table

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        process = self._idle.pop() if self._idle else self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, args), process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as ended:
            process.kill()  # where only its pipes are closed
            process.communicate()
            code = process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise WorkerLostError(f"its process {how}") from ended
        self._idle.append(process)
        if error is not None:
            raise error
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        code = f"from {__name__} import serve; serve()"
        with self._open:
            if self._closed:
                raise WorkerLostError("the pool was closed")
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=self._environment, process_group=0,  # a terminal's Ctrl-C is not for it
            )  # fmt: skip
            self._processes.append(process)
        return process


def serve() -> None:
    """Runs the calls that come over standard input, until whoever sends them has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    logging.getLogger("labkit").addHandler(logging.NullHandler())  # the search says it
    calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=[calls], daemon=True).start()
    while True:
        function, args = calls.get()
        try:
            answer: tuple[Any, Exception | None] = function(*args), None
        except Exception as error:  # the other end raises it
            answer = None, error
        with contextlib.suppress(BrokenPipeError):  # of a driver that was killed: see _receive
            pickle.dump(answer, answers)
            answers.flush()


def _receive(calls: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    finally:  # also in the middle of a training: nobody is there to take it
        os._exit(0)
