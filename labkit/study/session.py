"""What every run of a search has around it: signals, and a progress bar below the log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from labkit import runtime


@contextlib.contextmanager
def session(
    stop: Callable[[], None], *, progress: bool, total: int, unit: str, done: int = 0
) -> Iterator[tqdm]:
    """Yields a progress bar, while signals call `stop`.

    Args:
        stop: Asks the run to end; see `runtime.signals_stop`.
        progress: Whether to show the bar.
        total: How many the bar counts to.
        unit: Of what.
        done: How many there are already.
    """
    with (
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
