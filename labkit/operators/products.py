"""Layers that multiply with a weight: linear ones, convolutions, and tables of rows.

A depthwise convolution, with one group for each channel, follows the width of its input; one of
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
from labkit.operators.base import Call, Layer, Modules, Operator, Shape, register_operator
from labkit.operators.building import NotStackable, StackBuilder, Stacked, outer
from labkit.operators.layout import Layout, Term, Var
from labkit.operators.nodes import describe, spatial_rank
from labkit.operators.weights import EACH, IN, OUT


@register_operator
class Linear(Layer):
    """`[…, in]` → `[…, out]`: a product with the weight."""

    modules = (nn.Linear,)
    scalable = matrix_product = True
    tensors: ClassVar = {"weight": (OUT, IN), "bias": (OUT,)}
    attributes: ClassVar = {"in_features": IN, "out_features": OUT}

    def example(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1:] != (module.in_features,) or x.dtype != module.weight.dtype:
            return module(x)  # which fails, and says why
        return x.new_empty((*x.shape[:-1], module.out_features))

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return math.prod(written) * read[0][-1]

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked:
        x = stack.inputs(node)[0]
        if x.spatial:
            raise NotStackable(f"{describe(node)} is applied to more than [rows, channels]")
        real = stack.first([module.out_features for module in stack.modules(node)])

        def build() -> nn.Module:
            weight = stack.load(node, "weight", outer(real, x.real))
            return StackedLinear(weight, stack.load(node, "bias", real))

        return stack.layer(node, build, x, real)


class StackedLinear(nn.Module):
    """`nn.Linear` for each candidate: `[candidates, in, rows]` → `[candidates, out, rows]`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.bmm(self.weight, x)
        # In place, since baddbmm would first write out the bias for every row, slowly.
        return y if self.bias is None else y.add_(self.bias[:, :, None])


@register_operator
class Embedding(Layer):
    """`[…]` of tokens → `[…, out]`: a row of the table for each."""

    modules = (nn.Embedding,)
    scalable = True
    tensors: ClassVar = {"weight": (None, OUT)}
    attributes: ClassVar = {"embedding_dim": OUT}
    flops_each = 0

    def sides(self, module: nn.Embedding) -> tuple[Layout, Layout]:
        entries = lay.constant(module.num_embeddings, "it is a table of as many entries")
        return entries, lay.width(module.embedding_dim)

    def flow(self, call: Call) -> Any:
        return None if call.sides is None else [*call.x, call.sides[1]]


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

    def axis(self, module: nn.Module, ndim: int) -> int:
        return ndim - 1 - spatial_rank(module)

    def example(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        weight = module._parameters.get("weight")  # otherwise something computes it
        fits = x.ndim == spatial_rank(module) + 2 and x.shape[1] == module.in_channels
        if weight is None or not fits or x.dtype != weight.dtype:
            return module(x)  # which fails, or knows what to do
        thin: Any = copy.copy(module)  # of one channel
        vars(thin).update(groups=1, _parameters={"weight": weight[:1, :1], "bias": None})
        y = thin(x[:1, :1])
        return y.new_empty((len(x), module.out_channels, *y.shape[2:]))

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

    modules = TransposedConvolution.modules
    tensors: ClassVar = {"weight": (EACH, None), "bias": (OUT,)}

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        axis = self.axis(module, len(written))
        n_out = written[axis] // read[0][axis]  # for each input channel
        return math.prod(read[0]) * n_out * math.prod(module.kernel_size)


DEPTHWISE, TRANSPOSED_DEPTHWISE = Depthwise(), TransposedDepthwise()
