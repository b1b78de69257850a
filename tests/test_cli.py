"""The command, as a user's shell sees it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import tomli_w

from labkit import Results, Search, apply, get_model, load_config, total_cost
from labkit.cli import main
from labkit.data.loading import DATA
from labkit.study.record import Sampler
from labkit.study.toml_files import CONFIGS
from labkit.transform import Plan
from labkit.transform.models import MODELS
from tests.conftest import ROOT


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


def test_a_search_that_is_stopped_before_a_trial_names_no_files(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Search.run

    def stopped(self: Search) -> Results:
        self.stop()
        return run(self, progress=False)

    monkeypatch.setattr(Search, "run", stopped)
    assert main(["search", str(config), "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out" / "best.md").exists()
    assert "best.md" not in capsys.readouterr().out


def test_a_key_of_a_table_is_not_taken_for_a_flag(
    tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables["search"]["search_space"]["seed"] = [1]
    (tmp_path / "a.toml").write_text(tomli_w.dumps(tables))
    options = ["--seed", "1", "--out", str(tmp_path / "out")]
    assert main(["search", str(tmp_path / "a.toml"), *options]) == 2
    assert "labkit: search.search_space.seed: expected" in capsys.readouterr().err


def test_search_prints_the_front_and_writes_the_reports_table(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--trials", "3", "--epochs", "2", "--seed", "7", "--out", str(out)]
    assert main(["search", str(config), *options]) == 0
    printed = capsys.readouterr().out
    assert "3 trials by tpe, seed 7" in printed
    assert not {"|", "{", "\x1b"} & set(printed)  # plain in a pipe
    assert "software_metrics" in (out / "best.md").read_text()
    trials = pd.read_csv(out / "trials.csv", index_col="number")
    rows = re.findall(r"^ *(\d+) +([\d.]+) +([\d,]+)", printed, re.MULTILINE)
    assert len(trials) == 3
    assert rows
    flops = [int(row[2].replace(",", "")) for row in rows]
    assert flops == sorted(flops)
    for number, accuracy, cost in rows:
        own = trials.loc[int(number)]
        assert (f"{own.accuracy:.4f}", f"{own.total_flops:,.0f}") == (accuracy, cost)
    used = tomllib.loads((out / "config.toml").read_text())
    assert used["seed"] == 7
    assert used["search"]["strategy"]["setup"]["n_trials"] == 3
    assert used["search"]["strategy"]["sw_runner"]["basic_train"]["max_epochs"] == 2


def test_a_finished_study_says_so(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", str(config), "--epochs", "1", "--out", str(tmp_path / "out"), "--trials"]
    assert main([*command, "2"]) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert main([*command, "1"]) == 0
    assert "nothing to do: 2 of 1 trials are done" in capsys.readouterr().out


def test_a_configuration_that_comes_with_labkit_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "jsc-toy", "--trials", "1", "--epochs", "1"]) == 0
    assert (tmp_path / "results" / "jsc-toy" / "study.db").exists()
    for name in (path.stem for path in (ROOT / "configs").glob("*.toml")):
        assert load_config(name) == load_config(name.replace("_", "-"))
        assert load_config(name) == load_config(ROOT / "configs" / f"{name}.toml")
    capsys.readouterr()
    assert main(["search", "jsc_tooy"]) == 2
    assert (
        "no file 'jsc_tooy', and no such name; did you mean 'jsc-toy'?" in capsys.readouterr().err
    )


def test_a_wheel_has_what_the_package_reads(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    for name in ("labkit", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    with zipfile.ZipFile(tmp_path / built.stdout.split()[-1]) as wheel:
        held = set(wheel.namelist())
    files = [path for path in (ROOT / "labkit").rglob("*") if path.suffix not in ("", ".pyc")]
    files += [ROOT / "labkit" / "configs" / path.name for path in (ROOT / "configs").iterdir()]
    assert {str(path.relative_to(ROOT)) for path in files} - held == set()


def test_list_names_all_that_a_configuration_may(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    kinds: dict[str, dict[str, str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith(" "):
            kinds[kind := line] = {}
        else:
            name, _, said = line.strip().partition(" ")  # what a test registers says nothing
            kinds[kind][name] = said.strip()
    assert set(kinds["networks"]) == set(MODELS)
    assert set(kinds["data sets"]) == set(DATA)
    assert set(kinds["runners"]) >= {"basic_train", "latency"}
    assert kinds["metrics"]["total_flops"] == "minimize; by basic_computations"
    assert kinds["metrics"]["f1"] == "maximize; by basic_train, basic_evaluation"
    assert set(kinds["samplers"]) == set(get_args(Sampler))
    assert set(kinds["spaces"]) >= {"transform/channel_multiplier"}
    assert set(kinds["configurations"]) == set(CONFIGS)


def test_show_says_what_a_search_would_do_and_does_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main(["show", str(config)]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["network"] == "jsc-toy: seq_blocks_2 8, seq_blocks_5 8"
    assert said["space"].endswith("3,072 configurations, 16 networks")
    model = get_model("jsc-toy")
    widest = apply(model, Plan((("seq_blocks_2", 64), ("seq_blocks_5", 64))), seed=0)
    own, most = total_cost(model), total_cost(widest)
    for name in ("total_flops", "parameters"):
        low, high = (getattr(cost, name) for cost in (own, most))
        assert said[name] == f"{low:,} to {high:,}; {low:,} as it is"
    assert said["search"] == "8 trials by tpe, seed 42"
    assert said["training"] == "at most 8 networks × 1 epochs on cpu"
    assert re.match(r"about \d+:\d\d, by a few steps of one network$", said["time"])
    assert set(tmp_path.iterdir()) == before


def test_init_writes_what_a_search_runs_as_it_is(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    command = ["init", "sub/mine.toml", "--model", "hls4ml-jets", "--data"]
    assert main([*command, "nowhere.npz"]) == 2
    assert capsys.readouterr().err.startswith("labkit: --data: there is no file")
    assert not list((tmp_path / "sub").iterdir())
    assert main([*command, "blobs.npz"]) == 0
    text = (tmp_path / "sub" / "mine.toml").read_text()
    lists = re.findall(
        r'^# ("[\w]+")\.config\.channel_multiplier = .*now (\d+)$', text, re.MULTILINE
    )
    assert lists == [('"seq_blocks_0"', "64"), ('"seq_blocks_2"', "32"), ('"seq_blocks_4"', "32")]
    opened = text.replace('# "seq_blocks_0"', '"seq_blocks_0"')  # its examples are right, too
    assert opened != text
    assert load_config(tomllib.loads(opened)).offered["seq_blocks_0"] == [1, 2]
    assert main(["search", "sub/mine.toml", "--trials", "2", "--epochs", "1"]) == 0
    assert (tmp_path / "results" / "mine" / "best.md").exists()
    pd.DataFrame(np.random.default_rng(0).normal(size=(200, 4)), columns=[*"abcy"]).to_csv("t.csv")
    Path("nets.py").write_text(
        "import torch\n\n\ndef one(): return torch.nn.Sequential(\n"
        "    torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))\n"
    )
    regression = ["--model", "nets:one", "--data", "t.csv", "--label", "y", "--task", "regression"]
    assert main(["init", "numbers.toml", *regression]) == 0
    assert main(["search", "numbers.toml", "--trials", "2", "--epochs", "1"]) == 0
    assert "r2" in (tmp_path / "results" / "numbers" / "best.md").read_text()
    assert main([*command, "blobs.npz"]) == 2
    assert "file: 'sub/mine.toml' exists" in capsys.readouterr().err


def test_bash_completes_commands_flags_and_names() -> None:
    script = """source <("$0" -m labkit.cli completion bash)
        complete_at() {
            COMP_WORDS=(labkit "$@"); COMP_CWORD=$#; _shtab_labkit; echo ${COMPREPLY[@]}
        }
        complete_at sea; complete_at search --tr; complete_at search jsc-to"""
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["search", "--trials", "jsc-toy"]


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
    assert "±" in (out / "best.md").read_text()


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
            "labkit: --trials: expected a whole number from 1 on, got '0'",
        ),
        (["search", "{config}", "--epochs", "-1"], "labkit: --epochs: expected"),
        (["replicate", "nowhere", "--seeds", "-1"], "--seeds: expected a whole number from 1 on"),
        (["search", "{config}", "--trials", "9" * 5_000], "labkit: --trials: expected"),
        (["search", "{config}", "--nonsense"], "unrecognized arguments: --nonsense (see labkit"),
        ([], "arguments are required: COMMAND (see labkit --help)"),
        (["search", "{config}", "--storage", "nonsense"], "--storage: 'nonsense': expected a URL"),
        (["search", "{config}", "--seed", "-1"], "labkit: --seed: expected greater than or equal"),
        (["search", "{config}", "--shared"], "labkit: --shared: expected a storage that several"),
        (["init", "a.toml", "--model", "no"], "labkit: --model: unknown network 'no'"),
        (["show", "no"], "config: there is no file 'no', and no such name; expected one of"),
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
    assert "total_flops" in again.stdout
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
