"""What others do to a results folder: cut it, delete, link, fill it. The same command mends it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.cli import main
from labkit.data import Dataset
from labkit.study.networks import load_best
from labkit.study.results import Results
from labkit.study.search import search
from labkit.study.studies import open_study
from tests.faults.lab import kept, write_search

WRITTEN = ("log.json", "best.json", "trials.csv", "best.md", "pareto.html", "config.toml")


@pytest.fixture
def small(tables: dict[str, Any], blobs: Dataset) -> dict[str, Any]:
    tables["search"]["strategy"]["setup"] |= {"n_trials": 4, "n_jobs": 1}
    return {"config": tables, "data": blobs, "progress": False}


@pytest.mark.parametrize("fault", ["cut", "emptied", "deleted", "linked"])
def test_files_are_written_anew(small: dict[str, Any], tmp_path: Path, fault: str) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    search(**small, folder=folder)
    written = {path: path.read_bytes() for path in map(folder.joinpath, WRITTEN)}
    weights = kept(folder).weights
    outside.write_text("not labkit's")
    for path in [*written, folder / "runs.json", *folder.glob("best/*")]:
        if fault == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif fault == "emptied":
            path.write_bytes(b"")
        else:
            path.unlink()
        if fault == "linked":
            path.symlink_to(outside)
    results = search(**small, folder=folder)
    assert len(results.records) == 4
    assert outside.read_text() == "not labkit's"
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    del written[folder / "pareto.html"]  # it has random names in it
    assert {path: path.read_bytes() for path in written} == written
    assert kept(folder).weights == weights


def test_the_lock_of_a_dead_process_holds_nobody(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("999999\n")
    assert len(search(**small, folder=tmp_path).records) == 4


def test_a_new_folder_on_an_old_storage_gets_its_networks(
    small: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = f"sqlite:///{tmp_path}/all.db"
    search(**small, folder=tmp_path / "one", storage=storage)
    weights = kept(tmp_path / "one").weights
    shutil.rmtree(tmp_path / "one")
    results = search(**small, folder=tmp_path / "two", storage=storage)
    assert kept(tmp_path / "two").weights == weights
    assert "of the front are not in best/, and trained again" in caplog.text
    for trial in results.front_trials:
        assert load_best(tmp_path / "two", trial.number)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KiB: some trials fit, `pareto.html` does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 180, 300])
def test_a_full_disk_is_said_and_loses_nothing(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, free: int,
) -> None:  # fmt: skip
    """However many KiB are free: when there is space again, the same command goes on."""
    out = small_disk / "out"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 1024 * (400 - free))
    command = ["search", str(write_search(tmp_path)), "--out", str(out), "--trials", "6"]
    code = main(command)
    said = capsys.readouterr().err.splitlines()[-1]
    if code == 2:
        assert said.startswith("labkit: ")
        assert len(said) <= 300
    else:
        assert code == 0
        assert "pareto.html was not written" in caplog.text
    before = kept(out)
    assert not before.unfinished
    assert not [name for name in before.files if name.endswith(".labkit")]

    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert main(command) == 0
    after = kept(out)
    assert len(after.trials) == 6
    assert {n: after.trials[n] for n in before.trials} == before.trials
    for trial in Results.from_study(open_study(out)).front_trials:
        assert load_best(out, trial.number)
