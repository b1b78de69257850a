"""What a search trains first: the original network, and what one wants tried."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.config import load_config
from labkit.study.experiment import Experiment
from labkit.study.record import Source
from labkit.study.results import Results
from labkit.study.search import Search, search
from labkit.study.studies import open_study
from labkit.transform import Plan, get_model

ORIGINAL = {"seq_blocks_2": 8, "seq_blocks_5": 8}
SAMPLERS = ["known-cost", "random", "tpe", "gp", "nsgaii", "qmc", "bruteforce"]


def run(blobs: Dataset, **options: Any) -> Results:
    known: dict[str, Any] = {"widths": [0.5, 1, 2], "trials": 3, "epochs": 1, "progress": False}
    return search(model=get_model("jsc-toy"), data=blobs, **(known | options))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_original_comes_first_and_once(
    sampler: str, tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    setup = tables["search"]["strategy"]["setup"]
    setup |= {"sampler": sampler, "n_trials": 3}
    search(tables, data=blobs, folder=tmp_path, progress=False)
    setup["n_trials"] = 6
    results = search(tables, data=blobs, folder=tmp_path, progress=False)
    assert results.original == 0
    assert results.records[0].record.widths == ORIGINAL
    assert results.records[0].params
    assert len(results.records) == 6
    again = [t.record.source for t in results.records[1:] if t.record.widths == ORIGINAL]
    assert set(again) <= {Source.LOOKED_UP}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_original_outside_the_space_disturbs_no_sampler(
    sampler: str, tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    config = load_config(tables | {"dataset": "blobs"}).replace(
        widths=[0.5, 2, 3, 4], sampler=sampler, n_jobs=4
    )
    inside = {(16 * a, 16 * b) for a in (0.25, 1, 1.5, 2) for b in (0.25, 1, 1.5, 2)}
    n_trials = 17 if sampler == "bruteforce" else 14
    for n in (3, n_trials):
        one = Search(config.replace(n_trials=n), data=blobs, folder=tmp_path)
        results = one.run(progress=False)
    plans = [tuple(trial.record.widths.values()) for trial in results.records]
    assert plans[0] == (8, 8)
    assert set(plans[1:]) <= inside
    assert results.records[0].params == {}
    assert one.space.channels.free[0].width == 8
    if sampler in ("known-cost", "bruteforce"):
        assert len(set(plans)) == n_trials
    if sampler == "gp":  # whose model is of all parameters
        space = one.store._proposals._study.sampler.infer_relative_search_space(  # type: ignore[attr-defined]
            one.store._proposals._study, None
        )
        assert set(space) == set(one.space.distributions)
    assert Results.from_study(open_study(tmp_path)).original == 0
    # Its front, which may hold the original, is where another search can start.
    named = config.replace(start_from=str(tmp_path), baseline=False)
    first = {str(plan) for plan in Experiment(named, data=blobs).first}
    assert first == set(results.front["network"])


def test_without_it_the_sampler_begins(tables: dict[str, Any], blobs: Dataset) -> None:
    one = Search(tables, data=blobs, baseline=False)
    assert one.experiment.first == []
    tables["search"]["strategy"]["setup"]["baseline"] = False
    assert Search(tables, data=blobs).experiment.first == []


def test_what_one_wants_tried_comes_next(blobs: Dataset, tmp_path: Path) -> None:
    wanted = [
        {"seq_blocks.2": 16, "seq_blocks_5": 0.5}, Plan((("seq_blocks_2", 4), ("seq_blocks_5", 4))),
        {"seq_blocks_2": np.int64(8)}, {"seq_blocks_5": 2.0},
    ]  # fmt: skip
    results = run(blobs, start_from=wanted, trials=5, folder=tmp_path / "one")
    widths = [tuple(trial.record.widths.values()) for trial in results.records]
    assert widths[:4] == [(8, 8), (16, 4), (4, 4), (8, 16)]  # the third is the original
    assert len(set(widths)) == 5
    front = [trial.record.widths for trial in results.front_trials]

    # A folder stands for its front, and is not asked again: the new one can be continued alone.
    other = run(blobs, start_from=tmp_path / "one", trials=6, baseline=False, folder=tmp_path / "b")
    assert [trial.record.widths for trial in other.records[: len(front)]] == front
    named = load_config(tmp_path / "b" / "config.toml").replace(start_from=str(tmp_path / "one"))
    first = Experiment(named, get_model("jsc-toy"), blobs).first  # as `labkit show` makes one
    assert [plan.to_dict() for plan in first] == front
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    config = load_config(tmp_path / "b" / "config.toml").replace(n_trials=7)
    again = Search(config, model=get_model("jsc-toy"), data=blobs, folder=tmp_path / "b")
    assert len(again.run(progress=False).records) == 7


def test_a_folder_beside_a_configuration(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"] |= {"n_trials": 2, "start_from": "nowhere"}
    with pytest.raises(LabkitError, match=r"start_from: folder: .*nowhere"):
        Search(tables, data=blobs)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([{"seq_blocks_2": 15}], "network 1 .*: 15, .* is not in the space; the nearest .*: 16, "),
        ([{"seq_blocks_2": 16}, {"seq_block_2": 4}], "network 2: .*did you mean 'seq_blocks_2'"),
        ([{"seq_blocks_2": True}], "seq_blocks_2: expected channels or a multiplier, got True"),
        ([{"seq_blocks_2": float("nan")}], "network 1: .*expected a positive number.* got nan"),
        ([{"seq_blocks_2": 0}], "network 1: .*seq_blocks_2: expected a positive multiple.* got 0"),
        ([{"seq_blocks_8": 7}], "network 1: seq_blocks_8: .*width must stay 5"),
        ([{}], "expected a table of layer → channels"),
        ([3], "expected a table of layer → channels .*, got 3"),
        ({"seq_blocks_2": 16}, "expected a results folder, or a list of a table"),
        ([Plan((("a", 3),))], "network 1: a: no such layer"),
        (7, "expected a results folder, or a list"),
    ],
)
def test_what_cannot_be_tried_is_named(wanted: Any, said: str, blobs: Dataset) -> None:
    with pytest.raises(LabkitError, match=f"start_from.*{said}"):
        run(blobs, start_from=wanted)


class Residual(nn.Module):
    """A network in which two layers have the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(x + self.last(torch.relu(self.inner(x))))


def test_layers_with_the_same_channels_cannot_be_of_two_widths(blobs: Dataset) -> None:
    def first(**widths: int) -> str:
        given = {"model": Residual(), "data": blobs, "widths": [0.5, 1, 2], "start_from": [widths]}
        return str(Search(baseline=False, **given).experiment.first[0])  # type: ignore[arg-type]

    assert first(first=8, last=8) == "first: 8, inner: 16"
    with pytest.raises(LabkitError, match="network 1: last: .*channels as first, got .*32"):
        first(first=8, last=32)


@pytest.mark.parametrize(("widths", "n"), [([0.5, 1, 2], 9), ([0.5, 2], 5)])
def test_an_original_outside_the_space_is_one_more_network(
    widths: list[float], n: int, blobs: Dataset
) -> None:
    setup: dict[str, Any] = {"sampler": "bruteforce", "trials": 20, "epochs": 1, "n_jobs": 1}
    one = Search(model=get_model("jsc-toy"), data=blobs, widths=widths, **setup)
    assert one.experiment.n_networks == n == len(one.run(progress=False).networks)
    assert one.progress is not None
    assert one.progress.total == n


def test_what_is_beyond_a_limit_is_not_tried(blobs: Dataset) -> None:
    limits = {"parameters": 400}
    wanted = [{"seq_blocks_2": 16}, {"seq_blocks_2": 4}]
    one = Search(
        model=get_model("jsc-toy"), data=blobs, widths=[0.5, 1, 2], limits=limits,
        start_from=wanted,
    )  # fmt: skip
    assert [plan.to_dict()["seq_blocks_2"] for plan in one.experiment.first] == [8, 4]
    assert one.experiment.said[1:] == [
        "start_from: network 1 (seq_blocks_2: 16, seq_blocks_5: 8) is not trained: it is beyond "
        "the limits"
    ]
    tight = Search(
        model=get_model("jsc-toy"), data=blobs, widths=[0.5, 1, 2], limits={"parameters": 250}
    )
    assert tight.experiment.first == []
    assert tight.experiment.said[1].startswith("the original network is not trained")


def test_more_networks_than_trials_is_said(blobs: Dataset) -> None:
    wanted = [{"seq_blocks_2": 16}, {"seq_blocks_2": 32}]
    two, three = (
        Search(
            model=get_model("jsc-toy"), data=blobs, widths=[1, 2, 4], trials=trials,
            start_from=wanted,
        )
        for trials in (2, 3)
    )  # fmt: skip
    said = "2 of the 3 networks that are asked for are trained"
    assert two.experiment.said[-1] == said
    assert said not in three.experiment.said


def test_a_study_that_was_made_before_there_was_any_of_this_goes_on(
    tables: dict[str, Any], blobs: Dataset
) -> None:
    """It knows its settings; a key that it lacks would be one that changed."""
    plain = Search(tables, data=blobs, baseline=False).store.description.identity
    assert plain == Search(tables, data=blobs).store.description.identity
    assert plain.settings["task"] == "cls"
    new = [key for key in plain.settings if "baseline" in key or "start" in key or "limits" in key]
    assert new == []
