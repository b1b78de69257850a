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
from labkit.show.style import TEMPLATE
from labkit.show.tables import compare
from labkit.show.widgets import figure_widget, labelled, message, update
from labkit.study.results import Results
from labkit.study.studies import describe, open_study
from labkit.table import html_table
from labkit.transform import Channels, find_channels, get_model

POLL_SECONDS = 1.0
LINES = 5  # of the message


class LivePanel(WithStill):
    """A front that grows, the table of best trials, and the report of a point that is clicked.

    A subclass says where the results are, and whether more may come.

    Args:
        controls: What is above them.
        channels: Of the network that is searched.
        cost_options: As `labkit.cost_of` takes them, for the layer reports.

    Attributes:
        selected: The trial whose point was clicked last, or `None`.
    """

    def __init__(
        self, controls: Sequence[ipw.Widget], channels: Channels, cost_options: dict[str, Any]
    ):
        self.selected: int | None = None
        self._channels, self._cost_options = channels, cost_options
        self._n_drawn = -1
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lines: deque[object] = deque(maxlen=LINES)
        self.message, self.table, self.report = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.progress, self.progress_text = labelled(ipw.IntProgress, "Trials"), ipw.Label()
        self.figure = figure_widget(go.Figure(layout={"template": TEMPLATE, "height": 450}))
        for _ in range(3):  # as many as a front has
            self.figure.add_scatter().data[-1].on_click(self._on_click)
        status = ipw.HBox([self.progress, self.progress_text])
        super().__init__([*controls, status, self.message, self.figure, self.table, self.report])

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
        """Shows the layer report of a trial's network, as a click on its point does."""
        comparison = compare(self._channels, self.results.plan(number), **self._cost_options)
        self.selected = number
        self.report.value = f"<h4>Trial {number}</h4>" + html_table(comparison)

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
                self.keep()
                return
            running = self._goes_on()

    def _refresh(self, running: bool) -> None:
        n_finished = self._n_finished()
        if n_finished != self._n_drawn:
            results = self.results
            update(self.figure, pareto_front(results))
            self.table.value = "<h4>Best trials</h4>" + html_table(results.front_table())
            self._n_drawn = n_finished
        self._show_progress(n_finished, running)

    def _show_progress(self, n_done: int, running: bool) -> None:
        self.progress.max = self.progress.value = n_done
        self.progress_text.value = f"{n_done} trials"

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
        self.study = open_study(folder)
        about = describe(self.study).about
        example_input = cost_options.pop("example_input", None)
        if example_input is None:
            example_input = torch.zeros(1, *about["input_shape"])
        with names.opening(trust=trust):
            network = get_model(about["model"] if model is None else model)
        channels = find_channels(network, example_input)
        close = ipw.Button(description="Close", tooltip="Remove the panel")
        super().__init__([close], channels, {"convention": about["convention"]} | cost_options)
        close.on_click(lambda _: self.close())
        self._start(self._watch)

    @property
    def results(self) -> Results:
        """The results so far."""
        return Results.from_study(self.study)

    def _n_finished(self) -> int:
        return len(self.study.get_trials(deepcopy=False))
