"""Spaces, runners and operators of one's own, named in the tables."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.operators import base, operator_of
from labkit.study.search import Search
from labkit.transform import get_model, initialise

OWN = """
import math
import torch
from torch import nn
from labkit.operators import IN, OUT, Layer, width
from labkit.study import ChannelMultiplierSpace
from labkit import register_runner


class Bilinear(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.matrix = nn.Parameter(torch.randn(n_out, n_in))

    def forward(self, x):
        return x @ self.matrix.T


class BilinearOperator(Layer):
    modules = (Bilinear,)
    scalable = True
    tensors = {"matrix": (OUT, IN)}
    attributes = {"n_in": IN, "n_out": OUT}

    def sides(self, module):
        return width(module.n_in), width(module.n_out)

    def flops(self, node, module, read, written):
        return math.prod(written) * read[0][-1]


class Space(ChannelMultiplierSpace):
    pass


@register_runner("size", metrics=["layers"])
def size(candidate, settings):
    return {"layers": len(list(candidate.model.modules()))}


def network():
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), Bilinear(8, 5))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's, beside the configuration."""
    before = dict(base._modules)
    (tmp_path / "own_things.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_things", raising=False)
    yield
    base._modules.clear()
    base._modules.update(before)


@pytest.mark.usefixtures("own")
def test_everything_of_ones_own_is_named_in_the_tables(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    path = list(sys.path)
    tables |= {"model": "own_things:network", "operators": ["own_things:BilinearOperator"]}
    tables["search"]["search_space"] = {
        "name": "own_things:Space", "setup": {"by": "name"},
        "seed": {"default": {"config": {"channel_multiplier": [1, 2]}}},
    }  # fmt: skip
    tables["search"]["strategy"]["hw_runner"] = {"own_things:size": {}}
    run = Search(tables, data=blobs, trials=2)
    assert [group.width for group in run.space.channels.free] == [8]
    results = run.run(progress=False)
    assert results.trials["layers"].tolist() == [4, 4]
    assert results.trials["total_flops"][0] in (16 * 8 + 8 + 8 * 5, 16 * 16 + 16 + 16 * 5)
    assert sys.path == path
    assert operator_of(run.experiment.model[2]) is not None
    task = pickle.dumps(run.experiment.task)
    del base._modules[type(run.experiment.model[2])]  # as in another process
    assert [group.width for group in pickle.loads(task).channels.free] == [8]
    with pytest.raises(LabkitError, match="operators: cannot import 'own_things:Nothing'"):
        Search(tables | {"operators": ["own_things:Nothing"]}, data=blobs)
    with pytest.raises(LabkitError, match="expected a subclass of Operator"):
        Search(tables | {"operators": ["own_things:Space"]}, data=blobs)


def test_a_network_without_a_free_width_is_refused_before_it_trains(blobs: Dataset) -> None:
    """Nothing is searched, and it is said why."""
    model = nn.Sequential(nn.Linear(16, 5))
    with pytest.raises(LabkitError, match="there is nothing to search, since no width can change"):
        Search(model=model, data=blobs)
    with pytest.raises(LabkitError, match="config: without one, a search needs model= and data="):
        Search(data=blobs)


@pytest.mark.usefixtures("own")
def test_an_operator_that_was_edited_is_another_study(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    """Since it counts the FLOPs."""
    tables |= {"model": "own_things:network", "operators": ["own_things:BilinearOperator"]}
    tables["search"]["search_space"] = {
        "name": "own_things:Space", "setup": {"by": "name"},
        "seed": {"default": {"config": {"channel_multiplier": [1, 2]}}},
    }  # fmt: skip
    Search(tables, data=blobs, folder=tmp_path / "out")
    (tmp_path / "own_things.py").write_text(OWN.replace("* read[0][-1]", "* 3"))
    del sys.modules["own_things"]
    with pytest.raises(LabkitError, match="operator 'BilinearOperator' changed"):
        Search(tables, data=blobs, folder=tmp_path / "out")


def test_another_checkpoint_under_the_same_name_is_another_study(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    tables |= {"load_name": str(path)}
    tables["search"]["strategy"]["sw_runner"] = {"basic_evaluation": {}, "basic_computations": {}}
    save_file(initialise(get_model("jsc-toy"), 0).state_dict(), path)
    for _ in range(2):
        Search(tables, data=blobs, folder=tmp_path / "out")
    save_file(initialise(get_model("jsc-toy"), 1).state_dict(), path)
    with pytest.raises(LabkitError, match="^load_name: .* which changed"):
        Search(tables, data=blobs, folder=tmp_path / "out")
