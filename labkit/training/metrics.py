"""What training is judged by: loss and accuracy, divergence, patience."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from labkit.errors import DivergenceError, in_words
from labkit.training.settings import TrainSettings

EVALUATION_ROWS = 16384  # bounds memory, not results

Metrics = dict[str, float]


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


def by_network(metrics: dict[str, torch.Tensor]) -> list[Metrics]:
    """Returns metrics that are each `[networks]` as those of each network."""
    columns = [values.tolist() for values in metrics.values()]
    return [dict(zip(metrics, values)) for values in zip(*columns)]


def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns a network's logits `[1, classes, rows]`, computed part by part."""
    return torch.cat([model(part) for part in x.split(EVALUATION_ROWS)]).T[None]


@in_words("model: it does not take these rows, or its logits do not fit the labels")
@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Metrics:
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
    [metrics] = by_network(scores(logits_of(model, x), y))
    return metrics


def divergence(metrics: Metrics, epoch: int, settings: TrainSettings) -> DivergenceError | None:
    """Returns that training diverged, or `None` where the losses of the epoch are finite."""
    if math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["loss"]):
        return None
    return DivergenceError(
        f"training diverged: the loss is not finite after epoch {epoch} "
        f"(learning_rate = {settings.learning_rate:g}); try a smaller learning_rate"
    )


def stops_early(history: list[Metrics], settings: TrainSettings) -> bool:
    """Returns whether a training with this history, an entry an epoch, has lost its patience."""
    losses = [metrics["loss"] for metrics in history]
    since_best = len(losses) - 1 - losses.index(min(losses))
    return settings.patience is not None and since_best >= settings.patience
