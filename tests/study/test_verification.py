"""Training a network of the front again, and what is said of it."""

import json
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

import labkit
from labkit.cli import main
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.executor import LocalExecutor
from labkit.study.results import Results
from labkit.study.runs import read_runs
from labkit.study.studies import open_study
from labkit.study.verification import Verification


def searched(tables: dict[str, Any], data: Dataset, folder: Path, **options: Any) -> Results:
    # In stacks, whether or not they are faster here.
    options = {"trials": 6, "epochs": 2, "executor": LocalExecutor(stackable=True)} | options
    tables["search"]["strategy"]["setup"]["n_jobs"] = options.pop("n_jobs", 4)
    return labkit.search(tables, data=data, folder=folder, progress=False, **options)


def verify(folder: Path, data: Dataset, number: int | None = None) -> Verification:
    return labkit.verify(folder, number, data=data, progress=False)


def number_of_the_best(folder: Path) -> int:
    front = Results.from_study(open_study(folder)).front
    return int(front["accuracy"].idxmax())


def described(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what lies beside the weights of the best network."""
    path = folder / "best" / f"trial_{number_of_the_best(folder)}.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_on_the_same_machine_each_network_is_equal_to_the_bit(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, n_jobs: int
) -> None:
    results = searched(tables, blobs, tmp_path, n_jobs=n_jobs)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for number in results.front.index:
        verified = verify(tmp_path, blobs, number)
        assert verified.agrees
        assert verified.message == (
            f"trial {number} agrees: all weights and the metrics of 2 epochs are equal to the bit"
        )
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_in_another_stack_its_accuracy_agrees_with_that_of_several_seeds(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    searched(tables, blobs, tmp_path)
    described(tmp_path, lambda known: known.update(stack=[]))
    runs = json.loads((tmp_path / "runs.json").read_text())
    (tmp_path / "runs.json").write_text(json.dumps([runs[0] | {"torch": "2.0.0"}]))
    verified = verify(tmp_path, blobs)
    assert verified.agrees
    assert "5 trainings here" in verified.message
    assert f"torch was '2.0.0' and is '{torch.__version__}'" in verified.message
    labkit.Search(tables, data=blobs, folder=tmp_path, trials=6, epochs=2).replicate(
        3, progress=False
    )
    assert "; 3 replicates have" in verify(tmp_path, blobs).message


def test_weights_of_another_network_do_not_agree(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    searched(tables, blobs, tmp_path)
    path = tmp_path / "best" / f"trial_{number_of_the_best(tmp_path)}.safetensors"
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path)
    verified = verify(tmp_path, blobs)
    assert not verified.agrees
    assert "Versions and hardware are those that trained it" in verified.message


def test_an_accuracy_that_was_not_reached_does_not_agree(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    searched(tables, blobs, tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as database:
        for (text,) in database.execute("SELECT value_json FROM trial_user_attributes").fetchall():
            forged = re.sub(r'"accuracy": [\d.e-]+', '"accuracy": 0.999', text)
            change = "UPDATE trial_user_attributes SET value_json = ? WHERE value_json = ?"
            database.execute(change, (forged, text))
    verified = verify(tmp_path, blobs)
    assert not verified.agrees
    assert "accuracy 0.9990 was recorded" in verified.message


def test_other_data_are_named_and_nothing_is_trained(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    searched(tables, blobs, tmp_path, trials=1)
    other = labkit.Dataset.from_arrays(blobs.x_train, blobs.y_train)
    verified = verify(tmp_path, other)
    assert not verified.agrees
    assert verified.message == (
        "trial 0 is not trained again. data: the folder holds a search on other data"
    )


def test_what_cannot_be_verified_is_refused(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    searched(tables, blobs, tmp_path, trials=1)
    with pytest.raises(LabkitError, match="trial 7 is not on the front"):
        verify(tmp_path, blobs, 7)
    described(tmp_path, lambda known: known.update(stack=[{"plan": 3}]))
    with pytest.raises(LabkitError, match="stack.0.plan: expected an object"):
        verify(tmp_path, blobs)


def test_the_commands_exit_codes(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.npz", tmp_path / "out"
    np.savez(rows, x=blobs.x_train, label=blobs.y_train)
    (tmp_path / "rows.toml").write_text(tomli_w.dumps(tables | {"dataset": str(rows)}))
    command = ["search", str(tmp_path / "rows.toml"), "--trials", "1", "--out", str(out)]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.startswith("trial 0 agrees: all weights")
    assert main(["verify", str(out), "--trial", "9"]) == 2
    np.savez(rows, x=blobs.x_val, label=blobs.y_val)
    assert main(["verify", str(out), "--trial", "0"]) == 1


def test_a_folder_says_when_where_and_how_it_was_run(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(tables, blobs, tmp_path, trials=1)
    url = "--storage=postgresql://me:secret@host/name"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/labkit", "search", "my jets.toml", url])
    searched(tables, blobs, tmp_path, trials=2)
    first, second = json.loads((tmp_path / "runs.json").read_text())
    assert first["command"] == "labkit.Search(…)"
    assert second["command"] == ("labkit search 'my jets.toml' --storage=postgresql://me@host/name")
    assert first["started"] < second["started"]
    foot = (tmp_path / "pareto.html").read_text().rpartition("<footer>")[2]
    assert "labkit search &#x27;my jets.toml&#x27; --storage" in foot
    assert f"torch {torch.__version__}" in foot
    heading = (tmp_path / "pareto.html").read_text().partition("<h2>")[0]
    rows = f"training rows {len(blobs.x_train)}; validation rows {len(blobs.x_val)}"
    rate = second["learning_rate"]
    assert f"{rows}; sampler tpe; epochs {second['epochs']}; learning rate {rate}</p>" in heading
    assert second["seed"] == 42
    assert second["data"] == blobs.fingerprint()
    assert second["torch"] == torch.__version__
    assert second["python"] == platform.python_version()
    assert second["threads"] == torch.get_num_threads()
    assert second["device"] == str(blobs.x_train.device)
    assert first.keys() == second.keys() >= {"labkit", "numpy", "optuna", "cpu", "cores", "system"}


@pytest.mark.parametrize("content", ["", "{", "[1, []]", "{}", "[" * 100_000])
def test_runs_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs.json").write_text(content)
    assert read_runs(tmp_path) == []
    (tmp_path / "runs.json").unlink()
    os.mkfifo(tmp_path / "runs.json")
    assert read_runs(tmp_path) == []
