"""Labels as indices of classes, and which rows each split has."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.data.columns import Missing
from labkit.errors import LabkitError, in_words, shown

# Texts that may stand for no label, or for a class of that name.
NOTHING = {"", "?", "na", "n/a", "nan", "none", "null", "<na>", "#n/a"}
MOST_NUMBERS = 20  # different ones that are classes, too, where some of them are rare


def encode(
    y: np.ndarray, used: np.ndarray, classes: Sequence[str] | None, missing: Missing
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns int64 indices of classes, -1 for a row that is not used, and the classes' names."""
    import pandas as pd

    with in_words("y: expected labels"):
        column = pd.Series(y)
    used = used & ~_absent(y, column, missing)
    known = column[used].infer_objects().to_numpy()
    continuous = (
        "expected class labels, but they look continuous; write task='regression', or make classes "
        "of them, such as pandas.qcut(y, 3, labels=False)"
    )
    if classes is None:
        if known.dtype.kind == "f" and not np.all(np.isfinite(known) & (known == np.floor(known))):
            raise LabkitError(f"y: {continuous}")
        with in_words("y: the labels are of several types"):
            names, labels = np.unique(known, return_inverse=True)
        classes = [str(int(name) if known.dtype.kind == "f" else name) for name in names]
    else:
        if known.dtype.kind not in "biu":
            raise LabkitError(f"y: expected indices into classes, got values of type {known.dtype}")
        if len(known) and not 0 <= known.min() <= known.max() < len(classes):
            got = f"got {known.min()} to {known.max()}"
            raise LabkitError(f"y: expected indices from 0 to {len(classes) - 1}, {got}")
        labels = known.astype(np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if (n_classes := np.count_nonzero(counts)) < 2:
        raise LabkitError(f"y: expected at least two classes, got {n_classes}")
    if rare := [f"class {name!r} has {n} rows" for name, n in zip(classes, counts) if n < 3]:
        if known.dtype.kind in "iuf" and n_classes > MOST_NUMBERS:
            raise LabkitError(f"y: {continuous}")
        raise LabkitError(f"y: {', '.join(rare)}; expected 3 rows of a class, one for each split")
    indices = np.full(len(y), -1)
    indices[used] = labels
    return indices, tuple(classes)


def numbers(
    y: np.ndarray, used: np.ndarray, classes: Sequence[str] | None, missing: Missing
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns float64 targets `[rows, targets]`, 0 for a row that is used, else -1; no classes."""
    import pandas as pd

    if classes is not None:
        raise LabkitError("classes: a regression has none")
    with in_words("y: expected numbers"):
        table = pd.DataFrame(y)
    columns = [pd.to_numeric(table[name], errors="coerce") for name in table]
    for name, column in zip(table, columns):
        text = (column.isna() & (used := used & ~_absent(y, table[name], missing))).to_numpy()
        if column.dtype.kind == "c" or table[name].dtype.kind in "mM" or text.any():
            got = shown(table[name].iloc[int(text.argmax())])
            raise LabkitError(f"y: expected numbers, got {got} in row {text.argmax()}")
    targets = np.stack([column.to_numpy(np.float64) for column in columns], axis=1)
    bad = used & ~np.isfinite(targets).all(axis=1)
    if bad.any():
        raise LabkitError(f"y: row {bad.argmax()} is infinite; correct it, or leave it out")
    return targets, np.where(used, 0, -1), ()


def _absent(y: np.ndarray, column: Any, missing: Missing) -> np.ndarray:
    """Returns which rows have no label; these are an error unless they may be left out."""
    absent = (column.isna() | column.map(str).str.strip().str.lower().isin(NOTHING)).to_numpy()
    if absent.any() and missing == "error":
        first = f"the first is row {absent.argmax()} ({shown(y[absent.argmax()])})"
        mend = "missing='drop' leaves them out; rename the class if it is one"
        raise LabkitError(f"y: {absent.sum()} rows have no label, {first}; {mend}")
    return absent


def hold_out(
    rows: np.ndarray, labels: np.ndarray, n: int, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that are left, and about `n` held out, with every class's share in both.

    A class has one row in both, at least. Rows of a group stay together.
    """
    if groups is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        with in_words(f"groups: {len({*groups[rows].tolist()})} are too few to split"):
            n_folds = max(round(len(rows) / n), 2)
            folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
            kept, moved = next(folds.split(rows, labels[rows], groups[rows]))
        return rows[kept], rows[moved]
    left, held = stratified(rows, labels, n, seed)
    for label in np.setdiff1d(labels[rows], labels[held]):
        rare = left[labels[left] == label][0]
        left, held = left[left != rare], np.append(held, rare)
    return left, held


def stratified(
    rows: np.ndarray, labels: np.ndarray, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that are left and `n` held out, classes in proportion."""
    # As scikit-learn's `train_test_split` draws, whose import takes 70 MB and a second.
    classes, own, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    if min(n, len(rows) - n) < len(classes) or counts.min() < 2:
        few = f"{len(labels)} rows of {len(np.unique(labels))} classes"
        raise LabkitError(f"y: {few} are too few to split")
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
