"""Training on any device: what can be seen without one, and what runs where there is CUDA."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import labkit
from labkit.data.dataset import Dataset
from labkit.operators.stacking import Stack
from labkit.study.executor import Task
from labkit.study.record import Candidate
from labkit.training import TrainSettings, evaluate, loop, stack_width, train, train_stack
from labkit.training.stack import _Together
from labkit.transform.applying import apply, initialise
from labkit.transform.channels import find_channels
from labkit.transform.models import get_model
from labkit.transform.plan import Plan

TOY = [Plan((("seq_blocks_2", a), ("seq_blocks_5", b))) for a, b in ((8, 64), (32, 16), (64, 8))]


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 5)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


KINDS: list[tuple[Callable[[], nn.Module], list[Plan]]] = [
    (functools.partial(get_model, "jsc-toy"), TOY),
    (normalised, [Plan((("_0", width),)) for width in (8, 3)]),
    (convolutional, [Plan((("_0", width),)) for width in (6, 2)]),
]


def suited(data: Dataset, kind: Callable[[], nn.Module]) -> Dataset:
    """The data as images for the convolutional network."""
    shape = (-1, 1, 4, 4) if kind is convolutional else (-1, 16)
    return replace(data, x_train=data.x_train.view(shape), x_val=data.x_val.view(shape))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("kind", "plans"), KINDS)
@pytest.mark.parametrize("alike", [True, False])
def test_a_step_mixes_no_devices_and_waits_for_none(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch, *,
    kind: Callable[[], nn.Module], plans: list[Plan], alike: bool, optimizer: str,
) -> None:  # fmt: skip
    # Tensors of the meta device have no numbers to wait for, and do not go with those of a CPU.
    def numbers(metrics: dict[str, torch.Tensor]) -> list[dict[str, float]]:
        [n] = {len(values) for values in metrics.values()}
        assert {values.device.type for values in metrics.values()} == {"meta"}
        told.append(n)
        every = [{"loss": 1.0, **dict.fromkeys(metrics, 1.0)} for _ in range(n)]
        return [{"loss": math.nan, "train_loss": math.nan}, *every[1:]] if n > 1 else every

    told: list[int] = []
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    monkeypatch.setattr(  # fused ones are not written for it
        loop, "make_optimizer", lambda network, *_: kinds[optimizer](network.parameters())
    )
    monkeypatch.setattr(loop, "by_network", numbers)
    monkeypatch.setattr(loop, "scores", lambda *_: {})  # by class: once an epoch it waits
    data, model = suited(blobs, kind), kind()
    channels, data = find_channels(model, data.x_val[:1]), data.to("meta")
    seeds = 0 if alike else list(range(len(plans)))
    settings = TrainSettings(max_epochs=2, batch_size=64)
    stacked = train_stack(model, plans, data, settings, seeds, channels=channels)
    alone = apply(model, plans[0], channels=channels).to("meta")
    train(alone, data, settings)
    assert told == [len(plans), len(plans) - 1, 1, 1]  # one diverges, and leaves the stack
    for network in (stacked[1].model, alone):
        assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}


def test_a_large_stack_evaluates_as_many_rows_at_once_as_it_trains_on(blobs: Dataset) -> None:
    sizes: list[int] = []

    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.shape[2])
            return x[:, :5]

    learner: Any = object.__new__(_Together)
    learner.stack, learner.network = object.__new__(Stack), Seen()
    learner.stack.size, learner.order_of = 4096, torch.zeros(4096, dtype=torch.long)
    learner.logits(blobs.x_train[:600])
    assert sizes == [256, 256, 88]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("kind", "plans"), KINDS)
def test_a_stack_ends_as_each_network_alone(
    blobs: Dataset, kind: Callable[[], nn.Module], plans: list[Plan], device: str
) -> None:
    data, model = suited(blobs, kind), kind().double()
    channels = find_channels(model, data.x_val[:1].double())
    data = replace(data, x_train=data.x_train.double(), x_val=data.x_val.double()).to(device)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # its masks are others
    settings = TrainSettings(max_epochs=4, batch_size=64)
    assert stack_width(channels, plans, data, settings) > len(plans)
    seeds = list(range(len(plans)))
    for trained, plan, seed in zip(
        train_stack(model, plans, data, settings, seeds, channels=channels), plans, seeds
    ):
        alone = initialise(apply(model, plan, channels=channels), seed).to(device)
        history = train(alone, data, settings, seed=seed)
        for stacked, expected in zip(trained.history, history, strict=True):
            assert stacked == pytest.approx(expected, abs=1e-6)
        for name, tensor in trained.model.state_dict().items():
            torch.testing.assert_close(tensor, alone.state_dict()[name], rtol=0, atol=1e-6)


def test_a_network_measures_on_a_device_as_in_numpy(blobs: Dataset, device: str) -> None:
    network = initialise(get_model("jsc-toy"), 0)
    network.eval()
    with torch.no_grad():
        logits = network(blobs.x_val).double()
    right = logits.argmax(1) == blobs.y_val
    loss = (logits.logsumexp(1) - logits[range(len(right)), blobs.y_val]).mean()
    there = blobs.to(device)
    metrics = evaluate(network.to(device), there.x_val, there.y_val)
    assert metrics["accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-2)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_a_search_trains_on_a_device_and_its_best_network_runs_anywhere(
    blobs: Dataset, tables: dict[str, Any], tmp_path: Path, device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    devices, build = set(), Task.build

    def spy(task: Task, candidate: Candidate) -> nn.Module:
        network = build(task, candidate)
        devices.update(parameter.device.type for parameter in network.parameters())
        return network

    monkeypatch.setattr(Task, "build", spy)
    tables["accelerator"] = device
    results = labkit.Search(tables, data=blobs, folder=tmp_path).run(progress=False)
    assert devices == {device}
    assert results.trials["accuracy"].notna().all()
    network = labkit.load_best(tmp_path)
    assert network(blobs.x_test[:2]).shape == (2, 5)
