"""The controls of a search's settings."""

import math
from typing import get_args

import ipywidgets as ipw

from labkit.errors import LabkitError
from labkit.show.style import AXIS_TITLES
from labkit.show.widgets import labelled
from labkit.study.config import Sampler, SearchConfig

COST_METRICS = ("total_flops", "total_bitops", "parameters", "latency")


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
