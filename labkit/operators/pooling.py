"""What goes over space or whole axes: pooling, padding, upsampling, means, sums, extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Functions, Modules, Operator, Shape, register_operator
from labkit.operators.building import NotStackable, StackBuilder, Stacked, flattened
from labkit.operators.elementwise import Elementwise, is_mean
from labkit.operators.nodes import as_tuple, describe, is_shape, spatial_rank


class Spatial(Operator):
    """Works on the last axes, which must not be channels, and keeps the others."""

    leaf = False
    flops_each = 0

    def rank(self, call: Call) -> int:
        """Returns how many axes it works on."""
        return spatial_rank(call.module or call.node.target)

    def flow(self, call: Call) -> Any:
        x, *others = call.inputs
        if not all(isinstance(axes, list) for axes in call.inputs):
            return None
        kept: Axes = x[: len(x) - self.rank(call)]
        if any(map(lay.free, x[len(kept) :])):
            return None
        for other in others:  # the places that the values were at
            for axis, own in zip(kept, other):
                lay.join(axis, own)
        shapes = [call.shape] if is_shape(call.shape) else call.shape
        axes = [[*kept, *map(lay.plain, shape[len(kept) :])] for shape in shapes]
        return axes[0] if is_shape(call.shape) else tuple(axes)


@register_operator
class Pooling(Spatial):
    """Costs one operation for each element that it reads."""

    modules: ClassVar[Modules] = (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d,
    )  # fmt: skip
    functions: ClassVar[Functions] = (
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d,
        F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool1d, torch.max_pool2d,
        torch.max_pool3d, F.max_pool1d_with_indices, F.max_pool2d_with_indices,
        F.max_pool3d_with_indices, F.adaptive_max_pool1d_with_indices,
        F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices, F.max_unpool1d,
        F.max_unpool2d, F.max_unpool3d,
    )  # fmt: skip

    def example(self, module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or x.ndim != spatial_rank(module) + 2:
            return module(x, *args, **kwargs)
        y = module(x[:1, :1])
        return (
            y.new_empty((*x.shape[:2], *y.shape[2:])) if isinstance(y, torch.Tensor) else module(x)
        )

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return math.prod(read[0])

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        if not is_shape(node.meta["shape"]) or len(node.meta["shape"]) > 4:
            return None
        return stack.repeat(node, stack.spatial(node))


@register_operator
class PowerPooling(Pooling):
    """The root of a sum of powers, whose gradient at zero is not finite."""

    modules = (nn.LPPool1d, nn.LPPool2d)
    functions = (F.lp_pool1d, F.lp_pool2d)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        return None


@register_operator
class Padding(Spatial):
    """Layers that make the space larger; the function may pad any axis, the channels too."""

    modules = (
        nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
        nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
        nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    )  # fmt: skip
    functions = (F.pad,)

    def flow(self, call: Call) -> Any:
        if call.module is not None:
            return super().flow(call)
        axes, pads = list(call.x), call.argument(1, "pad")
        for i, (before, after) in enumerate(zip(pads[::2], pads[1::2]), 1):
            if min(before, after) < 0 and lay.free(axes[-i]):
                return None
            if min(before, after) < 0:
                axes[-i] = lay.plain(call.shape[-i])
                continue
            why = f"{describe(call.node)} pads with so many channels"
            first, last = (lay.constant(n, why) if n else () for n in (before, after))
            axes[-i] = (*first, *axes[-i], *last)
        return axes


@register_operator
class Upsampling(Spatial):
    """Works on all axes but the rows and channels."""

    modules = (nn.Upsample,)
    functions = (F.interpolate,)

    def rank(self, call: Call) -> int:
        return len(call.x) - 2


@register_operator
class Extreme(Operator):
    """The largest or smallest; which copies of channels do not change.

    It costs one operation for each element that it reads.

    Attributes:
        averages: Whether copying all channels equally often leaves the result as it is; `None`
            where copies never change it.
        dim_at: Where the axes are among its arguments; behind them is whether they are kept.
    """

    averages: ClassVar[bool | None] = None
    dim_at: ClassVar[int] = 1
    functions: ClassVar[Functions] = (torch.amax, torch.amin, "amax", "amin")

    def flow(self, call: Call) -> Any:
        dims = call.argument(self.dim_at, "dim")
        if dims is None or not is_shape(call.shape):
            return None
        dims = {dim % len(call.x) for dim in as_tuple(dims)}
        for dim in dims:
            if self.averages is not None and lay.free(call.x[dim]):
                call.mix(call.x[dim], averages=self.averages)
        if call.argument(self.dim_at + 1, "keepdim", False):
            return [lay.plain(1) if i in dims else axis for i, axis in enumerate(call.x)]
        return [axis for i, axis in enumerate(call.x) if i not in dims]

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return math.prod(read[0])


@register_operator
class ExtremeAndIndex(Extreme):
    """The largest or smallest along an axis, and where it is; or of two tensors."""

    functions = (torch.max, torch.min, "max", "min")

    def flow(self, call: Call) -> Any:
        if len(call.inputs) > 1:
            return Elementwise.flow(self, call)  # type: ignore[arg-type]
        dim = call.argument(1, "dim")
        if dim is None or lay.free(call.x[dim]):
            return None  # an index is that of a channel
        kept = [lay.plain(1)] if call.argument(2, "keepdim", False) else []
        dim %= len(call.x)
        axes = [*call.x[:dim], *kept, *call.x[dim + 1 :]]
        return axes, axes


@register_operator
class Sum(Extreme):
    """The sum."""

    averages = False
    functions = (torch.sum, "sum")

    def flow(self, call: Call) -> Any:
        by_hand = all(map(is_mean, call.node.users))
        return MEAN.flow(call) if by_hand else super().flow(call)


@register_operator
class Norm(Extreme):
    """The root of a sum of squares, or another norm."""

    averages = False
    dim_at = 2
    functions = (torch.norm, torch.linalg.norm, torch.linalg.vector_norm, "norm")


@register_operator
class Mean(Extreme):
    """The mean, which channels copied equally often do not change."""

    averages = True
    functions = (torch.mean, "mean")

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        x, shape = stack.inputs(node)[0], node.all_input_nodes[0].meta["shape"]
        if not x.spatial or node.meta["shape"] != shape[:2]:
            raise NotStackable(f"{describe(node)} does more than average over spatial axes")
        mean = stack.call(torch.mean, x.node, list(range(2, len(shape))))
        return Stacked(stack.call(flattened, mean, stack.size), x.real, spatial=False)


MEAN = Mean()
