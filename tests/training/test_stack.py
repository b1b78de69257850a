"""Stacked training against the training of each candidate alone."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import DivergenceError, LabkitError
from labkit.operators.stacking import NotStackable, Stack
from labkit.training import (
    TrainSettings,
    evaluate,
    fit_stack,
    stack_width,
    step_seconds,
    train,
    train_stack,
)
from labkit.training.settings import epoch_order
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


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [*itertools.product(["adam", "adamw", "sgd"], ["jsc-toy", "convolutional"])],
)
def test_networks_of_one_stack_may_have_rates_of_their_own(
    blobs: Dataset, optimizer: str, kind: str
) -> None:
    data, model = double(blobs), get_model("jsc-toy")
    widths = [Plan((("seq_blocks_2", 16), ("seq_blocks_5", 8)))] * 4
    if kind == "convolutional":
        shape = (-1, 1, 4, 4)
        data = replace(data, x_train=data.x_train.view(shape), x_val=data.x_val.view(shape))
        model, widths = Convolutional(), [Plan((("a", 3), ("b", 7)))] * 4
    channels = find_channels(model.double(), data.x_val[:1])
    given: dict[str, Any] = {"max_epochs": 6, "batch_size": 32, "num_warmup_steps": 5}
    each = [
        TrainSettings(**given, optimizer=optimizer, learning_rate=rate, weight_decay=decay)
        for rate, decay in [(1e-3, 0.0), (1e-2, 0.3), (1e-4, 0.1), (1e-2, 0.0)]
    ]
    alone = [initialise(apply(model, plan, channels=channels), 3) for plan in widths]
    expected = [
        train(network, data, settings, seed=3)
        for network, settings in zip(alone, each, strict=True)
    ]
    stacked = [initialise(apply(model, plan, channels=channels), 3) for plan in widths]
    trained = fit_stack(stacked, channels, data, each, [3] * 4)
    for one, network, history in zip(trained, alone, expected, strict=True):
        for stacked_epoch, epoch in zip(one.history, history, strict=True):
            assert stacked_epoch == pytest.approx(epoch, abs=1e-6)
        biases = ("a.bias", *(f"seq_blocks.{layer}.bias" for layer in (2, 5, 8)))
        for name, tensor in one.model.state_dict().items():
            tolerance = 1e-5 if name in biases else 1e-7  # a BatchNorm follows: their gradient is 0
            torch.testing.assert_close(
                tensor, network.state_dict()[name], rtol=0, atol=tolerance, msg=name
            )
    assert len({history[-1]["loss"] for history in expected}) == 4


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
    assert isinstance(ill.failure, DivergenceError)
    assert "diverged: the loss is not finite after epoch 1" in str(ill.failure)
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

    def reversed_rows(*args: Any) -> torch.Tensor:
        return torch.cat([rows.flip(0) for rows in epoch_order(*args).split(32)])

    monkeypatch.setattr("labkit.training.loop.epoch_order", reversed_rows)
    control = accuracies() - alone
    # One validation row in a hundred is the finest step: allow one beyond the control's worst.
    assert difference.abs().max() <= control.abs().max() + 0.0101


class Doubled(nn.Linear):
    """A layer whose forward the stack would not run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.RMSNorm(24), nn.GroupNorm(4, 24)])
def test_norms_over_channels_train_as_they_would_alone(blobs: Dataset, norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(16, 24), norm, nn.ReLU(), nn.Linear(24, 5)).double()
    data, settings = double(blobs), TrainSettings(max_epochs=3, batch_size=32)
    plans = [Plan((("_0", width),)) for width in (8, 24, 12)]
    for trained, plan in zip(train_stack(model, plans, data, settings), plans, strict=True):
        alone = initialise(apply(model, plan), 0)
        history = train(alone, data, settings)
        assert_same(trained.model, alone)
        assert trained.history[-1] == pytest.approx(history[-1], abs=1e-9)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Doubled(8, 8), r"'_1' \(Doubled\) has a forward of its own"),
        (nn.Softmin(dim=1), r"'_1' \(Softmin\) mixes channels"),
        (nn.AlphaDropout(), "AlphaDropout"),
        (nn.PReLU(), "one parameter for all channels"),
    ],
)
def test_what_does_not_stack_says_why(blobs: Dataset, layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(16, 8), layer, nn.Linear(8, 5))
    plan = Plan(tuple((group.name, group.width) for group in find_channels(model).free))
    with pytest.raises(NotStackable, match=reason):
        train_stack(model, [plan], blobs)


def halved(module: nn.Module, inputs: Any, output: Any = None) -> Any:
    """A hook after a forward or backward pass, and one before: halves the last that it is given."""
    return inputs[0] / 2 if output is None else output / 2


@pytest.mark.parametrize("where", ["", "seq_blocks", "seq_blocks.5"])
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_a_network_with_hooks_trains_alone(blobs: Dataset, where: str, register: str) -> None:
    model = get_model("jsc-toy")
    handle = getattr(model.get_submodule(where), register)(halved)
    with pytest.raises(NotStackable, match=r"(the network|'seq_blocks.*') \(.*a hook"):
        train_stack(model, toy_plans()[:2], blobs)
    handle.remove()
    train_stack(model, toy_plans()[:2], blobs, TrainSettings(max_epochs=1))


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


def test_networks_that_are_built_train_in_place(blobs: Dataset) -> None:
    model, plans, seeds = get_model("jsc-toy"), toy_plans()[:3], [0, 1, 0]
    channels = find_channels(model, blobs.x_val[:1])
    settings = TrainSettings(max_epochs=2, batch_size=64)
    networks = [
        initialise(apply(model, plan, channels=channels), seed) for plan, seed in zip(plans, seeds)
    ]
    fitted = fit_stack(networks, channels, blobs, settings, seeds)
    assert [trained.model for trained in fitted] == networks
    again = train_stack(model, plans, blobs, settings, seeds, channels=channels)
    for one, other in zip(fitted, again):
        assert one.history == other.history
        for name, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name])


def test_nothing_is_traced_or_built_again(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plans = get_model("jsc-toy"), toy_plans()[:3]
    channels = find_channels(model, blobs.x_val[:1])
    networks = [apply(model, plan, channels=channels) for plan in plans]
    traces: list[None] = []
    built: list[None] = []
    monkeypatch.setattr("torch.fx.Tracer.trace", lambda *_, **__: traces.append(None))
    monkeypatch.setattr(
        "labkit.training.stack.apply",
        lambda *args, **options: built.append(None) or apply(*args, **options),
    )
    settings = TrainSettings(max_epochs=1, batch_size=64)
    assert stack_width(channels, plans, blobs, settings) > 1
    step_seconds(networks, channels, blobs, settings)
    fit_stack(networks, channels, blobs, settings, [0, 0, 0])
    assert not built
    train_stack(model, plans, blobs, settings, channels=channels)
    assert len(built) == 3
    assert not traces


def test_candidates_that_keep_their_weights_start_from_them(blobs: Dataset) -> None:
    data, model = double(blobs), initialise(get_model("jsc-toy"), 5).double()
    train(model, data, TrainSettings(max_epochs=1))
    settings = TrainSettings(max_epochs=2, batch_size=64)
    plans = [toy_plans()[index] for index in (0, 6)]
    for trained, plan in zip(
        train_stack(model, plans, data, settings, [3, 4], weights="keep"), plans
    ):
        alone = apply(model, plan, weights="keep")
        train(alone, data, settings, seed=3 if plan == plans[0] else 4)
        assert_same(trained.model, alone, tuple(f"seq_blocks.{n}.bias" for n in (2, 5, 8)))


def test_metrics_of_an_epoch_are_told_of_those_that_trained_in_it(blobs: Dataset) -> None:
    settings = TrainSettings(learning_rate=1e30, optimizer="sgd", lr_scheduler="constant")
    told: list[int] = []
    model = get_model("hls4ml-jets")
    plans = [Plan((("seq_blocks_0", 8), ("seq_blocks_2", w), ("seq_blocks_4", 8))) for w in (8, 9)]
    trained = train_stack(
        model, plans, blobs, settings, on_epoch=lambda all_: told.append(len(all_))
    )
    assert all(isinstance(one.failure, DivergenceError) for one in trained)
    assert not told


@pytest.mark.parametrize("rows", [257, 258])
def test_a_last_batch_of_one_row_is_left_out_of_a_stack(blobs: Dataset, rows: int) -> None:
    data = double(replace(blobs, x_train=blobs.x_train[:rows], y_train=blobs.y_train[:rows]))
    settings, steps = TrainSettings(max_epochs=1, batch_size=64), []
    model, [plan] = get_model("jsc-toy").double(), toy_plans()[:1]
    [stacked] = train_stack(model, [plan], data, settings, on_step=lambda: steps.append(None))
    assert len(steps) == (4 if rows == 257 else 5)
    history = train(initialise(apply(model, plan), 0), data, settings)
    assert stacked.history == [pytest.approx(metrics, abs=1e-6) for metrics in history]


def test_the_width_of_a_stack_is_what_half_the_free_memory_holds(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = find_channels(get_model("jsc-toy"))

    def width(free: int) -> int:
        monkeypatch.setattr(
            "labkit.training.stack.psutil.virtual_memory", lambda: SimpleNamespace(available=free)
        )
        return stack_width(channels, toy_plans(), blobs, TrainSettings(batch_size=64))

    assert width(0) == 1
    assert width(2**31) == pytest.approx(2 * width(2**30), rel=0.01)
    # The activations of the widest network, at least: 16 + 3 · 64 + 2 · 64 + 5 channels.
    assert 1 < width(2**30) < 2**29 / (64 * 4 * (16 + 5 * 64))


def test_the_width_of_a_stack_counts_parameters_activations_and_logits(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 5))
    channels = find_channels(model)
    a, b = (group.name for group in channels.free)
    plans = [Plan(((a, 100), (b, 3))), Plan(((a, 7), (b, 200)))]  # in a stack both become widest
    parameters = (16 * 100 + 100) + (100 * 200 + 200) + (200 * 5 + 5)
    activations = 2 * (16 + 100 + 200 + 5)
    logits = len(blobs.x_val) * 5
    assert parameters > activations + logits
    needed = 4 * (4 * parameters + 2 * activations + 4 * logits)  # bytes a candidate
    settings = TrainSettings(batch_size=2)
    for free, expected in [(14 * needed, 7), (14 * needed - 1, 6), (2 * needed - 1, 1)]:
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr("labkit.training.stack.psutil.virtual_memory", lambda m=memory: m)
        assert stack_width(channels, plans, blobs, settings) == expected


def built(plans: list[Plan]) -> tuple[list[nn.Module], Any]:
    model = get_model("jsc-toy")
    channels = find_channels(model)
    return [apply(model, plan, channels=channels) for plan in plans], channels


def test_a_step_is_timed_in_a_stack_and_one_by_one(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def steps_of(seconds: float) -> Callable[..., None]:
        def run(*args: Any, on_step: Callable[[], None], **options: Any) -> None:
            nonlocal now
            for factor in (4, 1, 1):
                on_step()
                now += factor * seconds

        return run

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("labkit.training.stack.time", clock)

    monkeypatch.setattr("labkit.training.stack.fit_stack", steps_of(0.1))
    monkeypatch.setattr("labkit.training.stack.train", steps_of(0.05))
    timed = step_seconds(*built(toy_plans()), blobs, TrainSettings())
    assert timed == pytest.approx((0.1, 16 * 0.05), rel=1e-9)


@pytest.mark.parametrize("learning_rate", [1e-3, 1e30])
def test_timing_leaves_the_networks_as_they_were(blobs: Dataset, learning_rate: float) -> None:
    """Also where the few steps diverge, which takes as long."""
    networks, channels = built([plan for plan in toy_plans() if plan.widths[0][1] == 64])
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    settings = TrainSettings(batch_size=32, learning_rate=learning_rate, optimizer="sgd")
    together, alone = step_seconds(networks, channels, blobs, settings)
    assert together > 0
    assert alone > 0
    for network, state in zip(networks, before):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name])
    # One batch alone leaves no step to time; then the stack is preferred.
    assert step_seconds(networks, channels, blobs, TrainSettings(batch_size=10_000)) == (0, 0)


def test_only_stacks_that_compute_the_same_in_any_threads_choose_them(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    used: set[int] = set()
    images = replace(
        blobs, x_train=blobs.x_train.view(-1, 1, 4, 4), x_val=blobs.x_val.view(-1, 1, 4, 4)
    )
    settings = TrainSettings(max_epochs=1, batch_size=32)
    pixels = [Plan((("a", width), ("b", 3))) for width in (2, 3)]
    for model, plans, data, numbers in (
        (get_model("jsc-toy"), toy_plans()[:2], blobs, {1, 2}),
        (get_model("jsc-toy"), toy_plans()[:1], blobs, {2}),
        (Convolutional(), pixels, images, {2}),
    ):
        used.clear()
        train_stack(model, plans, data, settings, on_step=lambda: used.add(torch.get_num_threads()))
        assert used == numbers
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_threads_are_given_back_where_training_is_stopped(blobs: Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
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
    torch.set_num_threads(before)


def test_what_is_no_candidate_is_said(blobs: Dataset) -> None:
    model = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 5))
    plan = Plan((("_0", 4),))
    for plans, data, seeds in ((5, blobs, 0), ([plan], 5, 0), ([plan], blobs, "a")):
        with pytest.raises(LabkitError, match="^plans, data, seeds: expected a plan and a seed"):
            train_stack(model, plans, data, seeds=seeds)
    assert train_stack(model, [], blobs) == []
