"""The controls of a search's settings."""

from typing import Any, get_args

import ipywidgets as ipw

from labkit.errors import LabkitError
from labkit.show.style import AXIS_TITLES, COUNTED
from labkit.show.widgets import WRONG, labelled
from labkit.study.config import SearchConfig
from labkit.study.record import Sampler

RATES = [float(f"{digit}e{power}") for power in range(-5, 0) for digit in (1, 2, 3, 5)]
COST_METRICS = (*COUNTED, "latency")


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
        rates: list[tuple[str, Any]]
        if isinstance(rate, tuple):
            rates = [(", ".join(map("{:g}".format, rate)), rate)]
        else:
            rates = [(f"{one:g}", one) for one in sorted({*RATES, rate})]
        self.learning_rate = labelled(
            ipw.SelectionSlider, "Learning rate", value=rate, options=rates
        )
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
        self._limits = dict(config.search.strategy.limits)
        limit = self._limits.pop(self.cost.value, None)
        self.limit = labelled(
            ipw.Text, "Limit of the cost", value="" if limit is None else f"{limit:.12g}",
            placeholder="none",
        )  # fmt: skip
        self.multipliers = {
            layer: labelled(ipw.Text, layer, value=", ".join(f"{m:g}" for m in offered))
            for layer, offered in config.offered.items()
        }
        self._fields = {"limit": self.limit, **self.multipliers}
        for control in self._fields.values():
            control.add_class("labkit-field")
            control.observe(lambda change: change["owner"].remove_class(WRONG), "value")
        self._untouched = {c: c.value for c in (self.cost, *self._fields.values())}
        left = [
            self.trials, self.epochs, self.learning_rate, self.replicates, self.sampler, self.cost,
            self.limit,
        ]  # fmt: skip
        fields = ipw.VBox([*self.multipliers.values()], layout=ipw.Layout(max_height="14em"))
        right = [ipw.Label("Multipliers offered for each layer"), fields]
        super().__init__([ipw.VBox(left), ipw.VBox(right)])
        self.add_class("labkit-beside")

    @property
    def config(self) -> SearchConfig:
        """The configuration that the controls ask for.

        Raises:
            LabkitError: The limit, or a layer's multipliers, are no numbers.
        """
        metrics = self._config.search.strategy.metrics.items()
        kept = {name: one.direction for name, one in metrics if name not in COST_METRICS}
        moved = {control for control, value in self._untouched.items() if control.value != value}
        trains = self._config.training is not None
        limit = self.limit.value.replace(",", "").strip()
        bound = dict(zip([self.cost.value], _numbers("limit", limit))) if limit else {}
        return self._config.replace(
            n_trials=self.trials.value,
            max_epochs=self.epochs.value if trains else None,
            learning_rate=self.learning_rate.value if trains else None,
            replicates=self.replicates.value if trains else None,
            sampler=self.sampler.value,
            objectives=kept | {self.cost.value: "minimize"} if self.cost in moved else None,
            limits=self._limits | bound if moved & {self.cost, self.limit} else None,
            offered={
                layer: _numbers(layer, control.value)
                for layer, control in self.multipliers.items()
                if control in moved
            },
        )

    def mark(self, error: LabkitError) -> None:
        """Marks the fields that an error names, until they are changed."""
        for name, control in self._fields.items():
            if name in str(error):
                control.add_class(WRONG)


def _slider(description: str, value: int, most: int) -> ipw.IntSlider:
    return labelled(ipw.IntSlider, description, value=value, min=1, max=max(most, value))


def _numbers(layer: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LabkitError(f"{layer}: expected numbers like '1, 2, 4', got {text!r}") from error
