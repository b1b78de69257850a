"""Convolutions and transposed convolutions, in groups and depthwise.

A depthwise layer, with one group for each channel, follows the width of its input; a layer of
several groups stays in as many.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Layer, Modules, Operator, Shape
from labkit.operators.building import NotStackable, StackBuilder, Stacked, outer
from labkit.operators.layout import Layout, Term, Var
from labkit.operators.nodes import describe, spatial_rank
from labkit.operators.registry import register_operator
from labkit.operators.weights import EACH, IN, OUT


@register_operator
class Convolution(Layer):
    """`[rows, in, *space]` → `[rows, out, *space]`."""

    modules: ClassVar[Modules] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    scalable = matrix_product = True
    tensors: ClassVar = {"weight": (OUT, IN), "bias": (OUT,)}
    attributes: ClassVar = {"in_channels": IN, "out_channels": OUT}

    def variant(self, module: Any) -> Operator:
        return DEPTHWISE if module.groups == module.in_channels > 1 else self

    def groups(self, module: Any) -> int:
        return int(module.groups)

    def sides(self, module: Any) -> tuple[Layout, Layout]:
        # In equal groups, so that the width stays a multiple of their number.
        groups = module.groups
        before = lay.width(module.in_channels // groups) * groups
        return before, lay.width(module.out_channels // groups) * groups

    def axis(self, module: nn.Module, ndim: int) -> int:
        return ndim - 1 - spatial_rank(module)

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        # Each weight of [out, in / groups, *kernel] meets each output.
        n_in = read[0][self.axis(module, len(read[0]))]
        return math.prod(written) * (n_in // module.groups) * math.prod(module.kernel_size)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        x, modules = stack.spatial(node), stack.modules(node)
        if not isinstance(modules[0], nn.Conv1d | nn.Conv2d):
            return None
        real = stack.first([module.out_channels for module in modules])
        depthwise = all(m.groups == m.in_channels == m.out_channels for m in modules)
        if modules[0].groups != 1 and not (depthwise and torch.equal(x.real, real)):
            raise NotStackable(f"{describe(node)} has groups of channels")

        def build() -> nn.Module:
            layer: Any = copy.deepcopy(modules[0])
            weights = real if depthwise else outer(real, x.real)
            layer.weight = stack.load(node, "weight", weights, folded=True)
            layer.bias = stack.load(node, "bias", real, folded=True)
            layer.groups = real.numel() if depthwise else stack.size
            return layer

        return stack.layer(node, build, x, real)


@register_operator
class TransposedConvolution(Convolution):
    """`[rows, in, *space]` → `[rows, out, *space]`, each input spread over a kernel of outputs."""

    modules = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    tensors: ClassVar = {"weight": (IN, OUT), "bias": (OUT,)}

    def variant(self, module: Any) -> Operator:
        return TRANSPOSED_DEPTHWISE if module.groups == module.in_channels > 1 else self

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        # Each weight of [in, out / groups, *kernel] meets each input.
        n_out = written[self.axis(module, len(written))]
        return math.prod(read[0]) * (n_out // module.groups) * math.prod(module.kernel_size)


class Depthwise(Convolution):
    """A convolution with a group for each input channel, which may write several channels."""

    writes = False
    tensors: ClassVar = {"weight": (OUT, None), "bias": (OUT,)}
    attributes: ClassVar = Convolution.attributes | {"groups": IN}

    def groups(self, module: Any) -> int:
        return 1

    def sides(self, module: Any) -> tuple[Layout, Layout]:
        var = Var(module.in_channels)
        return (Term(var),), (Term(var, module.out_channels // module.in_channels),)

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return math.prod(written) * math.prod(module.kernel_size)


class TransposedDepthwise(Depthwise):
    """A transposed convolution with a group for each input channel."""

    tensors: ClassVar = {"weight": (EACH, None), "bias": (OUT,)}

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        axis = self.axis(module, len(written))
        n_out = written[axis] // read[0][axis]  # for each input channel
        return math.prod(read[0]) * n_out * math.prod(module.kernel_size)


DEPTHWISE, TRANSPOSED_DEPTHWISE = Depthwise(), TransposedDepthwise()
