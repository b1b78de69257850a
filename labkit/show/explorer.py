"""Sliders for the widths of a network's layers."""

from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
from torch import nn

from labkit.errors import LabkitError
from labkit.show.layers import bars, network_drawing
from labkit.show.sliders import Sliders
from labkit.show.stills import WithStill
from labkit.show.style import AXIS_TITLES, COUNTED
from labkit.show.tables import compare
from labkit.show.widgets import figure_widget, message
from labkit.table import html_table
from labkit.transform import Channels, channel_groups, cost_of, find_channels, resolution_of


class LayerExplorer(WithStill):
    """Sliders for the multipliers of each layer; what they make of the network and its cost.

    The sliders of sides that share their channels move together. Beside a slider that asks for a
    width that cannot change it says why. The network is traced once; nothing is built.

    Args:
        model: The network, which is not changed; or its channels, found before.
        **cost_options: As `labkit.cost_of` takes them.

    Attributes:
        sliders: The `Sliders`, whose `values` may be set.
    """

    def __init__(self, model: nn.Module | Channels, **cost_options: Any):
        self._channels = find_channels(model, cost_options.pop("example_input", None))
        self._cost_options = cost_options
        self._cost = cost_of(self._channels, **cost_options)
        self._sides = list(self._settable_sides())
        self.sliders = Sliders(self._sides)
        self.totals, self.table = ipw.HTML(), ipw.HTML()
        self.figure = figure_widget(network_drawing(compare(self._channels, None)))
        self._redraw()
        self.sliders.observe(self._redraw, "values")
        what = "Channel groups: who must agree, and what is fixed"
        groups = html_table(channel_groups(self._channels))
        below = ipw.HTML(f"<details><summary>{what}</summary>{groups}</details>")
        super().__init__([self.totals, self.figure, self.sliders, self.table, below])

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
        for layer, side, group in self._sides:
            multiplier = self.sliders.values.get(group, 1)
            if multiplier != 1:
                name = "both" if layer in layers else f"{side}_only"
                request = layers.setdefault(layer, {"config": {}})["config"]
                request |= {"name": name, f"{side}_multiplier": multiplier}
        return {"by": "name", "default": {"config": {"name": "NA"}}} | layers

    def _redraw(self, _: object = None) -> None:
        try:
            resolution = resolution_of(self._channels, self.pass_config)
        except LabkitError as error:
            self.totals.value = message([error])
            return
        self.sliders.notes = {
            f"{layer} {side}": said
            for layer, side, _ in self._sides
            for said in resolution.skipped
            if said.startswith(f"{layer} {side} × ")
        }
        after = cost_of(self._channels, resolution, **self._cost_options)
        self.totals.value = "; ".join(
            f"{AXIS_TITLES[name]}: {getattr(self._cost, name):,} → <b>{getattr(after, name):,}</b>"
            for name in COUNTED
        )
        comparison = compare(self._channels, resolution, **self._cost_options)
        self.table.value = html_table(comparison)
        self.figure.data[1].update(bars(comparison, "after"))
        self.keep_later()
