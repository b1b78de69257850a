"""What is around a run: the bar, the log above it, Ctrl-C."""

import logging
import signal
import sys

import pytest

from labkit.study.progress import Progress
from labkit.study.session import bar, session
from labkit.transform import Plan


def test_a_terminal_has_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(3, epochs=4, best=0.5)
    with bar(progress) as show:
        progress.on_trial(Plan((("a", 1),)), 2)
        show()
    said = capsys.readouterr().err
    assert "0%" in said
    assert "4 of 12 epochs of networks, best accuracy 0.500" in said


def test_a_pipe_has_a_line_a_minute_and_no_bar(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "labkit")
    progress = Progress(3)
    for seconds, n_lines in ((1e9, 0), (0, 1)):
        monkeypatch.setattr("labkit.study.session.LINE_SECONDS", seconds)
        with bar(progress) as show:
            show()
        assert len(caplog.messages) == n_lines
    assert caplog.messages[0] == "0 of 3 networks"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("told", [True, False])
def test_handlers_of_the_log_come_back(told: bool) -> None:
    loggers = logging.root, logging.getLogger("labkit")
    before = [list(logger.handlers) for logger in loggers]
    with session(lambda: None, told=told):
        changed = [list(logger.handlers) != own for logger, own in zip(loggers, before)]
    # Under pytest the root has handlers: the user's own, which then write above the bar.
    assert changed == [told, False]
    assert [list(logger.handlers) for logger in loggers] == before


def test_without_a_log_of_the_users_own_messages_go_to_labkits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with session(lambda: None, told=True):
        assert logging.getLogger("labkit").handlers
        assert logging.root.handlers == []
    assert not logging.getLogger("labkit").handlers


def test_ctrl_c_asks_to_stop() -> None:
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with session(lambda: asked.append(1), told=False):
        signal.raise_signal(signal.SIGINT)
        assert asked == [1]
    assert signal.getsignal(signal.SIGINT) is before
