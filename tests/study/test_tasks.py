"""Searches of other tasks than classes, whole: from Python, a TOML and the command, and after."""

import contextlib
import copy
import functools
import itertools
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import labkit
from labkit import Dataset, LabkitError, Metric, load_config
from labkit.cli import main
from labkit.show.search_panel import SearchPanel
from labkit.study.config import simple_tables
from labkit.study.runners import RUNNERS, Runner, RunnerSettings
from labkit.training import LOSSES, METRICS
from labkit.transform import initialise

pytestmark = pytest.mark.usefixtures("own_names")

MODULE = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

def worst(outputs, targets):
    return (outputs - targets).abs().max()

def far(outputs, targets):
    return (outputs - targets).abs().pow(1.5).mean()
"""
NEAR = {"accuracy": 0.5}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
Y = 5e4 + 1e4 * (X[:, 0] ** 2 + X[:, 1])
HOUSES = Dataset.from_arrays(X, Y, task="regression", name="houses")
SPAM = Dataset.from_arrays(X, X[:, 0] + X[:, 1] > 0.5, task="binary", name="spam")


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose network, metric and loss are a module's, with a file of data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    (tmp_path / "own_task.py").write_text(MODULE)
    frame = pd.DataFrame(X, columns=[*"abcd"]).assign(price=Y)
    frame.to_csv(tmp_path / "houses.csv", index=False)
    tables: dict[str, Any] = simple_tables([0.5, 1, 2], "r2")
    tables |= {"model": "own_task:network", "dataset": "houses.csv", "label": "price"}
    tables["task"] = "regression"
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"]["basic_train"] = {
        "max_epochs": 3, "loss": "own_task:far", "metrics": ["own_task:worst"], "select": "best",
    }  # fmt: skip
    strategy["metrics"]["worst"] = {"direction": "minimize"}
    strategy["setup"]["n_trials"] = 3
    path = tmp_path / "houses.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def model(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))


@pytest.mark.parametrize(("data", "main_metric"), [(HOUSES, "r2"), (SPAM, "accuracy")])
def test_a_search_begins_with_the_metric_of_its_task(
    data: Dataset, main_metric: str, tmp_path: Path
) -> None:
    search = labkit.Search(
        model=model(), data=data, widths=[0.5, 1, 2], trials=3, epochs=3, folder=tmp_path / "out"
    )
    results = search.run(progress=False)
    assert [*results.objectives] == [main_metric, "total_flops"]
    assert search.progress is not None
    assert f"best {main_metric} " in search.progress.said()
    best = results.best_trial()
    assert results.front[main_metric].idxmax() == best
    of_weights = labkit.evaluate(results.best(), *data.split("val"))[main_metric]
    assert results.front[main_metric].max() == pytest.approx(of_weights, abs=1e-6)
    assert main_metric in (tmp_path / "out" / "best.md").read_text()

    again = search.replicate(3, progress=False)
    assert again.best_trials[main_metric].str.contains("±").all()
    again.report(tmp_path / "report.md", data=data)
    assert f"its {main_metric} is **" in (tmp_path / "report.md").read_text()
    again.report(tmp_path / "report.md", data=data)  # what was measured once is read
    assert labkit.verify(tmp_path / "out", model=model(), data=data, progress=False).agrees
    loaded = labkit.load_best(tmp_path / "out", model=model()).state_dict()
    assert torch.equal(loaded["0.weight"], again.best().state_dict()["0.weight"])


def test_a_configuration_names_its_task_its_loss_and_its_metric(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(toml), "--out", "out"]) == 0
    assert "worst" in capsys.readouterr().out
    assert main(["verify", "out", "--trust"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert main(["replicate", "out", "--seeds", "2", "--trust"]) == 0
    trials = pd.read_csv("out/trials.csv")
    assert {"r2", "mse", "mae", "worst", "r2_std"} <= set(trials)
    results = labkit.Results.from_study(labkit.study.studies.open_study("out"))
    for trial in results.records:
        if trial.record.history:
            losses = [epoch["loss"] for epoch in trial.record.history]
            assert trial.record.software_metrics["loss"] == min(losses)


def test_the_panel_draws_the_metric_of_the_task(toml: Path) -> None:
    panel = SearchPanel(toml, folder="runs")
    panel.launch.click()
    panel._threads[0].join(60)
    panel._threads[1].join(60)
    assert "best r2" in panel.progress.value
    assert panel.curves.layout.yaxis.title.text == "validation R²"
    assert len(panel.results.front) >= 1
    panel.close()


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().max()


def test_ones_own_functions_go_to_processes() -> None:
    METRICS["worst"] = Metric("minimize", worst)
    LOSSES["own"] = lambda outputs, targets: (outputs - targets).abs().mean()
    config = {**simple_tables([0.5, 1], "r2"), "model": "m", "dataset": "houses"}
    config["search"]["strategy"]["sw_runner"]["basic_train"] = {"loss": "own", "max_epochs": 1}
    objectives = {"worst": "minimize", "total_flops": "minimize"}
    given: Any = {"model": model(), "data": HOUSES, "trials": 2, "objectives": objectives}
    here, there = (
        labkit.search(config, executor=n, progress=False, **given).trials for n in (1, 2)
    )
    assert sorted(here["worst"]) == pytest.approx(sorted(there["worst"]), rel=1e-3)


def test_a_limit_is_on_any_metric() -> None:
    given: Any = {"model": model(), "data": SPAM, "widths": [0.5, 1, 2], "trials": 3, "epochs": 1}
    results = labkit.search(progress=False, limits={"f1": 0.5, "log_loss": 0.1}, **given)
    trials = results.trials
    within = (trials["f1"] >= 0.5) & (trials["log_loss"] <= 0.1)
    assert not within.all()
    assert (trials["breaks"].isna() == within).all()


def test_another_metric_is_another_search(tmp_path: Path) -> None:
    given: Any = {"model": model(), "data": HOUSES, "widths": [0.5, 1], "folder": tmp_path}
    given |= {"objectives": {"own": "minimize"}, "trials": 1, "epochs": 1}
    METRICS["own"] = Metric("minimize", lambda outputs, targets: (outputs - targets).abs().max())
    labkit.search(progress=False, **given)
    METRICS["own"] = Metric("minimize", lambda outputs, targets: (outputs - targets).abs().mean())
    with pytest.raises(LabkitError, match="own: .* by another definition of it, which changed"):
        labkit.search(progress=False, **given)


@pytest.mark.parametrize(
    "losses",
    [
        (F.l1_loss, F.smooth_l1_loss),
        (functools.partial(F.huber_loss, delta=1), functools.partial(F.huber_loss, delta=2)),
        (nn.HuberLoss(delta=1), nn.HuberLoss(delta=2)),
        (nn.CrossEntropyLoss(torch.ones(1)), nn.CrossEntropyLoss(2 * torch.ones(1))),
    ],
)
def test_another_loss_is_another_search(losses: tuple[Any, Any], tmp_path: Path) -> None:
    given: Any = {"model": model(), "data": HOUSES, "widths": [0.5, 1], "folder": tmp_path}
    given |= {"loss": "own", "epochs": 1, "progress": False}
    LOSSES["own"], other = losses
    labkit.search(trials=1, **given)
    LOSSES["own"] = copy.deepcopy(losses[0])
    labkit.search(trials=2, **given)
    LOSSES["own"] = other
    with pytest.raises(LabkitError, match="own: .* by another definition of it, which changed"):
        labkit.search(trials=2, **given)


@pytest.mark.parametrize("name", ["parameters", "seconds"])
def test_a_metric_has_no_name_that_means_another(name: str) -> None:
    METRICS[name] = Metric("minimize", worst)
    given: Any = {"model": model(), "data": HOUSES, "widths": [0.5, 1]}
    with pytest.raises(LabkitError, match=f"metrics.{name}: a runner's metric, or a column of"):
        labkit.Search(objectives={name: "minimize"}, **given)


def test_two_modules_have_no_metric_of_one_name(toml: Path) -> None:
    load_config(toml)
    Path("other_task.py").write_text(MODULE)
    text = toml.read_text().replace("own_task:worst", "other_task:worst")
    with pytest.raises(LabkitError, match="a name of its own, got 'other_task:worst'"):
        load_config(tomllib.loads(text))


def test_rates_may_be_an_array() -> None:
    given: Any = {"model": model(), "data": HOUSES, "widths": [0.5, 1]}
    search = labkit.Search(learning_rate=np.logspace(-3, -1, 3), **given)
    assert search.config.training is not None
    assert search.config.training.learning_rate == pytest.approx((1e-3, 1e-2, 1e-1))


def test_what_a_runner_calls_accuracy_is_not_the_main_metric_of_a_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNNERS, "near", Runner(RunnerSettings, ("accuracy",), lambda *_: NEAR))
    tables = {**simple_tables([0.5, 1], "r2"), "model": "m", "dataset": "d"}
    tables["search"]["strategy"]["hw_runner"] = {"near": {}}
    tables["search"]["strategy"]["sw_runner"]["basic_train"] = {"max_epochs": 1, "replicates": 2}
    given: Any = {"model": model(), "data": HOUSES, "trials": 2, "folder": tmp_path}
    results = labkit.search(tables, progress=False, **given)
    assert results.best_trials["r2"].str.contains("±").all()


def test_the_best_network_is_the_best_over_all_seeds(tmp_path: Path) -> None:
    given: Any = {"model": model(), "data": HOUSES, "widths": [0.5, 1, 2], "epochs": 2}
    given |= {"objectives": {"parameters": "minimize", "total_flops": "maximize"}, "trials": 3}
    search = labkit.Search(folder=tmp_path, learning_rate=0.05, **given)
    first = search.run(progress=False)
    means = search.replicate(4, progress=False)
    assert means.best_trial() != first.best_trial()  # or else the test says nothing of it
    loaded = labkit.load_best(tmp_path, model=model()).state_dict()["0.weight"]
    assert torch.equal(loaded, means.best().state_dict()["0.weight"])
    verified = labkit.verify(tmp_path, model=model(), data=HOUSES, progress=False)
    assert verified.message.startswith(f"trial {means.best_trial()} agrees")


def test_what_does_not_train_has_no_training_loss() -> None:
    tables = {**simple_tables([0.5, 1]), "model": "m", "dataset": "d"}
    tables["search"]["strategy"]["sw_runner"] = {"basic_evaluation": {}, "basic_computations": {}}
    load_config(tables).replace(objectives={"f1": "maximize"})
    config = load_config(tables).replace(objectives={"train_loss": "minimize"})
    assert config.training is not None  # which was added


def test_a_metric_that_fails_fails_its_trial(caplog: pytest.LogCaptureFixture) -> None:
    METRICS["own"] = Metric("minimize", lambda outputs, targets: 1 / 0)
    results = labkit.search(
        model=model(), data=HOUSES, widths=[0.5, 1], objectives={"own": "minimize"}, trials=2,
        epochs=1, progress=False,
    )  # fmt: skip
    assert "metrics.own: ZeroDivisionError: division by zero" in caplog.text
    assert (results.trials["state"] == "FAIL").all()


@pytest.fixture
def with_rates(tmp_path: Path) -> tuple[labkit.Search, Dataset]:
    """A search of networks of which each trains with six pairs of rates; its folder is a/."""
    data = replace(HOUSES, name="houses")
    search = labkit.Search(
        model=model(), data=data, widths=[0.5, 1, 2], trials=3, epochs=3, folder=tmp_path / "a",
        learning_rate=[1e-6, 0.03, 0.1], weight_decay=[0, 1e6], optimizer="adamw",
    )  # fmt: skip
    return search, data


def test_each_network_counts_with_the_rates_that_are_best_for_it(
    with_rates: tuple[labkit.Search, Dataset], tmp_path: Path
) -> None:
    search, data = with_rates
    results = search.run(progress=False)
    assert search.progress is not None
    assert search.progress.total == search.progress.done == 3 * 6 * 3
    for trial in results.records:
        reached = {}
        for rate, decay in itertools.product([1e-6, 0.03, 0.1], [0, 1e6]):
            settings = labkit.TrainSettings(
                max_epochs=3, learning_rate=rate, weight_decay=decay, optimizer="adamw"
            )
            network = initialise(labkit.apply(model(), trial.record.plan), 0)
            with contextlib.suppress(LabkitError):  # it may diverge
                reached[rate, decay] = labkit.train(network, data, settings)[-1]["r2"]
        best = max(reached, key=lambda rates: reached[rates])
        assert trial.record.rates == {"learning_rate": best[0], "weight_decay": best[1]}
        assert trial.record.metrics["r2"] == pytest.approx(reached[best], abs=1e-3)
    assert set(results.trials["learning_rate"]) <= {0.03, 0.1}
    given: Any = {"model": model(), "data": data}
    assert labkit.verify(tmp_path / "a", progress=False, **given).agrees
    again = search.replicate(2, progress=False)
    number = results.best_trial()
    rates = results.records[number].record.rates
    network = initialise(labkit.apply(model(), results.plan(number)), 1)
    settings = labkit.TrainSettings(max_epochs=3, optimizer="adamw", **rates)
    second = labkit.train(network, data, settings, seed=1)[-1]["r2"]
    assert again.replicates(number)[1]["r2"] == pytest.approx(second, abs=1e-3)
    assert "learning_rate" in pd.read_csv(tmp_path / "a" / "trials.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": []}, r"learning_rate: expected a number above 0, or a list of differ"),
        ({"learning_rate": [1e-3, 1e-3]}, "learning_rate: expected a number above 0, or a list"),
        ({"learning_rate": [1e-3, True]}, "learning_rate: expected a number above 0, or a list"),
        ({"learning_rate": [1e-3, 0]}, "learning_rate: expected a number above 0, or a list of"),
        ({"learning_rate": 10**400}, "learning_rate: expected a number above 0, or a list of diff"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number above 0, .* got 'fast'"),
        ({"weight_decay": [float("nan")]}, "weight_decay: expected a number of 0 or more, or a l"),
        ({"weight_decay": -1}, "weight_decay: expected a number of 0 or more, or a list of"),
    ],
)
def test_wrong_rates_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        labkit.Search(model=model(), data=HOUSES, widths=[0.5, 1], **given)


def test_the_guides_examples_run() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        exec(compile(block, "tasks.md", "exec"), names)
    assert names["predicted"].shape == (40, 1)
    assert "worst" in names["worst_cases"].front
    assert len(names["focused"].trials) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "binary"}, "task: houses is for regression, got 'binary'"),
        ({"objectives": {"f1": "maximize"}}, "metrics: 'f1' is none of regression; expected loss"),
        ({"objectives": {"R2": "maximize"}}, "search.strategy.metrics.R2: no runner measures it"),
        ({"loss": "cross_entropy"}, "loss: expected mse_loss or huber_loss, or your own, for task"),
        ({"class_weights": "balanced"}, "class_weights: 'mse_loss' takes none; leave them out"),
        ({"select": "first"}, "basic_train.select: expected 'last' or 'best', got 'first'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], message: str) -> None:
    tables = {**simple_tables([0.5, 1], "r2"), "model": "m", "dataset": "d"}
    with pytest.raises(LabkitError, match=message):
        labkit.Search(load_config(tables).replace(**change), model=model(), data=HOUSES)
