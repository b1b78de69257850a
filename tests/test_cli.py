"""The command, as a user's shell sees it."""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

from labkit.cli import main


@pytest.fixture
def config(tables: dict[str, Any], tmp_path: Path) -> Path:
    """A configuration file with a small data set beside it."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 400)
    np.savez(tmp_path / "blobs.npz", x=rng.normal(size=(400, 16)) + y[:, None], label=y)
    tables["dataset"] = str(tmp_path / "blobs.npz")
    path = tmp_path / "toy.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def test_search_prints_the_reports_table(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--trials", "3", "--epochs", "2", "--seed", "7", "--out", str(out)]
    assert main(["search", str(config), *options]) == 0
    printed = capsys.readouterr().out
    assert "3 trials by tpe, seed 7" in printed
    assert "| software_metrics" in printed
    assert (out / "best.md").read_text() in printed
    used = tomllib.loads((out / "config.toml").read_text())
    assert used["seed"] == 7
    assert used["search"]["strategy"]["setup"]["n_trials"] == 3
    assert used["search"]["strategy"]["sw_runner"]["basic_train"]["max_epochs"] == 2
    assert len(pd.read_csv(out / "trials.csv")) == 3


def test_replicate_adds_seeds_to_the_front(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["search", str(config), "--trials", "3", "--out", str(out)]) == 0
    assert "±" not in capsys.readouterr().out
    assert main(["replicate", str(out), "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "±" in printed
    assert "ties" in printed
    assert printed == (out / "best.md").read_text()


def test_the_folder_is_named_after_the_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", str(config), "--trials", "1"]) == 0
    assert (tmp_path / "results" / "toy" / "study.db").exists()


def test_a_storage_of_ones_own(config: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    out = tmp_path / "out"
    assert main(["search", str(config), "--trials", "1", "--out", str(out), "--storage", url]) == 0
    assert main(["replicate", str(out), "--seeds", "2", "--storage", url]) == 0
    table = (out / "best.md").read_text()
    assert "±" in table
    assert main(["replicate", str(out), "--seeds", "2"]) == 0  # the folder remembers it
    assert (out / "best.md").read_text() == table
    (tmp_path / "all.db").unlink()
    assert main(["replicate", str(out)]) == 2
    assert main(["search", str(config), "--out", str(out), "--storage", url]) == 2
    assert (out / "best.md").read_text() == table
    assert not (out / "study.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "none.toml"], "none.toml"),
        (
            ["search", "{config}", "--trials", "0"],
            "argument --trials: expected a whole number from 1 on, got '0'",
        ),
        (["search", "{config}", "--epochs", "-1"], "argument --epochs: expected"),
        (["replicate", "nowhere", "--seeds", "-1"], "--seeds: expected a whole number from 1 on"),
        (["search", "{config}", "--trials", "9" * 5_000], "argument --trials: expected"),
        (["search", "{config}", "--nonsense"], "unrecognized arguments: --nonsense (see labkit"),
        ([], "arguments are required: COMMAND (see labkit --help)"),
        (["search", "{config}", "--storage", "nonsense"], "storage: 'nonsense': expected a URL"),
        (["dashboard", "nowhere"], "'nowhere' holds no study.db"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(config.parent)
    assert main([argument.format(config=config) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("labkit: ")
    assert message in error
    assert error.count("\n") == 1


def test_exit_1_where_no_trial_finished(config: Path, tables: dict[str, Any]) -> None:
    tables["dataset"] = str(config.parent / "blobs.npz")
    train = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    train |= {"optimizer": "sgd", "learning_rate": 1e30, "lr_scheduler": "constant"}
    config.write_text(tomli_w.dumps(tables))
    assert main(["search", str(config), "--trials", "2", "--out", str(config.parent / "out")]) == 1


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_continues(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "labkit.cli", "search", str(config), "--out", str(out)]
    command += ["--trials", "400"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("best/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Interrupted; the same command continues." in stdout
    assert "Traceback" not in stderr
    states = pd.read_csv(out / "trials.csv")["state"]
    n_finished = int((states == "COMPLETE").sum())
    assert 0 < n_finished < 400

    command[-1] = str(n_finished + 2)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| software_metrics" in again.stdout
    states = pd.read_csv(out / "trials.csv")["state"]
    assert (states == "COMPLETE").sum() == n_finished + 2


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """A served dashboard, and the link that it prints."""
    command = [sys.executable, "-m", "labkit.cli", "dashboard", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0


def test_the_dashboard_shows_the_study_on_loopback(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["search", str(config), "--trials", "2", "--out", str(out)]) == 0
    with dashboard(out) as link:
        assert link.startswith("http://127.0.0.1:")
        for _ in range(3000):
            try:
                with urllib.request.urlopen(link.replace("dashboard", "api/studies")) as answer:
                    assert b"jsc-toy" in answer.read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("the dashboard does not answer")


def test_a_taken_port_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["search", str(config), "--trials", "1", "--out", str(out)]) == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["dashboard", str(out), "--port", port]) == 2
    assert f"port: {port} cannot be used" in capsys.readouterr().err
    assert main(["dashboard", str(out), "--port", "99999"]) == 2
