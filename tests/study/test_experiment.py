"""What a configuration names, found and checked."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.config import load_config
from labkit.study.experiment import Experiment
from labkit.study.record import Candidate, Failure, FailureKind, Outcome, Source
from labkit.transform import Plan, get_model


def experiment(tables: dict[str, Any], blobs: Dataset, **options: Any) -> Experiment:
    return Experiment(load_config(tables), data=blobs, **options)


@pytest.mark.parametrize(("replicates", "seeds"), [(1, [42]), (3, [42, 43, 44])])
def test_a_seed_a_replicate(
    tables: dict[str, Any], blobs: Dataset, replicates: int, seeds: list[int]
) -> None:
    tables["search"]["strategy"]["sw_runner"]["basic_train"]["replicates"] = replicates
    assert list(experiment(tables, blobs).seeds) == seeds


def test_without_training_there_is_one_seed(tables: dict[str, Any], blobs: Dataset) -> None:
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"basic_computations": {}}
    strategy["metrics"] = {"total_flops": {"direction": "minimize"}}
    found = experiment(tables, blobs)
    assert found.training is None
    assert list(found.seeds) == [42]


@pytest.mark.parametrize(
    ("accelerator", "there_is", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("gpu", True, "cuda"),
     ("cuda", True, "cuda"), ("cuda", False, None), ("gpu", False, None)],
)  # fmt: skip
def test_the_accelerator_names_a_device(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, there_is: bool, expected: str | None
) -> None:
    from labkit.study.executor import device_of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is)
    if expected is None:
        with pytest.raises(LabkitError, match=f"accelerator: '{accelerator}' needs a CUDA device"):
            device_of(accelerator)
    else:
        assert device_of(accelerator) == torch.device(expected)


def test_a_study_says_what_every_figure_must(tables: dict[str, Any], blobs: Dataset) -> None:
    said = experiment(tables, blobs).description()
    assert said.about == {
        "model": "jsc-toy",
        "dataset": "blobs",
        "seed": 42,
        "convention": "inference",
        "input_shape": [16],
        "original": {"seq_blocks_2": 8, "seq_blocks_5": 8},
    }
    assert said.directions == said.objectives
    tables["search"]["strategy"]["setup"]["direction"] = "minimize"  # of no sum: it is not used
    assert experiment(tables, blobs).description().directions == said.directions
    tables["search"]["strategy"]["setup"]["sum_scaled_metrics"] = True
    summed = experiment(tables, blobs).description()
    assert summed.directions == {"sum of scaled metrics": "minimize"}
    assert summed.objectives == said.objectives


def test_a_larger_budget_is_the_same_study(tables: dict[str, Any], blobs: Dataset) -> None:
    before = experiment(tables, blobs).description().identity
    tables["search"]["strategy"]["setup"] |= {
        "n_trials": 99, "timeout": 9.0, "n_jobs": 3, "sampler": "random", "workers": 4,
    }  # fmt: skip
    assert experiment(tables, blobs).description().identity == before
    assert set(before.definitions) == {
        *tables["search"]["strategy"]["sw_runner"], *tables["search"]["strategy"]["hw_runner"],
        "transform/linear_channel_multiplier",
    }  # fmt: skip
    tables["batch_size"] = 77
    after = experiment(tables, blobs).description().identity
    assert after.network == before.network  # its weights are fresh, whatever they are now
    assert after.settings["batch_size"] == 77


def test_weights_belong_to_a_study_that_starts_from_them(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    model = get_model("jsc-toy")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(get_model("jsc-toy").state_dict(), tmp_path / "other.pt")
    tables["load_name"] = str(tmp_path / "other.pt")
    fresh = experiment(tables, blobs, model=model)
    tables["search"]["strategy"]["sw_runner"]["basic_train"]["weights"] = "keep"
    kept = experiment(tables, blobs, model=model)
    assert fresh.task.weights == "fresh"
    assert kept.task.weights == "keep"
    assert set(fresh.description().identity.network) < set(kept.description().identity.network)
    for name, tensor in model.state_dict().items():  # the user's own is as it was
        assert torch.equal(tensor, before[name])
    loaded = torch.load(tmp_path / "other.pt")
    assert torch.equal(next(iter(kept.model.state_dict().values())), next(iter(loaded.values())))


def test_a_record_is_of_all_runners(tables: dict[str, Any], blobs: Dataset) -> None:
    tables["search"]["strategy"]["metrics"]["total_flops"]["scale"] = 0.5
    made = experiment(tables, blobs)
    plan = Plan((("seq_blocks_2", 8), ("seq_blocks_5", 16)))
    histories = [[{"accuracy": a, "loss": 1.0}, {"accuracy": b, "loss": 0.5}]
                 for a, b in ((0.1, 0.5), (0.2, 0.7))]  # fmt: skip
    outcomes = [Outcome(Candidate(plan, i), history) for i, history in enumerate(histories)]
    record = made.measure(plan, outcomes)
    assert record.source == Source.TRAINED
    assert record.trained_in is None  # known when it is told
    assert record.history == histories[0]
    assert record.replicates == [histories[0][-1], histories[1][-1]]
    assert record.software_metrics["accuracy"] == pytest.approx(0.6)
    flops = record.software_metrics["total_flops"]
    assert record.scaled_metrics == {"accuracy": pytest.approx(0.6), "total_flops": flops / 2}
    failure = Failure(kind=FailureKind.DIVERGED, message="why")
    failed = made.measure(plan, [*outcomes, Outcome(Candidate(plan, 2), failure=failure)])
    assert failed.failure == failure
    assert failed.source is None
    assert failed.metrics == {}
    assert failed.widths == plan.to_dict()


def test_what_is_known_of_a_network_is_what_is_measured_of_it(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    strategy = tables["search"]["strategy"]
    strategy["metrics"]["parameters"] = {"direction": "minimize", "scale": 0.5}
    one = experiment(tables, blobs)
    plan = next(iter(one.space.networks))
    accuracy, *costs = one.known_values(plan)
    assert math.isnan(accuracy)
    metrics = {"accuracy": 0.5}
    values = one.values(one.measure(plan, [Outcome(Candidate(plan, 0), [metrics])]))
    assert values == [0.5, *costs]
    strategy["setup"] |= {"sum_scaled_metrics": True, "direction": "maximize"}
    assert [*map(math.isnan, experiment(tables, blobs).known_values(plan))] == [True]


def test_a_data_set_and_weights_are_needed(tables: dict[str, Any], blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match=r"^data: expected a Dataset, got \[1\]"):
        Experiment(load_config(tables), data=[1])
    with pytest.raises(LabkitError, match=r"^model: it cannot be trained: .*meta"):
        Experiment(load_config(tables), torch.nn.Linear(16, 5, device="meta"), blobs)
