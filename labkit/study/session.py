"""What every run of a search has around it: a lock, signals, and a progress bar below the log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from labkit import runtime
from labkit.errors import LabkitError


@contextlib.contextmanager
def session(
    folder: Path | None,
    stop: Callable[[], None],
    *,
    progress: bool,
    total: int,
    unit: str,
    done: int = 0,
) -> Iterator[tqdm]:
    """Yields a progress bar, while this process alone writes a folder and signals call `stop`.

    Args:
        folder: The results folder, if there is one.
        stop: Asks the run to end; see `runtime.signals_stop`.
        progress: Whether to show the bar.
        total: How many the bar counts to.
        unit: Of what.
        done: How many there are already.

    Raises:
        LabkitError: Another process is writing the folder.
    """
    with (
        _locked(folder),
        runtime.signals_stop(stop),
        runtime.kept_memory(),
        _above_the_bar() if progress else contextlib.nullcontext(),
        tqdm(total=total, initial=done, disable=not progress, unit=unit) as bar,
    ):
        yield bar


@contextlib.contextmanager
def _above_the_bar() -> Iterator[None]:
    """Shows log lines above a bar, by whatever the user has set up, or else on the screen."""
    logger = logging.root if logging.root.handlers else logging.getLogger("labkit")
    with runtime.told(), logging_redirect_tqdm([logger]):
        yield


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise LabkitError(f"out: another search is running in {str(folder)!r}") from error
