"""Tasks, losses and metrics: against scikit-learn and PyTorch, and in stacks against alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.training import (
    LOSSES,
    MAIN_METRIC,
    METRICS,
    Metric,
    TrainSettings,
    check_fit,
    evaluate,
    selected,
    train,
    train_stack,
)
from labkit.training.losses import make_loss
from labkit.transform.applying import apply, initialise
from labkit.transform.plan import Plan

N_OUTPUTS = {"classification": 3, "binary": 1, "regression": 2}


def made(task: Any, rows: int = 600) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6))
    score = x[:, :2] + 0.3 * rng.normal(size=(rows, 2))
    y = {
        "classification": np.digitize(score[:, 0], [-1, 1.2]),
        "binary": np.where(score[:, 0] > 0.7, "yes", "no"),
        "regression": 5e4 + 1e4 * score**2,
    }[task]
    data = Dataset.from_arrays(x, y, task=task)
    floats = {k: v.double() for k, v in vars(data).items() if getattr(v, "dtype", 0) == torch.float}
    return replace(data, **floats)


def network(task: str) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, N_OUTPUTS[task])
    ).double()


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def far(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().pow(1.5).sum(dim=1).mean()


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("binary", {}),
        ("binary", {"class_weights": "balanced", "select": "best"}),
        ("regression", {"optimizer": "sgd"}),
        ("regression", {"loss": "huber_loss", "select": "best", "patience": 2}),
        ("regression", {"loss": "far"}),
        ("classification", {"class_weights": [1.0, 0.2, 7.5]}),
        ("classification", {"class_weights": "balanced", "metrics": ["f1", "auc"]}),
        ("classification", {"loss": "focal", "metrics": ["log_loss"], "select": "best"}),
    ],
)
def test_each_network_of_a_stack_ends_as_it_would_alone(
    task: str, settings: dict[str, Any], own_names: None
) -> None:
    LOSSES.update(focal=focal, far=far)
    data, model = made(task), network(task)
    given = {"max_epochs": 8, "batch_size": 32, "learning_rate": 0.2, "lr_scheduler": "constant"}
    chosen = TrainSettings(**given | settings)
    plans = [Plan((("_0", width),)) for width in (8, 3, 12)]
    stopped = set()
    for trained, plan in zip(train_stack(model, plans, data, chosen), plans, strict=True):
        alone = initialise(apply(model, plan), 0)
        history = train(alone, data, chosen)
        assert [*trained.history[-1]] == [*history[-1]]
        for stacked, expected in zip(trained.history, history, strict=True):
            assert stacked == pytest.approx(expected, abs=1e-6)
        for name, tensor in trained.model.state_dict().items():
            torch.testing.assert_close(tensor, alone.state_dict()[name], rtol=0, atol=1e-6)
        counts = selected(history, chosen)
        main = MAIN_METRIC[data.task]
        assert evaluate(alone, data.x_val, data.y_val)[main] == pytest.approx(counts[main])
        assert set(chosen.metrics) <= set(counts)
        stopped.add(counts is history[-1])
    if settings.get("select") == "best":
        assert False in stopped  # or else the test says nothing of it


@pytest.mark.parametrize("task", ["classification", "binary"])
def test_metrics_of_classes_are_scikit_learns(task: str) -> None:
    data, model = made(task), network(task)
    names = ["balanced_accuracy", "f1", "auc", "log_loss"]
    got = evaluate(model, data.x_val, data.y_val, names)
    with torch.no_grad():
        logits = model(data.x_val)
    y = data.y_val.numpy()
    if task == "binary":
        shares, said = logits.sigmoid()[:, 0].numpy(), (logits[:, 0] > 0).numpy()
        auc = sklearn.metrics.roc_auc_score(y, shares)
    else:
        shares, said = logits.softmax(1).numpy(), logits.argmax(1).numpy()
        auc = sklearn.metrics.roc_auc_score(y, shares, multi_class="ovr")
    assert got == pytest.approx(
        {
            "loss": sklearn.metrics.log_loss(y, shares),
            "log_loss": sklearn.metrics.log_loss(y, shares),
            "accuracy": sklearn.metrics.accuracy_score(y, said),
            "accuracy_macro": sklearn.metrics.balanced_accuracy_score(y, said),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(y, said),
            "f1": sklearn.metrics.f1_score(y, said, average="macro"),
            "auc": auc,
        }
    )


def test_metrics_of_a_regression_are_scikit_learns() -> None:
    data, model = made("regression"), network("regression")
    with torch.no_grad():
        outputs = model.eval()(data.x_val)
    y, mse = data.y_val, sklearn.metrics.mean_squared_error(data.y_val, outputs)
    assert evaluate(model, data.x_val, y) == pytest.approx(
        {
            "loss": mse,
            "mse": mse,
            "mae": sklearn.metrics.mean_absolute_error(y, outputs),
            "r2": sklearn.metrics.r2_score(y, outputs),
        }
    )


@pytest.mark.parametrize("y", [torch.zeros(9), torch.zeros(9, 1), torch.zeros(9, 2).long()])
def test_labels_that_are_none_of_the_task_are_refused(y: Tensor) -> None:
    with pytest.raises(LabkitError, match="y: expected labels .rows., or of a regression as many"):
        evaluate(network("regression"), torch.zeros(9, 6).double(), y)


@pytest.mark.parametrize("task", ["classification", "binary"])
def test_weights_of_classes_are_pytorchs(task: Any) -> None:
    data = made(task)
    n = len(data.classes)
    logits = torch.randn(len(data.y_train), N_OUTPUTS[task], dtype=torch.float64)
    balanced = torch.tensor(
        [len(data.y_train) / n / (data.y_train == label).sum().item() for label in range(n)]
    )
    # Of one logit, the softmax of it and 0 is the sigmoid.
    pairs = torch.cat([0 * logits, logits], dim=1) if task == "binary" else logits
    for weights in ("balanced", [*map(float, range(1, n + 1))]):
        loss = make_loss(data, TrainSettings(class_weights=weights))
        each = balanced if weights == "balanced" else torch.tensor(weights)
        expected = F.cross_entropy(pairs, data.y_train, each.double())
        torch.testing.assert_close(loss(logits, data.y_train), expected, rtol=1e-5, atol=0)


def test_a_metric_of_ones_own_is_measured_once(own_names: None) -> None:
    calls = []

    def top2(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(logits.shape)
        return (logits.topk(2).indices == labels[:, None]).any(dim=1).double().mean()

    METRICS["top2"] = Metric("maximize", top2)
    data = made("classification")
    history = train(network("classification"), data, TrainSettings(max_epochs=3, metrics=["top2"]))
    assert calls == [(len(data.y_val), 3)]
    assert ["top2" in epoch for epoch in history] == [False, False, True]
    assert history[-1]["accuracy"] <= history[-1]["top2"] < 1


def test_a_metric_may_write_into_what_it_is_given(own_names: None) -> None:
    data, model = made("regression"), network("regression")
    METRICS["far"] = Metric("minimize", far)
    alone = evaluate(model, data.x_val, data.y_val, ["far"])["far"]
    METRICS["zeros"] = Metric("minimize", lambda one, other: (one.zero_() + other.zero_()).sum())
    assert evaluate(model, data.x_val, data.y_val, ["zeros", "far"])["far"] == alone != 0


def raises(logits: Tensor, labels: Tensor) -> Tensor:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, "metrics.bad: RuntimeError: no such thing"),
        (lambda logits, labels: logits.mean() * float("nan"), "metrics.bad: expected a finite num"),
        (lambda logits, labels: "much", "metrics.bad: ValueError: could not convert"),
        (lambda logits: 1.0, "metrics.bad: TypeError"),
    ],
)
def test_a_bad_metric_says_so(function: Callable[..., Any], message: str, own_names: None) -> None:
    METRICS["bad"] = Metric("minimize", function)
    with pytest.raises(LabkitError, match=message):
        train(network("binary"), made("binary"), TrainSettings(max_epochs=1, metrics=["bad"]))


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("regression", {"loss": "cross_entropy"}, "loss: expected mse_loss or huber_loss, or your"),
        ("binary", {"loss": "mse_loss"}, "loss: expected binary_cross_entropy_with_logits"),
        ("binary", {"loss": "mse_lost"}, "loss: unknown loss 'mse_lost'; did you mean 'mse_loss'"),
        ("binary", {"loss": "nowhere:focal"}, "loss: cannot import 'nowhere:focal'"),
        ("binary", {"loss": "bad"}, "loss: bad: RuntimeError: no such thing"),
        ("binary", {"loss": "rows"}, "loss: expected rows to return one number, got"),
        ("binary", {"loss": "flat"}, "loss: flat cannot be minimised: it does not"),
        ("binary", {"loss": "writes"}, "loss: writes: RuntimeError: a leaf Variable .* in-place"),
        ("regression", {"class_weights": "balanced"}, "class_weights: 'mse_loss' takes none"),
        ("binary", {"class_weights": [1.0]}, "class_weights: expected 2, one a class of arrays"),
        ("regression", {"metrics": ["f1"]}, "metrics: 'f1' is none of regression; expected loss"),
        ("binary", {"metrics": ["acuracy"]}, "metrics: unknown metric 'acuracy'; did you mean"),
        ("binary", {"metrics": ["math:pi"]}, "metrics: expected a function with a name of its own"),
        ("binary", {"metrics": ["math:sqrt"]}, "metrics: expected a function with a name of it"),
        ("binary", {"metrics": ["bare"]}, "metrics.bare: expected Metric"),
        ("binary", {"metrics": ["up"]}, "metrics.up: expected Metric"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_first(
    task: Any, settings: dict[str, Any], message: str, own_names: None
) -> None:
    LOSSES.update(bad=raises, rows=lambda logits, labels: torch.zeros(3))
    LOSSES["flat"] = lambda logits, labels: logits.detach().mean()
    LOSSES["writes"] = lambda logits, labels: logits.mul_(2).mean()
    METRICS.update(sqrt=Metric("minimize", raises), up=Metric("up", raises), bare=raises)  # type: ignore[arg-type,dict-item]
    with pytest.raises(LabkitError, match=message):
        check_fit(network(task), replace(made(task)), TrainSettings(**settings))


@pytest.mark.parametrize(
    ("task", "outputs", "message"),
    [
        ("classification", 1, r"expected logits of shape \(1, 3\) for the 3 classes of arrays"),
        ("binary", 2, r"expected logits of shape \(1, 1\) for the 2 classes .* task 'binary'"),
        ("regression", 1, r"expected logits of shape \(1, 2\) for the 2 targets of arrays"),
    ],
)
def test_a_network_has_the_outputs_of_the_task(task: Any, outputs: int, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        check_fit(nn.Linear(6, outputs).double(), made(task))


def test_pytorchs_losses_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "mse_loss", far)
    with pytest.raises(LabkitError, match="loss: mse_loss is PyTorch's; give yours another name"):
        check_fit(network("regression"), made("regression"), TrainSettings())


@pytest.mark.parametrize("weights", ["balance", [1.0, -1.0], [True, "a"], [1.0, float("nan")]])
def test_wrong_weights_are_refused(weights: Any) -> None:
    expected = "class_weights: expected 'balanced', or a list with a number above 0 for each class"
    with pytest.raises(LabkitError, match=expected):
        TrainSettings(class_weights=weights)


def test_weights_of_classes_may_be_an_array() -> None:
    settings: dict[str, Any] = {"class_weights": np.array([1, 2.5])}
    assert TrainSettings(**settings).class_weights == (1.0, 2.5)
