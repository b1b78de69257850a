"""Panels for notebooks: a study that grows, and a search that runs in the background."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import torch
from torch import nn

from labkit import runtime
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.controls import SearchControls
from labkit.show.live import POLL_SECONDS, LivePanel
from labkit.study.config import SearchConfig
from labkit.study.results import Results
from labkit.study.search import Search
from labkit.study.store import describe, open_study
from labkit.transform import find_channels, get_model


class StudyPanel(LivePanel):
    """Shows the study of a results folder, live where another process is writing it.

    Args:
        folder: A results folder.
        model: The network that is searched, where the search was given a module and not a name.
        **cost_options: As `labkit.cost_of` takes them, for the layer reports; by default
            the study's convention and one sample.

    Attributes:
        study: The Optuna study.
        selected: The trial whose point was clicked last, or `None`.

    Raises:
        LabkitError: The folder holds no study.
    """

    def __init__(self, folder: str | Path, *, model: nn.Module | None = None, **cost_options: Any):
        self.study = open_study(folder)
        about = describe(self.study).about
        example_input = cost_options.pop("example_input", None)
        if example_input is None:
            example_input = torch.zeros(1, *about["input_shape"])
        channels = find_channels(get_model(model or about["model"]), example_input)
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
    ):
        base = Search(config, model=model, data=data)
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
        for button, action in (
            (self.launch, self._on_launch),
            (self.stop, self._on_stop),
            (self.resume, self._on_resume),
            (close, self.close),
        ):
            button.on_click(lambda _, action=action: action())
        super().__init__(
            [self.controls, ipw.HBox([self.launch, self.stop, self.resume, close])],
            base.space.channels,
            base.config.computations.cost_options(base.config.batch_size),
        )

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
        n = 1
        while (self._parent / f"run-{n}").exists():
            n += 1
        self._run(self._parent / f"run-{n}")

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
            self.search = Search(self.config, model=self._model, data=self._data, folder=folder)
        except LabkitError as error:
            self._say(error)
            return
        self.folder = folder
        self._n_drawn, self._n_before = -1, self._n_finished()
        self._started = time.monotonic()
        self._set_running(True)
        self._start(self._search_in_background, self._watch)

    def _search_in_background(self) -> None:
        try:
            with (
                # The notebook keeps a core: torch's threads wait for each other, and starve.
                runtime.threads(spare=1),
                # A cell that computes hands Python's lock over sooner: Stop answers.
                runtime.switch_interval(0.0005),
                _log_lines(self._say),
            ):
                results = self._launched.run(progress=False)
        except Exception as error:  # there is no other place where the user would see it
            own = isinstance(error, LabkitError)
            self._say(error if own else f"{type(error).__name__}: {error}")
            return
        if results.interrupted:
            n, total = len(results.records), self._n_trials
            self._say(f"Stopped: {n} of {total} trials are finished. Resume continues.")

    @property
    def _n_trials(self) -> int:
        return self._launched.config.search.strategy.setup.n_trials

    def _n_finished(self) -> int:
        return len(self._launched.store.trials)

    def _is_running(self) -> bool:
        return self._threads[0].is_alive()

    def _pause(self) -> None:
        self._threads[0].join(POLL_SECONDS)  # the search: its end is shown at once

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


class _Lines(logging.Handler):
    """Hands what one thread logs on, line by line: of two panels, each shows its own."""

    def __init__(self, say: Callable[[str], object]):
        super().__init__()
        self._say, self._thread = say, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._say(record.getMessage())


@contextlib.contextmanager
def _log_lines(say: Callable[[str], object]) -> Iterator[None]:
    """Hands what labkit logs in this thread to `say`."""
    logger, handler = logging.getLogger("labkit"), _Lines(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
