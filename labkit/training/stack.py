"""The training of many candidates at once: one padded network with a leading candidate axis.

How it is padded and laid out stands in `labkit.operators.building`.
"""

import contextlib
import copy
import itertools
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labkit.data.dataset import Dataset
from labkit.errors import DivergenceError, LabkitError, in_words
from labkit.operators.stacking import Stack
from labkit.runtime import TIMED_STEPS, faster_threads
from labkit.training.loop import Learner, Trained, check_fit, fit, train
from labkit.training.metrics import EVALUATION_ROWS, Metrics
from labkit.training.settings import TrainSettings
from labkit.transform.applying import Weights, apply, initialise
from labkit.transform.channels import Channels, find_channels
from labkit.transform.cost import cost_of
from labkit.transform.plan import Plan

LEAST_ROWS = 256  # that a large stack evaluates at once: as many as a step trains on


def train_stack(
    model: nn.Module,
    plans: Sequence[Plan],
    data: Dataset,
    settings: TrainSettings | None = None,
    seeds: int | Sequence[int] = 0,
    *,
    channels: Channels | None = None,
    weights: Weights = "fresh",
    on_epoch: Callable[[dict[int, Metrics]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Trained]:
    """Trains candidates together, each from the weights and to the weights of its training alone.

    Candidate `k` ends as `initialise(apply(model, plans[k]), seeds[k])` would under
    `train(…, seed=seeds[k])`, or with `weights="keep"` as `apply(model, plans[k], weights="keep")`
    would, within float rounding; with Dropout the masks are others, of the same
    distribution.

    Args:
        model: The network that the plans are for; it is not changed.
        plans: The widths of each candidate; a plan may occur more than once, with other seeds.
        data: Trains on its training split, validates on its validation split, on its device.
        settings: By default `TrainSettings()`.
        seeds: Of each candidate, or one for all. Equal seeds share the order of the rows, which is
            faster.
        channels: The network's channel groups, if they were found before.
        weights: As `labkit.transform.applying.apply` takes it.
        on_epoch: Called after every epoch with the index of every candidate that trained in it →
            its metrics.
        on_step: Called before every step; what it raises ends the training.

    Returns:
        One `Trained` a plan. One that diverged says so in `failure`, and disturbs no other.

    Raises:
        NotStackable: The network mixes channels; train it by `labkit.training.train`.
        LabkitError: The network does not fit the data, or a plan is for another network.
    """
    with in_words("plans, data, seeds: expected a plan and a seed a candidate, and a Dataset"):
        seeds = [seeds] * len(plans) if isinstance(seeds, int) else list(map(operator.index, seeds))
        example, device = data.x_val[:1], data.x_train.device
    if len(seeds) != len(plans):
        raise LabkitError(f"seeds: expected one or {len(plans)}, one a plan, got {len(seeds)}")
    if not seeds:
        return []
    channels = find_channels(model if channels is None else channels, example)
    networks = [apply(model, plan, channels=channels, weights=weights) for plan in plans]
    if weights == "fresh":
        networks = [initialise(network, seed) for network, seed in zip(networks, seeds)]
    networks = [network.to(device) for network in networks]
    settings = TrainSettings() if settings is None else settings
    return fit_stack(networks, channels, data, settings, seeds, on_epoch=on_epoch, on_step=on_step)


def fit_stack(
    networks: Sequence[nn.Module],
    channels: Channels,
    data: Dataset,
    settings: TrainSettings | Sequence[TrainSettings],
    seeds: Sequence[int],
    *,
    on_epoch: Callable[[dict[int, Metrics]], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Trained]:
    """Trains networks together, in place, from the weights that they have.

    Args:
        networks: On the device of the data; each one a plan's, of the network of `channels`.
        channels: Found before, by `labkit.transform.channels.find_channels`.
        data: As `train_stack` takes it.
        settings: As there; or one a network, which differ in learning_rate and weight_decay alone.
        seeds: One a network: they decide the order of the rows and the masks of Dropout.
        on_epoch: As `train_stack` takes it.
        on_step: As there.

    Returns:
        One `Trained` a network, in their order.

    Raises:
        NotStackable: The network mixes channels.
        LabkitError: The network does not fit the data.
    """
    each = [settings] * len(networks) if isinstance(settings, TrainSettings) else settings
    check_fit(networks[0], data, each[0])
    x = data.x_train
    learner = _Together(Stack(channels.traced, networks), seeds, x.device)
    # Only so does a stack compute the same numbers whatever the threads; others keep them all.
    may_choose = x.ndim == 2 and len(networks) > 1 and not x.is_cuda
    with faster_threads() if may_choose else contextlib.nullcontext() as threads:

        def before_step() -> None:
            if on_step is not None:
                on_step()
            if threads is not None:
                threads.before_step()

        return fit(learner, data, each, seeds, on_epoch=on_epoch, on_step=before_step)


class _Together(Learner):
    """The candidates of a stack, as the loop sees them."""

    def __init__(self, stack: Stack, seeds: Sequence[int], device: torch.device):
        self.stack, self.models = stack, stack.candidates
        self.network = stack.network.to(device)
        distinct = list(dict.fromkeys(seeds))
        self.order_of = torch.tensor([distinct.index(seed) for seed in seeds], device=device)

    def batch(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        labels = y[rows][self.order_of]
        labels = labels.mT if labels.ndim == 3 else labels
        return self.stack.spread(x[rows], self.order_of), labels

    def logits(self, x: Tensor) -> Tensor:
        parts = x.split(max(EVALUATION_ROWS // self.stack.size, LEAST_ROWS))
        same = torch.zeros_like(self.order_of)
        logits = [self.network(self.stack.spread(part[None], same)) for part in parts]
        return torch.cat(logits, dim=2)

    def keep(self, index: int) -> None:
        self.stack.unload(index)

    def release(self, index: int, *, now: bool) -> None:
        if now:
            self.stack.unload(index)

    def narrow(self, places: Sequence[int], optimizer: Optimizer) -> None:
        self.stack, moved = self.stack.narrowed(places)
        before, self.network = self.network, self.stack.network
        self.order_of = self.order_of[list(places)]
        after = dict(self.network.named_parameters())
        for name, parameter in before.named_parameters():
            state = optimizer.state.pop(parameter, {})
            optimizer.state[after[name]] = {
                key: moved(name, value) if value.ndim else value for key, value in state.items()
            }
        optimizer.param_groups[0]["params"][:] = after.values()


def stack_width(
    channels: Channels, plans: Sequence[Plan], data: Dataset, settings: TrainSettings
) -> int:
    """Returns how many of these candidates may train in one stack, from memory: at least 1.

    A stack may take half of what is free on the device of the data. What it takes a candidate is
    counted, not measured, with every group's largest width, which all have in the stack: what a
    batch becomes layer by layer, twice, since gradients are as large; the parameters with gradients
    and two moments; and the logits of the validation split, with what their loss makes of them.
    """
    groups = zip(*(plan.widths for plan in plans))
    widest = Plan(tuple(max(group, key=lambda pair: pair[1]) for group in groups))
    cost = cost_of(channels, widest, batch_size=settings.batch_size)
    batch = data.x_train[: settings.batch_size]
    activations = batch.numel() + sum(layer.activations for layer in cost.layers)
    logits = len(data.x_val) * data.n_outputs
    needed = (2 * activations + 4 * cost.parameters + 4 * logits) * batch.element_size()
    if batch.is_cuda:
        free, _ = torch.cuda.mem_get_info(batch.device)
        # What an earlier stack has left is PyTorch's, and free.
        free += torch.cuda.memory_reserved(batch.device) - torch.cuda.memory_allocated(batch.device)
    else:
        free = psutil.virtual_memory().available
    return max(free // 2 // needed, 1)


def step_seconds(
    networks: Sequence[nn.Module], channels: Channels, data: Dataset, settings: TrainSettings
) -> tuple[float, float]:
    """Returns how long a training step of these networks takes in one stack, and one by one.

    Measured on a few steps of the stack, and of four of the networks alone, all of them copies. A
    stack is usually several times faster; but stacked convolutions are grouped ones, which a CPU
    computes slowly, and where other programs keep its cores busy, the threads of a stack wait for
    each other.

    Raises:
        NotStackable: The network mixes channels.
    """
    rows = 2 * TIMED_STEPS * settings.batch_size
    few = replace(
        data, x_train=data.x_train[:rows], y_train=data.y_train[:rows],
        x_val=data.x_val[:2], y_val=data.y_val[:2],
    )  # fmt: skip
    once = settings.model_copy(update={"max_epochs": 1, "num_samples": None, "metrics": ()})

    def fastest(run: Callable[[Callable[[], None]], object]) -> float:
        starts: list[float] = []

        def on_step() -> None:
            if data.x_train.is_cuda:
                torch.cuda.synchronize()
            starts.append(time.perf_counter())

        with contextlib.suppress(DivergenceError):  # its steps take as long
            run(on_step)
        return min((b - a for a, b in itertools.pairwise(starts)), default=0.0)

    copies = [copy.deepcopy(network) for network in networks]
    seeds = [0] * len(copies)
    together = fastest(lambda f: fit_stack(copies, channels, few, once, seeds, on_step=f))
    sample = copies[:: -(-len(copies) // 4)]
    alone = [fastest(lambda f, n=network: train(n, few, once, on_step=f)) for network in sample]  # type: ignore[misc]
    return together, sum(alone) / len(alone) * len(copies)
