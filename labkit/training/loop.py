"""The training loop: plain PyTorch, from top to bottom, for one network or for a stack of them.

The loop is written once. A network alone gives logits `[rows, outputs]` and one loss; a stack, one
module that is many networks, gives logits `[networks, outputs, rows]` and a loss a network. In both
the outputs are axis 1, and the last axis of classes' labels is the rows: the lines are the same.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError, in_words, shown
from labkit.runtime import kept_memory, seeded_training
from labkit.training.losses import make_loss
from labkit.training.metrics import (
    Metrics,
    by_network,
    check_metrics,
    divergence,
    logits_of,
    measured,
    said_class,
    scores,
    selected,
    stops_early,
)  # fmt: skip
from labkit.training.settings import (
    TrainSettings,
    epoch_order,
    make_optimizer,
    make_scheduler,
    n_steps,
)  # fmt: skip

NARROWED = 0.75  # the share of a stack's networks with which it goes on without the others


@dataclass
class Trained:
    """What became of a network.

    Attributes:
        model: The network as a plain module, with its trained weights.
        history: One dict an epoch, as `train` returns it.
        failure: Why the training failed, or `None`.
    """

    model: nn.Module
    history: list[Metrics] = field(default_factory=list)
    failure: LabkitError | None = None

    def goes_on(self, metrics: Metrics, settings: TrainSettings) -> bool:
        """Records an epoch, and returns whether another one follows."""
        self.failure = divergence(metrics, len(self.history) + 1, settings)
        if self.failure is not None:
            return False
        self.history.append(metrics)
        return len(self.history) < settings.max_epochs and not stops_early(self.history, settings)

    def counts(self, settings: TrainSettings) -> bool:
        """Returns whether the latest epoch is the one that counts, so far."""
        return self.failure is not None or selected(self.history, settings) is self.history[-1]

    @torch.no_grad()
    def measure(self, data: Dataset, settings: TrainSettings) -> None:
        """Adds the metrics that are asked for, of the weights that it has, to the epoch's."""
        if self.failure is None and settings.metrics:
            logits = logits_of(self.model.eval(), data.x_val)[0].T
            try:
                metrics = measured(settings.metrics, logits, data.y_val)
                selected(self.history, settings).update(metrics)
            except LabkitError as error:
                self.failure = error


class Learner:
    """What the loop trains: here a network alone, in `labkit.training.stack` many in one module.

    Attributes:
        network: The module, with the parameters that are trained.
        models: The networks.
    """

    def __init__(self, model: nn.Module):
        self.network: nn.Module = model
        self.models: Sequence[nn.Module] = [model]

    def batch(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the module's input and the labels of a batch.

        Args:
            x: All rows.
            y: Their labels.
            rows: int64 `[orders, rows]`: those of the batch, in an order a distinct seed.
        """
        [only] = rows
        return x[only], y[only]

    def logits(self, x: Tensor) -> Tensor:
        """Returns the networks' logits `[networks, outputs, rows]`, computed part by part."""
        return logits_of(self.network, x)

    def keep(self, index: int) -> None:
        """Keeps the weights that a network has in the module now."""
        self._kept = copy.deepcopy(self.network.state_dict())

    def release(self, index: int, *, now: bool) -> None:
        """Gives a network the weights that it has in the module now, or those that were kept."""
        if not now:
            self.network.load_state_dict(self._kept)

    def narrow(self, places: Sequence[int], optimizer: Optimizer) -> None:
        """Leaves networks that have ended out of the module and the optimizer.

        Args:
            places: The indices in the module of those that stay.
            optimizer: Of its parameters.
        """


def fit(
    learner: Learner,
    data: Dataset,
    each: Sequence[TrainSettings],
    seeds: Sequence[int],
    *,
    on_epoch: Callable[[dict[int, Metrics]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Trained]:
    """Trains the networks of a learner; see `train` and `labkit.training.stack.fit_stack`."""
    settings = each[0]
    x, y = data.x_train[: settings.num_samples], data.y_train[: settings.num_samples]
    with in_words(f"seed: expected a whole number below 2**64, got {shown(seeds)}"):
        generators = [torch.Generator().manual_seed(seed) for seed in dict.fromkeys(seeds)]
    loss = make_loss(data, settings)
    of_places = [*each]  # of the networks that are in the module, in their places
    optimizer = make_optimizer(learner.network, settings, of_places)
    scheduler = make_scheduler(optimizer, len(x), settings)
    trained = [Trained(model) for model in learner.models]
    running = list(range(len(trained)))
    places = [*running]
    with kept_memory(), seeded_training(seeds[0]):  # Dropout draws from the global generator
        while running:
            network = learner.network.train()
            loss_sum, right = torch.zeros(2, len(places), dtype=torch.float64, device=x.device)
            order = torch.stack([epoch_order(len(x), settings, g) for g in generators]).to(x.device)
            for rows in order.split(settings.batch_size, dim=1):
                if on_step is not None:
                    on_step()
                inputs, labels = learner.batch(x, y, rows)
                logits = network(inputs)
                losses = loss(logits, labels)
                optimizer.zero_grad()
                losses.sum().backward()  # each network's loss reaches its own weights only
                optimizer.step()
                scheduler.step()
                # Summed as tensors: reading a number here would wait for the device every step.
                loss_sum += losses.detach() * rows.shape[1]
                if data.classes:
                    right += (said_class(logits.detach()) == labels).sum(dim=-1)
            n_rows = order.shape[1]
            means = {"train_loss": loss_sum / n_rows}
            means |= {"train_accuracy": right / n_rows} if data.classes else {}
            network.eval()
            with torch.no_grad():
                now = means | scores(learner.logits(data.x_val), data.y_val, loss)
            latest = dict(zip(places, by_network(now)))
            ended = [i for i in running if not trained[i].goes_on(latest[i], each[i])]
            well = {i: latest[i] for i in running if trained[i].failure is None}
            if on_epoch is not None and well:
                on_epoch(well)
            for i in [*running]:
                counts = trained[i].counts(settings)
                if i in ended:
                    learner.release(places.index(i), now=counts)
                    trained[i].measure(data, settings)
                    running.remove(i)
                elif counts and settings.select == "best":
                    learner.keep(places.index(i))
            if running and len(running) <= NARROWED * len(places):
                learner.narrow([places.index(i) for i in running], optimizer)
                places, of_places[:] = [*running], [each[i] for i in running]
    return trained


def train(
    model: nn.Module,
    data: Dataset,
    settings: TrainSettings | None = None,
    *,
    seed: int = 0,
    on_epoch: Callable[[Metrics], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Metrics]:
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
        One dict an epoch: `train_loss` and, of classes, `train_accuracy` (running means, in
        training mode), and what `evaluate` returns on the validation split after the epoch. That
        of the last epoch, or with `select="best"` of the best, has also `settings.metrics`.

    Raises:
        DivergenceError: The loss became NaN or infinite.
        LabkitError: The network does not fit the data.
    """
    settings = TrainSettings() if settings is None else settings
    check_fit(model, data, settings)
    of_one = None if on_epoch is None else lambda metrics: on_epoch(metrics[0])
    [trained] = fit(Learner(model), data, [settings], [seed], on_epoch=of_one, on_step=on_step)
    if trained.failure is not None:
        raise trained.failure
    return trained.history


def check_fit(model: nn.Module, data: Dataset, settings: TrainSettings | None = None) -> None:
    """Checks that a network takes a data set's rows and returns what its task asks for.

    Args:
        model: The network.
        data: The data set.
        settings: How it is to be trained, where it is.

    Raises:
        LabkitError: It does not, or its training would have no steps.
    """
    if not isinstance(model, nn.Module):
        raise LabkitError(f"model: expected an nn.Module, got {shown(model)}")
    if not isinstance(data, Dataset):
        made = "labkit.Dataset.from_arrays makes one"
        raise LabkitError(f"data: expected a Dataset, got {shown(data)}; {made}")
    if settings is not None and not isinstance(settings, TrainSettings):
        raise LabkitError(f"settings: expected TrainSettings, got {shown(settings)}")
    if settings is not None:
        n_steps(len(data.x_train[: settings.num_samples]), settings)
        check_metrics(settings.metrics, data.task)
        loss = make_loss(data, settings)
    was_training, row = model.training, data.x_val[:1]
    rows = f"the rows of {data.name}, of shape {tuple(row.shape[1:])}"
    try:
        with torch.no_grad(), in_words(f"model: it does not take {rows}"):
            model.eval()
            logits = model(row)
    finally:
        model.train(was_training)
    expected = (1, data.n_outputs)
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != expected:
        one = "; with one logit it is for task 'binary'" * (expected == (1, 2) and got == (1, 1))
        of = f"{len(data.classes)} classes" if data.classes else f"{len(data.targets)} targets"
        wanted = f"logits of shape {expected} for the {of} of {data.name}, task '{data.task}'"
        raise LabkitError(f"model: expected {wanted}, got {got}{one}")
    if settings is not None:
        if not any(weight.requires_grad for weight in model.parameters()):
            raise LabkitError("model: it has no weights that can be trained")
        # One's own says here what it does not take, or that it writes into the logits.
        if not loss(logits.requires_grad_(), data.y_val[:1]).requires_grad:
            said = "it does not depend on the logits, or only on what was detached from them"
            raise LabkitError(f"loss: {settings.loss} cannot be minimised: {said}")
