"""What a step of the stack is made of, and how near it is to what that must take.

    python benchmarks/step.py

A step starts operators, moves bytes and multiplies, and the price of each is measured here:

- operators: a step of as many networks whose hidden layers have one channel, with two rows: it
  starts the same operators, which have next to nothing to do;
- bytes: what operators other than views read and write, at the speed of copying a tensor of the
  size of the step's own;
- products: the matrix products as they are, padding included, at the speed of one batched product
  of that size.

Their sum is what a step would take if each operator did one thing after the other at these speeds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

# Before torch, as in the labkit command: it sets how torch's threads wait.
import labkit.runtime  # noqa: F401  # isort: skip

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from trainers import PLANS, load, useful_flops

from labkit.training import TrainSettings, train_stack
from labkit.transform import Plan, get_model

ROWS = 256
STEPS = 200
SIZE = 64  # channels of the padded hidden layers
ONE_CHANNEL = Plan((("seq_blocks_2", 1), ("seq_blocks_5", 1)))


class Counter(TorchDispatchMode):
    """Counts what runs while it is entered.

    Attributes:
        n_operators: Calls of operators, views included.
        n_bytes: What operators other than views read and wrote.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_operators = self.n_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        self.n_operators += 1
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)]
            self.n_bytes += sum(tensor.nbytes for tensor in tensors)
        return result


class Step(NamedTuple):
    """What one step needs.

    Attributes:
        operators: Started.
        bytes: Read and written.
        products: FLOPs of the matrix products, two for each multiply-accumulate.
    """

    operators: int
    bytes: int
    products: int


def run(plans: list[Plan], n_rows: int, n_steps: int, on_step: Callable[[], None]) -> None:
    """Trains networks of the report's space for so many steps of so many rows."""
    data, total = load(False), n_rows * n_steps
    few = replace(
        data, x_train=data.x_train[:total], y_train=data.y_train[:total],
        x_val=data.x_val[:2], y_val=data.y_val[:2],
    )  # fmt: skip
    settings = TrainSettings(max_epochs=1, batch_size=n_rows)
    train_stack(get_model("jsc-toy"), plans, few, settings, on_step=on_step)


def counted(function: Callable[[], object]) -> Step:
    """Returns what a function needs."""
    with FlopCounterMode(display=False) as flops, Counter() as counter:
        function()
    return Step(counter.n_operators, counter.n_bytes, flops.get_total_flops())


def count(plans: list[Plan], n_rows: int) -> Step:
    """Returns what a step of these networks needs: that by which four need more than three."""
    more, fewer = (counted(lambda n=n: run(plans, n_rows, n, lambda: None)) for n in (4, 3))  # type: ignore[misc]
    return Step(*(a - b for a, b in zip(more, fewer)))


def step_seconds(plans: list[Plan], n_rows: int) -> float:
    """Returns the median of how long a step takes."""
    starts: list[float] = []
    run(plans, n_rows, STEPS, lambda: starts.append(time.perf_counter()))
    return statistics.median(b - a for a, b in zip(starts[STEPS // 2 :], starts[STEPS // 2 + 1 :]))


def fastest(function: Callable[[], object]) -> float:
    """Returns the shortest of many runs, in seconds."""
    times = []
    for _ in range(200):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints the model's table."""
    step = count(PLANS, ROWS)
    a, b = torch.randn(len(PLANS), SIZE, SIZE), torch.randn(len(PLANS), SIZE, ROWS)
    out = torch.empty_like(b)
    product = fastest(lambda: torch.bmm(a, b, out=out)) / (2 * a.numel() * ROWS)
    byte = fastest(lambda: out.copy_(b)) / (2 * b.nbytes)
    data, once = load(False), TrainSettings(max_epochs=1)
    useful = useful_flops(PLANS, data, once) * len(PLANS) * ROWS / len(data.x_train)
    parts = {
        f"{step.operators} operators started": step_seconds([ONE_CHANNEL] * len(PLANS), 2),
        f"{step.bytes / 1e6:.0f} MB moved, at {1e-9 / byte:.0f} GB/s": step.bytes * byte,
        f"{step.products / 1e6:.0f} MFLOP of products, of which {useful / step.products:.0%} are "
        f"useful, at {1e-9 / product:.0f} GFLOP/s": step.products * product,
    }
    measured = step_seconds(PLANS, ROWS)
    print(f"{len(PLANS)} networks, {ROWS} rows, {torch.get_num_threads()} threads:\n")
    print("| a step | ms |\n|:--|--:|")
    for name, seconds in parts.items():
        print(f"| {name} | {1e3 * seconds:.2f} |")
    print(f"| sum | {1e3 * sum(parts.values()):.2f} |")
    print(f"| measured | {1e3 * measured:.2f} |")


if __name__ == "__main__":
    main()
