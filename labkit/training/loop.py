"""The training loop: one network, plain PyTorch, nothing hidden."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import DivergenceError, LabkitError

EVALUATION_ROWS = 16384  # bounds memory, not results


class TrainSettings(BaseModel):
    """How a network is trained.

    Attributes:
        max_epochs: Passes over the training split.
        batch_size: Rows a step.
        learning_rate: The peak of the schedule.
        optimizer: `adam`, `adamw`, or `sgd` (with momentum 0.9).
        weight_decay: L2 penalty (decoupled with `adamw`).
        lr_scheduler: What the learning rate does after warm-up: stays `constant`, or falls to 0 by
            the last step along a `linear` ramp or half a `cosine`.
        num_warmup_steps: Steps in which the learning rate rises linearly from 0.
        num_samples: Use at most this many training rows; `None` uses all.
        patience: End the training after this many epochs in which the validation loss did not fall
            below its lowest; the weights stay those of the last epoch. `None` never ends it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    num_warmup_steps: int = Field(0, ge=0)
    num_samples: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns the optimizer that the settings name, over all parameters of the network."""
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "fused": True,  # one pass over the parameters; the same numbers
    }
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(model.parameters(), **options)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), **options)
        case "sgd":
            return torch.optim.SGD(model.parameters(), momentum=0.9, **options)


def lr_factor(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Returns the learning rate of a step (from 0) as a share of its peak, 0 to 1."""
    warmup = settings.num_warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    match settings.lr_scheduler:
        case "constant":
            return 1.0
        case "linear":
            return max(1 - progress, 0.0)
        case "cosine":
            return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def batches(rows: int, settings: TrainSettings, generator: torch.Generator) -> list[torch.Tensor]:
    """Returns the row indices of one epoch's batches, shuffled.

    A last batch of a single row is left out: BatchNorm cannot train on it.
    """
    split = torch.randperm(rows, generator=generator).split(settings.batch_size)
    return [batch for batch in split if len(batch) > 1]


def make_scheduler(
    optimizer: torch.optim.Optimizer, rows: int, settings: TrainSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """Returns the schedule of the learning rate over a whole training on that many rows."""
    total_steps = settings.max_epochs * len(batches(rows, settings, torch.Generator()))
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, total_steps, settings)
    )


def scores(logits: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns `loss`, `accuracy` and `accuracy_macro` of several networks, each `[networks]`.

    Args:
        logits: `[networks, classes, rows]`.
        y: int64 `[rows]`.
    """
    right = (logits.max(dim=1).indices == y).double()  # much faster than argmax
    by_class = [right[:, y == label].mean(dim=1) for label in y.unique()]
    losses = F.cross_entropy(logits, y.expand(len(logits), -1), reduction="none")
    return {
        "loss": losses.mean(dim=1),
        "accuracy": right.mean(dim=1),
        "accuracy_macro": torch.stack(by_class).mean(dim=0),
    }


def divergence(metrics: dict[str, float], epoch: int, settings: TrainSettings) -> str | None:
    """Returns that training diverged, in words, or `None` where the losses are finite."""
    if math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["loss"]):
        return None
    return (
        f"training diverged: the loss is not finite after epoch {epoch} "
        f"(learning_rate = {settings.learning_rate:g}); try a smaller learning_rate"
    )


def stops_early(history: list[dict[str, float]], settings: TrainSettings) -> bool:
    """Returns whether a training with this history, an entry an epoch, has lost its patience."""
    losses = [metrics["loss"] for metrics in history]
    since_best = len(losses) - 1 - losses.index(min(losses))
    return settings.patience is not None and since_best >= settings.patience


@functools.cache
def keep_freed_memory() -> None:
    """Lets the process keep up to 256 MiB that a training step frees for the next one, for good.

    By default glibc gives it back after every step, and the system clears it page by page when it
    is asked for again, which took up to a third of a stack's step. Tensors above 32 MiB are still
    given back. Other allocators, and what the environment sets of glibc's, are left alone.
    """
    variables = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
    if sys.platform != "linux" or variables & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        mallopt(m_mmap_threshold, 2**25)  # the most that every version takes
        mallopt(m_trim_threshold, 2**28)


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Returns `loss` (mean cross-entropy), `accuracy` and `accuracy_macro` of a network.

    `accuracy` is the share of rows that are right (micro, as published results are);
    `accuracy_macro` is its mean over the classes that occur. The network is left in evaluation
    mode.

    Args:
        model: Maps `x` to logits `[rows, classes]`.
        x: `[rows, …]`.
        y: int64 `[rows]`.
    """
    model.eval()
    logits = torch.cat([model(part) for part in x.split(EVALUATION_ROWS)])
    return {name: values.item() for name, values in scores(logits.T[None], y).items()}


def train(
    model: nn.Module,
    data: Dataset,
    settings: TrainSettings | None = None,
    *,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Trains a network in place, from the weights that it has.

    The same network, data, settings and seed give the same weights.

    Args:
        model: Maps `[rows, …]` to logits `[rows, classes]`, on the device of the data.
        data: Trains on its training split, validates on its validation split.
        settings: By default `TrainSettings()`.
        seed: Decides the order of the rows and the masks of Dropout.
        on_epoch: Called after every epoch with its metrics.
        on_step: Called before every step; what it raises ends the training.

    Returns:
        One dict an epoch: `train_loss` and `train_accuracy` (running means, in training mode), and
        `loss`, `accuracy` and `accuracy_macro` on the validation split after the epoch.

    Raises:
        DivergenceError: The loss became NaN or infinite.
        LabkitError: The network does not fit the data.
    """
    settings = settings or TrainSettings()
    check_fit(model, data)
    keep_freed_memory()
    x, y = data.x_train[: settings.num_samples], data.y_train[: settings.num_samples]
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, settings)
    scheduler = make_scheduler(optimizer, len(x), settings)
    history = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # Dropout draws from the global generator
        for epoch in range(1, settings.max_epochs + 1):
            model.train()
            loss_sum, right, seen = torch.zeros(()), torch.zeros(()), 0
            for batch in batches(len(x), settings, generator):
                if on_step is not None:
                    on_step()
                rows = batch.to(x.device)
                labels = y[rows]
                logits = model(x[rows])
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                # Summed as tensors: reading a number here would wait for the device every step.
                loss_sum = loss_sum + loss.detach() * len(rows)
                right = right + (logits.max(dim=1).indices == labels).sum()
                seen += len(rows)
            metrics = {
                "train_loss": (loss_sum / seen).item(),
                "train_accuracy": (right / seen).item(),
                **evaluate(model, data.x_val, data.y_val),
            }
            if failure := divergence(metrics, epoch, settings):
                raise DivergenceError(failure)
            history.append(metrics)
            if on_epoch is not None:
                on_epoch(metrics)
            if stops_early(history, settings):
                break
    return history


def check_fit(model: nn.Module, data: Dataset) -> None:
    """Checks that a network takes a data set's rows and returns a logit a class.

    Raises:
        LabkitError: It does not.
    """
    was_training = model.training
    row = data.x_val[:1]
    try:
        with torch.no_grad():
            logits = model.eval()(row)
    except (RuntimeError, ValueError, IndexError) as error:
        raise LabkitError(
            f"model: it does not take the rows of {data.name}, of shape {tuple(row.shape[1:])}: "
            f"{error}"
        ) from error
    finally:
        model.train(was_training)
    expected = (1, len(data.classes))
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise LabkitError(
            f"model: expected logits of shape {expected} for the {len(data.classes)} classes of "
            f"{data.name}, got {got}"
        )
