"""What is around a run: the bar, the log above it, Ctrl-C."""

import logging
import signal
from typing import Any

import pytest

from labkit.study.session import session


def test_a_bar_counts_from_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    options: Any = {"total": 8, "unit": "trial", "done": 5}
    with session(lambda: None, progress=True, **options) as bar:
        bar.update()
        assert (bar.n, bar.total, bar.unit, bar.disable) == (6, 8, "trial", False)
    assert "6/8" in capsys.readouterr().err
    with session(lambda: None, progress=False, total=8, unit="trial") as bar:
        assert (bar.disable, bar.n) == (True, 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [True, False])
def test_handlers_of_the_log_come_back(progress: bool) -> None:
    loggers = logging.root, logging.getLogger("labkit")
    before = [list(logger.handlers) for logger in loggers]
    with session(lambda: None, progress=progress, total=1, unit="trial"):
        changed = [list(logger.handlers) != own for logger, own in zip(loggers, before)]
    # Under pytest the root has handlers: the user's own, which then write above the bar.
    assert changed == [progress, False]
    assert [list(logger.handlers) for logger in loggers] == before


def test_without_a_log_of_the_users_own_messages_go_to_labkits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with session(lambda: None, progress=True, total=1, unit="trial"):
        assert logging.getLogger("labkit").handlers
        assert logging.root.handlers == []
    assert not logging.getLogger("labkit").handlers


def test_ctrl_c_asks_to_stop() -> None:
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with session(lambda: asked.append(1), progress=False, total=1, unit="trial"):
        signal.raise_signal(signal.SIGINT)
        assert asked == [1]
    assert signal.getsignal(signal.SIGINT) is before
