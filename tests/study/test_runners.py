"""Runners: a user's own, and what may be a metric."""

import itertools
import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.record import Candidate, Outcome
from labkit.study.runners import (
    RUNNERS,
    BasicComputationsSettings,
    BasicEvaluationSettings,
    BasicTrainSettings,
    CandidateNetwork,
    LatencySettings,
    RunnerSettings,
    get_runner,
    register_runner,
    summary,
)
from labkit.study.search import Search, search
from labkit.training import evaluate
from labkit.transform import Plan, find_channels, initialise, total_cost


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers is taken out after it."""
    before = dict(RUNNERS)
    yield
    RUNNERS.clear()
    RUNNERS.update(before)


class EnergySettings(RunnerSettings):
    """Settings of a runner of one's own."""

    joules_a_flop: float = 1e-9


def test_a_runner_of_ones_own(tables: dict[str, Any], blobs: Dataset) -> None:
    @register_runner("energy", EnergySettings, metrics=["joules"])
    def energy(candidate: CandidateNetwork, settings: EnergySettings) -> dict[str, float]:
        return {"joules": settings.joules_a_flop * total_cost(candidate.model).total_flops}

    strategy = tables["search"]["strategy"]
    strategy["hw_runner"]["energy"] = {"joules_a_flop": 2.0}
    strategy["metrics"] = {
        "loss": {"direction": "minimize"},
        "joules": {"direction": "minimize", "scale": 0.5},
    }
    for trial in Search(tables, data=blobs).run(progress=False).records:
        flops = trial.record.software_metrics["total_flops"]
        assert trial.record.hardware_metrics == {"joules": 2 * flops}
        assert trial.values is not None
        assert trial.values[1] == flops


def constant_search(tables: dict[str, Any], blobs: Dataset, value: Any, n: int = 2) -> Any:
    @register_runner("constant", metrics=["mine"])
    def constant(candidate: CandidateNetwork, settings: RunnerSettings) -> Any:
        if isinstance(value, Exception):
            raise value
        return {"mine": value} if not isinstance(value, list) else value

    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"basic_computations": {}, "constant": {}}
    strategy["hw_runner"] = {}
    strategy["metrics"] = {
        "mine": {"direction": "maximize"}, "total_flops": {"direction": "minimize"}
    }  # fmt: skip
    strategy["setup"]["n_trials"] = n
    return search(tables, data=blobs, progress=False)


@pytest.mark.parametrize(
    "value",
    [torch.tensor(0.5), torch.tensor([[0.5]]), np.float32(0.5), np.array([0.5]), 0.5,
     torch.tensor(0.5, requires_grad=True)],
    ids=repr,
)  # fmt: skip
def test_a_metric_may_be_any_kind_of_number(
    tables: dict[str, Any], blobs: Dataset, value: Any
) -> None:
    found = constant_search(tables, blobs, value).trials["mine"]
    assert found.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "constant: mine: expected a finite number, got None"),
        ("0.5", "constant: mine: expected a finite number, got '0.5'"),
        (math.nan, "got nan"),
        (-math.inf, "got -inf"),
        (torch.tensor([1.0, 2.0]), "got tensor"),
        (torch.tensor(float("nan")), "expected a finite number"),
        (True, "got True"),
        (1j, "got 1j"),
        (10**400, "got 1000"),
        ([], r"constant: expected a table of metrics, got \[\]"),
        (ZeroDivisionError("oh"), "constant: ZeroDivisionError: oh"),
    ],
    ids=repr,
)
def test_what_is_no_metric_fails_its_trial_and_is_named(
    tables: dict[str, Any], blobs: Dataset, value: Any, said: str
) -> None:
    results = constant_search(tables, blobs, value)
    assert len(results.trials) == 2
    assert results.trials["failure"].str.contains(said).all()
    assert {t.record.failure.kind for t in results.records} == {"runner"}
    assert results.front.empty


def test_a_scaled_metric_is_finite_too(tables: dict[str, Any], blobs: Dataset) -> None:
    strategy = tables["search"]["strategy"]
    strategy["metrics"]["total_flops"]["scale"] = 1e308
    results = search(tables, data=blobs, progress=False)
    assert results.trials["failure"].str.contains("a scaled metric, or the sum: .* got inf").all()


@pytest.mark.parametrize("name", ["seconds", "number", "network", 3])
def test_a_metric_may_not_be_named_as_a_column(
    tables: dict[str, Any], blobs: Dataset, name: Any
) -> None:
    with pytest.raises(LabkitError, match=f"constant: expected another name .* {name!r}"):
        register_runner("constant", metrics=[name])

    @register_runner("constant", metrics=["mine"])
    def constant(candidate: CandidateNetwork, settings: RunnerSettings) -> Any:
        return {"mine": 1.0, name: 2.0}

    tables["search"]["strategy"]["sw_runner"]["constant"] = {}
    results = search(tables, data=blobs, progress=False)
    assert results.trials["failure"].str.contains("constant: expected another name").all()


def test_an_objective_that_its_runner_does_not_return_is_named(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    @register_runner("forgetful", metrics=["mine"])
    def forgetful(candidate: CandidateNetwork, settings: RunnerSettings) -> dict[str, float]:
        return {"min": 1.0}

    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"forgetful": {}}
    strategy["metrics"] = {"mine": {"direction": "maximize"}}
    strategy["setup"]["n_trials"] = 1
    (trial,) = search(tables, data=blobs, progress=False).records
    assert trial.record.failure is not None
    assert trial.record.failure.message == "mine: no runner returned this metric"


def test_a_metric_that_is_nan_once_is_never_on_a_front(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    @register_runner("sometimes", metrics=["mine"])
    def sometimes(candidate: CandidateNetwork, settings: RunnerSettings) -> dict[str, float]:
        width = candidate.plan.to_dict()["seq_blocks_2"]
        return {"mine": math.nan if width == 8 else float(width)}

    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"sometimes": {}, "basic_computations": {}}
    strategy["metrics"] = {
        "mine": {"direction": "maximize"}, "total_flops": {"direction": "minimize"}
    }  # fmt: skip
    strategy["setup"] |= {"n_trials": 16, "sampler": "bruteforce"}
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert (results.trials["state"] == "FAIL").sum() == 4
    assert results.front["mine"].tolist() != []
    assert np.isfinite(results.front["mine"]).all()
    for name in ("log.json", "best.json"):
        assert "NaN" not in (tmp_path / name).read_text()


def test_a_runner_may_be_named_by_its_module(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_runner.py").write_text(
        "from labkit import register_runner\n\n\n"
        "@register_runner('depth', metrics=['layers'])\n"
        "def depth(candidate, settings):\n"
        "    return {'layers': len(list(candidate.model.modules()))}\n\n\n"
        "def not_registered(candidate, settings):\n    return {}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_runner", raising=False)
    strategy = tables["search"]["strategy"]
    strategy["hw_runner"] = {"own_runner:depth": {}}
    strategy["setup"]["n_trials"] = 1
    results = search(tables, data=blobs, progress=False)
    assert results.trials["layers"].tolist() == [13]
    with pytest.raises(LabkitError, match="own_runner:not_registered' to be a function with @reg"):
        get_runner("hw_runner", "own_runner:not_registered")


def test_a_network_is_built_when_a_runner_first_asks_for_it(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"basic_computations": {}}
    strategy["metrics"] = {"parameters": {"direction": "maximize"}}
    monkeypatch.setattr("labkit.study.runners.apply", lambda *_, **__: pytest.fail("built"))
    results = search(tables, data=blobs, progress=False)
    assert len(results.front) == 1


def test_a_summary_is_means_and_a_standard_deviation() -> None:
    found = summary([{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.7, "loss": 3.0}])
    assert found == pytest.approx({"accuracy": 0.6, "loss": 2, "accuracy_std": 0.02**0.5})
    assert "accuracy_std" not in summary([{"accuracy": 0.5}])


def test_the_models_weights_are_those_that_were_trained(blobs: Dataset) -> None:
    seen: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    @register_runner("look", metrics=["zero"])
    def look(candidate: CandidateNetwork, settings: RunnerSettings) -> dict[str, float]:
        seen.append((candidate.model, candidate.outcomes[0].weights))
        return {"zero": 0.0}

    model = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5))
    objectives = {"accuracy": "maximize", "zero": "minimize"}
    search(
        model=model, data=blobs, widths=[1, 2], trials=2, epochs=1, objectives=objectives,
        progress=False,
    )  # fmt: skip
    assert seen
    for network, weights in seen:
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[name])


def candidate(data: Dataset, **options: Any) -> CandidateNetwork:
    """A network that counts its forward passes."""
    model = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5))
    channels = find_channels(model, data.x_val[:1])
    return CandidateNetwork(Plan((("_0", 6),)), channels, model, data, **options)


def test_latency_is_the_median_of_the_later_passes(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: two passes that are not counted, then 21 milliseconds 1 to 21."""
    takes = [1.0, 1.0, *(1e-3 * (21 - i) for i in range(21))]
    ticks = itertools.accumulate(x for seconds in takes for x in (10.0, seconds))
    monkeypatch.setattr("labkit.study.runners.time.perf_counter", lambda: next(ticks))
    timed = candidate(blobs)
    rows: list[int] = []
    timed.model.train().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    metrics = RUNNERS["latency"].run(timed, LatencySettings(batch_size=3, repeats=21))
    assert metrics == {"latency": pytest.approx(11)}
    assert rows == [3] * 23
    assert not timed.model.training
    assert next(ticks, None) is None
    assert LatencySettings() == LatencySettings(batch_size=1, repeats=200)


@pytest.mark.parametrize("split", ["val", "train"])
@pytest.mark.parametrize("n", [None, 1, 30])
def test_a_checkpoint_is_evaluated_on_as_many_rows_of_a_split(
    blobs: Dataset, tmp_path: Path, split: Any, n: int | None
) -> None:
    judged = candidate(blobs, checkpoint=tmp_path / "own.pt")
    torch.save(judged.original.state_dict(), judged.checkpoint)
    settings = BasicEvaluationSettings(data_loader=f"{split}_dataloader", num_samples=n)
    x, y = blobs.split(split)
    expected = evaluate(judged.original, x[:n], y[:n])
    assert RUNNERS["basic_evaluation"].run(judged, settings) == expected
    with pytest.raises(LabkitError, match="load_name: basic_evaluation needs the path"):
        RUNNERS["basic_evaluation"].run(candidate(blobs), settings)


@pytest.mark.parametrize(
    ("convention", "own", "batch"),
    [
        ("inference", None, 1),
        ("training", None, 64),
        ("reference", None, 64),
        ("inference", 8, 8),
        ("training", 8, 8),
    ],
)
def test_a_sample_is_counted_or_a_batch(
    blobs: Dataset, convention: Any, own: int | None, batch: int
) -> None:
    settings = BasicComputationsSettings(convention=convention, precision=4, batch_size=own)
    counted = candidate(blobs, batch_size=64)
    cost = total_cost(counted.model, batch_size=batch, convention=convention, precision=4)
    assert RUNNERS["basic_computations"].run(counted, settings) == {
        "total_flops": cost.total_flops,
        "total_bitops": cost.total_bitops,
        "parameters": cost.parameters,
    }


def test_a_candidate_is_built_with_the_weights_of_its_first_training(blobs: Dataset) -> None:
    plain = candidate(blobs)
    outcomes = [
        Outcome(Candidate(plain.plan, seed), weights=initialise(plain.model, seed).state_dict())
        for seed in (3, 4)
    ]
    outcomes = pickle.loads(pickle.dumps(outcomes))  # as from a worker, without the network
    weights = initialise(plain.model, 3).state_dict()
    built = candidate(blobs, outcomes=outcomes).model
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, outcomes[0].weights[name])
        assert tensor.shape == weights[name].shape


def test_the_smallest_settings_are_taken_and_smaller_ones_are_not() -> None:
    assert BasicTrainSettings().replicates == 1
    assert BasicTrainSettings().weights == "fresh"
    assert BasicComputationsSettings().precision == 32
    for kind, key in (
        (BasicTrainSettings, "replicates"),
        (BasicEvaluationSettings, "num_samples"),
        (BasicComputationsSettings, "precision"),
        (BasicComputationsSettings, "batch_size"),
        (LatencySettings, "batch_size"),
        (LatencySettings, "repeats"),
    ):
        assert getattr(kind.model_validate({key: 1}), key) == 1
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            kind.model_validate({key: 0})
        with pytest.raises(ValidationError, match="frozen"):
            setattr(kind(), key, 1)
        with pytest.raises(ValidationError, match="Extra inputs"):
            kind.model_validate({"other": 1})
