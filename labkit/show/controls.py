"""Controls of a network's widths and of a search's settings, and what panels are made of."""

import html
import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import ipywidgets as ipw
import plotly.graph_objects as go
import traitlets
from torch import nn

from labkit.errors import LabkitError
from labkit.show.layers import network_drawing
from labkit.show.style import AXIS_TITLES
from labkit.show.tables import compare, html_table
from labkit.study.config import Sampler, SearchConfig
from labkit.transform import Channels, channel_groups, cost_of, find_channels, resolution_of

COST_METRICS = ("total_flops", "total_bitops", "parameters", "latency")
# The browser computes with percents of the range. Over a range of 8 they are exact; over another
# one it would correct 1 to 0.99…9, and linked sliders would hand that on, also to the user's own.
MULTIPLIERS = {"min": 0.25, "max": 8.25, "step": 0.25}


def labelled(kind: type[ipw.Widget], description: str, **options: Any) -> ipw.Widget:
    """Returns a control with its name; what does not fit of a long one is in the tooltip."""
    look = {"style": {"description_width": "13em"}, "layout": ipw.Layout(width="32em")}
    return kind(description=description, tooltip=description, **look, **options)


def message(lines: Iterable[object]) -> str:
    """Returns lines of text for people, which a screen reader reads out."""
    shown = "<br>".join(html.escape(str(line)) for line in lines)
    return f'<span role="status">{shown}</span>' if shown else ""


def update(figure: go.FigureWidget, new: go.Figure) -> None:
    """Gives a displayed figure the data of a new one with as many traces."""
    with figure.batch_update():
        for trace, fresh in zip(figure.data, new.data, strict=True):
            trace.update(fresh.to_plotly_json())
        layout = new.layout.to_plotly_json()
        figure.update_layout({key: layout[key] for key in layout if key != "template"})  # slow


class LayerExplorer(ipw.VBox):
    """Sliders for the multipliers of each layer; what they make of the network and its cost.

    The sliders of sides that share their channels move together. Beside a slider that asks for a
    width that cannot change it says why. The network is traced once; nothing is built.

    Args:
        model: The network, which is not changed; or its channels, found before.
        **cost_options: As `labkit.cost_of` takes them.
    """

    def __init__(self, model: nn.Module | Channels, **cost_options: Any):
        self._channels = find_channels(model, cost_options.pop("example_input", None))
        self._cost_options = cost_options
        self._cost = cost_of(self._channels, **cost_options)
        self._sliders: dict[tuple[str, str], ipw.FloatSlider] = {}
        self._notes: dict[tuple[str, str], ipw.HTML] = {}
        self.totals, self.table = ipw.HTML(), ipw.HTML()
        rows = []
        linked: dict[str, list[ipw.FloatSlider]] = {}
        for layer, side, group in self._settable_sides():
            slider = labelled(ipw.FloatSlider, f"{layer} {side} ×", value=1, **MULTIPLIERS)
            note = ipw.HTML(layout=ipw.Layout(max_width="45em", flex="1"))
            self._sliders[layer, side], self._notes[layer, side] = slider, note
            rows.append(ipw.HBox([slider, note]))
            linked.setdefault(group, []).append(slider)
        for sliders in linked.values():
            for slider in sliders[1:]:
                traitlets.link((sliders[0], "value"), (slider, "value"))
            sliders[-1].observe(self._redraw, "value")  # when it has moved, all of them have
        self.figure = go.FigureWidget(network_drawing(compare(self._channels, None)))
        self._redraw()
        groups = ipw.HTML(html_table(channel_groups(self._channels)))
        what = "Channel groups: who must agree, and what is fixed"
        below = ipw.Accordion([groups], titles=[what])
        super().__init__([*rows, self.totals, self.figure, self.table, below])

    def _settable_sides(self) -> Iterator[tuple[str, str, str]]:
        """Yields layer, side and group of each side that has a width to set.

        Of a side of several groups, as heads and their width, those that can change are set by
        their own names.
        """
        channels = self._channels
        for layer in channels.inputs:
            for side, axis in (("input", channels.inputs), ("output", channels.outputs)):
                groups = axis[layer].groups
                for group in groups:
                    if len(groups) == 1:
                        if layer in (group.readers if side == "input" else group.writers):
                            yield layer, side, group.name
                    elif side == "output" and group.writers[:1] == (layer,) and not group.fixed:
                        yield group.name, side, group.name

    @property
    def pass_config(self) -> dict[str, Any]:
        """The pass configuration that the sliders ask for, to paste into code."""
        layers: dict[str, Any] = {}
        for (layer, side), slider in self._sliders.items():
            if slider.value != 1:
                name = "both" if layer in layers else f"{side}_only"
                request = layers.setdefault(layer, {"config": {}})["config"]
                request |= {"name": name, f"{side}_multiplier": slider.value}
        return {"by": "name", "default": {"config": {"name": "NA"}}} | layers

    def _redraw(self, _: object = None) -> None:
        try:
            resolution = resolution_of(self._channels, self.pass_config)
        except LabkitError as error:
            self.totals.value = message([error])
            return
        for (layer, side), note in self._notes.items():
            request = f"{layer} {side} × "
            note.value = message(s for s in resolution.skipped if s.startswith(request))
        after = cost_of(self._channels, resolution, **self._cost_options)
        self.totals.value = "; ".join(
            f"{AXIS_TITLES[name]}: {getattr(self._cost, name):,} → <b>{getattr(after, name):,}</b>"
            for name in ("total_flops", "total_bitops", "parameters")
        )
        comparison = compare(self._channels, resolution, **self._cost_options)
        self.table.value = html_table(comparison)
        update(self.figure, network_drawing(comparison))


class SearchControls(ipw.HBox):
    """The controls of a search's settings.

    Args:
        config: Where they begin.
    """

    def __init__(self, config: SearchConfig):
        self._config = config
        setup, training = config.search.strategy.setup, config.training
        trains = training is not None
        rate = training.learning_rate if training else config.learning_rate
        self.trials = _slider("Trials", setup.n_trials, 200)
        self.epochs = _slider("Epochs", training.max_epochs if training else 1, 50)
        self.learning_rate = labelled(
            ipw.FloatLogSlider, "Learning rate", value=rate, step=0.25, readout_format=".1e",
            min=min(-5, math.floor(math.log10(rate))), max=max(-1, math.ceil(math.log10(rate))),
        )  # fmt: skip
        self.replicates = _slider("Seeds a network", training.replicates if training else 1, 10)
        for control in (self.epochs, self.learning_rate, self.replicates):
            control.disabled = not trains
        samplers = get_args(Sampler)
        self.sampler = labelled(ipw.Dropdown, "Sampler", options=samplers, value=setup.sampler)
        costs = [metric for metric in config.search.strategy.metrics if metric in COST_METRICS]
        self.cost = labelled(
            ipw.Dropdown, "Cost", value=costs[0] if costs else COST_METRICS[0],
            options=[(AXIS_TITLES[name], name) for name in COST_METRICS],
        )  # fmt: skip
        self.multipliers = {
            layer: labelled(ipw.Text, layer, value=", ".join(f"{m:g}" for m in offered))
            for layer, offered in config.offered.items()
        }
        self._untouched = {c: c.value for c in (self.cost, *self.multipliers.values())}
        left = [
            self.trials, self.epochs, self.learning_rate, self.replicates, self.sampler, self.cost
        ]  # fmt: skip
        right = [ipw.Label("Multipliers offered for each layer"), *self.multipliers.values()]
        super().__init__([ipw.VBox(left), ipw.VBox(right)])

    @property
    def config(self) -> SearchConfig:
        """The configuration that the controls ask for.

        Raises:
            LabkitError: The list of a layer's multipliers is not one of numbers.
        """
        metrics = self._config.search.strategy.metrics.items()
        kept = {name: one.direction for name, one in metrics if name not in COST_METRICS}
        moved = {control for control, value in self._untouched.items() if control.value != value}
        trains = self._config.training is not None
        return self._config.replace(
            n_trials=self.trials.value,
            max_epochs=self.epochs.value if trains else None,
            learning_rate=self.learning_rate.value if trains else None,
            replicates=self.replicates.value if trains else None,
            sampler=self.sampler.value,
            objectives=kept | {self.cost.value: "minimize"} if self.cost in moved else None,
            offered={
                layer: _numbers(layer, control.value)
                for layer, control in self.multipliers.items()
                if control in moved
            },
        )


def _slider(description: str, value: int, most: int) -> ipw.IntSlider:
    return labelled(ipw.IntSlider, description, value=value, min=1, max=max(most, value))


def _numbers(layer: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LabkitError(f"{layer}: expected numbers like '1, 2, 4', got {text!r}") from error
