"""A sample of the hunt: one kill at each kind of moment, a few at random times, other signals."""

import random
from pathlib import Path

import pytest

from tests.faults.hunt import Case, Hunt
from tests.faults.lab import Fault

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Hunt:
    return Hunt(tmp_path_factory.mktemp("alone") / "lab")


@pytest.mark.parametrize("command", ["search", "replicate"])
def test_a_kill_at_each_kind_of_moment_loses_nothing(alone: Hunt, command: str) -> None:
    cases = alone.sample(command, "SIGKILL", random.Random(0))
    labels = {case.label for case in cases}
    assert labels >= {"os.rename /.log.json.*.labkit", "open /.pareto.html.*.labkit"}
    if command == "search":
        assert labels >= {"os.remove /best/trial_N.safetensors", "open /.lock"}
        assert any("INSERT INTO trial_user_attributes" in label for label in labels)
    assert alone.wrong(cases) == []


def test_a_kill_at_any_time_loses_nothing(alone: Hunt, tmp_path: Path) -> None:
    rng = random.Random(0)
    stacked = Hunt(tmp_path / "stacked", n_jobs=3)
    for hunt in (alone, stacked):
        cases = hunt.at_random("search", "SIGKILL", 4, rng)
        assert hunt.wrong(cases + hunt.at_random("replicate", "SIGKILL", 2, rng)) == []


def test_a_kill_takes_the_workers_along_and_loses_nothing(tmp_path: Path) -> None:
    spread = Hunt(tmp_path / "spread", workers=2)
    half = spread.seconds["search"] / 2
    cases = [Case("search", Fault(how, seconds=half)) for how in ("SIGKILL", "SIGTERM")]
    assert spread.wrong(cases) == []


def test_without_space_for_a_file_nothing_is_lost(alone: Hunt) -> None:
    cases = alone.sample("search", "ENOSPC", random.Random(0))
    assert alone.wrong(case for case in cases if case.label.startswith("open")) == []


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_other_signals_end_a_run_with_its_files_written(alone: Hunt, how: str) -> None:
    rng = random.Random(how)
    for command in ("search", "replicate"):
        assert alone.wrong(rng.sample(alone.sample(command, how, rng), 3)) == []
