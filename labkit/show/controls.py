"""What panels are made of: labelled controls, messages, figures that are drawn anew in place."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any, get_args

import ipywidgets as ipw
import plotly.graph_objects as go

from labkit.errors import LabkitError
from labkit.show.style import AXIS_TITLES
from labkit.study.config import Sampler, SearchConfig

COST_METRICS = ("total_flops", "total_bitops", "parameters", "latency")


def labelled(kind: type[ipw.Widget], description: str, **options: Any) -> ipw.Widget:
    """Returns a control with its name; what does not fit of a long one is in the tooltip."""
    return kind(
        description=description,
        tooltip=description,
        style={"description_width": "13em"},
        layout=ipw.Layout(width="32em"),
        **options,
    )


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
        self.sampler = labelled(
            ipw.Dropdown, "Sampler", options=get_args(Sampler), value=setup.sampler
        )
        costs = [metric for metric in config.search.strategy.metrics if metric in COST_METRICS]
        self.cost = labelled(
            ipw.Dropdown, "Cost", value=costs[0] if costs else COST_METRICS[0],
            options=[(AXIS_TITLES[name], name) for name in COST_METRICS],
        )  # fmt: skip
        self.multipliers = {
            layer: labelled(ipw.Text, layer, value=", ".join(f"{m:g}" for m in offered))
            for layer, offered in config.offered.items()
        }
        self._untouched = {layer: control.value for layer, control in self.multipliers.items()}
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
        trains = self._config.training is not None
        return self._config.replace(
            trials=self.trials.value,
            epochs=self.epochs.value if trains else None,
            learning_rate=self.learning_rate.value if trains else None,
            replicates=self.replicates.value if trains else None,
            sampler=self.sampler.value,
            objectives=kept | {self.cost.value: "minimize"},
            offered={
                layer: _numbers(layer, control.value)
                for layer, control in self.multipliers.items()
                if control.value != self._untouched[layer]
            },
        )


def _slider(description: str, value: int, most: int) -> ipw.IntSlider:
    return labelled(ipw.IntSlider, description, value=value, min=1, max=max(most, value))


def _numbers(layer: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LabkitError(f"{layer}: expected numbers like '1, 2, 4', got {text!r}") from error
