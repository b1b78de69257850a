"""Means, sums and extremes over whole axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Functions, Operator, Shape
from labkit.operators.building import NotStackable, StackBuilder, Stacked, flattened
from labkit.operators.nodes import as_tuple, describe, is_shape
from labkit.operators.registry import register_operator


@register_operator
class Extreme(Operator):
    """The largest or smallest; which copies of channels do not change.

    It costs one operation for each element that it reads.
    """

    functions: ClassVar[Functions] = (torch.amax, torch.amin, "amax", "amin")

    def reduces_channels(self, call: Call, axis: lay.Layout) -> None:
        """Says what it does where it is over channels."""

    def flow(self, call: Call) -> Any:
        dims = call.argument(1, "dim")
        if dims is None or not is_shape(call.shape):
            return None
        dims = {dim % len(call.x) for dim in as_tuple(dims)}
        for dim in dims:
            if lay.free(call.x[dim]):
                self.reduces_channels(call, call.x[dim])
        if call.argument(2, "keepdim", False):
            return [lay.plain(1) if i in dims else axis for i, axis in enumerate(call.x)]
        return [axis for i, axis in enumerate(call.x) if i not in dims]

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return math.prod(read[0])


@register_operator
class Sum(Extreme):
    """The sum."""

    functions = (torch.sum, "sum")

    def reduces_channels(self, call: Call, axis: lay.Layout) -> None:
        call.mix(axis)


@register_operator
class Mean(Extreme):
    """The mean, which channels copied equally often do not change."""

    functions = (torch.mean, "mean")

    def reduces_channels(self, call: Call, axis: lay.Layout) -> None:
        call.mix(axis, averages=True)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        x, shape = stack.inputs(node)[0], node.all_input_nodes[0].meta["shape"]
        if not x.spatial or node.meta["shape"] != shape[:2]:
            raise NotStackable(f"{describe(node)} does more than average over spatial axes")
        mean = stack.call(torch.mean, x.node, list(range(2, len(shape))))
        return Stacked(stack.call(flattened, mean, stack.size), x.real, spatial=False)
