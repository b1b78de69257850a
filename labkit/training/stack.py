"""The training of many candidates at once: one padded network with a leading candidate axis.

Candidates that differ only in widths are padded with zeros to the widest. Zero is a fixed point of
training: a padded channel's weights, gradients and moments stay exactly zero, so each candidate
follows the trajectory that it would have had alone.

Tensors of the stacked network have one of two layouts. What is `[rows, channels]` in a candidate
becomes `[candidates, channels, rows]`; what is `[rows, channels, …]` becomes
`[rows, candidates · channels, …]`. In both, normalising or convolving a channel sees contiguous
memory, which matters more to the speed than anything else.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.operators.stacking import NotStackable, Stack
from labkit.training.loop import (
    EVALUATION_ROWS,
    TrainSettings,
    batches,
    check_fit,
    divergence,
    keep_freed_memory,
    make_optimizer,
    make_scheduler,
    scores,
    stops_early,
    train,
)
from labkit.transform.applying import Weights, apply, initialise
from labkit.transform.channels import (
    find_channels,
)
from labkit.transform.plan import Plan

TIMED_STEPS = 4  # with all threads, and with one
_choosing_threads = threading.Lock()


@dataclass
class Trained:
    """What became of one candidate of a stack.

    Attributes:
        model: The candidate as a plain module, with its trained weights.
        history: One dict an epoch, as `labkit.training.loop.train` returns it.
        failure: Why the training of this candidate failed, or `None`.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    failure: str | None = None


def train_stack(
    model: nn.Module,
    plans: Sequence[Plan],
    data: Dataset,
    settings: TrainSettings | None = None,
    seeds: int | Sequence[int] = 0,
    *,
    weights: Weights = "fresh",
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
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
        weights: As `labkit.transform.applying.apply` takes it.
        on_epoch: Called after every epoch with the metrics of every candidate that still trains.
        on_step: Called before every step; what it raises ends the training.

    Returns:
        One `Trained` a plan. One that diverged says so in `failure`, and disturbs no other.

    Raises:
        NotStackable: The network mixes channels; train it by `labkit.training.loop.train`.
        LabkitError: The network does not fit the data, or a plan is for another network.
    """
    settings = settings or TrainSettings()
    seeds = [seeds] * len(plans) if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(plans):
        raise LabkitError(f"seeds: expected one or {len(plans)}, one a plan, got {len(seeds)}")
    channels = find_channels(model, data.x_val[:1])
    networks = [apply(model, plan, channels=channels, weights=weights) for plan in plans]
    candidates = [
        (network if weights == "keep" else initialise(network, seed)).to(data.x_train.device)
        for network, seed in zip(networks, seeds)
    ]
    check_fit(candidates[0], data)
    keep_freed_memory()
    stack = Stack(channels.traced, candidates)
    network = stack.network.to(data.x_train.device)
    trained = [Trained(candidate) for candidate in candidates]
    running = list(range(len(candidates)))

    x, y = data.x_train[: settings.num_samples], data.y_train[: settings.num_samples]
    distinct = list(dict.fromkeys(seeds))
    order_of = torch.tensor([distinct.index(seed) for seed in seeds], device=x.device)
    generators = [torch.Generator().manual_seed(seed) for seed in distinct]
    optimizer = make_optimizer(network, settings)
    scheduler = make_scheduler(optimizer, len(x), settings)
    with torch.random.fork_rng(), contextlib.closing(_faster_threads(x, len(plans))) as threads:
        torch.manual_seed(seeds[0])  # Dropout draws from the global generator
        for epoch in range(1, settings.max_epochs + 1):
            network.train()
            sums = torch.zeros(2, len(plans), dtype=torch.float64, device=x.device)
            order = torch.stack(
                [torch.cat(batches(len(x), settings, generator)) for generator in generators]
            ).to(x.device)
            for rows in order.split(settings.batch_size, dim=1):  # [orders, rows]
                if on_step is not None:
                    on_step()
                next(threads)
                labels = y[rows][order_of]
                logits = network(stack.spread(x[rows], order_of))
                losses = F.cross_entropy(logits, labels, reduction="none").mean(dim=1)
                optimizer.zero_grad()
                losses.sum().backward()  # each candidate's loss reaches its own weights only
                optimizer.step()
                scheduler.step()
                right = (logits.detach().max(dim=1).indices == labels).sum(dim=1)
                # Summed as tensors: reading a number would wait for the device every step.
                sums += torch.stack([losses.detach() * rows.shape[1], right])
            train_metrics = dict(zip(("train_loss", "train_accuracy"), sums / order.shape[1]))
            latest = _by_candidate(train_metrics | _evaluate(stack, data.x_val, data.y_val))
            if on_epoch is not None:
                on_epoch([latest[index] for index in running])
            for index in tuple(running):
                candidate = trained[index]
                candidate.failure = divergence(latest[index], epoch, settings)
                if candidate.failure is None:
                    candidate.history.append(latest[index])
                if (
                    candidate.failure is not None
                    or epoch == settings.max_epochs
                    or stops_early(candidate.history, settings)
                ):
                    stack.unload(index)
                    running.remove(index)
            if not running:
                break
    return trained


def stack_width(
    model: nn.Module, plans: Sequence[Plan], data: Dataset, settings: TrainSettings
) -> int:
    """Returns how many of these candidates may train in one stack, from memory: at least 1.

    A stack may take half of what is free on the device of the data. What it takes a candidate is
    measured on one that has every group's largest width, as all have in the stack: the tensors that
    one step keeps for its backward pass, twice, since gradients are as large; its parameters with
    gradients and two moments; and the logits of the validation split.
    """
    groups = zip(*(plan.widths for plan in plans))
    widest = apply(
        model,
        Plan(tuple(max(group, key=lambda pair: pair[1]) for group in groups)),
        example_input=data.x_val[:1],
    )
    widest = widest.to(data.x_train.device).train()
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        widest(data.x_train[: settings.batch_size])
    parameters = sum(parameter.nbytes for parameter in widest.parameters())
    logits = 4 * len(data.x_val) * len(data.classes)
    if data.x_train.is_cuda:
        free, _ = torch.cuda.mem_get_info(data.x_train.device)
    else:
        free = psutil.virtual_memory().available
    return max(free // 2 // (2 * kept + 4 * parameters + 4 * logits), 1)


def step_seconds(
    model: nn.Module, plans: Sequence[Plan], data: Dataset, settings: TrainSettings
) -> tuple[float, float]:
    """Returns how long a training step of these candidates takes in one stack, and one by one.

    Measured on a few steps of the stack, and of four of the candidates alone. A stack is usually
    several times faster; but stacked convolutions are grouped ones, which a CPU computes slowly,
    and where other programs keep its cores busy, the threads of a stack wait for each other.

    Raises:
        NotStackable: The network mixes channels.
    """
    rows = 2 * TIMED_STEPS * settings.batch_size
    few = replace(
        data, x_train=data.x_train[:rows], y_train=data.y_train[:rows],
        x_val=data.x_val[:2], y_val=data.y_val[:2],
    )  # fmt: skip
    once = settings.model_copy(update={"max_epochs": 1, "num_samples": None})

    def fastest(run: Callable[[Callable[[], None]], object]) -> float:
        times: list[float] = []

        def on_step() -> None:
            if data.x_train.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        run(on_step)
        return min((b - a for a, b in itertools.pairwise(times)), default=0.0)

    together = fastest(lambda on_step: train_stack(model, plans, few, once, on_step=on_step))
    sample = plans[:: -(-len(plans) // 4)]
    channels = find_channels(model, data.x_val[:1])
    networks = [apply(model, plan, channels=channels).to(data.x_train.device) for plan in sample]
    alone = [fastest(lambda f, n=network: train(n, few, once, on_step=f)) for network in networks]  # type: ignore[misc]
    return together, sum(alone) / len(alone) * len(plans)


def why_not_stackable(model: nn.Module, data: Dataset) -> str | None:
    """Returns why candidates of this network cannot train together, or `None` if they can.

    Raises:
        LabkitError: The network does not fit the data, or torch.fx cannot trace it.
    """
    check_fit(model, data)
    try:
        Stack(find_channels(model, data.x_val[:1]).traced, [model])
    except NotStackable as reason:
        return str(reason)
    return None


def _faster_threads(x: torch.Tensor, n_candidates: int) -> Generator[None]:
    """Before each step, keeps torch to all its threads or to one, whichever is faster.

    Threads wait for each other a hundred times a step. That takes longer than they save where other
    programs use the cores, and where another thread of this process has used OpenMP too, as in a
    notebook: GNU's OpenMP then lets them sleep at once. So of every 500 steps the first few are
    timed both ways. The number holds for all of the process, so one stack at a time may choose.

    Args:
        x: The rows. Only where they are `[rows, channels]`, and with several candidates, does a
            stack compute the same numbers whatever the threads; others keep them all.
        n_candidates: Of the stack.
    """
    settles = x.ndim == 2 and n_candidates > 1 and not x.is_cuda
    if not settles or not _choosing_threads.acquire(blocking=False):
        yield from itertools.repeat(None)
    n_threads = torch.get_num_threads()
    try:
        while True:
            seconds = {}
            for n in (n_threads, 1):
                torch.set_num_threads(n)
                yield  # the first step after a change is slower
                times = [time.perf_counter()]
                for _ in range(TIMED_STEPS - 1):
                    yield
                    times.append(time.perf_counter())
                # Not their sum: one of them may have an epoch's end in it.
                seconds[n] = statistics.median(b - a for a, b in itertools.pairwise(times))
            torch.set_num_threads(min(seconds, key=lambda n: seconds[n]))
            for _ in range(500 - 2 * TIMED_STEPS):
                yield
    finally:
        torch.set_num_threads(n_threads)
        _choosing_threads.release()


@torch.no_grad()
def _evaluate(stack: Stack, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the metrics of `labkit.training.loop.evaluate`, each `[candidates]`."""
    stack.network.eval()
    every = torch.zeros(stack.size, dtype=torch.int64, device=x.device)
    parts = x.split(max(EVALUATION_ROWS // stack.size, 1))
    return scores(
        torch.cat([stack.network(stack.spread(part[None], every)) for part in parts], 2), y
    )


def _by_candidate(metrics: dict[str, torch.Tensor]) -> list[dict[str, float]]:
    """Returns metrics that are each `[candidates]` as those of each candidate."""
    columns = [values.tolist() for values in metrics.values()]
    return [dict(zip(metrics, values)) for values in zip(*columns)]
