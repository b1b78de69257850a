"""One network on the test split: measured once, and kept in the folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, FiniteFloat

from labkit.checks import Table, checked, readable
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.config import load_config
from labkit.study.experiment import data_of
from labkit.study.files import write
from labkit.study.results import Results
from labkit.training import evaluate, main_of


class Heldout(Table):
    """What the test split was opened for: a trial's network, by the first seed.

    Attributes:
        metric: Which one was measured, as `accuracy`.
        value: What it is.
        rows: Split → how many rows it has.
    """

    trial: int
    metric: str = "accuracy"
    value: FiniteFloat = Field(validation_alias=AliasChoices("value", "accuracy"))
    rows: dict[str, int]


def measure_once(results: Results, folder: Path, data: Dataset | None) -> Heldout:
    """Returns the main metric, on the test split, of the network of the front that is best by it.

    It is measured the first time and read from then on, also where another network has become the
    best: who measures until they like the number has trained on the test split.

    Raises:
        LabkitError: The data are not there, or not those of the search; or no network is.
    """
    if (file := folder / "test.json").exists():
        return checked(Heldout, readable("folder", file).read_bytes(), file.name)
    data = data_of(load_config(folder / "config.toml")) if data is None else data
    if data.fingerprint() != results.description.identity.data:
        raise LabkitError(f"data: {data.name!r} is not what was searched with")
    metrics = evaluate(results.best().to(data.x_test.device), *data.split("test"))
    rows = {"training": data.x_train, "validation": data.x_val, "test": data.x_test}
    sizes = {split: len(x) for split, x in rows.items()}
    metric = main_of(metrics)
    measured = Heldout(trial=results.best_trial(), metric=metric, value=metrics[metric], rows=sizes)
    write(file, measured.model_dump_json(indent=2) + "\n")
    return measured
