"""What training minimises: PyTorch's losses by the names of their functions, and one's own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit import names
from labkit.data.columns import Task
from labkit.data.dataset import Dataset
from labkit.errors import LabkitError, shown
from labkit.training.settings import TrainSettings

BY_TASK: dict[Task, tuple[str, ...]] = {
    "classification": ("cross_entropy",),
    "binary": ("binary_cross_entropy_with_logits",),
    "regression": ("mse_loss", "huber_loss"),
}
TORCHS = {name: getattr(F, name) for known in BY_TASK.values() for name in known}
# Functions of logits `[rows, outputs]` and labels, as `Dataset` has them: their mean, one number.
LOSSES: dict[str, Callable[..., Tensor]] = {**TORCHS}
# Of logits `[rows, outputs]` and labels: their mean. Of a stack's, `[networks, outputs, rows]` and
# labels with networks in front and rows at the end: `[networks]`.
Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(task: Task, name: str = "", weights: Tensor | None = None) -> Loss:
    """Returns a loss.

    Args:
        task: Of the data.
        name: By default the task's first.
        weights: By which rows of a class count in the mean, `[classes]`.
    """
    name = name or BY_TASK[task][0]
    function: Callable[..., Tensor] = names.find("loss", name, LOSSES, "loss")
    if function is not TORCHS.get(name, function):
        raise LabkitError(f"loss: {name} is PyTorch's; give yours another name")

    def torchs(logits: Tensor, labels: Tensor) -> Tensor:
        alone, targets = logits.ndim == 2, labels
        if task == "binary":
            logits, targets = logits.squeeze(1), labels.to(logits.dtype)
        if alone and weights is None:
            return function(logits, targets)
        losses = function(logits, targets, reduction="none")
        if weights is None:
            return losses.flatten(1).mean(dim=1)
        of_rows = weights.to(losses.dtype)[labels]
        return (losses * of_rows).sum(dim=-1) / of_rows.sum(dim=-1)

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.ndim == 3:
            labels = labels.mT if labels.ndim == 3 else labels
            return torch.stack([own(*each) for each in zip(logits.mT, labels)])
        try:
            loss = function(logits, labels.clone())  # it may write into them
        except (Exception, SystemExit) as error:  # a user's own may raise anything
            raise LabkitError(f"loss: {name}: {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise LabkitError(f"loss: expected {name} to return one number, got {shown(loss)}")
        return loss.reshape(())

    return torchs if function is TORCHS.get(name) else own


def make_loss(data: Dataset, settings: TrainSettings) -> Loss:
    """Returns the loss that settings ask for on a data set.

    Raises:
        LabkitError: It is another task's, or the weights are not those of the classes.
    """
    known, weights = BY_TASK[data.task], settings.class_weights
    name = settings.loss or known[0]
    if name in TORCHS and name not in known:
        expected = f"expected {' or '.join(known)}, or your own, for task {data.task!r}"
        raise LabkitError(f"loss: {expected}, got {name!r}")
    if weights is None:
        return loss_of(data.task, name)
    if name not in TORCHS or not data.classes:
        raise LabkitError(f"class_weights: {name!r} takes none; leave them out")
    if weights == "balanced":
        counts = data.y_train[: settings.num_samples].bincount(minlength=len(data.classes))
        return loss_of(data.task, name, counts.sum() / (len(counts) * counts.clamp(min=1)))
    if len(weights) != len(data.classes):
        expected = f"expected {len(data.classes)}, one a class of {data.name}"
        raise LabkitError(f"class_weights: {expected}, got {len(weights)}")
    each = torch.tensor(weights, dtype=torch.float64, device=data.y_train.device)
    return loss_of(data.task, name, each)
