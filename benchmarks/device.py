"""Stacks beside the reference's way and a plain loop on one device, in one run.

    python benchmarks/trainers.py --device cuda [--quick] [--compile]

All is counted in a candidate's seconds: building it, every step, and the validation. The limit is
what its steps must take there, at the speed of a large copy for the bytes that its operators read
and write, or of a large matrix product for its products, padding included: whichever is longer. On
a CPU, bytes come from the cache, so that a share can be above 1. A stack is compiled anew each
time, and that counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import torch
from step import Step, counted
from trainers import PLANS, load, plain_loop, reference

from labkit.data import Dataset
from labkit.training import TrainSettings, stack, train_stack
from labkit.transform import Channels, Plan, apply, find_channels, get_model, initialise

SETTINGS = TrainSettings(max_epochs=1)
COUNTED = 16  # networks of a stack whose step is counted; that of more is as many times larger


class Case(NamedTuple):
    """A network, the widths that its candidates have, and the sizes of its stacks."""

    name: str
    channels: Channels
    plans: list[Plan]
    data: Dataset
    stacks: Sequence[int]

    def many(self, n: int) -> list[Plan]:
        """Returns so many plans: all of them, again and again, or some, evenly spaced."""
        if n <= len(self.plans):
            return self.plans[:: len(self.plans) // n][:n]
        return self.plans * (n // len(self.plans))


class Compiled(stack._Together):
    """A stack whose step is compiled; on CUDA it is a CUDA graph, too."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.eager = self.network
        self.network = torch.compile(self.eager, mode="reduce-overhead")

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(self, "network", self.eager):  # or it is compiled again
            return super().logits(x)


class Row(NamedTuple):
    """What one way to train came to.

    Attributes:
        seconds: A candidate, all counted.
        waiting: Seconds of the whole until the first step, where it is known.
        needed: What the steps of a candidate need.
    """

    seconds: float
    waiting: float | None
    needed: Step


class Bench:
    """Trains on a device, and knows how fast that is."""

    def __init__(self, device: str, quick: bool):
        self.device, self.repeats = torch.device(device), 1 if quick else 3
        size, n = (1024, 2**22) if quick else (8192, 2**28)
        a, b = torch.randn(2, size, size, device=device)
        x, y = torch.empty(2, n, device=device)
        self.flops = 2 * size**3 / self.fastest(lambda: a @ b)
        self.bandwidth = 2 * x.nbytes / self.fastest(lambda: y.copy_(x))

    def seconds(self, function: Callable[[], object]) -> float:
        """Returns how long a function and what it started on the device take."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def fastest(self, function: Callable[[], object]) -> float:
        return min(self.seconds(function) for _ in range(10))

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def loop(self, train: Callable[..., None], case: Case, data: Dataset) -> Row:
        """Measures a loop that trains one network: the mean of four."""

        def run(on: Dataset, plans: Sequence[Plan]) -> None:
            for plan in plans:
                network = apply(get_model(case.name), plan, channels=case.channels)
                train(initialise(network, 0).to(self.device), on, SETTINGS)

        run(_first(data, 2), case.many(1))  # which warms up
        plans = case.many(4)
        times = [self.seconds(lambda: run(data, plans)) for _ in range(self.repeats)]
        needed = _step(lambda on: run(on, case.many(4)), data, len(plans))
        return Row(statistics.median(times) / len(plans), None, needed)

    def together(self, case: Case, data: Dataset, n: int, needed: Step | None = None) -> Row:
        """Measures a stack of so many networks; what they need is counted, if it is not known."""

        def run(on: Dataset, plans: list[Plan]) -> list[float]:
            first: list[float] = []
            train_stack(
                get_model(case.name), plans, on, SETTINGS, channels=case.channels,
                on_step=lambda: first or first.append(time.perf_counter()),
            )  # fmt: skip
            return first

        run(_first(data, 2), case.many(n))
        times, waits, plans = [], [], case.many(n)
        for _ in range(self.repeats):
            start = time.perf_counter()
            times.append(self.seconds(lambda: waits.extend(run(data, plans))))
            waits[-1] -= start
        few = case.many(min(n, COUNTED))
        needed = needed or _step(lambda on: run(on, few), data, len(few))
        return Row(statistics.median(times) / n, statistics.median(waits), needed)

    def show(self, name: str, row: Row, steps: int, a: float) -> None:
        """Prints a row of the table."""
        memory = steps * row.needed.bytes / self.bandwidth
        products = steps * row.needed.products / self.flops
        binds = "memory" if memory > products else "products"
        waiting = "" if row.waiting is None else f"{row.waiting:.2f}"
        print(
            f"| {name} | {1 / row.seconds:.3g} | {a / row.seconds:.1f} | "
            f"{max(memory, products) / row.seconds:.1%} | {binds} | {waiting} |",
            flush=True,
        )


def _first(data: Dataset, steps: int) -> Dataset:
    rows = steps * SETTINGS.batch_size
    return replace(
        data, x_train=data.x_train[:rows], y_train=data.y_train[:rows],
        x_val=data.x_val[:2], y_val=data.y_val[:2],
    )  # fmt: skip


def _step(run: Callable[[Dataset], object], data: Dataset, networks: int) -> Step:
    """Returns what a step of one network needs: that by which three steps need more than two."""
    more, fewer = (counted(lambda n=n: run(_first(data, n))) for n in (3, 2))  # type: ignore[misc]
    return Step(*(round((a - b) / networks) for a, b in zip(more, fewer)))


def images(rows: int) -> Dataset:
    """Returns noise of the size of CIFAR-10: what a step takes does not depend on it."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 3, 32, 32, generator=generator)
        return x, torch.randint(10, (n,), generator=generator)

    splits = [*draw(rows), *draw(1000), *draw(2)]
    return Dataset(*splits, classes=tuple("0123456789"), features=(), name="noise")


def cases(quick: bool) -> list[Case]:
    """Returns what is trained; `quick`: the same, tiny."""
    jets, noise = load(quick), images(768 if quick else 10_240)
    toy, resnet = (
        find_channels(get_model(name), data.x_val[:1])
        for name, data in (("jsc-toy", jets), ("resnet8", noise))
    )
    draw = random.Random(0)
    narrower = [
        Plan(tuple((g.name, g.width * draw.choice((2, 3, 4)) // 4) for g in resnet.free))
        for _ in range(64)
    ]
    if quick:
        jets = _first(jets, 4)
    return [
        Case("jsc-toy", toy, PLANS, jets, (4, 16, 32) if quick else (16, 256, 4096)),
        Case("resnet8", resnet, narrower, noise, (2,) if quick else (64,)),
    ]


def measure(device: str, quick: bool, compiled: bool) -> None:
    """Prints the table of a device."""
    bench = Bench(device, quick)
    named = torch.cuda.get_device_name() if bench.device.type == "cuda" else device
    print(
        f"{named}: products at {bench.flops / 1e12:.3g} TFLOP/s, "
        f"memory at {bench.bandwidth / 1e9:.0f} GB/s; one epoch\n\n"
        "| | candidates a second | times (a) | share of limit | which | s to the first step |\n"
        "|:--|--:|--:|--:|:--|--:|"
    )
    for case in cases(quick):
        there = case.data.to(bench.device)
        steps = -(-len(there.x_train) // SETTINGS.batch_size)
        where = f"{case.name}, {len(there.x_train):,} rows"
        # The reference keeps its rows in main memory.
        row = bench.loop(reference, case, case.data)
        a = row.seconds
        bench.show(f"(a) the reference's way, {where}", row, steps, a)
        bench.show("(c) plain loop", bench.loop(plain_loop, case, there), steps, a)
        for n in case.stacks:
            row = bench.together(case, there, n)
            bench.show(f"(f) stack of {n:,}", row, steps, a)
            if compiled:
                with mock.patch.object(stack, "_Together", Compiled):
                    row = bench.together(case, there, n, row.needed)
                bench.show(f"(g) stack of {n:,}, compiled", row, steps, a)
