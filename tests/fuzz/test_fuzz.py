"""Bad input ends in a sentence: the same 500 cases each time. `make fuzz` draws thousands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from labkit.errors import LabkitError
from tests.fuzz import judge as judging
from tests.fuzz.judge import BrokenError, judge
from tests.fuzz.kinds import KINDS, results

CASES = {
    "toml": 60, "tables": 50, "search": 20, "pass": 60, "plan": 50, "arrays": 60, "odd arrays": 40,
    "files": 50, "checkpoints": 30, "training": 30, "networks": 20, "folders": 20, "commands": 10,
    "calls": 60,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind: str, tmp_path: Path) -> None:
    results()  # made before any case, which may write to its own folder only
    numbers = iter(range(CASES[kind]))

    @settings(
        max_examples=CASES[kind], derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(KINDS[kind].cases)
    def run(case: Any) -> None:
        judge(lambda: KINDS[kind].run(case, Path.cwd()), tmp_path / str(next(numbers)))

    run()


def test_there_are_500_cases() -> None:
    assert sum(CASES.values()) >= 500
    assert CASES.keys() == KINDS.keys()


def outside() -> None:
    Path("../../../../outside").write_text("")


def through() -> None:
    Path("link").symlink_to("/dev/zero")
    Path("link").write_text("")


def long() -> None:
    error = LabkitError("")
    error.args = ("x" * 301,)
    raise error


def lines() -> None:
    error = LabkitError("")
    error.args = ("a\nb",)
    raise error


def unknown() -> None:
    raise KeyError("a")


def large() -> None:
    np.ones(100_000_000, np.uint8)


def never() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (outside, "wrote outside"), (through, "wrote outside"), (long, "long message"),
        (lines, "no line"), (unknown, "KeyError in test_fuzz.py"), (large, "memory"),
        (never, "hang"),
    ],
)  # fmt: skip
def test_the_judge_sees(
    run: Callable[[], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1 if run is never else 60)
    monkeypatch.setattr(judging, "MEMORY", 50_000_000)
    with pytest.raises(BrokenError, match=said):
        judge(run, tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_the_judge_lets_through(tmp_path: Path) -> None:
    def refuse() -> None:
        raise LabkitError("key: expected a number, got 'x'")

    assert judge(refuse, tmp_path) == "refused"

    def write() -> None:
        Path("../inside").write_text("")
        Path("link").symlink_to("/dev/zero")
        Path("link").unlink()
        Path("loop").symlink_to("loop")
        Path("inside").write_text("")
        Path("inside").replace("loop")

    assert judge(write, tmp_path / "other") == "accepted"
