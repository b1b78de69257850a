"""Panels for notebooks: a study that grows, and a search that runs in the background."""

import itertools
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go
import torch
from torch import nn

from labkit import names, runtime
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.controls import SearchControls, labelled, message, update
from labkit.show.plots import pareto_front
from labkit.show.style import TEMPLATE
from labkit.show.tables import compare, html_table
from labkit.study.config import SearchConfig
from labkit.study.pool import AnyExecutor
from labkit.study.results import Results
from labkit.study.search import Search
from labkit.study.studies import describe, open_study
from labkit.transform import Channels, find_channels, get_model

POLL_SECONDS = 1.0
LINES = 5  # of the message


class LivePanel(ipw.VBox):
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
        self.figure = go.FigureWidget(layout={"template": TEMPLATE, "height": 450})
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


class SearchPanel(LivePanel):
    """Sets up a search, runs it in the background and shows it live.

    Args:
        config: As `Search` takes it: where the controls begin.
        data: A data set, in place of the one that the configuration names.
        model: A network, in place of the one that the configuration names.
        folder: Each Launch makes a results folder `run-N` in it; by default a temporary one.
        executor: Where candidates train, as `Search` takes it.

    Attributes:
        controls: The settings of the next search.
        search: The search that runs or ran last; `None` before the first.
        folder: Its results folder.
        selected: The trial whose point was clicked last, or `None`.

    Raises:
        LabkitError: As `Search` raises it.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | SearchConfig,
        data: Dataset | None = None,
        *,
        model: nn.Module | None = None,
        folder: str | Path | None = None,
        executor: AnyExecutor | None = None,
    ):
        base = Search(config, model=model, data=data)
        self._executor = executor
        self._model, self._data = base.experiment.model, base.experiment.data
        self.search: Search | None = None
        self.folder: Path | None = None
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self._parent = Path(folder or self._temporary.name)  # type: ignore[union-attr]
        self.controls = SearchControls(base.config)
        self.launch = ipw.Button(description="Launch", button_style="primary", icon="play")
        self.stop = ipw.Button(description="Stop", icon="stop", disabled=True)
        self.resume = ipw.Button(description="Resume", disabled=True)
        close = ipw.Button(description="Close")
        buttons = {
            self.launch: self._on_launch, self.stop: self._on_stop, self.resume: self._on_resume,
            close: self.close,
        }  # fmt: skip
        for button, action in buttons.items():
            button.on_click(lambda _, action=action: action())
        cost_options = base.config.computations.cost_options(base.config.batch_size)
        super().__init__([self.controls, ipw.HBox([*buttons])], base.space.channels, cost_options)

    @property
    def config(self) -> SearchConfig:
        """The configuration that the controls ask for.

        Raises:
            LabkitError: The list of a layer's multipliers is not one of numbers.
        """
        return self.controls.config

    @property
    def results(self) -> Results:
        """The results so far.

        Raises:
            LabkitError: No search was launched yet.
        """
        return self._launched.results()

    @property
    def _launched(self) -> Search:
        if self.search is None:
            raise LabkitError("results: there is no study yet; press Launch")
        return self.search

    def _on_launch(self) -> None:
        runs = (self._parent / f"run-{n}" for n in itertools.count(1))
        self._run(next(folder for folder in runs if not folder.exists()))

    def _on_resume(self) -> None:
        assert self.folder is not None
        self._run(self.folder)

    def _on_stop(self) -> None:
        if self.search is not None:
            self.search.stop()

    def _run(self, folder: Path) -> None:
        self._lines.clear()
        self.message.value = ""
        try:
            self.search = Search(
                self.config, model=self._model, data=self._data, folder=folder,
                executor=self._executor,
            )  # fmt: skip
        except LabkitError as error:
            self._say(error)
            return
        self.folder, self._started = folder, time.monotonic()
        self._n_trials = self.search.config.search.strategy.setup.n_trials
        self._n_drawn, self._n_before = -1, self._n_finished()
        self._set_running(True)
        self._start(self._search_in_background, self._watch)

    def _search_in_background(self) -> None:
        try:
            with (
                # The notebook keeps a core: torch's threads wait for each other, and starve.
                runtime.threads(spare=1),
                # A cell that computes hands Python's lock over sooner: Stop answers.
                runtime.switch_interval(0.0005),
                runtime.told(),
                _LogLines(self._say),
            ):
                results = self._launched.run(progress=False)
        except Exception as error:  # there is no other place where the user would see it
            own = isinstance(error, LabkitError)
            self._say(error if own else f"{type(error).__name__}: {error}")
            return
        if results.interrupted:
            n, total = len(results.records), self._n_trials
            self._say(f"Stopped: {n} of {total} trials are finished. Resume continues.")

    def _n_finished(self) -> int:
        return len(self._launched.store.trials)

    def _goes_on(self) -> bool:
        self._threads[0].join(POLL_SECONDS)  # the search: its end is shown at once
        return self._threads[0].is_alive()

    def _watch(self) -> None:
        super()._watch()
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.launch.disabled = self.resume.disabled = running
        self.stop.disabled = not running

    def _show_progress(self, n_done: int, running: bool) -> None:
        total = self._n_trials
        self.progress.max, self.progress.value = total, n_done
        text = f"{n_done} of {total} trials"
        if running and n_done > self._n_before:
            pace = (time.monotonic() - self._started) / (n_done - self._n_before)
            minutes, seconds = divmod(round(pace * (total - n_done)), 60)
            text += f", {minutes}:{seconds:02} left"
        self.progress_text.value = text


class _LogLines(logging.Handler):
    """While entered, hands on what its thread logs: of two panels, each shows its own lines."""

    def __init__(self, say: Callable[[str], object]):
        super().__init__()
        self._say, self._thread = say, threading.get_ident()

    def __enter__(self) -> None:
        logging.getLogger("labkit").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("labkit").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._say(record.getMessage())
