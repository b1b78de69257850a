"""Tables from files: which columns they have, and which of them has the labels."""

import codecs
import csv
import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset

from labkit.checks import check_memory
from labkit.data.columns import Reading
from labkit.errors import LabkitError, did_you_mean, shown


def read_table(path: Path, how: Reading) -> tuple[pd.DataFrame, pd.Series, list[str]]:
    """Returns the features in a file of text, or of Parquet, their labels, and what was decided."""
    notes: list[str] = []
    if path.is_dir() or path.suffix.lower() == ".parquet":
        held = pyarrow.dataset.dataset(path, format="parquet", partitioning="hive")
        check_memory(f"dataset: {str(path)!r}", 8 * held.count_rows() * len(held.schema.names))
        table = pd.read_parquet(path)
        table = table.reset_index(drop=not any(table.index.names))  # one with a name is a column
    else:
        table, notes = _read_text(path, how)
    table.columns = pd.Index([str(name).strip(" '\"") for name in table])
    label, names = how.label, [*table]
    if len(names) == 1:
        only = shown(names[0])
        raise LabkitError(f"separator: {path.name} has one column, {only}; write what is between")
    if isinstance(label, int) and -len(names) <= label < len(names):
        label = names[label]
    for key, name in ("label", label), *(("drop", name) for name in how.drop):
        if name not in names:
            hint = did_you_mean(name, names)
            raise LabkitError(f"{key}: {path.name} has no column {name!r}; {hint}")
    labels, table = table[label], table.drop(columns={label, *how.drop})
    for unnamed in [name for name in table if str(name).startswith("Unnamed: ")]:
        own = table[unnamed]
        if not own.isna().all() and (unnamed != "Unnamed: 0" or not _names_rows(own)):
            mend = f"name it, or write drop=[{unnamed!r}]"
            raise LabkitError(f"dataset: a column of {path.name} has no name; {mend}")
        notes.append("left out a column without a name")
        table = table.drop(columns=unnamed)
    numbers, n = table.select_dtypes("integer").items(), labels.nunique()
    counting = [name for name, own in numbers if (np.diff(own) == 1).all()]
    texts = table.items() if how.task != "regression" else ()
    same = [name for name, own in texts if own.nunique() == n == len({*zip(own, labels)})]
    for what, suspects in ("counts the rows", counting), ("is the label in other words", same):
        if suspects:
            notes.append(f"a feature {what}: drop={suspects} if it is none")
    return table, labels, notes


def _read_text(path: Path, how: Reading) -> tuple[pd.DataFrame, list[str]]:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        head = file.read(1 << 16)
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = how.encoding or ("utf-16" if utf16 else "utf-8-sig")
    lines = [line for line in head.decode(encoding, "replace").splitlines() if line.strip()][:20]
    if not lines:
        raise LabkitError(f"dataset: {path.name} is empty")
    separator = how.separator or _separator(path, lines)
    if len(separator) == 1:
        rows = [*csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    else:
        rows = [re.split(separator, line.strip()) for line in lines]
    first, second = (rows * 2)[0], (rows * 2)[1]
    if len(first) not in (len(second), len(second) - 1):
        said = f"{path.name} has {len(first)} fields in line 1, {len(second)} in line 2"
        mend = "where line 1 has no names, use pandas.read_csv(…, skiprows=1, header=None)"
        raise LabkitError(f"dataset: {said}; {mend} and Dataset.from_arrays")
    header = _has_header(rows)
    if not header and isinstance(how.label, str):
        said = f"label: {path.name} has no row of names, but begins with {shown(lines[0])}"
        raise LabkitError(f"{said}; write the place of the labels, such as label=-1 for the last")
    decimal = "," if separator == ";" and re.search(r"\d,\d", "".join(lines)) else "."
    try:
        table = pd.read_csv(
            path, sep=separator, encoding=encoding, header=0 if header else None, decimal=decimal,
            skipinitialspace=True, low_memory=False,
        )  # fmt: skip
    except UnicodeDecodeError:
        instead = "write encoding='cp1252', or which it is"
        raise LabkitError(f"encoding: {path.name} is not in {encoding}; {instead}") from None
    notes = []
    if len(first) < len(second):  # pandas makes an index of the first column
        if not _names_rows(table.index):
            raise LabkitError(f"dataset: {path.name}: the header has one name less than the rows")
        notes.append("left out a column without a name")
    if not header:
        notes.append("no row of names")
        table = table.rename(columns=lambda place: f"x{place}")
    if separator not in (how.separator, ","):
        notes.append(f"separator {separator!r}" + " and decimal commas" * (decimal == ","))
    return table, notes


def _names_rows(column: pd.Series | pd.Index) -> bool:
    return column.is_unique and column.dtype.kind != "f"


def _separator(path: Path, lines: list[str]) -> str:
    """Returns what stands in the header and in most lines; else white space, or a comma."""
    known = [s for s in ",;\t|" if s in lines[0]]
    known = [s for s in known if 2 * sum(s in line for line in lines) > len(lines)]
    if len(known) > 1:
        raise LabkitError(f"separator: that of {path.name} may be any of {known}; write which")
    words = {len(line.split()) for line in lines}
    return known[0] if known else r"\s+" if len(words) == 1 and words != {1} else ","


def _has_header(rows: list[list[str]]) -> bool:
    """Returns whether the first row has names: text that is not below, numbers only that count."""
    numbers = pd.to_numeric(pd.Series(rows[0], dtype=object), errors="coerce")
    named = [i for i, number in enumerate(numbers) if rows[0][i] and np.isnan(number)]
    below = [*zip(*rows[1:])]
    again = any(rows[0][i] in below[i] for i in named if i < len(below))
    counting = numbers.dropna()
    return not again and bool((counting.diff().dropna() == 1).all() and (counting % 1 == 0).all())
