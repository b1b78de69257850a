"""A data set in memory: split once, standardised by the training split, checked on the way in."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch

from labkit.errors import LabkitError

# The split is part of a data set, not of an experiment: everyone compares on the same rows.
SPLIT_SEED = 0
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # the indices of each split's rows


class Split(NamedTuple):
    """Rows of a data set: `x`, float32 `[rows, …]`, and their labels `y`, int64 `[rows]`."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A classification data set in three splits.

    Attributes:
        x_train: float32 `[rows, features]` (or `[rows, channels, height, width]`), standardised
            with the mean and standard deviation of the training split.
        y_train: int64 `[rows]`, each an index into `classes`.
        x_val: As `x_train`, to validate on.
        y_val: Its labels.
        x_test: As `x_train`, to test on: once, at the end.
        y_test: Its labels.
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
    ) -> Self:
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
        x, y = _as_array("x", x), _as_array("y", y)
        if x.ndim not in (2, 4):
            expected = "[rows, features] or [rows, channels, height, width]"
            raise LabkitError(f"x: expected {expected}, got shape {x.shape}")
        if y.ndim != 1 or len(y) != len(x):
            raise LabkitError(f"y: expected one label a row of x, [{len(x)}], got shape {y.shape}")
        if x.ndim == 2 and features is None:
            features = [f"x{column}" for column in range(x.shape[1])]
        features = tuple(features or ())
        if x.ndim == 2 and len(features) != x.shape[1]:
            raise LabkitError(f"features: expected {x.shape[1]} names, got {len(features)}")
        x = _as_floats(x, features)
        labels, names = encode(y, classes)
        if not (validation > 0 and test > 0 and validation + test < 1):
            expected = "expected two positive shares with a sum below 1"
            raise LabkitError(f"validation, test: {expected}, got {validation!r} and {test!r}")
        rest, test_rows = hold_out(np.arange(len(x)), labels, round(test * len(x)), seed)
        train_rows, val_rows = hold_out(rest, labels, round(validation * len(x)), seed)
        rows = train_rows, val_rows, test_rows
        return cls.from_rows(x, labels, rows, classes=names, features=features, name=name)

    @classmethod
    def from_rows(
        cls, x: np.ndarray, labels: np.ndarray, rows: Rows, *, classes: tuple[str, ...],
        features: tuple[str, ...], name: str,
    ) -> Self:  # fmt: skip
        """Standardises checked arrays, given the rows of each split, in the order of `SPLITS`."""
        mean = x[rows[0]].mean(axis=0, dtype=np.float64)
        std = x[rows[0]].std(axis=0, dtype=np.float64)
        std[std == 0] = 1  # a constant feature stays constant
        tensors = {}
        for split, own in zip(SPLITS, rows):
            tensors[f"x_{split}"] = torch.from_numpy(((x[own] - mean) / std).astype(np.float32))
            tensors[f"y_{split}"] = torch.from_numpy(labels[own])
        return cls(**tensors, classes=classes, features=features, name=name)

    def split(self, name: SplitName) -> Split:
        """Returns the rows of one split: `x, y = data.split("val")`."""
        return Split(getattr(self, f"x_{name}"), getattr(self, f"y_{name}"))

    def to(self, device: torch.device | str) -> Self:
        """Returns the data set with all tensors on a device."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        moved: Any = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)

    def fingerprint(self) -> str:
        """Returns a short hash of the training and validation data: equal data, equal hash."""
        digest = hashlib.sha256()
        for tensor in (*self.split("train"), *self.split("val")):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.x_train)} training, {len(self.x_val)} validation and "
            f"{len(self.x_test)} test rows of shape {tuple(self.x_train.shape[1:])}, "
            f"{len(self.classes)} classes)"
        )


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


def encode(y: np.ndarray, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels as int64 indices, and the names of the classes.

    Args:
        y: Labels, `[rows]`.
        classes: Class names, if `y` holds indices into them.

    Raises:
        LabkitError: A label is missing or no index, or a class has too few rows.
    """
    import pandas as pd

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
            got = f"got {y.min()} to {y.max()}"
            raise LabkitError(f"y: expected indices from 0 to {len(classes) - 1}, {got}")
    counts = np.bincount(labels, minlength=len(classes))
    if (n_classes := np.count_nonzero(counts)) < 2:
        raise LabkitError(f"y: expected at least two classes, got {n_classes}")
    if counts.min() < 3:
        rare = f"class '{classes[int(counts.argmin())]}' has {counts.min()} rows"
        raise LabkitError(f"y: {rare}; expected at least 3, one for each split")
    return labels.astype(np.int64), tuple(classes)


def hold_out(
    rows: np.ndarray, labels: np.ndarray, n: int, seed: int = SPLIT_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that are left, and `n` held out, with every class's share in both.

    Args:
        rows: Indices into `labels`.
        labels: The class of each row of the data set.
        n: How many to hold out.
        seed: Which.

    Raises:
        LabkitError: There are too few.
    """
    from sklearn.model_selection import train_test_split

    try:
        left, held = train_test_split(rows, test_size=n, stratify=labels[rows], random_state=seed)
    except ValueError as error:
        few = f"{len(labels)} rows of {len(np.unique(labels))} classes"
        raise LabkitError(f"y: {few} are too few to split: {error}") from error
    return left, held
