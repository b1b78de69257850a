"""Sliders for a network's widths, and what they cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go
import traitlets
from torch import nn

from labkit.errors import LabkitError
from labkit.show.controls import labelled, message, update
from labkit.show.layers import network_drawing
from labkit.show.style import AXIS_TITLES
from labkit.show.tables import compare, html_table
from labkit.transform import Channels, channel_groups, cost_of, find_channels, resolve
from labkit.transform.plan import SkippedRequest

# The browser computes with percents of the range. Over a range of 8 they are exact; over another
# one it would correct 1 to 0.99…9, and linked sliders would hand that on, also to the user's own.
MULTIPLIERS = {"min": 0.25, "max": 8.25, "step": 0.25}


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
        first_of: dict[str, ipw.FloatSlider] = {}
        last_of: dict[str, ipw.FloatSlider] = {}
        for layer, side, group in self._settable_sides():
            slider = labelled(ipw.FloatSlider, f"{layer} {side} ×", value=1, **MULTIPLIERS)
            note = ipw.HTML(layout=ipw.Layout(max_width="45em", flex="1"))
            self._sliders[layer, side], self._notes[layer, side] = slider, note
            rows.append(ipw.HBox([slider, note]))
            if group in first_of:
                traitlets.link((first_of[group], "value"), (slider, "value"))
            first_of.setdefault(group, slider)
            last_of[group] = slider
        for slider in last_of.values():  # when it has moved, all that are linked have
            slider.observe(self._redraw, "value")
        self.figure = go.FigureWidget(network_drawing(compare(self._channels, None, **cost_options)))
        self._redraw()
        groups = ipw.Accordion(
            [ipw.HTML(html_table(channel_groups(self._channels)))],
            titles=["Channel groups: who must agree, and what is fixed"],
        )
        super().__init__([*rows, self.totals, self.figure, self.table, groups])

    def _settable_sides(self) -> Iterator[tuple[str, str, str]]:
        """Yields layer, side and group of each side that has one width to set.

        One of several groups, as behind a concatenation, has none.
        """
        channels = self._channels
        for layer in channels.inputs:
            for side, groups in (
                ("input", channels.inputs[layer].groups),
                ("output", channels.outputs[layer].groups),
            ):
                layers = [g.readers if side == "input" else g.writers for g in groups]
                if len(groups) == 1 and layer in layers[0]:
                    yield layer, side, groups[0].name

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
            multipliers = {f"{side}_multiplier": value for side, value in sides.items()}
            config[layer] = {"config": {"name": name, **multipliers}}
        return config

    def _redraw(self, _: object = None) -> None:
        try:
            with warnings.catch_warnings(action="ignore", category=SkippedRequest):
                resolution = resolve(self._channels, self.pass_config)
        except LabkitError as error:
            self.totals.value = message([error])
            return
        for (layer, side), note in self._notes.items():
            note.value = message(s for s in resolution.skipped if s.startswith(f"{layer} {side} × "))
        after = cost_of(self._channels, resolution, **self._cost_options)
        self.totals.value = "; ".join(
            f"{AXIS_TITLES[name]}: {getattr(self._cost, name):,} → <b>{getattr(after, name):,}</b>"
            for name in ("total_flops", "total_bitops", "parameters")
        )
        comparison = compare(self._channels, resolution, **self._cost_options)
        self.table.value = html_table(comparison)
        update(self.figure, network_drawing(comparison))
