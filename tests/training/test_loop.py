"""The training loop against a loop written anew."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import DivergenceError, LabkitError
from labkit.runtime import Stopped
from labkit.training.loop import check_fit, train
from labkit.training.metrics import evaluate
from labkit.training.settings import TrainSettings
from labkit.transform.applying import initialise
from labkit.transform.models import get_model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns(blobs: Dataset) -> None:
    model = initialise(get_model("hls4ml-jets"), 0)
    history = train(model, blobs, TrainSettings(max_epochs=8, batch_size=32, learning_rate=1e-2))
    assert len(history) == 8
    assert history[-1]["accuracy"] > 0.9
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_weights_are_those_of_a_loop_written_anew(blobs: Dataset, name: str) -> None:
    """Float64, no fused optimizer, the schedule by hand, BatchNorm by PyTorch."""
    data = replace(blobs, x_train=blobs.x_train.double(), x_val=blobs.x_val.double())
    settings = TrainSettings(
        max_epochs=3, batch_size=64, learning_rate=0.01, weight_decay=0.1,
        optimizer=name, num_warmup_steps=5,
    )  # fmt: skip
    model = initialise(get_model("jsc-toy"), 1).double()
    history = train(model, data, settings, seed=2)

    twin = initialise(get_model("jsc-toy"), 1).double()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kind(twin.parameters(), lr=0.01, weight_decay=0.1, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    step, total = 0, 3 * 13  # 800 rows in batches of 64: 12 whole and one of 32
    for epoch in range(3):
        order = torch.randperm(800, generator=generator)
        loss_sum = right = 0.0
        for start in range(0, 800, 64):
            rate = step / 5 if step < 5 else 1 - (step - 5) / (total - 5)
            optimizer.param_groups[0]["lr"] = 0.01 * rate
            rows = order[start : start + 64]
            optimizer.zero_grad()
            logits = twin(data.x_train[rows])
            loss = F.cross_entropy(logits, data.y_train[rows])
            loss.backward()
            optimizer.step()
            step += 1
            loss_sum += loss.item() * len(rows)
            right += int((logits.argmax(1) == data.y_train[rows]).sum())
        assert history[epoch]["train_loss"] == pytest.approx(loss_sum / 800, abs=1e-9)
        assert history[epoch]["train_accuracy"] == pytest.approx(right / 800)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-9, atol=1e-9)
    assert step == total


def test_the_same_seed_gives_the_same_weights_whatever_else_runs(blobs: Dataset) -> None:
    def trained(seed: int) -> torch.Tensor:
        model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(32, 5))
        train(initialise(model, 7), blobs, TrainSettings(max_epochs=1), seed=seed)
        return weights(model)

    torch.manual_seed(0)
    first = trained(3)
    torch.rand(99)
    assert torch.equal(first, trained(3))
    assert not torch.equal(first, trained(4))


def test_the_global_generator_is_left_alone(blobs: Dataset) -> None:
    model = nn.Sequential(nn.Linear(16, 5), nn.Dropout(0.5))
    state = torch.random.get_rng_state()
    train(model, blobs, TrainSettings(max_epochs=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_validation_is_on_held_out_rows_in_evaluation_mode(blobs: Dataset) -> None:
    model = initialise(get_model("jsc-toy"), 0)
    history = train(model, blobs, TrainSettings(max_epochs=2))
    model.eval()
    right = (model(blobs.x_val).argmax(1) == blobs.y_val).double().mean().item()
    assert history[-1]["accuracy"] == right


def test_num_samples_bounds_the_rows(blobs: Dataset) -> None:
    few = replace(blobs, x_train=blobs.x_train[:100], y_train=blobs.y_train[:100])
    a, b = initialise(get_model("jsc-toy"), 0), initialise(get_model("jsc-toy"), 0)
    train(a, blobs, TrainSettings(max_epochs=1, num_samples=100))
    train(b, few, TrainSettings(max_epochs=1))
    assert torch.equal(weights(a), weights(b))


def test_divergence_is_said(blobs: Dataset) -> None:
    settings = TrainSettings(learning_rate=1e30, optimizer="sgd", lr_scheduler="constant")
    epochs: list[dict[str, float]] = []
    with pytest.raises(DivergenceError, match=r"diverged: .* epoch 1 \(learning_rate = 1e\+30\)"):
        train(initialise(get_model("hls4ml-jets"), 0), blobs, settings, on_epoch=epochs.append)
    assert not epochs


def test_a_run_that_diverges_later_says_when(blobs: Dataset) -> None:
    model = initialise(get_model("hls4ml-jets"), 0)

    def spoil(metrics: dict[str, float]) -> None:
        next(model.parameters()).data.fill_(torch.nan)

    with pytest.raises(DivergenceError, match="after epoch 2 "):
        train(model, blobs, TrainSettings(max_epochs=5), on_epoch=spoil)


def test_each_epoch_and_each_step_is_told(blobs: Dataset) -> None:
    told: list[object] = []
    settings = TrainSettings(max_epochs=2, batch_size=300)  # 800 rows: three steps
    history = train(
        get_model("jsc-toy"), blobs, settings,
        on_epoch=told.append, on_step=lambda: told.append("step"),
    )  # fmt: skip
    assert told == 3 * ["step"] + history[:1] + 3 * ["step"] + history[1:]
    assert list(history[0]) == [
        "train_loss",
        "train_accuracy",
        "loss",
        "accuracy",
        "accuracy_macro",
    ]


def test_what_a_step_raises_ends_the_training(blobs: Dataset) -> None:
    model = initialise(get_model("jsc-toy"), 0)
    before, state = weights(model), torch.random.get_rng_state()

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(model, blobs, on_step=stop)
    assert torch.equal(weights(model), before)  # it is called before the step
    assert torch.equal(torch.random.get_rng_state(), state)


def test_patience_ends_a_training(blobs: Dataset) -> None:
    def losses(patience: int | None) -> list[float]:
        settings = TrainSettings(max_epochs=12, batch_size=32, learning_rate=0.1, patience=patience)
        history = train(initialise(get_model("jsc-toy"), 0), blobs, settings)
        return [metrics["loss"] for metrics in history]

    whole = losses(None)
    assert len(whole) == 12
    ends = next(n for n in range(2, 13) if whole[n - 1] >= min(whole[: n - 1]))
    assert ends < 12  # or nothing would be tested
    assert losses(1) == whole[:ends]


def test_a_network_that_does_not_fit_is_named(blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match=r"does not take the rows of blobs, of shape \(16,\)"):
        check_fit(nn.Linear(15, 5), blobs)
    with pytest.raises(LabkitError, match=r"expected logits of shape \(1, 5\).* got \(1, 4\)"):
        check_fit(nn.Linear(16, 4), blobs)
    model = get_model("jsc-toy").train()
    check_fit(model, blobs)
    assert model.training


class TwoInputs(nn.Module):
    """A network that no data set feeds."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Surprise(nn.Module):
    """A network that raises what nobody expects."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("x" * 1_000)


@pytest.mark.parametrize("model", [TwoInputs(), Surprise(), nn.Linear(16, 5).double(), nn.Linear])
def test_what_cannot_be_trained_is_said(model: Any, blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match="^model: (it does not take|expected an nn.Module)"):
        train(model, blobs)
    with pytest.raises(LabkitError, match="^model: it does not take"):
        evaluate(model, *blobs.split("val"))
    with pytest.raises(LabkitError, match="^data: expected a Dataset, got"):
        train(nn.Linear(16, 5), model)


def test_a_schedule_needs_steps(blobs: Dataset) -> None:
    few = TrainSettings(max_epochs=2, batch_size=400, num_warmup_steps=4)
    with pytest.raises(
        LabkitError, match="fewer than the 4 steps of a training on 800 rows, got 4"
    ):
        train(nn.Linear(16, 5), blobs, few)
    train(nn.Linear(16, 5), blobs, few.model_copy(update={"num_warmup_steps": 3}))


def test_weights_and_settings_are_needed(blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match="^model: it has no weights that can be trained"):
        train(nn.Linear(16, 5).requires_grad_(False), blobs)
    with pytest.raises(LabkitError, match="^settings: expected TrainSettings, got 5"):
        train(nn.Linear(16, 5), blobs, 5)
    with pytest.raises(LabkitError, match="^settings: expected TrainSettings, got tensor"):
        train(nn.Linear(16, 5), blobs, torch.zeros(2))


@pytest.mark.parametrize("seed", ["a", 0.5, None, [1], 2**64])
def test_a_seed_is_a_whole_number(blobs: Dataset, seed: Any) -> None:
    with pytest.raises(LabkitError, match=r"^seed: expected a whole number below 2\*\*64, got"):
        train(nn.Linear(16, 5), blobs, seed=seed)
