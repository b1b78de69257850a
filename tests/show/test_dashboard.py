"""The dashboard, as Python code starts it."""

import json
import socket
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest

import labkit
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.record import Failure, FailureKind, Record
from labkit.study.store import Asked


def notes(link: str) -> list[str]:
    """What the dashboard's page gets as the notes of the only study's trials."""
    with urllib.request.urlopen(f"{link}api/studies/1?after=0") as answer:
        study = json.load(answer)
    assert study["objective_names"] == ["accuracy", "total_flops"]
    return [trial["note"]["body"] for trial in study["trials"]]


def test_the_dashboard_shows_names_and_widths_and_frees_its_port(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    labkit.search(tables, data=blobs, folder=tmp_path, progress=False)
    dashboard = labkit.dashboard(tmp_path)
    assert dashboard.link.startswith("http://127.0.0.1:")
    assert f'<iframe src="{dashboard.link}"' in dashboard._repr_html_()
    assert len(notes(dashboard.link)) == 2
    tables["search"]["strategy"]["setup"]["n_trials"] = 3  # while the dashboard is open
    labkit.search(tables, data=blobs, folder=tmp_path, progress=False)
    deadline = time.monotonic() + 20  # it looks at the study every two seconds
    while len(notes(dashboard.link)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(notes(dashboard.link)) == 3
    assert all("- `seq_blocks_2`: " in note for note in notes(dashboard.link))
    dashboard.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(dashboard.link.split(":")[-1][:-1]))) != 0


def test_a_note_is_shown_and_not_stored_and_ones_own_stays(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    study = labkit.Search(tables, data=blobs, folder=tmp_path)
    study.run(progress=False)
    trial = optuna.Trial(study.study, study.study.trials[1]._trial_id)
    optuna_dashboard.save_note(trial, "my own")
    failure = Failure(kind=FailureKind.RUNNER, message="energy: <b>no</b>")
    study.store.tell(Asked({}, datetime.now()), Record(failure=failure), None)
    before = (tmp_path / "study.db").read_bytes()
    dashboard = labkit.dashboard(tmp_path)
    widths, own, failed = notes(dashboard.link)
    dashboard.stop()
    assert widths.startswith("trained\n\n- `seq_blocks_2`: ")
    assert (own, failed) == ("my own", "energy: &lt;b&gt;no&lt;/b&gt;\n\n")
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(LabkitError, match="holds no study"):
        labkit.dashboard(tmp_path)
