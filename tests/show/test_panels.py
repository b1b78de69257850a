"""The panels, without a browser."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labkit import (
    channel_multiplier_transform_pass,
    get_model,
    linear_multiplier_transform_pass,
    search,
)
from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.show.panels import LayerExplorer, SearchPanel, StudyPanel
from labkit.study.search import Search
from labkit.transform.cost import total_cost


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def panel(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> Iterator[SearchPanel]:
    panel = SearchPanel(tables, blobs, folder=tmp_path)
    yield panel
    panel.close()


def test_explorer_links_the_sides_that_share_channels() -> None:
    model = get_model("jsc-toy")
    explorer = LayerExplorer(model)
    explorer._sliders["seq_blocks_5", "output"].value = 2
    explorer._sliders["seq_blocks_5", "output"].value = 4
    assert explorer._sliders["seq_blocks_8", "input"].value == 4
    assert explorer._sliders["seq_blocks_5", "input"].value == 1
    network, _ = linear_multiplier_transform_pass(model, explorer.pass_config)
    assert network.seq_blocks[5].out_features == 32
    before, after = explorer.figure.data
    i = list(after.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i]) == (8, 32)
    assert "parameters: 327 → <b>711</b>" in explorer.totals.value
    explorer._sliders["seq_blocks_8", "input"].value = 2  # the other way round
    assert "parameters: 327 → <b>455</b>" in explorer.totals.value


def test_explorers_sliders_keep_their_values_in_the_browser() -> None:
    slider = LayerExplorer(get_model("jsc-toy"))._sliders["seq_blocks_5", "output"]
    extent = slider.max - slider.min
    step = slider.step * 100 / extent
    value = slider.min
    while value <= slider.max:  # noUiSlider: to percents, to the nearest step, and back
        percents = round((value - slider.min) * 100 / extent / step) * step
        assert percents * extent / 100 + slider.min == value
        value += slider.step


def test_explorer_says_what_cannot_be_met() -> None:
    explorer = LayerExplorer(get_model("jsc-toy"))
    explorer._sliders["seq_blocks_2", "input"].value = 2
    assert "the width stays 16 because" in explorer._notes["seq_blocks_2", "input"].value
    explorer._sliders["seq_blocks_2", "input"].value = 1
    assert explorer._notes["seq_blocks_2", "input"].value == ""


def test_explorer_of_a_network_with_shortcuts() -> None:
    image = torch.zeros(1, 3, 32, 32)
    explorer = LayerExplorer(get_model("resnet8"), example_input=image)
    explorer._sliders["stages_1_shortcut_0", "output"].value = 0.5
    assert explorer._sliders["stages_1_conv2", "output"].value == 0.5
    assert explorer._sliders["stages_2_conv1", "input"].value == 0.5
    assert explorer._sliders["stages_1_conv1", "output"].value == 1
    network, _ = channel_multiplier_transform_pass(
        get_model("resnet8"), explorer.pass_config, example_input=image
    )
    cost = total_cost(network, example_input=image)
    assert f"<b>{cost.parameters:,}</b>" in explorer.totals.value


def test_controls_make_the_configuration(panel: SearchPanel) -> None:
    panel.trials.value, panel.epochs.value, panel.learning_rate.value = 5, 3, 1e-3
    panel.replicates.value = 2
    panel.sampler.value, panel.cost.value = "random", "latency"
    panel.multipliers["seq_blocks_5"].value = "0.5, 1"
    strategy = panel.config.search.strategy
    assert (strategy.setup.n_trials, strategy.setup.sampler) == (5, "random")
    assert strategy.sw_runner["basic_train"]["max_epochs"] == 3
    assert strategy.sw_runner["basic_train"]["replicates"] == 2
    assert strategy.sw_runner["basic_train"]["learning_rate"] == pytest.approx(1e-3)
    assert list(strategy.metrics) == ["accuracy", "latency"]
    offered = panel.config.search.search_space.seed["seq_blocks_5"]["config"]
    assert offered["input_multiplier"] == offered["output_multiplier"] == [0.5, 1]


def test_launch_watch_select_and_resume(panel: SearchPanel) -> None:
    with pytest.raises(LabkitError, match="press Launch"):
        panel.results  # noqa: B018
    panel.trials.value = 4
    panel.launch.click()
    assert panel.launch.disabled
    wait_for(lambda: panel.stop.disabled)
    assert panel.progress_text.value == "4 of 4 trials"
    points = [trace for trace in panel.figure.data if trace.name in ("dominated", "Pareto front")]
    assert sum(len(trace.x) for trace in points) == len(panel.results.networks)
    assert "<th>seq_blocks_2</th>" in panel.table.value

    front = panel.figure.data[1]
    panel._on_click(front, SimpleNamespace(point_inds=[0]), None)
    assert panel.selected == front.customdata[0][0]
    assert f"Trial {panel.selected}" in panel.report.value

    panel.trials.value = 6
    panel.resume.click()
    wait_for(lambda: panel.stop.disabled)
    assert len(panel.results.trials) == 6
    panel.launch.click()
    wait_for(lambda: panel.stop.disabled)
    assert panel.folder is not None
    assert panel.folder.name == "run-2"


def test_stop_answers_soon_and_close_leaves_no_thread(panel: SearchPanel) -> None:
    before = threading.active_count()
    panel.epochs.value = 50
    panel.trials.value = 200
    for delay in (0, 0.5):  # before the search has begun, and while it trains
        panel.launch.click()
        time.sleep(delay)
        pressed = time.monotonic()
        panel.stop.click()
        wait_for(lambda: panel.stop.disabled)
        assert time.monotonic() - pressed < 2
    panel.launch.click()
    panel.close()
    assert threading.active_count() == before


def test_stop_is_kept_for_a_search_that_has_not_begun(
    panel: SearchPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed = threading.Event()
    run = Search.run

    def late(search: Search, **options: Any) -> Any:
        pressed.wait()
        return run(search, **options)

    monkeypatch.setattr(Search, "run", late)
    panel.launch.click()
    panel.stop.click()
    pressed.set()
    wait_for(lambda: panel.stop.disabled)
    assert panel.results.trials.empty


def test_the_report_of_a_point_counts_as_its_search_does(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    strategy = tables["search"]["strategy"]
    strategy["setup"]["n_trials"] = 1
    strategy["sw_runner"]["basic_computations"]["convention"] = "reference"
    panel = SearchPanel(tables, blobs, folder=tmp_path)
    panel.launch.click()
    panel.wait()
    panel.select(0)
    flops = panel.results.trials["total_flops"][0]
    panel.close()
    assert f"<td>{flops:,.0f}</td>" in panel.report.value


def test_errors_are_said_in_words_and_escaped(panel: SearchPanel) -> None:
    panel.multipliers["seq_blocks_5"].value = "1, <b>"
    panel.launch.click()
    assert "expected numbers like" in panel.message.value
    assert "<b>" not in panel.message.value
    assert panel.study is None


def test_a_failed_trial_is_said(panel: SearchPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("<no> memory")

    monkeypatch.setattr(Search, "_measure", fail)
    panel.trials.value = 1
    panel.launch.click()
    wait_for(lambda: panel.stop.disabled)
    assert "trial 0 failed: ValueError: &lt;no&gt; memory" in panel.message.value


def test_a_study_that_someone_else_writes_is_shown_live(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    search(tables, data=blobs, folder=tmp_path, progress=False)
    panel = StudyPanel(tmp_path)
    try:
        wait_for(lambda: panel.progress_text.value == "2 trials")
        tables["search"]["strategy"]["setup"]["n_trials"] = 5
        search(tables, data=blobs, folder=tmp_path, progress=False)
        wait_for(lambda: panel.progress_text.value == "5 trials")
        assert panel.results.about["dataset"] == "blobs"
    finally:
        panel.close()
    with pytest.raises(LabkitError, match="holds no study"):
        StudyPanel(tmp_path / "nowhere")
