"""The dashboard, as Python code starts it."""

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.data.dataset import Dataset
from labkit.errors import LabkitError


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


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(LabkitError, match="holds no study"):
        labkit.dashboard(tmp_path)
