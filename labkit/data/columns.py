"""The columns of a table, as numbers: checked here; made one-hot and imputed by scikit-learn."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator

from labkit.checks import Table
from labkit.errors import LabkitError, in_words, shown

Missing = Literal["error", "drop", "impute"]
Categories = Literal["onehot", "error"]
Task = Literal["classification", "binary", "regression"]
MOST_TEXTS = 100  # different ones, in a column that is made one-hot


class Reading(Table):
    """How a file is read. The keys are those of `load_data`, and of a configuration."""

    task: Annotated[
        Task | None, BeforeValidator(lambda task: "classification" if task == "cls" else task)
    ] = None
    label: str | int = "label"
    drop: tuple[str, ...] = ()
    separator: str | None = None
    encoding: str | None = None
    missing: Missing = "error"
    categories: Categories = "onehot"


def tidy(table: Any, categories: Categories) -> tuple[Any, list[str]]:
    """Returns a table whose columns hold either numbers or text, and what was decided."""
    import pandas as pd

    if len({*table.dtypes}) == 1 and table.dtypes.iloc[0].kind in "biuf":  # as an array's are
        return table, []
    tidied, notes, faults = {}, [], {}
    for name, column in table.items():
        if column.dtype.kind in "biuf" and column.count():
            tidied[name] = column.to_numpy(np.float64, na_value=np.nan)
            continue
        values = column.astype(object).where(column.notna(), np.nan)
        numbers = tidied[name] = pd.to_numeric(values, errors="coerce")
        others = values[numbers.isna() & values.notna()]
        count, first = others.map(str).nunique(), shown(next(iter(others), None))
        if numbers.dtype.kind == "c" or not all(isinstance(text, str) for text in others):
            faults[name] = f"is of type {column.dtype}"
        elif not values.count():
            faults[name] = "is empty"
        elif not count:
            tidied[name] = numbers.astype(np.float64)
        elif count == 1 and numbers.count() and not any(map(str.isalnum, others.iloc[0])):
            notes.append(f"{first} in {name!r} is a missing value")
        elif 2 * numbers.count() > values.count():
            faults[name] = f"holds numbers, but {first} in row {others.index[0]}"
        elif pd.to_datetime(others, errors="coerce", format="ISO8601").notna().all():
            faults[name] = f"holds dates, such as {first}"
        elif categories == "error":
            faults[name] = f"holds text, such as {first}"
        elif count > min(MOST_TEXTS, len(values) / 2):
            faults[name] = f"holds {count} texts in {len(values)} rows, such as {first}"
        else:
            tidied[name] = values.map(str, na_action="ignore").astype(object)
    if faults:
        said = "; ".join(f"column {name!r} {what}" for name, what in faults.items())
        raise LabkitError(f"x: {said}; correct it, or write drop={[*faults]}")
    return pd.DataFrame(tidied), notes


def complete_rows(table: Any, missing: Missing) -> np.ndarray:
    """Returns which rows of a tidy table are used: bool `[rows]`."""
    absent = table.isna()
    for what, bad in ("infinite", table.isin([np.inf, -np.inf])), ("missing", absent):
        counts = {name: int(n) for name, n in bad.sum().items() if n}
        if counts and (what == "infinite" or missing == "error"):
            left = f"which leaves {(~bad.any(axis=1)).sum()} of {len(table)} rows"
            mend = f"write drop={[*counts]}, missing='impute', or missing='drop', {left}"
            mend = mend if bad is absent else f"correct them, or write drop={[*counts]}"
            raise LabkitError(f"x: {what} values in {counts}; {mend}")
    return ~absent.any(axis=1).to_numpy() | (missing != "drop")


def as_numbers(table: Any, train: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Returns a tidy table's numbers `[rows, features]`, their names, and what was done.

    Text becomes one-hot; a missing value the median or the commonest text of its column, with one
    more feature that says where. What these are is known from the training rows alone.
    """
    texts = [name for name in table if table[name].dtype == object]
    absent = [f"{name!r} ({n})" for name, n in table.isna().sum().items() if n]
    if not texts and not absent:
        return table.to_numpy(np.float64), tuple(table), []
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    median = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    onehot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    steps = [
        ("numbers", median, [name for name in table if name not in texts]),
        ("texts", make_pipeline(SimpleImputer(strategy="most_frequent"), onehot), texts),
        ("flags", MissingIndicator(error_on_new=False), texts),
    ]
    with in_words("x: its columns cannot be made numbers"):
        transformer = ColumnTransformer(steps, verbose_feature_names_out=False)
        x = transformer.fit(table.iloc[train]).transform(table)
        names = tuple(transformer.get_feature_names_out())
    done = {"one-hot": [*map(repr, texts)], "imputed, with a feature that says where": absent}
    return x, names, [f"{what}: {', '.join(own)}" for what, own in done.items() if own]
