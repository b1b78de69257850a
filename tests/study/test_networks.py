"""The networks of a front, kept in files or in memory."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.study.config import load_config, simple_tables
from labkit.study.files import write_config
from labkit.study.networks import FrontNetworks, load_best, saved_networks
from labkit.study.record import Candidate, Outcome, Record
from labkit.study.results import Results
from labkit.study.verification import verify
from labkit.transform import Plan, apply, find_channels
from tests.study.conftest import trial

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
CHANNELS = find_channels(MODEL)


def keep(folder: Path | None, *accuracies: float | None) -> tuple[FrontNetworks, list[nn.Module]]:
    """Keeps a network of another width for each accuracy; one may have been given none."""
    kept = FrontNetworks(folder, MODEL, CHANNELS, (3,))
    networks = []
    for number, accuracy in enumerate(accuracies):
        plan = Plan((("_0", number + 1),))
        networks.append(apply(MODEL, plan, channels=CHANNELS).eval())
        metrics = {} if accuracy is None else {"accuracy": accuracy}
        record = Record(
            widths=plan.to_dict(), software_metrics=metrics, hardware_metrics={"latency": 2.0}
        )
        kept.keep(
            number,
            record,
            Outcome(Candidate(plan, 0), weights=networks[-1].state_dict(), threads=2),
        )
    return kept, networks


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_opens_as_it_was(tmp_path: Path, in_memory: bool) -> None:
    kept, networks = keep(None if in_memory else tmp_path, 0.5, 0.75, 0.625)
    x = torch.randn(5, 3)
    for number, network in enumerate(networks):
        opened = kept.open(number)
        assert not opened.training
        assert torch.equal(opened(x), network(x))


def test_the_most_accurate_is_the_best(tmp_path: Path) -> None:
    keep(tmp_path, 0.5, None, 0.75, 0.625)
    assert saved_networks(tmp_path) == {0, 1, 2, 3}
    assert load_best(tmp_path, model=MODEL)[0].out_features == 3
    with pytest.raises(LabkitError, match=r"trial 4 is not on the front; .* \[0, 1, 2, 3\]"):
        load_best(tmp_path, 4, model=MODEL)
    # What has no accuracy is never preferred, even to one that has 0.
    (tmp_path / "other").mkdir()
    keep(tmp_path / "other", 0.25, None)
    assert load_best(tmp_path / "other", model=MODEL)[0].out_features == 1


def test_a_plan_lies_beside_its_weights(tmp_path: Path) -> None:
    keep(tmp_path, 0.5)
    assert json.loads((tmp_path / "best" / "trial_0.json").read_text()) == {
        "number": 0,
        "plan": {"_0": 1},
        "input_shape": [3],
        "software_metrics": {"accuracy": 0.5},
        "hardware_metrics": {"latency": 2.0},
        "threads": 2,
        "stack": [],
    }


def test_what_leaves_the_front_leaves_no_file(tmp_path: Path) -> None:
    kept, _ = keep(tmp_path, 0.5, 0.75)
    kept.drop_others([1])
    names = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert names == ["trial_1.json", "trial_1.safetensors"]
    (tmp_path / "best" / "trial_0.json").touch()  # of a kill while it was dropped
    kept.drop_others([1])
    assert not (tmp_path / "best" / "trial_0.json").exists()
    kept.drop_others([])
    with pytest.raises(LabkitError, match="holds no trained networks"):
        load_best(tmp_path)


def test_one_bad_description_hides_no_other_network(tmp_path: Path) -> None:
    keep(tmp_path, 0.5, 0.75)
    (tmp_path / "best" / "trial_1.json").write_text('{"cut in the midd')
    (tmp_path / "best" / "trial_x.safetensors").touch()
    assert load_best(tmp_path, model=MODEL)[0].out_features == 1
    with pytest.raises(LabkitError, match=r"^trial_1\.json: Invalid JSON"):
        load_best(tmp_path, 1, model=MODEL)


@pytest.mark.parametrize(
    "fault", ["deleted", "cut", "of another network", "description cut", "pipe", "terabytes"]
)
def test_what_is_not_whole_is_missing(tmp_path: Path, fault: str) -> None:
    kept, _ = keep(tmp_path, 0.5, 0.75)
    front = [
        trial(number, (accuracy, 1.0), {"_0": number + 1}, history=[{"accuracy": accuracy}])
        for number, accuracy in enumerate((0.5, 0.75))
    ]
    assert kept.missing(front) == []
    weights = tmp_path / "best" / "trial_1.safetensors"
    match fault:
        case "deleted":
            weights.unlink()
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "of another network":
            (tmp_path / "best" / "trial_1.json").write_bytes(
                (tmp_path / "best" / "trial_0.json").read_bytes()
            )
        case "pipe":
            weights.unlink()
            os.mkfifo(weights)
        case "terabytes":
            os.truncate(weights, 12 * 10**12)
        case "description cut":
            (tmp_path / "best" / "trial_1.json").write_text("{")
    assert kept.missing(front) == front[1:]
    in_memory, _ = keep(None)
    assert in_memory.missing(front) == []  # it opens what it trained itself


def test_a_module_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    keep(tmp_path, 0.5)
    write_config(load_config({"model": "Net", "dataset": "rows", **simple_tables([1])}), tmp_path)
    with pytest.raises(LabkitError, match="unknown network 'Net'.*; a module of one's own"):
        load_best(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"plan": {"_0": 2 * 10**8}},
            "plan: _0: expected a positive multiple of 1, at most 1048576",
        ),
        ({"plan": {"_0": "wide"}}, r"trial_0\.json\.plan\._0: expected a valid integer"),
        ({"plan": [1]}, r"trial_0\.json\.plan: expected"),
        ({"input_shape": [10**9, 10**9]}, "input_shape: one row takes 4,000,000,000.0 GB"),
        ({"input_shape": [-3]}, r"trial_0\.json\.input_shape\.0: expected greater than 0"),
    ],
)
def test_a_description_is_checked_before_it_is_built(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    keep(tmp_path, 0.75, 0.5)
    path = tmp_path / "best" / "trial_0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LabkitError, match=message):
        FrontNetworks(tmp_path, MODEL, CHANNELS, (3,)).open(0)
    assert load_best(tmp_path, 1, model=MODEL)[0].out_features == 2


@pytest.mark.parametrize("folder", [None, 5, ["a"], "x" * 5_000])
def test_a_folder_is_a_path(folder: object) -> None:
    with pytest.raises(LabkitError, match="^folder: expected a path, got"):
        load_best(folder)
    with pytest.raises(LabkitError, match="^folder: expected a path, got"):
        verify(folder)
    with pytest.raises(LabkitError, match="^study: expected one of Optuna's, got"):
        Results.from_study(folder)
