"""Who drives a study: one search at a time, unless several share it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import filelock

from labkit.errors import LabkitError
from labkit.study.storage import DATABASE

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def this_driver() -> str:
    """Returns what others are told of this process."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M}"


@contextlib.contextmanager
def locked(databases: Iterable[Path]) -> Iterator[None]:
    """Lets this process alone drive the studies in SQLite files, and write the folders around them.

    The system ends the lock together with the process.

    Raises:
        LabkitError: Another process is at it, or the folder is read-only.
    """
    with contextlib.ExitStack() as stack:
        for database in {database.resolve() for database in databases}:
            folder = str(database.parent)
            own = database.name == DATABASE  # of the folder
            file = database.with_name(".lock" if own else f".{database.name}.lock")
            try:
                stack.enter_context(filelock.FileLock(file, timeout=0))
                file.write_text(this_driver())
            except filelock.Timeout as error:
                who = file.read_text(errors="replace")[:120] or "a process that just began"
                raise LabkitError(f"out: another search is running in {folder!r}: {who}") from error
            except OSError as error:
                reason = "it is read-only" if error.errno in READ_ONLY else error.strerror
                raise LabkitError(f"out: cannot write in {folder!r}: {reason}") from error
        yield
