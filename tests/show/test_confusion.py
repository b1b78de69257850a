"""Confusion matrices against scikit-learn's."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.plots import confusion_matrix


def test_shares_are_those_of_scikit_learn(blobs: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5), nn.Dropout())
    figure = confusion_matrix(model, blobs.x_val, blobs.y_val, blobs.classes)
    said = model.eval()(blobs.x_val).argmax(1)
    expected = sklearn.metrics.confusion_matrix(blobs.y_val, said, normalize="true")
    assert np.allclose(figure.data[0].z, expected)
    assert f"{sklearn.metrics.accuracy_score(blobs.y_val, said):.3f}" in figure.to_json()
    assert list(figure.data[0].y) == [str(name) for name in blobs.classes]


def test_one_logit_is_of_two_classes(blobs: Dataset) -> None:
    torch.manual_seed(0)
    model, y = nn.Linear(16, 1), (blobs.y_val > 2).long()
    said = model(blobs.x_val)[:, 0] > 0
    expected = sklearn.metrics.confusion_matrix(y, said, normalize="true")
    figure = confusion_matrix(model, blobs.x_val, y, ["low", "high"])
    assert np.allclose(figure.data[0].z, expected)


def test_a_class_without_rows_has_no_shares(blobs: Dataset) -> None:
    some = blobs.y_val > 0
    figure = confusion_matrix(nn.Linear(16, 5), blobs.x_val[some], blobs.y_val[some], "abcde")
    assert list(figure.data[0].z[0]) == [0] * 5


def test_what_does_not_fit_is_a_sentence(blobs: Dataset) -> None:
    x, y = blobs.x_val, blobs.y_val
    with pytest.raises(LabkitError, match="^model: it does not take these rows"):
        confusion_matrix(nn.Linear(3, 5), x, y, blobs.classes)
    with pytest.raises(LabkitError, match="^model: it does not take these rows"):
        confusion_matrix(nn.Linear(16, 4), x, y, blobs.classes)
    with pytest.raises(LabkitError, match="^classes: expected 5 names, got 2"):
        confusion_matrix(nn.Linear(16, 5), x, y, ["a", "b"])
