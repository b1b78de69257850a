"""Limits: what breaks one is not trained where that is known, and is nowhere counted as found."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.plots import pareto_front
from labkit.show.trial_report import trial_report
from labkit.study.config import load_config
from labkit.study.hypervolume import hypervolume_history
from labkit.study.limits import Limits, bounds_of, limits_text
from labkit.study.record import Record
from labkit.study.results import Results
from labkit.study.search import Search, search
from labkit.study.spaces import ChannelMultiplierSpace
from labkit.study.store import Store
from labkit.study.studies import open_study, read_trials
from labkit.transform import Plan, apply, find_channels, get_model, total_cost
from tests.study.conftest import description


def flops(plan: Plan) -> int:
    """FLOPs of a network that is built."""
    return total_cost(apply(get_model("jsc-toy"), plan)).total_flops


@pytest.mark.parametrize("sampler", ["known-cost", "random", "tpe", "nsgaii", "qmc", "bruteforce"])
def test_what_breaks_a_limit_is_never_trained(
    sampler: str, tables: dict[str, Any], blobs: Dataset
) -> None:
    costs = {plan: flops(plan) for plan in Search(tables, data=blobs).space.networks}
    limit = sorted(costs.values())[4]
    within = {plan for plan, cost in costs.items() if cost <= limit}
    strategy = tables["search"]["strategy"]
    strategy["limits"] = {"total_flops": limit}
    strategy["setup"] |= {"n_trials": 30, "sampler": sampler}
    limited = Search(tables, data=blobs)
    of = f"of 16 networks {len(within)} are within total_flops ≤ {limit:,}"
    assert limited.experiment.said == [of]
    results = limited.run(progress=False)
    trained = {trial.record.plan for trial in results.records}
    assert trained <= within
    assert len(trained) >= len(within) - 1  # what a sampler may miss
    assert results.counts().endswith(f", 0 failed; all within total_flops ≤ {limit:,}")
    assert all(trial.state == TrialState.COMPLETE for trial in limited.study.trials)
    assert {len(trial.system_attrs["constraints"]) for trial in limited.study.trials} == {1}


def deep() -> nn.Sequential:
    """A network of three groups of channels."""
    layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(64, 5))


MANY = [i / 32 for i in range(1, 31)]


@pytest.mark.parametrize("sampler", ["known-cost", "random", "tpe"])
def test_a_narrow_limit_of_a_large_space_leaves_a_search_useful(
    sampler: str, tables: dict[str, Any], blobs: Dataset
) -> None:
    config = load_config(tables | {"dataset": "blobs"}).replace(
        widths=MANY, n_trials=12, sampler=sampler, limits={"parameters": 400}
    )
    one = Search(config, model=deep(), data=blobs)
    assert one.space.n_configurations == 30**3
    counted = re.match(r"of [0-9,]+ networks drawn at random (\d+) are", one.experiment.said[0])
    assert counted is not None
    assert int(counted[1]) < 40
    results = one.run(progress=False)
    assert len(results.networks) >= 9
    assert results.trials["parameters"].max() <= 400


def test_a_search_that_nothing_is_within_is_refused(tables: dict[str, Any], blobs: Dataset) -> None:
    smallest = min(map(flops, Search(tables, data=blobs).space.networks))
    strategy = tables["search"]["strategy"]
    strategy["limits"] = {"total_flops": smallest}
    Search(tables, data=blobs)
    strategy["limits"] = {"parameters": 10**9, "total_flops": smallest - 1}
    said = f"limits: none is within total_flops ≤ {smallest - 1:,} of 16 networks: the nearest has "
    with pytest.raises(LabkitError, match=f"{said}{smallest:,}"):
        Search(tables, data=blobs)
    config = load_config(tables | {"dataset": "blobs"}).replace(widths=MANY)
    narrow = apply(deep(), Plan((("_0", 2), ("_2", 2), ("_4", 2))))
    smallest = sum(parameter.numel() for parameter in narrow.parameters())
    said = f"parameters ≤ 50 of [0-9,]+ networks drawn at random: the nearest has {smallest}"
    with pytest.raises(LabkitError, match=said):
        Search(config.replace(limits={"parameters": 50}), model=deep(), data=blobs)


def test_a_network_that_misses_what_it_must_reach_is_left_out(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    strategy = tables["search"]["strategy"]
    strategy["setup"] |= {"n_trials": 16, "sampler": "bruteforce"}
    whole = search(tables, data=blobs, progress=False)
    reached = sorted(whole.networks["accuracy"])[8]
    limits = {"accuracy": reached}
    results = search(tables, data=blobs, folder=tmp_path, limits=limits, progress=False)
    trained = results.trials
    assert len(trained) == 16
    assert trained["accuracy"].tolist() == whole.trials["accuracy"].tolist()
    missed = trained["accuracy"] < reached
    assert (trained["breaks"] == "accuracy").tolist() == missed.tolist()
    assert set(results.networks.index) == set(trained.index[~missed])
    text = f"{missed.sum()} left out as not within {limits_text({'accuracy': ('≥', reached)})}"
    assert results.counts().endswith(text)
    # The front is that of what is left, as Optuna has it; so are the figures.
    best = {trial.number for trial in open_study(tmp_path).best_trials}
    assert {trial.number for trial in results.front_trials} == best
    assert missed.any()
    assert not missed[list(best)].any()
    figure = pareto_front(results)
    assert sum(len(trace.x) for trace in figure.data if trace.customdata) == (~missed).sum()
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1) == (reached, reached)
    assert {int(path.stem[6:]) for path in tmp_path.glob("best/*.json")} == best
    channels = find_channels(get_model("jsc-toy"))
    for number in (missed.idxmax(), (~missed).idxmax()):
        report = trial_report(results, number, channels, tmp_path, given=False)
        assert ("It is beyond a limit" in report) == missed[number]
    grown = hypervolume_history({"one": results}, reference=(0, 10**6))["hypervolume"]
    assert len(grown) == 16
    assert (np.diff(grown)[missed[1:]] == 0).all()
    with pytest.raises(LabkitError, match=r"limits.accuracy: .* a search with .*, not 0.1"):
        search(tables, data=blobs, folder=tmp_path, limits={"accuracy": 0.1}, progress=False)
    nothing = search(tables, data=blobs, limits={"accuracy": 1.1}, progress=False)
    assert nothing.front.empty
    with pytest.raises(LabkitError, match="no network that was trained is within accuracy ≥ 1.1"):
        nothing.best()


def test_a_trial_that_is_given_up_is_recorded_and_known_to_the_sampler(tmp_path: Path) -> None:
    """As in a space that is so large that no network within a limit is met."""
    table = {"default": {"config": {"channel_multiplier": [1, 2, 4]}}}
    space = ChannelMultiplierSpace(get_model("jsc-toy"), {"by": "name"}, table)
    limits = Limits({"width": ("≤", 1)}, lambda plan: {"width": max(plan.to_dict().values())})
    known: dict[str, Any] = {"known": lambda plan: [math.nan], "limits": limits, "seed": 0}
    file = tmp_path / "study.db"
    store = Store(file, "s", description(), space, sampler="tpe", **known)
    (asked,) = store.ask(1)
    assert asked.plan is not None
    drawn = store._proposals._study.trials
    assert [trial.state for trial in drawn] == [TrialState.PRUNED] * 8 + [TrialState.RUNNING]
    assert all(trial.system_attrs["constraints"][0] > 0 for trial in drawn[:8])
    excess = limits.known(asked.plan)
    store.tell(asked, Record(widths=asked.plan.to_dict(), constraints=excess), None)
    (trial,) = open_study(tmp_path).trials
    assert trial.state == TrialState.PRUNED
    again = Store(file, "s", description(), space, sampler="tpe", **known)
    assert again.trials[0].record.constraints == excess
    assert again._proposals._study.trials[0].system_attrs == {"constraints": [*excess.values()]}
    results = Results(read_trials(again.study), description())
    assert results.trials["state"].tolist() == ["PRUNED"]
    assert results.front.empty


def test_a_limit_is_at_most_unless_more_is_better(tables: dict[str, Any]) -> None:
    strategy = tables["search"]["strategy"]
    strategy["limits"] = {"accuracy": 0.5, "loss": 1, "accuracy_macro": 0.25, "total_flops": 2000}
    bounds = bounds_of(load_config(tables).search.strategy)
    signs = {metric: sign for metric, (sign, _) in bounds.items()}
    assert signs == {"accuracy": "≥", "loss": "≤", "accuracy_macro": "≥", "total_flops": "≤"}
    strategy["metrics"]["total_flops"] = {"scale": -1, "direction": "maximize"}  # the same
    assert bounds_of(load_config(tables).search.strategy) == bounds
    limits = Limits(bounds, lambda plan: {})
    excess = limits.excess({"accuracy": 0.4, "loss": 1, "total_flops": 3000})
    assert excess == pytest.approx({"accuracy": 0.2, "loss": 0, "total_flops": 0.5})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"total_flop": 1}, "limits.total_flop: no runner measures it; did you mean 'total_flops'"),
        ({"total_flops": math.nan}, "limits.total_flops: expected a finite number, got nan"),
        ({"total_flops": True}, "limits.total_flops: expected a valid number, got True"),
        ({"total_flops": "9"}, "limits.total_flops: expected a valid number, got '9'"),
        (["total_flops"], r"limits: expected a valid dictionary, got \['total_flops'\]"),
    ],
)
def test_a_wrong_limit_is_named(
    limits: Any, said: str, tables: dict[str, Any], blobs: Dataset
) -> None:
    with pytest.raises(LabkitError, match=said):
        Search(tables, data=blobs, limits=limits)


def test_what_measures_a_limit_is_added(tables: dict[str, Any], blobs: Dataset) -> None:
    del tables["search"]["strategy"]["hw_runner"]
    one = Search(tables, data=blobs, limits={"latency": np.float64(5)})
    assert "latency" in one.config.search.strategy.sw_runner
    assert one.experiment.said == []  # nothing is known of it


def test_a_sum_of_metrics_keeps_limits(tables: dict[str, Any], blobs: Dataset) -> None:
    setup = tables["search"]["strategy"]["setup"]
    setup |= {"sum_scaled_metrics": True, "direction": "maximize", "sampler": "known-cost"}
    limits = {"total_flops": 1200}
    results = search(tables, data=blobs, limits=limits, progress=False)
    assert 0 < results.trials["total_flops"].max() <= 1200


def test_the_guides_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        exec(compile(block, "limits.md", "exec"), names)
    assert "within total_flops ≤ 500, accuracy ≥ 0.5\n" in capsys.readouterr().out
    assert names["results"].trials["total_flops"].max() <= 500
    table = names["results"].front_table()
    assert names["results"].original == 0
    assert table["total_flops to original"].str.startswith("×").all()
    widths = [tuple(trial.record.widths.values()) for trial in names["again"].records]
    assert widths[:3] == [(16, 16), (4, 8), (32, 16)]
    (block,) = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    limits = tomllib.loads(block)["search"]["strategy"]["limits"]
    assert limits == {"total_flops": 500, "accuracy": 0.5}
