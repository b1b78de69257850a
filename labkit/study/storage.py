"""Optuna storages that may be broken: opened with care, and what is wrong said in a sentence.

A storage is named by a URL: SQLAlchemy's for a database, `grpc://host:port` for Optuna's proxy. A
database that another program made is refused before anything is written into it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import BaseModel
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url

from labkit.errors import LabkitError
from labkit.runtime import quiet_optuna

log = logging.getLogger(__name__)

DATABASE = "study.db"  # in a results folder
RETRY_SECONDS = 60.0  # a server that was restarted is back by then
CONNECT_SECONDS = 10.0
# What Optuna's own code answers to.
ANSWERS = (KeyError, DuplicatedStudyError, UpdateFinishedTrialError)
MADE = {"studies", "trials", "version_info", "alembic_version"}  # in every database of Optuna's
TABLES = MADE | set(BaseModel.metadata.tables)
# What a message of SQLite's, SQLAlchemy's or Optuna's says → what it means here.
MEANINGS = {
    "is locked": "another program has locked it; end that one, or try again",
    "readonly database": "it is read-only",
    "Permission denied": "it is read-only",
    "database or disk is full": "the disk is full; make room, and the same command continues",
    "not a database": "it is not an SQLite database",
    "malformed": "it is damaged",
    "no longer compatible": "another version of Optuna made it; see `optuna storage upgrade`",
    "Could not parse": "expected a URL, such as postgresql://user@host/name or grpc://host:port",
}


def open_storage(storage: str | Path | BaseStorage, *, create: bool = False) -> BaseStorage:
    """Returns an Optuna storage whose calls outlast a server's restart and fail in a sentence.

    Args:
        storage: Its URL, the path of an SQLite file, or one that Optuna opened.
        create: Whether to make a database that is not there.

    Raises:
        LabkitError: It cannot be opened, or another program made it.
    """
    where = named(storage)
    with faults_of(where):
        if isinstance(storage, BaseStorage):
            return Careful(storage, where)
        url = make_url(as_url(storage))
        if url.drivername == "grpc":
            return Careful(_proxy(url), where)
        return Careful(optuna.storages.get_storage(_database(url, create, where)), where)


def as_url(storage: str | Path, base: Path | None = None) -> str:
    """Returns a storage's URL; an SQLite file is absolute, from a base or the working directory.

    Raises:
        LabkitError: It is no URL.
    """
    if isinstance(storage, Path):
        url = URL.create("sqlite", database=str(storage))
    else:
        with faults_of(named(storage)):
            url = make_url(storage)
    if (file := _file(url)) is not None:
        url = url.set(database=os.path.realpath((base or Path()) / file))
    return url.render_as_string(hide_password=False)


def database_file(storage: str | Path | BaseStorage | None) -> Path | None:
    """Returns the file of an SQLite database; `None` where it is in memory, or a server's."""
    if isinstance(storage, str):
        return _file(make_url(storage))
    return storage if isinstance(storage, Path) else None


def _file(url: URL) -> Path | None:
    is_file = url.get_backend_name() == "sqlite" and "uri" not in url.query
    return Path(url.database) if is_file and url.database not in (None, "", ":memory:") else None


def without_password(url: str) -> str:
    """Returns a storage's URL as it may be shown and kept."""
    return re.sub(r"(?<=//)([^:/@]*):.*@", r"\1@", re.sub(r"(password=)[^&]*", r"\1***", url))


def named(storage: object) -> str:
    """Returns what a message calls a storage."""
    text = str(storage) if isinstance(storage, str | Path) else type(storage).__name__
    text = without_password(text).removeprefix("sqlite:///")
    return text if len(text) <= 120 else f"…{text[-119:]}"


@contextlib.contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Turns whatever a storage raises into one sentence."""
    try:
        yield
    except (LabkitError, *ANSWERS):
        raise
    except Exception as error:  # SQLAlchemy's, the driver's, gRPC's, and what damaged rows cause
        raise LabkitError(f"storage: {where!r}: {_reason(error)}") from error


def _cause(error: BaseException) -> BaseException:
    """Returns what went wrong at first: below Optuna's and SQLAlchemy's own errors."""
    while (inner := getattr(error, "orig", None) or error.__cause__) is not None and str(inner):
        error = inner
    return error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    text = str(getattr(cause, "strerror", None) or cause)
    text = cause.details() if hasattr(cause, "details") else text  # gRPC's
    text = next((meaning for said, meaning in MEANINGS.items() if said in text), text)
    return next(iter(without_password(text).splitlines()), type(cause).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether a fault may be gone a moment later: a lock, a server that starts again."""
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return "locked" in str(cause)
    status = getattr(cause, "code", None)
    if callable(status):
        return getattr(status(), "name", None) == "UNAVAILABLE"
    kinds = sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._carefully(getattr(self._inner, name), *args, **kwargs)

    return method


_METHODS = {name: _delegate(name) for name in dir(BaseStorage) if not name.startswith("_")}


class Careful(type("Delegating", (BaseStorage,), _METHODS)):  # type: ignore[misc]
    """A storage whose faults are waited for as long as they may pass, and then said in words."""

    def __init__(self, inner: BaseStorage, where: str):
        self._inner, self._where = inner, where
        self._patience = RETRY_SECONDS

    def _carefully(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started, told = time.monotonic(), False
        while True:
            try:
                with faults_of(self._where):
                    result = call(*args, **kwargs)
            except LabkitError as error:
                fault = error.__cause__
                if fault is None or not _may_pass(fault):
                    raise
                if time.monotonic() - started >= self._patience:
                    self._patience = 0.0  # whatever comes in the end fails at once
                    raise
                if not told:
                    log.warning("%s; trying again for %.0f s", error, self._patience)
                told = True
                time.sleep(0.5)
            else:
                self._patience = RETRY_SECONDS
                return result

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's; what was written though its answer was lost is not written twice."""
        again = False

        def create() -> int:
            nonlocal again
            if again and template_trial is not None:
                for trial in self._inner.get_all_trials(study_id, deepcopy=False):
                    if _is_same(trial, template_trial):
                        return trial._trial_id
            again = True
            return self._inner.create_new_trial(study_id, template_trial)

        return int(self._carefully(create))


def _is_same(a: FrozenTrial, b: FrozenTrial) -> bool:
    if a.datetime_start is None or b.datetime_start is None:  # it waits: another program's
        return False
    apart = abs(a.datetime_start - b.datetime_start).total_seconds()  # MySQL rounds to seconds
    return apart < 1 and all(
        getattr(a, key) == getattr(b, key) for key in ("state", "params", "user_attrs")
    )


def _proxy(url: URL) -> BaseStorage:
    """Returns Optuna's proxy at `grpc://host:port`."""
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        proxy = optuna.storages.GrpcStorageProxy(
            host=url.host or "localhost", port=url.port or 13000
        )
    proxy.wait_server_ready(CONNECT_SECONDS)
    return proxy


def _database(url: URL, create: bool, where: str) -> RDBStorage:
    """Returns a database that Optuna made; another program's is left as it is."""
    file = _file(url)
    if file is not None and not file.exists() and create:
        _make(file)
    if file is not None and not file.is_file():
        raise LabkitError(f"storage: there is no database {where!r}")
    tables = _tables(url, file)
    if not tables >= MADE:
        if foreign := tables - TABLES:
            what = f"a table {min(foreign)[:40]!r}"
            raise LabkitError(f"storage: {where!r} is another program's: it holds {what}")
        if file is not None or not create:
            raise LabkitError(f"storage: {where!r} is empty: no search was kept in it")
    text = url.render_as_string(hide_password=False)
    with quiet_optuna():
        for _ in range(0 if tables >= MADE else 5):
            try:
                return RDBStorage(text)
            except Exception as error:  # another driver makes the same tables
                log.info("storage: %r: %s", where, _reason(error))
                time.sleep(0.5)
        return RDBStorage(text, skip_table_creation=True)


def _tables(url: URL, file: Path | None) -> set[str]:
    if file is not None:
        # So that SQLite writes nothing, not even beside it. Its tables never change.
        read_only = {"mode": "ro", "immutable": "1", "uri": "true"}
        url = URL.create("sqlite", database=f"file:{quote(str(file))}", query=read_only)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    return set(sqlalchemy.inspect(engine).get_table_names())


def _make(file: Path) -> None:
    """Makes an SQLite file with Optuna's tables, whole or not at all: an empty one is no one's."""
    with quiet_optuna():
        connection = RDBStorage("sqlite://").engine.raw_connection()
    part = file.with_name(f".{file.name}.{os.getpid()}.labkit")
    try:
        part.write_bytes(connection.driver_connection.serialize())  # type: ignore[union-attr]
        try:
            os.link(part, file)
        except FileExistsError:  # another process made it a moment ago
            pass
        except OSError:  # a file system without links
            part.replace(file)
    finally:
        part.unlink(missing_ok=True)
