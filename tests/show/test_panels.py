"""The panels, without a browser."""

import gc
import html
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labkit import (
    SearchPanel,
    StudyPanel,
    compare,
    get_model,
    load_best,
    load_config,
    search,
    total_cost,
)  # fmt: skip
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.controls import SearchControls
from labkit.show.widgets import WRONG
from labkit.study.record import Failure, FailureKind, Record
from labkit.study.search import Search
from labkit.study.space import SPACES, register_space
from labkit.study.spaces import ChannelMultiplierSpace
from tests.conftest import ROOT


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def panel(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> Iterator[SearchPanel]:
    panel = SearchPanel(tables, blobs, folder=tmp_path)
    yield panel
    panel.close()


def test_controls_make_the_configuration(panel: SearchPanel) -> None:
    controls = panel.controls
    controls.trials.value, controls.epochs.value, controls.learning_rate.value = 5, 3, 1e-3
    controls.replicates.value = 2
    controls.sampler.value, controls.cost.value = "random", "latency"
    controls.multipliers["seq_blocks_5"].value = "0.5, 1"
    strategy = panel.config.search.strategy
    assert (strategy.setup.n_trials, strategy.setup.sampler) == (5, "random")
    assert strategy.sw_runner["basic_train"]["max_epochs"] == 3
    assert strategy.sw_runner["basic_train"]["replicates"] == 2
    assert strategy.sw_runner["basic_train"]["learning_rate"] == pytest.approx(1e-3)
    assert list(strategy.metrics) == ["accuracy", "latency"]
    offered = panel.config.search.search_space.seed["seq_blocks_5"]["config"]
    assert offered["input_multiplier"] == offered["output_multiplier"] == [0.5, 1]


def test_controls_that_nobody_moved_change_nothing(tables: dict[str, Any]) -> None:
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"]["basic_train"]["learning_rate"] = 0.5  # beyond the slider's usual range
    table = tables["search"]["search_space"]["seed"]["seq_blocks_5"]["config"]
    table["input_multiplier"], table["output_multiplier"] = [1, 2], [1, 4]  # not the same
    config = load_config({"model": "jsc-toy", "dataset": "jets", **tables})
    changed = SearchControls(config).config
    assert changed.training == config.training
    rates = SearchControls(config).learning_rate
    assert {"0.003", "0.5", "1e-05"} <= set(rates._options_labels)
    assert all(float(label) == rate for label, rate in rates.options)  # what is shown is used
    assert changed.search.search_space == config.search.search_space
    assert changed.search.strategy.setup == config.search.strategy.setup
    assert changed.search.strategy.metrics == config.search.strategy.metrics
    minimized = {"direction": "minimize"}
    metrics = {"accuracy": {"direction": "maximize"}, "total_bitops": minimized}
    strategy["metrics"] = metrics | {"parameters": minimized}  # more than one cost
    config = load_config({"model": "jsc-toy", "dataset": "jets", **tables})
    controls = SearchControls(config)
    assert controls.config.search.strategy.metrics == config.search.strategy.metrics
    controls.cost.value = "parameters"
    assert list(controls.config.search.strategy.metrics) == ["accuracy", "parameters"]
    strategy["limits"] = {"accuracy": 0.5, "total_bitops": 1234567}
    controls = SearchControls(load_config({"model": "jsc-toy", "dataset": "jets", **tables}))
    assert controls.limit.value == "1234567"
    assert controls.config.search.strategy.limits == strategy["limits"]
    controls.limit.value = "1,000"
    assert controls.config.search.strategy.limits == {"accuracy": 0.5, "total_bitops": 1000}
    controls.cost.value, controls.limit.value = "parameters", "500"
    assert controls.config.search.strategy.limits == {"accuracy": 0.5, "parameters": 500}
    controls.limit.value = " "
    assert controls.config.search.strategy.limits == {"accuracy": 0.5}
    del strategy["sw_runner"]["basic_train"], strategy["limits"]
    strategy["metrics"] = {"total_flops": minimized}
    config = load_config({"model": "jsc-toy", "dataset": "jets", **tables})
    assert SearchControls(config).config == config  # nothing begins to train


def test_launch_watch_select_and_resume(panel: SearchPanel) -> None:
    with pytest.raises(LabkitError, match="press Launch"):
        panel.results  # noqa: B018
    panel.controls.trials.value = 4
    panel.launch.click()
    assert panel.launch.disabled
    wait_for(lambda: panel.stop.disabled)
    assert panel.progress.value.endswith("; 4 of 4 trials")
    assert 'value="4" max="4" aria-label="Epochs of networks"' in panel.progress.value
    points = [trace for trace in panel.figure.data if trace.name in ("dominated", "Pareto front")]
    assert sum(len(trace.x) for trace in points) == len(panel.results.networks)
    assert "<th>seq_blocks_2</th>" in panel.table.value

    front, mark = panel.figure.data[1], panel.figure.data[3]
    assert (len(mark.x), mark.showlegend) == (0, False)
    panel._on_click(front, SimpleNamespace(point_inds=[0]), None)
    assert panel.selected == front.customdata[0][0]
    assert (mark.name, mark.x, mark.y) == (f"trial {panel.selected}", front.x[:1], front.y[:1])
    assert f"Trial {panel.selected}" in panel.report.value
    [code] = re.findall("<code>(.*?)</code>", panel.report.value)
    opened = eval(html.unescape(code), {"load_best": load_best})
    assert str(total_cost(opened).total_flops) == f"{front.x[0]:.0f}"

    panel.controls.trials.value = 6
    panel.resume.click()
    wait_for(lambda: panel.stop.disabled)
    assert len(panel.results.trials) == 6
    panel.launch.click()
    wait_for(lambda: panel.stop.disabled)
    assert panel.folder is not None
    assert panel.folder.name == "run-2"


def test_stop_answers_soon_and_close_leaves_no_thread(panel: SearchPanel) -> None:
    before = threading.active_count()
    panel.controls.epochs.value = 50
    panel.controls.trials.value = 200
    for delay in (0, 0.5):  # before the search has begun, and while it trains
        panel.launch.click()
        time.sleep(delay)
        panel.stop.click()
        wait_for(lambda: panel.stop.disabled)
        n = len(panel.results.trials)
        assert f"Stopped: {n} of 200 trials are finished and kept. Resume" in panel.message.value
        assert "Stopped: " in panel.progress.value
        assert "left" not in panel.progress.value
        assert "failed" not in panel.message.value + panel.progress.value
    panel.launch.click()
    panel.close()
    assert threading.active_count() == before


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_made_is_no_panel(tmp_path: Path, tables: dict[str, Any]) -> None:
    with pytest.raises(LabkitError, match="holds no study"):
        StudyPanel(tmp_path / "nowhere")
    with pytest.raises(LabkitError, match="unknown"):
        SearchPanel({**tables, "model": "nothing"})
    gc.collect()


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
    panel.controls.multipliers["seq_blocks_5"].value = "1, <b>"
    panel.launch.click()
    assert "expected numbers like" in panel.message.value
    assert "<b>" not in panel.message.value
    assert panel.search is None
    field = panel.controls.multipliers["seq_blocks_5"]
    assert WRONG in field._dom_classes
    assert not any(
        WRONG in one._dom_classes for one in panel.controls.multipliers.values() if one is not field
    )
    assert not panel.launch.disabled
    field.value = "1, 2"
    assert WRONG not in field._dom_classes
    for value, message in (
        ("low", "limit: expected numbers like"), ("1", "none is within total_flops ≤ 1 of 16"),
    ):  # fmt: skip
        panel.controls.limit.value = value
        assert WRONG not in panel.controls.limit._dom_classes
        panel.launch.click()
        assert message in panel.message.value
        assert WRONG in panel.controls.limit._dom_classes


def test_a_page_that_is_opened_later_shows_the_figures_of_now(panel: SearchPanel) -> None:
    panel.controls.trials.value = 2
    panel.launch.click()
    panel.wait()
    for figure in (panel.figure, panel.curves):
        sent = figure.get_state()
        assert [trace["name"] for trace in sent["_widget_data"]] == [t.name for t in figure.data]
        assert sent["_widget_layout"]["xaxis"]["visible"]
        assert len(sent["_esm"]) < 2000  # plotly itself is sent once for all


def test_one_panel_one_search(panel: SearchPanel) -> None:
    panel.controls.trials.value = 2
    panel.launch.click()
    first = panel.search
    assert panel.launch.disabled
    panel.launch.click()  # the second half of a double click
    others = [threading.Thread(target=panel.launch.click) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert panel.search is first
    panel.wait()
    assert [path.name for path in panel._parent.iterdir()] == ["run-1"]


def test_two_panels_and_calls_beside_them(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 6
    panels = [SearchPanel(tables, blobs, folder=tmp_path / name) for name in ("a", "b")]
    for panel in panels:
        panel.launch.click()
    while not all(panel.stop.disabled for panel in panels):
        compare(get_model("jsc-toy"), get_model("jsc-toy"))
        assert len(search(tables, data=blobs, trials=1, progress=False).records) == 1
    for panel in panels:
        panel.wait()
        assert panel.results.counts().endswith("0 failed"), panel.message.value
        assert panel._state == "Finished", panel.message.value
        assert len(panel.results.records) == 6
        panel.close()
    first, second = (panel.results.trials.drop(columns=["seconds", "elapsed"]) for panel in panels)
    assert list(first["network"]) == list(second["network"])


def test_a_panel_shows_each_epoch(panel: SearchPanel) -> None:
    panel.controls.trials.value, panel.controls.epochs.value = 4, 3
    assert panel.curves.layout.annotations[0].text == "no network yet"
    panel.launch.click()
    panel.wait()
    before, training = panel.curves.data
    assert len(training.x) == 0
    lines = list(zip(before.x, before.y))
    assert [x for x, _ in lines[:4]] == [1, 2, 3, None]
    history = panel.results.histories[0]
    own = [y for _, y in lines[:3]]
    assert own in [[each["accuracy"] for each in h] for h in panel.results.histories.values()]
    assert len(history) == 3
    assert "12 of 12 epochs of networks" in panel.progress.value


def test_the_report_compares_with_the_original(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"] |= {"n_trials": 16, "sampler": "bruteforce"}
    search(tables, data=blobs, folder=tmp_path, progress=False)
    panel = StudyPanel(tmp_path)
    networks = panel.results.networks
    original = next(
        n
        for n in networks.index
        if panel.results.plan(n).to_dict() == panel.results.about["original"]
    )
    other = networks["parameters"].idxmax()
    panel.select(other)
    difference = networks["accuracy"][other] - networks["accuracy"][original]
    assert (
        f"{difference:+.4f} to the original network's accuracy, trial {original}<"
        in panel.report.value
    )
    ratio = networks["parameters"][other] / networks["parameters"][original]
    assert f"({ratio:.3g} × the original network's)" in panel.report.value
    panel.select(original)
    assert "(1 × the original network's)" in panel.report.value
    dominated = next(n for n in networks.index if n not in panel.results.front.index)
    panel.select(dominated)
    assert "load_best" not in panel.report.value
    assert "only networks of the front are kept" in panel.report.value
    panel.close()


def test_what_the_log_says_is_shown(panel: SearchPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Record:
        logging.getLogger("labkit.study").warning("from %s", "the search")
        other = threading.Thread(target=logging.getLogger("labkit").warning, args=["of another"])
        other.start()
        other.join()
        failure = Failure(kind=FailureKind.TRAINING, message="<no> memory")
        return Record(widths={"a": 1}, trained_in=0, failure=failure)

    monkeypatch.setattr("labkit.study.experiment.Experiment.measure", fail)
    panel.controls.trials.value = 1
    panel.launch.click()
    panel.wait()
    assert "trial 0 failed: &lt;no&gt; memory" in panel.message.value
    assert "from the search" in panel.message.value
    assert "of another" not in panel.message.value
    assert logging.getLogger("labkit").handlers == []


def test_three_launches_give_back_what_they_take(panel: SearchPanel) -> None:
    before = torch.get_num_threads(), sys.getswitchinterval()
    panel.controls.trials.value = 1
    threads = []
    run = panel._search_in_background

    def search_and_look() -> None:
        run()
        threads.append(torch.get_num_threads())

    panel._search_in_background = search_and_look  # type: ignore[method-assign]
    for _ in range(3):
        panel.launch.click()
        panel.wait()
    assert threads == [before[0]] * 3
    assert (torch.get_num_threads(), sys.getswitchinterval()) == before


def test_a_search_leaves_the_notebook_a_thread(
    panel: SearchPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = Search.run

    def look(search: Search, **options: Any) -> Any:
        seen.append((torch.get_num_threads(), sys.getswitchinterval()))
        return run(search, **options)

    monkeypatch.setattr(Search, "run", look)
    panel.controls.trials.value = 1
    panel.launch.click()
    panel.wait()
    assert seen == [(max(torch.get_num_threads() - 1, 1), pytest.approx(0.0005))]


def test_the_buttons_answer_again_where_a_figure_fails(
    panel: SearchPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a figure")

    monkeypatch.setattr("labkit.show.panels.pareto_front", fail)
    panel.controls.trials.value = 1
    panel.launch.click()
    panel.wait()
    assert "of a figure" in panel.message.value
    assert not panel.launch.disabled


def test_a_study_that_someone_else_writes_is_shown_live(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    search(tables, data=blobs, folder=tmp_path, progress=False)
    panel = StudyPanel(tmp_path)
    try:
        wait_for(lambda: panel.progress.value == "2 trials")
        tables["search"]["strategy"]["setup"]["n_trials"] = 5
        search(tables, data=blobs, folder=tmp_path, progress=False)
        wait_for(lambda: panel.progress.value == "5 trials")
        assert panel.results.about["dataset"] == "blobs"
    finally:
        panel.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_a_class_on_one_server_has_room_for_its_panels() -> None:
    code = """if True:
        import sys, psutil, labkit
        memory = psutil.Process().memory_info
        import torch
        before = memory().rss
        panel = labkit.SearchPanel("configs/jsc_toy.toml", labkit.load_data("jsc"))
        assert not {"sklearn", "scipy"} & set(sys.modules)
        print((memory().rss - before) // 2**20)
    """
    took = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert int(took.stdout) < 230  # MiB beside torch; with scikit-learn and what is freed, 290


def test_a_space_of_ones_own_has_a_panel(tables: dict[str, Any], blobs: Dataset) -> None:
    """With whatever tables it likes; there are no multipliers to offer."""

    class Own(ChannelMultiplierSpace):
        def build_choices(
            self, setup: Mapping[str, Any], seed: Mapping[str, Any]
        ) -> dict[str, list[Any]]:
            lists = {"default": {"config": {"channel_multiplier": seed["numbers"]}}}
            return super().build_choices({"by": "name"}, lists)

    register_space("own")(Own)
    tables["search"]["search_space"] = {"name": "own", "seed": {"numbers": [1, 2], "more": {}}}
    panel = SearchPanel(tables, blobs)
    del SPACES["own"]
    assert panel.controls.multipliers == {}
    assert panel.config.search.search_space.seed["numbers"] == [1, 2]
    panel.close()
