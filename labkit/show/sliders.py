"""Sliders for the sides of layers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError, did_you_mean, shown
from labkit.table import shortened

LOW, HIGH = 0.25, 8.0  # of a multiplier


class Sliders(anywidget.AnyWidget):
    """A slider for each side of each layer, folded by block, in a box with a field to find them.

    Args:
        sides: Layer, side and channel group of each. Those of one group move together.

    Attributes:
        rows: What each slider is: name, group, block, and label within the block.
        values: Channel group → the multiplier that is asked for; where there is none, 1.
        notes: Name of a slider → what is to be said of it.

    Raises:
        LabkitError: On setting `values`: there is no such group, or no such multiplier.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    range = traitlets.Tuple((LOW, HIGH)).tag(sync=True)
    rows: traitlets.List = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    notes = traitlets.Dict().tag(sync=True)

    def __init__(self, sides: Sequence[tuple[str, str, str]]):
        super().__init__(rows=_rows(sides))

    @traitlets.validate("values")
    def _check(self, proposal: Any) -> dict[str, float]:
        groups = {row["group"] for row in self.rows}
        for group, value in proposal.value.items():
            if group not in groups:
                said = did_you_mean(group, groups)
                raise LabkitError(f"values: there is no slider of {shown(group)}; {said}")
            if not (isinstance(value, int | float) and LOW <= value <= HIGH):
                expected = f"expected a number from {LOW:g} to {HIGH:g}"
                raise LabkitError(f"values[{group!r}]: {expected}, got {shown(value)}")
        return proposal.value


def _rows(sides: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    beginnings = {
        layer: [layer[:i] for i, letter in enumerate(layer) if letter == "_"] for layer, *_ in sides
    }
    shared = Counter(beginning for those in beginnings.values() for beginning in those)
    rows = []
    for layer, side, group in sides:
        # The longest beginning, in whole words, that other layers share.
        block = next((b for b in reversed(beginnings[layer]) if shared[b] > 1), "")
        rest = layer.removeprefix(f"{block}_")
        label = shortened(layer if rest.isdecimal() else rest, 20)  # a number alone is no name
        name = f"{layer} {side}"
        rows.append({"name": name, "group": group, "block": block, "label": f"{label} {side}"})
    return rows
