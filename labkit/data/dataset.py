"""A data set in memory: split once, standardised by the training split, checked on the way in."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch

from labkit.data.arrays import Examples, as_array, examples
from labkit.data.columns import Categories, Missing, Reading, Task, as_numbers, complete_rows, tidy
from labkit.data.labels import encode, hold_out, numbers
from labkit.errors import LabkitError, shown

log = logging.getLogger(__name__)

# The split is part of a data set, not of an experiment: everyone compares on the same rows.
SPLIT_SEED = 0
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
Rows = Sequence[np.ndarray]  # the indices of each split's rows


class Split(NamedTuple):
    """Rows of a data set: `x`, float32 `[rows, …]`, and their labels `y`, as in `Dataset`."""

    x: torch.Tensor
    y: torch.Tensor


class Target(NamedTuple):
    """A target of a regression, with what it was standardised by, from the training rows."""

    name: str
    mean: float
    std: float


@dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    Attributes:
        x_train: float32 `[rows, features]` (or `[rows, channels, height, width]`), standardised
            with the mean and standard deviation of the training split.
        y_train: int64 `[rows]`, each an index into `classes`; of a regression float32
            `[rows, targets]`, standardised like `x_train`.
        x_val, y_val: Likewise, to validate on.
        x_test, y_test: Likewise, to test on: once, at the end.
        classes: The names of the classes; a regression has none.
        features: The names of the features; empty for images.
        name: What to call the data set in a figure.
        ranges: Least and greatest value of each feature before it was standardised; of all images.
        notes: What was done to its rows and columns.
        task: `classification`, with a logit a class; `binary`, with one logit, of the second of two
            classes; or `regression`, with an output a target.
        targets: Of a regression: a prediction is `mean + std * output`.
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
    ranges: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    task: Task = "classification"
    targets: tuple[Target, ...] = ()

    @classmethod
    def from_arrays(
        cls, x: Any, y: Any = None, *, classes: Sequence[str] | None = None,
        features: Sequence[str] | None = None, name: str = "arrays", validation: float = 0.1,
        test: float = 0.1, seed: int = SPLIT_SEED, groups: Any = None,
        missing: Missing = "error", categories: Categories = "onehot",
        task: Task = "classification",
    ) -> Self:  # fmt: skip
        """Splits and standardises data of one's own.

        Args:
            x: Numbers, `[rows, features]` or `[rows, channels, height, width]`; a DataFrame, which
                may hold text; or, without `y`, a scikit-learn Bunch, or PyTorch's Dataset or
                DataLoader, whose data set is read in its order.
            y: Labels, `[rows]` or `[rows, 1]`: strings, whole numbers or booleans; or of a
                regression numbers, `[rows, targets]`.
            classes: Class names, if `y` holds indices into them; else the labels, sorted.
            features: Feature names, one a column; by default those of `x`, or `x0`, `x1`, …
            name: What to call the data set in a figure.
            validation, test: Shares of the rows, in (0, 1), stratified by class.
            seed: Which rows go to which split. Every class has a row in each.
            groups: A group for each row, such as a patient: its rows are all in one split.
            missing: Of missing values, `"drop"` leaves out the rows; `"impute"` puts the training
                rows' median or commonest text there, and adds a feature that says where. Both
                leave out rows without a label.
            categories: Whether text becomes one-hot.
            task: As in `Dataset`.

        Raises:
            LabkitError: Wrong shapes, missing or infinite values, fewer than two classes, or too
                few rows of a class; the message says which.
        """
        how, labels = Reading(missing=missing, categories=categories, task=task), y
        x, y, classes = examples(x, y, features, classes, task)
        shares = (validation, test)
        if not all(isinstance(n, Real) and 0 < n < 1 for n in shares) or sum(shares) >= 1:
            expected = "expected two positive shares with a sum below 1"
            raise LabkitError(f"validation, test: {expected}, got {shown(shares)}")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise LabkitError(f"seed: expected a whole number from 0 to 2³² - 1, got {shown(seed)}")
        if groups is not None and (groups := as_array("groups", groups)).shape != y.shape[:1]:
            raise LabkitError(f"groups: expected one a row, got shape {groups.shape}")

        def split(rows: np.ndarray, labels: np.ndarray) -> Rows:
            rest, held = hold_out(rows, labels, round(test * len(rows)), seed, groups)
            return *hold_out(rest, labels, round(validation * len(rows)), seed, groups), held

        return cls._from_examples((x, y, classes), split, name, how, labels)

    @classmethod
    def from_splits(  # noqa: PLR0917
        cls, x_train: Any, y_train: Any, x_val: Any, y_val: Any, x_test: Any, y_test: Any, *,
        classes: Sequence[str] | None = None, features: Sequence[str] | None = None,
        name: str = "splits", missing: Missing = "error", categories: Categories = "onehot",
        task: Task = "classification",
    ) -> Self:  # fmt: skip
        """Standardises data that are split already.

        Args:
            x_train, y_train: As `x` and `y` of `from_arrays`.
            x_val, y_val: Likewise; or `None`, for a tenth of the training rows.
            x_test, y_test: Likewise.
            classes, features, name, missing, categories, task: As in `from_arrays`.

        Raises:
            LabkitError: As `from_arrays`; or the splits have other features.

        Example:
            >>> data = Dataset.from_splits(x_train, y_train, None, None, x_test, y_test)
        """
        import pandas as pd

        how = Reading(missing=missing, categories=categories, task=task)
        pairs = [(x_train, y_train), (x_val, y_val), (x_test, y_test)]
        pairs = pairs[::2] if x_val is None else pairs
        parts = [examples(*pair, features, classes, task) for pair in pairs]
        tables, labels, (named, *_) = zip(*parts)
        forms = [[*getattr(table, "columns", table.shape[1:])] for table in tables]
        if any(form != forms[0] for form in forms):
            raise LabkitError("x_val, x_test: expected the features of x_train, in their order")
        targets = {(*y.columns,) for _, y in pairs if len(getattr(y, "columns", ())) > 1}
        if len(targets) > 1 or len({own.shape[1:] for own in labels}) > 1:
            raise LabkitError("y_val, y_test: expected the targets of y_train, in their order")
        x = np.concatenate(tables) if isinstance(tables[0], np.ndarray) else pd.concat(tables)
        origin = np.repeat(range(len(parts)), [*map(len, labels)])

        def split(rows: np.ndarray, labels: np.ndarray) -> Rows:
            train, *held = (rows[origin[rows] == part] for part in range(len(parts)))
            if x_val is not None:
                return train, *held
            return *hold_out(train, labels, round(0.1 * len(train)), SPLIT_SEED), *held

        return cls._from_examples((x, np.concatenate(labels), named), split, name, how, y_train)

    @classmethod
    def _from_examples(
        cls, given: Examples, split: Callable[[np.ndarray, np.ndarray], Rows], name: str,
        how: Reading, targets: Any,
    ) -> Self:  # fmt: skip
        x, y, classes = given
        features: tuple[str, ...] = ()
        notes: list[str] = []
        used, tabular = np.ones(len(y), dtype=bool), not isinstance(x, np.ndarray)
        if tabular:
            x, notes = tidy(x.reset_index(drop=True), how.categories)
            used = complete_rows(x, how.missing)
        if how.task == "regression":
            y, labels, classes = numbers(y, used, classes, how.missing)
        else:
            labels, classes = encode(y, used, classes, how.missing)
            if how.task == "binary" and len(classes) != 2:
                raise LabkitError(f"y: expected two classes for task 'binary', got {len(classes)}")
        rows = split(known := np.flatnonzero(labels >= 0), labels)
        if len(known) < len(labels):
            notes.append(f"left out {len(labels) - len(known)} of {len(labels)} rows")
            x, y, labels = x.iloc[known] if tabular else x[known], y[known], labels[known]
            rows = [np.searchsorted(known, own) for own in rows]
        parts = [labels[own] for own in rows]
        notes += _absent(name, classes, parts)
        if tabular:
            x, features, done = as_numbers(x, rows[0])
            notes += done
        tensors: dict[str, Any] = {}
        scales: tuple[Target, ...] = ()
        if how.task == "regression":
            scales, parts = _scaled(y, rows, targets)
        for part, values, own in zip(SPLITS, _standardised("x", x, rows, features), parts):
            tensors |= {f"x_{part}": torch.from_numpy(values), f"y_{part}": torch.from_numpy(own)}
        least, most = (np.atleast_1d(f(x, axis=0 if features else None)) for f in (np.min, np.max))
        return cls(
            **tensors, classes=classes, features=features, name=name, notes=tuple(notes),
            ranges=tuple(zip(least.tolist(), most.tolist())), task=how.task or "classification",
            targets=scales,
        )  # fmt: skip

    @property
    def n_outputs(self) -> int:
        """How many outputs a network has for a row."""
        return 1 if self.task == "binary" else len(self.targets or self.classes)

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

    def describe(self) -> str:
        """Returns the card: rows, classes, chance level, ranges of the features, what was done."""
        about = ["target: mean ± deviation in training; errors are in such deviations"]
        about += [f"  {name}: {mean:.6g} ± {std:.6g}" for name, mean, std in self.targets]
        if self.classes:
            counts = [self.split(s).y.bincount(minlength=len(self.classes)) for s in SPLITS]
            chance = counts[1][counts[0].argmax()].item() / len(self.y_val)
            columns = [self.classes, *(count.tolist() for count in counts)]
            about = [f"chance level {chance:.3f}, by one class for all"]
            about += ["class: training + validation + test rows"]
            about += [f"  {name}: {' + '.join(map(str, n))}" for name, *n in zip(*columns)]
        named = zip(self.features or ["all"], self.ranges)
        return "\n".join([
            repr(self),
            *about,
            "feature: range before standardising",
            *(f"  {name}: {low:.6g} to {high:.6g}" for name, (low, high) in named),
            *(f"note: {note}" for note in self.notes),
        ])  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.x_train)} training, {len(self.x_val)} validation and "
            f"{len(self.x_test)} test rows of shape {tuple(self.x_train.shape[1:])}, "
            f"{len(self.targets or self.classes)} {'classes' if self.classes else 'target(s)'})"
        )


def _absent(name: str, classes: Sequence[str], labels: Sequence[np.ndarray]) -> list[str]:
    """Returns which classes a split lacks, in words; training has to have them all."""
    notes = []
    for part, own in zip(SPLITS, labels):
        if absent := [classes[i] for i in {*range(len(classes))} - {*own.tolist()}]:
            notes.append(f"no {part} row is of class {', '.join(absent)}")
            if part == "train" or not len(own):
                raise LabkitError(f"y: {notes[-1]}")
            log.warning("%s: %s", name, notes[-1])
    return notes


def _scaled(y: np.ndarray, rows: Rows, given: Any) -> tuple[tuple[Target, ...], list[np.ndarray]]:
    """Returns what targets, `[rows, targets]`, are standardised by, and those of each split."""
    names = getattr(given, "columns", [getattr(given, "name", None) or "y"])
    names = names if len(names) == y.shape[1] else [f"y{i}" for i in range(y.shape[1])]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = y[rows[0]].mean(axis=0), y[rows[0]].std(axis=0)
    if not (np.isfinite(std) & (std > 0)).all():
        raise LabkitError("y: a target is the same in all training rows, or has no finite variance")
    if (y[rows[1]] == y[rows[1]][:1]).all(axis=0).any():
        raise LabkitError("y: a target is the same in all validation rows, where R² needs others")
    scales = tuple(map(Target, map(str, names), mean.tolist(), std.tolist()))
    return scales, _standardised("y", y, rows, [one.name for one in scales])


def _standardised(key: str, x: np.ndarray, rows: Rows, features: Sequence[str]) -> list[np.ndarray]:
    """Returns float32 of each split, by the mean and standard deviation of the training rows."""
    # By a power of two, which rounds nothing: 1e200 has no square, and that of 1e-200 is 0.
    power = -np.frexp(np.abs(x[rows[0]].astype(np.float64)).max(axis=0))[1]
    with np.errstate(over="ignore"):
        exact = [np.ldexp(x[own].astype(np.float64), power) for own in rows]
        mean, std = exact[0].mean(axis=0), exact[0].std(axis=0)
        # A constant feature stays constant.
        std = np.where(std == 0, np.ldexp(1.0, power), std)
        parts = [((part - mean) / std).astype(np.float32) for part in exact]
    for split, part in zip(SPLITS, parts):
        if not np.isfinite(part).all():
            raise LabkitError(f"{key}: a {split} row is too far from the training rows for float32")
    if features:  # of a thousand rows, as many values are to be different as were
        sorts = (np.sort(part[:1000], axis=0) for part in (exact[0], parts[0]))
        before, after = ((np.diff(part, axis=0) != 0).sum(axis=0) for part in sorts)
        if lost := [name for name, few in zip(features, after < 0.9 * before) if few]:
            said = f"{lost} have values so far out that float32 cannot tell the others apart"
            raise LabkitError(f"{key}: {said}; correct them, or take logarithms")
    return parts
