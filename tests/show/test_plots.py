"""The figures, as data; and one as a file."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.show import plots
from labkit.show.tables import compare
from labkit.study.hypervolume import dominated_volume, hypervolume_history
from labkit.study.results import Results
from labkit.transform.models import get_model
from labkit.transform.passes import linear_multiplier_transform_pass


@pytest.fixture
def results() -> Results:
    """Four trained networks, two of them on the front, and a failure."""
    trials = pd.DataFrame(
        {
            "number": range(5),
            "state": ["COMPLETE"] * 4 + ["FAIL"],
            "source": ["trained"] * 4 + [None],
            "elapsed": [1.0, 3.0, 6.0, 10.0, 15.0],
            "network": ["a: 8, b input: 8", "a: 16, b input: 8", "a: 16, b input: 4",
                        "a: 8, b input: 4", None],
            "accuracy": [0.5, 0.75, 0.6, 0.4, np.nan],
            "total_flops": [100, 300, 400, 200, np.nan],
        }
    ).set_index("number")  # fmt: skip
    best = pd.DataFrame({"number": [0, 1]})
    about = {"model": "toy", "dataset": "blobs", "seed": 1, "convention": "reference",
             "original": "a: 8, b input: 8"}  # fmt: skip
    return Results(trials, best, {"accuracy": "maximize", "total_flops": "minimize"}, about)


def test_hypervolume_is_the_area_under_the_steps(results: Results) -> None:
    history = hypervolume_history({"tpe": results}, reference=[0.25, 400])
    # The box is 0.5 by 300. First 0.25 × 300; then 0.5 × 100 and, to its right, 0.25 × 200.
    assert history["hypervolume"].tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 3, 2 / 3])
    assert history["seconds"].tolist() == [1, 3, 6, 10]
    assert history["trial"].tolist() == [1, 2, 3, 4]


def test_hypervolumes_share_a_reference_point(results: Results) -> None:
    worse = replace(results, trials=results.trials.assign(accuracy=0.4))
    history = hypervolume_history({"tpe": results, "random": worse})
    assert history.groupby("search")["hypervolume"].last()["random"] == 0
    figure = plots.hypervolume({"tpe": results, "random": worse}, against="seconds")
    assert [trace.name for trace in figure.data] == ["tpe", "random"]
    assert list(figure.data[0].x) == [1, 3, 6, 10]


def test_what_is_worse_than_the_reference_counts_nothing(results: Results) -> None:
    history = hypervolume_history({"tpe": results}, reference=[0.25, 250])
    # The box is 0.5 by 150: the second network is better than all others, and too dear.
    assert history["hypervolume"].tolist() == pytest.approx([1 / 2] * 4)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_volume_against_random_points_of_the_box(axes: int) -> None:
    rng = np.random.default_rng(axes)
    losses = rng.random((12, axes)).round(1)  # with ties
    thrown = rng.random((200_000, axes))
    dominated = (losses[:, None] <= thrown).all(axis=2).any(axis=0).mean()
    assert dominated_volume(losses, np.ones(axes)) == pytest.approx(dominated, abs=0.005)


def test_volume_of_two_boxes() -> None:
    losses = np.array([[0.0, 0, 2], [1, 1, 0], [5, 0, 0]])
    # 4 × 4 × 2 and 3 × 3 × 4, which share 3 × 3 × 2; the last point is outside.
    assert dominated_volume(losses, np.full(3, 4.0)) == 32 + 36 - 18


def test_hypervolume_says_what_is_wrong(results: Results) -> None:
    other = replace(results, objectives={"accuracy": "maximize"})
    with pytest.raises(LabkitError, match="different objectives"):
        hypervolume_history({"a": results, "b": other})
    with pytest.raises(LabkitError, match="no trial has finished"):
        hypervolume_history({"a": replace(results, trials=results.trials[4:])})
    with pytest.raises(LabkitError, match="against: expected"):
        plots.hypervolume({"a": results}, against="epochs")


def test_the_front_has_spread_where_there_are_replicates(results: Results) -> None:
    assert plots.pareto_front(results).data[1].error_y.array is None
    spread = replace(results, trials=results.trials.assign(accuracy_std=[0.1, 0.2, 0.3, 0.4, None]))
    front = plots.pareto_front(spread).data[1]
    assert list(front.error_y.array) == [0.1, 0.2]
    assert "±" in front.hovertemplate


def test_the_reports_points_only_on_the_axes_that_they_belong_on(results: Results) -> None:
    assert 512512 in plots.pareto_front(results, published=True).data[-1].x
    other = replace(results, about={**results.about, "convention": "inference"})
    with pytest.raises(LabkitError, match="published: .* by 'inference'"):
        plots.pareto_front(other, published=True)


def test_widths_along_the_front(results: Results) -> None:
    a, b = plots.widths_along_front(results).data
    assert (a.name, list(a.x), list(a.y)) == ("a", [100, 300], [8, 16])
    assert (b.name, list(b.y)) == ("b input", [8, 8])


def test_importance_is_of_the_width_that_matters(results: Results) -> None:
    trials = results.trials.assign(accuracy=[0.1, 0.9, 0.9, 0.1, None])  # follows a alone
    accuracy, _ = plots.width_importance(replace(results, trials=trials)).data
    assert list(accuracy.y) == ["a", "b input"]
    assert accuracy.x[0] > 0.8
    with pytest.raises(LabkitError, match="different widths"):
        plots.width_importance(replace(results, trials=results.trials[:1]))


def test_training_curves() -> None:
    history = [{"accuracy": 0.1, "train_accuracy": 0.2}, {"accuracy": 0.3, "train_accuracy": 0.4}]
    solid, dashed = plots.training_curves({"trial 1": history}).data
    assert (list(solid.x), list(solid.y)) == ([1, 2], [0.1, 0.3])
    assert (dashed.line.dash, list(dashed.y)) == ("dash", [0.2, 0.4])


def test_names_are_no_markup(results: Results) -> None:
    named = replace(results, about={**results.about, "dataset": "<b>mine</b>"})
    for figure in (plots.pareto_front(named), plots.hypervolume({"<i>one</i>": named})):
        assert "&lt;b&gt;mine" in figure.layout.title.text
    assert figure.data[0].name == "&lt;i&gt;one&lt;/i&gt;"


def test_layers_before_and_after() -> None:
    model = get_model("jsc-toy")
    request = {"config": {"name": "output_only", "channel_multiplier": 4}}
    pass_config = {"by": "name", "default": {"config": {"name": None}}, "seq_blocks_5": request}
    comparison = compare(model, linear_multiplier_transform_pass(model, pass_config)[0])
    before, after = plots.layer_costs(comparison).data
    i = list(before.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i]) == (64, 256)
    before, after = plots.network_drawing(comparison).data
    i = list(before.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i], after.base[i]) == (8, 32, -16)


@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")), reason="there is no Chromium"
)
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_images(results: Results, tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"front.{suffix}"
    plots.save_image(plots.pareto_front(results), path)
    assert path.read_bytes().startswith(magic)


def test_an_image_of_another_kind(results: Results) -> None:
    with pytest.raises(LabkitError, match=r"path: expected .* got 'front.gif'"):
        plots.save_image(plots.pareto_front(results), "front.gif")
