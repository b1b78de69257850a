"""How long one candidate takes to train, by trainer, and the report's whole search.

    python benchmarks/trainers.py [--quick] [--json]
    python benchmarks/trainers.py --device cuda [--quick] [--compile]

All trainers run interleaved in one process (the two-process loop beside it), on the same networks
of the report's space and the same rows; figures are medians over the repeats. Useful FLOPs are
those of the unpadded matrix products: forward, and twice as many backward. The reference's way uses
torchmetrics, and (b) is there only where pytorch-lightning is: `pip install pytorch-lightning`.
`--device` prints another table, of stacks of up to 4,096 on that device: `benchmarks/device.py`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch, as in the labkit command: it sets how torch's threads wait.
import labkit.runtime  # noqa: F401  # isort: skip

import optuna
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from labkit.data import Dataset, load_data
from labkit.study import Search, load_config
from labkit.training import TrainSettings, evaluate, train, train_stack
from labkit.transform import Plan, apply, get_model, initialise

try:
    from torchmetrics.classification import MulticlassAccuracy
except ImportError:  # then (a) does without, which flatters it by some 5%
    MulticlassAccuracy = None

ROOT = Path(__file__).parent.parent
PLANS = [
    Plan((("seq_blocks_2", a), ("seq_blocks_5", b)))
    for a, b in itertools.product([8, 16, 32, 64], repeat=2)
]
EPOCHS = 2
TWO_PROCESSES = "(d) plain loop, two processes"
# What --json prints.
AIMS = (
    "stack_vs_reference",
    "stack_vs_two_process_loop",
    "search_vs_reference",
    "useful_share_of_peak",
)
# One narrow, two middling and one wide network stand for all where each is trained by itself.
SAMPLE = [PLANS[index] for index in (0, 6, 9, 15)]


def reference(model: nn.Module, data: Dataset, settings: TrainSettings) -> None:
    """The reference's way: a row at a time from a Dataset, metrics and scheduler every step."""
    loader = DataLoader(
        TensorDataset(data.x_train, data.y_train), batch_size=settings.batch_size, shuffle=True
    )
    device = next(model.parameters()).device
    accuracy = MulticlassAccuracy(len(data.classes)).to(device) if MulticlassAccuracy else None
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    total = settings.max_epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(settings.max_epochs):
        model.train()
        for batch in loader:
            x, y = (part.to(device) for part in batch)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if accuracy is not None:
                accuracy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            loss.item()
        evaluate(model, data.x_val.to(device), data.y_val.to(device))


def lightning(model: nn.Module, data: Dataset, settings: TrainSettings) -> None:
    """PyTorch Lightning's Trainer in its usual form."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            self.accuracy = MulticlassAccuracy(len(data.classes))

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            x, y = batch
            logits = self.network(x)
            loss = F.cross_entropy(logits, y)
            self.log("train_loss", loss)
            self.log("train_accuracy", self.accuracy(logits, y))
            return loss

        def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
            x, y = batch
            self.log("loss", F.cross_entropy(self.network(x), y))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=settings.learning_rate)

    trainer = pl.Trainer(
        max_epochs=settings.max_epochs, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    splits = [(data.x_train, data.y_train, True), (data.x_val, data.y_val, False)]
    loaders = [
        DataLoader(TensorDataset(x, y), batch_size=settings.batch_size, shuffle=shuffle)
        for x, y, shuffle in splits
    ]
    trainer.fit(Module(), *loaders)


def plain_loop(model: nn.Module, data: Dataset, settings: TrainSettings) -> None:
    """A good plain loop over tensors, with nothing measured in between."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    model.train()
    for _ in range(settings.max_epochs):
        order = torch.randperm(len(data.x_train), device=data.x_train.device)
        for rows in order.split(settings.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
    evaluate(model, data.x_val, data.y_val)


def one_by_one(
    trainer: Callable[[nn.Module, Dataset, TrainSettings], object],
    data: Dataset,
    settings: TrainSettings,
) -> float:
    """Returns seconds a candidate, in one thread.

    More threads make none of these faster: a network is too small to share out. They can make each
    several times slower, where waking a thread takes longer than its share of the work.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for plan in SAMPLE:
        trainer(initialise(apply(get_model("jsc-toy"), plan), 0), data, settings)
    seconds = (time.perf_counter() - start) / len(SAMPLE)
    torch.set_num_threads(n_threads)
    return seconds


@functools.cache
def load(quick: bool) -> Dataset:
    """Returns the rows that all train on."""
    data = load_data("jsc")
    if quick:
        data = replace(
            data, x_train=data.x_train[:48_000], y_train=data.y_train[:48_000],
            x_val=data.x_val[:2_000], y_val=data.y_val[:2_000],
        )  # fmt: skip
    return data


def _work(plan: Plan, quick: bool, settings: TrainSettings) -> None:
    torch.set_num_threads(1)
    plain_loop(initialise(apply(get_model("jsc-toy"), plan), 0), load(quick), settings)


def in_two_processes(pool: Any, quick: bool, settings: TrainSettings) -> float:
    """Returns seconds a candidate of the plain loop in two processes of one thread.

    Each loads the data itself: tensors would be handed over by a thread that uses OpenMP, and then
    the stack's threads, in this process, wait for each other less patiently.
    """
    start = time.perf_counter()
    pool.starmap(_work, [(plan, quick, settings) for plan in SAMPLE], chunksize=1)
    return (time.perf_counter() - start) / len(SAMPLE)


def stacked(width: int, data: Dataset, settings: TrainSettings) -> float:
    """Returns seconds a candidate in a stack; networks repeat, with other seeds, beyond 16."""
    # A stack narrower than the space takes evenly spaced networks of it.
    plans = PLANS[:: max(16 // width, 1)][:width] if width < 16 else PLANS * (width // 16)
    start = time.perf_counter()
    train_stack(get_model("jsc-toy"), plans, data, settings)
    return (time.perf_counter() - start) / len(plans)


def matrix_product_peak() -> float:
    """Returns FLOP/s of a product of two 2048 × 2048 float32 matrices."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def useful_flops(plans: list[Plan], data: Dataset, settings: TrainSettings) -> float:
    """Returns the mean over networks of the FLOPs of a training's unpadded matrix products."""
    weights = [
        sum(m.weight.numel() for m in apply(get_model("jsc-toy"), plan).modules()
            if isinstance(m, nn.Linear))
        for plan in plans
    ]  # fmt: skip
    return 6 * statistics.mean(weights) * len(data.x_train) * settings.max_epochs


def search_seconds(folder: str | None = None) -> float:
    """Returns seconds of the report's search of 100 trials, end to end, of `EPOCHS` on all rows."""
    config = load_config(ROOT / "configs" / "jsc_toy.toml").replace(max_epochs=EPOCHS)
    data = load(False)
    start = time.perf_counter()
    Search(config, data=data, folder=folder).run(progress=False)
    return time.perf_counter() - start


def search_to_folder_seconds() -> float:
    """Returns the same where all is kept: Optuna's SQLite database, tables, weights and figures."""
    with tempfile.TemporaryDirectory() as folder:
        return search_seconds(folder)


def make_trainers(
    pool: Any, data: Dataset, quick: bool, settings: TrainSettings, widths: list[int]
) -> dict[str, Callable[[], float]]:
    """Returns what measures each trainer: seconds a candidate."""
    trainers: dict[str, Callable[[], float]] = {
        "(a) the reference's way": lambda: one_by_one(reference, data, settings),
        "(b) PyTorch Lightning": lambda: one_by_one(lightning, data, settings),
        "(c) plain loop": lambda: one_by_one(plain_loop, data, settings),
        TWO_PROCESSES: lambda: in_two_processes(pool, quick, settings),
        "(e) labkit.train": lambda: one_by_one(train, data, settings),
    } | {
        f"(f) labkit.stack, width {width}": lambda width=width: stacked(width, data, settings)  # type: ignore[misc]
        for width in widths
    }
    if quick or importlib.util.find_spec("pytorch_lightning") is None:
        del trainers["(b) PyTorch Lightning"]
    return trainers


def _peak_memory(name: str) -> float:
    data = load(False)
    few = replace(data, x_train=data.x_train[:2560], y_train=data.y_train[:2560])
    trainer = make_trainers(None, few, False, TrainSettings(max_epochs=1), [1, 4, 16, 64])[name]
    # Not that of loading the data, which is higher: 5 sets Linux's high-water mark back.
    Path("/proc/self/clear_refs").write_text("5")
    trainer()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**20


def peak_memory(name: str) -> float:
    """Returns GiB of a process that takes ten steps so; of both processes of (d)."""
    if name == TWO_PROCESSES:
        return 2 * peak_memory("(c) plain loop")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, [name])


def measure(quick: bool) -> dict[str, Any]:
    """Returns the figures of both tables; memory only where there is time for it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load(quick)
    settings = TrainSettings(max_epochs=1 if quick else EPOCHS)
    widths = [16] if quick else [1, 4, 16, 64]
    peak = matrix_product_peak()
    seconds: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        trainers = make_trainers(pool, data, quick, settings, widths)
        few = replace(data, x_train=data.x_train[:2560], y_train=data.y_train[:2560])
        for warm_up in make_trainers(pool, few, quick, settings, widths).values():
            warm_up()  # imports, and the processes start
        for _ in range(2 if quick else 3):
            for name, trainer in trainers.items():
                seconds.setdefault(name, []).append(trainer())
    median = {name: statistics.median(times) for name, times in seconds.items()}
    a, d = median["(a) the reference's way"], median[TWO_PROCESSES]
    best = median["(f) labkit.stack, width 16"]
    search = search_seconds()
    # The reference's way takes as long for each row, however many there are.
    whole = len(load(False).x_train) * EPOCHS / (len(data.x_train) * settings.max_epochs)
    return {
        "stack_vs_reference": a / best,
        "stack_vs_two_process_loop": d / best,
        "search_vs_reference": 100 * a * whole / search,
        "useful_share_of_peak": useful_flops(PLANS, data, settings) / best / peak,
        "threads": torch.get_num_threads(),
        "rows": len(data.x_train),
        "epochs": settings.max_epochs,
        "matrix_product_peak_gflops": peak / 1e9,
        "peak_memory_gib": (
            {} if quick or sys.platform != "linux" else {name: peak_memory(name) for name in median}
        ),
        "search_seconds": search,
        "search_to_folder_seconds": None if quick else search_to_folder_seconds(),
        "reference_search_seconds": 100 * a * whole,
        "seconds": seconds,
        "useful_gflops": {
            name: useful_flops(PLANS if "stack" in name else SAMPLE, data, settings) / time_ / 1e9
            for name, time_ in median.items()
        },
    }


def main() -> None:
    """Prints the tables, or with `--json` one object."""
    parser = argparse.ArgumentParser(description="Trainers side by side.")
    parser.add_argument("--quick", action="store_true", help="fewer rows; under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one object and nothing else")
    parser.add_argument("--device", help="such as cuda: the table of large stacks there")
    parser.add_argument("--compile", action="store_true", help="with --device: compiled, too")
    arguments = parser.parse_args()
    if arguments.device is not None:
        import device  # which imports this module

        device.measure(arguments.device, arguments.quick, arguments.compile)
        return
    figures = measure(arguments.quick)
    if arguments.json:
        print(json.dumps({key: figures[key] for key in AIMS}))
        return
    print(
        f"{figures['rows']:,} rows, {figures['epochs']} epochs, {figures['threads']} threads, "
        f"matrix products reach {figures['matrix_product_peak_gflops']:.0f} GFLOP/s\n"
    )
    a = statistics.median(figures["seconds"]["(a) the reference's way"])
    columns = "seconds a candidate | times (a) | useful GFLOP/s | share of peak | memory, GiB"
    print(f"| trainer | {columns} |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, times in figures["seconds"].items():
        time_, gflops = statistics.median(times), figures["useful_gflops"][name]
        share = gflops / figures["matrix_product_peak_gflops"]
        memory = figures["peak_memory_gib"].get(name)
        print(
            f"| {name} | {time_:.3f} | {a / time_:.1f} | {gflops:.1f} | {share:.1%} | "
            f"{'' if memory is None else format(memory, '.2f')} |"
        )
    print(
        f"\n| the search of 100 trials, {EPOCHS} epochs | seconds |\n|:--|--:|\n"
        f"| (a), each trial trained: 100 × seconds a candidate | "
        f"{figures['reference_search_seconds']:.0f} |\n"
        f"| labkit search, in memory | {figures['search_seconds']:.1f} |"
    )
    if figures["search_to_folder_seconds"] is not None:
        print(f"| labkit search, to a folder | {figures['search_to_folder_seconds']:.1f} |")


if __name__ == "__main__":
    main()
