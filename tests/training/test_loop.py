"""The training loop against closed forms, scikit-learn and a loop written anew."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.training.loop import (
    TrainSettings,
    batches,
    check_fit,
    evaluate,
    keep_freed_memory,
    lr_factor,
    train,
)
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
    train(model, data, settings, seed=2)

    twin = initialise(get_model("jsc-toy"), 1).double()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kind(twin.parameters(), lr=0.01, weight_decay=0.1, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    step, total = 0, 3 * 13  # 800 rows in batches of 64: 12 whole and one of 32
    for _ in range(3):
        order = torch.randperm(800, generator=generator)
        for start in range(0, 800, 64):
            rate = step / 5 if step < 5 else 1 - (step - 5) / (total - 5)
            optimizer.param_groups[0]["lr"] = 0.01 * rate
            rows = order[start : start + 64]
            optimizer.zero_grad()
            F.cross_entropy(twin(data.x_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
            step += 1
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


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    settings = TrainSettings(batch_size=batch_size)
    parts = batches(rows, settings, torch.Generator().manual_seed(seed))
    visited = [int(row) for part in parts for row in part]
    left_out = 1 if rows % batch_size == 1 or (batch_size == 1) else 0
    if batch_size > 1:
        assert len(visited) == len(set(visited)) == rows - left_out
        assert all(1 < len(part) <= batch_size for part in parts)


def test_metrics_are_scikit_learns() -> None:
    logits = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(1))
    metrics = evaluate(nn.Identity(), logits, y)  # class 4 never occurs
    predicted = logits.argmax(1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(y, predicted))
    recalls = [accuracy_score(y[y == label], predicted[y == label]) for label in range(4)]
    assert metrics["accuracy_macro"] == pytest.approx(sum(recalls) / 4)
    with pytest.warns(UserWarning, match="y_pred"):
        assert metrics["accuracy_macro"] == pytest.approx(balanced_accuracy_score(y, predicted))
    assert metrics["loss"] == pytest.approx(
        log_loss(y, logits.softmax(1).double(), labels=range(5)), rel=1e-5
    )


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
    with pytest.raises(LabkitError, match=r"diverged: .* epoch 1 \(learning_rate = 1e\+30\)"):
        train(initialise(get_model("hls4ml-jets"), 0), blobs, settings)


def test_a_network_that_does_not_fit_is_named(blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match=r"does not take the rows of blobs, of shape \(16,\)"):
        check_fit(nn.Linear(15, 5), blobs)
    with pytest.raises(LabkitError, match=r"expected logits of shape \(1, 5\).* got \(1, 4\)"):
        check_fit(nn.Linear(16, 4), blobs)
    model = get_model("jsc-toy").train()
    check_fit(model, blobs)
    assert model.training


@pytest.mark.parametrize("variable", [None, "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    set_to: dict[int, int] = {}
    library = SimpleNamespace(mallopt=set_to.__setitem__)
    monkeypatch.setattr("labkit.training.loop.sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr("labkit.training.loop.ctypes", SimpleNamespace(CDLL=lambda _: library))
    environment = {variable: "1"} if variable else {}
    monkeypatch.setattr("labkit.training.loop.os", SimpleNamespace(environ=environment))
    keep_freed_memory.__wrapped__()
    assert set_to == ({} if variable else {-1: 2**28, -3: 2**25})
    for elsewhere in ("darwin", "win32"):
        monkeypatch.setattr("labkit.training.loop.sys", SimpleNamespace(platform=elsewhere))
        set_to.clear()
        keep_freed_memory.__wrapped__()
        assert not set_to
