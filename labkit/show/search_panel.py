"""A panel that sets up a search and runs it in the background."""

import html
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go
from torch import nn

from labkit import runtime
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.controls import SearchControls
from labkit.show.panels import POLL_SECONDS, LivePanel
from labkit.show.style import AXIS_TITLES, BLUE, GREY, finished, text
from labkit.show.widgets import figure_widget, progress_bar, update
from labkit.study.config import SearchConfig
from labkit.study.pool import AnyExecutor
from labkit.study.progress import Progress, clock
from labkit.study.results import Results
from labkit.study.search import Search


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
        with runtime.kept_memory():  # what reading the data freed goes back to the system
            base = Search(config, model=model, data=data)
        self._executor, self._given = executor, model is not None
        self._free = threading.Lock()  # held while a search runs
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
        self.curves = figure_widget(_curves(None))
        cost_options = base.config.computations.cost_options(base.config.batch_size)
        controls = [self.controls, ipw.HBox([*buttons], layout={"flex_flow": "row wrap"})]
        super().__init__(controls, [self.curves], base.space.channels, cost_options)

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
        if not self._free.acquire(blocking=False):  # such as a second click
            return
        self._set_running(True)
        self._lines.clear()
        self.message.value, self._state = "", "Running"
        try:
            self.search = Search(
                self.config, model=self._model, data=self._data, folder=folder,
                executor=self._executor,
            )  # fmt: skip
        except LabkitError as error:
            self._say(error)
            self.controls.mark(error)
            self._ended()
            return
        self.folder, self._started = folder, time.monotonic()
        self._n_trials = self.search.config.search.strategy.setup.n_trials
        self._n_drawn, self._n_epochs = -1, -1
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
            self._state = "Ended by an error"
            own = isinstance(error, LabkitError)
            self._say(error if own else f"{type(error).__name__}: {error}")
            return
        self._state = "Stopped" if results.interrupted else "Finished"
        if results.interrupted:
            self._say(
                f"Stopped: {len(results.records)} of {self._n_trials} trials are finished and "
                "kept. Resume goes on from there; Launch begins a new search."
            )

    def _n_finished(self) -> int:
        return len(self._launched.store.trials)

    def _goes_on(self) -> bool:
        self._threads[0].join(POLL_SECONDS)  # the search: its end is shown at once
        return self._threads[0].is_alive()

    def _ended(self) -> None:
        self._set_running(False)
        self._free.release()

    def _set_running(self, running: bool) -> None:
        self.launch.disabled = running
        self.resume.disabled = running or self.search is None
        self.stop.disabled = not running

    def _show_progress(self, n_done: int, running: bool) -> None:
        progress = self._launched.progress
        said = f"{n_done} of {self._n_trials} trials"
        if progress is not None:
            bar = progress_bar(progress.done, progress.total, "Epochs of networks")
            said = f"{progress.said(left=running)}; {said}"
            n_epochs = sum(map(len, progress.histories.values()))
            if n_epochs != self._n_epochs or not running:
                update(self.curves, _curves(progress, running=running))
                self._n_epochs = n_epochs
        else:
            bar = progress_bar(0, 1, "Epochs of networks")
        state = self._state
        if running:
            state += f", {clock(time.monotonic() - self._started)} so far"
        self.progress.value = f"{bar} {state}: {html.escape(said)}"


def _curves(progress: Progress | None, *, running: bool = True) -> go.Figure:
    """Returns how networks learn, by their main metric: those that train now, and those before."""
    histories, training = ({}, ()) if progress is None else (progress.histories, progress.training)
    metric = "accuracy" if progress is None else progress.metric
    figure = go.Figure()
    for name, now, colour in (("trained before", False, GREY), ("training", True, BLUE)):
        x, y, names = list[int | None](), list[float | None](), list[str]()
        for candidate, history in [*histories.items()]:
            if (running and candidate in training) == now:
                x += [*range(1, len(history) + 1), None]  # which ends a line
                y += [*(metrics[metric] for metrics in history), None]
                names += [f"{text(candidate.plan)}, seed {candidate.seed}"] * (len(history) + 1)
        figure.add_scatter(
            name=name, x=x, y=y, customdata=names, mode="lines+markers", line={"color": colour},
            marker={"size": 5}, hovertemplate="%{y:.4f} after epoch %{x}<br>%{customdata}",
        )  # fmt: skip
    longest = max(map(len, histories.values()), default=1)
    return finished(
        figure, "no network yet", height=280, showlegend=True, margin={"t": 20},
        xaxis={"title": "epoch", "dtick": -(-longest // 10), "tick0": 0},
        yaxis={"title": AXIS_TITLES[metric]},
    )  # fmt: skip


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
