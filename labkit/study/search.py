"""The search: ask for a configuration, resolve it, look it up or train it, tell."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import filelock
import optuna
import tomli_w
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn
from tqdm.auto import tqdm

from labkit.data.dataset import Dataset, load_data
from labkit.errors import DivergenceError, LabkitError
from labkit.operators.stacking import NotStackable
from labkit.runtime import Stopped, ctrl_c_stops
from labkit.show.page import write_page
from labkit.study.config import SearchConfig, load_config, to_tables
from labkit.study.results import (
    INTERRUPTED,
    LOOKED_UP,
    TRAINED,
    Results,
    drop_networks,
    has_diverged,
    pareto_trials,
    plan_of,
    replicates_of,
    save_network,
    write_tables,
)
from labkit.study.runners import (
    RUNNERS,
    BasicTrainSettings,
    Candidate,
    Metrics,
    basic_train,
    load_weights,
)
from labkit.study.space import MAX_ENUMERATED, get_space, networks
from labkit.training import Trained, check_fit, stack_width, step_seconds, train_stack
from labkit.transform.applying import apply
from labkit.transform.models import get_model
from labkit.transform.plan import Plan

# What may change between two runs that continue the same study.
BUDGET = ("n_trials", "timeout", "n_jobs", "sampler")


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Returns one of Optuna's samplers by the name that a configuration gives it."""
    samplers = optuna.samplers
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        match name:
            case "tpe":
                return samplers.TPESampler(seed=seed)
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "nsgaii":
                return samplers.NSGAIISampler(seed=seed)
            case "nsgaiii":
                return samplers.NSGAIIISampler(seed=seed)
            case "qmc":
                return samplers.QMCSampler(seed=seed, scramble=True)
            case "bruteforce" | "grid":
                return samplers.RandomSampler(seed=seed)  # networks are enqueued; see Search._ask
    raise LabkitError(f"search.strategy.setup.sampler: unknown sampler {name!r}")


class Search:
    """A search, ready to run: everything that can be wrong is checked when it is made.

    Args:
        config: The path of a TOML file, or its tables.
        model: A network, in place of the one that the configuration names.
        data: A data set, in place of the one that the configuration names.
        folder: Where to leave the results, and to continue from; `None` leaves no files.
        storage: An Optuna storage URL; by default `study.db` in the folder, or memory.

    Attributes:
        study: The Optuna study.
        space: The search space.
        data: The data set, on the device that trains.

    Raises:
        LabkitError: The configuration is wrong, the network does not fit the data, or the folder
            holds another search.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | SearchConfig,
        *,
        model: nn.Module | None = None,
        data: Dataset | None = None,
        folder: str | Path | None = None,
        storage: str | None = None,
    ):
        if isinstance(config, Mapping):
            config = {
                **({"model": type(model).__name__} if model is not None else {}),
                **({"dataset": data.name} if data is not None else {}),
                **config,
            }
        self.config = load_config(config)
        self.device = _device(self.config.accelerator)
        self.model = get_model(model if model is not None else self.config.model)
        if data is None:
            data = load_data(self.config.dataset, label=self.config.label)
        check_fit(self.model.cpu(), data)
        if self._train_settings is not None and self._train_settings.weights == "keep":
            if self.config.load_name is None:
                raise LabkitError("load_name: weights = 'keep' needs the path of a checkpoint")
            self.model = copy.deepcopy(self.model)  # the user's own keeps the weights it has
            load_weights(self.model, self.config.load_name)
        self.data = data.to(self.device)
        space = self.config.search.search_space
        self.space = get_space(space.name)(
            self.model, space.setup, space.seed, example_input=data.x_val[:1]
        )
        self.folder = None if folder is None else Path(folder)
        self._networks: dict[Plan, dict[str, int]] = {}  # of the space, where they can be listed
        every_network = self.config.search.strategy.setup.sampler in ("bruteforce", "grid")
        if every_network or self.space.n_configurations <= MAX_ENUMERATED:
            self._networks = networks(self.space)
        self._ready: dict[Plan, Candidate] = {}  # trained along with others; see _rest_of_space
        self._stackable: bool | None = None  # or as fast one by one; known once it was measured
        self._stopping = threading.Event()
        self.study = self._open_study(storage)

    def _open_study(self, storage: str | None) -> optuna.Study:
        strategy = self.config.search.strategy
        names = list(strategy.metrics)
        directions = [metric.direction for metric in strategy.metrics.values()]
        if strategy.setup.sum_scaled_metrics:
            assert strategy.setup.direction is not None
            names, directions = ["sum of scaled metrics"], [strategy.setup.direction]
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LabkitError(f"out: cannot make {str(self.folder)!r}: {error}") from error
            storage = storage or f"sqlite:///{self.folder / 'study.db'}"
        try:
            study = optuna.create_study(
                study_name=self.config.project,
                storage=storage,
                directions=directions,
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's own kinds, by the driver
            raise LabkitError(f"storage: cannot open {storage!r}: {error}") from error
        settings = self._settings()
        known = study.user_attrs.get("settings")
        if known is not None and (changed := _first_difference(known, settings)):
            raise LabkitError(
                f"{changed}: {str(self.folder or storage)!r} holds a search with "
                f"{known.get(changed)!r}, not {settings.get(changed)!r}; use another folder"
            )
        if known is None:
            study.set_user_attr("settings", settings)
            study.set_user_attr(
                "objectives", {n: metric.direction for n, metric in strategy.metrics.items()}
            )
            study.set_user_attr("about", self._about())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(names)
        n_before = len(study.get_trials(deepcopy=False))
        # A sampler that continues must not draw again what it drew first.
        study.sampler = make_sampler(strategy.setup.sampler, (self.config.seed + n_before) % 2**32)
        return study

    def _settings(self) -> dict[str, Any]:
        """Returns all that results depend on, flat: what must agree to continue a study."""
        settings = _flatten(to_tables(self.config))
        for option in BUDGET:
            settings.pop(f"search.strategy.setup.{option}", None)
        settings["network"] = hashlib.sha256(str(self.model).encode()).hexdigest()[:16]
        settings["data"] = self.data.fingerprint()
        return settings

    def _about(self) -> dict[str, Any]:
        computations = self.config.runners("sw_runner").get("basic_computations")
        free = self.space.channels.free
        return {
            "model": self.config.model,
            "dataset": self.data.name,
            "seed": self.config.seed,
            "convention": getattr(computations, "convention", None),
            "input_shape": list(self.data.x_val.shape[1:]),
            "original": str(Plan(tuple((group.name, group.width) for group in free))),
        }

    def run(self, *, progress: bool = True) -> Results:
        """Runs trials until the study has `n_trials`, or time is up.

        Ctrl-C, and `stop` from another thread, keep what is finished and write the files; a later
        run with the same folder continues.

        Args:
            progress: Show a progress bar.

        Returns:
            The results of the whole study, earlier runs included.

        Raises:
            LabkitError: Another process is running a search in this folder.
            KeyboardInterrupt: Ctrl-C was pressed; the files are written.
        """
        setup = self.config.search.strategy.setup
        with self._locked_folder(), self._ctrl_c_stops():
            self._fail_abandoned_trials()
            trained = {
                plan_of(trial): trial
                for trial in reversed(self.study.get_trials(deepcopy=False))
                if has_diverged(trial)
                or (trial.state == TrialState.COMPLETE and trial.user_attrs["source"] == TRAINED)
            }
            n_done = self._n_done()
            started = time.monotonic()
            with tqdm(
                total=setup.n_trials, initial=n_done, disable=not progress, unit="trial"
            ) as bar:
                try:
                    while n_done < setup.n_trials:
                        if setup.timeout and time.monotonic() - started > setup.timeout:
                            break
                        n_run = self._run_round(
                            min(setup.n_jobs, setup.n_trials - n_done), trained, bar
                        )
                        if n_run == 0:
                            break
                        n_done += n_run
                        bar.update(n_run)
                except Stopped:
                    pass
                finally:
                    self._stopping.clear()
                    results = self._write_files()
        return results

    def stop(self) -> None:
        """Ends `run`, or the next one, before its next training step; from any thread."""
        self._stopping.set()

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    @contextlib.contextmanager
    def _ctrl_c_stops(self) -> Iterator[None]:
        """Lets Ctrl-C end the run as `stop` does: never in the middle of a record.

        A second Ctrl-C interrupts at once, for a runner that does not come to an end.
        """
        pressed = threading.Event()

        def stop() -> None:
            pressed.set()
            self.stop()

        with ctrl_c_stops(stop):
            yield
        if pressed.is_set():
            raise KeyboardInterrupt

    def results(self) -> Results:
        """Returns the results so far."""
        return Results.from_study(self.study)

    def _n_done(self) -> int:
        """Returns how many trials count towards `n_trials`: all but those interrupted."""
        return sum(
            trial.state.is_finished() and trial.user_attrs.get("failure") != INTERRUPTED
            for trial in self.study.get_trials(deepcopy=False)
        )

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        try:
            with filelock.FileLock(self.folder / ".lock", timeout=0):
                yield
        except filelock.Timeout as error:
            raise LabkitError(f"out: another search is running in {str(self.folder)!r}") from error

    def _fail_abandoned_trials(self) -> None:
        """Ends the trials that a killed process left running; the lock says that none runs."""
        if self.folder is not None:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._fail(trial.number, INTERRUPTED)

    def _fail(self, number: int, reason: str) -> None:
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        self.study._storage.set_trial_user_attr(trial_id, "failure", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def _ask(self, n: int) -> list[optuna.Trial]:
        """Returns at most n new trials; fewer where brute force has no more networks."""
        if self.config.search.strategy.setup.sampler in ("bruteforce", "grid"):
            tried = {
                plan_of(trial)
                for trial in self.study.get_trials(deepcopy=False)
                if "plan" in trial.user_attrs and trial.user_attrs.get("failure") != INTERRUPTED
            }
            untried = [indices for plan, indices in self._networks.items() if plan not in tried]
            for indices in untried[:n]:
                self.study.enqueue_trial(indices)
            n = min(n, len(untried))
        return [self.study.ask(self.space.distributions) for _ in range(n)]

    def _run_round(self, n: int, trained: dict[Plan, FrozenTrial], bar: tqdm) -> int:
        """Runs n trials at once and records them, whatever becomes of them.

        Returns:
            How many there were.
        """
        self._check_stop()
        trials = self._ask(n)
        running = {trial.number for trial in trials}
        try:
            new: dict[Plan, Candidate] = {}
            plans: dict[int, Plan] = {}
            for trial in trials:
                pass_config = self.space.sampled_config(trial.params)
                trial.set_user_attr("sampled_config", pass_config)
                with self._failure_recorded(trial, running, bar):
                    plan = plans[trial.number] = self.space.resolve(pass_config)
                    trial.set_user_attr("plan", plan.to_dict())
                    if plan in self._ready:
                        new[plan] = self._ready.pop(plan)
                    elif plan not in trained and plan not in new:
                        new[plan] = self._candidate(
                            plan, self._seeds, bar, f"network {len(trained) + len(new) + 1}"
                        )
            untrained = [candidate for candidate in new.values() if not candidate.histories]
            if untrained:
                rest = self._rest_of_space(new.keys() | trained.keys(), len(untrained), n)
                others = [self._candidate(plan, self._seeds, bar, str(plan)) for plan in rest]
                self._train_together([*untrained, *others], bar)
                # What did not train in a stack waits for a trial of its own.
                self._ready |= {other.plan: other for other in others if other.histories}
            for trial in trials:
                if trial.number not in running:
                    continue
                plan = plans[trial.number]
                candidate = new.get(plan)
                with self._failure_recorded(trial, running, bar):
                    if plan in trained:
                        self._look_up(trial, trained[plan])
                    else:
                        assert candidate is not None
                        self._measure(trial, candidate)
                    self.study.tell(trial, self._values(trial.user_attrs["scaled_metrics"]))
                    running.discard(trial.number)
                if trial.number not in running and plan not in trained and candidate is not None:
                    finished = self.study.get_trials(deepcopy=False)[trial.number]
                    if finished.state == TrialState.COMPLETE or has_diverged(finished):
                        trained[plan] = finished
                    if finished.state == TrialState.COMPLETE:
                        self._keep_front(finished, candidate.model)
        except (Stopped, KeyboardInterrupt):
            for number in running:
                self._fail(number, INTERRUPTED)
            raise
        return len(trials)

    @contextlib.contextmanager
    def _failure_recorded(
        self, trial: optuna.Trial, running: set[int], bar: tqdm
    ) -> Iterator[None]:
        """Ends the trial where the block raises: one bad candidate must not end a search."""
        try:
            yield
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._fail(trial.number, reason)
            running.discard(trial.number)
            _say(bar, f"trial {trial.number} failed: {reason}")

    def _rest_of_space(self, known: Set[Plan], n_untrained: int, n_running: int) -> list[Plan]:
        """Returns all other networks of the space, where they may as well train now.

        That is, where they fit into the stack beside the untrained ones of this round, which makes
        them nearly free, and the trials left over are enough to meet them.
        """
        rest = [plan for plan in self._networks if plan not in known]
        setup = self.config.search.strategy.setup
        trials_left = setup.n_trials - self._n_done() - n_running
        return rest if len(rest) <= min(setup.n_jobs - n_untrained, trials_left) else []

    def _train_together(self, candidates: list[Candidate], bar: tqdm) -> None:
        """Trains the candidates in stacks where it can; `basic_train` then finds them so."""
        settings = self._train_settings
        runs = [(candidate.plan, seed) for candidate in candidates for seed in candidate.seeds]
        if settings is None or self._stackable is False or len(runs) < 2:
            return  # a single one is as fast by the plain loop

        def on_epoch(metrics: list[Metrics]) -> None:
            best = max(each["accuracy"] for each in metrics)
            bar.set_postfix_str(f"{len(metrics)} networks at once: best accuracy {best:.3f}")

        plans, seeds = zip(*runs)
        stacked: list[Trained] = []
        try:
            width = stack_width(self.space.channels, plans, self.data, settings)
            if self._stackable is None:
                channels = self.space.channels
                networks = [
                    apply(self.model, plan, channels=channels).to(self.device)
                    for plan in plans[:width]
                ]
                together, alone = step_seconds(networks, channels, self.data, settings)
                self._stackable = together <= alone
                if not self._stackable:
                    _say(
                        bar,
                        f"networks train one by one: a step of {len(plans[:width])} takes "
                        f"{alone:.3g} s so, and {together:.3g} s in a stack",
                    )
                    return
            for start in range(0, len(runs), width):
                stacked += train_stack(
                    self.model,
                    plans[start : start + width],
                    self.data,
                    settings,
                    seeds[start : start + width],
                    channels=self.space.channels,
                    weights=settings.weights,
                    on_epoch=on_epoch,
                    on_step=self._check_stop,
                )
        except Stopped:
            raise
        except NotStackable as reason:
            self._stackable = False
            _say(bar, f"networks train one by one: {reason}")
            return
        except (
            Exception
        ) as error:  # of one network, or out of memory: alone, each says what is wrong
            _say(bar, f"{len(runs)} networks train one by one: {type(error).__name__}: {error}")
            return
        remaining = iter(stacked)
        for candidate in candidates:
            own = list(itertools.islice(remaining, len(candidate.seeds)))
            candidate.model = own[0].model
            candidate.histories = [trained.history for trained in own]
            candidate.failure = next((t.failure for t in own if t.failure is not None), None)

    @property
    def _train_settings(self) -> BasicTrainSettings | None:
        settings = self.config.runners("sw_runner").get("basic_train")
        return settings if isinstance(settings, BasicTrainSettings) else None

    @property
    def _seeds(self) -> range:
        """The seeds that each network is trained with."""
        replicates = self._train_settings.replicates if self._train_settings else 1
        return range(self.config.seed, self.config.seed + replicates)

    def _candidate(self, plan: Plan, seeds: Iterable[int], bar: tqdm, name: str) -> Candidate:
        epochs: list[Metrics] = []

        def on_epoch(metrics: Metrics) -> None:
            epochs.append(metrics)
            bar.set_postfix_str(f"{name}, epoch {len(epochs)}: accuracy {metrics['accuracy']:.3f}")

        return Candidate(
            model=apply(
                self.model,
                plan,
                channels=self.space.channels,
                weights=self._train_settings.weights if self._train_settings else "fresh",
            ).to(self.device),
            original=self.model,
            plan=plan,
            data=self.data,
            seeds=tuple(seeds),
            batch_size=self.config.batch_size,
            checkpoint=self.config.load_name,
            on_epoch=on_epoch,
            on_step=self._check_stop,
        )

    def _measure(self, trial: optuna.Trial, candidate: Candidate) -> None:
        """Runs all runners and records their metrics on the trial."""
        recorded: dict[str, Metrics] = {}
        for kind in ("sw_runner", "hw_runner"):
            metrics = recorded[kind] = {}
            for name, settings in self.config.runners(kind).items():
                metrics |= RUNNERS[name].run(candidate, settings)
        measured = recorded["sw_runner"] | recorded["hw_runner"]
        objectives = self.config.search.strategy.metrics
        trial.set_user_attr("source", TRAINED)
        trial.set_user_attr("trained_in", trial.number)
        trial.set_user_attr("software_metrics", recorded["sw_runner"])
        trial.set_user_attr("hardware_metrics", recorded["hw_runner"])
        trial.set_user_attr(
            "scaled_metrics",
            {name: metric.scale * measured[name] for name, metric in objectives.items()},
        )
        if candidate.histories:
            trial.set_user_attr("history", candidate.histories[0])
            trial.set_user_attr("replicates", [history[-1] for history in candidate.histories])

    @staticmethod
    def _look_up(trial: optuna.Trial, twin: FrozenTrial) -> None:
        """Copies what was recorded of the same network: same data, settings and seed.

        Raises:
            DivergenceError: That was a divergence.
        """
        if has_diverged(twin):
            raise DivergenceError(f"training diverged, as in trial {twin.number}")
        trial.set_user_attr("source", LOOKED_UP)
        for key in ("trained_in", "software_metrics", "hardware_metrics", "scaled_metrics"):
            trial.set_user_attr(key, twin.user_attrs[key])
        if "replicates" in twin.user_attrs:
            trial.set_user_attr("replicates", twin.user_attrs["replicates"])

    def _values(self, scaled: Metrics) -> list[float]:
        if self.config.search.strategy.setup.sum_scaled_metrics:
            return [sum(scaled.values())]
        return list(scaled.values())

    def _keep_front(self, trial: FrozenTrial, model: nn.Module) -> None:
        """Saves the network if it is on the front, and drops those that it pushed off it."""
        if self.folder is not None:
            front = {best.number for best in pareto_trials(self.study)}
            if trial.number in front:
                save_network(self.folder, trial, model, self.data.x_val.shape[1:])
                drop_networks(self.folder, front)

    def replicate(self, seeds: int, *, progress: bool = True) -> Results:
        """Trains the networks of the front with more seeds, until each has that many.

        The study's objective values stay as they were; the tables and figures show the new means.
        Where training diverges with a seed, the network keeps the replicates before it, and the
        progress bar says so. Ctrl-C and `stop` keep what is finished, as in `run`.

        Args:
            seeds: How many each network is to have, those of the search included.
            progress: Show a progress bar.

        Raises:
            LabkitError: The search did not train, or a search is running here.
            KeyboardInterrupt: Ctrl-C was pressed; the files are written.
        """
        settings = self._train_settings
        if settings is None:
            raise LabkitError("search.strategy.sw_runner: only basic_train has replicates")
        with self._locked_folder(), self._ctrl_c_stops():
            front = pareto_trials(self.study)
            replicates = {trial.number: replicates_of(self.study, trial) for trial in front}
            missing = [
                (trial, self.config.seed + index)
                for trial in front
                for index in range(len(replicates[trial.number]), seeds)
            ]
            diverged = set()
            n_jobs = self.config.search.strategy.setup.n_jobs
            with tqdm(total=len(missing), disable=not progress, unit="network") as bar:
                try:
                    for start in range(0, len(missing), n_jobs):
                        batch = missing[start : start + n_jobs]
                        candidates = [
                            self._candidate(plan_of(trial), [seed], bar, f"trial {trial.number}")
                            for trial, seed in batch
                        ]
                        self._train_together(candidates, bar)
                        for (trial, seed), candidate in zip(batch, candidates):
                            try:
                                metrics = basic_train(candidate, settings)
                            except LabkitError as error:
                                diverged.add(trial.number)
                                _say(bar, f"trial {trial.number}, seed {seed}: {error}")
                            # Tests pair replicates by their place, so none may be skipped.
                            if trial.number not in diverged:
                                replicates[trial.number].append(metrics)
                            bar.update()
                except Stopped:
                    pass
                finally:
                    self._stopping.clear()
                    self._record_replicates(replicates)
                    results = self._write_files()
        return results

    def _record_replicates(self, replicates: Mapping[int, list[Metrics]]) -> None:
        earlier = self.study.user_attrs.get("replicates", {})
        added = {str(number): metrics for number, metrics in replicates.items()}
        self.study.set_user_attr("replicates", earlier | added)

    def _write_files(self) -> Results:
        if self.folder is None:
            return self.results()
        results = write_tables(self.study, self.folder)
        (self.folder / "config.toml").write_text(tomli_w.dumps(to_tables(self.config)))
        write_page(results, self.folder / "pareto.html")
        return results


def search(
    config: str | Path | Mapping[str, Any] | SearchConfig,
    *,
    model: nn.Module | None = None,
    data: Dataset | None = None,
    folder: str | Path | None = None,
    storage: str | None = None,
    progress: bool = True,
) -> Results:
    """Makes a `Search` and runs it; see there for the arguments.

    With a folder it leaves `study.db`, `log.json`, `best.json`, `trials.csv`, `best.md`,
    `pareto.html`, `config.toml`, and in `best/` the weights and the plan of every network on the
    Pareto front.
    """
    return Search(config, model=model, data=data, folder=folder, storage=storage).run(
        progress=progress
    )


def _say(bar: tqdm, text: str) -> None:
    """Writes a line above a progress bar, where one is shown."""
    if not bar.disable:
        bar.write(text)


def _device(accelerator: str) -> torch.device:
    available = torch.cuda.is_available()
    if accelerator == "auto":
        return torch.device("cuda" if available else "cpu")
    if accelerator in ("cuda", "gpu"):
        if not available:
            raise LabkitError(f"accelerator: {accelerator!r} needs a CUDA device; there is none")
        return torch.device("cuda")
    return torch.device("cpu")


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return flat


def _first_difference(known: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Returns the first key on which two flat tables differ."""
    keys = dict.fromkeys([*known, *new])
    return next((key for key in keys if known.get(key) != new.get(key)), None)
