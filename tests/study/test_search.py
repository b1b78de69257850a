"""The search: what it trains and looks up, records, leaves behind, and continues."""

import json
import shutil
import signal
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.plots import pareto_front
from labkit.study.executor import Task
from labkit.study.front_tables import indistinguishable
from labkit.study.networks import load_best, saved_networks
from labkit.study.record import Candidate, Metrics
from labkit.study.results import Results
from labkit.study.runners import RUNNERS, CandidateNetwork, RunnerSettings, register_runner
from labkit.study.search import Search, search
from labkit.study.studies import open_study
from labkit.training import TrainSettings, evaluate, train
from labkit.transform import Plan, apply, get_model, initialise, total_cost


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of the networks that are built to be trained, in order."""
    plans: list[Plan] = []
    build = Task.build

    def spy(task: Task, candidate: Candidate) -> nn.Module:
        plans.append(candidate.plan)
        return build(task, candidate)

    monkeypatch.setattr(Task, "build", spy)
    return plans


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
    for trial in results.records:
        record = trial.record
        alone = initialise(apply(get_model("jsc-toy"), record.plan), 42)
        metrics = record.software_metrics
        accuracy = train(alone, blobs, settings, seed=42)[-1]["accuracy"]
        assert metrics["accuracy"] == accuracy
        assert total_cost(alone).total_flops == metrics["total_flops"]
        assert trial.values == (metrics["accuracy"], metrics["total_flops"])
        assert run.space.resolve(record.pass_config) == record.plan
        twin = results.records[record.trained_in or 0]
        assert twin.record.plan == record.plan
        assert (twin.number == trial.number) == (record.source == "trained")


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
    "best", ".lock", "runs.json",
}  # fmt: skip


def test_a_folder_holds_all_that_is_promised(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    log = json.loads((tmp_path / "log.json").read_text())
    assert len(log) == 8
    recorded = {"software_metrics", "hardware_metrics", "scaled_metrics", "pass_config", "widths"}
    assert all(recorded <= set(trial) for trial in log.values())
    best = json.loads((tmp_path / "best.json").read_text())
    assert {int(number) for number in best} == set(results.front.index)
    markdown = (tmp_path / "best.md").read_text()
    for column in ("number", "software_metrics", "hardware_metrics", "scaled_metrics"):
        assert column in markdown.splitlines()[0]
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 8
    assert "https://cdn" not in (tmp_path / "pareto.html").read_text()[:2000]  # works offline

    # Optuna alone reads it, with parameters that people can read.
    study = optuna.load_study(study_name="jsc-toy", storage=f"sqlite:///{tmp_path}/study.db")
    assert study.metric_names == ["accuracy", "total_flops"]
    assert {trial.values[1] for trial in study.best_trials} == set(results.front["total_flops"])
    assert {v for trial in study.trials for v in trial.params.values()} <= {
        "×1", "×2", "×4", "×8", "output_only", "input_only", "both",
    }  # fmt: skip
    assert Results.from_study(study).trials.equals(results.trials)


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
    in_memory = search(tables, data=blobs, progress=False)
    for again in (results, in_memory):
        assert evaluate(again.best(), blobs.x_val, blobs.y_val)["accuracy"] == most_accurate
        cheap = total_cost(again.best("total_flops")).total_flops
        assert cheap == again.front["total_flops"].min()
    with pytest.raises(LabkitError, match="metric: nothing measured 'acuracy'; did you mean"):
        results.best("acuracy")
    with pytest.raises(LabkitError, match="trial 999 is not on the front; expected one of"):
        load_best(tmp_path, 999)
    with pytest.raises(LabkitError, match="holds no trained networks"):
        load_best(tmp_path / "best")


def test_a_network_that_leaves_the_front_leaves_the_folder(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"] |= {"sampler": "bruteforce", "n_trials": 16, "n_jobs": 4}
    run = Search(tables, data=blobs, folder=tmp_path)
    bar: list[set[int]] = []
    told = run.store.tell

    def tell(*args: Any) -> Any:
        bar.append(saved_networks(tmp_path))
        return told(*args)

    run.store.tell = tell  # type: ignore[method-assign]
    results = run.run(progress=False)
    assert saved_networks(tmp_path) == set(results.front.index)
    # Each is there before its trial is told, and what one dominates is gone before the next.
    for number, there in enumerate(bar):
        front = Results(results.records[:number], results.description).front.index
        assert there - {number} == set(front)
    assert max(map(max, filter(None, bar))) > 0


def test_an_interrupted_search_continues(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, trained: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ctrl-C after the second record: what is finished is kept whole, the rest is not there."""
    tables["search"]["strategy"]["setup"]["n_jobs"] = 1
    run = Search(tables, data=blobs, folder=tmp_path)
    tell = run.store.tell

    def pressed_while_telling(*args: Any) -> Any:
        told = tell(*args)
        if told.number == 1:
            signal.raise_signal(signal.SIGINT)
        return told

    monkeypatch.setattr(run.store, "tell", pressed_while_telling)
    before = signal.getsignal(signal.SIGINT)
    results = run.run(progress=False)
    assert results.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    rows = pd.read_csv(tmp_path / "trials.csv", index_col="number")
    assert rows["state"].tolist() == ["COMPLETE"] * 2
    for number in results.front.index:  # the networks of those trials were kept as well
        assert load_best(tmp_path, number)

    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert not results.interrupted
    assert (results.trials["state"] == "COMPLETE").sum() == 8
    assert results.networks["network"].is_unique  # what was trained before was looked up
    assert len(trained) == len(set(trained))
    again = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert len(again.trials) == len(results.trials)  # nothing is left to do
    # Proposals after the break are not those of the beginning once more.
    proposed = [str(trial.record.pass_config) for trial in results.records]
    assert proposed[:2] != proposed[2:4]


def test_a_second_ctrl_c_interrupts_at_once(tables: dict[str, Any], blobs: Dataset) -> None:
    @register_runner("impatient", metrics=["never"])
    def impatient(candidate: CandidateNetwork, settings: RunnerSettings) -> Metrics:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return {"never": 0.0}

    try:
        tables["search"]["strategy"]["hw_runner"]["impatient"] = {}
        with pytest.raises(KeyboardInterrupt):
            search(tables, data=blobs, progress=False)
    finally:
        del RUNNERS["impatient"]


def test_stop_from_another_thread_ends_the_run_within_an_epoch(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    tables["search"]["strategy"]["sw_runner"]["basic_train"]["max_epochs"] = 100_000
    run = Search(tables, data=blobs)
    timer = threading.Timer(0.5, run.stop)
    timer.start()
    results = run.run(progress=False)  # would take hours
    timer.join()
    assert results.interrupted
    assert results.trials.empty


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
    with (
        filelock.FileLock(running.folder / ".lock"),
        pytest.raises(LabkitError, match="another search is running"),
    ):
        search(tables, data=blobs, folder=tmp_path)


def test_a_failing_candidate_is_recorded_and_the_search_goes_on(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    build = Task.build

    def fails_when_wide(task: Task, candidate: Candidate) -> nn.Module:
        if candidate.plan.to_dict()["seq_blocks_5"] > 16:
            raise MemoryError("too wide")
        return build(task, candidate)

    monkeypatch.setattr(Task, "build", fails_when_wide)
    tables["search"]["strategy"]["setup"]["n_trials"] = 12
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    failed = results.trials[results.trials["state"] == "FAIL"]
    assert 0 < len(failed) < 12
    assert failed["failure"].str.startswith("MemoryError: too wide").all()
    assert {t.record.failure.kind for t in results.records if t.record.failure} == {"training"}
    assert "failed: MemoryError: too wide" in caplog.text
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
    # One that was trained along with others may still wait for its trial.
    assert len(trained) == len(set(trained)) < 17
    assert set(trained) >= {trial.record.plan for trial in results.records}
    assert results.front.empty
    assert {t.record.failure.kind for t in results.records if t.record.failure} == {"diverged"}
    assert isinstance(pareto_front(results).to_json(), str)  # an empty figure, not an error


@pytest.mark.parametrize(
    "sampler", ["random", "tpe", "gp", "known-cost", "nsgaii", "nsgaiii", "qmc"]
)
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


def test_a_sum_is_one_objective(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> None:
    strategy = tables["search"]["strategy"]
    strategy["setup"] |= {"sum_scaled_metrics": True, "direction": "maximize"}
    strategy["metrics"]["total_flops"]["scale"] = -1e-4
    run = Search(tables, data=blobs, folder=tmp_path)
    results = run.run(progress=False)
    for trial in results.records:
        metrics = trial.record.software_metrics
        assert trial.values == (pytest.approx(metrics["accuracy"] - 1e-4 * metrics["total_flops"]),)
    assert run.study.best_value == max(t.values[0] for t in results.records if t.values)
    assert set(results.front["network"]) <= set(results.networks["network"])


def test_time_out_ends_it(tables: dict[str, Any], blobs: Dataset) -> None:
    tables["search"]["strategy"]["setup"]["timeout"] = 1e-9
    assert len(search(tables, data=blobs, progress=False).trials) == 0


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
    with pytest.raises(LabkitError, match="storage: 'nonsense': expected a URL, such as"):
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

    for trial in results.records:
        alone = accuracies(trial.record.plan, 3)
        kept = [metrics["accuracy"] for metrics in trial.record.replicates]
        assert kept == pytest.approx(alone, abs=1e-6)
        metrics = trial.record.software_metrics
        assert metrics["accuracy"] == pytest.approx(np.mean(alone), abs=1e-6)
        assert metrics["accuracy_std"] == pytest.approx(np.std(alone, ddof=1), abs=1e-6)
    assert results.best_trials["accuracy"].str.contains("±").all()

    results = run.replicate(5)
    reread = Results.from_study(open_study(tmp_path))
    for number in results.front.index:
        kept = [metrics["accuracy"] for metrics in reread.replicates(number)]
        assert kept == pytest.approx(accuracies(results.plan(number), 5), abs=1e-6)
        assert results.trials["accuracy"][number] == pytest.approx(np.mean(kept))
    assert "±" in (tmp_path / "best.md").read_text()


def test_ties_are_what_a_paired_t_test_cannot_tell_apart() -> None:
    base = [0.70, 0.71, 0.69, 0.72, 0.70]
    assert indistinguishable(base, base)
    assert indistinguishable(base, [0.71, 0.70, 0.70, 0.71, 0.70])
    shifted = [value + shift for value, shift in zip(base, [0.01, 0.011, 0.012, 0.01, 0.011])]
    assert not indistinguishable(base, shifted)  # though the two ranges overlap


def test_the_original_has_as_many_seeds_as_what_is_compared_with_it(blobs: Dataset) -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
    # Of these, the original is the dearest: it is on the front only where it is the best.
    run = Search(model=model, data=blobs, widths=[0.25, 1], trials=2, epochs=3)
    original = run.run(progress=False).original
    assert original == 0
    results = run.replicate(3, progress=False)
    assert {len(results.replicates(n)) for n in {original, *results.front.index}} == {3}
    means = results.trials["accuracy"]
    cheapest = results.front_table().iloc[0]
    expected = f"{100 * (means[cheapest.name] - means[original]):+.1f} points"
    assert cheapest["accuracy to original"] == expected


def test_a_layer_may_be_called_as_an_objective_is(blobs: Dataset) -> None:
    model = nn.Sequential(OrderedDict(loss=nn.Linear(16, 8), relu=nn.ReLU(), out=nn.Linear(8, 5)))
    objectives = {"loss": "minimize", "total_flops": "minimize"}
    table = search(
        model=model, data=blobs, widths=[1, 2], trials=2, objectives=objectives, epochs=1,
        progress=False,
    ).front_table()  # fmt: skip
    assert {"loss", "loss width"} <= {*table}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": True}, "n_trials: expected a number, got True"),
        ({"baseline": "yes"}, "baseline: expected true or false, got 'yes'"),
        ({"objectives": {}}, "metrics: expected at least one entry, got {}"),
        ({"widths": 2}, "widths: expected a list of multipliers, or layer → list, got 2"),
        ({"widths": "12"}, "widths: expected a list"),
        ({"widths": {"seq_blocks_2": 2}}, "widths: expected a list"),
        ({"objectives": ["accuracy"]}, "objectives: expected metric → 'maximize'"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_refused(
    blobs: Dataset, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabkitError, match=message):
        Search(model=get_model("jsc-toy"), data=blobs, **arguments)


def test_widths_may_be_numpys(blobs: Dataset) -> None:
    offered = [np.arange(1, 3), [np.float32(1), np.float64(2)]]
    spaces = [Search(model=get_model("jsc-toy"), data=blobs, widths=w).space for w in offered]  # type: ignore[arg-type]
    assert [list(space.choices.values())[1] for space in spaces] == [[1, 2], [1, 2]]


def test_two_searches_in_turn_in_one_folder_are_one_study(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    first, second = (Search(tables, data=blobs, folder=tmp_path, trials=n) for n in (4, 8))
    first.run(progress=False)
    results = second.run(progress=False)
    assert len(results.records) == len(open_study(tmp_path).trials) == 8
    assert [trial.record for trial in results.records[:4]] == [
        trial.record for trial in first.results().records
    ]


def test_a_network_that_was_killed_before_its_trial_was_recorded_is_dropped(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    kept = tmp_path / "best" / f"trial_{results.front_trials[0].number}"
    for suffix in (".json", ".safetensors"):
        (tmp_path / "best" / f"trial_8{suffix}").write_bytes(kept.with_suffix(suffix).read_bytes())
    search(tables, data=blobs, folder=tmp_path, progress=False)
    saved = {path.stem for path in (tmp_path / "best").iterdir()}
    assert saved == {f"trial_{trial.number}" for trial in results.front_trials}


def test_a_network_that_was_not_kept_is_said(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    search(tables, data=blobs, storage=storage, progress=False)
    results = search(tables, data=blobs, storage=storage, progress=False)
    with pytest.raises(LabkitError, match="was not kept"):
        results.best()


def test_a_bad_description_is_named_and_hides_no_other_network(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    front = search(tables, data=blobs, folder=tmp_path, progress=False).front
    best = front["accuracy"].idxmax()
    (tmp_path / "best" / f"trial_{best}.json").write_text("{")
    with pytest.raises(LabkitError, match=rf"^trial_{best}\.json: "):
        load_best(tmp_path)
    assert len(front) > 1
    for number in front.index.drop(best):
        load_best(tmp_path, number)


def test_weights_that_are_missing_are_trained_again(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, trained: list[Plan],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tables["search"]["strategy"]["setup"]["n_jobs"] = 1
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    files = {path: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    lost = results.front_trials[0]
    (tmp_path / "best" / f"trial_{lost.number}.safetensors").unlink()
    again = r"the weights of trial \d+ are not in .*; the same search, run again in this folder"
    with pytest.raises(LabkitError, match=again):
        load_best(tmp_path, lost.number)
    trained.clear()
    search(tables, data=blobs, folder=tmp_path, progress=False)
    assert trained == [lost.record.plan]
    assert "1 of the front are not in best/, and trained again" in caplog.text
    assert {path: path.read_bytes() for path in files} == files

    # A copy without them, by a run that had nothing else to do.
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(LabkitError, match=again):
        load_best(tmp_path)
    Search(tables, data=blobs, folder=tmp_path).replicate(1, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "best").iterdir()} == files


def test_replicates_of_nothing_are_refused(tables: dict[str, Any], blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match="no trials yet"):
        Search(tables, data=blobs).replicate(2, progress=False)
    for seeds in (0, -1, "2"):
        with pytest.raises(LabkitError, match="seeds: expected a whole number"):
            Search(tables, data=blobs).replicate(seeds, progress=False)  # type: ignore[arg-type]
