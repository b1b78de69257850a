"""The search: ask for a configuration, resolve it, look it up or train it, tell."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from torch import nn

from labkit import runtime
from labkit.checks import as_path
from labkit.data import Dataset
from labkit.errors import LabkitError, shown
from labkit.study.config import SearchConfig, Widths, load_config, simple_tables
from labkit.study.experiment import Experiment
from labkit.study.files import (
    has_results,
    make_folder,
    remove_unfinished,
    write_config,
    write_results,
)
from labkit.study.networks import FrontNetworks
from labkit.study.pool import AnyExecutor, as_executor
from labkit.study.progress import Progress
from labkit.study.record import Candidate, Metrics
from labkit.study.results import Results
from labkit.study.runs import add_run
from labkit.study.session import bar, session
from labkit.study.space import SearchSpaceBase
from labkit.study.storage import as_url, named
from labkit.study.store import Store
from labkit.study.studies import kept_in
from labkit.study.trainer import Trainer
from labkit.training import MAIN_METRIC, main_of
from labkit.training.settings import n_batches
from labkit.transform import Plan

log = logging.getLogger(__name__)


class Search:
    """A search, ready to run: everything that can be wrong is checked when it is made.

    Args:
        config: The path of a TOML file, or its tables. Without one, every group of channels has
            one choice, of `widths`, candidates are trained, FLOPs are counted, and the sampler is
            `known-cost`.
        model, data: A network and a data set, in place of those that the configuration names.
        widths: As `SearchConfig.replace` takes them.
        objectives: As there.
        trials, epochs, seed: In place of its `n_trials`, `max_epochs` and `seed`.
        folder: Where to leave the results, and to continue from; `None` leaves no files.
        storage: The URL of an Optuna storage, or the storage itself; by default the one that the
            folder was made with, `study.db` in the folder, or memory.
        executor: Where candidates train: a number of processes of this machine, by default the
            configuration's `workers`; the address of a Dask scheduler; or any
            `concurrent.futures.Executor`, such as Dask's `client.get_executor()`.
        shared: Whether other searches may run on the same study at the same time, if they say so,
            too. It needs a storage on a server. No network is trained twice.
        **settings: Other keys of the configuration, such as `limits`, `baseline`, `start_from` or
            `learning_rate`, as `SearchConfig.replace` takes them.

    Attributes:
        experiment: The network, the data and the space.
        store: The study, as typed records.
        progress: How far its run is, or its last one was; `None` before a run trains.

    Raises:
        LabkitError: The configuration is wrong, the network does not fit the data, there is
            nothing to search, or the folder holds another search.

    Example:
        >>> search = Search(model=model, data=data, widths=[0.5, 1, 2], trials=20, epochs=3)
        >>> search.run().front
    """

    def __init__(
        self, config: str | Path | Mapping[str, Any] | SearchConfig | None = None, *,
        model: nn.Module | None = None, data: Dataset | None = None, widths: Widths | None = None,
        trials: int | None = None, epochs: int | None = None, seed: int | None = None,
        objectives: Mapping[str, str] | None = None, folder: str | Path | None = None,
        storage: str | BaseStorage | None = None, executor: AnyExecutor | None = None,
        shared: bool = False, **settings: Any,
    ):  # fmt: skip
        checked = _config(config, model, data).replace(
            widths=widths, n_trials=trials, max_epochs=epochs, seed=seed, objectives=objectives,
            **settings,
        )  # fmt: skip
        self.folder = None if folder is None else as_path("folder", folder)
        if not isinstance(storage, str | BaseStorage | None):
            raise LabkitError(f"storage: expected a URL, got {shown(storage)}")
        kept: str | Path | BaseStorage | None = storage or checked.search.strategy.setup.storage
        if kept is None and self.folder is not None:
            kept = kept_in(self.folder)[0]
        if isinstance(kept, str):  # the folder remembers it
            kept = as_url(kept)
            checked = checked.replace(storage=kept)
        self.experiment = Experiment(checked, model, data)
        setup = checked.search.strategy.setup
        self._stopping = threading.Event()
        self.progress: Progress | None = None
        self._show: Callable[[], None] = lambda: None
        shape = self.experiment.data.x_val.shape[1:]
        self._networks = FrontNetworks(
            self.folder, self.experiment.model, self.space.channels, shape
        )
        if self.folder is not None:
            make_folder(self.folder)
        self.store = Store(
            kept, checked.project, self.experiment.description(), self.space,
            sampler=setup.sampler, known=self.experiment.known_values, seed=checked.seed,
            limits=self.experiment.limits, first=self.experiment.first, shared=shared,
        )  # fmt: skip
        if self.folder is not None and not self.store.trials and has_results(self.folder):
            raise LabkitError(
                f"out: {str(self.folder)!r} holds the results of a study that is not in "
                f"{named(kept)!r}; give its storage, or use another folder"
            )
        self._trainer = Trainer(
            self.experiment, self.store, self._networks, as_executor(executor, setup.workers),
            on_epoch=self._on_epoch, on_step=self._check_stop,
            on_trial=lambda trial: self._tell(trial.record.plan, *_left(self)),
        )  # fmt: skip

    @property
    def config(self) -> SearchConfig:
        """The checked configuration."""
        return self.experiment.config

    @property
    def space(self) -> SearchSpaceBase:
        """The search space."""
        return self.experiment.space

    @property
    def study(self) -> optuna.Study:
        """The study in the storage, for Optuna's own functions."""
        return self.store.study

    def run(self, *, progress: bool = True) -> Results:
        """Runs trials until the study has `n_trials`, or time is up.

        Networks of the front whose weights are missing in the folder are trained again first.

        Ctrl-C, and `stop` from another thread, keep what is finished and write the files; a later
        run with the same folder continues. A second Ctrl-C interrupts at once. A request to
        terminate (SIGTERM, SIGHUP) does the same, and then ends the process.

        Args:
            progress: Show what is decided, and a bar of epochs; in a pipe or a file, lines.

        Returns:
            The results of the whole study, earlier runs included; `interrupted` says whether it
            was stopped.

        Raises:
            LabkitError: Another process is running a search in this folder.
        """
        with self._running(progress, lambda: _ahead(self)) as stopped:
            self._trainer.run()
        return self.results(interrupted=stopped.is_set())

    def stop(self) -> None:
        """Ends `run`, or the next one, before its next training step; from any thread."""
        self._stopping.set()

    def results(self, *, interrupted: bool = False) -> Results:
        """Returns the results so far; from any thread."""
        return Results(
            list(self.store.trials), self.store.description, dict(self.store.added_replicates),
            interrupted, self._networks.open, self.folder,
        )  # fmt: skip

    def replicate(self, seeds: int, *, progress: bool = True) -> Results:
        """Trains the front and the original network with more seeds, until each has that many.

        The study's objective values stay as they were; the tables and figures show the new means.
        Where training fails with a seed, the tables show the replicates before it, and a warning
        says so. Each training is kept when it ends; Ctrl-C and `stop` are as in `run`.

        Args:
            seeds: How many each network is to have, those of the search included.
            progress: Show a progress bar.

        Raises:
            LabkitError: The search did not train, has no trials yet, or is running here.
        """
        if not isinstance(seeds, int) or seeds < 1:
            raise LabkitError(f"seeds: expected a whole number from 1 on, got {shown(seeds)}")
        if self.store.shared:
            raise LabkitError("replicate: one process at a time does it; leave out shared=True")
        if not self.store.trials:
            raise LabkitError("replicate: the search has no trials yet")
        if self.experiment.training is None:
            raise LabkitError("search.strategy.sw_runner: only basic_train has replicates")
        missing = self._trainer.missing(seeds)
        epochs, left = self.experiment.training.max_epochs, len(missing)
        with self._running(
            progress, lambda: Progress(left, epochs=epochs, steps=_n_steps(self))
        ) as stopped:
            for outcome in self._trainer.replicate(missing):
                left -= 1
                self._tell(outcome.candidate.plan, left)
        return self.results(interrupted=stopped.is_set())

    @contextlib.contextmanager
    def _running(self, progress: bool, ahead: Callable[[], Progress]) -> Iterator[threading.Event]:
        """Yields an event that is set where the run was stopped; writes the files in the end."""
        stopped, self.progress = threading.Event(), None
        with self.store.driven(self.folder), session(self.stop, told=progress):
            with self.store.turn():
                self._networks.drop_others(trial.number for trial in self.store.front)
            for line in self.experiment.said:
                log.info("%s", line)
            if self.folder is not None:
                write_config(self.config, self.folder)
                add_run(self.folder, self.config, self.experiment.data)
                if not self.store.shared:  # others may be writing
                    remove_unfinished(self.folder)
            try:
                if not self.store.shared:  # others may have them
                    _restore_networks(self)
                self.progress = ahead()
                unseen = contextlib.nullcontext(lambda: None)
                with bar(self.progress) if progress else unseen as self._show:
                    yield stopped
            except runtime.Stopped:
                stopped.set()
            finally:
                self._stopping.clear()
                if self.folder is not None and self.store.trials:
                    write_results(self.results(), self.folder)

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise runtime.Stopped
        if self.progress is not None:
            self.progress.on_step()

    def _on_epoch(self, metrics: Mapping[Candidate, Metrics], seconds: float | None = None) -> None:
        if self.progress is not None:
            self.progress.on_epoch(metrics, seconds)
            self._show()

    def _tell(self, plan: Plan, *left: int) -> None:
        if self.progress is not None:
            self.progress.on_trial(plan, *left)
            self._show()


def _ahead(search: Search) -> Progress:
    """Returns what a run has ahead of it."""
    setup, training = search.config.search.strategy.setup, search.experiment.training
    known = search.store.known
    measured = [one.record.metrics for one in known.values()]
    return Progress(
        *_left(search), trained=len(known), jobs=setup.n_jobs,
        seeds=len(search.experiment.candidates(Plan(()))),
        epochs=training.max_epochs if training else 1, steps=_n_steps(search),
        repeats=setup.sampler not in ("bruteforce", "known-cost"),
        best=max((one[m] for one in measured if (m := main_of(one)) in one), default=None),
    )  # fmt: skip


def _n_steps(search: Search) -> int:
    """Returns how many steps an epoch has."""
    training, x = search.experiment.training, search.experiment.data.x_train
    return n_batches(len(x[: training.num_samples]), training) if training else 1


def _restore_networks(search: Search) -> None:
    """Trains the networks of the front again whose weights are not in the folder."""
    missing = {
        Candidate(trial.record.plan, search.config.seed, **trial.record.rates): trial
        for trial in search._networks.missing(search.store.front)
    }
    if missing:
        log.warning("%d of the front are not in best/, and trained again", len(missing))
    for outcome in search._trainer.again({one: t.number for one, t in missing.items()}):
        if outcome.failure is None:
            trial = missing[outcome.candidate]
            search._networks.keep(trial.number, trial.record, outcome)


def _left(search: Search) -> tuple[int, int]:
    """Returns how many trials are left, and how many networks the space has left for them."""
    n_trials, store = search.config.search.strategy.setup.n_trials, search.store
    return max(n_trials - len(store.trials), 0), search.experiment.n_networks - len(store.known)


def search(
    config: str | Path | Mapping[str, Any] | SearchConfig | None = None, *,
    model: nn.Module | None = None, data: Dataset | None = None, widths: Widths | None = None,
    trials: int | None = None, epochs: int | None = None, seed: int | None = None,
    objectives: Mapping[str, str] | None = None, folder: str | Path | None = None,
    storage: str | BaseStorage | None = None, executor: AnyExecutor | None = None,
    shared: bool = False, progress: bool = True, **settings: Any,
) -> Results:  # fmt: skip
    """Makes a `Search` and runs it; see there for the arguments.

    With a folder it leaves `study.db`, `log.json`, `best.json`, `trials.csv`, `best.md`,
    `pareto.html`, `config.toml`, and in `best/` the weights and the plan of every network on the
    Pareto front.

    Example:
        >>> results = search(model=model, data=data, widths=[0.5, 1, 2, 4], trials=100, epochs=3)
        >>> results.front  # a table
        >>> network = results.best()
    """
    return Search(
        config, model=model, data=data, widths=widths, trials=trials, epochs=epochs, seed=seed,
        objectives=objectives, folder=folder, storage=storage, executor=executor, shared=shared,
        **settings,
    ).run(progress=progress)  # fmt: skip


def _config(
    config: str | Path | Mapping[str, Any] | SearchConfig | None, model: nn.Module | None,
    data: Dataset | None,
) -> SearchConfig:  # fmt: skip
    """Returns a checked configuration; a network and a data set of one's own need no names."""
    if config is None:
        if model is None or data is None:
            raise LabkitError("config: without one, a search needs model= and data=")
        config = simple_tables([0.5, 1, 2], MAIN_METRIC[getattr(data, "task", "classification")])
    if isinstance(config, Mapping):
        config = {
            **({"model": type(model).__name__} if model is not None else {}),
            **({"dataset": getattr(data, "name", "data")} if data is not None else {}),
            **config,
        }
    return load_config(config)
