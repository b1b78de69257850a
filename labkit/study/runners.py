"""Runners: what a search measures of a candidate, by name.

A runner is a function of a `CandidateNetwork` and its settings that returns metrics. Add one with
`@register_runner("my_runner", metrics=["my_metric"])` and name it in the configuration, under
`sw_runner` or `hw_runner`.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import Field, PlainSerializer, PlainValidator
from torch import nn

from labkit import names
from labkit.checks import Table
from labkit.data import Dataset
from labkit.errors import LabkitError, shown
from labkit.study.checkpoint import load_weights
from labkit.study.record import COLUMNS, Metrics, Outcome
from labkit.training import MAIN_METRIC, TrainSettings, evaluate, main_of, selected
from labkit.training.metrics import METRICS
from labkit.transform import Channels, Plan, Weights, apply, cost_of


@dataclass
class CandidateNetwork:
    """A candidate as runners measure it: trained, where the search trains.

    Attributes:
        plan: The widths.
        channels: The channel groups of the original network.
        original: The network before the transform.
        data: What it was trained and validated on; its device is the network's, too.
        outcomes: Of its trainings, one a seed; empty where the search does not train.
        batch_size: Of the configuration, for runners that count a batch.
        checkpoint: Weights of the original network, if the configuration names any.
    """

    plan: Plan
    channels: Channels
    original: nn.Module
    data: Dataset
    outcomes: Sequence[Outcome] = ()
    batch_size: int = 256
    checkpoint: Path | None = None

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network, with the weights of its first training; built when it is first asked for."""
        trained = next(iter(self.outcomes), None)
        if trained is not None and trained.network is not None:
            return trained.network
        network = apply(self.original, self.plan, channels=self.channels, seed=0)
        if trained is not None:
            network.load_state_dict(trained.weights)
        return network.to(self.data.x_train.device)


class RunnerSettings(Table):
    """What every runner's table may hold.

    Attributes:
        name: The metric that the runner is there for, as in the report's configuration.
    """

    name: str | None = None


class Runner(NamedTuple):
    """A runner: the type of its settings, the metrics it returns, and the function."""

    settings: type[RunnerSettings]
    metrics: tuple[str, ...]
    run: Callable[[CandidateNetwork, Any], Mapping[str, Any]]

    @property
    def measures(self) -> tuple[str, ...]:
        """The metrics that it may be asked for, those of logits and labels among them."""
        asked = METRICS if "metrics" in self.settings.model_fields else ()
        trains = issubclass(self.settings, TrainSettings)
        return *self.metrics, *(m for m in asked if trains or not m.startswith("train_"))


RUNNERS: dict[str, Runner] = {}
Run = TypeVar("Run", bound=Callable[[CandidateNetwork, Any], Mapping[str, Any]])


def register_runner(
    name: str, settings: type[RunnerSettings] = RunnerSettings, metrics: Sequence[str] = ()
) -> Callable[[Run], Run]:
    """Returns a function decorator that makes a runner known by name.

    Args:
        name: What a configuration calls it.
        settings: The type of its table there.
        metrics: The names of the metrics that it returns.

    Raises:
        LabkitError: The table of trials has another column of such a name.

    Example:
        >>> @register_runner("energy", metrics=["joules"])
        ... def energy(candidate, settings):
        ...     return {"joules": 1e-9 * cost_of(candidate.channels, candidate.plan).total_flops}
    """
    for metric in metrics:
        _check_name(name, metric)

    def register(run: Run) -> Run:
        RUNNERS[name] = Runner(settings, tuple(metrics), run)
        return run

    return register


def get_runner(key: str, name: str) -> Runner:
    """Returns a runner.

    Args:
        key: The place in the configuration, for an error.
        name: As it was registered, or `package.module:function` of one that is registered there.

    Raises:
        LabkitError: No runner has that name.
    """
    found = names.find(key, name, RUNNERS, "runner")
    if isinstance(found, Runner):
        return found
    for runner in RUNNERS.values():
        if runner.run is found:
            return runner
    raise LabkitError(f"{key}: expected {name!r} to be a function with @register_runner")


def measure(
    candidate: CandidateNetwork, runners: Mapping[str, tuple[Runner, RunnerSettings]]
) -> Metrics:
    """Returns what runners measure of a network.

    Args:
        candidate: The network.
        runners: Name → the runner and its settings.

    Raises:
        LabkitError: A runner raised an error, or returned what is no finite number; it is named.
    """
    measured: Metrics = {}
    for name, (runner, settings) in runners.items():
        try:
            metrics = runner.run(candidate, settings)
        except LabkitError:
            raise
        except (Exception, SystemExit) as error:  # a user's own may raise anything
            raise LabkitError(f"{name}: {type(error).__name__}: {error}") from error
        if not isinstance(metrics, Mapping):
            raise LabkitError(f"{name}: expected a table of metrics, got {metrics!r:.100}")
        for key, value in metrics.items():
            _check_name(name, key)
            measured[key] = as_number(f"{name}: {key}", value)
    return measured


def _check_name(runner: str, metric: object) -> None:
    if not isinstance(metric, str) or metric in COLUMNS:
        raise LabkitError(
            f"{runner}: expected another name of a metric than {metric!r}: a text, and none of "
            f"{', '.join(COLUMNS)}"
        )


def as_number(where: str, value: Any) -> float:
    """Returns a metric as a plain number; whole numbers stay whole.

    Raises:
        LabkitError: It is no number, or not a finite one.
    """
    number = value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        number = value.item()
    # A whole number beyond the largest float is none that tables and files can hold.
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    if plain and abs(number) <= sys.float_info.max:
        return number
    raise LabkitError(f"{where}: expected a finite number, got {value!r:.100}")


def _rates(given: Any, may_be_zero: bool) -> float | tuple[float, ...]:
    """Checks a rate, or a list of them."""
    rates = given if isinstance(given, list | tuple) else [given]
    plain = [r for r in rates if isinstance(r, int | float) and not isinstance(r, bool)]
    known = {r for r in plain if 0 < r <= sys.float_info.max or (may_be_zero and r == 0)}
    if not rates or len(known) < len(rates):
        least = "of 0 or more" if may_be_zero else "above 0"
        said = f"expected a number {least}, or a list of different ones, got {shown(given)}"
        raise ValueError(said)
    return float(given) if rates[0] is given else tuple(map(float, rates))


_AsGiven = PlainSerializer(lambda rates: rates)
Rates = Annotated[float | tuple[float, ...], PlainValidator(lambda r: _rates(r, False)), _AsGiven]
Decays = Annotated[float | tuple[float, ...], PlainValidator(lambda r: _rates(r, True)), _AsGiven]


class BasicTrainSettings(TrainSettings, RunnerSettings):
    """Settings of `basic_train`: those of training.

    Attributes:
        learning_rate, weight_decay: Each may be a list: every network is trained with each, or with
            each pair, and what is best on validation data, by the main metric, counts.
        data_loader: Which split to train on; the report's configuration names it, and there is
            only one choice.
        replicates: How often each network is trained, with the seeds from the configuration's on.
        weights: What a network starts with: `fresh` weights, or those of the checkpoint `load_name`
            of the original network, carried over to the new widths (`keep`).
    """

    learning_rate: Rates = 1e-3  # type: ignore[assignment]
    weight_decay: Decays = 0.0  # type: ignore[assignment]
    data_loader: Literal["train_dataloader"] = "train_dataloader"
    replicates: int = Field(1, ge=1)
    weights: Weights = "fresh"

    @property
    def variants(self) -> list[dict[str, float]]:
        """The rates of each training of a network, where any is a list."""
        given = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        lists = {key: rates for key, rates in given.items() if isinstance(rates, tuple)}
        return [dict(zip(lists, rates)) for rates in itertools.product(*lists.values())]


@register_runner(
    "basic_train",
    BasicTrainSettings,
    metrics=[f"{main}_std" for main in dict.fromkeys(MAIN_METRIC.values())],
)
def basic_train(candidate: CandidateNetwork, settings: BasicTrainSettings) -> Metrics:
    """Returns what training measured; the search's executor has trained the candidate.

    Returns:
        What `labkit.train` returns of the epoch that counts, the last or the best: means over the
        seeds. With several seeds, also accuracy_std, or r2_std: the standard deviation (with
        n - 1).
    """
    return summary([selected(outcome.history, settings) for outcome in candidate.outcomes])


def summary(replicates: Sequence[Metrics]) -> Metrics:
    """Returns the means of the metrics of replicates; of several, also `accuracy_std`."""
    means = {name: statistics.fmean(r[name] for r in replicates) for name in replicates[0]}
    if len(replicates) > 1:
        main = main_of(means)
        means[f"{main}_std"] = statistics.stdev(r[main] for r in replicates)
    return means


class BasicEvaluationSettings(RunnerSettings):
    """Settings of `basic_evaluation`.

    Attributes:
        data_loader: Which split to evaluate on.
        num_samples: Use at most this many of its rows; `None` uses all.
        metrics: What is measured beside loss and accuracy, as in training.
    """

    data_loader: Literal["val_dataloader", "train_dataloader"] = "val_dataloader"
    num_samples: int | None = Field(None, ge=1)
    metrics: tuple[str, ...] = ()


@register_runner("basic_evaluation", BasicEvaluationSettings)
def basic_evaluation(candidate: CandidateNetwork, settings: BasicEvaluationSettings) -> Metrics:
    """Evaluates a trained checkpoint, without training.

    Returns:
        What `labkit.evaluate` returns.

    Raises:
        LabkitError: There is no checkpoint, or its widths are not the candidate's.
    """
    if candidate.checkpoint is None:
        raise LabkitError("load_name: basic_evaluation needs the path of a trained checkpoint")
    load_weights(candidate.model, candidate.checkpoint)
    x, y = candidate.data.split("val" if settings.data_loader == "val_dataloader" else "train")
    x, y = x[: settings.num_samples], y[: settings.num_samples]
    return evaluate(candidate.model, x, y, settings.metrics)


class BasicComputationsSettings(RunnerSettings):
    """Settings of `basic_computations`.

    Attributes:
        convention: How to count; see `labkit.transform.cost`.
        precision: Bits of a weight and of an activation.
        batch_size: Samples that are counted; by default one under `inference` and the
            configuration's batch size under the others.
    """

    convention: Literal["inference", "training", "reference"] = "inference"
    precision: int = Field(32, ge=1)
    batch_size: int | None = Field(None, ge=1)

    def cost_options(self, batch_size: int) -> dict[str, Any]:
        """Returns how to count, for `cost_of`, where training has this batch size."""
        return {
            "convention": self.convention,
            "precision": self.precision,
            "batch_size": self.batch_size or (1 if self.convention == "inference" else batch_size),
        }


@register_runner(
    "basic_computations",
    BasicComputationsSettings,
    metrics=("total_flops", "total_bitops", "parameters"),
)
def basic_computations(candidate: CandidateNetwork, settings: BasicComputationsSettings) -> Metrics:
    """Returns total_flops, total_bitops and parameters, counted, not measured; nothing is built."""
    cost = cost_of(
        candidate.channels, candidate.plan, **settings.cost_options(candidate.batch_size)
    )
    return {
        "total_flops": cost.total_flops,
        "total_bitops": cost.total_bitops,
        "parameters": cost.parameters,
    }


class LatencySettings(RunnerSettings):
    """Settings of `latency`.

    Attributes:
        batch_size: Rows a forward pass; by default 1.
        repeats: Forward passes that are timed, after a tenth as many that are not.
    """

    batch_size: int = Field(1, ge=1)
    repeats: int = Field(200, ge=1)


@register_runner("latency", LatencySettings, metrics=("latency",))
@torch.no_grad()
def latency(candidate: CandidateNetwork, settings: LatencySettings) -> Metrics:
    """Returns latency: the median time of a forward pass, in milliseconds, as measured here."""
    model, x = candidate.model, candidate.data.x_val[: settings.batch_size]
    model.eval()
    times = []
    for _ in range(settings.repeats // 10 + settings.repeats):
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"latency": 1e3 * torch.tensor(times[-settings.repeats :]).median().item()}


@register_runner("hw_dummy", metrics=())
def hw_dummy(candidate: CandidateNetwork, settings: RunnerSettings) -> Metrics:
    """Returns nothing: the reference wants a hardware runner, and there is no hardware."""
    return {}
