"""Data sets by name, and from files of one's own: tables, NumPy archives, CIFAR-10's batches."""

import pickle
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from labkit.checks import as_path, check_memory, readable
from labkit.data.dataset import Dataset, encode, hold_out
from labkit.data.jets import embedded_jets, openml_jets, read_jets
from labkit.errors import LabkitError, did_you_mean, in_words, shown
from labkit.names import build, find

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# What pickled arrays are made by.
ARRAYS = {"numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode"}


def load_data(name: str | Path, *, path: str | Path | None = None, label: str = "label") -> Dataset:
    """Returns a data set.

    Args:
        name: `"jsc"` (jets that come with labkit), `"jsc-openml"` (the public jets, downloaded
            from OpenML), `"digits"` (scikit-learn's 8×8 images, flat), `"digits32"` (the same as
            images, `[3, 32, 32]`: each pixel 4×4 times, three times grey), the path of a CSV,
            Parquet, NPZ or HDF5 file (the last in the layout of the public jets) or of the folder
            of CIFAR-10's python batches (`cifar-10-batches-py`), or `package.module:function`
            (which returns a `Dataset` when called without arguments).
        path: For `"jsc"`: the public HDF5 file to read in place of the embedded jets.
        label: For CSV and Parquet, the column with the labels, every other column being a feature;
            for NPZ the array with them, the one other array being the features.

    Raises:
        LabkitError: No such data set, file or column; or what it holds cannot be used.
    """
    if not isinstance(name, str | Path):
        raise LabkitError(f"dataset: expected a name or a path, got {shown(name)}")
    if path is not None and name != "jsc":
        raise LabkitError(f"path: only the data set 'jsc' takes one, not {str(name)!r}")
    if path is not None:
        return read_jets(readable("path", as_path("path", path)))
    file, suffix = Path(name), Path(name).suffix.lower()
    if str(name) in DATA:
        return DATA[str(name)]()
    with in_words(f"dataset: cannot read {str(name)!r}"):
        if suffix in READERS:
            return READERS[suffix](readable("dataset", file), label)
        if file.is_dir():
            return read_cifar10(file)
    more = f", the path of a {', '.join(READERS)} file, or of CIFAR-10's folder"
    return build("dataset", str(name), find("dataset", str(name), DATA, "data set", more), Dataset)


def names_file(name: str, place: Path) -> bool:
    """Returns whether a data set's name is a file's, which would be at this place."""
    return name not in DATA and (place.suffix.lower() in READERS or place.is_dir())


def _digits(*, as_images: bool) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    if as_images:
        images = digits.images.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
        return Dataset.from_arrays(images, digits.target, name="digits, 32×32")
    names = digits.feature_names
    return Dataset.from_arrays(digits.data, digits.target, features=names, name="digits")


def read_table(path: Path, label: str) -> Dataset:
    """Reads a CSV or Parquet file: a column of labels, every other one a feature.

    Raises:
        LabkitError: It cannot be read, lacks the column of labels, or a feature is not numeric.
    """
    import pandas as pd
    from pyarrow.parquet import read_metadata

    if path.suffix.lower() == ".csv":
        table = pd.read_csv(path)
    else:
        head = read_metadata(path)
        check_memory(f"dataset: {str(path)!r}", 8 * head.num_rows * head.num_columns)
        table = pd.read_parquet(path)
    _check_label(path, label, [*map(str, table)])
    y, features = table.pop(label).to_numpy(), [str(column) for column in table]
    for column in table:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise LabkitError(f"dataset: column {column!r} of {path} is not numeric")
    x = table.to_numpy(dtype=np.float64, na_value=np.nan)
    return Dataset.from_arrays(x, y, features=features, name=path.name)


def read_npz(path: Path, label: str) -> Dataset:
    """Reads an NPZ file: the array of labels, and one other with the features.

    Raises:
        LabkitError: It cannot be read, or holds other arrays.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    _check_label(path, label, arrays)
    labels = arrays.pop(label)
    if len(arrays) != 1:
        got = ", ".join(arrays) or "none"
        raise LabkitError(f"dataset: {path}: expected one array beside {label!r}, got {got}")
    [x] = arrays.values()
    return Dataset.from_arrays(x, labels, name=path.name)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, numbers, strings and what holds them; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as it was called before NumPy 2
        if f"{module}.{name}" not in ARRAYS:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def read_cifar10(folder: Path) -> Dataset:
    """Reads CIFAR-10's python batches: the test batch is the test split, as published.

    Raises:
        LabkitError: The folder lacks batches, or one holds something else.
    """
    names = [path.name for path in sorted(folder.glob("data_batch_*"))]
    if not names or not (folder / "test_batch").is_file():
        expected = "expected data_batch_1 … and test_batch"
        raise LabkitError(f"dataset: {str(folder)!r} is no folder of CIFAR-10: {expected}")
    batches = [_read_cifar10_batch(folder / name) for name in [*names, "test_batch"]]
    x, y = (np.concatenate(part) for part in zip(*batches))
    labels, classes = encode(y, CIFAR10_CLASSES)
    training, test_rows = np.split(np.arange(len(y)), [len(y) - len(batches[-1][1])])
    train_rows, val_rows = hold_out(training, labels, round(0.1 * len(training)))
    rows = train_rows, val_rows, test_rows
    return Dataset.from_rows(x, labels, rows, classes=classes, features=(), name="CIFAR-10")


def _read_cifar10_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images `[rows, 3, 32, 32]` and their labels."""
    with in_words(f"dataset: {path} is no batch of CIFAR-10"):
        with readable("dataset", path).open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    if len(images) != len(labels):
        raise LabkitError(f"dataset: {path}: {len(images)} images, but {len(labels)} labels")
    return images, labels


def _check_label(path: Path, label: str, columns: Collection[str]) -> None:
    if label not in columns:
        raise LabkitError(f"label: {path} has no column {label!r}; {did_you_mean(label, columns)}")


DATA: dict[str, Callable[[], Dataset]] = {
    "jsc": embedded_jets,
    "jsc-openml": openml_jets,
    "digits": lambda: _digits(as_images=False),
    "digits32": lambda: _digits(as_images=True),
}
READERS: dict[str, Callable[[Path, str], Dataset]] = {
    ".csv": read_table,
    ".parquet": read_table,
    ".npz": read_npz,
    ".h5": lambda file, _: read_jets(file),
    ".hdf5": lambda file, _: read_jets(file),
}
