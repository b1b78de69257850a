"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labkit.data.dataset import Dataset
from labkit.data.jets import embedded_jets, openml_jets, read_jets
from labkit.data.readers import read_cifar10, read_npz, read_table
from labkit.errors import LabkitError
from labkit.names import build, find


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
    if path is not None:
        return read_jets(_existing("path", Path(path)))
    file, suffix = Path(name), Path(name).suffix.lower()
    if str(name) in DATA:
        return DATA[str(name)]()
    if file.is_dir():
        return read_cifar10(file)
    if suffix in READERS:
        return READERS[suffix](_existing("dataset", file), label)
    more = f", the path of a {', '.join(READERS)} file, or of CIFAR-10's folder"
    return build("dataset", str(name), find("dataset", str(name), DATA, "data set", more), Dataset)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Dataset.from_arrays(
        digits.data, digits.target, features=digits.feature_names, name="digits"
    )


def _digits_as_images() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
    return Dataset.from_arrays(images, digits.target, name="digits, 32×32")


def _existing(key: str, path: Path) -> Path:
    if not path.is_file():
        raise LabkitError(f"{key}: there is no file {str(path)!r}")
    return path


DATA: dict[str, Callable[[], Dataset]] = {
    "jsc": embedded_jets,
    "jsc-openml": openml_jets,
    "digits": _digits,
    "digits32": _digits_as_images,
}
READERS: dict[str, Callable[[Path, str], Dataset]] = {
    ".csv": read_table,
    ".parquet": read_table,
    ".npz": read_npz,
    ".h5": lambda file, _: read_jets(file),
    ".hdf5": lambda file, _: read_jets(file),
}
