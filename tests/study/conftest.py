"""Studies made by hand."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from labkit.study.fingerprint import Identity
from labkit.study.record import Failure, FailureKind, Record, Source, Trial
from labkit.study.results import Results
from labkit.study.store import Description

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
