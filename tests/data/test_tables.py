"""Files of tables in the shapes that people have: read as they are meant, or refused in words."""

import gzip
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import LabkitError, load_config, load_data
from labkit.data import Dataset
from labkit.study.experiment import Experiment
from tests.data.test_data import Table, all_rows, assert_same_rows, table  # noqa: F401

N = 60
KIND = ["ant", "bee", "cat"] * 20
SIZE, WEIGHT = np.arange(N) * 7 % N, np.arange(N) * 11 % N + 0.5
FRAME = pd.DataFrame({"size": SIZE, "weight": WEIGHT, "kind": KIND})


def written(folder: Path, text: str, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def lines(separator: str = ",", header: str | None = "size,weight,kind") -> str:
    """The frame as text."""
    rows = [header] if header is not None else []
    rows += [f"{s},{w},{k}" for s, w, k in zip(SIZE, WEIGHT, KIND)]
    return "\n".join(row.replace(",", separator) for row in rows) + "\n"


def assert_the_frame(data: Dataset) -> None:
    assert data.classes == ("ant", "bee", "cat")
    assert_same_rows(data, (np.stack([SIZE, WEIGHT], axis=1), np.arange(N) % 3))


def swapped(text: str) -> str:
    """The same with the weights first: numbers that name no rows."""
    return re.sub(r"(?m)^(\d+),(\d+\.5)", r"\2,\1", text)


ROW_NAMES = "".join(f"{i},{line}\n" for i, line in enumerate(lines(header=None).splitlines()))


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("a.csv", lines(), ""),
        ("a.CSV", lines(), ""),
        ("a.csv.gz", lines(), ""),
        ("a.tsv", lines("\t"), r"separator '\t'"),
        ("a.csv", lines(";"), "separator ';'"),
        ("a.csv", lines(";").replace(".", ","), "separator ';' and decimal commas"),
        ("a.dat", "  " + lines("   ").replace("\n", "\n   "), r"separator '\\s+'"),
        ("a.csv", lines(", "), ""),
        ("a.csv", lines(header="'size','weight','kind'"), ""),
        ("a.csv", "," + lines().split("\n")[0] + "\n" + ROW_NAMES, "left out a column without a"),
        ("a.csv", lines().split("\n")[0] + "\n" + ROW_NAMES, "left out a column without a name"),
        ("a.csv", lines().replace("\n", ",\n"), "left out a column without a name"),
    ],
)
def test_an_unambiguous_table_just_loads_and_says_what_was_decided(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str, note: str
) -> None:
    data = load_data(written(tmp_path, text, name), label="kind")
    assert_the_frame(data)
    assert data.features == ("size", "weight")
    assert caplog.messages == ([f"{name}: {data.notes[0]}"] if note else [])
    assert note in "".join(data.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_begins_with_its_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    assert_the_frame(load_data(written(tmp_path, lines(), encoding=encoding), label="kind"))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, lines().replace("bee", "Käfer"), encoding="latin-1")
    with pytest.raises(LabkitError, match=r"encoding: a.csv is not in utf-8-sig; write encoding="):
        load_data(path, label="kind")
    assert "Käfer" in load_data(path, label="kind", encoding="latin-1").classes
    with pytest.raises(LabkitError, match="unknown encoding: latin-x"):
        load_data(path, label="kind", encoding="latin-x")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_table_without_a_header_is_read_by_places(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, lines(header=None), name)
    with pytest.raises(LabkitError, match=r"no row of names, .* '0,0.5,ant'; .*label=-1"):
        load_data(path, label="kind")
    for place in (-1, 2):
        data = load_data(path, label=place)
        assert_the_frame(data)
        assert (data.features, data.notes) == (("x0", "x1"), ("no row of names",))
    with pytest.raises(LabkitError, match="label: a.csv.* has no column 3"):
        load_data(path, label=3)


def test_text_alone_shows_that_there_is_no_header(tmp_path: Path) -> None:
    rows = ["vhigh,big,good", "low,small,bad", "vhigh,small,good", "low,big,bad"] * 10
    path = written(tmp_path, "\n".join(rows))
    with pytest.raises(LabkitError, match="no row of names"):
        load_data(path, label="good")
    assert len(all_rows(load_data(path, label=-1))[0]) == 40


def test_names_that_are_numbers_are_names_where_they_count(tmp_path: Path) -> None:
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(N, 4))).assign(label=KIND)
    numbers.to_csv(tmp_path / "a.csv", index=False)
    assert load_data(tmp_path / "a.csv").features == ("0", "1", "2", "3")
    years = numbers.set_axis([2001, 2002, 2003, 2004, "label"], axis=1)
    years.to_csv(tmp_path / "a.csv", index=False)
    assert load_data(tmp_path / "a.csv").features == ("2001", "2002", "2003", "2004")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        # scikit-learn's own: rows, features and classes in the first line.
        (lines(header="60,2,ant,bee,cat"), {}, "5 fields in line 1, 3 in line 2; .*skiprows=1"),
        (lines(header="60"), {}, "1 fields in line 1, 3 in line 2; .*skiprows=1"),
        (lines(header="weight,kind") + lines(header=None), {}, "one name less than the rows"),
        (swapped(lines(header="size,kind")), {}, "one name less than the rows"),
        (swapped(lines(header=",size,kind")), {}, r"no name; .*drop=\['Unnamed: 0'\]"),
        (lines(";").replace(";", ";|"), {}, r"separator: .* may be any of \[';', '\|'\]; write wh"),
        (lines(), {"separator": ";"}, "separator: a.csv has one column, 'size,we.*write what"),
        ("kind\n" + "\n".join(KIND), {}, "separator: a.csv has one column, 'kind'"),
        (lines(), {"label": "knd"}, "label: a.csv has no column 'knd'; did you mean 'kind'"),
        (lines(), {"drop": ["sizes"]}, "drop: a.csv has no column 'sizes'; did you mean 'size'"),
        (lines(), {"drop": "size"}, "drop: expected a valid tuple"),
        (lines(), {"drop": ["size", "weight"]}, "x: expected .*got shape"),
        (lines(), {"missing": "ignore"}, "missing: expected 'error', 'drop' or 'impute'"),
        (
            lines(header="size,,kind").replace("8.5", "7.5"),
            {},
            r"no name; .* drop=\['Unnamed: 1'\]",
        ),
        (lines(header="size,size ,kind"), {}, "features: expected 2 different names"),
        (lines() + "1,2,ant,3\n", {}, "cannot read .*Expected 3 fields in line 62, saw 4"),
        (lines().replace("bee", "NA"), {}, r"20 rows have no label, .* row 1 \(nan\); missing='dr"),
        (lines().replace("bee", "none"), {}, r"20 rows have no label, .* row 1 \('none'\)"),
        (lines().replace("bee", ""), {}, "20 rows have no label"),
        (lines(), {"label": "weight"}, "y: expected class labels, but they look continuous"),
        (lines(), {"label": "size"}, "y: expected class labels, but they look continuous"),
        (lines().replace("ant", "ant,").replace("kind", "kind,more"), {}, "'more' is empty"),
    ],
)
def test_an_ambiguous_table_says_what_to_write(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabkitError, match=message):
        load_data(written(tmp_path, text), **{"label": "kind", **options})


def test_labels_that_may_be_none_are_left_out_on_demand(tmp_path: Path) -> None:
    data = load_data(written(tmp_path, lines().replace("bee", "NA")), label="kind", missing="drop")
    assert (data.classes, len(all_rows(data)[0])) == (("ant", "cat"), 40)
    assert data.notes == ("left out 20 of 60 rows",)


def test_a_column_that_counts_the_rows_is_said(tmp_path: Path) -> None:
    FRAME.assign(number=np.arange(N)).to_csv(tmp_path / "a.csv", index=False)
    data = load_data(tmp_path / "a.csv", label="kind")
    assert data.notes == ("a feature counts the rows: drop=['number'] if it is none",)
    assert_the_frame(load_data(tmp_path / "a.csv", label="kind", drop=["number"]))


def test_a_column_that_is_the_label_in_other_words_is_said(tmp_path: Path) -> None:
    FRAME.assign(code=np.arange(N) % 3 + 5, hint=np.arange(N) % 2).to_csv(tmp_path / "a.csv")
    data = load_data(tmp_path / "a.csv", label="kind")
    said = "a feature is the label in other words: drop=['code'] if it is none"
    assert data.notes == ("left out a column without a name", said)
    other = load_data(tmp_path / "a.csv", label="hint")
    assert "in other words" not in "".join(other.notes)


def test_a_folder_of_parquet_is_a_table(tmp_path: Path) -> None:
    for kind, rows in FRAME.groupby("kind"):
        (tmp_path / f"kind={kind}").mkdir()
        rows.drop(columns="kind").to_parquet(tmp_path / f"kind={kind}" / "part.parquet")
    assert_the_frame(load_data(tmp_path, label="kind"))
    FRAME.set_index(["size", "kind"]).to_parquet(tmp_path / "indexed.parquet")
    indexed = load_data(tmp_path / "indexed.parquet", label="kind")
    assert indexed.features == ("size", "weight")  # no column is lost in an index
    FRAME[::-1].to_parquet(tmp_path / "shuffled.parquet")  # whose index has no name
    assert load_data(tmp_path / "shuffled.parquet", label="kind").features == ("size", "weight")


def test_an_archive_in_the_layout_of_mnist_keeps_its_test_split(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)
    y = np.arange(N) % 3
    parts = {"x_train": images, "y_train": y, "x_test": images[:9], "y_test": y[:9]}
    np.savez(tmp_path / "a.npz", **parts)
    data = load_data(tmp_path / "a.npz")
    assert [len(data.split(s).x) for s in ("train", "val", "test")] == [54, 6, 9]
    assert data.x_test.shape[1:] == (1, 8, 8)
    corner = images[:9, 2, 5].astype(float)
    assert np.corrcoef(corner, data.x_test[:, 0, 2, 5])[0, 1] == pytest.approx(1)
    np.savez(tmp_path / "a.npz", x_val=images[:12], y_val=y[:12], **parts)
    assert len(load_data(tmp_path / "a.npz").x_val) == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a.xlsx",
            r"write frame = pandas.read_excel\('a.xlsx'\), and Dataset.from_arrays\(",
        ),
        ("a.feather", r"pandas.read_feather\('a.feather'\)"),
        ("https://example.org/a.csv", r"pandas.read_csv\('https://example.org/a.csv'\)"),
        ("https://example.org/a.xlsx", r"pandas.read_excel\('https://"),
    ],
)
def test_what_pandas_reads_is_said(name: str, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        load_data(name)


def test_what_only_tables_take_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(LabkitError, match="missing: only a table takes it, not 'digits'"):
        load_data("digits", missing="drop")
    np.savez(tmp_path / "a.npz", x=SIZE[:, None], label=KIND)
    with pytest.raises(LabkitError, match="drop: only a table"):
        load_data(tmp_path / "a.npz", drop=["size"])


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, lines())
    assert_the_frame(load_data("~/a.csv", label="kind"))


def test_a_configuration_has_the_same_keys(tmp_path: Path) -> None:
    frame = FRAME.assign(weight=FRAME["weight"].where(SIZE > 3), colour=["red", "blue"] * 30)
    frame.to_csv(tmp_path / "a.csv", sep="|", index=False)
    text = """
        model = "torch.nn:Identity"
        dataset = "a.csv"
        label = "kind"
        drop = ["size"]
        separator = "|"
        missing = "impute"
        [search.search_space]
        name = "transform/channel_multiplier"
        setup.by = "name"
        seed.default.config.channel_multiplier = [1, 2]
        [search.strategy]
        sw_runner.basic_train = {}
        metrics.accuracy.direction = "maximize"
    """
    config = load_config(written(tmp_path, text, "a.toml"))
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    data = Experiment(config, network).data
    assert data.features == ("weight", "missingindicator_weight", "colour_blue", "colour_red")
    assert data.fingerprint() == (
        load_data(
            tmp_path / "a.csv", label="kind", drop=["size"], separator="|", missing="impute"
        ).fingerprint()
    )  # fmt: skip


def test_numbers_are_logged_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_data("digits")
    assert caplog.records == []
