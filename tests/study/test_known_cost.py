"""The sampler that knows the cost: its formulas, and what it proposes."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sklearn.gaussian_process import kernels
from torch import nn

from labkit.errors import LabkitError
from labkit.study import dominated_volume, get_space, known_cost, load_config
from labkit.study.known_cost import KnownCostSampler, expected_improvement, spread
from labkit.study.limits import Limits
from labkit.study.proposals import make_sampler
from labkit.study.record import Record, Source
from labkit.study.spaces import ChannelMultiplierSpace
from labkit.study.store import Store
from labkit.transform import Plan, get_model
from tests.study.conftest import description

MULTIPLIERS = [0.25, 0.5, 1, 2, 4, 8]


def make_space(n_hidden: int, multipliers: Sequence[float] = MULTIPLIERS) -> ChannelMultiplierSpace:
    hidden = [layer for _ in range(n_hidden) for layer in (nn.Linear(8, 8), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(8, 2))
    table = {"default": {"config": {"channel_multiplier": list(multipliers)}}}
    return ChannelMultiplierSpace(model, {"by": "name"}, table)


@pytest.fixture(scope="module")
def space() -> ChannelMultiplierSpace:
    """216 networks."""
    return make_space(3)


def cost(plan: Plan) -> float:
    widths = [8, *(width for _, width in plan.widths), 2]
    return float(sum(a * b for a, b in itertools.pairwise(widths)))


def accuracy(plan: Plan) -> float:
    """Rises with all widths, and depends most on the first; ± 0.002 from network to network."""
    lost = sum(0.3 / (n * width) for n, (_, width) in enumerate(plan.widths, start=1))
    return 0.9 - lost + 0.002 * math.sin(1e4 * lost)


def known(plan: Plan) -> list[float]:
    return [math.nan, cost(plan)]


def make_study(
    space: ChannelMultiplierSpace, seed: int = 0, known: known_cost.Known = known,
    directions: Any = ("maximize", "minimize"),
) -> optuna.Study:  # fmt: skip
    sampler = KnownCostSampler(space, known, seed, lambda plan: False)
    return optuna.create_study(directions=list(directions), sampler=sampler)


def plan_of(space: ChannelMultiplierSpace, trial: optuna.Trial | FrozenTrial) -> Plan:
    return space.resolve(space.sampled_config(trial.params))


def run(
    study: optuna.Study, space: ChannelMultiplierSpace, n: int, at_once: int = 4,
    values: Callable[[Plan], Sequence[float]] = lambda plan: (accuracy(plan), cost(plan)),
) -> list[Plan]:  # fmt: skip
    """Asks for n trials, some at once, and tells what they measure."""
    plans = []
    for _ in range(0, n, at_once):
        for trial in [study.ask(space.distributions) for _ in range(at_once)]:
            plans.append(plan_of(space, trial))
            study.tell(trial, list(values(plans[-1])))
    return plans


def share(space: ChannelMultiplierSpace, plans: Sequence[Plan]) -> float:
    """The share of the exhaustive front's hypervolume."""

    def losses(some: Sequence[Plan]) -> np.ndarray:
        return np.array([(-accuracy(plan), cost(plan)) for plan in some])

    every = losses(list(space.networks))
    low, span = every.min(axis=0), np.ptp(every, axis=0)
    volumes = [dominated_volume((some - low) / span, np.ones(2)) for some in (losses(plans), every)]
    return volumes[0] / volumes[1]


# Formulas.


@pytest.mark.parametrize("level", [0.2, 0.7, 0.95])
def test_an_improvement_is_the_mean_of_what_may_come(level: float) -> None:
    u = np.random.default_rng(0).normal(1.5, 0.8, 2_000_000)
    drawn = np.maximum(1 - np.exp(-u) - level, 0)
    mean, std = np.array(1.5), np.array(0.8)
    expected = expected_improvement(mean, std, np.array(level), 1.0)
    assert expected == pytest.approx(drawn.mean(), abs=5 * drawn.std() / len(u) ** 0.5)


def test_a_gain_is_the_mean_growth_of_the_hypervolume() -> None:
    """Against drawn accuracies, with the textbook's formulas, one running network among them."""
    rng = np.random.default_rng(3)
    kernel = kernels.Matern([0.7, 1.5], nu=2.5) + kernels.WhiteKernel(0.5)
    x, cost = rng.normal(size=(10, 2)), rng.uniform(0, 0.7, 10)
    y = -rng.uniform(size=6)
    u, ceiling = known_cost._warped(y)
    done, running, new = slice(0, 6), slice(6, 7), slice(7, 10)
    gains = known_cost._gains(
        kernel, y, *([values[one] for one in (done, running, new)] for values in (x, cost))
    )

    covariance = kernel(x)
    z = (u - u.mean()) / u.std()
    believed = covariance[running, done] @ np.linalg.solve(covariance[done, done], z)
    seen = slice(0, 7)
    weights = np.linalg.solve(covariance[seen, seen], covariance[seen, new])
    mean = np.append(z, believed) @ weights
    std = np.sqrt(kernel.diag(x[new]) - (covariance[seen, new] * weights).sum(axis=0))
    y = np.append(y, ceiling - np.exp(-u.mean() - u.std() * believed))
    front, worst = np.column_stack([-y, cost[seen]]), np.array([-y.min(), 1.0])
    for n in range(3):
        drawn = ceiling - np.exp(-u.mean() - u.std() * rng.normal(mean[n], std[n], 4_000))
        volumes = [
            dominated_volume(np.vstack([front, [-one, cost[new][n]]]), worst) for one in drawn
        ]
        grown = np.array(volumes) - dominated_volume(front, worst)
        assert gains[n] == pytest.approx(grown.mean(), abs=5 * grown.std() / 4_000**0.5 + 1e-9)
    assert (gains > 1e-4).all()


def test_several_losses_weigh_as_they_are_told() -> None:
    losses = np.array([[0.0, 10.0], [1.0, 0.0], [0.4, 4.0]])
    first, second = (known_cost._merged(losses, np.array(w)) for w in ([1.0, 1e-3], [1e-3, 1.0]))
    assert first.argsort().tolist() == [0, 2, 1]
    assert second.argsort().tolist() == [1, 2, 0]
    alone = known_cost._merged(losses[:, :1], np.array([0.3]))
    assert alone == pytest.approx([0, 1, 0.4])


def test_a_design_halves_the_largest_gap_along_the_logarithm_of_the_cost() -> None:
    costs = np.linspace(0, 1, 10_001)
    alike = np.zeros((len(costs), 2))
    chosen = [costs[spread(alike, costs, n, 16).argmax()] for n in range(7)]
    along = [math.log(1 + 20 * c) / math.log(21) for c in chosen]
    assert along == pytest.approx([1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8], abs=1e-3)
    # Of what costs the same, wide and even networks come first.
    widths = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert spread(widths, np.full(3, 0.3), 0, 16).argmax() == 1


# What is proposed.


def test_it_beats_tpe_at_equal_budgets(space: ChannelMultiplierSpace) -> None:
    budgets = (8, 16, 32)
    found: dict[str, list[list[float]]] = {"known-cost": [], "tpe": []}
    for seed in range(3):
        for name, shares in found.items():
            study = make_study(space, seed)
            if name == "tpe":
                study.sampler = make_sampler("tpe", seed)
            plans = run(study, space, budgets[-1])
            shares.append([share(space, plans[:n]) for n in budgets])
    ours, tpe = (np.mean(shares, axis=0) for shares in found.values())
    assert (ours > tpe + 0.02).all()
    assert ours[-1] > 0.98


def test_no_network_is_proposed_twice_while_there_are_others() -> None:
    space = make_space(2)
    study = make_study(space)
    plans = run(study, space, 36)
    assert len(set(plans)) == len(space.networks) == 36
    assert len(run(study, space, 8)) == 8  # and then any


def test_several_configurations_of_one_network_are_one() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "jsc_toy.toml")
    table = config.search.search_space
    space: Any = get_space(table.name)(get_model("jsc-toy"), table.setup, table.seed)
    assert space.n_configurations > len(space.networks) == 16
    plans = run(make_study(space), space, 16)
    assert set(plans) == set(space.networks)


def test_what_runs_is_not_asked_for_again_and_moves_the_next_elsewhere(
    space: ChannelMultiplierSpace,
) -> None:
    study = make_study(space)
    run(study, space, 20)
    asked = [plan_of(space, study.ask(space.distributions)) for _ in range(8)]
    assert len(set(asked)) == 8
    costs = sorted(map(cost, asked))
    assert costs[-1] > 3 * costs[0]  # not the neighbours of the best one


def test_what_failed_counts_as_tried_and_what_is_not_finite_says_nothing(
    space: ChannelMultiplierSpace,
) -> None:
    study = make_study(space)
    plans = run(study, space, 16)
    for value in (None, math.inf, -math.inf):
        trial = study.ask(space.distributions)
        plans.append(plan_of(space, trial))
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, [value, cost(plans[-1])])
    plans += run(study, space, 16)
    assert len(set(plans)) == len(plans)


def test_a_network_that_is_trained_elsewhere_is_left_to_others(
    space: ChannelMultiplierSpace,
) -> None:
    alone = make_study(space)
    before = run(alone, space, 18, at_once=1)
    next_one = run(alone, space, 1, at_once=1)[0]
    sampler = KnownCostSampler(space, known, 0, lambda plan: plan == next_one)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.add_trials(alone.trials[:18])
    assert run(study, space, 1, at_once=1)[0] not in {*before, next_one}


def test_a_study_goes_on_as_if_it_had_not_been_interrupted(
    space: ChannelMultiplierSpace, tmp_path: Path
) -> None:
    """Whether the sampler proposed the trials itself or read them from a file."""

    def go_on(file: Path, *steps: int) -> list[Plan]:
        plans = []
        for n in steps:
            store = Store(
                file, "s", description(), space, sampler="known-cost", known=known, seed=3,
                limits=Limits({}, lambda plan: {}),
            )  # fmt: skip
            for _ in range(n // 4):
                for asked in store.ask(4):
                    plan = space.resolve(space.sampled_config(asked.indices))
                    metrics = {"accuracy": accuracy(plan), "total_flops": cost(plan)}
                    record = Record(
                        widths=plan.to_dict(), source=Source.TRAINED, scaled_metrics=metrics,
                        trained_in=len(store.trials),
                    )  # fmt: skip
                    store.tell(asked, record, list(metrics.values()))
                    plans.append(plan)
        return plans

    whole = go_on(tmp_path / "whole.db", 32)
    assert go_on(tmp_path / "parts.db", 8, 12, 4, 8) == whole
    assert len(set(whole)) == 32


def test_after_the_same_trials_several_objectives_have_the_same_weights(
    space: ChannelMultiplierSpace,
) -> None:
    def all_measured(plan: Plan) -> list[float]:
        return [math.nan, math.nan]

    first, other = (make_study(space, 5, all_measured) for _ in range(2))
    run(first, space, 24)
    other.add_trials(first.trials)
    one, another = (plan_of(space, study.ask(space.distributions)) for study in (first, other))
    assert one == another


def test_what_is_maximised_may_as_well_be_minimised(space: ChannelMultiplierSpace) -> None:
    up, down = (
        make_study(space, directions=ways) for ways in (("maximize", "minimize"), ["minimize"] * 2)
    )
    flipped = make_study(
        space, known=lambda plan: [math.nan, -cost(plan)], directions=["maximize", "maximize"]
    )
    plans = run(up, space, 28)
    assert run(down, space, 28, values=lambda plan: (-accuracy(plan), cost(plan))) == plans
    assert run(flipped, space, 28, values=lambda plan: (accuracy(plan), -cost(plan))) == plans


@pytest.mark.parametrize(
    ("known", "ways"),
    [
        (lambda plan: [math.nan, math.nan, cost(plan)], ["maximize", "minimize", "minimize"]),
        (lambda plan: [math.nan, cost(plan), plan.widths[0][1]], ["maximize", *["minimize"] * 2]),
        (lambda plan: [math.nan, math.nan], ["maximize", "minimize"]),
        (lambda plan: [math.nan], ["maximize"]),
    ],
)  # fmt: skip
def test_any_number_of_objectives_may_be_known(
    space: ChannelMultiplierSpace, known: known_cost.Known, ways: list[str]
) -> None:
    def values(plan: Plan) -> list[float]:
        given = known(plan)
        measured = iter([accuracy(plan), cost(plan)])
        return [next(measured) if math.isnan(value) else value for value in given]

    plans = run(make_study(space, 0, known, ways), space, 32, values=values)
    assert len(set(plans)) == 32
    # The later half is better in what is measured than the design, which spreads.
    if len(ways) == 1:
        assert max(map(accuracy, plans[16:])) > max(map(accuracy, plans[:16]))


def test_where_all_is_known_the_front_comes_first(space: ChannelMultiplierSpace) -> None:
    def all_known(plan: Plan) -> list[float]:
        return [cost(plan), -float(plan.widths[0][1])]

    plans = run(make_study(space, 0, all_known, ["minimize"] * 2), space, 4, values=all_known)
    for n, plan in enumerate(plans):
        one = np.array(all_known(plan))
        others = np.array([all_known(other) for other in space.networks if other not in plans[:n]])
        assert not ((others <= one).all(axis=1) & (others < one).any(axis=1)).any()


def test_what_breaks_a_constraint_is_avoided(space: ChannelMultiplierSpace) -> None:
    study = make_study(space)
    feasible = []
    for _ in range(40):
        trial = study.ask(space.distributions)
        plan = plan_of(space, trial)
        width = plan.widths[1][1]
        trial.set_constraint("second layer", width - 8)
        feasible.append(width <= 8)
        study.tell(trial, [accuracy(plan), cost(plan)])
    assert np.mean(feasible[24:]) > 0.8 > np.mean(feasible[:16])


def test_a_space_of_billions_is_not_listed() -> None:
    space = make_space(12)
    assert space.n_configurations > 10**9
    study, other = make_study(space), make_study(space)
    other.sampler = make_sampler("tpe", 0)
    ours, tpe = (run(one, space, 40) for one in (study, other))
    assert len(set(ours)) == 40

    def volume(plans: Sequence[Plan]) -> float:
        losses = np.array([(1 - accuracy(plan), cost(plan) / 5e4) for plan in plans])
        return dominated_volume(losses, np.ones(2))

    assert volume(ours) > volume(tpe) + 0.02


def test_a_network_whose_cost_cannot_be_told_is_passed_over(space: ChannelMultiplierSpace) -> None:
    def some(plan: Plan) -> list[float]:
        if plan.widths[0][1] > 16:
            raise LabkitError("no")
        return known(plan)

    plans = run(make_study(space, known=some), space, 24)
    assert max(plan.widths[0][1] for plan in plans) == 16
