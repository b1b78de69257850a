"""Jets of five kinds, 16 features each: those that come with labkit, and the published ones."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from urllib.error import URLError

import numpy as np

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError

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
        return Dataset.from_arrays(
            jets["x"],
            jets["y"].astype(np.int64),
            classes=[str(name) for name in jets["classes"]],
            features=[str(name) for name in jets["features"]],
            name="jsc (embedded jets)",
        )


def read_jets(path: Path) -> Dataset:
    """Reads the public HDF5 file: a structured array `t_allpar_new`, columns prefixed by `j_`.

    Raises:
        LabkitError: It is no such file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "t_allpar_new" not in file:
                raise LabkitError(
                    f"path: {path} has no array 't_allpar_new'; it has {', '.join(file) or 'none'}"
                )
            table = file["t_allpar_new"][:]
    except OSError as error:
        raise LabkitError(f"path: {path} is not an HDF5 file: {error}") from error
    columns = [f"j_{name}" for name in JET_FEATURES]
    one_hot = [f"j_{name}" for name in JET_CLASSES]
    if absent := [c for c in columns + one_hot if c not in (table.dtype.names or ())]:
        raise LabkitError(f"path: {path} lacks the columns {', '.join(absent)}")
    labels = np.stack([table[column] for column in one_hot], axis=1)
    if not ((labels.sum(axis=1) == 1) & (labels.max(axis=1) == 1)).all():
        raise LabkitError(f"path: {path}: each row of j_g … j_t must be one-hot")
    return Dataset.from_arrays(
        np.stack([table[column] for column in columns], axis=1),
        labels.argmax(axis=1),
        classes=JET_CLASSES,
        features=JET_FEATURES,
        name=f"jsc ({path.name})",
    )


def openml_jets() -> Dataset:
    """Returns the public jets, downloaded from OpenML.

    Raises:
        LabkitError: OpenML does not answer, or has changed.
    """
    from sklearn.datasets import fetch_openml

    try:
        jets = fetch_openml("hls4ml_lhc_jets_hlf", as_frame=True, parser="auto")
    except (URLError, OSError) as error:
        raise LabkitError(
            f"dataset: 'jsc-openml' is downloaded from openml.org, which did not answer ({error}); "
            "'jsc' comes with labkit and needs no network"
        ) from error
    if absent := [name for name in JET_FEATURES if name not in jets.data.columns]:
        raise LabkitError(f"dataset: 'jsc-openml' lacks the columns {', '.join(absent)}")
    labels = jets.target.astype(str)
    if unknown := sorted(set(labels) - set(JET_CLASSES)):
        raise LabkitError(f"dataset: 'jsc-openml' has unknown classes {', '.join(unknown)}")
    return Dataset.from_arrays(
        jets.data[list(JET_FEATURES)].to_numpy(),
        labels.map(JET_CLASSES.index).to_numpy(),
        classes=JET_CLASSES,
        features=JET_FEATURES,
        name="jsc (OpenML)",
    )
