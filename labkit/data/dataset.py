"""A data set in memory: split once, standardised by the training split, checked on the way in."""

import hashlib
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch

from labkit.errors import LabkitError, in_words, shown

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
        if x.ndim not in (2, 4) or not x.size:
            expected = "[rows, features] or [rows, channels, height, width]"
            raise LabkitError(f"x: expected {expected}, got shape {x.shape}")
        if y.ndim != 1 or len(y) != len(x):
            raise LabkitError(f"y: expected one label a row of x, [{len(x)}], got shape {y.shape}")
        if features is None:
            features = [f"x{column}" for column in range(x.shape[1])] if x.ndim == 2 else ()
        features = _as_names("features", features)
        if x.ndim == 2 and len(features) != x.shape[1]:
            raise LabkitError(f"features: expected {x.shape[1]} names, got {len(features)}")
        x = _as_floats(x, features)
        labels, names = encode(y, None if classes is None else _as_names("classes", classes))
        shares = (validation, test)
        if not all(isinstance(n, numbers.Real) and 0 < n < 1 for n in shares) or sum(shares) >= 1:
            expected = "expected two positive shares with a sum below 1"
            raise LabkitError(f"validation, test: {expected}, got {shown(shares)}")
        if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
            raise LabkitError(f"seed: expected a whole number from 0 to 2³² - 1, got {shown(seed)}")
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
        # By a power of two, which rounds nothing: 1e200 has no square, and that of 1e-200 is 0.
        power = -np.frexp(np.abs(x[rows[0]]).max(axis=0).astype(np.float64))[1]
        with np.errstate(over="ignore"):
            parts = [np.ldexp(x[own].astype(np.float64), power) for own in rows]
            mean, std = parts[0].mean(axis=0), parts[0].std(axis=0)
            # A constant feature stays constant.
            std = np.where(std == 0, np.ldexp(1.0, power), std)
            parts = [((part - mean) / std).astype(np.float32) for part in parts]
        tensors = {}
        for split, own, part in zip(SPLITS, rows, parts):
            if not np.isfinite(part).all():
                raise LabkitError(f"x: a {split} row is too far from the training rows for float32")
            tensors[f"x_{split}"] = torch.from_numpy(part)
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
    if np.ma.isMaskedArray(values):
        said = f"drop the rows that it covers, or write {key}.filled(VALUE)"
        raise LabkitError(f"{key}: the mask of a masked array would be lost; {said}")
    if hasattr(values, "toarray"):
        raise LabkitError(f"{key}: expected an array, got a sparse one; write {key}.toarray()")
    with in_words(f"{key}: expected an array with rows of equal length"):
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            # NumPy has no bfloat16; a float32 is the same number.
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)


def _as_names(key: str, given: Any) -> tuple[str, ...]:
    with in_words(f"{key}: expected a list of names, got {shown(given)}"):
        if isinstance(given, str):
            raise TypeError("which is one")
        return tuple(map(str, given))


def _as_floats(x: np.ndarray, features: tuple[str, ...]) -> np.ndarray:
    import pandas as pd

    if x.dtype.kind not in "biufO":  # what would lose something, such as an imaginary part
        raise LabkitError(f"x: expected numbers, got values of type {x.dtype}")
    with in_words("x: expected numbers"):
        x = np.where(pd.isna(x), np.nan, x).astype(np.float64)
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
        whole = y.dtype.kind != "f" or np.all(np.isfinite(y) & (y == np.floor(y)))
        if not whole:
            raise LabkitError("y: expected class labels (strings or whole numbers), got fractions")
        with in_words("y: the labels are of several types"):
            names, labels = np.unique(y, return_inverse=True)
        classes = [str(int(name) if y.dtype.kind == "f" else name) for name in names]
    else:
        if not np.issubdtype(y.dtype, np.integer):
            raise LabkitError(f"y: expected indices into classes, got values of type {y.dtype}")
        if len(y) and not 0 <= y.min() <= y.max() < len(classes):
            got = f"got {y.min()} to {y.max()}"
            raise LabkitError(f"y: expected indices from 0 to {len(classes) - 1}, {got}")
        labels = y.astype(np.int64)
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
    # As scikit-learn's `train_test_split` draws, whose import takes 70 MB and a second.
    classes, own, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    if min(n, len(rows) - n) < len(classes) or counts.min() < 2:
        n_classes = len(np.unique(labels))
        raise LabkitError(f"y: {len(labels)} rows of {n_classes} classes are too few to split")
    draw = np.random.RandomState(seed)
    n_left = _shares(counts, len(rows) - n, draw)
    n_held = _shares(counts - n_left, n, draw)
    left, held = [], []
    by_class = np.split(rows[np.argsort(own, kind="stable")], counts.cumsum()[:-1])
    for members, stays, goes in zip(by_class, n_left, n_held):
        drawn = draw.permutation(members)
        left.append(drawn[:stays])
        held.append(drawn[stays : stays + goes])
    return draw.permutation(np.concatenate(left)), draw.permutation(np.concatenate(held))


def _shares(counts: np.ndarray, n: int, draw: np.random.RandomState) -> np.ndarray:
    """Returns how many of `n` rows each class gives: its share, rounded; ties are drawn."""
    exact = counts / counts.sum() * n
    shares = np.floor(exact).astype(int)
    rest = exact - shares
    for largest in np.unique(rest)[::-1]:
        if missing := n - shares.sum():
            [tied] = np.nonzero(rest == largest)
            shares[draw.choice(tied, min(len(tied), missing), replace=False)] += 1
    return shares
