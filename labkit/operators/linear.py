"""Layers that read features on the last axis: matrix products, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Layer, Shape
from labkit.operators.building import NotStackable, StackBuilder, Stacked, outer
from labkit.operators.layout import Layout
from labkit.operators.nodes import describe
from labkit.operators.registry import register_operator
from labkit.operators.weights import IN, OUT


@register_operator
class Linear(Layer):
    """`[…, in]` → `[…, out]`: a product with the weight."""

    modules = (nn.Linear,)
    scalable = matrix_product = True
    tensors: ClassVar = {"weight": (OUT, IN), "bias": (OUT,)}
    attributes: ClassVar = {"in_features": IN, "out_features": OUT}

    def sides(self, module: nn.Linear) -> tuple[Layout, Layout]:
        return lay.width(module.in_features), lay.width(module.out_features)

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

    def sides(self, module: nn.Embedding) -> tuple[Layout, Layout]:
        entries = lay.constant(module.num_embeddings, "it is a table of as many entries")
        return entries, lay.width(module.embedding_dim)

    def flow(self, call: Call) -> Any:
        return None if call.sides is None else [*call.x, call.sides[1]]

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return 0
