"""What works on each element, alone or with those of other tensors, and keeps the shape."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Functions, Layer, Modules, Operator, register_operator
from labkit.operators.building import NotStackable, StackBuilder, Stacked, at_zero, folded
from labkit.operators.layout import Layout
from labkit.operators.nodes import Size, argument, as_tuple, describe
from labkit.operators.weights import OUT


def meet(axes: Sequence[Layout], node: Node) -> Layout:
    """Joins axes that meet in a call, and returns them as one; those of size 1 are broadcast."""
    wide = [axis for axis in axes if lay.size(axis) > 1]
    for axis in axes if wide else ():
        if lay.size(axis) == 1:
            lay.fix(axis, f"it is broadcast over channels in {describe(node)}")
    first, *others = wide or axes
    for axis in others:
        lay.join(first, axis)
    return first


DIVISIONS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


def is_mean(node: Node) -> bool:
    """Whether a call divides a sum over an axis by the size of that axis."""
    if node.target not in DIVISIONS or len(node.args) < 2:
        return False
    total, size = node.args[:2]
    if not (isinstance(total, Node) and isinstance(size, Size) and size.axis is not None):
        return False
    source, dim = size.axis
    return (
        total.target in (torch.sum, "sum")
        and total.args[0] is source
        and as_tuple(argument(total, 1, "dim")) in ((dim,), (dim - len(source.meta["shape"]),))
    )


@register_operator
class Elementwise(Operator):
    """Activations and arithmetic: one operation an element."""

    leaf = False
    flops_each = 1
    modules: ClassVar[Modules] = (
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
        nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
        nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    )  # fmt: skip
    functions: ClassVar[Functions] = (
        F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
        F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus, F.softsign, F.logsigmoid, torch.relu,
        torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.abs, torch.neg, torch.sqrt,
        torch.square, torch.clamp, torch.add, torch.sub, torch.mul, torch.div, torch.maximum,
        torch.minimum, torch.pow, operator.add, operator.sub, operator.mul, operator.truediv,
        torch.where, torch.rsqrt, torch.sin, torch.cos, torch.erf, torch.addcmul, torch.addcdiv,
        torch.lerp, operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne,
        operator.neg, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.pow,
        "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "log", "abs", "neg", "sqrt",
        "square", "clamp", "clamp_", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
        "pow", "where", "rsqrt", "sin", "cos", "erf", "addcmul", "addcmul_",
        "addcdiv", "lerp", "masked_fill", "masked_fill_",
    )  # fmt: skip

    def example(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        alone = len(args) == 1 and not kwargs and not any(True for _ in module.parameters())
        return args[0] if alone else module(*args, **kwargs)

    def flow(self, call: Call) -> Any:
        """Joins the axes that meet, aligned at the last one; those of size 1 are broadcast."""
        if not all(isinstance(axes, list) for axes in call.inputs):
            return None
        if call.node.target in DIVISIONS and is_mean(call.node):
            node, dim = call.node.args[1].axis  # type: ignore[union-attr]
            call.literal(("args", 1), call.axes[node][dim])
        result: Axes = []
        for i in range(1, max(map(len, call.inputs)) + 1):
            result.insert(0, meet([axes[-i] for axes in call.inputs if len(axes) >= i], call.node))
        return result

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        first, *others = stack.inputs(node)
        for other in others:
            if other.spatial != first.spatial or not torch.equal(other.real, first.real):
                raise NotStackable(f"{describe(node)} joins channels that lie in different places")
        stays_zero = at_zero(node, stack.module(node)) == 0
        result = stack.repeat(node, first)
        if stays_zero or first.real.all():
            return result
        return stack.masked(result, f"{node.name}_real", len(node.meta["shape"]))


@register_operator
class Passing(Elementwise):
    """What costs nothing: dropout, which only some trainings have, and copies."""

    modules: ClassVar[Modules] = (nn.Identity, nn.Dropout)
    functions: ClassVar[Functions] = (
        F.dropout, torch.clone, torch.detach, "contiguous", "clone", "detach",
    )  # fmt: skip
    flops_each = 0


@register_operator
class Overwriting(Elementwise):
    """Other values in a tensor, or in one of the same shape."""

    modules = ()
    functions: ClassVar[Functions] = (
        torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like,
        torch.empty_like, "copy_", "fill_", "zero_",
    )  # fmt: skip
    flops_each = 0


@register_operator
class Cast(Passing):
    """Another type or device, which may be that of another tensor."""

    modules = ()
    functions = ("to", "type", "type_as", "float", "double", "half", "bfloat16")

    def flow(self, call: Call) -> Any:
        return call.x


@register_operator
class AlphaDropout(Passing):
    """Dropout that turns zeros into other numbers, so that padding would not stay zero."""

    modules = (nn.AlphaDropout, nn.FeatureAlphaDropout)
    functions = ()

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        return None


@register_operator
class ChannelDropout(Passing):
    """Dropout of whole channels."""

    modules = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    functions = (F.dropout1d, F.dropout2d, F.dropout3d)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        if len(node.meta["shape"]) > 4:
            return None
        return stack.repeat(node, stack.spatial(node))


@register_operator
class Softmax(Elementwise):
    """Not elementwise, but it keeps the shape and has no parameters, so a width passes through."""

    modules: ClassVar[Modules] = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
    functions: ClassVar[Functions] = (
        F.softmax,
        F.log_softmax,
        torch.softmax,
        "softmax",
        "log_softmax",
    )

    def flow(self, call: Call) -> Any:
        module: Any = call.module
        dim = getattr(module, "dim", -3) if module is not None else call.argument(1, "dim")
        call.mix(call.x[1 if dim is None else dim])
        return super().flow(call)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        module, ndim = stack.module(node), len(node.meta["shape"])
        dim = argument(node, 1, "dim") if module is None else getattr(module, "dim", 1)
        if isinstance(module, nn.Softmin) or dim is None or dim % ndim != 1:
            return None
        x, *_ = stack.inputs(node)
        name = str(node.target) if module is None else type(module).__name__
        padding = stack.constant(f"{node.name}_padding", ~x.real[:, :, None])
        call = stack.call(_softmax, x.node, padding, x.spatial, "log" in name.lower())
        return x._replace(node=call)


def _softmax(x: torch.Tensor, padding: torch.Tensor, spatial: bool, log: bool) -> torch.Tensor:
    """A softmax over the channels of each candidate; padding has no share in it, and is zero."""
    y = x.view(len(x), *padding.shape[:2], -1) if spatial else x
    y = (F.log_softmax if log else F.softmax)(y.masked_fill(padding, -torch.inf), dim=-2)
    return y.masked_fill(padding, 0).view_as(x)


@register_operator
class Normalize(Softmax):
    """Division by the norm over an axis."""

    modules = ()
    functions = (F.normalize,)
    flops_each = 2
    stacked = Operator.stacked

    def flow(self, call: Call) -> Any:
        call.mix(call.x[call.argument(2, "dim", 1)])
        return Elementwise.flow(self, call)


@register_operator
class PReLU(Elementwise, Layer):
    """An activation with a parameter for each channel, or one for all."""

    leaf = True
    modules = (nn.PReLU,)
    functions = ()
    tensors: ClassVar = {"weight": (OUT,)}
    attributes: ClassVar = {"num_parameters": OUT}

    def axis(self, module: nn.Module, ndim: int) -> int:
        return min(1, ndim - 1)

    def sides(self, module: nn.PReLU) -> tuple[Layout, Layout] | None:
        return None if module.num_parameters == 1 else super().sides(module)

    def flow(self, call: Call) -> Any:
        return (Elementwise if call.sides is None else Layer).flow(self, call)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        x, module = stack.inputs(node)[0], stack.module(node)
        if module.num_parameters == 1:
            raise NotStackable(f"{describe(node)} has one parameter for all channels")

        def build() -> nn.Module:
            layer = copy.deepcopy(module) if x.spatial else StackedPReLU()
            layer.weight = stack.load(node, "weight", x.real, folded=True)
            return layer

        return stack.layer(node, build, x, x.real)


class StackedPReLU(nn.PReLU):
    """`nn.PReLU` for each candidate, of `[candidates, channels, rows]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(folded(x)).view_as(x)
