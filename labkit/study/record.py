"""What a search says of its trials: candidates, what became of them, and what is kept of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator
from torch import nn

from labkit.errors import LabkitError
from labkit.transform.plan import Plan

Metrics = dict[str, float]
# As it is written and read: counts stay whole numbers.
_Numbers = Annotated[Metrics, PlainValidator(dict), PlainSerializer(dict)]
Direction = Literal["maximize", "minimize"]
Sampler = Literal["random", "tpe", "gp", "known-cost", "nsgaii", "nsgaiii", "qmc", "bruteforce"]
# Metric → whether it may be at most (`≤`) or must be at least (`≥`) a bound, and the bound.
Bounds = Mapping[str, Sequence[Any]]
# What a table of trials has of each beside its metrics, which need other names.
COLUMNS = (
    "number", "state", "source", "trained_in", "seconds", "elapsed", "network", "failure", "breaks",
)  # fmt: skip


class FailureKind(StrEnum):
    """Why a trial has no metrics."""

    CONFIGURATION = "configuration"  # it resolves to no network
    DIVERGED = "diverged"  # the loss is not finite, as it would be again
    TRAINING = "training"  # training raised an error
    RUNNER = "runner"  # a runner raised an error, or returned what is no metric
    WORKER = "worker"  # what trained the network was lost


class Failure(BaseModel):
    """Why a trial failed: a kind for code, and a message for people."""

    model_config = ConfigDict(frozen=True)

    kind: FailureKind
    message: str

    @classmethod
    def of(cls, kind: FailureKind, error: BaseException) -> Failure:
        """Returns an error as a failure; its type is named where it is not labkit's own."""
        own = isinstance(error, LabkitError)
        return cls(kind=kind, message=str(error) if own else f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Candidate:
    """A network to train: what an executor is handed. Small, hashable, picklable.

    Attributes:
        plan: Its widths.
        seed: Of its weights and of the order of the rows.
        learning_rate, weight_decay: Its own, where the settings list several.
    """

    plan: Plan
    seed: int
    learning_rate: float | None = None
    weight_decay: float | None = None

    @property
    def rates(self) -> dict[str, float]:
        """What it has in place of the settings' lists."""
        rates = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        return {key: rate for key, rate in rates.items() if rate is not None}


@dataclass
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: Which one.
        history: Its metrics after each epoch, as `labkit.train` returns them.
        weights: Its state dict, trained.
        failure: Why its training failed, or `None`.
        network: The trained network itself, where it was trained in this process.
        stack: The candidates that were trained as one network with it, itself among them.
        threads: Of torch, where it was trained.
    """

    candidate: Candidate
    history: list[Metrics] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    failure: Failure | None = None
    network: nn.Module | None = None
    stack: Sequence[Candidate] = ()
    threads: int = field(default_factory=torch.get_num_threads)

    def __getstate__(self) -> dict[str, Any]:
        # Its weights are enough, and where they go there may be no such device.
        weights = {name: tensor.cpu() for name, tensor in self.weights.items()}
        return vars(self) | {"network": None, "weights": weights}


class Source(StrEnum):
    """Where the metrics of a trial come from."""

    TRAINED = "trained"
    LOOKED_UP = "looked up"


class Record(BaseModel):
    """All that a study keeps of a trial, beside its parameters and values; written once.

    Attributes:
        pass_config: What the sampler proposed, as a pass configuration.
        widths: Group → width: the plan; empty where the configuration resolves to none.
        source: Whether the network was trained in this trial; `None` where the trial failed.
        trained_in: The trial that trained it.
        software_metrics, hardware_metrics: What the runners of each kind measured: over several
            seeds, their means.
        scaled_metrics: The objectives, times their scales.
        history: Metrics after each epoch, by the first seed; only where it was trained.
        replicates: The last epoch's metrics by each seed.
        rates: Of several in the settings, those that were best on validation data.
        failure: Why there are no metrics.
        constraints: Metric with a limit → by which share of it the network is beyond it, where it
            is known; a limit is kept where this is not positive.
    """

    model_config = ConfigDict(frozen=True)

    pass_config: dict[str, Any] = {}
    widths: dict[str, int] = {}
    source: Source | None = None
    trained_in: int | None = None
    software_metrics: _Numbers = {}
    hardware_metrics: _Numbers = {}
    scaled_metrics: _Numbers = {}
    history: list[_Numbers] = []
    replicates: list[_Numbers] = []
    rates: _Numbers = {}
    failure: Failure | None = None
    constraints: _Numbers = {}

    @property
    def feasible(self) -> bool:
        """Whether the network keeps all limits, as far as they are known."""
        return all(value <= 0 for value in self.constraints.values())

    @property
    def competes(self) -> bool:
        """Whether it trained a network that keeps all limits."""
        return self.source == Source.TRAINED and self.feasible

    @property
    def plan(self) -> Plan:
        """The network's widths."""
        return Plan(tuple(self.widths.items()))

    @property
    def metrics(self) -> Metrics:
        """What all runners measured."""
        return self.software_metrics | self.hardware_metrics

    def looked_up(self) -> Record:
        """Returns the record of a later trial that proposes the same network."""
        update: dict[str, Any] = {"history": []}
        if self.failure is None:
            update["source"] = Source.LOOKED_UP
        else:
            message = f"{self.failure.message}, as in trial {self.trained_in}"
            update["failure"] = Failure(kind=self.failure.kind, message=message)
        return self.model_copy(update=update)


@dataclass(frozen=True)
class Trial:
    """A finished trial of a study.

    Attributes:
        number: Its place in the study, from 0.
        params: Its parameters, as people read them.
        values: Of the objectives; `None` where it failed, or was not trained for a limit.
        record: Everything else.
        started, ended: By the clock of the machine that asked.
    """

    number: int
    params: Mapping[str, Any]
    values: tuple[float, ...] | None
    record: Record
    started: datetime
    ended: datetime

    @property
    def state(self) -> str:
        """As Optuna calls it; what was not trained for a limit is `PRUNED`."""
        if self.values is not None:
            return "COMPLETE"
        return "FAIL" if self.record.failure is not None else "PRUNED"
