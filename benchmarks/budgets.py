"""How much of the exhaustive front a search finds for its training budget, by sampler.

    python benchmarks/budgets.py              # minutes
    python benchmarks/budgets.py --earlier    # learning curves, inherited weights, refilled stacks

Trains every network of three spaces once, in stacks, and keeps its accuracy after each epoch in
`build/budgets-NAME.npz`: minutes, once. Searches are then simulated by looking up, in rounds of 16,
with no network trained twice, as `labkit.search` does. Halving is MO-ASHA in such rounds
(Schmucker et al. 2021, arXiv:2106.12639): rungs of 1, 3 and 9 epochs; of all networks that reached
a rung, the better third goes on, by non-dominated sorting and then crowding distance (NSGA-II, Deb
et al. 2002). A network counts with the accuracy that it has at the epochs that it got.

A budget is counted in epochs that were trained, or by the clock: in a stack, a few networks
take nearly as long as many. How long an epoch takes by the width of a stack is measured first.

Prints the tables, and draws `benchmarks/budgets.png`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
import plotly.express as px
import torch
from sklearn.datasets import load_digits
from torch import nn

from labkit.data import Dataset, load_data
from labkit.show.pictures import save_image
from labkit.show.style import TEMPLATE
from labkit.study import SearchSpaceBase, dominated_volume, get_space, load_config
from labkit.study.known_cost import KnownCostSampler
from labkit.study.proposals import make_sampler
from labkit.training import TrainSettings, train_stack
from labkit.transform import Plan, cost_of, get_model

ROOT = Path(__file__).parent.parent
RUNGS = (1, 3, 9)  # epochs
ROUND = 16
SEEDS = 10
GP_SEEDS, GP_TRAININGS = 2, 48  # of Optuna's own, of which a proposal takes half a second
TRIALS = 640  # of one search: a sampler asks for networks again that are known
MULTIPLIERS = [0.5, 1, 1.5, 2, 2.5, 3, 4]
REPORT, HIDDEN, CONVOLUTIONS = "report", "four hidden layers", "three convolutions"
JETS = TrainSettings(max_epochs=RUNGS[-1], num_samples=20_000)
DIGITS = TrainSettings(max_epochs=RUNGS[-1], batch_size=64, learning_rate=3e-3)
SETTINGS = {REPORT: JETS, HIDDEN: JETS, CONVOLUTIONS: DIGITS}
# Of the tables, in trainings of one network to the end, and in those of a stack of `ROUND`.
BUDGETS = {
    REPORT: (2, 4, 6, 8, 16),
    HIDDEN: (16, 32, 48, 64, 96, 128),
    CONVOLUTIONS: (8, 16, 32, 48, 96),
}
STACKS = {REPORT: (0.5, 1), HIDDEN: (1, 2, 4, 8)}  # convolutions train one by one

Floats = npt.NDArray[np.float64]


class Step(NamedTuple):
    """A network got more epochs.

    Attributes:
        spent: Epochs of networks that the search has trained so far.
        elapsed: How long it has taken: 1 is the training of a stack of `ROUND` to the end.
        row: The network.
        epochs: How many it has now.
    """

    spent: int
    elapsed: float
    row: int
    epochs: int


class Clock:
    """How long stacks take.

    Args:
        seconds: Width of a stack → seconds an epoch.
    """

    def __init__(self, seconds: dict[int, float]):
        self.widths, self.seconds = [0, *seconds], [0.0, *seconds.values()]
        self.unit = RUNGS[-1] * seconds[ROUND]

    def of(self, width: int, epochs: int) -> float:
        """Returns how long a stack takes for some epochs; 1 is `ROUND` networks to the end."""
        return epochs * float(np.interp(width, self.widths, self.seconds)) / self.unit


def four_hidden_layers() -> nn.Module:
    """Returns a network for the jets whose hidden layers all have 8 channels."""
    widths = [16, 8, 8, 8, 8]
    hidden = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], 5))


def three_convolutions() -> nn.Module:
    """Returns a network for images of 8 × 8 whose convolutions all have 8 channels."""
    layers: list[nn.Module] = []
    for before in (1, 8, 8):
        layers += [nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))


def make_space(name: str) -> tuple[nn.Module, SearchSpaceBase]:
    """Returns one of the spaces, and its network."""
    if name == REPORT:
        model = get_model("jsc-toy")
        table = load_config(ROOT / "configs" / "jsc_toy.toml").search.search_space
        return model, get_space(table.name)(model, table.setup, table.seed)
    model = four_hidden_layers() if name == HIDDEN else three_convolutions()
    seed = {"default": {"config": {"channel_multiplier": MULTIPLIERS}}}
    example = None if name == HIDDEN else torch.zeros(1, 1, 8, 8)
    space = get_space("transform/channel_multiplier")
    return model, space(model, {"by": "name"}, seed, example)


def make_data(name: str) -> Dataset:
    """Returns what the networks of a space are trained on."""
    if name != CONVOLUTIONS:
        return load_data("jsc")
    digits = load_digits()
    return Dataset.from_arrays(digits.images[:, None], digits.target, validation=0.4)


class Table(NamedTuple):
    """What training every network of a space gave.

    Attributes:
        space: The space.
        index: Network → its row.
        accuracy: `[networks, epochs]`, on the validation split.
        flops: `[networks]`, inference.
    """

    space: SearchSpaceBase
    index: dict[Plan, int]
    accuracy: Floats
    flops: Floats

    def losses(self, rows: list[int], epochs: list[int]) -> Floats:
        """Returns `[rows, 2]`, to be minimised: 1 is the worst of the space, 0 the best."""
        final = self.accuracy[:, -1]
        accuracy = self.accuracy[rows, np.array(epochs, int) - 1]
        return np.column_stack(
            [
                (final.max() - accuracy) / np.ptp(final),
                (self.flops[rows] - self.flops.min()) / np.ptp(self.flops),
            ]
        )


def _train(name: str, plans: list[Plan]) -> list[list[float]]:
    torch.set_num_threads(1)
    model, _ = make_space(name)
    trained = train_stack(model, plans, make_data(name), SETTINGS[name])
    return [[metrics["accuracy"] for metrics in each.history] for each in trained]


def make_table(name: str) -> Table:
    """Returns the table of a space, trained where it is not yet in `build/`."""
    _, space = make_space(name)
    plans = list(space.networks)
    path = ROOT / "build" / f"budgets-{name.replace(' ', '-')}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # Wide networks beside wide ones, so that little is padding.
        order = sorted(range(len(plans)), key=lambda row: sorted(w for _, w in plans[row].widths))
        stacks = [order[start : start + ROUND] for start in range(0, len(order), ROUND)]
        jobs = [(name, [plans[row] for row in rows]) for rows in stacks]
        flops = [cost_of(space.channels, plan).total_flops for plan in plans]
        accuracy = np.empty((len(plans), RUNGS[-1]))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            accuracy[order] = np.concatenate(pool.starmap(_train, jobs, chunksize=1))
        np.savez_compressed(path, accuracy=accuracy, flops=flops)
    kept = np.load(path)
    index = {plan: row for row, plan in enumerate(plans)}
    return Table(space, index, kept["accuracy"], kept["flops"].astype(float))


def measure_clock() -> Clock:
    """Returns how long stacks of the large space take here: CPU time of the shortest epoch of many.

    In one thread, so that it is the time by the clock where nothing else runs.
    """
    torch.set_num_threads(1)
    model, space = make_space(HIDDEN)
    plans = random.Random(0).sample(list(space.networks), ROUND)
    settings = JETS.model_copy(update={"max_epochs": 4})
    seconds: dict[int, float] = {}
    for width in 7 * (1, 2, 4, 8, ROUND):
        ends: list[float] = []
        train_stack(
            model, plans[:: ROUND // width], load_data("jsc"), settings,
            on_epoch=lambda _, ends=ends: ends.append(time.process_time()),  # type: ignore[misc]
        )  # fmt: skip
        epochs = [after - before for before, after in itertools.pairwise(ends)]
        seconds[width] = min(*epochs, seconds.get(width, math.inf))
    print("seconds an epoch by width of a stack:", {w: round(s, 3) for w, s in seconds.items()})
    return Clock(seconds)


def one_by_one(n: int, clock: Clock) -> Iterator[Step]:
    """Trains the space's first networks to the end, in the order in which brute force does."""
    for row in range(n):
        elapsed = (row // ROUND + 1) * clock.of(ROUND, RUNGS[-1])
        yield Step((row + 1) * RUNGS[-1], elapsed, row, RUNGS[-1])


def make_study(table: Table, sampler: str, seed: int) -> optuna.Study:
    """Returns a study of accuracy and FLOPs that a sampler proposes networks for."""

    def known_values(plan: Plan) -> list[float]:
        return [math.nan, table.flops[table.index[plan]]]

    return optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=KnownCostSampler(table.space, known_values, seed, lambda plan: False)
        if sampler == "known-cost"
        else make_sampler(sampler, seed),
    )


def ask(study: optuna.Study, table: Table) -> tuple[optuna.Trial, int]:
    """Returns a proposal, and the row of its network."""
    trial = study.ask(table.space.distributions)
    return trial, table.index[table.space.resolve(table.space.sampled_config(trial.params))]


def sampled(
    table: Table, sampler: str, seed: int, clock: Clock, at_once: int = ROUND
) -> Iterator[Step]:
    """Asks a sampler, as `labkit.search` does."""
    study = make_study(table, sampler, seed)
    elapsed, known = 0.0, dict[int, None]()
    while len(known) < len(table.index) and len(study.trials) < TRIALS:
        n_known = len(known)
        for trial, row in [ask(study, table) for _ in range(at_once)]:
            study.tell(trial, [table.accuracy[row, -1], table.flops[row]])
            known[row] = None
        elapsed += clock.of(len(known) - n_known, RUNGS[-1])
        for n, row in enumerate(list(known)[n_known:], n_known + 1):
            yield Step(n * RUNGS[-1], elapsed, row, RUNGS[-1])


def halving(table: Table, seed: int, clock: Clock) -> Iterator[Step]:
    """Starts random networks and promotes the better third of each rung."""
    untried = random.Random(seed).sample(range(len(table.index)), len(table.index))
    reached: dict[int, int] = {}  # network → epochs
    spent, elapsed = 0, 0.0
    while untried:
        chosen, untried = untried[:ROUND], untried[ROUND:]
        for low, high in itertools.pairwise((0, *RUNGS)):
            if low:
                rows = [row for row, epochs in reached.items() if epochs >= low]
                best = _best_first(table.losses(rows, [low] * len(rows)))[: len(rows) // 3]
                chosen = [row for row in (rows[i] for i in best) if reached[row] == low]
            elapsed += clock.of(len(chosen), high - low)
            for row in chosen:
                reached[row] = high
                spent += high - low
                yield Step(spent, elapsed, row, high)


def _best_first(losses: Floats) -> list[int]:
    """Returns the rows of `[points, axes]` by NSGA-II's order: fronts, each by crowding."""
    dominates = (losses[:, None] <= losses).all(2) & (losses[:, None] < losses).any(2)
    left = np.arange(len(losses))
    order: list[int] = []
    while len(left):
        on_front = ~dominates[np.ix_(left, left)].any(axis=0)
        front, left = left[on_front], left[~on_front]
        crowding = np.zeros(len(front))
        for values in losses[front].T:
            by_value = values.argsort()
            padded = np.concatenate([[-np.inf], values[by_value], [np.inf]])
            crowding[by_value] += padded[2:] - padded[:-2]
        order += front[(-crowding).argsort(kind="stable")].tolist()
    return order


def shares(
    table: Table, steps: list[Step], budgets: Sequence[float], cost: Callable[[Step], float]
) -> list[float]:
    """Returns the share of the exhaustive front's hypervolume at each budget."""
    worst = np.ones(2)
    every = list(range(len(table.index)))
    whole = dominated_volume(table.losses(every, [RUNGS[-1]] * len(every)), worst)
    found = []
    for budget in budgets:
        reached = {step.row: step.epochs for step in steps if cost(step) <= budget}
        losses = table.losses(list(reached), list(reached.values()))
        found.append(dominated_volume(losses, worst) / whole if reached else 0.0)
    return found


def _within(steps: Iterator[Step], trainings: int) -> Iterator[Step]:
    return itertools.takewhile(lambda step: step.spent <= trainings * RUNGS[-1], steps)


def simulate(name: str, seed: int, clock: Clock) -> pd.DataFrame:
    """Returns one row a way of searching and budget: the share found with this seed.

    Budgets of which `counted` says "trainings" are in trainings of one network to the end; those of
    "stacks", in the time that a stack of `ROUND` takes to the end.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = make_table(name)
    last = BUDGETS[name][-1]
    trainings = sorted({*BUDGETS[name], *np.geomspace(1, last, 25).astype(int).tolist()})
    ways = {
        "known-cost": sampled(table, "known-cost", seed, clock),
        "known-cost, rounds of 4": sampled(table, "known-cost", seed, clock, 4),
        "TPE": sampled(table, "tpe", seed, clock),
        "random": sampled(table, "random", seed, clock),
        "halving": halving(table, seed, clock),
        "exhaustive": one_by_one(last, clock),
    }
    if seed < GP_SEEDS:
        ways["GP"] = sampled(table, "gp", seed, clock)
    costs: dict[str, tuple[Sequence[float], Callable[[Step], float]]] = {
        "trainings": (trainings, lambda step: step.spent / RUNGS[-1]),
        "stacks": (STACKS.get(name, ()), lambda step: step.elapsed - 1e-9),
    }
    rows: list[dict[str, Any]] = []
    for way, steps in ways.items():
        limit = GP_TRAININGS if way == "GP" else last
        taken = list(_within(steps, limit))
        for counted, (budgets, cost) in costs.items():
            rows += [
                {
                    "space": name, "search": way, "seed": seed,
                    "counted": counted, "budget": budget, "share": share,
                }
                for budget, share in zip(budgets, shares(table, taken, budgets, cost))
                if budget <= limit / (ROUND if counted == "stacks" else 1)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def show(found: pd.DataFrame) -> None:
    """Prints the tables and draws the figure."""
    for counted, budgets_of in (("trainings", BUDGETS), ("stacks", STACKS)):
        for name, budgets in budgets_of.items():
            chosen = found[
                (found["space"] == name)
                & (found["counted"] == counted)
                & found["budget"].isin(budgets)
            ]
            spread = chosen.groupby(["search", "budget"])["share"].agg(["mean", "std"])
            cells = spread.apply(lambda row: f"{row['mean']:.3f} ± {row['std']:.3f}", axis=1)
            print(f"\n{name}, budget in {counted}\n\n{cells.unstack().to_markdown()}")
    shown = (found["counted"] == "trainings") & ~found["search"].str.contains("rounds")
    trainings = found[shown]
    mean = trainings.groupby(["space", "search", "budget"], as_index=False)["share"].mean()
    figure = px.line(
        mean, x="budget", y="share", color="search", line_dash="search", facet_col="space",
        log_x=True, template=TEMPLATE,
        category_orders={
            "search": ["known-cost", "GP", "TPE", "halving", "random", "exhaustive"],
            "space": list(BUDGETS),
        },
        labels={"budget": "trainings", "share": "share of hypervolume"},
        title=f"Share of the exhaustive front's hypervolume; means of {SEEDS} seeds, "
        f"GP of {GP_SEEDS}",
    )  # fmt: skip
    figure.update_xaxes(matches=None, dtick="D2")
    figure.update_yaxes(range=[0.7, 1.01])
    figure.for_each_annotation(lambda one: one.update(text=one.text.removeprefix("space=")))
    save_image(figure, ROOT / "benchmarks" / "budgets.png")


def main() -> None:
    """Trains what is not yet in `build/`, simulates and shows."""
    parser = argparse.ArgumentParser(description="What a search finds for its budget.")
    parser.add_argument("--earlier", action="store_true", help="whether earlier knowledge helps")
    chosen = parser.parse_args()
    for name in BUDGETS:
        make_table(name)
    clock = measure_clock()
    if chosen.earlier:
        import earlier  # which imports this module

        earlier.show(clock)
        return
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = list(itertools.product(BUDGETS, range(SEEDS), [clock]))
        show(pd.concat(pool.starmap(simulate, jobs, chunksize=1)))


if __name__ == "__main__":
    main()
