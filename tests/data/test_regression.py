"""Data for regression and for one logit: what loads, and what is refused in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes

from labkit.data.dataset import Dataset
from labkit.data.loading import load_data
from labkit.errors import LabkitError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3))
Y = 3e5 + 2e4 * X[:, 0]


def regression(y: Any, **options: Any) -> Dataset:
    return Dataset.from_arrays(X, y, task="regression", **options)


def test_targets_are_standardised_by_the_training_rows() -> None:
    data = regression(Y)
    assert (data.task, data.classes, data.n_outputs) == ("regression", (), 1)
    [(name, mean, std)] = data.targets
    assert name == "y"
    assert data.y_train.dtype == torch.float32
    assert [len(data.split(s).y) for s in ("train", "val", "test")] == [160, 20, 20]
    torch.testing.assert_close(data.y_train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.y_train.std(correction=0), torch.tensor(1.0))
    back = np.concatenate([mean + std * data.split(s).y.numpy() for s in ("train", "val", "test")])
    np.testing.assert_allclose(np.sort(back[:, 0]), np.sort(Y), rtol=1e-6)
    # Each row kept its own: the target is linear in the first feature.
    line = np.polyfit(data.x_val[:, 0], data.y_val[:, 0], 1)
    assert np.polyval(line, data.x_test[:, 0]) == pytest.approx(data.y_test[:, 0], abs=1e-5)
    assert f"  y: {mean:.6g} ± {std:.6g}\n" in data.describe()
    assert "1 target(s)" in repr(data)
    assert regression(Y).fingerprint() == data.fingerprint() != regression(Y**2).fingerprint()


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (pd.Series(Y, name="price"), ["price"]),
        (pd.DataFrame({"a": Y, "b": X[:, 1]}), ["a", "b"]),
        (np.stack([Y, X[:, 1]], axis=1), ["y0", "y1"]),
        (Y[:, None].tolist(), ["y"]),
        (torch.tensor(Y), ["y"]),
        (np.arange(200), ["y"]),
        (X[:, 0] > 0, ["y"]),
        ([str(value) for value in Y], ["y"]),
    ],
)
def test_targets_of_any_kind(y: Any, names: list[str]) -> None:
    data = regression(y)
    assert [one.name for one in data.targets] == names
    assert data.y_val.shape == (20, len(names))


def test_a_bunch_of_numbers() -> None:
    data = Dataset.from_arrays(load_diabetes(as_frame=True), task="regression")
    assert (data.targets[0].name, len(data.features)) == ("y", 10)


def with_value(value: Any, row: int = 7) -> list[Any]:
    y: list[Any] = Y.tolist()
    y[row] = value
    return y


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (with_value("much"), {}, "y: expected numbers, got 'much' in row 7"),
        (with_value(None), {}, "y: 1 rows have no label, the first is row 7"),
        (with_value(float("nan")), {}, "y: 1 rows have no label, the first is row 7"),
        (with_value(float("inf")), {}, "y: row 7 is infinite"),
        (Y + 1j, {}, "y: expected numbers, got"),
        (pd.date_range("2020-01-01", periods=200), {}, "y: expected numbers, got"),
        (np.zeros(200), {}, "y: a target is the same in all training rows"),
        (1e300 * Y, {}, "y: a target is the same .* or has no finite variance"),
        (Y, {"classes": ["a", "b"]}, "classes: a regression has none"),
        (Y[:20], {}, r"y: expected one label a row of x, \[200\], got shape \(20,\)"),
        (np.zeros((200, 2, 2)), {}, "y: expected one label a row of x"),
        (np.zeros((200, 0)), {}, "y: expected one label a row of x"),
        (Y, {"validation": 0.005}, "y: a target is the same in all validation rows"),
    ],
)
def test_what_is_no_target_is_refused(y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        regression(y, **options)


def test_rows_without_a_target_may_be_dropped() -> None:
    data = regression(with_value(None), missing="drop")
    assert sum(len(data.split(s).y) for s in ("train", "val", "test")) == 199
    assert data.notes == ("left out 1 of 200 rows",)


def test_groups_and_splits_of_ones_own() -> None:
    data = regression(Y, groups=np.arange(200) // 4)
    assert sum(len(data.split(s).y) for s in ("train", "val", "test")) == 200
    own = Dataset.from_splits(X[:90], Y[:90], None, None, X[90:], Y[90:], task="regression")
    assert own.targets[0].mean == pytest.approx(Y[:90].mean(), rel=0.02)
    assert [len(own.split(s).y) for s in ("train", "val", "test")] == [81, 9, 110]


def test_all_splits_have_the_same_targets_in_their_order() -> None:
    both = pd.DataFrame({"a": Y, "b": X[:, 0]})
    wanted = "y_val, y_test: expected the targets of y_train, in their order"
    for other in (both[["b", "a"]], Y):
        parts: list[Any] = [X, both, X, other, X, both]
        with pytest.raises(LabkitError, match=wanted):
            Dataset.from_splits(*parts, task="regression")


def test_a_file_of_targets(tmp_path: Path) -> None:
    table = pd.DataFrame(X, columns=["a", "b", "c"]).assign(price=Y)
    table.to_csv(tmp_path / "houses.csv", index=False)
    data = load_data(tmp_path / "houses.csv", label="price", task="regression")
    assert (data.targets[0].name, data.features) == ("price", ("a", "b", "c"))
    with pytest.raises(LabkitError, match="look continuous; write task='regression'"):
        load_data(tmp_path / "houses.csv", label="price")
    np.savez(tmp_path / "houses.npz", x=X, label=Y)
    assert load_data(tmp_path / "houses.npz", task="regression").n_outputs == 1


def test_one_logit_is_of_two_classes() -> None:
    data = Dataset.from_arrays(X, np.where(X[:, 0] > 0, "yes", "no"), task="binary")
    assert (data.classes, data.n_outputs, data.y_val.dtype) == (("no", "yes"), 1, torch.int64)
    with pytest.raises(LabkitError, match="y: expected two classes for task 'binary', got 3"):
        Dataset.from_arrays(X, np.arange(200) % 3, task="binary")
    with pytest.raises(LabkitError, match="task: expected 'classification', 'binary' or 'regr"):
        Dataset.from_arrays(X, Y, task="ranking")  # type: ignore[arg-type]
    with pytest.raises(LabkitError, match="task: 'digits' is for classification of 10 classes"):
        load_data("digits", task="binary")
