"""How a search scales: networks a second by workers, and what one driver can feed.

    python benchmarks/scale.py                    # some ten minutes
    python benchmarks/scale.py --part workers     # 1, 2, … processes of this machine
    python benchmarks/scale.py --part driver      # 10, 100 and 1,000 simulated workers, which sleep

Workers are measured where networks train one by one: linear networks with layer norm on the jets,
and `resnet8` on `digits32`. The first networks, in which processes start, do not count.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit import Dataset, Search, TrainSettings, get_model, load_data
from labkit.study import LocalExecutor, Task
from labkit.study.config import simple_tables
from labkit.study.pool import PoolExecutor, ProcessExecutor
from labkit.study.record import Candidate, Outcome
from labkit.transform import Plan


def linear() -> Task:
    """Four linear layers with layer norm."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise([16, 64, 32, 32]):
        layers += [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 5))
    return Task(model, load_data("jsc"), TrainSettings(max_epochs=1, num_samples=80_000))


def convolutional() -> Task:
    """The report's small residual network on images of digits."""
    settings = TrainSettings(max_epochs=1, batch_size=64)
    return Task(get_model("resnet8"), load_data("digits32"), settings)


def candidates(task: Task, n: int) -> list[Candidate]:
    """Networks of widths between half and all of the original ones."""
    draw = random.Random(0)
    groups = task.channels.free
    return [
        Candidate(Plan(tuple((g.name, draw.randint(g.width // 2, g.width)) for g in groups)), seed)
        for seed in range(n)
    ]


def networks_a_second(task: Task, workers: int | None, n: int) -> float:
    """Trains n networks one by one, in this process (`None`) or in others."""
    executor = LocalExecutor() if workers is None else ProcessExecutor(workers, stacks=False)
    shares = [[candidate] for candidate in candidates(task, n)]
    ends = []
    for outcome in executor.run(task, shares):
        assert outcome.failure is None
        ends.append(time.perf_counter())
    warm = 2 * (workers or 1)
    return (n - warm) / (ends[-1] - ends[warm - 1])


def measure_workers(n: int, repeats: int) -> None:
    """Prints a table: the best of some repeats, which are interleaved."""
    cores = torch.get_num_threads()
    kinds = [None, *(k for k in (1, 2, 4, 8, 16, 32) if k <= 2 * cores)]
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} at the beginning\n")
    print(
        "| network | one process, all threads |", " | ".join(f"{k} workers" for k in kinds[1:]), "|"
    )
    print("|:--|" + "--:|" * len(kinds))
    for name, task in (("linear, layer norm", linear()), ("resnet8", convolutional())):
        best = dict.fromkeys(kinds, 0.0)
        for _ in range(repeats):
            for kind in kinds:
                best[kind] = max(best[kind], networks_a_second(task, kind, n))
        print(f"| {name} |", " | ".join(f"{rate:.2f}" for rate in best.values()), "|", flush=True)


class Sleepers(concurrent.futures.ThreadPoolExecutor):
    """Simulated workers: threads that sleep in place of training."""

    def __init__(self, workers: int, seconds: float):
        super().__init__(workers)
        self.seconds = seconds

    def submit(self, function: Any, name: str, share: Sequence[Candidate], *_: Any) -> Any:  # type: ignore[override]
        return super().submit(self._train, share)

    def _train(self, share: Sequence[Candidate]) -> tuple[list[Outcome], None]:
        time.sleep(self.seconds * random.uniform(0.5, 1.5))
        accuracy = sum(width for _, width in share[0].plan.widths) % 97 / 97
        metrics = {"loss": 1.0, "accuracy": accuracy, "accuracy_macro": accuracy,
                   "train_loss": 1.0, "train_accuracy": accuracy}  # fmt: skip
        return [Outcome(candidate, [metrics]) for candidate in share], None


def driver_cost(workers: int, sampler: str, data: Dataset, folder: Path | None) -> dict[str, float]:
    """Returns the driver's own milliseconds a trial, and how many workers it kept at work."""
    seconds, n_trials = 0.02 * workers, max(400, 3 * workers)
    with Sleepers(workers, seconds) as pool:
        tables = simple_tables([k / 8 for k in range(1, 33)])
        setup = {"n_trials": n_trials, "n_jobs": 1, "sampler": sampler}
        tables["search"]["strategy"]["setup"] = setup
        run = Search(
            tables, model=get_model("hls4ml-jets"), data=data, folder=folder,
            executor=PoolExecutor(pool),
        )  # fmt: skip
        wall, cpu = time.perf_counter(), time.thread_time()
        run._trainer.run()
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    trained = sum(t.record.source == "trained" for t in run.store.trials)
    return {
        "ms": 1e3 * cpu / n_trials,
        "busy": trained * seconds / (wall * workers),
        "a second": n_trials / wall,
    }


def measure_driver(numbers: Sequence[int]) -> None:
    """Prints a table."""
    data = load_data("jsc")
    print(f"load {os.getloadavg()[0]:.1f} at the beginning\n")
    columns = "CPU of the driver, ms a trial | trials a second | workers at work"
    print(f"| workers | sampler | where | {columns} |")
    print("|--:|:--|:--|--:|--:|--:|")
    for sampler in ("random", "tpe"):
        for workers in numbers:
            for where in ("memory", "folder"):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "study" if where == "folder" else None
                    found = driver_cost(workers, sampler, data, path)
                rates = f"{found['ms']:.1f} | {found['a second']:.0f} | {found['busy']:.0%}"
                print(f"| {workers:,} | {sampler} | {where} | {rates} |", flush=True)


def main() -> None:
    """Measures, and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["workers", "driver"])
    parser.add_argument("--networks", type=int, default=24, help="of each row of workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--simulated", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.part != "driver":
        measure_workers(arguments.networks, arguments.repeats)
    if arguments.part != "workers":
        measure_driver(arguments.simulated)


if __name__ == "__main__":
    main()
