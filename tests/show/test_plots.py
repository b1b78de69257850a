"""The figures, as data; and one as a file."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from labkit import compare, get_model, linear_multiplier_transform_pass
from labkit.errors import LabkitError
from labkit.show import plots
from labkit.show.page import write_page
from labkit.show.widgets import figure_widget, update
from labkit.study.hypervolume import hypervolume_history
from labkit.study.results import Results
from tests.show.studies import study

WIDTHS = [{"a": a, "b input": b} for a, b in ((8, 8), (16, 8), (16, 4), (8, 4))]


def measured(accuracies: list[float], flops: list[float], **more: list[float]) -> Any:
    """Networks of two groups with these metrics."""
    columns = {"accuracy": accuracies, "total_flops": flops, **more}
    return [(w, dict(zip(columns, row))) for w, row in zip(WIDTHS, zip(*columns.values()))]


TRIALS = [*measured([0.5, 0.75, 0.6, 0.4], [100, 300, 400, 200]), ({}, None)]


@pytest.fixture
def results() -> Results:
    """Four trained networks, two of them on the front, and a failure."""
    return study(TRIALS)


def test_a_figure_of_hypervolume_has_its_steps_and_its_end(results: Results) -> None:
    (steps,) = plots.hypervolume({"tpe": results}, reference=[0.25, 400]).data
    assert list(steps.x) == [1, 2, 4]
    assert list(steps.y) == pytest.approx([1 / 2, 2 / 3, 2 / 3])


def test_a_front_is_of_any_two_metrics(results: Results) -> None:
    three = study(measured([0.5, 0.75, 0.6, 0.4], [100, 300, 400, 200], f1=[0.4, 0.5, 0.7, 0.3]))
    dominated, front = plots.pareto_front(three, axes=("f1", "total_flops")).data[:2]
    assert (list(front.x), list(front.y)) == ([100, 300, 400], [0.4, 0.5, 0.7])
    assert (list(dominated.x), front.mode) == ([200], "lines+markers")
    _, front = plots.pareto_front(three, axes=("accuracy", "f1")).data[:2]
    assert list(front.y) == [0.75, 0.6]  # both are maximised
    for axes in ("f1", ("f1",), ("f1", "f1"), ("f1", "energy"), ("f1", []), 3):
        with pytest.raises(LabkitError, match="axes: expected two of .*accuracy, total_flops, f1"):
            plots.pareto_front(three, axes=axes)  # type: ignore[arg-type]


def test_parallel_coordinates_are_widths_and_objectives(tmp_path: Path) -> None:
    ways: Any = {"accuracy": "maximize", "total_flops": "minimize", "f1": "maximize"}
    trials = measured([0.5, 0.75, 0.6, math.nan], [100, 300, 400, 200], f1=[0.4, 0.5, 0.4, 0.3])
    results = study(trials, ways)
    (lines,) = plots.parallel_coordinates(results).data
    drawn = {one.label: list(one.values) for one in lines.dimensions}
    assert [*drawn] == ["a", "b input", *ways]
    # The front's last, above the others.
    assert list(lines.line.color) == [0, 1, 1]
    assert drawn["accuracy"] == [0.6, 0.5, 0.75]
    assert drawn["a"] == [16, 8, 16]
    write_page(results, tmp_path / "page.html")
    assert "parcoords" in (tmp_path / "page.html").read_text()[-200_000:]
    empty = plots.parallel_coordinates(study([]))
    assert empty.layout.annotations[0].text == "No network yet."


def test_hypervolumes_share_a_reference_point(results: Results) -> None:
    worse = study(measured([0.4] * 4, [100, 300, 400, 200]))
    history = hypervolume_history({"tpe": results, "random": worse})
    assert history.groupby("search")["hypervolume"].last()["random"] == 0
    figure = plots.hypervolume({"tpe": results, "random": worse}, against="seconds")
    assert [trace.name for trace in figure.data] == ["tpe", "random"]
    assert list(figure.data[0].x) == [1, 3, 10]


def test_hypervolume_says_what_is_wrong(results: Results) -> None:
    other = study(TRIALS, {"accuracy": "maximize"})
    with pytest.raises(LabkitError, match="different objectives"):
        hypervolume_history({"a": results, "b": other})
    with pytest.raises(LabkitError, match="against: expected"):
        plots.hypervolume({"a": results}, against="epochs")


def test_the_front_is_stepped_and_the_first_network_ringed(results: Results) -> None:
    dominated, front, original = plots.pareto_front(results).data
    assert (list(front.x), list(front.y)) == ([100, 300], [0.5, 0.75])
    assert list(dominated.x) == [200, 400]
    assert list(front.customdata[1]) == [1, "a: 16<br>b input: 8", ""]
    assert list(original.x) == [100]
    assert front.mode == "lines+markers"
    three = {"accuracy": "maximize", "total_flops": "minimize", "loss": "minimize"}
    trials = measured([0.5, 0.75, 0.6, 0.4], [100, 300, 400, 200], loss=[1, 2, 3, 0])
    assert plots.pareto_front(study(trials, three)).data[1].mode == "markers"  # not one line


def test_the_front_has_spread_where_there_are_replicates(results: Results) -> None:
    assert plots.pareto_front(results).data[1].error_y.array is None
    spread = measured([0.5, 0.75], [100, 300], accuracy_std=[0.1, math.nan])
    front = plots.pareto_front(study(spread)).data[1]
    assert list(front.error_y.array) == [0.1, None]
    assert [said for _, _, said in front.customdata] == [" ± 0.1000", ""]


def test_the_reports_points_only_on_the_axes_that_they_belong_on(results: Results) -> None:
    assert 512512 in plots.pareto_front(results, published=True).data[-1].x
    with pytest.raises(LabkitError, match="published: .* by 'inference'"):
        plots.pareto_front(study(TRIALS, convention="inference"), published=True)


def test_widths_along_the_front(results: Results) -> None:
    a, b = plots.widths_along_front(results).data
    assert (a.name, list(a.x), list(a.y)) == ("a", [100, 300], [8, 16])
    assert (b.name, list(b.y)) == ("b input", [8, 8])
    assert a.marker.symbol != b.marker.symbol


def test_importance_is_of_the_width_that_matters() -> None:
    trials = measured([0.1, 0.9, 0.9, 0.1], [100, 300, 400, 200])  # accuracy follows a alone
    accuracy, _ = plots.width_importance(study(trials)).data
    assert list(accuracy.y) == ["a", "b input"]
    assert accuracy.x[0] > 0.8
    assert accuracy.x[1] < 0.1


def grid(values: list[int]) -> Iterator[tuple[int, int]]:
    return ((a, b) for a in values for b in values)


def test_importance_is_the_share_of_the_variance() -> None:
    """Against the variance of the means: the whole space is there, and each network once."""
    widths = [8, 12, 16, 32, 64, 128, 256, 512]
    metrics = {  # of two sums the shares are known; what the product of signs makes, neither does
        (a, b): {"accuracy": 2.0 * i + j, "total_flops": (1.0 if i < 4 else -1) * (j - 3.5)}
        for (i, a), (j, b) in (
            ((i, a), (j, b)) for i, a in enumerate(widths) for j, b in enumerate(widths)
        )
    }
    trials = [({"a": a, "b": b}, measured) for (a, b), measured in metrics.items()]
    sums, products = plots.width_importance(study(trials)).data
    assert list(sums.x) == pytest.approx([0.8, 0.2], abs=0.05)
    assert max(products.x) < 0.2


def test_importance_of_many_networks_is_of_some_and_says_so() -> None:
    rng = np.random.default_rng(0)
    widths = [{"a": int(a), "b": int(b)} for a, b in rng.integers(1, 9, (2000, 2))]
    trials = [(w, {"accuracy": float(w["a"]), "total_flops": 2.0}) for w in widths]
    figure = plots.width_importance(study(trials))
    subtitle = figure.layout.title.subtitle.text
    assert "from 1,000 of 2,000 networks, drawn at random" in subtitle
    assert "total_flops does not vary" in subtitle
    (accuracy,) = figure.data
    assert list(accuracy.x) == pytest.approx([1, 0], abs=0.01)


def test_training_curves() -> None:
    history = [{"accuracy": 0.1, "train_accuracy": 0.2}, {"accuracy": 0.3, "train_accuracy": 0.4}]
    solid, dashed = plots.training_curves({"trial 1": history}).data
    assert (list(solid.x), list(solid.y)) == ([1, 2], [0.1, 0.3])
    assert (dashed.line.dash, list(dashed.y)) == ("dash", [0.2, 0.4])
    history[0]["accuracy"] = math.inf
    assert plots.training_curves({"trial 1": history}).data[0].y == (None, 0.3)


def test_names_are_no_markup() -> None:
    objectives = {"<b>": "maximize", "$x$": "minimize"}
    trials = [
        ({"<i>g</i>": 8}, {"<b>": 1.0, "$x$": 5.0}),
        ({"<i>g</i>": 16}, {"<b>": 2.0, "$x$": 6.0}),
    ]
    named = study(trials, objectives, model="<u>m</u>", dataset="%{x}", seed="<s>")  # type: ignore[arg-type]
    drawn = [*every_figure(named), plots.hypervolume({"<i>one</i>": named})]
    for figure in drawn:
        shown = json.dumps(figure.to_plotly_json(), default=list)
        for markup in ("<b>", "$x$", "<i>", "<u>", "%{x}<", "<s>"):
            assert markup not in shown.replace("%{x:,}", ""), markup
    assert "&lt;u&gt;m&lt;/u&gt; on &#37;{x}" in drawn[0].layout.title.text
    assert drawn[-1].data[0].name == "&lt;i&gt;one&lt;/i&gt;"


def every_figure(results: Results) -> Iterator[go.Figure]:
    """Every figure of `labkit.plots` that is of a search."""
    yield plots.pareto_front(results)
    yield plots.hypervolume({"a": results})
    yield plots.hypervolume({"a": results, "b": results}, against="seconds")
    yield plots.widths_along_front(results)
    yield plots.width_importance(results)
    for metric in ("accuracy", "loss"):
        yield plots.training_curves({str(n): h for n, h in results.histories.items()}, metric)


FAILED = ({}, None)
TIES = [0.5] * 4
HONEST = {
    "all are equally accurate": measured([1.0] * 4, [100, 300, 400, 200]),
    "all cost the same": measured([0.5, 0.75, 0.6, 0.4], TIES),
    "all are the same": measured(TIES, TIES),
    "one differs": measured([0.5, 0.5, 0.5, 0.5 + 1e-16], [1, 1, 1, 1 + 1e-12]),
    "differences vanish in their squares": measured([0, 0, 0, 1e-200], [100, 300, 400, 200]),
    "one trial": measured([0.5], [100]),
    "two trials": measured([0.5, 0.75], [100, 300]),
    "none": [],
    "failed only": [FAILED, FAILED],
    "one and a failure": [*measured([0.5], [100]), FAILED],
    "one width varies": [({"a": w, "b": 4}, {"accuracy": w / 99, "total_flops": w})
                         for w in (8, 16, 32)],
    "no widths": [({}, {"accuracy": 0.5, "total_flops": 100})],
    "nothing costs anything": measured([0.5, 0.75, 0.6, 0.4], [0, 0, 0, 0]),
    "costs below zero": measured([0.5, 0.75, 0.6, 0.4], [-3, -1, 0, 2]),
    "not finite": measured([math.nan, 0.5, math.inf, 0.4], [1, math.inf, 3, 4],
                           accuracy_std=[math.nan, 0.1, math.inf, math.nan]),
    "nothing finite": measured([math.nan, math.inf], [math.nan, math.inf]),
    "many groups": [({f"g{i}": w for i in range(70)}, {"accuracy": w / 99, "total_flops": w})
                    for w in (8, 16)],
    "a long front": [({"a": w}, {"accuracy": w / 99, "total_flops": w}) for w in range(1, 99)],
}  # fmt: skip


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | np.ndarray):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, float | np.floating):
        yield float(value)


@pytest.mark.parametrize("objectives", [
    {"accuracy": "maximize", "total_flops": "minimize"},
    {"accuracy": "maximize"},
    {"total_flops": "minimize"},
    {"accuracy": "minimize", "total_flops": "minimize"},
], ids=lambda ways: ", ".join(ways.values()))  # fmt: skip
@pytest.mark.parametrize("trials", HONEST.values(), ids=HONEST)
def test_no_figure_fails(trials: Any, objectives: Any) -> None:
    for figure in every_figure(study(trials, objectives)):
        drawn = any(trace.x is not None and len(trace.x) for trace in figure.data)
        assert drawn == figure.layout.xaxis.visible == (not figure.layout.annotations)
        assert all(map(math.isfinite, numbers(figure.to_plotly_json()["data"])))


@pytest.mark.parametrize("trials", HONEST.values(), ids=HONEST)
def test_no_page_fails(trials: Any, tmp_path: Path) -> None:
    results = study(trials)
    write_page(results, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert results.counts() in page


def test_what_a_figure_leaves_out_it_names() -> None:
    figure = plots.width_importance(study(HONEST["all are equally accurate"]))
    assert [bars.name for bars in figure.data] == ["FLOPs (MAC = 1)"]
    assert "accuracy does not vary" in figure.layout.title.subtitle.text
    (note,) = plots.width_importance(study(HONEST["one trial"])).layout.annotations
    assert note.text == "No width differs between the trained networks."
    (note,) = plots.hypervolume({"a": study(HONEST["failed only"])}).layout.annotations
    assert note.text == "No trial has finished."


def test_an_empty_figure_says_why_until_it_fills(results: Results) -> None:
    shown = figure_widget(plots.pareto_front(study(HONEST["none"])))
    assert [note.text for note in shown.layout.annotations] == ["No network yet."]
    assert shown.layout.xaxis.visible is shown.layout.yaxis.visible is False
    update(shown, plots.pareto_front(results))
    assert list(shown.data[1].x) == [100, 300]
    assert not shown.layout.annotations
    assert shown.layout.xaxis.visible is shown.layout.yaxis.visible is True


def test_a_cost_without_a_logarithm_is_still_drawn() -> None:
    axis = plots.pareto_front(study(HONEST["costs below zero"])).layout.xaxis
    assert axis.type == "linear"
    assert plots.pareto_front(study(HONEST["one trial"])).layout.xaxis.type == "log"


def test_layers_before_and_after() -> None:
    model = get_model("jsc-toy")
    request = {"config": {"name": "output_only", "channel_multiplier": 4}}
    pass_config = {"by": "name", "default": {"config": {"name": None}}, "seq_blocks_5": request}
    comparison = compare(model, linear_multiplier_transform_pass(model, pass_config)[0])
    before, after = plots.layer_costs(comparison).data
    i = list(before.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i]) == (64, 256)
    assert "total" not in before.x
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
