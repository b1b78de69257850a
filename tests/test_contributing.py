"""Each recipe of CONTRIBUTING.md, run as it stands there."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labkit import Dataset, channel_multiplier_transform_pass, get_model, search, total_cost
from labkit.operators import operator_of
from labkit.study import RUNNERS, Results
from labkit.study.space import SPACES
from labkit.transform import MODELS, find_channels
from tests.conftest import ROOT


@pytest.fixture
def recipe() -> Iterator[Any]:
    """Runs the code below a heading, and gives its names; what it registers is taken out."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables: list[dict[str, Any]] = [RUNNERS, SPACES, MODELS]
    before = [dict(table) for table in tables]

    def run(heading: str, **names: Any) -> dict[str, Any]:
        found = re.search(rf"### {heading}\n.*?```python\n(.*?)```", text, flags=re.DOTALL)
        assert found is not None
        exec(compile(found[1], "CONTRIBUTING.md", "exec"), names)
        return names

    yield run
    for table, known in zip(tables, before):
        table.clear()
        table.update(known)


def searched(blobs: Dataset, model: nn.Module | None = None, **options: Any) -> Results:
    model = model or nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
    known: dict[str, Any] = {"widths": [1, 2], "trials": 2, "epochs": 1, "progress": False}
    return search(model=model, data=blobs, **(known | options))


def test_an_operator(recipe: Any, blobs: Dataset) -> None:
    low_rank = recipe("An operator")["LowRank"]
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), low_rank(8, 6), nn.ReLU(), nn.Linear(6, 5))
    assert operator_of(model[2]) is not None
    assert [group.width for group in find_channels(model).free] == [8, 6]
    twice = {"config": {"name": "output_only", "channel_multiplier": 2}}
    config = {"by": "name", "default": {"config": {"name": None}}, "_0": twice, "_2": twice}
    x = torch.randn(3, 16)
    wider, info = channel_multiplier_transform_pass(
        model, config, example_input=x, weights="keep", strict=True
    )
    assert (wider[2].n_in, wider[2].n_out) == (16, 12)
    torch.testing.assert_close(wider(x), model(x))
    assert info.inexact == ()
    assert total_cost(wider).total_flops == 16 * 16 + 16 + 2 * (16 + 12) + 12 + 12 * 5
    assert len(searched(blobs, model).networks) > 0


def test_a_runner(recipe: Any, blobs: Dataset) -> None:
    recipe("A metric, a runner")
    results = searched(blobs, objectives={"accuracy": "maximize", "joules": "minimize"})
    flops = [trial.record.metrics["joules"] / 1e-9 for trial in results.records]
    assert set(np.round(flops)) <= {16 * 8 + 8 + 8 * 5, 16 * 16 + 16 + 16 * 5}


def test_an_executor(recipe: Any, blobs: Dataset) -> None:
    executor = recipe("An executor")["OneByOne"]()
    one, other = searched(blobs, executor=executor), searched(blobs)
    assert one.trials["network"].tolist() == other.trials["network"].tolist()
    assert one.trials["accuracy"].tolist() == pytest.approx(other.trials["accuracy"].tolist())


def test_a_space(recipe: Any, blobs: Dataset) -> None:
    recipe("A space")
    tables = {
        "search": {
            "search_space": {"name": "halves", "seed": {"divisors": [1, 2, 4]}},
            "strategy": {
                "sw_runner": {"basic_computations": {}},
                "setup": {"sampler": "bruteforce"},
                "metrics": {"total_flops": {"direction": "minimize"}},
            },
        }
    }
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
    results = search(tables, model=model, data=blobs, progress=False)
    assert sorted(results.trials["network"]) == ["_0: 2", "_0: 4", "_0: 8"]


def test_a_network_and_a_data_set(recipe: Any) -> None:
    rng = np.random.default_rng(0)
    names = recipe("A network, a data set", x=rng.normal(size=(60, 2)), y=np.arange(60) % 2)
    assert get_model("wide-mlp")[0].out_features == 99
    assert names["spirals"]().name == "spirals"
