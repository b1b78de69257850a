"""The cost of a plan against the cost of the network that is built from it."""

import gc
import itertools
import random
import time
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.transform import (
    CONVENTIONS,
    MODELS,
    Channels,
    Plan,
    apply,
    cost_of,
    find_channels,
    get_model,
    resolve,
    total_cost,
)
from tests.conftest import EXAMPLES
from tests.networks import CASES, network


def random_plans(channels: Channels, n: int) -> list[Plan]:
    """Plans of every group's multiple, narrower and wider."""
    draw = random.Random(0)
    return [
        Plan(
            tuple((g.name, g.multiple * draw.randint(1, 2 * g.n_units + 1)) for g in channels.free)
        )
        for _ in range(n)
    ]


def assert_priced_as_built(model: nn.Module, inputs: Any, plans: int) -> None:
    channels = find_channels(model, inputs)
    with warnings.catch_warnings(action="ignore"):  # of operators whose cost is not known
        for plan in random_plans(channels, plans):
            new = apply(model, plan, channels=channels)
            for convention in CONVENTIONS:
                options: dict[str, Any] = {
                    "convention": convention, "batch_size": 3, "precision": 8
                }  # fmt: skip
                old = model if convention == "reference" else None
                built = total_cost(new, shapes_from=old, example_input=inputs, **options)
                assert cost_of(channels, plan, **options) == built


@pytest.mark.parametrize("name", CASES)
def test_a_plan_costs_what_its_network_does(name: str) -> None:
    assert_priced_as_built(*network(name), plans=3)


@pytest.mark.parametrize("name", MODELS.keys() - {"vgg7"})
def test_a_plan_of_a_named_network_costs_what_its_network_does(name: str) -> None:
    assert_priced_as_built(get_model(name), EXAMPLES[name], plans=4)


def test_a_plan_of_the_largest_network_costs_what_its_network_does() -> None:
    model, x = get_model("vgg7"), EXAMPLES["vgg7"]
    channels = find_channels(model, x)
    plan = Plan(tuple((g.name, g.multiple * (g.n_units // 8 + 1)) for g in channels.free))
    new = apply(model, plan, channels=channels)
    assert cost_of(channels, plan) == total_cost(new, example_input=x)


def test_no_plan_is_the_network_as_it_is() -> None:
    model = get_model("jsc-toy")
    assert cost_of(model) == total_cost(model)
    resolution = resolve(model, {"by": "type", "default": {"config": {"name": None}}})
    assert cost_of(model, resolution) == total_cost(model)


def test_the_reports_published_figures_without_building_its_networks() -> None:
    plan = Plan((("seq_blocks_2", 8), ("seq_blocks_5", 32)))
    cost = cost_of(get_model("jsc-toy"), plan, batch_size=256, convention="reference")
    assert (cost.total_flops, cost.total_bitops) == (512512, 506019840)


class Twice(nn.Module):
    """A layer that is called twice, two that share a weight, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 6), nn.Linear(6, 6)
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight
        self.middle, self.last, self.unused = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(9, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.again(self.first(x)).relu())
        return self.last(self.middle(self.b(self.a(x))))


def test_shared_parameters_count_once() -> None:
    model, x = Twice(), torch.zeros(1, 4)
    channels = find_channels(model, x)
    assert [group.name for group in channels.free] == ["first", "middle"] or len(channels.free)
    for plan in random_plans(channels, 4):
        new = apply(model, plan, channels=channels)
        cost = cost_of(channels, plan)
        assert cost.parameters == sum(p.numel() for p in new.parameters())
        assert cost == total_cost(new, example_input=x)


def test_thousands_of_plans_are_priced_in_no_time() -> None:
    widths = [16, 8, 8, 8, 8]
    hidden = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
    ]
    channels = find_channels(nn.Sequential(*hidden, nn.Linear(8, 5)))
    options = itertools.product([4, 8, 12, 16, 20, 24, 32], repeat=4)
    names = [group.name for group in channels.free]
    plans = [Plan(tuple(zip(names, option))) for option in options]
    start = time.process_time()
    flops = {plan: cost_of(channels, plan).total_flops for plan in plans}
    assert time.process_time() - start < 1
    assert len(flops) == 2401
    # 16 a + 6 a (4 for the normalisation, 1 for the activation: 5 a) and so on, in closed form.
    for plan, total in flops.items():
        a, b, c, d = (width for _, width in plan.widths)
        assert total == 16 * a + a * b + b * c + c * d + 5 * d + 5 * (a + b + c + d)


def test_prices_keep_no_network_alive() -> None:
    model = get_model("jsc-toy")
    channels = find_channels(model)
    cost_of(channels)
    gone = weakref.ref(channels)
    del channels
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        ((("seq_blocks_2", 8),), {}, "another network; these groups differ: seq_blocks_5"),
        ((("seq_blocks_2", 0), ("seq_blocks_5", 8)), {}, "seq_blocks_2: expected a positive"),
        (None, {"convention": "trainings"}, "did you mean 'training'"),
        (None, {"batch_size": -1}, "batch_size: expected a positive integer, got -1"),
        (None, {"precision": True}, "precision: expected a positive integer, got True"),
    ],
)
def test_wrong_arguments_are_named(
    plan: tuple[tuple[str, int], ...] | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabkitError, match=message):
        cost_of(get_model("jsc-toy"), None if plan is None else Plan(plan), **options)


def test_what_has_no_known_cost_is_said_once() -> None:
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).cumsum(1))

    channels = find_channels(Sorts())
    with pytest.warns(UserWarning, match="no cost is known for 'cumsum'") as told:
        costs = [cost_of(channels).total_flops for _ in range(3)]
    assert costs == [24 + 12] * 3
    assert len(told) == 1
    assert cost_of(channels).unknown == ("'cumsum' (cumsum)",)


def test_a_layer_that_labkit_does_not_know_is_priced_by_its_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.RNNCell(6, 6), nn.Linear(6, 2))
    with pytest.warns(UserWarning, match=r"no cost is known for '_1' \(RNNCell\)"):
        cost = cost_of(model)
    assert [layer.flops for layer in cost.layers] == [4 * 6, 0, 6 * 2]
    assert [layer.parameters for layer in cost.layers] == [30, 84, 14]
    assert cost.parameters == 128
