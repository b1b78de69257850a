"""What training is judged by: loss, metrics by name, divergence, patience.

The loss and the metrics of the epoch cost next to nothing. Others are computed where they are asked
for, once a network: after its last epoch, or the one whose weights are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from labkit import names
from labkit.data.columns import Task
from labkit.errors import DivergenceError, LabkitError, in_words, shown
from labkit.training.losses import LOSSES, TORCHS, Loss, loss_of
from labkit.training.settings import TrainSettings

EVALUATION_ROWS = 16384  # bounds memory, not results
# What figures, panels and reports show of a network, by default.
# R² first: a runner may well call something of a regression an accuracy.
MAIN_METRIC = {"regression": "r2", "classification": "accuracy", "binary": "accuracy"}

Metrics = dict[str, float]


def main_of(measured: Container[object]) -> str:
    """Returns the main metric of the task on which these metrics were measured."""
    return next((m for m in MAIN_METRIC.values() if m in measured), "accuracy")


class Metric(NamedTuple):
    """A metric of logits and labels.

    Attributes:
        direction: Which way is better.
        measure: Logits `[rows, outputs]` and labels, as `Dataset` has them → a number; `None` where
            the loop measures it after each epoch.
        tasks: Of data that it can be measured on.
    """

    direction: Literal["maximize", "minimize"]
    measure: Callable[[Tensor, Tensor], Any] | None = None
    tasks: tuple[Task, ...] = ("classification", "binary", "regression")


def _f1(logits: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels.cpu(), said_class(logits).cpu(), average="macro"))


def _balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import recall_score

    said, known = said_class(logits).cpu(), labels.unique().cpu()
    return float(recall_score(labels.cpu(), said, labels=known, average="macro"))


def _auc(logits: Tensor, labels: Tensor) -> float:
    """Returns the area under the ROC curve; of several classes, each against the others."""
    from sklearn.metrics import roc_auc_score

    if logits.shape[1] == 1:
        return float(roc_auc_score(labels.cpu(), logits[:, 0].cpu()))
    shares, known = logits.double().softmax(dim=1).cpu(), labels.unique().tolist()
    areas = [float(roc_auc_score(labels.cpu() == one, shares[:, one])) for one in known]
    return sum(areas) / len(areas)


def _log_loss(logits: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import log_loss

    double = logits.double().cpu()
    ones = double.sigmoid()[:, 0] if logits.shape[1] == 1 else double.softmax(dim=1)
    return float(log_loss(labels.cpu(), ones, labels=range(max(logits.shape[1], 2))))


CLASSES: tuple[Task, ...] = ("classification", "binary")
BUILT_IN = {
    **dict.fromkeys(("loss", "train_loss"), Metric("minimize")),
    **dict.fromkeys(
        ("accuracy", "accuracy_macro", "train_accuracy"), Metric("maximize", None, CLASSES)
    ),
    "balanced_accuracy": Metric("maximize", _balanced_accuracy, CLASSES),
    "f1": Metric("maximize", _f1, CLASSES),
    "auc": Metric("maximize", _auc, CLASSES),
    "log_loss": Metric("minimize", _log_loss, CLASSES),
    "r2": Metric("maximize", None, ("regression",)),
    **dict.fromkeys(("mse", "mae"), Metric("minimize", None, ("regression",))),
}
METRICS = {**BUILT_IN}


def direction_of(metric: str, objectives: Mapping[str, str] | None = None) -> str:
    """Returns which way is better: as an objective says, as is known here, or less, as of costs."""
    known = METRICS[metric].direction if metric in METRICS else "minimize"
    return (objectives or {}).get(metric, known)


def find_metric(name: str) -> str:
    """Returns the name of a metric, which may be given as `package.module:function`."""
    found, own = names.find("metrics", name, METRICS, "metric"), name.rpartition(":")[2]
    if name not in METRICS:
        known = METRICS.get(own, Metric("maximize", found))
        modules = {getattr(function, "__module__", None) for function in (known.measure, found)}
        if own in BUILT_IN or not callable(found) or len(modules) > 1:
            raise LabkitError(f"metrics: expected a function with a name of its own, got {name!r}")
        METRICS[own] = known._replace(measure=found)
    elif not isinstance(found, Metric) or found.direction not in ("maximize", "minimize"):
        expected = "expected Metric('maximize', function), or 'minimize'"
        raise LabkitError(f"metrics.{name}: {expected}, got {shown(found)}")
    elif BUILT_IN.get(name, found) is not found:
        raise LabkitError(f"metrics.{name}: it is labkit's own; give yours another name")
    return own


def own_functions(settings: TrainSettings) -> dict[str, Any]:
    """Returns the loss and the metrics of the user's own that settings name, by their names."""
    own = {m: METRICS[m] for m in map(find_metric, settings.metrics) if m not in BUILT_IN}
    if settings.loss is None or settings.loss in TORCHS:
        return own
    return own | {settings.loss: names.find("loss", settings.loss, LOSSES, "loss")}


def check_metrics(metrics: Sequence[str], task: Task) -> None:
    """Checks that metrics can be measured on data of a task."""
    for name in metrics:
        if task not in METRICS[find_metric(name)].tasks:
            known = {m: getattr(metric, "tasks", ()) for m, metric in METRICS.items()}
            fitting = ", ".join(m for m, tasks in known.items() if task in tasks)
            raise LabkitError(f"metrics: {name!r} is none of {task}; expected {fitting}")


def measured(metrics: Sequence[str], logits: Tensor, y: Tensor) -> Metrics:
    """Returns the metrics that the loop does not measure anyway.

    Args:
        metrics: Their names.
        logits: `[rows, outputs]`.
        y: As in `Dataset`.

    Raises:
        LabkitError: One raised an error, or returned what is no finite number.
    """
    values: Metrics = {}
    for name in map(find_metric, metrics):
        if (measure := METRICS[name].measure) is not None:
            try:
                # Of copies: one's own may write into what it is given.
                values[name] = float(value := measure(logits.clone(), y.clone()))
            except (Exception, SystemExit) as error:  # a user's own may raise anything
                raise LabkitError(f"metrics.{name}: {type(error).__name__}: {error}") from error
            if not math.isfinite(values[name]):
                raise LabkitError(f"metrics.{name}: expected a finite number, got {value!r:.100}")
    return values


def said_class(logits: Tensor) -> Tensor:
    """Returns the class that each row's logits say; they are on axis 1."""
    if logits.shape[1] == 1:
        return (logits.select(1, 0) > 0).long()
    return logits.max(dim=1).indices  # much faster than argmax


def scores(logits: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Returns the metrics of an epoch of several networks, each `[networks]`.

    Args:
        logits: `[networks, outputs, rows]`.
        y: As in `Dataset`.
        loss: What is trained with.
    """
    each = (y.mT if y.ndim == 2 else y).expand(len(logits), *y.shape[::-1])
    losses = {"loss": loss(logits, each)}
    if y.ndim == 2:
        error, spread = (logits.mT - y).double(), y.double().var(dim=0, correction=0)
        mse, mae = error.square().mean(dim=1), error.abs().mean(dim=1)
        metrics = {"r2": 1 - mse / spread, "mse": mse, "mae": mae}
        return losses | {name: of_targets.mean(dim=1) for name, of_targets in metrics.items()}
    right = (said_class(logits) == y).double()
    by_class = torch.stack([right[:, y == label].mean(dim=1) for label in y.unique()])
    return losses | {"accuracy": right.mean(dim=1), "accuracy_macro": by_class.mean(dim=0)}


def by_network(metrics: dict[str, Tensor]) -> list[Metrics]:
    """Returns metrics that are each `[networks]` as those of each network."""
    columns = [values.tolist() for values in metrics.values()]
    return [dict(zip(metrics, values)) for values in zip(*columns)]


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a network's logits `[1, outputs, rows]`, computed part by part."""
    return torch.cat([model(part) for part in x.split(EVALUATION_ROWS)]).T[None]


@in_words("model: it does not take these rows, or its logits do not fit the labels")
@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, metrics: Sequence[str] = ()) -> Metrics:
    """Returns `loss` and the metrics of a network.

    Of classes these are `accuracy`, the share of rows that are right (micro, as published results
    are), and `accuracy_macro`, its mean over the classes that occur; of a regression `r2`, the mean
    over targets, `mse` and `mae`. The loss is that of the task. The network is left in evaluation
    mode.

    Args:
        model: Maps `x` to logits `[rows, outputs]`.
        x: `[rows, …]`.
        y: int64 `[rows]`, or float32 `[rows, targets]`.
        metrics: More of them, such as `"f1"`, by their names.
    """
    model.eval()
    logits = logits_of(model, x)
    classes: Task = "binary" if logits.shape[1] == 1 else "classification"
    task = "regression" if y.is_floating_point() else classes
    if y.shape != (logits[0].T.shape if task == "regression" else y.shape[:1]):
        wanted = (
            "expected labels [rows], or of a regression as many targets [rows, targets] as logits"
        )
        raise LabkitError(f"y: {wanted}, got {y.dtype} of shape {tuple(y.shape)}")
    check_metrics(metrics, task)
    [scored] = by_network(scores(logits, y, loss_of(task)))
    return scored | measured(metrics, logits[0].T, y)


def divergence(metrics: Metrics, epoch: int, settings: TrainSettings) -> DivergenceError | None:
    """Returns that training diverged, or `None` where the losses of the epoch are finite."""
    if math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["loss"]):
        return None
    return DivergenceError(
        f"training diverged: the loss is not finite after epoch {epoch} "
        f"(learning_rate = {settings.learning_rate:g}); try a smaller learning_rate"
    )


def best_epoch(history: Sequence[Metrics]) -> int:
    """Returns the index of the epoch with the lowest validation loss, the first of several."""
    losses = [metrics["loss"] for metrics in history]
    return losses.index(min(losses))


def selected(history: Sequence[Metrics], settings: TrainSettings) -> Metrics:
    """Returns the metrics of the epoch that counts: the last, or the best."""
    return history[best_epoch(history) if settings.select == "best" else -1]


def stops_early(history: Sequence[Metrics], settings: TrainSettings) -> bool:
    """Returns whether a training with this history, an entry an epoch, has lost its patience."""
    since_best = len(history) - 1 - best_epoch(history)
    return settings.patience is not None and since_best >= settings.patience
