"""Whether earlier knowledge, and stacks that are refilled, find a front sooner by the clock.

    python benchmarks/budgets.py --earlier

Three questions, on the space of 2,401 networks and the report's:

- What does a network's beginning say of its end, beyond its widths? The end is `−log(ceiling −
  accuracy)`, the beginning its accuracy after some epochs; or after one epoch from the weights of
  the nearest network of a known-cost design of 16, which is widened or narrowed (Elsken et al.
  2019, arXiv:1804.09081).
- When does the known-cost sampler reach a share of the hypervolume if a network is stopped that a
  Gaussian process over widths and accuracy so far gives little hope: less than a tenth of what the
  best untried network is expected to add, by epoch? Its place goes to another one, or the stack
  goes on with the others. An oracle, which knows how a training ends, bounds what any model wins.
- Where networks have patience, what does a stack save that is narrowed to those that go on, and
  what would one that is refilled, with rows and steps of each network's own?
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pandas as pd
import torch
from budgets import (
    HIDDEN,
    JETS,
    REPORT,
    ROUND,
    RUNGS,
    SEEDS,
    TRIALS,
    Clock,
    Floats,
    Step,
    Table,
    ask,
    make_data,
    make_space,
    make_study,
    make_table,
    sampled,
    shares,
)

from labkit.study import dominated_volume
from labkit.study.known_cost import _fit, _gains, _warped
from labkit.training import fit_stack, loop, train_stack
from labkit.transform import apply, find_channels

LAST = RUNGS[-1]
STOP_AT, HOPE = 5, 0.1  # chosen on the seeds that are shown, so that they flatter it
SHARES = (0.98, 0.985, 0.988, 0.99)
LONGEST = 10  # trainings of a stack


@dataclass
class Running:
    """A network in the stack; `expected` is the accuracy that it is believed to end with."""

    row: int
    trial: optuna.Trial
    expected: float
    epochs: int = 0


Stop = Callable[[Sequence[int], Sequence[Running]], list[Running]]


def stopped_by_nobody(done: Sequence[int], running: Sequence[Running]) -> list[Running]:
    """Every network trains to its end."""
    return []


class Oracle:
    """Stops what would not join the front, and knows how it ends."""

    def __init__(self, table: Table, at: int):
        self.table, self.at = table, at

    def __call__(self, done: Sequence[int], running: Sequence[Running]) -> list[Running]:
        def volume(rows: list[int]) -> float:
            return dominated_volume(self.table.losses(rows, [LAST] * len(rows)), np.ones(2))

        rows, there = list(done), [one for one in running if one.epochs == self.at]
        return [one for one in there if done and volume([*rows, one.row]) <= volume(rows)]


class Hopeless:
    """Stops what has little hope, by a Gaussian process over widths and accuracy so far."""

    def __init__(self, table: Table, at: int):
        self.table, self.at = table, at
        self.widths = log_widths(table)
        self.cost = (table.flops - table.flops.min()) / np.ptp(table.flops)
        self.kernels: dict[int, tuple[int, Any]] = {}

    def __call__(self, done: Sequence[int], running: Sequence[Running]) -> list[Running]:
        there = [one for one in running if one.epochs == self.at]
        if len(done) < ROUND or not there:
            return []
        y, rows = self.table.accuracy[done, -1], [one.row for one in there]
        pending = [one.row for one in running]
        new = np.setdiff1d(np.arange(len(self.cost)), [*done, *pending])
        x, cost = ([of[done], of[pending], of[new]] for of in (self.widths, self.cost))
        hope = _gains(self.kernel(x[0], y), y, x, cost).max() / LAST

        so_far = self.table.accuracy[[*done, *rows], self.at - 1]
        known = np.column_stack([self.widths[[*done, *rows]], _log_gap(so_far)])
        x = [known[: len(done)], known[:0], known[len(done) :]]
        kernel = self.kernel(x[0], y)
        gains = _gains(kernel, y, x, [self.cost[done], np.empty(0), self.cost[rows]])
        u, ceiling = _warped(y)
        weights = np.linalg.solve(kernel(x[0]), (u - u.mean()) / u.std())
        ends = ceiling - np.exp(-u.mean() - u.std() * (kernel(x[2], x[0]) @ weights))
        for one, end in zip(there, ends.tolist()):
            one.expected = end
        return [one for one, gain in zip(there, gains / (LAST - self.at)) if gain < HOPE * hope]

    def kernel(self, x: Floats, y: Floats) -> Any:
        """Returns what the first networks say of others; there are a tenth more at a time."""
        n, n_known = math.ceil(1.1 ** (math.log(len(y)) // math.log(1.1))), x.shape[1]
        if self.kernels.get(n_known, (0, None))[0] != n:
            self.kernels[n_known] = n, _fit(x[:n], y[:n])
        return self.kernels[n_known][1]


def in_a_stack(
    table: Table, seed: int, stop: Stop, took: Callable[[int], float], *, refill: bool
) -> Iterator[Step]:
    """Trains what the known-cost sampler proposes in one stack, epoch by epoch.

    Args:
        table: What the networks come to.
        seed: Of the sampler.
        stop: Which of the running networks to stop, given those that trained to the end.
        took: Networks in the stack → how long an epoch takes.
        refill: Whether a place that is free goes to another network at once.
    """
    study = make_study(table, "known-cost", seed)
    done: list[int] = []
    running: list[Running] = []
    spent, elapsed = 0, 0.0
    while len(study.trials) < TRIALS:
        if refill or not running:
            for _ in range(ROUND - len(running)):
                trial, row = ask(study, table)
                running.append(Running(row, trial, table.accuracy[row, -1]))
        elapsed += took(len(running))
        for one in running:
            one.epochs, spent = one.epochs + 1, spent + 1
            yield Step(spent, elapsed, one.row, one.epochs)
        done += [one.row for one in running if one.epochs == LAST]
        ended = [*stop(done, running), *(one for one in running if one.epochs == LAST)]
        for one in ended:
            accuracy = table.accuracy[one.row, -1] if one.epochs == LAST else one.expected
            study.tell(one.trial, [accuracy, table.flops[one.row]])
        running = [one for one in running if one not in ended]


def _log_gap(accuracy: Floats, best: float | None = None) -> Floats:
    """Returns `−log(ceiling − accuracy)`, in which networks differ alike everywhere."""
    return -np.log((accuracy.max() if best is None else best) + 0.005 - accuracy)


def log_widths(table: Table) -> Floats:
    """Returns the logarithms of the widths, `[networks, groups]`."""
    return np.log([[width for _, width in plan.widths] for plan in table.index])


def simulate(seed: int, clock: Clock, overhead: float) -> pd.DataFrame:
    """Returns the share found at each moment: one row a way and moment."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = make_table(HIDDEN)
    full = clock.of(ROUND, 1)
    after = f"stopped after {STOP_AT}"
    ways: dict[str, Iterator[Step]] = {
        "known-cost": sampled(table, "known-cost", seed, clock),
        f"{after}, refilled at no cost": in_a_stack(
            table, seed, Hopeless(table, STOP_AT), lambda n: full, refill=True
        ),
        f"{after}, refilled": in_a_stack(
            table, seed, Hopeless(table, STOP_AT), lambda n: full * overhead, refill=True
        ),
        f"{after}, the rest goes on": in_a_stack(
            table, seed, Hopeless(table, STOP_AT), lambda n: clock.of(n, 1), refill=False
        ),
        "stopped after 3, refilled at no cost": in_a_stack(
            table, seed, Hopeless(table, 3), lambda n: full, refill=True
        ),
        "an oracle after 3, refilled at no cost": in_a_stack(
            table, seed, Oracle(table, 3), lambda n: full, refill=True
        ),
    }
    moments = np.arange(1, LONGEST + 1 / 18, 1 / 9)
    rows = []
    for way, steps in ways.items():
        taken = list(itertools.takewhile(lambda step: step.elapsed <= LONGEST + 0.01, steps))
        found = shares(table, taken, moments, lambda step: step.elapsed - 1e-9)
        rows += [{"search": way, "moment": m, "share": s} for m, s in zip(moments, found)]
    return pd.DataFrame(rows)


def inherited(table: Table, clock: Clock) -> Floats:
    """Returns each network's accuracy after an epoch from its nearest neighbour's weights."""
    plans, widths = list(table.index), log_widths(table)
    steps = itertools.islice(sampled(table, "known-cost", 0, clock), ROUND)
    rows = [step.row for step in steps]
    data, model = make_data(HIDDEN), make_space(HIDDEN)[0]
    parents = [one.model for one in train_stack(model, [plans[row] for row in rows], data, JETS)]
    channels = [find_channels(parent, data.x_val[:1]) for parent in parents]
    nearest = np.abs(widths[:, None] - widths[rows]).sum(axis=2).argmin(axis=1)

    def child(row: int) -> torch.nn.Module:
        near = int(nearest[row])
        return apply(parents[near], plans[row], channels=channels[near], weights="keep")

    once = JETS.model_copy(update={"max_epochs": 1})
    accuracy = np.empty(len(plans))
    order = sorted(range(len(plans)), key=lambda row: sorted(w for _, w in plans[row].widths))
    for start in range(0, len(order), ROUND):
        chosen = order[start : start + ROUND]
        networks = [child(row) for row in chosen]
        ended = fit_stack(networks, table.space.channels, data, once, [0] * len(chosen))
        accuracy[chosen] = [one.history[-1]["accuracy"] for one in ended]
    return accuracy


def show_predictors(table: Table, clock: Clock) -> None:
    """Prints how much of the end is left unexplained, by what is known beforehand."""
    ends = table.accuracy[:, -1]
    u = _log_gap(ends)

    widths = log_widths(table)
    pairs = itertools.combinations_with_replacement(widths.T, 2)
    squares = [np.ones(len(ends)), *widths.T, *(a * b for a, b in pairs)]

    def left(*more: Floats) -> float:
        known = np.column_stack([*squares, *more])
        return float((u - known @ np.linalg.lstsq(known, u)[0]).std())

    def both(accuracy: Floats) -> float:
        return left(_log_gap(accuracy), accuracy)

    rows = np.random.default_rng(0).choice(len(ends), 256, replace=False)
    plans, (model, _) = list(table.index), make_space(HIDDEN)
    again = train_stack(model, [plans[row] for row in rows], make_data(HIDDEN), JETS, seeds=1)
    other = np.array([one.history[-1]["accuracy"] for one in again])
    print("\n| known of a network | standard deviation of what is left |\n|:--|--:|")
    print(f"| nothing | {u.std():.2f} |\n| widths | {left():.2f} |")
    said = both(inherited(table, clock))
    print(f"| widths, an epoch from the nearest network's weights | {said:.2f} |")
    for epochs in (1, 3, 5, 7):
        print(f"| widths, accuracy after {epochs} | {both(table.accuracy[:, epochs - 1]):.2f} |")
    noise = (_log_gap(np.minimum(other, ends.max()), ends.max()) - u[rows]).std() / math.sqrt(2)
    print(f"| all but what seeds change (256 networks with another one) | {noise:.2f} |")


class OwnSteps(torch.optim.Optimizer):
    """Adam whose candidates each have a count of steps, as a refilled stack needs."""

    def __init__(self, parameters: Any, lr: float):
        super().__init__(list(parameters), {"lr": lr})
        self.all = [one for group in self.param_groups for one in group["params"]]
        self.mean = [torch.zeros_like(one) for one in self.all]
        self.square = [torch.zeros_like(one) for one in self.all]
        self.steps = torch.zeros(ROUND)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        gradients = [one.grad for one in self.all]
        self.steps += 1
        torch._foreach_lerp_(self.mean, gradients, 0.1)
        torch._foreach_mul_(self.square, 0.999)
        torch._foreach_addcmul_(self.square, gradients, gradients, 0.001)
        below = torch._foreach_sqrt(self.square)
        torch._foreach_mul_(below, self.each((1 - 0.999**self.steps).rsqrt()))
        torch._foreach_add_(below, 1e-8)
        change = torch._foreach_div(self.mean, below)
        rate = -self.param_groups[0]["lr"] / (1 - 0.9**self.steps)
        torch._foreach_mul_(change, self.each(rate))
        torch._foreach_add_(self.all, change)

    def each(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Returns a number a candidate in the shape of each parameter."""
        return [
            values.view(ROUND, *[1] * (one.ndim - 1))
            if len(one) == ROUND
            else values.repeat_interleave(len(one) // ROUND)
            for one in self.all
        ]


def refill_overhead() -> float:
    """Prints and returns how much longer an epoch takes in a stack that can be refilled."""
    model, space = make_space(HIDDEN)
    plans = list(space.networks)[:: len(space.networks) // ROUND][:ROUND]
    settings, data = JETS.model_copy(update={"max_epochs": 2}), make_data(HIDDEN)
    fused = loop.make_optimizer

    def own(network: torch.nn.Module, settings: Any, *_: object) -> OwnSteps:
        return OwnSteps(network.parameters(), settings.learning_rate)

    def epoch(seeds: Sequence[int], optimizer: Any) -> float:
        ends: list[float] = []
        with mock.patch.object(loop, "make_optimizer", optimizer):
            train_stack(
                model, plans, data, settings, seeds,
                on_epoch=lambda _: ends.append(time.process_time()),
            )  # fmt: skip
        return ends[1] - ends[0]

    kinds = {
        "as it is": ([0] * ROUND, fused),
        "rows in orders of their own": (range(ROUND), fused),
        "steps of their own": ([0] * ROUND, own),
        "both": (range(ROUND), own),
    }
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(7):
        for name, kind in kinds.items():
            times[name].append(epoch(*kind))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n| an epoch of a stack of {ROUND}, one thread | CPU, ms |\n|:--|--:|")
    for name, seconds in medians.items():
        print(f"| {name} | {1e3 * seconds:.0f} |")
    return medians["both"] / medians["as it is"]


def show_patience(overhead: float) -> None:
    """Prints what narrowing a stack saves where networks have patience, and refilling it would."""
    columns = "epochs of a network | as it was, s | narrowed, s | times | refilled, at most"
    print(f"\n| space | rows | rate | {columns} |\n|:--|--:|--:|:--|--:|--:|--:|--:|")
    for name, (rows, rate) in itertools.product(
        (REPORT, HIDDEN), ((20_000, 1e-3), (20_000, 1e-2), (2_000, 1e-2))
    ):
        model, space = make_space(name)
        plans = list(space.networks)[:: len(space.networks) // ROUND][:ROUND]
        settings = JETS.model_copy(
            update={
                "max_epochs": 50, "patience": 3, "lr_scheduler": "constant",
                "learning_rate": rate, "num_samples": rows,
            }
        )  # fmt: skip
        data, times = make_data(name), defaultdict[float, list[float]](list)
        for narrowed in 3 * (0.0, loop.NARROWED):
            start = time.process_time()
            with mock.patch.object(loop, "NARROWED", narrowed):
                trained = train_stack(model, plans, data, settings)
            times[narrowed].append(time.process_time() - start)
        epochs = [len(one.history) for one in trained]
        mean, (before, after) = statistics.mean(epochs), map(min, times.values())
        print(
            f"| {name} | {rows:,} | {rate} | {min(epochs)} to {max(epochs)}, mean {mean:.1f} | "
            f"{before:.1f} | {after:.1f} | {before / after:.2f} | "
            f"{max(epochs) / mean / overhead:.2f} |",
            flush=True,
        )


def show(clock: Clock) -> None:
    """Answers the three questions."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = make_table(HIDDEN)
    show_predictors(table, clock)
    overhead = refill_overhead()
    show_patience(overhead)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [(seed, clock, overhead) for seed in range(SEEDS)]
        found = pd.concat(pool.starmap(simulate, jobs, chunksize=1))
    mean = found.groupby(["search", "moment"], sort=False)["share"].mean().unstack()
    reached = pd.DataFrame(
        {s: (mean >= s).idxmax(axis=1).where((mean >= s).any(axis=1)) for s in SHARES}
    )
    faster = reached.loc["known-cost"] / reached
    print(
        f"\nstacks of {ROUND} trained to the end until a share is reached, and times known-cost\n"
    )
    cells = reached.map("{:.2f}".format) + faster.map(" (×{:.2f})".format)
    print(cells.replace("nan (×nan)", "").to_markdown())
