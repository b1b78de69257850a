"""How a network is trained: the settings, and the optimizer, schedule and order that they mean."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PlainValidator
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from labkit.checks import Table, plain
from labkit.errors import LabkitError, shown


def _class_weights(given: Any) -> Any:
    """Checks weights of classes."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    each = given.tolist() if hasattr(given, "tolist") else given
    each = [*map(plain, each)] if isinstance(each, list | tuple) else [None]
    if not all(isinstance(one, float | int) and 0 < one < math.inf for one in each):
        expected = "expected 'balanced', or a list with a number above 0 for each class"
        raise ValueError(f"{expected}, got {shown(given)}")
    return tuple(map(float, each))


class TrainSettings(Table):
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
            below its lowest. `None` never ends it.
        select: Whose weights and metrics count: those of the `last` epoch, or of the `best`, which
            has the lowest validation loss.
        loss: PyTorch's by the name of its function, `cross_entropy`,
            `binary_cross_entropy_with_logits`, `mse_loss` or `huber_loss`; one's own, by its name
            or as `package.module:function`; by default that of the task.
        class_weights: By which rows of a class count in the loss: one a class, or `balanced`, in
            inverse proportion to their numbers.
        metrics: What is measured beside the loop's own, by name or as `package.module:function`.
    """

    max_epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=2, lt=2**31)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    num_warmup_steps: int = Field(0, ge=0)
    num_samples: int | None = Field(None, ge=2)
    patience: int | None = Field(None, ge=1)
    select: Literal["last", "best"] = "last"
    loss: str | None = Field(None, min_length=1)
    class_weights: Annotated[
        Literal["balanced"] | tuple[float, ...] | None, PlainValidator(_class_weights)
    ] = None
    metrics: tuple[str, ...] = ()


def n_batches(rows: int, settings: TrainSettings) -> int:
    """Returns how many batches an epoch has.

    A last batch of a single row is left out: BatchNorm cannot train on it.
    """
    whole, rest = divmod(rows, settings.batch_size)
    return whole + (rest > 1)


def n_steps(rows: int, settings: TrainSettings) -> int:
    """Returns how many steps a training on that many rows has, at most.

    Raises:
        LabkitError: It has none after those of its warm-up.
    """
    steps, warmup = settings.max_epochs * n_batches(rows, settings), settings.num_warmup_steps
    if warmup >= steps:
        said = f"expected fewer than the {steps} steps of a training on {rows} rows"
        raise LabkitError(f"num_warmup_steps: {said}, got {shown(warmup)}")
    return steps


def epoch_order(rows: int, settings: TrainSettings, generator: torch.Generator) -> torch.Tensor:
    """Returns the row indices of one epoch, int64, shuffled; it splits into `n_batches`."""
    order = torch.randperm(rows, generator=generator)
    return order[: n_batches(rows, settings) * settings.batch_size]


def make_optimizer(
    model: nn.Module, settings: TrainSettings, each: Sequence[TrainSettings] = ()
) -> Optimizer:
    """Returns the optimizer that the settings name, over all parameters of the network.

    Args:
        model: A network, or a stack of them.
        settings: Of the network, or of the first one.
        each: Of each network of a stack, whose rates may differ; narrowed together with it.
    """
    differ = len({(one.learning_rate, one.weight_decay) for one in each}) > 1
    options: dict[str, Any] = {"momentum": 0.9} if settings.optimizer == "sgd" else {}
    rate = max((one.learning_rate for one in each), default=settings.learning_rate)
    options |= {"lr": rate, "weight_decay": 0.0 if differ else settings.weight_decay}
    kinds: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
    # Fused: one pass over the parameters; the same numbers.
    optimizer = kinds[settings.optimizer](model.parameters(), fused=True, **options)
    if differ:
        _scale_steps(optimizer, each)
    return optimizer


def _scale_steps(optimizer: Optimizer, each: Sequence[TrainSettings]) -> None:
    """Lets the networks of a stack have rates of their own.

    A step's change is proportional to the learning rate: that of each network is scaled from the
    largest rate to its own, which loses no digits, and its weight decay is added.

    Args:
        optimizer: With the largest rate and no weight decay. The first axis of a stack's parameters
            begins with the networks.
        each: The settings of each network.
    """
    largest, decoupled = optimizer.defaults["lr"], isinstance(optimizer, AdamW)
    parameters: list[torch.Tensor] = optimizer.param_groups[0]["params"]
    before: list[torch.Tensor] = []

    def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        each_row = like.new_tensor(values).repeat_interleave(len(like) // len(values))
        return each_row.reshape(-1, *[1] * (like.ndim - 1))

    @functools.lru_cache(1)
    def columns(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shares, decays = zip(*((one.learning_rate / largest, one.weight_decay) for one in each))
        return [(column(shares, parameter), column(decays, parameter)) for parameter in parameters]

    @torch.no_grad()
    def remember(*_: object) -> None:
        before[:] = [parameter.clone() for parameter in parameters]
        for parameter, (_share, decay) in zip(parameters, columns(len(each))):
            if parameter.grad is not None and not decoupled:
                parameter.grad.addcmul_(parameter, decay)

    @torch.no_grad()
    def scale(*_: object) -> None:
        rate = optimizer.param_groups[0]["lr"]
        for parameter, was, (share, decay) in zip(parameters, before, columns(len(each))):
            step = parameter.sub_(was)
            if parameter.grad is not None and decoupled:
                step.addcmul_(was, decay, value=-rate)
            step.mul_(share).add_(was)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(scale)


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


def make_scheduler(optimizer: Optimizer, rows: int, settings: TrainSettings) -> LRScheduler:
    """Returns the schedule of the learning rate over a whole training on that many rows."""
    total_steps = n_steps(rows, settings)
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, settings))
