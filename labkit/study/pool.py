"""Executors over pools: any `concurrent.futures.Executor`, and processes of this machine."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import importlib.metadata
import itertools
import logging
import platform
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import psutil
import torch

from labkit.errors import LabkitError, in_words
from labkit.runtime import Stopped, importable_from
from labkit.study.executor import (
    POLL_SECONDS,
    Executor,
    LocalExecutor,
    OnEpoch,
    OnStep,
    Outcomes,
    Shares,
    Task,
    rarely,
)
from labkit.study.processes import ProcessPool, WorkerLostError
from labkit.study.record import Candidate, Failure, FailureKind, Outcome

log = logging.getLogger(__name__)

TRIES = 2  # of a candidate whose worker is lost
# A number is one of processes, a text the address of a Dask scheduler.
AnyExecutor = Executor | concurrent.futures.Executor | int | str
Answer = tuple[list[Outcome], str | None, float]

KEPT_TASKS = 2  # in a worker, of searches that take turns
START_SECONDS = 10  # of training, after which starting processes is worth it
VERSIONS = {"Python": platform.python_version()} | {
    name: importlib.metadata.version(name) for name in ("torch", "labkit")
}


@contextlib.contextmanager
def goes_on(*passed: type[Exception]) -> Iterator[None]:
    """Says in words where a pool does not; some errors pass as they are."""
    try:
        yield
    except Exception as error:  # each pool has its own kinds
        if isinstance(error, (LabkitError, *passed)):
            raise
        raise LabkitError(
            f"executor: it cannot go on: {type(error).__name__}: {error}; what is finished is "
            "kept, and the same search continues"
        ) from error


class PoolExecutor(Executor):
    """Trains over any `concurrent.futures.Executor`: threads, processes, or a cluster's.

    Each worker trains its shares as `LocalExecutor` does. Where that is one by one, each candidate
    becomes a share of its own. What a lost worker trained is trained again, each candidate alone,
    so that only a network that loses its worker twice fails.

    Args:
        pool: The executor; it stays open.
        workers: Shares to train at once; by default as many as the pool says it has workers, and
            one where it does not say.

    Attributes:
        losses: How the pool says that a worker was lost.
    """

    losses: tuple[type[Exception], ...] = (WorkerLostError,)
    stacks = True  # until a worker says otherwise
    _alone, _n_answers, _seconds = False, 0, 0.0  # what the last share of several came to

    def __init__(self, pool: concurrent.futures.Executor, workers: int | None = None):
        self.pool = pool
        self.workers = workers or getattr(pool, "_max_workers", None) or 1

    def run(
        self,
        task: Task,
        shares: Shares,
        *,
        on_epoch: OnEpoch | None = None,
        on_step: OnStep | None = None,
    ) -> Outcomes:
        """Yields an outcome for each candidate, a share at a time; see `Executor`."""
        name, package = uuid.uuid4().hex, b""
        left, again, more = iter(shares), deque[Sequence[Candidate]](), True
        running: dict[Future[Answer | None], Sequence[Candidate]] = {}
        losses: Counter[Candidate] = Counter()
        log.info("networks train elsewhere: their epochs count when they are finished")
        with self._delivered(name, task):
            try:
                while more or again or running:
                    while (more or again) and len(running) < self.workers:
                        share = again.popleft() if again else next(left, None)
                        if not share:
                            more = share is not None
                            break
                        running[self._submit(name, share)] = share
                    if on_step is not None:
                        on_step()
                    done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        share = running.pop(future)
                        outcomes = self._outcomes(future, share, losses)
                        if outcomes is None:
                            package = package or packed(task)
                            running[self._submit(name, share, package)] = share
                            continue
                        if on_epoch is not None and outcomes:
                            _tell(on_epoch, outcomes, self._seconds / self.workers)
                        yield from outcomes
                        ended = {outcome.candidate for outcome in outcomes}
                        again.extend([one] for one in share if one not in ended)
            except (LabkitError, Stopped):  # what has ended meanwhile is kept
                for future in running:
                    if future.done() and not (future.cancelled() or future.exception()):
                        yield from (future.result() or ([],))[0]
                raise
            finally:
                for future in running:
                    future.cancel()

    @contextlib.contextmanager
    def _delivered(self, name: str, task: Task) -> Iterator[None]:
        """Lets workers know a task by its name; those that do not are sent it with a share."""
        _tasks[name] = task, LocalExecutor()  # for threads of this process
        try:
            yield
        finally:
            del _tasks[name]

    @goes_on()
    def _submit(
        self, name: str, share: Sequence[Candidate], package: bytes = b""
    ) -> Future[Answer | None]:
        return self.pool.submit(train_share, name, share, VERSIONS, package)

    def _outcomes(
        self, future: Future[Answer | None], share: Sequence[Candidate], losses: Counter[Candidate]
    ) -> list[Outcome] | None:
        """Returns what became of a share, as far as it was trained; `None` if it lacks the task."""
        try:
            with goes_on(*self.losses):
                answer = future.result()
        except self.losses as lost:
            losses.update(share)
            message = f"training it ended its worker {TRIES} times; at last, {lost}"
            failure = Failure(kind=FailureKind.WORKER, message=message)
            return [Outcome(c, failure=failure) for c in share if losses[c] == TRIES]
        if answer is None:
            return None
        outcomes, why_alone, self._seconds = answer
        self._n_answers += 1
        if len(share) > 1:
            if why_alone and not self._alone:
                log.warning("networks train one by one: %s", why_alone)
            self._alone = bool(why_alone)
        # What else runs there may have slowed its stack down: another share tries it again.
        self.stacks = not self._alone or rarely(self._n_answers)
        return outcomes


class ProcessExecutor(PoolExecutor):
    """Trains in processes of this machine, which start and end with a run.

    Args:
        workers: How many; PyTorch's threads are divided among them.
        stacks: Whether networks may be expected to train together.
    """

    def __init__(self, workers: int, *, stacks: bool = True):
        self.workers, self.stacks = workers, stacks

    def run(self, task: Task, shares: Shares, **options: Any) -> Outcomes:
        """Yields an outcome for each candidate, a share at a time; see `Executor`."""
        with ProcessPool(self.workers) as self.pool:
            yield from super().run(task, shares, **options)


class AutoExecutor(LocalExecutor):
    """Trains in this process, and moves to one a core where that is faster.

    Where networks train one by one, processes of one thread each train more of them than one
    process with all threads. They take seconds to start, so that training has to take that long.
    """

    def run(self, task: Task, shares: Shares, **options: Any) -> Outcomes:
        """Yields an outcome for each candidate; see `Executor`."""
        shares, ends = iter(shares), time.monotonic() + START_SECONDS
        for share in shares:
            left = list(share)
            for outcome in self.train(task, share, **options):
                yield outcome
                left.remove(outcome.candidate)
                if self.stacks or task.data.x_train.is_cuda or time.monotonic() < ends:
                    continue
                each = psutil.Process().memory_info().rss  # which has trained here, too
                room = 1 + psutil.virtual_memory().available // each
                self.workers = min(torch.get_num_threads(), room)
                if self.workers > 1:
                    log.info("%d processes train from now on", self.workers)
                    others = ProcessExecutor(self.workers, stacks=False)
                    rest = itertools.chain(([one] for one in left), shares)
                    yield from others.run(task, rest, **options)
                    return


def _tell(on_epoch: OnEpoch, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Tells the epochs of a share that was trained elsewhere in so many seconds."""
    n_epochs = max(len(outcome.history) for outcome in outcomes)
    for epoch in range(n_epochs):
        trained = [outcome for outcome in outcomes if epoch < len(outcome.history)]
        on_epoch({one.candidate: one.history[epoch] for one in trained}, seconds / n_epochs)


# In a worker.

_tasks: dict[str, tuple[Task, LocalExecutor]] = {}  # those that this process has
packages: dict[str, bytes] = {}  # those that came another way than with a share


def packed(task: Task) -> bytes:
    """Returns a task as it is sent to other processes."""
    with in_words("model: it cannot be sent to another process"):
        return cloudpickle.dumps(task)


def train_share(
    name: str, share: Sequence[Candidate], versions: Mapping[str, str], package: bytes
) -> Answer | None:
    """Trains candidates in a worker.

    Args:
        name: Of the task, which is sent once to each process that trains.
        share: They train together; where that does not work, only the first one does.
        versions: Of what the search runs with, which must be the same here.
        package: The task, if it is sent.

    Returns:
        The outcomes, and why networks train one by one, if they do; `None` if the task is missing.

    Raises:
        LabkitError: Other versions are installed here, or the task cannot be loaded.
    """
    if name not in _tasks:
        if not (package := package or packages.get(name, b"")):
            return None
        _load(name, versions, package)
    task, local = _tasks[name]
    outcomes, start = list[Outcome](), time.monotonic()
    for outcome in local.train(task, share):
        outcomes.append(outcome)
        if not local.stacks:
            break
    return outcomes, local.why_alone, time.monotonic() - start


def _load(name: str, versions: Mapping[str, str], package: bytes) -> None:
    where = f"executor: a worker on {socket.gethostname()}"
    for what, version in versions.items():
        if version != (here := VERSIONS.get(what)):
            raise LabkitError(f"{where} has {what} {here}, and the search {version}")
    try:
        with importable_from(Path.cwd()):
            task = cloudpickle.loads(package)
    except Exception as error:  # such as a module of the user's that is not there
        raise LabkitError(
            f"{where} cannot load the network and the data: {type(error).__name__}: {error}"
        ) from error
    while len(_tasks) >= KEPT_TASKS:
        del _tasks[next(iter(_tasks))]
    _tasks[name] = task, LocalExecutor()


def _cluster() -> ModuleType:
    try:
        return importlib.import_module("labkit.study.cluster")
    except ModuleNotFoundError as error:
        raise LabkitError(
            f"executor: a Dask cluster needs {error.name}: pip install 'labkit[cluster]'"
        ) from error


def as_executor(executor: AnyExecutor | None, workers: int | None = None) -> Executor:
    """Returns what a search was given as an executor.

    Args:
        executor: Of any kind; by default what the configuration says.
        workers: What that says.

    Raises:
        LabkitError: It is none.
    """
    executor = workers if executor is None else executor
    match executor:
        case None:
            return AutoExecutor()
        case Executor():
            return executor
        case bool():
            pass
        case int() if executor > 0:
            return LocalExecutor() if executor == 1 else ProcessExecutor(executor)
        case str():
            return _cluster().connect(executor)
        case concurrent.futures.Executor() if type(executor).__module__.startswith("distributed"):
            return _cluster().DaskExecutor(executor)
        case concurrent.futures.Executor():
            return PoolExecutor(executor)
    raise LabkitError(
        "executor: expected a concurrent.futures.Executor, a number of processes or the address "
        f"of a Dask scheduler, got {executor!r:.100}"
    )
