"""The dashboard, as Python code starts it."""

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.serving import open_study


def test_the_dashboard_shows_names_and_widths_and_frees_its_port(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    labkit.search(tables, data=blobs, folder=tmp_path, progress=False)
    dashboard = labkit.dashboard(tmp_path)
    assert dashboard.link.startswith("http://127.0.0.1:")
    assert f'<iframe src="{dashboard.link}"' in dashboard._repr_html_()
    study_id = open_study(tmp_path)._study_id
    with urllib.request.urlopen(f"{dashboard.link}api/studies/{study_id}?after=0") as answer:
        shown = answer.read().decode()
    assert "- `seq_blocks_2`: " in shown
    assert "total_flops" in shown
    dashboard.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(dashboard.link.split(":")[-1][:-1]))) != 0


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(LabkitError, match="holds no study"):
        labkit.dashboard(tmp_path)
