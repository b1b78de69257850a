"""Runners: what a search measures of a candidate, by name.

A runner is a function of a `Candidate` and its settings that returns metrics. Add one with
`@register_runner("my_runner", MySettings, metrics=("my_metric",))` and name it in the
configuration, under `sw_runner` or `hw_runner`.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import DivergenceError, LabkitError, did_you_mean
from labkit.training import TrainSettings, evaluate, train
from labkit.transform.applying import Weights, initialise
from labkit.transform.cost import total_cost
from labkit.transform.plan import Plan

Metrics = dict[str, float]


@dataclass
class Candidate:
    """A network that a search looks at.

    Attributes:
        model: The network with the plan's widths, on the device of the data. A runner that trains
            changes its weights.
        original: The network before the transform.
        plan: The widths.
        data: What to train and validate on.
        seeds: What to train with: one a replicate.
        batch_size: Of the configuration, for runners that count a batch.
        checkpoint: Weights of the original network, if the configuration names any.
        histories: What training recorded of each replicate, one dict an epoch; where they are there
            already, the candidate was trained in a stack. The model is that of the first.
        failure: Why training in a stack failed, if it did.
        on_epoch: Told each epoch's metrics, for a progress bar.
        on_step: Called before each training step; it raises where the search is to stop.
    """

    model: nn.Module
    original: nn.Module
    plan: Plan
    data: Dataset
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 256
    checkpoint: Path | None = None
    histories: list[list[Metrics]] = field(default_factory=list)
    failure: DivergenceError | None = None
    on_epoch: Callable[[Metrics], None] | None = None
    on_step: Callable[[], None] | None = None


class RunnerSettings(BaseModel):
    """What every runner's table may hold.

    Attributes:
        name: The metric that the runner is there for, as in the report's configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None


class Runner(NamedTuple):
    """A runner: the type of its settings, the metrics it returns, and the function."""

    settings: type[RunnerSettings]
    metrics: tuple[str, ...]
    run: Callable[[Candidate, Any], Metrics]


RUNNERS: dict[str, Runner] = {}
Run = TypeVar("Run", bound=Callable[[Candidate, Any], Metrics])


def register_runner(
    name: str, settings: type[RunnerSettings], metrics: tuple[str, ...]
) -> Callable[[Run], Run]:
    """Returns a function decorator that makes a runner known by name.

    Args:
        name: What a configuration calls it.
        settings: The type of its table there.
        metrics: The names of the metrics that it returns.
    """

    def register(run: Run) -> Run:
        RUNNERS[name] = Runner(settings, metrics, run)
        return run

    return register


def get_runner(key: str, name: str) -> Runner:
    """Returns a runner.

    Raises:
        LabkitError: No runner has that name; `key` is named as the place.
    """
    if name not in RUNNERS:
        raise LabkitError(f"{key}: unknown runner {name!r}; {did_you_mean(name, RUNNERS)}")
    return RUNNERS[name]


class BasicTrainSettings(TrainSettings, RunnerSettings):
    """Settings of `basic_train`: those of training.

    Attributes:
        data_loader: Which split to train on; the report's configuration names it, and there is
            only one choice.
        replicates: How often each network is trained, with the seeds from the configuration's on.
        weights: What a network starts with: `fresh` weights, or those of the checkpoint `load_name`
            of the original network, carried over to the new widths (`keep`).
    """

    data_loader: Literal["train_dataloader"] = "train_dataloader"
    replicates: int = Field(1, ge=1)
    weights: Weights = "fresh"


@register_runner(
    "basic_train",
    BasicTrainSettings,
    ("loss", "accuracy", "accuracy_macro", "train_loss", "train_accuracy"),
)
def basic_train(candidate: Candidate, settings: BasicTrainSettings) -> Metrics:
    """Trains the candidate from fresh or from kept weights, unless a stack has done so.

    Returns:
        loss, accuracy and accuracy_macro on the validation split after the last epoch, and
        train_loss and train_accuracy over it: their means over the replicates. With several, also
        accuracy_std, the standard deviation of the accuracy (with n - 1).

    Raises:
        DivergenceError: The loss became NaN or infinite.
    """
    if candidate.failure is not None:
        raise candidate.failure
    if not candidate.histories:
        others = [copy.deepcopy(candidate.model) for _ in candidate.seeds[1:]]
        models = [candidate.model, *others]
        candidate.histories = [
            train(
                initialise(model, seed) if settings.weights == "fresh" else model,
                candidate.data,
                settings,
                seed=seed,
                on_epoch=candidate.on_epoch,
                on_step=candidate.on_step,
            )
            for seed, model in zip(candidate.seeds, models)
        ]
    return summary([history[-1] for history in candidate.histories])


def summary(replicates: list[Metrics]) -> Metrics:
    """Returns the means of the metrics of replicates; of several, also `accuracy_std`."""
    means = {name: statistics.fmean(r[name] for r in replicates) for name in replicates[0]}
    if len(replicates) > 1:
        means["accuracy_std"] = statistics.stdev(r["accuracy"] for r in replicates)
    return means


class BasicEvaluationSettings(RunnerSettings):
    """Settings of `basic_evaluation`.

    Attributes:
        data_loader: Which split to evaluate on.
        num_samples: Use at most this many of its rows; `None` uses all.
    """

    data_loader: Literal["val_dataloader", "train_dataloader"] = "val_dataloader"
    num_samples: int | None = Field(None, ge=1)


@register_runner(
    "basic_evaluation", BasicEvaluationSettings, ("loss", "accuracy", "accuracy_macro")
)
def basic_evaluation(candidate: Candidate, settings: BasicEvaluationSettings) -> Metrics:
    """Evaluates a trained checkpoint, without training.

    Returns:
        loss, accuracy and accuracy_macro.

    Raises:
        LabkitError: There is no checkpoint, or its widths are not the candidate's.
    """
    if candidate.checkpoint is None:
        raise LabkitError("load_name: basic_evaluation needs the path of a trained checkpoint")
    load_weights(candidate.model, candidate.checkpoint)
    split = settings.data_loader.removesuffix("_dataloader")
    x, y = getattr(candidate.data, f"x_{split}"), getattr(candidate.data, f"y_{split}")
    return evaluate(candidate.model, x[: settings.num_samples], y[: settings.num_samples])


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
        """Returns how to count, for `total_cost`, where training has this batch size."""
        return {
            "convention": self.convention,
            "precision": self.precision,
            "batch_size": self.batch_size or (1 if self.convention == "inference" else batch_size),
        }


@register_runner(
    "basic_computations",
    BasicComputationsSettings,
    ("total_flops", "total_bitops", "parameters"),
)
def basic_computations(candidate: Candidate, settings: BasicComputationsSettings) -> Metrics:
    """Returns total_flops, total_bitops and parameters, counted, not measured."""
    cost = total_cost(
        candidate.model,
        **settings.cost_options(candidate.batch_size),
        shapes_from=candidate.original if settings.convention == "reference" else None,
        example_input=candidate.data.x_val[:1],
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


@register_runner("latency", LatencySettings, ("latency",))
@torch.no_grad()
def latency(candidate: Candidate, settings: LatencySettings) -> Metrics:
    """Returns latency: the median time of a forward pass, in milliseconds, as measured here."""
    model, x = candidate.model.eval(), candidate.data.x_val[: settings.batch_size]
    times = []
    for _ in range(settings.repeats // 10 + settings.repeats):
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"latency": 1e3 * torch.tensor(times[-settings.repeats :]).median().item()}


@register_runner("hw_dummy", RunnerSettings, ())
def hw_dummy(candidate: Candidate, settings: RunnerSettings) -> Metrics:
    """Returns nothing: the reference wants a hardware runner, and there is no hardware."""
    return {}


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a checkpoint into a network, without unpickling objects.

    Args:
        model: The network, changed in place.
        path: A `.safetensors` file; or a file of `torch.save` that holds a state dict, or one
            under the key `state_dict` with names that may begin with `model.`, as Lightning
            writes it.

    Raises:
        LabkitError: There is no such file, it holds something else, or another network.
    """
    if not path.is_file():
        raise LabkitError(f"load_name: there is no checkpoint {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise their own kinds for a bad file
        raise LabkitError(f"load_name: {path} is not a checkpoint of weights: {error}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = {name.removeprefix("model."): v for name, v in state["state_dict"].items()}
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise LabkitError(f"load_name: {path} holds another network: {error}") from error
