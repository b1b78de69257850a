"""The schedule, the order of rows and the optimizers against closed forms."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from labkit.errors import LabkitError
from labkit.training.settings import (
    TrainSettings,
    epoch_order,
    lr_factor,
    make_optimizer,
    make_scheduler,
    n_batches,
)


@given(
    st.integers(1, 200),
    st.integers(0, 50),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.data(),
)
def test_learning_rates_follow_their_closed_forms(
    total: int, warmup: int, kind: str, data: st.DataObject
) -> None:
    settings = TrainSettings(lr_scheduler=kind, num_warmup_steps=warmup)
    step = data.draw(st.integers(0, total))
    factor = lr_factor(step, total, settings)
    if step < warmup:
        assert factor == step / warmup
    else:
        done = min((step - warmup) / max(total - warmup, 1), 1)
        forms = {"constant": 1, "linear": 1 - done, "cosine": math.cos(math.pi * done / 2) ** 2}
        assert factor == pytest.approx(forms[kind])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (4, 10), (10, 10), (15, 10)])
def test_the_corners_of_a_schedule(kind: str, warmup: int, total: int) -> None:
    settings = TrainSettings(lr_scheduler=kind, num_warmup_steps=warmup)
    factors = [lr_factor(step, total, settings) for step in range(max(total, warmup) + 3)]
    assert factors[:warmup] == [step / warmup for step in range(warmup)]
    assert factors[warmup] == 1  # the peak, at the first step after warm-up
    after = factors[warmup:]
    if kind == "constant":
        assert after == [1] * len(after)
    else:
        assert all(a > b for a, b in pairwise(factors[warmup : total + 1]))
        end = max(total, warmup + 1)
        assert factors[end:] == pytest.approx(
            [0] * len(factors[end:]), abs=1e-12
        )  # and never rises
    assert all(0 <= factor <= 1 for factor in factors)


def test_halfway_a_ramp_and_a_cosine_are_at_half() -> None:
    for kind, quarter in (("linear", 0.75), ("cosine", (1 + math.sqrt(0.5)) / 2)):
        settings = TrainSettings(lr_scheduler=kind, num_warmup_steps=2)
        assert lr_factor(6, 10, settings) == pytest.approx(0.5)
        assert lr_factor(4, 10, settings) == pytest.approx(quarter)


def test_a_schedule_ends_with_the_training() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    settings = TrainSettings(max_epochs=3, batch_size=10, learning_rate=0.5, optimizer="sgd")
    optimizer = make_optimizer(SimpleNamespace(parameters=lambda: [parameter]), settings)  # type: ignore[arg-type]
    scheduler = make_scheduler(optimizer, 25, settings)
    rates = []
    for _ in range(9):  # 25 rows are three batches
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5 * (1 - step / 9) for step in range(9)])
    assert scheduler.get_last_lr() == [0]


@given(st.integers(2, 100), st.integers(2, 40), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    settings = TrainSettings(batch_size=batch_size)
    order = epoch_order(rows, settings, torch.Generator().manual_seed(seed))
    parts = order.split(batch_size)
    left_out = 1 if rows % batch_size == 1 else 0  # BatchNorm cannot train on a single row
    assert len(order) == len(set(order.tolist())) == rows - left_out
    assert set(order.tolist()) <= set(range(rows))
    assert all(1 < len(part) <= batch_size for part in parts)
    assert len(parts) == n_batches(rows, settings)
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(order, shuffled[: len(order)])


@pytest.mark.parametrize(
    ("rows", "batch_size", "n"),
    [(2, 2, 1), (3, 2, 1), (4, 2, 2), (10, 4, 3), (9, 4, 2), (8, 4, 2), (7, 4, 2), (3, 4, 1)],
)
def test_a_last_batch_of_one_row_is_left_out(rows: int, batch_size: int, n: int) -> None:
    assert n_batches(rows, TrainSettings(batch_size=batch_size)) == n


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_an_optimizer_has_what_the_settings_say(
    name: str, kind: type, expected: dict[str, Any]
) -> None:
    settings = TrainSettings(optimizer=name, learning_rate=0.25, weight_decay=0.125)
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, settings)
    assert type(optimizer) is kind
    [group] = optimizer.param_groups
    assert group["params"] == list(model.parameters())
    expected = {"lr": 0.25, "weight_decay": 0.125, "fused": True, **expected}
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"patience": 0},
        {"learning_rate": math.inf}, {"learning_rate": math.nan}, {"weight_decay": -0.1},
        {"weight_decay": math.inf}, {"num_warmup_steps": -1}, {"num_samples": 1},
        {"optimizer": "adagrad"}, {"lr_scheduler": "step"}, {"epochs": 3},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    [key] = wrong
    with pytest.raises(LabkitError, match=f"^{key}: "):
        TrainSettings(**wrong)


def test_settings_are_frozen_and_may_be_as_small_as_makes_sense() -> None:
    smallest = {"max_epochs": 1, "batch_size": 2, "num_samples": 2, "patience": 1}
    settings = TrainSettings(**smallest, num_warmup_steps=0, weight_decay=0)
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_epochs = 2


def test_the_defaults() -> None:
    assert TrainSettings().model_dump() == {
        "max_epochs": 10, "batch_size": 256, "learning_rate": 1e-3, "optimizer": "adam",
        "weight_decay": 0, "lr_scheduler": "linear", "num_warmup_steps": 0, "num_samples": None,
        "patience": None, "select": "last", "loss": None, "class_weights": None, "metrics": (),
    }  # fmt: skip
