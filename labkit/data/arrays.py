"""Examples and labels from whatever holds them: arrays, tables, tensors, PyTorch, scikit-learn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import data as torch_data

from labkit.data.columns import Task
from labkit.errors import LabkitError, in_words, shown

Examples = tuple[Any, np.ndarray, tuple[str, ...] | None]  # x, y, the names of classes


def examples(x: Any, y: Any, features: Any, classes: Any, task: Task) -> Examples:
    """Returns a table, or images, with labels, and refuses what would be lost on the way."""
    import pandas as pd

    if y is None:
        x, y, named, names = _with_labels(x)
        features = features or named
        classes = names if classes is None and task != "regression" else classes
    y, table = as_array("y", y), x if isinstance(x, pd.DataFrame) else as_array("x", x)
    shape = table.shape
    if len(shape) not in (2, 4) or not table.size:
        more = "; write x[:, None] for images of one channel" if len(shape) == 3 else ""
        expected = "[rows, features] or [rows, channels, height, width]"
        raise LabkitError(f"x: expected {expected}, got shape {shape}{more}")
    if len(shape) == 4 and shape[3] <= 4 < min(shape[1:3]):
        mend = "x.transpose(0, 3, 1, 2), or x.permute(0, 3, 1, 2) of a tensor"
        raise LabkitError(f"x: the channels of shape {shape} are last; write {mend}")
    y = y[:, 0] if y.shape == (shape[0], 1) else y
    if y.shape != shape[:1] and (
        task != "regression" or y.ndim != 2 or len(y) != shape[0] or not y.size
    ):
        mend = "; write y.argmax(1) if it is one-hot, task='regression' if these are targets"
        got = f"got shape {y.shape}" + mend * (y.ndim == 2)
        raise LabkitError(f"y: expected one label a row of x, [{shape[0]}], {got}")
    if isinstance(table, np.ndarray) and table.dtype.kind not in "biufO":  # as imaginary parts
        more = "; a pandas DataFrame may hold text" if table.dtype.kind in "UT" else ""
        raise LabkitError(f"x: expected numbers, got values of type {table.dtype}{more}")
    classes = None if classes is None else as_names("classes", classes)
    if len(shape) == 4:
        with in_words("x: expected numbers"):
            table = table.astype(np.float64) if table.dtype.kind == "O" else table
        if not np.isfinite(table).all():
            raise LabkitError("x: pixels are missing or infinite; leave their images out")
        return table, y, classes
    table = pd.DataFrame(table)
    default = [name if isinstance(name, str) else f"x{name}" for name in table]
    features = as_names("features", default if features is None else features)
    if not len({*features}) == len(features) == shape[1]:
        raise LabkitError(f"features: expected {shape[1]} different names, got {shown(features)}")
    return table.set_axis(features, axis=1), y, classes


def _with_labels(given: Any) -> tuple[Any, Any, Any, Any]:
    """Returns x, y, the names of features and of classes, of what holds them together."""
    if isinstance(given, Mapping) and {"data", "target"} <= {*given}:  # scikit-learn's Bunch
        named = np.asarray(given["target"]).dtype.kind in "iu"
        classes = given.get("target_names") if named else None
        return given["data"], given["target"], given.get("feature_names"), classes
    given = given.dataset if isinstance(given, torch_data.DataLoader) else given
    if not isinstance(given, torch_data.Dataset):
        one = "no scikit-learn Bunch, PyTorch Dataset or DataLoader"
        raise LabkitError(f"y: expected labels, since x, a {type(given).__name__}, is {one}")
    with in_words("x: expected a PyTorch Dataset of (example, label)"):
        whole = isinstance(given, torch_data.IterableDataset)
        rows: Any = given if whole else (given[i] for i in range(len(given)))  # type: ignore[arg-type]
        x, y = (np.stack([as_array("x", part) for part in parts]) for parts in zip(*rows))
    return x, y, None, getattr(given, "classes", None)


def as_array(key: str, values: Any) -> np.ndarray:
    """Returns an array, where none of it would be lost: a mask, zeros, an end of a row."""
    parts = values if isinstance(values, list | tuple) else [values]
    if any(map(np.ma.isMaskedArray, parts)):
        said = f"drop the rows that it covers, or write {key}.filled(VALUE)"
        raise LabkitError(f"{key}: the mask of a masked array would be lost; {said}")
    if hasattr(values, "toarray"):
        raise LabkitError(f"{key}: expected an array, got a sparse one; write {key}.toarray()")
    with in_words(f"{key}: expected an array with rows of equal length"):
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            # NumPy has no bfloat16; a float32 is the same number.
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array = np.asarray(values)
        # In a list beside text, NaN would become the text "nan".
        beside = parts is values and array.dtype.kind == "U"
        return np.asarray(values, dtype=object) if beside else array


def as_names(key: str, given: Any) -> tuple[str, ...]:
    """Returns names as text."""
    with in_words(f"{key}: expected a list of names, got {shown(given)}"):
        if isinstance(given, str):
            raise TypeError("which is one")
        return tuple(map(str, given))
