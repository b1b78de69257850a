"""Stacked training against the training of each candidate alone."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.training.loop import TrainSettings, batches, evaluate, train
from labkit.training.stack import (
    NotStackable,
    Stack,
    _faster_threads,
    stack_width,
    step_seconds,
    train_stack,
    why_not_stackable,
)
from labkit.transform.applying import apply, initialise
from labkit.transform.channels import find_channels
from labkit.transform.models import get_model
from labkit.transform.plan import Plan


def double(data: Dataset) -> Dataset:
    return replace(data, x_train=data.x_train.double(), x_val=data.x_val.double())


def toy_plans() -> list[Plan]:
    widths = itertools.product([8, 16, 32, 64], repeat=2)
    return [Plan((("seq_blocks_2", a), ("seq_blocks_5", b))) for a, b in widths]


def assert_same(stacked: nn.Module, alone: nn.Module, loose: tuple[str, ...] = ()) -> None:
    expected = alone.state_dict()
    for name, tensor in stacked.state_dict().items():
        tolerance = 1e-7 if name in loose else 1e-9
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("optimizer", "weight_decay"), list(itertools.product(["adam", "adamw", "sgd"], [0.0, 0.01]))
)
def test_each_network_of_the_reports_space_ends_as_it_would_alone(
    blobs: Dataset, optimizer: str, weight_decay: float
) -> None:
    data, model = double(blobs), get_model("jsc-toy").double()
    settings = TrainSettings(
        max_epochs=8, batch_size=32, learning_rate=1e-3, optimizer=optimizer,
        weight_decay=weight_decay, lr_scheduler="cosine", num_warmup_steps=20,
    )  # fmt: skip
    plans = toy_plans()
    seeds = [index % 3 for index in range(len(plans))]
    biases = tuple(f"seq_blocks.{layer}.bias" for layer in (2, 5, 8))  # a BatchNorm follows
    for trained, plan, seed in zip(
        train_stack(model, plans, data, settings, seeds), plans, seeds, strict=True
    ):
        alone = initialise(apply(model, plan), seed)
        history = train(alone, data, settings, seed=seed)
        assert_same(trained.model, alone, biases)
        for stacked, expected in zip(trained.history, history, strict=True):
            assert stacked == pytest.approx(expected, abs=1e-6)
        assert evaluate(trained.model, data.x_val, data.y_val)["accuracy"] == pytest.approx(
            history[-1]["accuracy"], abs=1e-6
        )


class Residual(nn.Module):
    """Adds, concatenates, and has an activation that is not zero at zero."""

    def __init__(self, width: int = 12, other: int = 6):
        super().__init__()
        self.a, self.b = nn.Linear(16, width), nn.Linear(width, width, bias=False)
        self.norm, self.slope = nn.BatchNorm1d(width), nn.PReLU(width)
        self.c = nn.Linear(16, other)
        self.out = nn.Linear(width + other, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.sigmoid(self.a(x))
        a = a + self.slope(self.norm(self.b(a)))
        return self.out(torch.cat([a, F.softplus(self.c(x))], dim=1))


class Convolutional(nn.Module):
    """Images of one channel, 4 × 4, to 5 classes."""

    def __init__(self, width: int = 6, other: int = 4):
        super().__init__()
        self.a = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.b = nn.Conv2d(width, other, 1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Linear(4 * (width + other), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.norm(self.a(x)))
        a = a + torch.tanh(self.depth(a))
        x = self.pool(torch.cat([a, torch.sigmoid(self.b(a))], 1))
        return self.out(x.view(x.size(0), -1))


@pytest.mark.parametrize(("kind", "second"), [(Residual, "c"), (Convolutional, "b")])
def test_residual_and_convolutional_networks_end_as_they_would_alone(
    blobs: Dataset, kind: Callable[..., nn.Module], second: str
) -> None:
    data = double(blobs)
    if kind is Convolutional:
        data = replace(
            data, x_train=data.x_train.view(-1, 1, 4, 4), x_val=data.x_val.view(-1, 1, 4, 4)
        )
    model = kind().double()
    plans = [Plan((("a", a), (second, b))) for a, b in ((3, 7), (12, 2), (5, 5))]
    settings = TrainSettings(max_epochs=8, batch_size=32, learning_rate=3e-3)
    for trained, plan in zip(train_stack(model, plans, data, settings, 4), plans):
        alone = initialise(apply(model, plan, example_input=data.x_val[:1]), 4)
        train(alone, data, settings, seed=4)
        assert_same(trained.model, alone, ("a.bias",) if kind is Convolutional else ())


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.0}, {"affine": False}, {}])
def test_any_batch_norm_ends_as_it_would_alone(blobs: Dataset, options: dict[str, Any]) -> None:
    data = double(blobs)
    model = nn.Sequential(
        nn.Linear(16, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 5)
    ).double()
    if not options:
        model[1].track_running_stats = False  # what it has stays as it is
    plans = [Plan((("_0", width),)) for width in (8, 3)]
    settings = TrainSettings(max_epochs=3, batch_size=32)
    for trained, plan in zip(train_stack(model, plans, data, settings), plans):
        alone = initialise(apply(model, plan), 0)
        assert trained.history == [pytest.approx(m) for m in train(alone, data, settings)]
        assert_same(trained.model, alone, ("0.bias",))


def test_padding_stays_exactly_zero(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[Stack] = []

    class Kept(Stack):
        def unload(self, index: int) -> None:
            if index == 0:
                stacks.append(self)

    monkeypatch.setattr("labkit.training.stack.Stack", Kept)
    settings = TrainSettings(max_epochs=3, batch_size=32, weight_decay=0.1, learning_rate=0.01)
    train_stack(get_model("jsc-toy"), toy_plans(), blobs, settings)
    state = stacks[0].network.state_dict()
    padding = 0
    for name, real in stacks[0].real.items():
        if "running" not in name:
            padded = state[name].reshape(real.shape)[~real]
            assert (padded == 0).all(), name
            padding += len(padded)
    assert padding > 16 * 64 * 64 / 2


def test_a_candidate_that_diverges_disturbs_no_other(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_model("hls4ml-jets")
    plans = [Plan((("seq_blocks_0", w), ("seq_blocks_2", w), ("seq_blocks_4", w))) for w in (8, 9)]
    settings = TrainSettings(max_epochs=2)
    together = train_stack(model, plans, blobs, settings)

    def spoilt(model: nn.Module, seed: int) -> nn.Module:
        initialise(model, seed)
        if model.seq_blocks[0].out_features == 9:
            model.seq_blocks[0].weight.data[0, 0] = torch.nan
        return model

    monkeypatch.setattr("labkit.training.stack.initialise", spoilt)
    well, ill = train_stack(model, plans, blobs, settings)
    assert well.failure is None
    assert well.history == together[0].history
    for name, tensor in well.model.state_dict().items():
        assert torch.equal(tensor, together[0].model.state_dict()[name])
    assert ill.failure is not None
    assert "diverged: the loss is not finite after epoch 1" in ill.failure
    assert ill.history == []


def test_dropout_has_the_same_distribution(blobs: Dataset) -> None:
    model = nn.Sequential(nn.Linear(16, 40), nn.Dropout(0.5), nn.Linear(40, 5))
    settings = TrainSettings(max_epochs=1, learning_rate=1e-9)
    plan = Plan((("_0", 40),))
    stacked = train_stack(model, [plan] * 40, blobs, settings)
    losses = torch.tensor([trained.history[0]["train_loss"] for trained in stacked])
    assert len(losses.unique()) > 30  # every candidate draws masks of its own
    alone = [
        train(initialise(apply(model, plan), 0), blobs, settings, seed=seed)[0]["train_loss"]
        for seed in range(40)
    ]
    expected = torch.tensor(alone)
    error = (losses.var() / 40 + expected.var() / 40).sqrt()
    assert abs(losses.mean() - expected.mean()) < 4 * error


def test_in_float32_a_stack_changes_accuracy_no_more_than_reordered_rows_do(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(max_epochs=5, batch_size=32, learning_rate=0.01)
    model, plans = get_model("jsc-toy"), toy_plans()

    def accuracies() -> torch.Tensor:
        networks = [initialise(apply(model, plan), 0) for plan in plans]
        return torch.tensor(
            [train(network, blobs, settings)[-1]["accuracy"] for network in networks]
        )

    alone = accuracies()
    stacked = train_stack(model, plans, blobs, settings)
    difference = torch.tensor([t.history[-1]["accuracy"] for t in stacked]) - alone

    monkeypatch.setattr(
        "labkit.training.loop.batches", lambda *args: [rows.flip(0) for rows in batches(*args)]
    )
    control = accuracies() - alone
    # One validation row in a hundred is the finest step: allow one beyond the control's worst.
    assert difference.abs().max() <= control.abs().max() + 0.0101


class Doubled(nn.Linear):
    """A layer whose forward the stack would not run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Doubled(8, 8), r"'_1' \(Doubled\) has a forward of its own"),
        (nn.LayerNorm(8), r"'_1' \(LayerNorm\) mixes channels"),
        (nn.Softmax(dim=1), r"'_1' \(Softmax\) mixes channels"),
        (nn.AlphaDropout(), "AlphaDropout"),
        (nn.PReLU(), "one parameter for all channels"),
    ],
)
def test_what_does_not_stack_says_why(blobs: Dataset, layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(16, 8), layer, nn.Linear(8, 5))
    why = why_not_stackable(model, blobs)
    assert why is not None
    plan = Plan(tuple((group.name, group.width) for group in find_channels(model).free))
    with pytest.raises(NotStackable, match=reason):
        train_stack(model, [plan], blobs)
    assert why_not_stackable(get_model("jsc-s"), blobs) is None


def halved(module: nn.Module, inputs: Any, output: Any = None) -> Any:
    """A forward hook, and a hook before one: halves the last that it is given."""
    return inputs[0] / 2 if output is None else output / 2


@pytest.mark.parametrize("where", ["", "seq_blocks", "seq_blocks.5"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_network_with_hooks_trains_alone(blobs: Dataset, where: str, register: str) -> None:
    model = get_model("jsc-toy")
    handle = getattr(model.get_submodule(where), register)(halved)
    with pytest.raises(NotStackable, match=r"(the network|'seq_blocks.*') \(.*forward hook"):
        train_stack(model, toy_plans()[:2], blobs)
    handle.remove()
    assert why_not_stackable(model, blobs) is None


def test_hooks_and_seeds(blobs: Dataset) -> None:
    epochs: list[int] = []
    steps: list[None] = []
    settings = TrainSettings(max_epochs=2, batch_size=400)
    train_stack(
        get_model("jsc-toy"), toy_plans()[:3], blobs, settings,
        on_epoch=lambda metrics: epochs.append(len(metrics)), on_step=lambda: steps.append(None),
    )  # fmt: skip
    assert epochs == [3, 3]
    assert len(steps) == 4
    with pytest.raises(LabkitError, match="seeds: expected one or 3, one a plan, got 2"):
        train_stack(get_model("jsc-toy"), toy_plans()[:3], blobs, settings, [0, 1])


def test_patience_ends_each_training_where_it_would_end_alone(blobs: Dataset) -> None:
    data = double(blobs)
    model = get_model("jsc-toy").double()
    settings = TrainSettings(max_epochs=12, batch_size=32, learning_rate=0.05, patience=1)
    stacked = train_stack(model, toy_plans()[:8], data, settings)
    lengths = {len(trained.history) for trained in stacked}
    assert len(lengths) > 1  # or nothing would be tested
    assert max(lengths) <= 12
    for plan, trained in zip(toy_plans(), stacked):
        alone = initialise(apply(model, plan), 0)
        history = train(alone, data, settings)
        assert len(history) == len(trained.history)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(
                trained.model.state_dict()[name], tensor, rtol=0, atol=1e-7, msg=name
            )
        losses = [metrics["loss"] for metrics in history]
        assert len(losses) == 12 or losses[-1] >= min(losses[:-1])


def test_the_width_of_a_stack_is_what_half_the_free_memory_holds(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def width(free: int) -> int:
        monkeypatch.setattr(
            "labkit.training.stack.psutil.virtual_memory", lambda: SimpleNamespace(available=free)
        )
        return stack_width(get_model("jsc-toy"), toy_plans(), blobs, TrainSettings(batch_size=64))

    assert width(0) == 1
    assert width(2**31) == pytest.approx(2 * width(2**30), rel=0.01)
    # The activations of the widest network, at least: 16 + 3 · 64 + 2 · 64 + 5 channels.
    assert 1 < width(2**30) < 2**29 / (64 * 4 * (16 + 5 * 64))


def test_a_step_is_timed_in_a_stack_and_one_by_one(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps_of(seconds: float) -> Callable[..., None]:
        def run(*args: Any, on_step: Callable[[], None], **options: Any) -> None:
            for factor in (4, 1, 1):
                on_step()
                time.sleep(factor * seconds)

        return run

    monkeypatch.setattr("labkit.training.stack.train_stack", steps_of(0.1))
    monkeypatch.setattr("labkit.training.stack.train", steps_of(0.05))
    timed = step_seconds(get_model("jsc-toy"), toy_plans(), blobs, TrainSettings())
    assert timed == pytest.approx((0.1, 16 * 0.05), rel=0.5)


def test_a_timed_step_trains_the_candidates_themselves(blobs: Dataset) -> None:
    model, plans = get_model("jsc-toy"), toy_plans()
    wide = [plan for plan in plans if plan.widths[0][1] == 64]
    together, alone = step_seconds(model, wide, blobs, TrainSettings(batch_size=32))
    assert together > 0
    assert alone > 0
    # One batch alone leaves no step to time; then the stack is preferred.
    assert step_seconds(model, wide, blobs, TrainSettings(batch_size=10_000)) == (0, 0)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(("together", "settled"), [(0.5, 2), (2.0, 1)])
def test_threads_settle_on_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, together: float, settled: int
) -> None:
    now, used = 0.0, []
    monkeypatch.setattr("labkit.training.stack.time", SimpleNamespace(perf_counter=lambda: now))
    threads = _faster_threads(torch.zeros(8, 16), 2)
    for step in range(1000):
        next(threads)
        used.append(torch.get_num_threads())
        now += together if used[-1] == 2 else 1.0
        now += 10 * (step % 5 == 2)  # the end of an epoch
    other = _faster_threads(torch.zeros(8, 16), 2)
    next(other)
    assert torch.get_num_threads() == used[-1]  # one stack at a time chooses
    other.close()
    threads.close()
    assert used == 2 * ([2] * 4 + [1] * 4 + [settled] * 492)
    assert torch.get_num_threads() == 2
    for x, n_candidates in ((torch.zeros(8, 16), 1), (torch.zeros(8, 1, 4, 4), 2)):
        alone = _faster_threads(x, n_candidates)
        for _ in range(10):
            next(alone)
            assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_threads_are_given_back_where_training_is_stopped(blobs: Dataset) -> None:
    used: list[int] = []

    def on_step() -> None:
        used.append(torch.get_num_threads())
        if len(used) == 7:
            raise KeyboardInterrupt

    for _ in range(2):
        used.clear()
        with pytest.raises(KeyboardInterrupt):
            train_stack(get_model("jsc-toy"), toy_plans(), blobs, on_step=on_step)
        assert used[-1] == 1
        assert torch.get_num_threads() == 2
