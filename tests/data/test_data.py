"""Loading: small files in the layouts of the public data, and what is refused."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.datasets
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from labkit.data import Dataset, load_data
from labkit.data.jets import JET_CLASSES, JET_FEATURES
from labkit.data.labels import stratified
from labkit.errors import LabkitError

Table = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def table() -> Table:
    """300 rows of jet-like numbers: features, and class indices."""
    rng = np.random.default_rng(1)
    return rng.normal(3, 2, size=(300, 16)), np.arange(300) % 5


def all_rows(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.cat([data.x_train, data.x_val, data.x_test])
    return x, torch.cat([data.y_train, data.y_val, data.y_test])


def assert_same_rows(data: Dataset, table: Table) -> None:
    """The data set holds the table's rows, each with its label, shifted and scaled."""
    x, y = all_rows(data)
    expected_x, expected_y = table
    assert len(x) == len(expected_x)
    # Standardising keeps each column's order; columns differ, so ranks identify rows.
    ranks = x.double().argsort(0).argsort(0)[:, :2]
    expected_ranks = expected_x.argsort(0).argsort(0)[:, :2]
    ours = {(*map(int, rank), int(label)) for rank, label in zip(ranks, y)}
    assert ours == {
        (*map(int, rank), int(label)) for rank, label in zip(expected_ranks, expected_y)
    }


def test_the_split_is_stratified_standardised_and_fixed(table: Table) -> None:
    data = Dataset.from_arrays(*table)
    assert [len(x) for x in (data.x_train, data.x_val, data.x_test)] == [240, 30, 30]
    for y in (data.y_train, data.y_val, data.y_test):
        assert len(set(y.bincount().tolist())) == 1  # every class equally often
    assert torch.allclose(data.x_train.mean(0), torch.zeros(16), atol=1e-6)
    assert torch.allclose(data.x_train.std(0, correction=0), torch.ones(16), atol=1e-5)
    assert data.x_val.mean(0).abs().max() > 1e-3  # not standardised by itself
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    again = Dataset.from_arrays(*table)
    assert data.fingerprint() == again.fingerprint()
    assert data.fingerprint() != Dataset.from_arrays(*table, seed=1).fingerprint()
    assert_same_rows(data, table)


def test_rows_are_held_out_as_scikit_learn_draws_them() -> None:
    rng, n_refused = np.random.default_rng(0), 0
    for seed in range(200):
        labels = rng.integers(0, rng.integers(2, 8), 200)
        rows = rng.permutation(200)[: rng.integers(5, 200)]
        n = int(rng.integers(1, len(rows)))
        try:
            theirs = train_test_split(rows, test_size=n, stratify=labels[rows], random_state=seed)
        except ValueError:
            n_refused += 1
            with pytest.raises(LabkitError, match="too few to split"):
                stratified(rows, labels, n, seed)
            continue
        for own, expected in zip(stratified(rows, labels, n, seed), theirs):
            np.testing.assert_array_equal(own, expected)
    assert 0 < n_refused < 100


def test_digits_are_scikit_learns() -> None:
    data = load_data("digits")
    digits = load_digits()
    assert data.classes == tuple("0123456789")
    assert len(all_rows(data)[0]) == len(digits.data)
    assert all_rows(data)[1].bincount().tolist() == np.bincount(digits.target).tolist()


def test_images_and_constant_features_are_taken() -> None:
    x = np.zeros((30, 1, 2, 2))
    x[:, 0, 0, 0] = np.arange(30)
    data = Dataset.from_arrays(x, ["cat", "dog"] * 15)
    assert data.classes == ("cat", "dog")
    assert data.x_train.shape == (24, 1, 2, 2)
    assert torch.isfinite(data.x_train).all()
    assert data.features == ()


def write_public_hdf5(path: Path, table: Table, drop: tuple[str, ...] = ()) -> None:
    x, y = table
    columns = {f"j_{name}": x[:, i] for i, name in enumerate(JET_FEATURES)}
    columns |= {f"j_{name}": (y == i) for i, name in enumerate(JET_CLASSES)}
    columns = {name: column for name, column in columns.items() if name not in drop}
    # The public file has more columns than are used, and another order.
    columns = {"j_ptfrac": x[:, 0], **dict(reversed(columns.items()))}
    rows = np.zeros(len(x), dtype=[(name, np.float64) for name in columns])
    for name, column in columns.items():
        rows[name] = column
    with h5py.File(path, "w") as file:
        file["t_allpar_new"] = rows


def test_the_public_hdf5_file_is_read(tmp_path: Path, table: Table) -> None:
    write_public_hdf5(tmp_path / "jets.h5", table)
    data = load_data("jsc", path=tmp_path / "jets.h5")
    assert data.classes == JET_CLASSES
    assert data.features == JET_FEATURES
    assert_same_rows(data, table)
    assert load_data(tmp_path / "jets.h5").fingerprint() == data.fingerprint()


def test_a_wrong_hdf5_file_is_named(tmp_path: Path, table: Table) -> None:
    write_public_hdf5(tmp_path / "jets.h5", table, drop=("j_zlogz", "j_t"))
    with pytest.raises(LabkitError, match=r"lacks the columns j_zlogz, j_t$"):
        load_data("jsc", path=tmp_path / "jets.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(LabkitError, match="no array 't_allpar_new'; it has images"):
        load_data("jsc", path=tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(LabkitError, match="not an HDF5 file"):
        load_data("jsc", path=tmp_path / "text.h5")
    with pytest.raises(LabkitError, match="path: there is no file 'none.h5'"):
        load_data("jsc", path="none.h5")


def test_openml_is_read(monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    x, y = table
    frame = pd.DataFrame(x, columns=JET_FEATURES)[list(reversed(JET_FEATURES))]
    target = pd.Series([JET_CLASSES[i] for i in y], dtype="category")
    answer = SimpleNamespace(data=frame, target=target)
    asked = []

    def fetch(name: str, **options: Any) -> SimpleNamespace:
        asked.append(name)
        return answer

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    data = load_data("jsc-openml")
    assert asked == ["hls4ml_lhc_jets_hlf"]
    assert data.features == JET_FEATURES
    assert_same_rows(data, table)


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    with pytest.raises(LabkitError, match=r"openml.org, which did not answer.*'jsc' comes with"):
        load_data("jsc-openml")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_ones_own(tmp_path: Path, table: Table, suffix: str) -> None:
    frame = pd.DataFrame(table[0], columns=JET_FEATURES).assign(kind=table[1])
    path = tmp_path / f"mine.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    data = load_data(path, label="kind")
    assert data.features == JET_FEATURES
    assert data.classes == ("0", "1", "2", "3", "4")
    assert_same_rows(data, table)
    with pytest.raises(LabkitError, match=r"no column 'knd'; did you mean 'kind'"):
        load_data(path, label="knd")


def test_arrays_of_ones_own(tmp_path: Path, table: Table) -> None:
    np.savez(tmp_path / "mine.npz", x=table[0], label=table[1])
    assert_same_rows(load_data(str(tmp_path / "mine.npz")), table)
    np.savez(tmp_path / "two.npz", a=table[0], b=table[0], label=table[1])
    with pytest.raises(LabkitError, match="one array beside 'label', got a, b"):
        load_data(tmp_path / "two.npz")
    np.savez(tmp_path / "objects.npz", x=table[0], label=table[1].astype(object))
    with pytest.raises(LabkitError, match="cannot read"):  # it would have to unpickle
        load_data(tmp_path / "objects.npz")


def test_text_in_a_feature_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3] * 4, "b": ["x", "y", "z"] * 4, "label": [0, 1] * 6})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(LabkitError, match=r"column 'b' holds text, such as 'x'; .*drop=\['b'\]"):
        load_data(tmp_path / "mine.csv", categories="error")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(LabkitError, match=r"empty\.csv is empty"):
        load_data(tmp_path / "empty.csv")


def poisoned(table: Table, value: float) -> Table:
    x, y = table
    x = x.copy()
    x[[7, 9], 3] = value
    return x, y


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: poisoned(t, np.nan), {}, r"missing values in \{'c1_b2_mmdt': 2\}"),
        (lambda t: poisoned(t, np.inf), {}, r"infinite values in \{'c1_b2_mmdt': 2\}"),
        (lambda t: (t[0], t[1] * 0), {}, "at least two classes, got 1"),
        (lambda t: (t[0], (t[1] == 0) * np.arange(300)), {}, "labels, but they look continuous"),
        (lambda t: (t[0], np.minimum(np.arange(300), 1)), {}, "class '0' has 1 rows; expected 3"),
        (lambda t: (t[0][:, :3], t[1]), {}, "features: expected 3 different names"),
        (lambda t: (t[0][:9], t[1]), {}, r"y: expected one label a row of x, \[9\]"),
        (lambda t: (t[0][0], t[1]), {}, "x: expected .*got shape"),
        (lambda t: (t[0], t[1] + 0.5), {}, "y: expected class labels.* continuous"),
        (
            lambda t: (t[0], [None, *t[1][1:]]),
            {},
            r"y: 1 rows have no label, the first is row 0 \(None\)",
        ),
        (lambda t: (t[0], ["a", *t[1][1:]]), {}, "y: "),
        (lambda t: (t[0].astype(str) + "x", t[1]), {}, "x: expected numbers"),
        (lambda t: ([[1.0], [1.0, 2.0]], [0, 1]), {}, "x: expected an array"),
        (lambda t: t, {"test": 1.5}, r"validation, test: expected .* got \(0.1, 1.5\)"),
        (lambda t: t, {"classes": ["a", "b"]}, "y: expected indices from 0 to 1, got 0 to 4"),
        (lambda t: (t[0], t[1].astype(str)), {"classes": ["a"]}, "y: expected indices"),
        (lambda t: (t[0][:15], t[1][:15]), {}, "too few to split"),
    ],
)
def test_wrong_arrays_are_named(table: Table, change: Any, options: Any, message: str) -> None:
    x, y = change(table)
    with pytest.raises(LabkitError, match=message):
        Dataset.from_arrays(x, y, features=JET_FEATURES, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jcs", "unknown data set 'jcs'; did you mean 'jsc'"),
        ("none.csv", "there is no file 'none.csv'"),
        ("no.such:thing", "cannot import 'no.such:thing'"),
        ("math:tau", "expected 'math:tau' to be a function"),
        ("builtins:dict", "to return a Dataset, got a dict"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        load_data(name)


def test_digits_as_images_are_the_digits_enlarged() -> None:
    images, flat = load_data("digits32"), load_data("digits")
    assert images.x_train.shape == (len(flat.x_train), 3, 32, 32)
    assert images.features == ()
    corners = images.x_train[:, :, ::4, ::4]
    assert torch.equal(images.y_train, flat.y_train)
    for channel in range(3):
        assert torch.equal(corners[:, channel].flatten(1), flat.x_train)


def write_cifar_batch(path: Path, rows: int, seed: int) -> dict[bytes, Any]:
    """Writes a batch as CIFAR-10 has it: a pickled dict with the keys of Python 2, bytes."""
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"a batch",
        b"labels": [int(i % 10) for i in range(rows)],
        b"data": rng.integers(0, 256, (rows, 3072), dtype=np.uint8),
        b"filenames": [b"a.png"] * rows,
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))
    return batch


def test_a_folder_of_cifar10s_python_batches_is_read(tmp_path: Path) -> None:
    write_cifar_batch(tmp_path / "data_batch_1", 100, 1)
    write_cifar_batch(tmp_path / "data_batch_2", 100, 2)
    test = write_cifar_batch(tmp_path / "test_batch", 30, 3)
    data = load_data(tmp_path)
    assert data.x_train.shape == (180, 3, 32, 32)
    assert (len(data.x_val), len(data.x_test)) == (20, 30)
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.y_test.tolist() == test[b"labels"]
    # Each pixel of the training split is standardised; the test split goes along.
    assert data.x_train.mean(dim=0).abs().max() < 1e-6
    torch.testing.assert_close(data.x_train.std(dim=0, correction=0), torch.ones(3, 32, 32))
    raw = np.asarray(test[b"data"]).reshape(-1, 3, 32, 32)[:, 1, 5, 7]
    assert np.corrcoef(raw, data.x_test[:, 1, 5, 7])[0, 1] == pytest.approx(1)
    (tmp_path / "data_batch_2").unlink()
    write_cifar_batch(tmp_path / "data_batch_1", 20, 1)
    with pytest.raises(LabkitError, match="50 rows of 10 classes are too few to split"):
        load_data(tmp_path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by unpickling",))


def test_a_batch_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar_batch(tmp_path / "test_batch", 30, 0)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Payload()}))
    with pytest.raises(LabkitError, match=r"no batch of CIFAR-10: it holds a builtins\.print"):
        load_data(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "data_batch_1").write_bytes(b"text")
    with pytest.raises(LabkitError, match="no batch of CIFAR-10"):
        load_data(tmp_path)
    (tmp_path / "data_batch_1").unlink()
    with pytest.raises(LabkitError, match="expected data_batch_1"):
        load_data(tmp_path)


def test_a_split_is_its_rows_and_labels(table: Table) -> None:
    data = Dataset.from_arrays(*table)
    for name in ("train", "val", "test"):
        x, y = data.split(name)
        assert x is getattr(data, f"x_{name}")
        assert y is getattr(data, f"y_{name}")


def test_importing_the_package_loads_no_reader_of_files() -> None:
    code = "import labkit.data, sys; assert not {'pandas', 'sklearn', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def grid(n: int = 30) -> np.ndarray:
    """Numbers that differ, `[n, 2]`."""
    return np.arange(2.0 * n).reshape(n, 2) % 7


LABELS = np.arange(30) % 3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ma.masked_array(grid(), grid() == 3), r"x: the mask .* would be lost; .*x\.filled\("),
        (torch.from_numpy(grid()).to_sparse(), r"x: expected an array .*to_dense\(\)"),
        (scipy.sparse.csr_array(grid()), r"x: .* sparse one; write x\.toarray\(\)"),
        (grid() + 1j, "x: expected numbers, got values of type complex128"),
        (torch.from_numpy(grid()) + 1j, "x: expected numbers, got values of type complex128"),
        (grid().astype("datetime64[s]"), "x: expected numbers, got values of type datetime64"),
        (grid().astype(str), "x: expected numbers, got values of type <U"),
        (grid()[:, :0], r"x: expected \[rows, features\] .*got shape \(30, 0\)"),
        (pd.DataFrame(grid()).astype("Int64").replace(3, pd.NA), "'x1': 5"),
        (np.where(grid() == 3, None, grid()), "missing values in"),
    ],
)
def test_what_would_lose_something_is_refused(x: Any, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        Dataset.from_arrays(x, LABELS)


@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(grid()).bfloat16(), grid().astype(np.float16), grid().astype(object),
        pd.DataFrame(grid()).astype("Int64"), pd.DataFrame(grid()), grid().astype(">f4"),
    ],
)  # fmt: skip
def test_numbers_of_other_types_are_the_same_data(x: Any) -> None:
    assert Dataset.from_arrays(x, LABELS).fingerprint() == (
        Dataset.from_arrays(grid(), LABELS).fingerprint()
    )


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000])
def test_very_large_and_very_small_numbers_are_standardised(scale: float) -> None:
    data = Dataset.from_arrays(grid() * scale, LABELS)
    assert data.fingerprint() == Dataset.from_arrays(grid(), LABELS).fingerprint()


def test_a_row_that_no_float32_can_hold_is_refused() -> None:
    x, far = grid(), grid()
    far[29] = 1e300
    with pytest.raises(LabkitError, match="x: a test row is too far from the training rows"):
        Dataset.from_splits(x, LABELS, x, LABELS, far, LABELS)


@pytest.mark.parametrize("others", [np.arange(30.0), np.arange(30.0) % 2])
def test_a_value_that_hides_the_others_is_refused(others: np.ndarray) -> None:
    x = np.stack([np.arange(30.0), others], axis=1)
    x[::9, 1] = 1e300
    with pytest.raises(LabkitError, match=r"x: \['x1'\] have values so far out"):
        Dataset.from_arrays(x, LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 5}, "classes: expected a list of names, got 5"),
        ({"features": "ab"}, "features: expected a list of names, got 'ab'"),
        ({"features": 2}, "features: expected a list of names, got 2"),
        ({"test": "a"}, r"validation, test: expected .*got \(0.1, 'a'\)"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"seed": None}, "seed: expected a whole number from 0"),
        ({"missing": "x"}, "missing: expected 'error', 'drop' or 'impute', got 'x'"),
        ({"categories": 3}, "categories: expected 'onehot' or 'error', got 3"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        Dataset.from_arrays(grid(), LABELS, **options)


def test_names_come_from_a_table_too() -> None:
    frame = pd.DataFrame(grid(), columns=["mass", "speed"])
    data = Dataset.from_arrays(frame, LABELS.astype(np.uint64), features=frame.columns)
    assert data.features == ("mass", "speed")
    names = pd.Series(["a", "b", "c"])
    indices = LABELS.astype(np.uint64)
    assert Dataset.from_arrays(grid(), indices, classes=names).classes == ("a", "b", "c")
    assert Dataset.from_arrays(grid(), LABELS * 1e300).classes[0] == "0"
    with pytest.raises(LabkitError, match="y: expected class labels"):
        Dataset.from_arrays(grid(), np.where(LABELS, LABELS, np.inf))


def header_of(shape: tuple[int, ...]) -> bytes:
    """The head of a file of NumPy's that says that it holds so many numbers, and holds few."""
    file = io.BytesIO()
    head = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue() + bytes(80)


def test_files_that_claim_too_much_are_refused_at_once(tmp_path: Path) -> None:
    label = io.BytesIO()
    np.save(label, LABELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header_of((10**9, 1_500)))
        archive.writestr("label.npy", label.getvalue())
    with h5py.File(tmp_path / "a.h5", "w") as file:  # never written, so not in the file
        kind = [(f"j_{name}", "f8") for name in (*JET_FEATURES, *JET_CLASSES)]
        file.create_dataset("t_allpar_new", (10**11,), kind, chunks=(1_000,))
    for name in ("a.npz", "a.h5"):
        with pytest.raises(LabkitError, match=rf"{name}.*(allocate|takes 1.,...\.0 GB)"):
            load_data(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet", "a.h5"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "whole.npz", x=grid(), label=LABELS)
    whole = (tmp_path / "whole.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:10], b"\0" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LabkitError, match=name):
            load_data(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)  # to read it would wait for ever
    with pytest.raises(LabkitError, match="there is no file"):
        load_data(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.csv", "a\0b", "x" * 5_000 + ".npz", "x" * 5_000, 5, None])
def test_strange_names_are_refused(name: Any) -> None:
    with pytest.raises(LabkitError, match="dataset: "):
        load_data(name)
