"""Storages that are broken, foreign, locked or read-only: one sentence, and nothing written."""

import contextlib
import hashlib
import os
import sqlite3
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psycopg
import pytest
import sqlalchemy
import tomli_w

from labkit import dashboard
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study import storage
from labkit.study.config import load_config, simple_tables
from labkit.study.files import write_config
from labkit.study.networks import load_best
from labkit.study.results import Results
from labkit.study.search import Search, search
from labkit.study.storage import as_url, named, open_storage, without_password
from labkit.study.studies import kept_in, open_study


def digests(folder: Path) -> dict[str, str]:
    """What a folder holds, byte by byte."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a b#c", "ü{x}", "sqlite:"])
def test_a_folder_of_any_name_holds_its_own_database(
    name: str, tables: dict[str, Any], blobs: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tables["search"]["strategy"]["setup"]["n_trials"] = 1
    search(tables, data=blobs, folder=name, progress=False)
    assert (tmp_path / name / "study.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(open_study(name).trials) == 1


def foreign(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # reading it would leave files beside it
        connection.execute("CREATE TABLE studies (patient TEXT)")
        connection.commit()


def older(file: Path) -> None:
    open_storage(file, create=True)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        connection.commit()


def cut(file: Path) -> None:
    open_storage(file, create=True)
    file.write_bytes(file.read_bytes()[:5000])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.touch(), "is empty"),
    "text": (lambda file: file.write_text("no database" * 100), "not an SQLite database"),
    "folder": (lambda file: file.mkdir(), "there is no database|holds no study.db"),
    "foreign": (foreign, "is empty|another program's: it holds a table"),
    "cut": (cut, "it is damaged"),
    "older": (older, "another version of Optuna"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_database_is_refused_in_a_sentence_and_left_as_it_is(
    fault: str, tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    break_it, said = BROKEN[fault]
    break_it(tmp_path / "study.db")
    before = digests(tmp_path)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for attempt in (
        lambda: search(tables, data=blobs, folder=tmp_path, progress=False),
        lambda: search(tables, data=blobs, storage=url, progress=False),
        lambda: open_study(tmp_path),
        lambda: dashboard(tmp_path),
    ):
        with pytest.raises(LabkitError, match=said) as raised:
            attempt()
        assert len(str(raised.value)) <= 300
        assert "\n" not in str(raised.value)
    assert digests(tmp_path) == before


def test_a_locked_database_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(tmp_path / "study.db", create=True)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LabkitError, match="another program has locked it"):
            opened.get_all_studies()
    assert opened.get_all_studies() == []


def test_a_fault_that_passes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: Any = open_storage(tmp_path / "study.db", create=True)
    study = optuna.create_study(storage=opened)
    add = opened._inner.create_new_trial

    def lost_answer(*arguments: Any) -> int:
        monkeypatch.setattr(opened._inner, "create_new_trial", add)
        add(*arguments)
        lost = psycopg.OperationalError("server closed the connection unexpectedly\nhint")
        raise sqlalchemy.exc.OperationalError("INSERT", {}, lost)

    monkeypatch.setattr(opened._inner, "create_new_trial", lost_answer)
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"labkit": {"a": 1}}))
    assert len(study.trials) == 1  # and not twice
    assert "server closed the connection unexpectedly; trying again" in caplog.text


def test_a_full_disk_keeps_what_is_finished(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit of pages, for a disk that is full after some trials."""
    monkeypatch.setattr("optuna.storages._rdb.storage.random.random", lambda: 0.0)  # its pauses
    running = Search(tables, data=blobs, folder=tmp_path)
    engine = running.study._storage._inner._backend.engine  # type: ignore[attr-defined]

    @sqlalchemy.event.listens_for(engine, "connect")
    def limit(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 32")  # a new one has 28

    engine.dispose()
    with pytest.raises(LabkitError, match=r"study\.db': the disk is full; make room"):
        running.run(progress=False)
    kept = Results.from_study(open_study(tmp_path)).records
    assert 0 < len(kept) < 8
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert len(results.trials) == 8
    assert list(results.records[: len(kept)]) == list(kept)


@contextlib.contextmanager
def unable_to_write(folder: Path) -> Iterator[None]:
    """Takes away the right to write a folder, and root's to do without."""
    files = [folder, *folder.rglob("*")]
    for path in files:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in files:
            path.chmod(0o755 if path.is_dir() else 0o644)


def read(folder: Path) -> None:
    assert len(Results.from_study(open_study(folder)).trials) == 8
    load_best(folder)
    browser = dashboard(folder)
    try:
        with urllib.request.urlopen(browser.link) as answer:
            assert answer.status == 200
    finally:
        browser.stop()


def test_a_read_only_folder_can_be_read(tables: dict[str, Any], blobs: Dataset) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        Path(name).chmod(0o755)
        search(tables, data=blobs, folder=folder, progress=False)
        running = Search(tables | {"seed": 42}, data=blobs, folder=folder)
        read(folder)  # imports what it needs, while this process may read it
        with unable_to_write(folder):
            read(folder)
            with pytest.raises(LabkitError, match="out: cannot write in .*: it is read-only"):
                running.run(progress=False)
            study = open_study(folder)
            with pytest.raises(LabkitError, match=r"study\.db': it is read-only"):
                study.set_user_attr("a", 1)
            with pytest.raises(LabkitError, match="read-only"):
                Search(tables, data=blobs, folder=folder / "best")


def test_two_folders_on_one_storage_are_one_search_at_a_time(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    first = Search(tables, data=blobs, folder=tmp_path / "one")
    by_url = Search(
        tables, data=blobs, folder=tmp_path / "two", storage=f"sqlite:///{tmp_path}/one/study.db"
    )
    who = f"another search is running in .*one': process {os.getpid()} on .*, since 20"
    with first.store.driven(first.folder), pytest.raises(LabkitError, match=who):
        by_url.run(progress=False)
    with by_url.store.driven(by_url.folder), pytest.raises(LabkitError, match=who):
        first.run(progress=False)
    assert len(by_url.run(progress=False).trials) == 8


def test_a_folder_remembers_its_storage(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    search(tables, data=blobs, folder=folder, storage="sqlite:///all.db", progress=False)
    optuna.create_study(study_name="other", storage="sqlite:///all.db")
    monkeypatch.chdir("/")
    before = digests(folder)
    assert not (folder / "study.db").exists()
    assert len(Results.from_study(open_study(folder)).trials) == 8
    assert len(search(tables, data=blobs, folder=folder, progress=False).trials) == 8
    config = load_config(folder / "config.toml")
    again = Search(config, data=blobs, folder=folder)
    assert again.replicate(2, progress=False).replicates(again.store.front[0].number)
    dashboard(folder).stop()
    (tmp_path / "all.db").rename(tmp_path / "gone.db")
    with pytest.raises(LabkitError, match=r"storage: there is no database '.*all\.db'"):
        open_study(folder)
    with pytest.raises(LabkitError, match="holds the results of a study that is not in"):
        Search(tables, data=blobs, folder=folder)
    assert digests(folder).keys() == before.keys()


def test_a_password_is_not_kept(tmp_path: Path) -> None:
    url = "postgresql://me:p@ss/w:ord@host:5/db?password=other&x=1"
    assert without_password(url) == "postgresql://me@host:5/db?password=***&x=1"
    assert "ord@" not in named(url)
    assert without_password("postgresql://host/db") == "postgresql://host/db"
    config = load_config({"model": "jsc-toy", "dataset": "jsc", **simple_tables([1, 2])})
    write_config(config.replace(storage="postgresql://me:secret@host/db"), tmp_path)
    assert "secret" not in (tmp_path / "config.toml").read_text()
    assert kept_in(tmp_path) == ("postgresql://me@host/db", "labkit")


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.1)
    for url, said in (
        ("postgresql://u:secret@127.0.0.1:1/db", r"'postgresql://u@127.0.0.1:1/db': .*refused"),
        ("grpc://127.0.0.1:1", r"'grpc://127.0.0.1:1': .*timeout"),
        ("mysql://u@h/db", "No module named 'MySQLdb'"),
        ("redis://h", "Can't load plugin"),
        ("study.db", "expected a URL, such as"),
    ):
        with pytest.raises(LabkitError, match=said) as raised:
            open_storage(url)
        assert "secret" not in str(raised.value)


def test_paths_in_a_toml_are_relative_to_it(
    tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder that was moved goes on, since data are known by what they hold."""
    project = tmp_path / "project"
    project.mkdir()
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 400)
    np.savez(project / "blobs.npz", x=rng.normal(size=(400, 16)) + y[:, None], label=y)
    (project / "w.pt").touch()
    tables |= {"dataset": "blobs.npz", "load_name": "w.pt"}
    tables["search"]["strategy"]["setup"] |= {"n_trials": 2, "storage": "sqlite:///all.db"}
    (project / "c.toml").write_text(tomli_w.dumps(tables))
    monkeypatch.chdir("/")
    config = load_config(project / "c.toml")
    assert config.dataset == str(project / "blobs.npz")
    assert config.load_name == project / "w.pt"
    assert config.search.strategy.setup.storage == as_url(project / "all.db")
    del tables["search"]["strategy"]["setup"]["storage"], tables["load_name"]
    (project / "c.toml").write_text(tomli_w.dumps(tables))
    search(project / "c.toml", folder=project / "out", progress=False)
    moved = tmp_path / "elsewhere"
    (project / "out").rename(moved)
    load_best(moved)
    assert len(Search(moved / "config.toml", folder=moved).replicate(2, progress=False).trials) == 2
    project.rename(tmp_path / "copied")
    with pytest.raises(LabkitError, match=r"dataset: there is no file '.*project/blobs\.npz'"):
        Search(moved / "config.toml", folder=moved)
    told = (moved / "config.toml").read_text()
    (moved / "config.toml").write_text(told.replace("/project/", "/copied/"))
    assert len(search(moved / "config.toml", folder=moved, trials=3, progress=False).trials) == 3


def test_a_link_to_itself_is_no_storage(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "loop.db").symlink_to("loop.db")
    with pytest.raises(LabkitError, match=r"^storage: there is no database '.*loop\.db'"):
        Search(tables, data=blobs, storage=f"sqlite:///{tmp_path}/loop.db")
