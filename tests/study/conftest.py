"""Studies made by hand, and a task for executors."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from torch import nn

from labkit.data import Dataset
from labkit.study import executor
from labkit.study.executor import Task
from labkit.study.fingerprint import Identity
from labkit.study.record import Failure, FailureKind, Record, Source, Trial
from labkit.study.results import Results
from labkit.study.studies import Description
from labkit.training import TrainSettings
from labkit.transform import get_model

BEGIN = datetime(2026, 1, 1)


def description(**about: Any) -> Description:
    """A study of accuracy against FLOPs."""
    objectives: Any = {"accuracy": "maximize", "total_flops": "minimize"}
    known = {"model": "net", "dataset": "rows", "seed": 0, "convention": "inference"}
    return Description(Identity(), objectives, objectives, known | {"original": {}} | about)


def trial(
    number: int, values: Sequence[float] | None, widths: dict[str, int] | None = None,
    *, start: float = 0, end: float = 1, **record: Any,
) -> Trial:  # fmt: skip
    """A trial that ran between two times, in seconds; one without values failed."""
    metrics = dict(zip(("accuracy", "total_flops"), values or ()))
    known: dict[str, Any] = {
        "widths": {"a": 8} if widths is None else widths,
        "trained_in": number,
        "source": Source.TRAINED,
        "software_metrics": metrics,
        "scaled_metrics": metrics,
    }
    if values is None:
        known |= {"source": None, "failure": Failure(kind=FailureKind.TRAINING, message="no")}
    times = (BEGIN + timedelta(seconds=seconds) for seconds in (start, end))
    own = None if values is None else tuple(values)
    return Trial(number, {}, own, Record(**(known | record)), *times)


def results(*trials: Trial, **options: Any) -> Results:
    """The results of these trials."""
    return Results(trials, description(), **options)


@pytest.fixture
def task(blobs: Dataset) -> Task:
    """In float64, where a stack and a network alone agree to 1e-6."""
    settings = TrainSettings(max_epochs=2, learning_rate=1e-2)
    data = replace(
        blobs, x_train=blobs.x_train.double(), x_val=blobs.x_val.double(),
    )  # fmt: skip
    return Task(get_model("jsc-toy").double(), data, settings)


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks each stack had; stacks are taken to be the faster way."""
    sizes: list[int] = []
    fit_stack = executor.fit_stack

    def spy(networks: Sequence[nn.Module], *args: Any, **options: Any) -> Any:
        sizes.append(len(networks))
        return fit_stack(networks, *args, **options)

    monkeypatch.setattr(executor, "fit_stack", spy)
    monkeypatch.setattr(executor, "step_seconds", lambda *_: (1, 2))
    return sizes
