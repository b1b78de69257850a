"""Training on a Dask cluster. Only this module imports `distributed`, which is an extra."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import distributed
from distributed.cfexecutor import ClientExecutor
from distributed.comm import get_address_host_port

from labkit.errors import in_words
from labkit.study.executor import Task
from labkit.study.pool import (
    VERSIONS,
    Answer,
    PoolExecutor,
    goes_on,
    packages,
    packed,
    train_share,
)
from labkit.study.processes import WorkerLostError
from labkit.study.record import Candidate

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10


class DaskExecutor(PoolExecutor):
    """Trains on the workers of a Dask cluster, a share each; those that join later get some, too.

    Args:
        pool: What `Client.get_executor` returns.
    """

    losses = (WorkerLostError, distributed.KilledWorker)

    def __init__(self, pool: ClientExecutor):
        self.pool, self._client = pool, pool._client
        self.stacks = True
        self._has_workers = True

    @property
    @goes_on()
    def workers(self) -> int:  # type: ignore[override]
        """How many workers there are now; 1 where there are none yet."""
        n = len(self._client.nthreads())
        if not n and self._has_workers:
            log.warning("the cluster has no workers; the search waits for them")
        self._has_workers = n > 0
        return max(n, 1)

    @contextlib.contextmanager
    def _delivered(self, name: str, task: Task) -> Iterator[None]:
        plugin = _Delivery(name, packed(task))
        with super()._delivered(name, task), goes_on():
            self._client.register_plugin(plugin)
            try:
                yield
            finally:
                if self._client.status == "running":
                    self._client.unregister_worker_plugin(name)

    @goes_on()
    def _submit(
        self, name: str, share: Sequence[Candidate], package: bytes = b""
    ) -> Future[Answer | None]:
        return self.pool.submit(_train_once, uuid.uuid4().hex, name, share, VERSIONS, package)


class _Delivery(distributed.WorkerPlugin):
    """Brings a task to each worker, also to those that join later, and takes it away at the end."""

    def __init__(self, name: str, package: bytes):
        self.name, self._package = name, package

    def setup(self, worker: distributed.Worker) -> None:
        packages[self.name] = self._package

    def teardown(self, worker: distributed.Worker) -> None:
        packages.pop(self.name, None)


def _train_once(mark: str, *args: Any) -> Answer | None:
    """Trains a share, unless a worker has begun it before: Dask starts it again where one is lost.

    Raises:
        WorkerLostError: That is so.
    """
    begun = distributed.Event(mark)
    if begun.is_set():
        raise WorkerLostError("Dask lost it")
    begun.set()
    try:
        return train_share(*args)
    finally:
        begun.clear()


def connect(address: str) -> DaskExecutor:
    """Returns an executor on the cluster of a scheduler.

    Raises:
        LabkitError: None answers there.
    """
    with in_words(
        "executor: expected the address of a Dask scheduler, such as tcp://127.0.0.1:8786; "
        f"none answers at {address!r}"
    ):
        get_address_host_port(address, strict=True)  # a client that it stops is noisy
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    return DaskExecutor(client.get_executor())
