"""Jets of five kinds, 16 features each: those that come with labkit, and the published ones."""

import importlib.resources
from pathlib import Path
from urllib.error import URLError

import numpy as np

from labkit.checks import check_memory
from labkit.data.dataset import Dataset
from labkit.errors import LabkitError, in_words

JET_FEATURES = (
    "zlogz", "c1_b0_mmdt", "c1_b1_mmdt", "c1_b2_mmdt", "c2_b1_mmdt", "c2_b2_mmdt", "d2_b1_mmdt",
    "d2_b2_mmdt", "d2_a1_b1_mmdt", "d2_a1_b2_mmdt", "m2_b1_mmdt", "m2_b2_mmdt", "n2_b1_mmdt",
    "n2_b2_mmdt", "mass_mmdt", "multiplicity",
)  # fmt: skip
JET_CLASSES = ("g", "q", "w", "z", "t")


def embedded_jets() -> Dataset:
    """Returns the jets that come with labkit; see `assets/JETS.md`."""
    file = importlib.resources.files("labkit.data") / "assets" / "jets.npz"
    with importlib.resources.as_file(file) as path, np.load(path, allow_pickle=False) as jets:
        return _jets(jets["x"], jets["y"].astype(np.int64), "embedded jets")


def read_jets(path: Path) -> Dataset:
    """Reads the public HDF5 file: a structured array `t_allpar_new`, columns prefixed by `j_`.

    Raises:
        LabkitError: It is no such file.
    """
    import h5py

    with in_words(f"path: {path} is not an HDF5 file of jets"), h5py.File(path, "r") as file:
        if "t_allpar_new" not in file:
            held = ", ".join(file) or "none"
            raise LabkitError(f"path: {path} has no array 't_allpar_new'; it has {held}")
        check_memory(f"path: {str(path)!r}", file["t_allpar_new"].nbytes)
        table = file["t_allpar_new"][:]
    columns = [f"j_{name}" for name in JET_FEATURES]
    one_hot = [f"j_{name}" for name in JET_CLASSES]
    if absent := [c for c in columns + one_hot if c not in (table.dtype.names or ())]:
        raise LabkitError(f"path: {path} lacks the columns {', '.join(absent)}")
    labels = np.stack([table[column] for column in one_hot], axis=1)
    if not ((labels.sum(axis=1) == 1) & (labels.max(axis=1) == 1)).all():
        raise LabkitError(f"path: {path}: each row of j_g … j_t must be one-hot")
    x = np.stack([table[column] for column in columns], axis=1)
    return _jets(x, labels.argmax(axis=1), path.name)


def openml_jets() -> Dataset:
    """Returns the public jets, downloaded from OpenML.

    Raises:
        LabkitError: OpenML does not answer, or has changed.
    """
    from sklearn.datasets import fetch_openml

    try:
        jets = fetch_openml("hls4ml_lhc_jets_hlf", as_frame=True, parser="auto")
    except (URLError, OSError) as error:
        said = f"'jsc-openml' is downloaded from openml.org, which did not answer ({error})"
        instead = "'jsc' comes with labkit and needs no network"
        raise LabkitError(f"dataset: {said}; {instead}") from error
    with in_words("dataset: 'jsc-openml' has changed"):
        x = jets.data[list(JET_FEATURES)].to_numpy()
        y = jets.target.astype(str).map(JET_CLASSES.index).to_numpy()
    return _jets(x, y, "OpenML")


def _jets(x: np.ndarray, y: np.ndarray, source: str) -> Dataset:
    name = f"jsc ({source})"
    return Dataset.from_arrays(x, y, classes=JET_CLASSES, features=JET_FEATURES, name=name)
