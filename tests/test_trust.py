"""A results folder from elsewhere: nothing that it names runs, nothing in it is markup."""

import dataclasses
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import labkit
from labkit.cli import main
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.page import write_page
from labkit.show.widgets import message
from labkit.study.studies import ATTRIBUTE, kept_in, open_study
from labkit.table import html_table
from tests.conftest import REFERENCE_TOML
from tests.study.conftest import description, results, trial

# Beside the folder's files, as Python would find it in the working directory.
HOSTILE = """
from pathlib import Path
(Path(__file__).parent / "ran").touch()
from labkit import get_model, load_data
def network():
    return get_model("jsc-toy")
def data():
    return load_data("blobs.npz")
"""
WAYS: dict[str, Callable[[Path], object]] = {
    "load_best": labkit.load_best,
    "results": lambda folder: labkit.Results.from_study(open_study(folder)).front_table(),
    "dashboard": lambda folder: labkit.dashboard(folder).stop(),
    "panel": lambda folder: labkit.StudyPanel(folder).close(),
    "verify": lambda folder: labkit.verify(folder, progress=False),
    "replicate": lambda folder: main(["replicate", str(folder), "--seeds", "1"]),
}
Change = Callable[[dict[str, Any]], object]
KINDS: dict[str, Change] = {
    "model": lambda t: t.update(model="hostile:network"),
    "dataset": lambda t: t.update(dataset="hostile:data"),
    "operators": lambda t: t.update(operators=["hostile:Operator"]),
    "space": lambda t: t["search"]["search_space"].update(name="hostile:Space"),
    "sw_runner": lambda t: t["search"]["strategy"]["sw_runner"].update({"hostile:run": {}}),
    "hw_runner": lambda t: t["search"]["strategy"].update(hw_runner={"hostile:run": {}}),
}


@pytest.fixture(scope="module")
def found(blobs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a short search of what labkit knows by name."""
    folder = tmp_path_factory.mktemp("found") / "results"
    tables = tomllib.loads(REFERENCE_TOML.read_text())
    labkit.search(tables, data=blobs, trials=1, epochs=1, folder=folder, progress=False)
    return folder


@pytest.fixture
def hostile(found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of them, in which the user stands, with a module beside the files."""
    folder = tmp_path / "results"
    shutil.copytree(found, folder)
    (folder / "hostile.py").write_text(HOSTILE)
    monkeypatch.chdir(folder)
    path = list(sys.path)
    yield folder
    assert sys.path == path
    sys.modules.pop("hostile", None)


def name_code(folder: Path, kind: str) -> None:
    """Names the module in the folder's configuration, and in its study."""
    tables = tomllib.loads((folder / "config.toml").read_text())
    KINDS[kind](tables)
    (folder / "config.toml").write_text(tomli_w.dumps(tables))
    if kind == "model":
        study = open_study(folder)
        known = study.user_attrs[ATTRIBUTE]
        known["about"]["model"] = tables["model"]
        study.set_user_attr(ATTRIBUTE, known)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_a_folder_runs_nothing_that_it_names(
    hostile: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name_code(hostile, kind)
    said = []
    for way, opened in WAYS.items():
        try:
            opened(hostile)
        except LabkitError as error:
            said.append(str(error))
        assert not (hostile / "ran").exists(), way
    said.append(capsys.readouterr().err)  # of the command
    assert all("'hostile:" in one and "by trust=True or --trust" in one for one in said)


def test_a_server_with_options_that_a_folder_names_is_not_connected_to(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tomllib.loads((hostile / "config.toml").read_text())
    setup = tables["search"]["strategy"]["setup"]
    setup["storage"] = "mysql+pymysql://db.example/it?local_infile=1"
    (hostile / "config.toml").write_text(tomli_w.dumps(tables))
    connected: list[object] = []
    monkeypatch.setattr("labkit.study.storage._database", lambda *what: connected.append(what))
    opening = {**WAYS, "search": lambda folder: labkit.Search(REFERENCE_TOML, folder=folder)}
    assert labkit.load_best(hostile)  # its networks need no study
    for way in opening.keys() - {"load_best", "replicate"}:
        with pytest.raises(LabkitError, match="the folder names an address with options, 'mysql"):
            opening[way](hostile)
    assert WAYS["replicate"](hostile) == 2
    assert "where you give it: --storage or storage=" in capsys.readouterr().err
    assert not connected
    setup["storage"] = "sqlite:///file:study.db?mode=ro&uri=true"
    (hostile / "config.toml").write_text(tomli_w.dumps(tables))
    assert "mode=ro" in str(kept_in(hostile)[0])


def test_what_is_trusted_runs(hostile: Path) -> None:
    name_code(hostile, "model")
    assert labkit.load_best(hostile, model=labkit.get_model("jsc-toy")) is not None
    assert not (hostile / "ran").exists()
    assert labkit.load_best(hostile, trust=True) is not None
    assert (hostile / "ran").exists()
    labkit.StudyPanel(hostile, trust=True).close()


def test_the_command_asks_for_trust(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name_code(hostile, "dataset")
    assert main(["replicate", str(hostile), "--seeds", "1", "--trust"]) == 2
    assert "no file 'blobs.npz'" in capsys.readouterr().err  # so its code ran


NAME = "<img src=x onerror=alert(1)>|`[x](http://evil.example)\n# y"


def hostile_results() -> labkit.Results:
    trained = trial(0, (0.5, 10.0), {NAME: 3}, software_metrics={NAME: 1.0, "accuracy": 0.5})
    return dataclasses.replace(
        results(trained), description=description(model=NAME, dataset=NAME, convention=NAME)
    )


def test_the_markdown_of_hostile_names_is_a_table_of_text() -> None:
    table = hostile_results().best_markdown()
    assert len(table.splitlines()) == 3
    assert "<" not in table
    row = re.sub(r"\\.", "", table.splitlines()[2])  # without what is escaped
    assert row.count("|") == len(hostile_results().best_trials.columns) + 2
    assert "`" not in row
    assert "[" not in row


def test_the_html_of_hostile_names_is_text(tmp_path: Path) -> None:
    opened = hostile_results()
    write_page(opened, tmp_path / "page.html")
    shown = [(tmp_path / "page.html").read_text(), html_table(opened.front_table())]
    shown += [opened._repr_html_(), message([NAME])]
    for html in shown:
        assert "onerror" in html  # it is there, but
        assert "<img src=x" not in html
