"""Files of one's own as data sets: tables, NumPy archives, CIFAR-10's batches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from labkit.data.dataset import Dataset, encode, hold_out
from labkit.errors import LabkitError, did_you_mean

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def read_table(path: Path, label: str) -> Dataset:
    """Reads a CSV or Parquet file: a column of labels, every other one a feature.

    Raises:
        LabkitError: It cannot be read, lacks the column of labels, or a feature is not numeric.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise LabkitError(f"dataset: cannot read {path}: {error}") from error
    _check_label(path, label, list(map(str, table.columns)))
    x = table.drop(columns=label)
    for column in x.columns:
        if not pd.api.types.is_numeric_dtype(x[column]):
            raise LabkitError(f"dataset: column {column!r} of {path} is not numeric")
    return Dataset.from_arrays(
        x.to_numpy(dtype=np.float64, na_value=np.nan),
        table[label].to_numpy(),
        features=[str(column) for column in x.columns],
        name=path.name,
    )


def read_npz(path: Path, label: str) -> Dataset:
    """Reads an NPZ file: the array of labels, and one other with the features.

    Raises:
        LabkitError: It cannot be read, or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (ValueError, OSError) as error:
        raise LabkitError(f"dataset: cannot read {path}: {error}") from error
    _check_label(path, label, list(arrays))
    x = {key: array for key, array in arrays.items() if key != label}
    if len(x) != 1:
        raise LabkitError(
            f"dataset: {path}: expected one array beside {label!r}, got {', '.join(x) or 'none'}"
        )
    return Dataset.from_arrays(x.popitem()[1], arrays[label], name=path.name)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, numbers, strings and what holds them; calls nothing else."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_cifar10(folder: Path) -> Dataset:
    """Reads CIFAR-10's python batches: the test batch is the test split, as published.

    Raises:
        LabkitError: The folder lacks batches, or one holds something else.
    """
    names = [path.name for path in sorted(folder.glob("data_batch_*"))]
    if not names or not (folder / "test_batch").is_file():
        raise LabkitError(
            f"dataset: {str(folder)!r} is no folder of CIFAR-10: expected data_batch_1 … and "
            "test_batch"
        )
    batches = [_read_cifar10_batch(folder / name) for name in [*names, "test_batch"]]
    x = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([y for _, y in batches])
    n_test = len(batches[-1][1])
    labels, classes = encode(labels, CIFAR10_CLASSES)
    training, test_rows = np.split(np.arange(len(labels)), [len(labels) - n_test])
    train_rows, val_rows = hold_out(training, labels, round(0.1 * len(training)))
    rows = train_rows, val_rows, test_rows
    return Dataset.from_rows(x, labels, rows, classes=classes, features=(), name="CIFAR-10")


def _read_cifar10_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images `[rows, 3, 32, 32]` and their labels."""
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise LabkitError(f"dataset: {path} is no batch of CIFAR-10: {error}") from error
    if len(images) != len(labels):
        raise LabkitError(f"dataset: {path}: {len(images)} images, but {len(labels)} labels")
    return images, labels


def _check_label(path: Path, label: str, columns: list[str]) -> None:
    if label not in columns:
        raise LabkitError(f"label: {path} has no column {label!r}; {did_you_mean(label, columns)}")
