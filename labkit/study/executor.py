"""Executors: where candidates train. This one is in this process; see `labkit.study.pool`, too."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import DivergenceError, LabkitError
from labkit.operators import NotStackable, Operator, register_operator
from labkit.study.record import Candidate, Failure, FailureKind, Metrics, Outcome
from labkit.training import (
    LOSSES,
    METRICS,
    Metric,
    TrainSettings,
    fit_stack,
    own_functions,
    stack_width,
    step_seconds,
    train,
)  # fmt: skip
from labkit.transform import Channels, Weights, apply, find_channels, initialise

log = logging.getLogger(__name__)

OnStep = Callable[[], None]
Shares = Iterable[Sequence[Candidate]]
Outcomes = Generator[Outcome, None, None]


class OnEpoch(Protocol):
    """What is told of epochs; see `Executor.run`."""

    def __call__(
        self, metrics: Mapping[Candidate, Metrics], seconds: float | None = None, /
    ) -> None: ...


POLL_SECONDS = 0.2
MOST_TIMED = 64  # networks of a stack that is compared with training one by one


@dataclass
class Task:
    """What all candidates of a search have in common. It can be pickled where the network can.

    Attributes:
        model: The network before the transform.
        data: What to train and validate on.
        settings: How to train.
        weights: What candidates start from, as `labkit.apply` takes it.
        channels: The network's channel groups; each process finds them once.
        operators: Of layers of the user's own, which other processes have to be told of.
        accelerator: Where each process trains, as a configuration names it; by default where the
            data is.
        own: Losses and metrics of the user's own, likewise.
    """

    model: nn.Module
    data: Dataset
    settings: TrainSettings
    weights: Weights = "fresh"
    channels: Channels = field(default=None, repr=False)  # type: ignore[assignment]
    operators: Sequence[type[Operator]] = ()
    accelerator: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for operator in self.operators:
            register_operator(operator)
        for name, one in self.own.items():
            (METRICS if isinstance(one, Metric) else LOSSES)[name] = one
        self.own = own_functions(self.settings)
        if self.accelerator is not None:
            self.data = self.data.to(device_of(self.accelerator))
        if self.channels is None:
            self.channels = find_channels(self.model, self.data.x_val[:1].cpu())

    def __reduce__(self) -> tuple[Any, ...]:
        # A traced graph does not survive pickling; the other process may have another device.
        data = self.data if self.accelerator is None else self.data.to("cpu")
        return Task, (
            self.model, data, self.settings, self.weights, None, self.operators, self.accelerator,
            self.own,
        )  # fmt: skip

    def settings_of(self, candidate: Candidate) -> TrainSettings:
        """Returns how a candidate is trained."""
        return self.settings.model_copy(update=candidate.rates)

    def build(self, candidate: Candidate) -> nn.Module:
        """Returns the network of a candidate, on the device of the data, ready to train."""
        # With a seed it draws in one thread at a time: what another one draws is not disturbed.
        network = apply(
            self.model, candidate.plan, channels=self.channels, weights=self.weights,
            seed=candidate.seed,
        )  # fmt: skip
        if self.weights == "fresh":
            initialise(network, candidate.seed)
        return network.to(self.data.x_train.device)


def device_of(accelerator: str) -> torch.device:
    """Returns the device that a configuration's `accelerator` stands for in this process.

    Raises:
        LabkitError: It needs CUDA, and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "auto":
        return torch.device("cuda" if available else "cpu")
    if accelerator in ("cuda", "gpu"):
        if not available:
            raise LabkitError(f"accelerator: {accelerator!r} needs a CUDA device; there is none")
        return torch.device("cuda")
    return torch.device("cpu")


class Executor(ABC):
    """Trains candidates. What becomes of one does not depend on the executor.

    Attributes:
        workers: How many shares it trains at once.
        stacks: Whether one candidate more in a share is nearly free.
    """

    workers: int = 1
    stacks: bool = False

    @abstractmethod
    def run(
        self,
        task: Task,
        shares: Shares,
        *,
        on_epoch: OnEpoch | None = None,
        on_step: OnStep | None = None,
    ) -> Outcomes:
        """Yields an outcome for each candidate, as they come.

        Args:
            task: What they have in common.
            shares: The candidates of each are trained by one worker. The next share is taken when
                a worker is free, and not before; an empty one says that there is none at present.
            on_epoch: Told, after an epoch, candidate → metrics of those that train together; and
                where that was elsewhere, for how many seconds it held the run up.
            on_step: Called often; what it raises ends the run, and what is unfinished is dropped.
        """


def rarely(n: int) -> bool:
    """Whether the nth time, from 1, is one to measure: the first, second, fourth, eighth."""
    return n & (n - 1) == 0


class LocalExecutor(Executor):
    """Trains in this process: together, as one padded network, where that works and is faster.

    Args:
        stackable: Whether it is; by default it is measured.
    """

    def __init__(self, stackable: bool | None = None) -> None:
        self._stackable = stackable
        self._n_asked = 0  # how often it was to be measured
        self.why_alone: str | None = None  # where it does not, or is not

    @property
    def stacks(self) -> bool:  # type: ignore[override]
        """Whether one candidate more in a share is nearly free; yes, until it is known better."""
        return self._stackable is not False and self.why_alone is None

    def run(self, task: Task, shares: Shares, **options: Any) -> Outcomes:
        """Yields an outcome for each candidate; see `Executor`."""
        for share in shares:
            yield from self.train(task, share, **options)

    def train(
        self, task: Task, candidates: Sequence[Candidate], **options: Any
    ) -> Iterator[Outcome]:
        """Yields an outcome for each candidate of a share."""
        built: list[tuple[Candidate, nn.Module]] = []
        for candidate in candidates:
            try:
                built.append((candidate, task.build(candidate)))
            except Exception as error:  # its layers may raise anything
                yield _failed(candidate, error)
        # A single one is as fast by the plain loop.
        plans = [candidate.plan for candidate, _ in built]
        width = 1
        if len(built) > 1 and self._stackable is not False:
            width = stack_width(task.channels, plans, task.data, task.settings)
        for start in range(0, len(built), width):
            part = built[start : start + width]
            if len(part) > 1 and self._is_faster(task, part[:MOST_TIMED]):
                yield from self._together(task, part, **options)
            else:
                for candidate, network in part:
                    yield _train_alone(task, candidate, network, **options)

    @staticmethod
    def _together(
        task: Task,
        part: Sequence[tuple[Candidate, nn.Module]],
        on_epoch: OnEpoch | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[Outcome]:
        candidates, networks = zip(*part)
        seeds = [candidate.seed for candidate in candidates]

        def told(metrics: dict[int, Metrics]) -> None:
            if on_epoch is not None:
                on_epoch({candidates[i]: one for i, one in metrics.items()})

        try:
            trained = fit_stack(
                networks, task.channels, task.data, [*map(task.settings_of, candidates)], seeds,
                on_epoch=told, on_step=on_step,
            )  # fmt: skip
        except Exception as error:  # of one network, or out of memory: alone, each says so
            log.warning("%d networks train one by one: %r", len(networks), error)
            for candidate in candidates:
                yield _train_alone(task, candidate, None, on_epoch, on_step)
            return
        for candidate, one in zip(candidates, trained):
            if one.failure is not None:
                yield _failed(candidate, one.failure)
            else:
                yield Outcome(
                    candidate, one.history, one.model.state_dict(), network=one.model,
                    stack=candidates,
                )  # fmt: skip

    def _is_faster(self, task: Task, part: Sequence[tuple[Candidate, nn.Module]]) -> bool:
        """Returns whether networks train faster in a stack, by a few steps of the first ones.

        What else runs may slow a stack down: a no is measured again, ever more rarely.
        """
        self._n_asked += 1
        networks, settings = [network for _, network in part], task.settings_of(part[0][0])
        if self._stackable is None and rarely(self._n_asked):
            try:
                together, alone = step_seconds(networks, task.channels, task.data, settings)
                steps = f"a step of {len(networks)} takes {alone:.3g} s so, and {together:.3g} s"
                self._stackable = together <= alone or None
                if not self._stackable and self.why_alone is None:
                    log.info("networks train one by one: %s in a stack", steps)
                self.why_alone = None if self._stackable else f"{steps} in a stack"
            except NotStackable as reason:
                self._stackable, self.why_alone = False, str(reason)
                log.warning("networks train one by one: %s", reason)
            except Exception as error:  # of one network
                log.warning("%d networks train one by one: %r", len(networks), error)
        return bool(self._stackable)


def _train_alone(
    task: Task,
    candidate: Candidate,
    network: nn.Module | None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    told = None if on_epoch is None else lambda metrics: on_epoch({candidate: metrics})
    try:
        if network is None:
            network = task.build(candidate)
        history = train(
            network, task.data, task.settings_of(candidate), seed=candidate.seed, on_epoch=told,
            on_step=on_step,
        )  # fmt: skip
    except Exception as error:  # one bad candidate must not end a search
        return _failed(candidate, error)
    return Outcome(candidate, history, network.state_dict(), network=network)


def _failed(candidate: Candidate, error: BaseException) -> Outcome:
    diverged = isinstance(error, DivergenceError)
    kind = FailureKind.DIVERGED if diverged else FailureKind.TRAINING
    return Outcome(candidate, failure=Failure.of(kind, error))
