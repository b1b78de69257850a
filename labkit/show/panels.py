"""Panels for notebooks that show a study as it grows."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go
import torch
from torch import nn

from labkit import names
from labkit.show.plots import pareto_front
from labkit.show.stills import WithStill
from labkit.show.style import BLACK, finished
from labkit.show.trial_report import trial_report
from labkit.show.widgets import figure_widget, message, update
from labkit.study.results import Results
from labkit.study.studies import describe, open_study
from labkit.table import html_table
from labkit.transform import Channels, find_channels, get_model

POLL_SECONDS = 1.0
LINES = 5  # of the message
MARK = {"symbol": "square-open", "size": 24, "color": BLACK, "line": {"width": 3}}


class LivePanel(WithStill):
    """A front that grows, the table of best trials, and the report of a point that is clicked.

    A subclass says where the results are, and whether more may come.

    Args:
        controls: What is above them.
        below: What is below the front.
        channels: Of the network that is searched.
        cost_options: As `labkit.cost_of` takes them, for the layer reports.

    Attributes:
        selected: The trial whose point was clicked last, or `None`.
    """

    folder: Path | None
    _given: bool  # the network itself, and not its name

    def __init__(
        self, controls: Sequence[ipw.Widget], below: Sequence[ipw.Widget], channels: Channels,
        cost_options: dict[str, Any],
    ):  # fmt: skip
        self.selected: int | None = None
        self._channels, self._cost_options = channels, cost_options
        self._n_drawn = -1
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lines: deque[object] = deque(maxlen=LINES)
        self.progress, self.message, self.table = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.report = ipw.HTML("<p>Click a point for its network.</p>", layout={"flex": "2 1 24em"})
        empty = [go.Scatter()] * 4  # as many as a front has, and what is clicked
        self.figure = figure_widget(finished(go.Figure(empty), "no network yet", height=450))
        for trace in self.figure.data:
            trace.on_click(self._on_click)
        figures = ipw.VBox([self.figure, *below], layout={"flex": "3 1 32em"})
        beside = ipw.HBox([figures, self.report])
        beside.add_class("labkit-beside")
        super().__init__([*controls, self.progress, self.message, beside, self.table])

    @property
    def results(self) -> Results:
        """The results so far."""
        raise NotImplementedError

    def _n_finished(self) -> int:
        """Returns how many trials there are, at little cost."""
        raise NotImplementedError

    def _goes_on(self) -> bool:
        """Waits a moment, and returns whether there may be more trials later."""
        return not self._closing.wait(POLL_SECONDS)

    def select(self, number: int) -> None:
        """Marks a trial's point and shows its network, as a click on it does."""
        results = self.results
        assert self.folder is not None
        self.report.value = trial_report(
            results, number, self._channels, self.folder, given=self._given, **self._cost_options
        )
        self.selected = number
        self._draw(results)

    def _draw(self, results: Results) -> None:
        figure = pareto_front(results)
        marked = [
            (x, y)
            for trace in figure.data
            for x, y, (number, *_) in zip(trace.x, trace.y, trace.customdata or ())
            if number == self.selected
        ]
        figure.add_scatter(
            name=f"trial {self.selected}", x=[x for x, _ in marked], y=[y for _, y in marked],
            mode="markers", marker=MARK, hoverinfo="skip", showlegend=bool(marked),
        )  # fmt: skip
        update(self.figure, figure)

    def wait(self) -> None:
        """Blocks until nothing runs in the background; the buttons do not answer meanwhile."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Ends what the panel runs and its threads, and removes it."""
        if self.comm is None:  # closed already, or never made: Python's own end of it closes, too
            return
        self._on_stop()
        self._closing.set()
        self.wait()
        super().close()

    def _on_stop(self) -> None:
        """Asks what the panel runs to end."""

    def _on_click(self, trace: go.Scatter, points: Any, _: object) -> None:
        if points.point_inds and trace.customdata is not None:
            self.select(int(trace.customdata[points.point_inds[0]][0]))

    def _start(self, *targets: Callable[[], None]) -> None:
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        """Follows the study until the panel closes or there can be no more trials."""
        running = True
        while True:
            try:
                self._refresh(running)
            except Exception as error:  # such as a locked file: say it, and look again
                self._say(error)
            if not running:
                self._ended()
                self.keep()
                return
            running = self._goes_on()

    def _ended(self) -> None:
        """Is called when there can be no more trials."""

    def _refresh(self, running: bool) -> None:
        n_finished = self._n_finished()
        if n_finished != self._n_drawn:
            results = self.results
            self._draw(results)
            if len(results.front):
                self.table.value = "<h4>Best trials</h4>" + html_table(results.front_table())
            self._n_drawn = n_finished
        self._show_progress(n_finished, running)

    def _show_progress(self, n_done: int, running: bool) -> None:
        self.progress.value = f"{n_done} trials"

    def _say(self, what: object) -> None:
        """Adds a line to the message, unless it is there."""
        if str(what) not in map(str, self._lines):
            self._lines.append(what)
        self.message.value = message(self._lines)


class StudyPanel(LivePanel):
    """Shows the study of a results folder, live where another process is writing it.

    Args:
        folder: A results folder.
        model: The network that is searched, where the search was given a module and not a name.
        trust: Whether to run the code that the study names as `package.module:function`.
        **cost_options: As `labkit.cost_of` takes them, for the layer reports; by default
            the study's convention and one sample.

    Attributes:
        study: The Optuna study.
        selected: The trial whose point was clicked last, or `None`.

    Raises:
        LabkitError: The folder holds no study.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: nn.Module | None = None,
        trust: bool = False,
        **cost_options: Any,
    ):
        self.study, self.folder, self._given = open_study(folder), Path(folder), model is not None
        about = describe(self.study).about
        example_input = cost_options.pop("example_input", None)
        if example_input is None:
            example_input = torch.zeros(1, *about["input_shape"])
        with names.opening(trust=trust):
            network = get_model(about["model"] if model is None else model)
        channels = find_channels(network, example_input)
        close = ipw.Button(description="Close", tooltip="Remove the panel")
        super().__init__([close], [], channels, {"convention": about["convention"]} | cost_options)
        close.on_click(lambda _: self.close())
        self._refresh(running=True)  # what is left of it is drawn when it is shown
        self._start(self._watch)

    @property
    def results(self) -> Results:
        """The results so far."""
        return Results.from_study(self.study)

    def _n_finished(self) -> int:
        return len(self.study.get_trials(deepcopy=False))
