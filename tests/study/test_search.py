"""The search: what it trains and looks up, records, leaves behind, and continues."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

from labkit import LabkitError, Search, load_best, search
from labkit.data.dataset import Dataset
from labkit.show.plots import pareto_front
from labkit.study.results import Results, indistinguishable, pareto_trials
from labkit.study.runners import RUNNERS, Candidate, Metrics, RunnerSettings, register_runner
from labkit.training import Trained, TrainSettings, evaluate, train, train_stack
from labkit.transform.applying import apply, initialise
from labkit.transform.cost import total_cost
from labkit.transform.models import get_model
from labkit.transform.plan import Plan


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that `basic_train` is asked to train, in order."""
    plans: list[Plan] = []
    runner = RUNNERS["basic_train"]

    def spy(candidate: Candidate, settings: Any) -> Metrics:
        plans.append(candidate.plan)
        return runner.run(candidate, settings)

    monkeypatch.setitem(RUNNERS, "basic_train", runner._replace(run=spy))
    return plans


def metrics_of(study: optuna.Study) -> list[Any]:
    return [trial.user_attrs["software_metrics"] for trial in study.trials]


def test_every_network_is_trained_once_and_as_it_would_be_alone(
    tables: dict[str, Any], blobs: Dataset, trained: list[Plan]
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 40
    run = Search(tables, data=blobs)
    results = run.run(progress=False)

    assert len(run.study.trials) == 40
    assert len(trained) == len(set(trained)) == len(results.networks) <= 16
    assert (results.trials["source"] == "looked up").sum() == 40 - len(trained)
    settings = TrainSettings(max_epochs=1, learning_rate=1e-2)
    for trial in run.study.trials:
        plan = Plan(tuple(trial.user_attrs["plan"].items()))
        alone = initialise(apply(get_model("jsc-toy"), plan), 42)
        metrics = trial.user_attrs["software_metrics"]
        assert train(alone, blobs, settings, seed=42)[-1]["accuracy"] == metrics["accuracy"]
        assert total_cost(alone).total_flops == metrics["total_flops"]
        assert trial.values == [metrics["accuracy"], metrics["total_flops"]]
        assert run.space.resolve(trial.user_attrs["sampled_config"]) == plan
        twin = run.study.trials[trial.user_attrs["trained_in"]]
        assert twin.user_attrs["plan"] == trial.user_attrs["plan"]
        assert (twin.number == trial.number) == (trial.user_attrs["source"] == "trained")


def test_the_same_seed_gives_the_same_search(tables: dict[str, Any], blobs: Dataset) -> None:
    first = search(tables, data=blobs, progress=False)
    torch.rand(7)
    second = search(tables, data=blobs, progress=False)
    columns = ["network", "accuracy", "loss", "total_flops", "source"]
    pd.testing.assert_frame_equal(first.trials[columns], second.trials[columns])
    tables["seed"] = 1
    other = search(tables, data=blobs, progress=False)
    assert not other.trials["network"].equals(first.trials["network"])


def test_the_front_is_what_nothing_dominates(tables: dict[str, Any], blobs: Dataset) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 30
    results = search(tables, data=blobs, progress=False)
    networks = results.networks
    dominated = {
        a.Index
        for a in networks.itertuples()
        for b in networks.itertuples()
        if b.accuracy >= a.accuracy
        and b.total_flops <= a.total_flops
        and (b.accuracy, b.total_flops) != (a.accuracy, a.total_flops)
    }
    assert set(results.front.index) == set(networks.index) - dominated


FILES = {
    "study.db", "log.json", "best.json", "trials.csv", "best.md", "pareto.html", "config.toml",
    "best", ".lock",
}  # fmt: skip


def test_a_folder_holds_all_that_is_promised(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    log = json.loads((tmp_path / "log.json").read_text())
    assert len(log) == 8
    recorded = {"software_metrics", "hardware_metrics", "scaled_metrics", "sampled_config", "plan"}
    assert all(recorded <= set(trial) for trial in log.values())
    best = json.loads((tmp_path / "best.json").read_text())
    assert {int(number) for number in best} == set(results.front.index)
    markdown = (tmp_path / "best.md").read_text()
    for column in ("number", "software_metrics", "hardware_metrics", "scaled_metrics"):
        assert column in markdown.splitlines()[0]
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 8
    assert "https://cdn" not in (tmp_path / "pareto.html").read_text()[:2000]  # works offline

    study = optuna.load_study(study_name="jsc-toy", storage=f"sqlite:///{tmp_path}/study.db")
    assert study.metric_names == ["accuracy", "total_flops"]
    assert {trial.number for trial in pareto_trials(study)} == set(results.front.index)


def test_a_network_of_the_front_comes_back_as_it_was(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert len(list((tmp_path / "best").glob("*.safetensors"))) == len(results.front)
    for number, row in results.front.iterrows():
        network = load_best(tmp_path, number)
        assert not network.training
        assert evaluate(network, blobs.x_val, blobs.y_val)["accuracy"] == row["accuracy"]
    most_accurate = results.front["accuracy"].max()
    assert evaluate(load_best(tmp_path), blobs.x_val, blobs.y_val)["accuracy"] == most_accurate
    for path in (tmp_path / "best").glob("*.json"):  # as written before shapes were kept
        record = json.loads(path.read_text())
        del record["input_shape"]
        path.write_text(json.dumps(record))
    assert evaluate(load_best(tmp_path), blobs.x_val, blobs.y_val)["accuracy"] == most_accurate
    with pytest.raises(LabkitError, match="trial 999 is not on the front; expected one of"):
        load_best(tmp_path, 999)
    with pytest.raises(LabkitError, match="holds no trained networks"):
        load_best(tmp_path / "best")


def test_an_interrupted_search_continues(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = RUNNERS["basic_train"]
    calls: Iterator[int] = iter(range(100))

    def interrupted_third(candidate: Candidate, settings: Any) -> Metrics:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return runner.run(candidate, settings)

    with monkeypatch.context() as patch:
        patch.setitem(RUNNERS, "basic_train", runner._replace(run=interrupted_third))
        with pytest.raises(KeyboardInterrupt):
            search(tables, data=blobs, folder=tmp_path, progress=False)
    rows = pd.read_csv(tmp_path / "trials.csv", index_col="number")
    assert (rows["source"] == "trained").sum() == 2
    assert rows.iloc[-1]["failure"] == "interrupted"
    assert (tmp_path / "best.md").exists()

    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert (results.trials["state"] == "COMPLETE").sum() == 8
    assert results.networks["network"].is_unique  # what was trained before was looked up
    again = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert len(again.trials) == len(results.trials)  # nothing is left to do
    # Proposals after the break are not those of the beginning once more.
    log = json.loads((tmp_path / "log.json").read_text())
    proposed = [str(trial["sampled_config"]) for trial in log.values()]
    assert proposed[:2] != proposed[3:5]


def test_ctrl_c_while_a_trial_is_recorded_leaves_it_whole(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Search(tables, data=blobs, folder=tmp_path)
    tell = run.study.tell

    def pressed_while_telling(*args: Any, **options: Any) -> Any:
        told = tell(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return told

    monkeypatch.setattr(run.study, "tell", pressed_while_telling)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run(progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert [trial.state for trial in run.study.trials] == [TrialState.COMPLETE]
    assert load_best(tmp_path, 0)  # the network of that trial was kept as well


def test_stop_from_another_thread_ends_the_run_within_an_epoch(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    tables["search"]["strategy"]["sw_runner"]["basic_train"]["max_epochs"] = 100_000
    run = Search(tables, data=blobs)
    timer = threading.Timer(0.5, run.stop)
    timer.start()
    results = run.run(progress=False)  # would take hours
    timer.join()
    assert list(results.trials["failure"]) == ["interrupted"]


def test_a_trial_that_a_killed_process_left_is_ended(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    abandoned = Search(tables, data=blobs, folder=tmp_path)
    abandoned.study.ask(abandoned.space.distributions)
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert results.trials.loc[0, "failure"] == "interrupted"
    assert (results.trials["state"] == "COMPLETE").sum() == 8


def test_another_search_in_the_same_folder_is_refused(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    search(tables, data=blobs, folder=tmp_path, progress=False)
    with pytest.raises(LabkitError, match=r"seed: .* holds a search with 42, not 43"):
        search({**tables, "seed": 43}, data=blobs, folder=tmp_path)
    other = Dataset.from_arrays(blobs.x_train, blobs.y_train, name="blobs")
    with pytest.raises(LabkitError, match=r"^data: "):
        search(tables, data=other, folder=tmp_path)
    tables["search"]["strategy"]["setup"] |= {"n_trials": 9, "sampler": "random"}
    assert len(search(tables, data=blobs, folder=tmp_path, progress=False).trials) == 9

    running = Search(tables, data=blobs, folder=tmp_path)
    with running._locked_folder(), pytest.raises(LabkitError, match="another search is running"):
        search(tables, data=blobs, folder=tmp_path)


def test_a_failing_candidate_is_recorded_and_the_search_goes_on(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = RUNNERS["basic_train"]

    def fails_when_wide(candidate: Candidate, settings: Any) -> Metrics:
        if candidate.plan.to_dict()["seq_blocks_5"] > 16:
            raise MemoryError("too wide")
        return runner.run(candidate, settings)

    monkeypatch.setitem(RUNNERS, "basic_train", runner._replace(run=fails_when_wide))
    tables["search"]["strategy"]["setup"]["n_trials"] = 12
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    failed = results.trials[results.trials["state"] == "FAIL"]
    assert 0 < len(failed) < 12
    assert set(failed["failure"]) == {"MemoryError: too wide"}
    assert "failed" in results.counts()
    assert len(results.front)


def test_divergence_is_a_failed_trial_and_trained_once(
    tables: dict[str, Any], blobs: Dataset, trained: list[Plan], tmp_path: Path
) -> None:
    train_table = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    train_table |= {"optimizer": "sgd", "learning_rate": 1e30, "lr_scheduler": "constant"}
    tables["search"]["strategy"]["setup"] |= {"n_trials": 20, "n_jobs": 3, "sampler": "random"}
    Search(tables, data=blobs, folder=tmp_path).run(progress=False)
    tables["search"]["strategy"]["setup"]["n_trials"] = 40
    results = Search(tables, data=blobs, folder=tmp_path).run(progress=False)
    assert len(results.trials) == 40
    assert results.trials["failure"].str.contains("training diverged").all()
    assert len(trained) == len(set(trained)) == results.trials["network"].nunique() < 17
    assert results.best.empty
    assert isinstance(pareto_front(results).to_json(), str)  # an empty figure, not an error


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsgaii", "nsgaiii", "qmc"])
def test_samplers_propose(tables: dict[str, Any], blobs: Dataset, sampler: str) -> None:
    tables["search"]["strategy"]["setup"] |= {"sampler": sampler, "n_trials": 6}
    results = search(tables, data=blobs, progress=False)
    assert len(results.trials) == 6
    assert results.trials["network"].nunique() > 1


@pytest.mark.parametrize("sampler", ["bruteforce", "grid"])
def test_bruteforce_trains_every_network_once_and_ends(
    tables: dict[str, Any], blobs: Dataset, sampler: str, trained: list[Plan], tmp_path: Path
) -> None:
    setup = tables["search"]["strategy"]["setup"]
    setup |= {"sampler": sampler, "n_trials": 5, "n_jobs": 3}
    Search(tables, data=blobs, folder=tmp_path).run(progress=False)
    setup |= {"n_trials": 100, "n_jobs": 16}
    results = Search(tables, data=blobs, folder=tmp_path).run(progress=False)
    assert len(results.trials) == len(trained) == len(set(trained)) == 16
    assert results.trials["network"].is_unique


def test_a_round_trains_its_networks_together(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["labkit.study.search"], "step_seconds", lambda *_: (1, 2))
    rounds: list[int] = []

    def spy(model: nn.Module, plans: list[Plan], *args: Any, **options: Any) -> list[Trained]:
        assert len(plans) == len(set(plans))
        rounds.append(len(plans))
        return train_stack(model, plans, *args, **options)

    monkeypatch.setattr(sys.modules["labkit.study.search"], "train_stack", spy)
    tables["search"]["strategy"]["setup"] |= {"n_trials": 40, "n_jobs": 8}
    data = replace(blobs, x_train=blobs.x_train.double(), x_val=blobs.x_val.double())
    run = Search(tables, model=get_model("jsc-toy").double(), data=data)
    results = run.run(progress=False)
    assert len(results.trials) == 40
    assert 4 <= rounds[0] <= 8
    assert results.networks["network"].is_unique
    settings = TrainSettings(max_epochs=1, learning_rate=1e-2)
    for trial in run.study.trials:
        plan = Plan(tuple(trial.user_attrs["plan"].items()))
        alone = initialise(apply(get_model("jsc-toy").double(), plan), 42)
        accuracy = train(alone, data, settings, seed=42)[-1]["accuracy"]
        assert trial.user_attrs["software_metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert trial.user_attrs["trained_in"] <= trial.number


def test_a_stop_within_a_round_ends_all_its_trials(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["labkit.study.search"], "step_seconds", lambda *_: (1, 2))
    tables["search"]["strategy"]["setup"] |= {"n_trials": 12, "n_jobs": 6}
    run = Search(tables, data=blobs, folder=tmp_path)

    def stopping(*args: Any, on_step: Any, **options: Any) -> None:
        run.stop()
        on_step()

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["labkit.study.search"], "train_stack", stopping)
        results = run.run(progress=False)
    assert list(results.trials["failure"]) == ["interrupted"] * 6
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert (results.trials["state"] == "COMPLETE").sum() == 12


def test_a_network_that_mixes_channels_trains_one_by_one(
    tables: dict[str, Any], blobs: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    tables["search"]["search_space"]["seed"] = {
        "default": {"config": {"name": ["output_only"], "channel_multiplier": [0.5, 1, 3]}}
    }
    tables["search"]["strategy"]["setup"] |= {"n_trials": 6, "n_jobs": 6, "sampler": "bruteforce"}
    model = nn.Sequential(nn.Linear(16, 10), nn.LayerNorm(10), nn.Linear(10, 5))
    results = search(tables, model=model, data=blobs)
    assert len(results.networks) == 3
    printed = "".join(capsys.readouterr())
    assert printed.count("train one by one: '_1' (LayerNorm) mixes channels") == 1


def test_networks_train_one_by_one_where_that_is_faster(
    tables: dict[str, Any], blobs: Dataset, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    timed: list[int] = []

    def step_seconds(model: nn.Module, plans: list[Plan], *_: Any) -> tuple[float, float]:
        timed.append(len(plans))
        return 0.5, 0.25

    def train_stack(*_: Any, **__: Any) -> None:
        raise AssertionError("a stack was trained")

    monkeypatch.setattr(sys.modules["labkit.study.search"], "step_seconds", step_seconds)
    monkeypatch.setattr(sys.modules["labkit.study.search"], "train_stack", train_stack)
    tables["search"]["strategy"]["setup"] |= {"n_trials": 8, "n_jobs": 4, "sampler": "bruteforce"}
    results = search(tables, data=blobs)
    assert len(results.networks) == 8
    assert timed == [4]  # once a search
    printed = "".join(capsys.readouterr())
    expected = "networks train one by one: a step of 4 takes 0.25 s so, and 0.5 s in a stack"
    assert printed.count(expected) == 1


def test_a_sum_is_one_objective(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> None:
    strategy = tables["search"]["strategy"]
    strategy["setup"] |= {"sum_scaled_metrics": True, "direction": "maximize"}
    strategy["metrics"]["total_flops"]["scale"] = -1e-4
    run = Search(tables, data=blobs, folder=tmp_path)
    results = run.run(progress=False)
    for trial in run.study.trials:
        metrics = trial.user_attrs["software_metrics"]
        assert trial.values == [pytest.approx(metrics["accuracy"] - 1e-4 * metrics["total_flops"])]
    assert run.study.best_value == max(trial.values[0] for trial in run.study.trials)
    assert set(results.front["network"]) <= set(results.networks["network"])


def test_time_out_ends_it(tables: dict[str, Any], blobs: Dataset) -> None:
    tables["search"]["strategy"]["setup"]["timeout"] = 1e-9
    assert len(search(tables, data=blobs, progress=False).trials) == 0


class EnergySettings(RunnerSettings):
    """Settings of a runner of one's own."""

    joules_a_flop: float = 1e-9


def test_a_runner_of_ones_own(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNNERS, "energy", RUNNERS["hw_dummy"])  # so that it is taken out after
    monkeypatch.delitem(RUNNERS, "energy")

    @register_runner("energy", EnergySettings, ("joules",))
    def energy(candidate: Candidate, settings: EnergySettings) -> Metrics:
        return {"joules": settings.joules_a_flop * total_cost(candidate.model).total_flops}

    strategy = tables["search"]["strategy"]
    strategy["hw_runner"]["energy"] = {"joules_a_flop": 2.0}
    strategy["metrics"] = {
        "loss": {"direction": "minimize"},
        "joules": {"direction": "minimize", "scale": 0.5},
    }
    run = Search(tables, data=blobs)
    run.run(progress=False)
    for trial in run.study.trials:
        flops = trial.user_attrs["software_metrics"]["total_flops"]
        assert trial.user_attrs["hardware_metrics"] == {"joules": 2 * flops}
        assert trial.values[1] == flops


def test_latency_is_measured(tables: dict[str, Any], blobs: Dataset) -> None:
    strategy = tables["search"]["strategy"]
    strategy["hw_runner"]["latency"] = {"repeats": 20}
    strategy["metrics"]["latency"] = {"direction": "minimize"}
    results = search(tables, data=blobs, progress=False)
    assert (results.trials["latency"] > 0).all()
    assert (results.trials["latency"] < 1000).all()


def test_evaluation_of_a_checkpoint_trains_nothing(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, trained: list[Plan]
) -> None:
    model = initialise(get_model("jsc-toy"), 0)
    accuracy = train(model, blobs, TrainSettings(max_epochs=2, learning_rate=1e-2))[-1]["accuracy"]
    torch.save(model.state_dict(), tmp_path / "toy.pt")
    lightning = {"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}
    torch.save(lightning, tmp_path / "toy.ckpt")
    runners = tables["search"]["strategy"]["sw_runner"]
    del runners["basic_train"]
    runners["basic_evaluation"] = {"name": "accuracy"}
    tables["search"]["strategy"]["setup"] |= {"n_trials": 60, "sampler": "random"}
    for name in ("toy.pt", "toy.ckpt"):
        tables["load_name"] = str(tmp_path / name)
        results = search(tables, data=blobs, progress=False)
        assert trained == []
        done = results.trials[results.trials["state"] == "COMPLETE"]
        assert set(done["accuracy"]) == {accuracy}
        assert set(done["network"]) == {"seq_blocks_2: 8, seq_blocks_5: 8"}
        failures = results.trials["failure"].dropna()
        assert failures.str.contains("holds another network").all()


def test_training_may_start_from_a_checkpoint(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    model = get_model("jsc-toy")
    train(initialise(model, 0), blobs, TrainSettings(max_epochs=5, learning_rate=1e-2))
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    trainer = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    trainer |= {"weights": "keep", "learning_rate": 1e-9}
    with pytest.raises(LabkitError, match="load_name: weights = 'keep' needs the path"):
        Search(tables, data=blobs)
    results = search(
        tables | {"load_name": str(tmp_path / "trained.pt")}, data=blobs, progress=False
    )
    # Only wider networks are in the space, and so small steps change none but its running
    # statistics: all compute what the original does after the same steps.
    small_steps = TrainSettings(max_epochs=1, learning_rate=1e-9)
    expected = train(model, blobs, small_steps, seed=42)[-1]["loss"]
    assert expected < 1.3  # fresh networks begin at about log(5) = 1.6
    losses = results.networks["loss"].tolist()
    assert len(losses) > 1
    assert losses == pytest.approx([expected] * len(losses), abs=1e-4)


def test_a_pickled_checkpoint_is_refused(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "evil.pt")
    tables["load_name"] = str(tmp_path / "evil.pt")
    runners = tables["search"]["strategy"]["sw_runner"]
    del runners["basic_train"]
    runners["basic_evaluation"] = {}
    results = search(tables, data=blobs, progress=False)
    assert results.trials["failure"].str.contains("is not a checkpoint of weights").all()


def test_a_module_and_a_data_set_of_ones_own(blobs: Dataset, tables: dict[str, Any]) -> None:
    del tables["model"], tables["dataset"]
    tables["search"]["search_space"]["seed"] = {
        "default": {"config": {"name": ["output_only"], "channel_multiplier": [0.5, 1, 3]}}
    }
    model = nn.Sequential(nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 5))
    results = search(tables, model=model, data=blobs, progress=False)
    assert results.about["model"] == "Sequential"
    assert set(results.trials["network"]) == {"_0: 5", "_0: 10", "_0: 30"}


def test_what_does_not_fit_is_said_before_the_search(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(LabkitError, match="does not take the rows of blobs"):
        Search(tables, model=nn.Linear(3, 5), data=blobs)
    with pytest.raises(LabkitError, match="storage: cannot open 'nonsense'"):
        Search(tables, data=blobs, storage="nonsense")
    (tmp_path / "file").write_text("")
    with pytest.raises(LabkitError, match="out: cannot make"):
        Search(tables, data=blobs, folder=tmp_path / "file")
    if not torch.cuda.is_available():
        with pytest.raises(LabkitError, match="accelerator: 'cuda' needs a CUDA device"):
            Search({**tables, "accelerator": "cuda"}, data=blobs)


def test_the_figure_shows_each_network_once(tables: dict[str, Any], blobs: Dataset) -> None:
    results = search(tables, data=blobs, progress=False)
    dominated, front, original = pareto_front(results).data
    assert len(dominated.x) + len(front.x) == len(results.networks)
    assert list(front.x) == sorted(results.front["total_flops"])
    assert list(front.y) == sorted(results.front["accuracy"])
    trained = results.networks[results.networks["network"] == "seq_blocks_2: 8, seq_blocks_5: 8"]
    assert list(original.x) == list(trained["total_flops"])
    title = pareto_front(results).layout.title
    assert "jsc-toy on blobs" in title.text
    assert "seed 42" in title.subtitle.text
    assert "inference" in title.subtitle.text


def test_results_of_no_trials_are_empty_tables() -> None:
    results = Results.from_study(optuna.create_study(directions=["maximize", "minimize"]))
    assert results.trials.empty
    assert results.counts().startswith("0 trials")
    assert results.front.empty
    assert TrialState.COMPLETE.name not in results.best_markdown()


def test_replicates_are_runs_with_the_next_seeds(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    data = replace(blobs, x_train=blobs.x_train.double(), x_val=blobs.x_val.double())
    model = get_model("jsc-toy").double()
    table = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    table["replicates"] = 3
    tables["search"]["strategy"]["setup"] |= {"n_trials": 4, "n_jobs": 4}
    run = Search(tables, model=model, data=data, folder=tmp_path)
    results = run.run(progress=False)
    settings = TrainSettings(max_epochs=1, learning_rate=1e-2)

    def accuracies(plan: Plan, n: int) -> list[float]:
        return [
            train(initialise(apply(model, plan), seed), data, settings, seed=seed)[-1]["accuracy"]
            for seed in range(42, 42 + n)
        ]

    for trial in run.study.trials:
        alone = accuracies(Plan(tuple(trial.user_attrs["plan"].items())), 3)
        kept = [metrics["accuracy"] for metrics in trial.user_attrs["replicates"]]
        assert kept == pytest.approx(alone, abs=1e-6)
        metrics = trial.user_attrs["software_metrics"]
        assert metrics["accuracy"] == pytest.approx(np.mean(alone), abs=1e-6)
        assert metrics["accuracy_std"] == pytest.approx(np.std(alone, ddof=1), abs=1e-6)
    assert results.best["accuracy"].str.contains("±").all()

    results = run.replicate(5)
    for number, trial in ((n, run.study.trials[n]) for n in results.best["number"]):
        five = accuracies(Plan(tuple(trial.user_attrs["plan"].items())), 5)
        kept = [m["accuracy"] for m in run.study.user_attrs["replicates"][str(number)]]
        assert kept == pytest.approx(five, abs=1e-6)
    assert "±" in (tmp_path / "best.md").read_text()


def test_ties_are_what_a_paired_t_test_cannot_tell_apart() -> None:
    base = [0.70, 0.71, 0.69, 0.72, 0.70]
    assert indistinguishable(base, base)
    assert indistinguishable(base, [0.71, 0.70, 0.70, 0.71, 0.70])
    shifted = [value + shift for value, shift in zip(base, [0.01, 0.011, 0.012, 0.01, 0.011])]
    assert not indistinguishable(base, shifted)  # though the two ranges overlap
