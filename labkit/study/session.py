"""What every run of a search has around it: signals, the log, and a bar below it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from labkit import runtime
from labkit.study.progress import Progress

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
BAR = "{percentage:3.0f}%|{bar}| {desc}"


@contextlib.contextmanager
def session(stop: Callable[[], None], *, told: bool) -> Iterator[None]:
    """Lets signals stop a run.

    Args:
        stop: Asks the run to end; see `runtime.signals_stop`.
        told: Whether to show log lines: by whatever the user has set up, or else on the screen.
    """
    with (
        runtime.signals_stop(stop),
        runtime.kept_memory(),
        _above_the_bar() if told else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def bar(progress: Progress) -> Iterator[Callable[[], None]]:
    """Yields what shows how far a run is: as a bar; in a pipe or a file, as a line a minute."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    live, latest = sys.stderr.isatty() or in_notebook, time.monotonic()
    total, done, said = progress.total, progress.done, progress.said()
    with tqdm(total=total, initial=done, desc=said, bar_format=BAR, disable=not live) as shown:

        def show() -> None:
            nonlocal latest
            if live:
                shown.set_description_str(progress.said(), refresh=False)
                shown.update(progress.done - shown.n)
            elif time.monotonic() - latest >= LINE_SECONDS:
                latest = time.monotonic()
                log.info("%s", progress.said())

        yield show


@contextlib.contextmanager
def _above_the_bar() -> Iterator[None]:
    logger = logging.root if logging.root.handlers else logging.getLogger("labkit")
    with runtime.told(), logging_redirect_tqdm([logger]):
        yield
