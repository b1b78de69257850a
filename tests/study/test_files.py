"""What a search leaves in its folder, whatever it found."""

import errno
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.files import remove_unfinished, write, write_results
from labkit.study.networks import FrontNetworks, load_best, saved_networks
from labkit.study.record import Candidate, Outcome, Record
from labkit.study.search import search
from labkit.transform import Plan, find_channels
from tests.study.conftest import results, trial


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.txt"
    write(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabkitError, match=r"out: cannot write '.*a\.txt': No space left on device"):
        write(path, "new, cut in the midd")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "link").symlink_to(elsewhere)
    write(tmp_path / "link", b"new")
    assert elsewhere.read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_modes_that_the_umask_gives(
    tmp_path: Path, blobs: Dataset, mask: int
) -> None:
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 5))
    before = os.umask(mask)
    try:
        search(
            model=model, data=blobs, widths=[1, 2], trials=2, epochs=1, folder=tmp_path / "out",
            progress=False,
        )  # fmt: skip
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"study.db", "log.json", "trial_0.json"} <= {path.name for path in files}
    assert {path.suffix for path in files} >= {".safetensors", ".html", ".toml"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_only_unfinished_files_of_its_own_are_removed(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    kept = [".part", "log.json", "best/.mine.part", "my.labkit", ".labkit.toml"]
    for name in [*kept, ".log.json.0123abcd.labkit", "best/.trial_3.safetensors.89abcdef.labkit"]:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(kept)


@pytest.mark.parametrize("name", ["study.db", "study.db-journal", ".lock", "best"])
def test_nothing_is_written_through_a_link_in_the_folder(
    tmp_path: Path, tables: dict[str, Any], blobs: Dataset, name: str
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (folder / name).symlink_to(outside if name == "best" else outside / "new")
    with pytest.raises(LabkitError, match=rf"out: '.*{name}' is a link"):
        search(tables, data=blobs, folder=folder, progress=False)
    assert not list(outside.iterdir())


def test_the_tables_agree(tmp_path: Path) -> None:
    found = results(trial(0, (0.5, 100)), trial(1, None), trial(2, (0.75, 90), {"a": 4}))
    write_results(found, tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    assert list(log) == ["0", "1", "2"]
    assert log["1"]["failure"] == {"kind": "training", "message": "no"}
    assert log["1"]["state"] == "FAIL"
    assert list(json.loads((tmp_path / "best.json").read_text())) == ["2"]
    table = pd.read_csv(tmp_path / "trials.csv", index_col="number")
    assert table["accuracy"].tolist()[::2] == [0.5, 0.75]
    assert "a: 4" in (tmp_path / "best.md").read_text()
    assert stat.S_IMODE((tmp_path / "log.json").stat().st_mode) & 0o400


def test_a_figure_never_fails_a_search(
    blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("labkit.study.files.PAGE", "tests.study.test_files:no_page")
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 5))
    options: Any = {"widths": [1, 2], "epochs": 1, "folder": tmp_path, "progress": False}
    assert len(search(model=model, data=blobs, trials=2, **options).trials) == 2
    assert "pareto.html was not written: ZeroDivisionError: no variance" in caplog.text
    assert len(search(model=model, data=blobs, trials=3, **options).trials) == 3


def no_page(*_: object) -> None:
    """A page that cannot be drawn."""
    raise ZeroDivisionError("no variance")


def test_a_search_in_which_all_networks_are_right_has_its_page(tmp_path: Path, caplog: Any) -> None:
    """Accuracy is 1.0 for all: nothing has variance."""
    y = np.arange(300) % 2
    data = Dataset.from_arrays(np.stack([y, -y, y], axis=1) * 10.0, y, name="easy")
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    found = search(
        model=model, data=data, widths=[1, 2, 3], trials=4, epochs=200, folder=tmp_path,
        progress=False,
    )  # fmt: skip
    assert set(found.trials["accuracy"]) == {1.0}
    assert (tmp_path / "pareto.html").is_file()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "page" in r.message]


@pytest.mark.parametrize("in_memory", [True, False])
def test_networks_leave_with_the_front(tmp_path: Path, in_memory: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    kept = FrontNetworks(None if in_memory else tmp_path, model, find_channels(model), (3,))
    for number in range(3):
        trained = Outcome(Candidate(Plan((("_0", 4),)), 0), weights=model.state_dict())
        kept.keep(number, Record(widths={"_0": 4}), trained)
    kept.drop_others([0, 2])
    x = torch.randn(5, 3)
    for number in (0, 2):
        assert torch.equal(kept.open(number)(x), model(x))
    if in_memory:
        with pytest.raises(LabkitError, match="the network of trial 1 was not kept"):
            kept.open(1)
    else:
        assert saved_networks(tmp_path) == {0, 2}
        assert torch.equal(load_best(tmp_path, 2, model=model)(x), model(x))
