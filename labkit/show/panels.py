"""Panels for notebooks: controls around a model or a search, without logic of their own."""

from __future__ import annotations

import copy
import html
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import optuna
import plotly.graph_objects as go
import traitlets
from torch import nn

from labkit.data.dataset import Dataset
from labkit.errors import LabkitError
from labkit.runtime import switch_interval, threads
from labkit.show.plots import AXIS_TITLES, TEMPLATE, network_drawing, pareto_front
from labkit.show.serving import open_study
from labkit.show.tables import compare, html_table
from labkit.study.config import SearchConfig, load_config, to_tables, with_overrides
from labkit.study.results import INTERRUPTED, Results, plan_of, recorded_example
from labkit.study.runners import BasicComputationsSettings, BasicTrainSettings
from labkit.study.search import Search
from labkit.transform.applying import apply
from labkit.transform.channels import channel_groups, find_channels
from labkit.transform.cost import total_cost
from labkit.transform.models import get_model
from labkit.transform.plan import SkippedRequest, resolve

POLL_SECONDS = 1.0
COST_METRICS = ("total_flops", "total_bitops", "parameters", "latency")
# The browser computes with percents of the range. Over a range of 8 they are exact; over another
# one it would correct 1 to 0.99…9, and linked sliders would hand that on, also to the user's own.
MULTIPLIERS = {"min": 0.25, "max": 8.25, "step": 0.25}
SAMPLERS = ("tpe", "random", "nsgaii", "nsgaiii", "qmc", "bruteforce")


def _labelled(kind: type[ipw.Widget], description: str, **options: Any) -> ipw.Widget:
    # Names of layers may be long: what does not fit is in the tooltip.
    return kind(
        description=description,
        tooltip=description,
        style={"description_width": "13em"},
        layout=ipw.Layout(width="32em"),
        **options,
    )


def _update(figure: go.FigureWidget, new: go.Figure) -> None:
    """Gives a displayed figure the data of a new one with as many traces."""
    with figure.batch_update():
        for trace, fresh in zip(figure.data, new.data, strict=True):
            trace.update(fresh.to_plotly_json())
        layout = new.layout.to_plotly_json()
        figure.update_layout({key: layout[key] for key in layout if key != "template"})  # slow


class LayerExplorer(ipw.VBox):
    """Sliders for the multipliers of each layer; what they make of the network and its cost.

    The sliders of sides that share their channels move together. Beside a slider that asks for a
    width that cannot change it says why.

    Args:
        model: The network; it is not changed.
        **cost_options: As `labkit.total_cost` takes them.
    """

    def __init__(self, model: nn.Module, **cost_options: Any):
        if cost_options.get("convention") == "reference":
            cost_options.setdefault("shapes_from", model)
        self._model, self._cost_options = model, cost_options
        self._channels = channels = find_channels(model, cost_options.get("example_input"))
        self._cost = total_cost(model, **cost_options)
        self._sliders: dict[tuple[str, str], ipw.FloatSlider] = {}
        self._notes: dict[tuple[str, str], ipw.HTML] = {}
        self.totals, self.table = ipw.HTML(), ipw.HTML()
        rows = []
        first_of: dict[str, ipw.FloatSlider] = {}
        last_of: dict[str, ipw.FloatSlider] = {}
        for layer in channels.inputs:
            for side, groups in (
                ("input", channels.inputs[layer].groups),
                ("output", channels.outputs[layer].groups),
            ):
                layers = [g.readers if side == "input" else g.writers for g in groups]
                # A side of several groups, as behind a concatenation, has no one width to set.
                if len(groups) > 1 or layer not in layers[0]:
                    continue
                (group,) = groups
                slider = _labelled(ipw.FloatSlider, f"{layer} {side} ×", value=1, **MULTIPLIERS)
                note = ipw.HTML(layout=ipw.Layout(max_width="45em", flex="1"))
                self._sliders[layer, side], self._notes[layer, side] = slider, note
                rows.append(ipw.HBox([slider, note]))
                if group.name in first_of:
                    traitlets.link((first_of[group.name], "value"), (slider, "value"))
                first_of.setdefault(group.name, slider)
                last_of[group.name] = slider
        for slider in last_of.values():  # when it has moved, all that are linked have
            slider.observe(self._redraw, "value")
        self.figure = go.FigureWidget(network_drawing(compare(model, model, **cost_options)))
        self._redraw()
        groups = ipw.Accordion(
            [ipw.HTML(html_table(channel_groups(channels)))],
            titles=["Channel groups: who must agree, and what is fixed"],
        )
        super().__init__([*rows, self.totals, self.figure, self.table, groups])

    @property
    def pass_config(self) -> dict[str, Any]:
        """The pass configuration that the sliders ask for, to paste into code."""
        config: dict[str, Any] = {"by": "name", "default": {"config": {"name": "NA"}}}
        wanted: dict[str, dict[str, float]] = {}
        for (layer, side), slider in self._sliders.items():
            if slider.value != 1:
                wanted.setdefault(layer, {})[side] = slider.value
        for layer, sides in wanted.items():
            name = "both" if len(sides) == 2 else f"{next(iter(sides))}_only"
            config[layer] = {
                "config": {
                    "name": name,
                    **{f"{side}_multiplier": value for side, value in sides.items()},
                }
            }
        return config

    def _redraw(self, _: object = None) -> None:
        try:
            with warnings.catch_warnings(action="ignore", category=SkippedRequest):
                resolution = resolve(self._channels, self.pass_config)
                network = apply(self._model, resolution, channels=self._channels)
        except LabkitError as error:
            self.totals.value = _message(str(error))
            return
        for (layer, side), note in self._notes.items():
            refused = (s for s in resolution.skipped if s.startswith(f"{layer} {side} × "))
            note.value = "".join(map(_message, refused))
        comparison = compare(self._model, network, **self._cost_options)
        after = total_cost(network, **self._cost_options)
        self.totals.value = "; ".join(
            f"{AXIS_TITLES[name]}: {getattr(self._cost, name):,} → <b>{getattr(after, name):,}</b>"
            for name in ("total_flops", "total_bitops", "parameters")
        )
        self.table.value = html_table(comparison)
        _update(self.figure, network_drawing(comparison))


def _message(text: str) -> str:
    return f'<span role="status">{html.escape(text)}</span>'


class _LivePanel(ipw.VBox):
    """A front that grows, the table of best trials, and the report of a point that is clicked."""

    def __init__(self, controls: Sequence[ipw.Widget]):
        self.study: optuna.Study | None = None
        self.selected: int | None = None
        self._model: nn.Module | None = None
        self._cost_options: dict[str, Any] = {}
        self._n_drawn = -1
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self.message, self.table, self.report = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.progress = _labelled(ipw.IntProgress, "Trials")
        self.progress_text = ipw.Label()
        self.figure = go.FigureWidget(layout={"template": TEMPLATE, "height": 450})
        for _ in range(3):  # as many as a front has
            self.figure.add_scatter().data[-1].on_click(self._on_click)
        status = ipw.HBox([self.progress, self.progress_text])
        super().__init__([*controls, status, self.message, self.figure, self.table, self.report])

    @property
    def results(self) -> Results:
        """The results so far.

        Raises:
            LabkitError: No search was launched yet.
        """
        if self.study is None:
            raise LabkitError("results: there is no study yet; press Launch")
        return Results.from_study(self.study)

    def select(self, number: int) -> None:
        """Shows the layer report of a trial's network, as a click on its point does."""
        assert self.study is not None
        assert self._model is not None
        example_input = self._cost_options.get("example_input")
        plan = plan_of(self.study.trials[number])
        network = apply(self._model, plan, example_input=example_input)
        comparison = compare(self._model, network, **self._cost_options)
        self.selected = number
        self.report.value = f"<h4>Trial {number}</h4>" + html_table(comparison)

    def wait(self) -> None:
        """Blocks until nothing runs in the background; the buttons do not answer meanwhile."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Removes the panel and ends its threads."""
        self._closing.set()
        self.wait()
        super().close()

    def _on_click(self, trace: go.Scatter, points: Any, _: object) -> None:
        if points.point_inds and trace.customdata is not None:
            self.select(int(trace.customdata[points.point_inds[0]][0]))

    def _start(self, *targets: Any) -> None:
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def _is_running(self) -> bool:
        return True

    def _watch(self) -> None:
        """Follows the study until the panel closes or its search has ended."""
        running = True
        while running and not self._closing.is_set():
            running = self._is_running()
            try:
                self._refresh(running)
            except Exception as error:  # such as a locked file: say it, and look again
                self._say(error)
            if running:
                self._pause()

    def _pause(self) -> None:
        self._closing.wait(POLL_SECONDS)

    def _refresh(self, running: bool) -> None:
        results = self.results
        finished = results.trials[results.trials["state"].isin(["COMPLETE", "FAIL"])]
        if len(finished) != self._n_drawn:
            self._n_drawn = len(finished)
            _update(self.figure, pareto_front(results))
            self.table.value = "<h4>Best trials</h4>" + html_table(results.front_table())
            failures = finished["failure"].dropna()
            failures = failures[failures != INTERRUPTED]
            if len(failures):
                self._say(f"trial {failures.index[-1]} failed: {failures.iloc[-1]}")
        self._show_progress(len(finished), running)

    def _show_progress(self, n_done: int, running: bool) -> None:
        self.progress.max = self.progress.value = n_done
        self.progress_text.value = f"{n_done} trials"

    def _say(self, what: object) -> None:
        self.message.value = _message(str(what))


class StudyPanel(_LivePanel):
    """Shows the study of a results folder, live where another process is writing it.

    Args:
        folder: A results folder.
        model: The network that is searched, where the search was given a module and not a name.
        **cost_options: As `labkit.total_cost` takes them, for the layer reports; by default
            the study's convention and one sample.

    Raises:
        LabkitError: The folder holds no study.
    """

    def __init__(self, folder: str | Path, *, model: nn.Module | None = None, **cost_options: Any):
        close = ipw.Button(description="Close", tooltip="Remove the panel")
        super().__init__([close])
        close.on_click(lambda _: self.close())
        self.study = open_study(folder)
        self._model = get_model(model or self.study.user_attrs["about"]["model"])
        about = self.study.user_attrs["about"]
        self._cost_options = {
            "convention": about["convention"] or "inference",
            "example_input": recorded_example(about),
        } | cost_options
        self._start(self._watch)


class SearchPanel(_LivePanel):
    """Sets up a search, runs it in the background and shows it live.

    Args:
        config: As `Search` takes it: where the controls begin.
        data: A data set, in place of the one that the configuration names.
        model: A network, in place of the one that the configuration names.
        folder: Each Launch makes a results folder `run-N` in it; by default a temporary one.

    Attributes:
        study: The Optuna study that runs or ran last; `None` before the first.
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
        self._tables = to_tables(base.config)
        self._data = base.data
        self._search: Search | None = None
        self.folder: Path | None = None
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self._parent = Path(folder or self._temporary.name)  # type: ignore[union-attr]
        setup = base.config.search.strategy.setup
        train = base.config.runners("sw_runner").get("basic_train")
        epochs = getattr(train, "max_epochs", 1)
        replicates = train.replicates if isinstance(train, BasicTrainSettings) else 1
        self.trials = _labelled(
            ipw.IntSlider, "Trials", value=setup.n_trials, min=1, max=max(200, setup.n_trials)
        )
        self.epochs = _labelled(ipw.IntSlider, "Epochs", value=epochs, min=1, max=max(50, epochs))
        self.replicates = _labelled(
            ipw.IntSlider, "Seeds a network", value=replicates, min=1, max=max(10, replicates)
        )
        self.learning_rate = _labelled(
            ipw.FloatLogSlider, "Learning rate", min=-5, max=-1, step=0.25, readout_format=".1e",
            value=getattr(train, "learning_rate", base.config.learning_rate),
        )  # fmt: skip
        self.sampler = _labelled(
            ipw.Dropdown,
            "Sampler",
            options=SAMPLERS,
            value=setup.sampler.replace("grid", SAMPLERS[-1]),
        )
        costs = [name for name in base.config.search.strategy.metrics if name in COST_METRICS]
        self.cost = _labelled(
            ipw.Dropdown, "Cost", value=costs[0] if costs else COST_METRICS[0],
            options=[(AXIS_TITLES[name], name) for name in COST_METRICS],
        )  # fmt: skip
        self.multipliers = {
            layer: _labelled(ipw.Text, layer, value=", ".join(f"{m:g}" for m in offered))
            for layer, offered in self._offered().items()
        }
        self.launch = ipw.Button(description="Launch", button_style="primary", icon="play")
        self.stop = ipw.Button(description="Stop", icon="stop", disabled=True)
        self.resume = ipw.Button(description="Resume", disabled=True)
        closes = ipw.Button(description="Close")
        left = [
            self.trials, self.epochs, self.learning_rate, self.replicates, self.sampler, self.cost
        ]  # fmt: skip
        right = [ipw.Label("Multipliers offered for each layer"), *self.multipliers.values()]
        buttons = [self.launch, self.stop, self.resume, closes]
        super().__init__([ipw.HBox([ipw.VBox(left), ipw.VBox(right)]), ipw.HBox(buttons)])
        self._model = base.model
        computations = base.config.runners("sw_runner").get("basic_computations")
        if not isinstance(computations, BasicComputationsSettings):
            computations = BasicComputationsSettings()
        self._cost_options = {
            **computations.cost_options(base.config.batch_size),
            "example_input": base.data.x_val[:1],
        }
        for button, action in zip(
            buttons, (self._on_launch, self._on_stop, self._on_resume, self.close)
        ):
            button.on_click(lambda _, action=action: action())

    @property
    def config(self) -> SearchConfig:
        """The configuration that the controls ask for.

        Raises:
            LabkitError: The list of a layer's multipliers is not one of numbers.
        """
        tables = copy.deepcopy(self._tables)
        strategy = tables["search"]["strategy"]
        strategy["setup"]["sampler"] = self.sampler.value
        if "basic_train" in strategy["sw_runner"]:
            strategy["sw_runner"]["basic_train"]["replicates"] = self.replicates.value
        for table in strategy["sw_runner"].values():
            if "learning_rate" in table or table is strategy["sw_runner"].get("basic_train"):
                table["learning_rate"] = self.learning_rate.value
        strategy["metrics"] = {
            name: metric for name, metric in strategy["metrics"].items() if name not in COST_METRICS
        } | {self.cost.value: {"direction": "minimize"}}
        if self.cost.value == "latency":
            strategy["hw_runner"].setdefault("latency", {})
        else:
            strategy["sw_runner"].setdefault("basic_computations", {})
        seed = tables["search"]["search_space"]["seed"]
        for layer, control in self.multipliers.items():
            offered = _numbers(layer, control.value)
            for key in seed[layer]["config"]:
                if key.endswith("_multiplier"):
                    seed[layer]["config"][key] = offered
        return with_overrides(
            load_config(tables), trials=self.trials.value, epochs=self.epochs.value
        )

    def close(self) -> None:
        """Stops the search, removes the panel and ends its threads."""
        self._on_stop()
        super().close()

    def _offered(self) -> dict[str, list[float]]:
        """Returns layer → the multipliers that the configuration offers it."""
        offered = {}
        for layer, entry in self._tables["search"]["search_space"]["seed"].items():
            lists = [v for key, v in entry["config"].items() if key.endswith("_multiplier")]
            if lists:
                offered[layer] = sorted({m for values in lists for m in values})
        return offered

    def _on_launch(self) -> None:
        n = 1
        while (self._parent / f"run-{n}").exists():
            n += 1
        self._run(self._parent / f"run-{n}")

    def _on_resume(self) -> None:
        assert self.folder is not None
        self._run(self.folder)

    def _on_stop(self) -> None:
        if self._search is not None:
            self._search.stop()

    def _run(self, folder: Path) -> None:
        self.message.value = ""
        try:
            search = Search(self.config, model=self._model, data=self._data, folder=folder)
        except LabkitError as error:
            self._say(error)
            return
        self._search, self.folder, self.study = search, folder, search.study
        self._n_drawn, self._n_before = -1, len(search.study.get_trials(deepcopy=False))
        self._started = time.monotonic()
        self._set_running(True)
        self._start(self._search_in_background, self._watch)

    def _search_in_background(self) -> None:
        assert self._search is not None
        try:
            # The notebook keeps a core: PyTorch's threads wait for each other, and starve without
            # it. A cell that computes hands Python's lock over often: Stop answers soon.
            with threads(spare=1), switch_interval(0.0005):
                self._search.run(progress=False)
        except Exception as error:  # there is no other place where the user would see it
            self._say(
                error if isinstance(error, LabkitError) else f"{type(error).__name__}: {error}"
            )

    def _is_running(self) -> bool:
        return self._threads[0].is_alive()

    def _pause(self) -> None:
        self._threads[0].join(POLL_SECONDS)  # the search: its end is shown at once

    def _refresh(self, running: bool) -> None:
        super()._refresh(running)
        if not running:
            self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.launch.disabled = self.resume.disabled = running
        self.stop.disabled = not running

    def _show_progress(self, n_done: int, running: bool) -> None:
        assert self._search is not None
        total = self._search.config.search.strategy.setup.n_trials
        self.progress.max, self.progress.value = total, n_done
        text = f"{n_done} of {total} trials"
        if running and n_done > self._n_before:
            pace = (time.monotonic() - self._started) / (n_done - self._n_before)
            minutes, seconds = divmod(round(pace * (total - n_done)), 60)
            text += f", {minutes}:{seconds:02} left"
        self.progress_text.value = text


def _numbers(layer: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LabkitError(f"{layer}: expected numbers like '1, 2, 4', got {text!r}") from error
