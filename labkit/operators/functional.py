"""Layers as functions, whose parameters are tensors of the code that calls them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.attention import shapes_of
from labkit.operators.base import Call, Operator, Shape, register_operator
from labkit.operators.layout import Layout
from labkit.operators.nodes import argument, describe, path_of, spatial_rank


class FunctionalNorm(Operator):
    """A normalisation: parameters and statistics of one value a channel.

    Attributes:
        parameters: Where those are among its arguments.
    """

    leaf = False
    flops_each = 4
    parameters: ClassVar[dict[str, int]]

    def with_parameters(self, call: Call, axis: Layout) -> Any:
        """Joins the channels with the axes of its parameters; returns those of the output."""
        for name, index in self.parameters.items():
            for own in call.axes.get(call.argument(index, name), ()):
                lay.join(own, axis)
        return call.x


@register_operator
class FunctionalBatchNorm(FunctionalNorm):
    """Each channel over the batch, or over space."""

    functions = (F.batch_norm, F.instance_norm, torch.batch_norm)
    parameters: ClassVar = {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4}

    def flow(self, call: Call) -> Any:
        return self.with_parameters(call, call.x[1])


@register_operator
class FunctionalLayerNorm(FunctionalNorm):
    """All features of the last axis; over several axes it is not known."""

    functions = (F.layer_norm, F.rms_norm)
    parameters: ClassVar = {"weight": 2, "bias": 3}

    def flow(self, call: Call) -> Any:
        if len(call.argument(1, "normalized_shape")) > 1:
            return None
        call.mix(call.x[-1], averages=True)
        call.literal([*path_of(call.node, 1, "normalized_shape"), 0], call.x[-1])
        return self.with_parameters(call, call.x[-1])


@register_operator
class FunctionalGroupNorm(FunctionalNorm):
    """Equal groups of channels, as many as there are."""

    functions = (F.group_norm,)
    parameters: ClassVar = {"weight": 2, "bias": 3}

    def flow(self, call: Call) -> Any:
        lay.split_evenly(call.x[1], call.argument(1, "num_groups"))
        call.mix(call.x[1], averages=True)
        return self.with_parameters(call, call.x[1])


@register_operator
class FunctionalConvolution(Operator):
    """`[rows, in, *space]`, `[out, in, *kernel]` → `[rows, out, *space]`, in one group."""

    functions = (F.conv1d, F.conv2d, F.conv3d)
    leaf = False
    matrix_product = True

    def flow(self, call: Call) -> Any:
        x, weight = (call.argument(i, name) for i, name in enumerate(("input", "weight")))
        axes, (out, read, *kernel) = call.axes[x], call.axes[weight]
        at = len(axes) - 1 - spatial_rank(call.node.target)
        if call.argument(6, "groups", 1) != 1:
            return None
        lay.join(axes[at], read)
        call.sum(axes[at], [(x, at), (weight, 1)], by_root=False)
        for axis in (*axes[at + 1 :], *kernel):
            lay.fix(axis, f"it is space to {describe(call.node)}")
        for own in call.axes.get(call.argument(2, "bias"), ()):
            lay.join(own, out)
        return [*axes[:at], out, *map(lay.plain, call.shape[at + 1 :])]

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        weight = shapes_of(node, read)[argument(node, 1, "weight")]
        return math.prod(written) * math.prod(weight[1:])
