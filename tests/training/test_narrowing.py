"""A stack goes on without the networks that have ended: each of the others as it would alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from labkit.data.dataset import Dataset
from labkit.operators.stacking import Stack
from labkit.training import TrainSettings, fit_stack, loop, train
from labkit.transform.applying import apply, initialise
from labkit.transform.channels import find_channels
from labkit.transform.models import get_model
from labkit.transform.plan import Plan
from tests.training.test_stack import Convolutional, Residual, toy_plans


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks a stack goes on with, each time that it is narrowed."""
    sizes: list[int] = []
    narrowed = Stack.narrowed

    def spy(stack: Stack, places: Sequence[int]) -> Any:
        sizes.append(len(places))
        return narrowed(stack, places)

    monkeypatch.setattr(Stack, "narrowed", spy)
    return sizes


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 8), nn.GroupNorm(2, 8),
        nn.Linear(8, 5),
    )  # fmt: skip


WIDTHS = [(3, 7), (12, 2), (5, 5), (8, 4), (4, 8), (10, 6)]
KINDS: list[tuple[Callable[[], nn.Module], list[Plan]]] = [
    (lambda: get_model("jsc-toy"), toy_plans()[2:14:2]),
    (Residual, [Plan((("a", a), ("c", b))) for a, b in WIDTHS]),
    (Convolutional, [Plan((("a", a), ("b", b))) for a, b in WIDTHS]),
    (normalised, [Plan((("_0", a), ("_3", b))) for a, b in ((12, 8), (4, 4), (6, 6), (3, 8))]),
]


@pytest.mark.parametrize(("select", "differ"), [("last", False), ("best", True)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("kind", "plans"), KINDS)
def test_each_network_ends_as_it_would_alone(
    blobs: Dataset, sizes: list[int], monkeypatch: pytest.MonkeyPatch, *,
    kind: Callable[[], nn.Module], plans: list[Plan], optimizer: str, select: Any, differ: bool,
) -> None:  # fmt: skip
    shape = (-1, 1, 4, 4) if kind is Convolutional else (-1, 16)
    data = replace(
        blobs, x_train=blobs.x_train.double().view(shape), x_val=blobs.x_val.double().view(shape)
    )
    model = kind().double()
    settings = TrainSettings(
        max_epochs=6, batch_size=50, learning_rate=0.01, optimizer=optimizer, num_samples=200,
        weight_decay=1e-3, select=select, lr_scheduler="cosine", num_warmup_steps=5,
    )  # fmt: skip
    # Each after one to five epochs, as if by chance.
    monkeypatch.setattr(
        loop, "stops_early", lambda history, _: len(history) > 1e4 * history[0]["loss"] % 5
    )
    seeds = [index % 2 for index in range(len(plans))]
    rates = [0.01 / (1 + differ * index) for index in range(len(plans))]
    each = [settings.model_copy(update={"learning_rate": rate}) for rate in rates]
    channels = find_channels(model, data.x_val[:1])

    def network(plan: Plan, seed: int) -> nn.Module:
        return initialise(apply(model, plan, channels=channels), seed)

    told: list[set[int]] = []
    stacked = fit_stack(
        [network(plan, seed) for plan, seed in zip(plans, seeds)], channels, data, each, seeds,
        on_epoch=lambda metrics: told.append(set(metrics)),
    )  # fmt: skip
    assert sizes  # or nothing is tested
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < len(plans)
    for index, (trained, plan, seed) in enumerate(zip(stacked, plans, seeds)):
        alone = network(plan, seed)
        history = train(alone, data, each[index], seed=seed)
        assert sum(index in epoch for epoch in told) == len(history)
        for metrics, expected in zip(trained.history, history, strict=True):
            assert metrics == pytest.approx(expected, abs=1e-6)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(
                trained.model.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name
            )


def test_networks_that_diverge_leave_the_stack(blobs: Dataset, sizes: list[int]) -> None:
    plans = toy_plans()[:4]
    broken = [initialise(apply(get_model("jsc-toy"), plan), 0) for plan in plans]
    for network in broken[:3]:
        next(network.parameters()).data.fill_(float("nan"))
    channels = find_channels(get_model("jsc-toy"), blobs.x_val[:1])
    settings = TrainSettings(max_epochs=3, batch_size=100)
    fitted = fit_stack(broken, channels, blobs, settings, [0] * 4)
    assert sizes == [1]
    assert [trained.failure is None for trained in fitted] == [False, False, False, True]
    assert len(fitted[3].history) == 3
