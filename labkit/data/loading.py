"""Data sets by name, and from files of one's own: tables, NumPy archives, CIFAR-10's batches."""

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from labkit.checks import as_path, readable
from labkit.data.columns import Categories, Missing, Reading, Task
from labkit.data.dataset import Dataset
from labkit.data.jets import embedded_jets, openml_jets, read_jets
from labkit.errors import LabkitError, did_you_mean, in_words, shown
from labkit.names import build, find

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# What pickled arrays are made by.
ARRAYS = {"numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode"}
TEXTS = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data")
TABLES = (*TEXTS, *(f"{kind}.gz" for kind in TEXTS), ".parquet")
# What pandas reads, and labkit does not.
ELSEWHERE = {
    ".xlsx": "read_excel", ".xls": "read_excel", ".ods": "read_excel", ".json": "read_json",
    ".feather": "read_feather", ".dta": "read_stata", ".sas7bdat": "read_sas", ".sav": "read_spss",
}  # fmt: skip

log = logging.getLogger(__name__)


def load_data(
    name: str | Path, *, path: str | Path | None = None, label: str | int = "label",
    drop: Sequence[str] = (), separator: str | None = None, encoding: str | None = None,
    missing: Missing = "error", categories: Categories = "onehot", task: Task | None = None,
) -> Dataset:  # fmt: skip
    """Returns a data set, and logs in one line what was decided of a file.

    Args:
        name: `"jsc"` (jets that come with labkit), `"jsc-openml"` (the public jets, downloaded
            from OpenML), `"digits"` (scikit-learn's 8×8 images, flat), `"digits32"` (the same as
            images, `[3, 32, 32]`: each pixel 4×4 times, three times grey), the path of a table
            (CSV, TSV, also `.gz`; Parquet, also a folder), of an NPZ or HDF5 file (the last in
            the layout of the public jets) or of CIFAR-10's folder `cifar-10-batches-py`, or
            `package.module:function`, which returns a `Dataset` when called without arguments.
        path: For `"jsc"`: the public HDF5 file to read in place of the embedded jets.
        label: The column of a table with the labels, by its name or place (-1 is the last); every
            other one is a feature. For NPZ the array with them, beside one with the features,
            unless it holds `x_train`, `y_train`, `x_test` and `y_test`, as MNIST's does.
        drop: Columns of a table that are no features.
        separator, encoding: Of a table, such as `";"`; by default what its first lines show.
        missing, categories: For tables, as in `Dataset.from_arrays`.
        task: As there; by default that of the data set, and classification of a file's labels.

    Raises:
        LabkitError: No such data set, file or column; or what it holds cannot be used.
    """
    given: Any = {"label": label, "drop": drop, "separator": separator, "encoding": encoding}
    how = Reading(**given, missing=missing, categories=categories, task=task)
    data = _read(name, path, how)
    if how.task not in (None, data.task):
        if (how.task, data.task, len(data.classes)) != ("binary", "classification", 2):
            classes = f" of {len(data.classes)} classes" if data.classes else ""
            raise LabkitError(f"task: {data.name!r} is for {data.task}{classes}, not {how.task}")
        return replace(data, task="binary")
    return data


def _read(name: str | Path, path: str | Path | None, how: Reading) -> Dataset:
    if not isinstance(name, str | Path):
        raise LabkitError(f"dataset: expected a name or a path, got {shown(name)}")
    if path is not None and name != "jsc":
        raise LabkitError(f"path: only the data set 'jsc' takes one, not {str(name)!r}")
    if path is not None:
        return read_jets(readable("path", as_path("path", path)))
    kind = _kind(Path(name))
    if kind in ELSEWHERE or "://" in str(name):
        read = f"pandas.{ELSEWHERE.get(kind, 'read_csv')}({str(name)!r})"
        instead = "Dataset.from_arrays(frame.drop(columns=LABEL), frame[LABEL])"
        raise LabkitError(f"dataset: labkit does not read it; write frame = {read}, and {instead}")
    with in_words(f"dataset: cannot read {str(name)!r}"):
        file = Path(name).expanduser()
        folder = str(name) not in DATA and file.is_dir()
        if kind in TABLES or (folder and next(file.rglob("*.parquet"), None)):
            from labkit.data.tables import read_table

            x, y, notes = read_table(file if folder else readable("dataset", file), how)
            data = Dataset.from_arrays(
                x, y, name=file.name, missing=how.missing, categories=how.categories,
                task=how.task or "classification",
            )  # fmt: skip
            if notes := [*notes, *data.notes]:
                log.warning("%s: %s", file.name, "; ".join(notes))
            return replace(data, notes=tuple(notes))
        used = {"task", "label", "missing"} if kind == ".npz" else {"task", "label"}
        if unused := how.model_dump(exclude_defaults=True).keys() - used:
            raise LabkitError(f"{min(unused)}: only a table takes it, not {str(name)!r}")
        if str(name) in DATA:
            return DATA[str(name)]()
        if folder:
            return _read_cifar10(file)
        if kind in READERS:
            return READERS[kind](readable("dataset", file), how)
    more = f", the path of a {', '.join([*TEXTS, '.parquet', *READERS])} file, or of a folder"
    return build("dataset", str(name), find("dataset", str(name), DATA, "data set", more), Dataset)


def names_file(name: str, place: Path) -> bool:
    """Returns whether a data set's name is a file's, which would be at this place."""
    return name not in DATA and (_kind(place) in {*TABLES, *READERS} or place.is_dir())


def _kind(path: Path) -> str:
    """Returns the end of a file's name that says what it is, such as `.csv.gz`."""
    return "".join(path.suffixes[-2 if path.suffix.lower() == ".gz" else -1 :]).lower()


def digits() -> Dataset:
    """Returns scikit-learn's 8×8 images of digits, flat."""
    from sklearn.datasets import load_digits

    read = load_digits()
    return Dataset.from_arrays(read.data, read.target, features=read.feature_names, name="digits")


def digits32() -> Dataset:
    """Returns the same as images `[3, 32, 32]`: each pixel 4×4 times, three times grey."""
    from sklearn.datasets import load_digits

    read = load_digits()
    images = read.images.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
    return Dataset.from_arrays(images, read.target, name="digits, 32×32")


def _read_npz(path: Path, how: Reading) -> Dataset:
    """Reads the array of labels and one other with the features; or MNIST's layout, splits."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    keys = [f"{key}_{split}" for split in ("train", "val", "test") for key in "xy"]
    if {*arrays} in ({*keys}, {*keys} - {"x_val", "y_val"}):
        parts: list[Any] = [arrays.get(key) for key in keys]
        images = [p[:, None] if p is not None and p.ndim == 3 else p for p in parts]
        return Dataset.from_splits(
            *images, name=path.name, missing=how.missing, task=how.task or "classification"
        )
    if how.label not in arrays:
        known = did_you_mean(how.label, arrays)
        raise LabkitError(f"label: {path.name} has no array {how.label!r}; {known}")
    labels = arrays.pop(str(how.label))
    if len(arrays) != 1:
        got = ", ".join(arrays) or "none"
        raise LabkitError(f"dataset: {path}: expected one array beside {how.label!r}, got {got}")
    [x] = arrays.values()
    return Dataset.from_arrays(
        x, labels, name=path.name, missing=how.missing, task=how.task or "classification"
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, numbers, strings and what holds them; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as it was called before NumPy 2
        if f"{module}.{name}" not in ARRAYS:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def _read_cifar10(folder: Path) -> Dataset:
    """Reads CIFAR-10's python batches: the test batch is the test split, as published."""
    names = [path.name for path in sorted(folder.glob("data_batch_*"))]
    if not names or not (folder / "test_batch").is_file():
        expected = "expected data_batch_1 … and test_batch, or Parquet files"
        raise LabkitError(f"dataset: {str(folder)!r} is no folder of CIFAR-10: {expected}")
    x, y = (np.concatenate(part) for part in zip(*(_read_batch(folder / name) for name in names)))
    test = _read_batch(folder / "test_batch")
    return Dataset.from_splits(x, y, None, None, *test, classes=CIFAR10_CLASSES, name="CIFAR-10")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images `[rows, 3, 32, 32]` and their labels."""
    with in_words(f"dataset: {path} is no batch of CIFAR-10"):
        with readable("dataset", path).open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    if len(images) != len(labels):
        raise LabkitError(f"dataset: {path}: {len(images)} images, but {len(labels)} labels")
    return images, labels


DATA: dict[str, Callable[[], Dataset]] = {
    "jsc": embedded_jets,
    "jsc-openml": openml_jets,
    "digits": digits,
    "digits32": digits32,
}
READERS: dict[str, Callable[[Path, Reading], Dataset]] = {
    ".npz": _read_npz,
    ".h5": lambda file, _: read_jets(file),
    ".hdf5": lambda file, _: read_jets(file),
}
