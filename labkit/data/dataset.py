"""Data sets, in memory: split once, standardised by the training split, checked on the way in."""

from __future__ import annotations

import hashlib
import importlib.resources
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split

from labkit.errors import LabkitError, did_you_mean
from labkit.names import build

JET_FEATURES = (
    "zlogz", "c1_b0_mmdt", "c1_b1_mmdt", "c1_b2_mmdt", "c2_b1_mmdt", "c2_b2_mmdt", "d2_b1_mmdt",
    "d2_b2_mmdt", "d2_a1_b1_mmdt", "d2_a1_b2_mmdt", "m2_b1_mmdt", "m2_b2_mmdt", "n2_b1_mmdt",
    "n2_b2_mmdt", "mass_mmdt", "multiplicity",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
JET_CLASSES = ("g", "q", "w", "z", "t")
# The split is part of a data set, not of an experiment: everyone compares on the same rows.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """A classification data set in three splits.

    Attributes:
        x_train, x_val, x_test: float32 `[rows, features]` (or `[rows, channels, height, width]`),
            standardised with the mean and standard deviation of the training split.
        y_train, y_val, y_test: int64 `[rows]`, each an index into `classes`.
        classes: The names of the classes.
        features: The names of the features; empty for images.
        name: What to call the data set in a figure.
    """

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]
    features: tuple[str, ...]
    name: str

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        classes: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        name: str = "arrays",
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = SPLIT_SEED,
    ) -> Dataset:
        """Splits and standardises arrays of one's own.

        Args:
            x: Numbers, `[rows, features]` or `[rows, channels, height, width]`.
            y: Labels, `[rows]`: strings or whole numbers.
            classes: Class names, if `y` holds indices into them; by default the distinct labels,
                sorted.
            features: Feature names, one a column; by default `x0`, `x1`, …
            name: What to call the data set in a figure.
            validation: The share of rows, in (0, 1), to validate on.
            test: The share of rows, in (0, 1), to test on.
            seed: Which rows go to which split. Splits are stratified by class.

        Raises:
            LabkitError: Wrong shapes, missing or infinite values, fewer than two classes, or too
                few rows of a class; the message says which.
        """
        x = _as_array("x", x)
        y = _as_array("y", y)
        if x.ndim not in (2, 4):
            raise LabkitError(
                f"x: expected [rows, features] or [rows, channels, height, width], "
                f"got shape {x.shape}"
            )
        if y.ndim != 1 or len(y) != len(x):
            raise LabkitError(f"y: expected one label a row of x, [{len(x)}], got shape {y.shape}")
        if x.ndim == 2 and features is None:
            features = [f"x{column}" for column in range(x.shape[1])]
        features = tuple(features or ())
        if x.ndim == 2 and len(features) != x.shape[1]:
            raise LabkitError(f"features: expected {x.shape[1]} names, got {len(features)}")
        x = _as_floats(x, features)
        labels, names = _encode(y, classes)
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise LabkitError(
                "validation, test: expected two positive shares with a sum below 1, "
                f"got {validation!r} and {test!r}"
            )
        rows = _split(labels, names, validation, test, seed)
        return cls(**_standardised(x, labels, rows), classes=names, features=features, name=name)

    def to(self, device: torch.device | str) -> Dataset:
        """Returns the data set with all tensors on a device."""
        names = [f"{axis}_{split}" for axis in "xy" for split in ("train", "val", "test")]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def fingerprint(self) -> str:
        """Returns a short hash of the training and validation data: equal data, equal hash."""
        digest = hashlib.sha256()
        for tensor in (self.x_train, self.y_train, self.x_val, self.y_val):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.x_train)} training, {len(self.x_val)} validation and "
            f"{len(self.x_test)} test rows of shape {tuple(self.x_train.shape[1:])}, "
            f"{len(self.classes)} classes)"
        )


def _standardised(
    x: np.ndarray, labels: np.ndarray, rows: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a data set, given the rows of its training, validation, test split."""
    mean = x[rows[0]].mean(axis=0, dtype=np.float64)
    std = x[rows[0]].std(axis=0, dtype=np.float64)
    std[std == 0] = 1  # a constant feature stays constant
    tensors = {}
    for split, own in zip(("train", "val", "test"), rows):
        tensors[f"x_{split}"] = torch.from_numpy(((x[own] - mean) / std).astype(np.float32))
        tensors[f"y_{split}"] = torch.from_numpy(labels[own])
    return tensors


def _as_array(key: str, values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise LabkitError(f"{key}: expected an array, got rows of unequal length") from error


def _as_floats(x: np.ndarray, features: tuple[str, ...]) -> np.ndarray:
    try:
        x = x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise LabkitError(f"x: expected numbers: {error}") from error
    for what, bad in (("missing values (NaN)", np.isnan(x)), ("infinite values", np.isinf(x))):
        if bad.any():
            row, column = (int(axis[0]) for axis in np.nonzero(bad.reshape(len(x), -1)))
            where = f"column '{features[column]}'" if features else "x"
            count = int(bad[:, column].sum()) if features else int(bad.sum())
            raise LabkitError(f"{where}: has {count} {what}, the first in row {row}")
    return x


def _encode(y: np.ndarray, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels as int64 indices, and the names of the classes."""
    missing = pd.isna(y)
    if missing.any():
        raise LabkitError(f"y: row {int(np.argmax(missing))} has no label")
    if classes is None:
        if np.issubdtype(y.dtype, np.floating) and not np.all(y == np.floor(y)):
            raise LabkitError("y: expected class labels (strings or whole numbers), got fractions")
        try:
            names, labels = np.unique(y, return_inverse=True)
        except TypeError as error:
            raise LabkitError(f"y: the labels are of several types: {error}") from error
        if np.issubdtype(names.dtype, np.floating):
            names = names.astype(np.int64)
        classes = [str(name) for name in names]
    else:
        if not np.issubdtype(y.dtype, np.integer):
            raise LabkitError(f"y: expected indices into classes, got values of type {y.dtype}")
        labels = y
        if len(y) and not 0 <= y.min() <= y.max() < len(classes):
            raise LabkitError(
                f"y: expected indices from 0 to {len(classes) - 1}, got {y.min()} to {y.max()}"
            )
    counts = np.bincount(labels, minlength=len(classes))
    if (counts > 0).sum() < 2:
        raise LabkitError(f"y: expected at least two classes, got {int((counts > 0).sum())}")
    if counts.min() < 3:
        rare = int(counts.argmin())
        raise LabkitError(
            f"y: class '{classes[rare]}' has {counts[rare]} rows; expected at least 3, "
            "one for each split"
        )
    return labels.astype(np.int64), tuple(classes)


def _split(
    labels: np.ndarray, classes: Sequence[str], validation: float, test: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.arange(len(labels))
    n_val, n_test = round(validation * len(rows)), round(test * len(rows))
    try:
        rest, test_rows = train_test_split(
            rows, test_size=n_test, stratify=labels, random_state=seed
        )
        train_rows, val_rows = train_test_split(
            rest, test_size=n_val, stratify=labels[rest], random_state=seed
        )
    except ValueError as error:
        raise LabkitError(
            f"y: {len(labels)} rows of {len(classes)} classes are too few to split: {error}"
        ) from error
    return train_rows, val_rows, test_rows


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
    if path is not None and name != "jsc":
        raise LabkitError(f"path: only the data set 'jsc' takes one, not {name!r}")
    match str(name):
        case "jsc" if path is None:
            return _embedded_jets()
        case "jsc":
            return _read_jet_hdf5(_existing("path", Path(str(path))))
        case "jsc-openml":
            return _openml_jets()
        case "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            return Dataset.from_arrays(
                digits.data, digits.target, features=digits.feature_names, name="digits"
            )
        case "digits32":
            from sklearn.datasets import load_digits

            digits = load_digits()
            images = digits.images.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
            return Dataset.from_arrays(images, digits.target, name="digits, 32×32")
    if Path(name).is_dir():
        return _read_cifar10(Path(name))
    readers = {
        ".csv": _read_table,
        ".parquet": _read_table,
        ".npz": _read_npz,
        ".h5": lambda file, _: _read_jet_hdf5(file),
        ".hdf5": lambda file, _: _read_jet_hdf5(file),
    }
    suffix = Path(name).suffix.lower()
    if suffix in readers:
        return readers[suffix](_existing("dataset", Path(name)), label)
    if ":" in str(name):
        return build("dataset", str(name), Dataset)
    known = ("jsc", "jsc-openml", "digits", "digits32")
    raise LabkitError(
        f"dataset: unknown data set {str(name)!r}; {did_you_mean(name, known)} "
        f"(or the path of a {', '.join(readers)} file, or of CIFAR-10's folder)"
    )


def _existing(key: str, path: Path) -> Path:
    if not path.is_file():
        raise LabkitError(f"{key}: there is no file {str(path)!r}")
    return path


def _embedded_jets() -> Dataset:
    file = importlib.resources.files("labkit.data") / "assets" / "jets.npz"
    with importlib.resources.as_file(file) as path, np.load(path, allow_pickle=False) as jets:
        return Dataset.from_arrays(
            jets["x"],
            jets["y"].astype(np.int64),
            classes=[str(name) for name in jets["classes"]],
            features=[str(name) for name in jets["features"]],
            name="jsc (embedded jets)",
        )


def _read_jet_hdf5(path: Path) -> Dataset:
    """Reads the public jets: a structured array `t_allpar_new` with `j_`-prefixed columns."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "t_allpar_new" not in file:
                raise LabkitError(
                    f"path: {path} has no array 't_allpar_new'; it has {', '.join(file) or 'none'}"
                )
            table = file["t_allpar_new"][:]
    except OSError as error:
        raise LabkitError(f"path: {path} is not an HDF5 file: {error}") from error
    columns = [f"j_{name}" for name in JET_FEATURES]
    one_hot = [f"j_{name}" for name in JET_CLASSES]
    if absent := [c for c in columns + one_hot if c not in (table.dtype.names or ())]:
        raise LabkitError(f"path: {path} lacks the columns {', '.join(absent)}")
    labels = np.stack([table[column] for column in one_hot], axis=1)
    if not ((labels.sum(axis=1) == 1) & (labels.max(axis=1) == 1)).all():
        raise LabkitError(f"path: {path}: each row of j_g … j_t must be one-hot")
    return Dataset.from_arrays(
        np.stack([table[column] for column in columns], axis=1),
        labels.argmax(axis=1),
        classes=JET_CLASSES,
        features=JET_FEATURES,
        name=f"jsc ({path.name})",
    )


def _openml_jets() -> Dataset:
    from sklearn.datasets import fetch_openml

    try:
        jets = fetch_openml("hls4ml_lhc_jets_hlf", as_frame=True, parser="auto")
    except (URLError, OSError) as error:
        raise LabkitError(
            f"dataset: 'jsc-openml' is downloaded from openml.org, which did not answer ({error}); "
            "'jsc' comes with labkit and needs no network"
        ) from error
    if absent := [name for name in JET_FEATURES if name not in jets.data.columns]:
        raise LabkitError(f"dataset: 'jsc-openml' lacks the columns {', '.join(absent)}")
    labels = jets.target.astype(str)
    if unknown := sorted(set(labels) - set(JET_CLASSES)):
        raise LabkitError(f"dataset: 'jsc-openml' has unknown classes {', '.join(unknown)}")
    return Dataset.from_arrays(
        jets.data[list(JET_FEATURES)].to_numpy(),
        labels.map(JET_CLASSES.index).to_numpy(),
        classes=JET_CLASSES,
        features=JET_FEATURES,
        name="jsc (OpenML)",
    )


def _read_table(path: Path, label: str) -> Dataset:
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


def _read_npz(path: Path, label: str) -> Dataset:
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


def _read_cifar10(folder: Path) -> Dataset:
    """Reads CIFAR-10's python batches: the test batch is the test split, as published."""
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
    labels, classes = _encode(labels, CIFAR10_CLASSES)
    training = np.arange(len(labels) - n_test)
    train_rows, val_rows = train_test_split(
        training, test_size=0.1, stratify=labels[training], random_state=SPLIT_SEED
    )
    rows = train_rows, val_rows, np.arange(len(labels) - n_test, len(labels))
    return Dataset(**_standardised(x, labels, rows), classes=classes, features=(), name="CIFAR-10")


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
