"""Sliders for the widths of a network's layers."""

from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from labkit.errors import LabkitError
from labkit.show.layers import network_drawing
from labkit.show.stills import WithStill
from labkit.show.style import AXIS_TITLES
from labkit.show.tables import compare
from labkit.show.widgets import figure_widget, labelled, message, update
from labkit.table import html_table
from labkit.transform import Channels, channel_groups, cost_of, find_channels, resolution_of

# The browser computes with percents of the range. Over a range of 8 they are exact; over another
# one it would correct 1 to 0.99…9, and linked sliders would hand that on, also to the user's own.
MULTIPLIERS = {"min": 0.25, "max": 8.25, "step": 0.25}


class LayerExplorer(WithStill):
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
        self.figure = figure_widget(network_drawing(compare(self._channels, None)))
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
        self.keep_later()
