"""Data sets from what people have in memory, and splits that keep every class and group."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.utils import Bunch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from labkit import LabkitError
from labkit.data import Dataset
from tests.data.test_data import all_rows

N = 60
X, Y = np.random.default_rng(0).normal(size=(N, 3)), np.arange(N) % 3
NAMED = Dataset.from_arrays(X, Y)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return zip(X, Y)  # type: ignore[return-value]


TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


@pytest.mark.parametrize(
    "given",
    [
        (TENSORS,), (DataLoader(TENSORS, batch_size=7, shuffle=True),), (Stream(),),
        (Bunch(data=X, target=Y),), (X, Y[:, None]), (X, pd.Series(Y)), (pd.DataFrame(X), [*Y]),
        (X, torch.from_numpy(Y)), (X.tolist(), np.array([*"abc"])[Y]), (X, pd.DataFrame({"y": Y})),
        (X, pd.Categorical(np.array([*"abc"])[Y])), (X, Y.astype(float)),
    ],
)  # fmt: skip
def test_what_holds_the_same_is_the_same(given: Any) -> None:
    data = Dataset.from_arrays(*given)
    assert data.fingerprint() == NAMED.fingerprint()
    assert data.features == ("x0", "x1", "x2")


@pytest.mark.parametrize("as_frame", [False, True])
def test_a_bunch_brings_its_names(as_frame: bool) -> None:
    iris = load_iris(as_frame=as_frame)
    data = Dataset.from_arrays(iris)
    assert data.classes == ("setosa", "versicolor", "virginica")
    assert data.features == tuple(iris.feature_names)
    assert data.fingerprint() == Dataset.from_arrays(iris.data, iris.target).fingerprint()


def test_booleans_are_classes_and_features() -> None:
    x = np.stack([Y > 0, Y > 1], axis=1)
    data = Dataset.from_arrays(pd.DataFrame(x, columns=["a", "b"]), Y > 1)
    assert (data.classes, data.features) == (("False", "True"), ("a", "b"))
    assert torch.equal(data.x_val[:, 1] > 0, data.y_val == 1)


IMAGES = np.random.default_rng(0).normal(size=(N, 8, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGES, Y), r"got shape \(60, 8, 8\); write x\[:, None\] for images of one channel"),
        ((IMAGES[..., None], Y), r"channels of shape .* are last; write x.transpose\(0, 3, 1, 2\)"),
        ((np.where(IMAGES > 2, np.nan, IMAGES)[:, None], Y), "x: pixels are missing or infinite"),
        ((X, np.eye(3)[Y]), r"got shape \(60, 3\); write y.argmax\(1\) if it is one-hot"),
        ((X[:, 0], Y), "x: expected .rows, features. .*got shape"),
        ((pd.DataFrame(X),), "y: expected labels, since x, a DataFrame, is no scikit-learn Bunch"),
        ((torch.utils.data.TensorDataset(torch.zeros(9, 2)),), "expected a PyTorch Dataset of"),
        (([np.ma.masked_array(row, row > 1) for row in X], Y), "x: the mask of a masked array"),
        ((X, ["a", float("nan"), "b"] * 20), r"y: 20 rows have no label, .* row 1 \(nan\)"),
        ((X, ["a", "None", "b"] * 20), r"y: 20 rows have no label, .* row 1 \('None'\); .* rename"),
        ((X.astype(str), Y), "x: expected numbers, got .*; a pandas DataFrame may hold text"),
    ],
)  # fmt: skip
def test_what_is_meant_otherwise_is_refused_with_what_to_write(given: Any, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        Dataset.from_arrays(*given)


def test_ones_own_split_is_kept() -> None:
    parts = X[:30], Y[:30], X[30:45], Y[30:45], X[45:], Y[45:]
    data = Dataset.from_splits(*parts, classes=["a", "b", "c"], name="mine")
    mean, std = X[:30].mean(0), X[:30].std(0)
    for split, x, y in zip(("train", "val", "test"), parts[::2], parts[1::2]):
        np.testing.assert_allclose(data.split(split).x, (x - mean) / std, rtol=1e-5, atol=1e-6)
        assert data.split(split).y.tolist() == y.tolist()
    assert (data.name, data.classes) == ("mine", ("a", "b", "c"))
    drawn = Dataset.from_splits(X[:45], Y[:45], None, None, X[45:], Y[45:])
    assert [len(drawn.split(s).x) for s in ("train", "val", "test")] == [41, 4, 15]
    np.testing.assert_allclose(drawn.x_test.std(0), X[45:].std(0) / X[:45].std(0), rtol=0.2)


def test_a_class_that_a_split_of_ones_own_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    parts = X[:30], Y[:30], X[30:45], Y[30:45]
    data = Dataset.from_splits(*parts, X[45:], np.minimum(Y[45:], 1))
    assert data.notes == ("no test row is of class 2",)
    assert [record.getMessage() for record in caplog.records] == [
        "splits: no test row is of class 2"
    ]
    with pytest.raises(LabkitError, match="y: no train row is of class 2"):
        Dataset.from_splits(X[:30], np.minimum(Y[:30], 1), *parts[2:], X[45:], Y[45:])
    with pytest.raises(LabkitError, match="x_val, x_test: expected the features of x_train"):
        Dataset.from_splits(*parts, X[45:, :2], Y[45:])


def test_the_rarest_class_has_a_row_in_every_split() -> None:
    y = np.where(np.arange(1000) < 3, "rare", np.array(["a", "b"])[np.arange(1000) % 2])
    for seed in range(5):
        data = Dataset.from_arrays(np.arange(2000.0).reshape(1000, 2), y, seed=seed)
        rare = data.classes.index("rare")
        counts = [(data.split(s).y == rare).sum().item() for s in ("train", "val", "test")]
        assert counts == [1, 1, 1]
        assert len(set(all_rows(data)[0][:, 0].tolist())) == 1000  # each row once


def test_rows_of_a_group_are_in_one_split() -> None:
    patient = np.arange(300) // 6
    y = np.arange(300) % 3
    data = Dataset.from_arrays(np.stack([patient, np.arange(300)], axis=1), y, groups=patient)
    seen = [set(data.split(s).x[:, 0].tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 50
    assert {len(data.x_val), len(data.x_test)} <= {*range(20, 41)}
    with pytest.raises(LabkitError, match=r"groups: expected one a row, got shape \(299,\)"):
        Dataset.from_arrays(X, Y, groups=patient[1:])
    with pytest.raises(LabkitError, match="groups: 1 are too few to split"):
        Dataset.from_arrays(X, Y, groups=[0] * N)


def test_the_card_has_counts_chance_level_ranges_and_what_was_done() -> None:
    y = np.where(np.arange(200) < 150, "often", "seldom")
    table = pd.DataFrame({"age": np.arange(200) / 2, "sex": ["f", "m"] * 100})
    card = Dataset.from_arrays(table, y, name="people").describe()
    assert card.splitlines() == [
        "Dataset(people: 160 training, 20 validation and 20 test rows of shape (3,), 2 classes)",
        "chance level 0.750, by one class for all",
        "class: training + validation + test rows",
        "  often: 120 + 15 + 15",
        "  seldom: 40 + 5 + 5",
        "feature: range before standardising",
        "  age: 0 to 99.5",
        "  sex_f: 0 to 1",
        "  sex_m: 0 to 1",
        "note: one-hot: 'sex'",
    ]
    assert "  all: -" in Dataset.from_arrays(IMAGES[:, None], Y).describe()
