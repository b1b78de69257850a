"""What training is judged by, against scikit-learn and by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score
from torch import nn

from labkit.errors import DivergenceError
from labkit.training import metrics as metrics_module
from labkit.training.losses import loss_of
from labkit.training.metrics import by_network, divergence, evaluate, scores, stops_early
from labkit.training.settings import TrainSettings


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
        log_loss(y, logits.double().softmax(1), labels=range(5)), rel=1e-5
    )


def test_scores_are_each_networks_own() -> None:
    """Three networks, four classes of which one never occurs, one class much rarer than others."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 4, 60, generator=generator)
    y = torch.tensor([0] * 40 + [2] * 17 + [3] * 3)
    by = by_network(scores(logits, y, loss_of("classification")))
    assert len(by) == 3
    for network, got in zip(logits, by):
        predicted = network.T.argmax(1)
        recalls = recall_score(y, predicted, labels=[0, 2, 3], average=None)
        assert got["accuracy"] == pytest.approx(accuracy_score(y, predicted))
        assert got["accuracy_macro"] == pytest.approx(recalls.mean())
        assert got["loss"] == pytest.approx(
            log_loss(y, network.T.double().softmax(1), labels=range(4)), rel=1e-5
        )
    assert len({got["accuracy_macro"] for got in by}) == 3


def test_evaluation_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)).train()
    x, y = torch.randn(50, 6, generator=generator), torch.arange(50) % 3
    whole = evaluate(model, x, y)
    assert not model.training
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(metrics_module, "EVALUATION_ROWS", 16)
    assert evaluate(model, x, y) == pytest.approx(whole, rel=1e-6)
    assert seen == [16, 16, 16, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["train_loss", "loss"])
def test_a_loss_that_is_not_finite_is_divergence(key: str, bad: float) -> None:
    settings = TrainSettings(learning_rate=0.25)
    well = {"train_loss": 1.0, "loss": 2.0, "accuracy": math.nan}
    assert divergence(well, 3, settings) is None
    error = divergence(well | {key: bad}, 3, settings)
    assert isinstance(error, DivergenceError)
    assert "not finite after epoch 3 (learning_rate = 0.25)" in str(error)


def loses_patience(losses: list[float], patience: int | None) -> bool:
    settings = TrainSettings(patience=patience)
    return stops_early([{"loss": loss} for loss in losses], settings)


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([1.0], 1, False),
        ([1.0, 0.9], 1, False),
        ([1.0, 1.0], 1, True),  # it did not fall
        ([1.0, 1.1], 1, True),
        ([1.0, 1.1], 2, False),
        ([1.0, 1.1, 1.2], 2, True),
        ([1.0, 1.1, 0.9], 2, False),
        ([0.9, 1.1, 1.0], 2, True),  # below the last one is not below the lowest
        ([1.0, 0.5, 0.5, 0.6], 2, True),
        ([1.0, 2.0, 3.0, 4.0], None, False),
    ],
)
def test_patience_is_counted_from_the_lowest_loss(
    losses: list[float], patience: int | None, stops: bool
) -> None:
    assert loses_patience(losses, patience) is stops


@given(st.lists(st.floats(0, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_patience_by_counting_epochs(losses: list[float], patience: int) -> None:
    lowest, without = math.inf, 0
    for loss in losses:
        without = 0 if loss < lowest else without + 1
        lowest = min(loss, lowest)
    assert loses_patience(losses, patience) is (without >= patience)
