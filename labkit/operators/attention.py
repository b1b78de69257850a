"""Products of tensors with each other, and the attention that is made of them.

A product is one of named axes, as `torch.einsum` writes it: axes of one name are joined; what is in
both operands and in the result is done for each, as an attention does the same for each of its
heads; what is not in the result is summed over. Only products are counted, a multiply-accumulate
as 1, and not the softmax inside a fused attention.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Functions, Operator, Shape, register_operator
from labkit.operators.elementwise import meet
from labkit.operators.layout import Layout
from labkit.operators.nodes import argument, describe, is_shape
from labkit.operators.weights import IN, OUT, Axis, carried, in_place_of

QKV = "query", "key", "value"
DOTS = "0123456789"  # names of the axes that a product has in front, from the last to the first


def shapes_of(node: Node, read: Sequence[Shape]) -> dict[Any, Shape]:
    """Returns the shape of each tensor that a call reads: each comes once."""
    return dict(zip([n for n in node.all_input_nodes if is_shape(n.meta["shape"])], read))


class Product(Operator):
    """A product of two tensors over named axes."""

    leaf = False
    matrix_product = True

    def operands(self, node: Node) -> Sequence[Any]:
        """Returns the two tensors that it multiplies."""
        return argument(node, 0, "input"), argument(node, 1, "other", node.kwargs.get("mat2"))

    def names(self, node: Node, n_axes: tuple[int, int]) -> tuple[str, str, str] | None:
        """Returns a letter for each axis of its operands, of so many axes, and of its result."""
        raise NotImplementedError

    def flow(self, call: Call) -> Any:
        nodes = self.operands(call.node)
        a, b = (call.axes[node] for node in nodes)
        names = self.names(call.node, (len(a), len(b)))
        return None if names is None else multiplied(call, (a, b), names, nodes)

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int | None:
        shapes = shapes_of(node, read)
        a, b = (shapes.get(operand) for operand in self.operands(node))
        if a is None or b is None or (names := self.names(node, (len(a), len(b)))) is None:
            return None
        return n_products((a, b), names)


def multiplied(
    call: Call,
    operands: tuple[Axes, Axes],
    names: tuple[str, str, str],
    nodes: Sequence[Node],
    by_root: bool = False,
) -> Axes:
    """Joins the axes of two tensors that are multiplied; returns those of the result.

    Args:
        call: The call.
        operands: The axes of both.
        names: Those of the axes of both, and of the result.
        nodes: The tensors.
        by_root: Whether the result is divided by the root of the width that is summed over.
    """
    axes: dict[str, Layout] = {}
    for name in dict.fromkeys(names[0] + names[1]):
        meeting = [x[own.index(name)] for x, own in zip(operands, names) if name in own]
        axes[name] = meet(meeting, call.node)
        if name not in names[2]:
            places = [(x, own.index(name)) for x, own in zip(nodes, names) if name in own]
            call.sum(axes[name], places if len(places) == 2 else [], by_root=by_root)
        elif len(meeting) > 1:
            call.batch(axes[name])
    return [axes[name] for name in names[2]]


def n_products(shapes: tuple[Shape, Shape], names: Sequence[str]) -> int:
    """Returns the multiply-accumulates of a product over named axes."""
    sizes: dict[str, int] = {}
    for name, size in zip(names[0] + names[1], (*shapes[0], *shapes[1])):
        sizes[name] = max(size, sizes.get(name, 1))  # one of size 1 is broadcast
    return math.prod(sizes.values())


@register_operator
class MatMul(Product):
    """`[…, n, k]`, `[…, k, m]` → `[…, n, m]`."""

    functions: ClassVar[Functions] = (
        torch.matmul, torch.bmm, torch.mm, operator.matmul, "matmul", "bmm", "mm", "__matmul__",
    )  # fmt: skip

    def names(self, node: Node, n_axes: tuple[int, int]) -> tuple[str, str, str]:
        a, b = (DOTS[: max(n - 2, 0)][::-1] for n in n_axes)
        rows, columns = ("n" if n_axes[0] > 1 else ""), ("m" if n_axes[1] > 1 else "")
        return a + rows + "k", b + "k" + columns, max(a, b, key=len) + rows + columns


@register_operator
class Outer(Product):
    """`[n]`, `[m]` → `[n, m]`."""

    functions = (torch.outer, "outer")

    def names(self, node: Node, n_axes: tuple[int, int]) -> tuple[str, str, str]:
        return "n", "m", "nm"


@register_operator
class FunctionalLinear(Product):
    """`[…, k]`, `[m, k]` → `[…, m]`."""

    functions = (F.linear,)

    def operands(self, node: Node) -> Sequence[Any]:
        return argument(node, 0, "input"), argument(node, 1, "weight")

    def names(self, node: Node, n_axes: tuple[int, int]) -> tuple[str, str, str]:
        rows = DOTS[: n_axes[0] - 1][::-1]
        return f"{rows}k", "mk", f"{rows}m"

    def flow(self, call: Call) -> Any:
        return _plus(call, super().flow(call), call.argument(2, "bias"))


@register_operator
class AddMM(MatMul):
    """A product, added to the first operand."""

    functions: ClassVar[Functions] = (torch.addmm, torch.baddbmm, "addmm", "baddbmm")

    def operands(self, node: Node) -> Sequence[Any]:
        return tuple(argument(node, i, f"mat{i}", node.kwargs.get(f"batch{i}")) for i in (1, 2))

    def flow(self, call: Call) -> Any:
        return _plus(call, super().flow(call), call.argument(0, "input"))


@register_operator
class Einsum(Product):
    """A product of two tensors that its equation describes, with no axis twice in one."""

    functions = (torch.einsum,)

    def operands(self, node: Node) -> Sequence[Any]:
        given: Any = node.args[1:]
        if len(given) == 1 and isinstance(given[0], tuple | list):
            given = given[0]
        return given if len(given) == 2 else (None, None)

    def names(self, node: Node, n_axes: tuple[int, int]) -> tuple[str, str, str] | None:
        inputs, arrow, result = str(node.args[0]).replace(" ", "").partition("->")
        a, _, b = inputs.partition(",")
        names = []
        n_dots = [n - len(own.replace("...", "")) for own, n in zip((a, b), n_axes)]
        for own, n in zip((a, b, result), (*n_dots, max(n_dots))):
            names.append(own.replace("...", DOTS[:n][::-1]))
        if not arrow or any(len(set(own)) < len(own) for own in names):
            return None
        return names[0], names[1], names[2]


def _plus(call: Call, product: Axes | None, added: Any) -> Axes | None:
    """Returns the axes of a product to which something is added."""
    for i, axis in enumerate(reversed(call.axes.get(added, ())), 1):
        if product is not None:
            meet([product[-i], axis], call.node)
    return product


def _tensors(node: Node) -> list[Any]:
    """Returns an attention's queries, keys and values."""
    return [argument(node, i, name) for i, name in enumerate(QKV)]


@register_operator
class ScaledDotProduct(Operator):
    """`[…, n, k]`, `[…, m, k]`, `[…, m, v]` → `[…, n, v]`."""

    functions = (F.scaled_dot_product_attention,)
    leaf = False
    matrix_product = True

    def flow(self, call: Call) -> Any:
        nodes = _tensors(call.node)
        q, k, v = (call.axes[node] for node in nodes)
        if call.node.kwargs.get("enable_gqa"):  # several heads of queries for one of the others
            n = lay.plain(lay.size(q[-3]) // lay.size(k[-3]))
            k, v = ([*x[:-3], lay.product(x[-3], n), *x[-2:]] for x in (k, v))
        batch = DOTS[: len(q) - 2][::-1]
        scores = multiplied(
            call, (q, k), (f"{batch}nk", f"{batch}mk", f"{batch}nm"), nodes[:2],
            by_root=call.argument(6, "scale") is None,
        )  # fmt: skip
        _plus(call, scores, call.argument(3, "attn_mask"))
        names = f"{batch}nm", f"{batch}mv", f"{batch}nv"
        return multiplied(call, (scores, v), names, [call.node, nodes[2]])

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        shapes = shapes_of(node, read)
        q, k, v = (shapes[tensor] for tensor in _tensors(node))
        return math.prod(written[:-1]) * k[-2] * (q[-1] + v[-1])


@register_operator
class MultiheadAttention(Operator):
    """`[rows, tokens, width]`, the width one of heads times what each has."""

    modules = (nn.MultiheadAttention,)
    scalable = matrix_product = True
    heads = "num_heads"

    def sides(self, module: nn.MultiheadAttention) -> tuple[Layout, Layout]:
        width = lay.product(lay.width(module.num_heads), lay.width(module.head_dim)) or ()
        return width, width

    def flow(self, call: Call) -> Any:
        module: Any = call.module
        if call.sides is None:
            return None
        tensors, width = [call.axes[node] for node in _tensors(call.node)], call.sides[1]
        for axes, n in zip(tensors, (module.embed_dim, module.kdim, module.vdim)):
            if n == module.embed_dim:
                lay.join(axes[-1], width)
            else:
                lay.fix(axes[-1], f"{describe(call.node)} has keys or values of another width")
        weighs = any(  # whether its weights are used
            user.target is not operator.getitem or (user.args[1] != 0 and user.users)
            for user in call.node.users
        )
        mask = call.axes.get(call.argument(5, "attn_mask"), ())
        for term in lay.expand(width) if weighs or len(mask) > 2 else ():
            why = f"{describe(call.node)} has masks, or returns weights, for its heads"
            lay.fix((term.var.factors or (width,))[0], why)
        return [*tensors[0][:-1], width], list(map(lay.plain, call.shape[1] or ()))

    def axes(self, module: Any, parameter: torch.Tensor) -> tuple[Axis | None, ...]:
        """Returns what the axes of a parameter are; where it is three in one, of each."""
        if parameter.ndim == 3:
            return None, None, OUT
        return (OUT, IN if parameter.shape[-1] == module.embed_dim else None)[: parameter.ndim]

    def carry(
        self, module: Any, inputs: torch.Tensor, outputs: torch.Tensor, noise: float = 0.0
    ) -> None:
        device, old = module.out_proj.weight.device, module.embed_dim
        # The scores sum over copies of what a head has, and are divided by the root of its width.
        channel, each = outputs % module.head_dim, len(outputs) // module.num_heads
        counts = channel[:each].bincount()[channel].double()
        share = (each / module.head_dim) ** 0.5 / counts
        inputs, outputs = inputs.to(device), outputs.to(device)
        for name, parameter in list(module.named_parameters()):
            axes, noisy = self.axes(module, parameter), noise if parameter.ndim == 2 else 0.0
            parts = parameter.detach().chunk(3 if name.startswith("in_proj") else 1)
            new = [carried(part, axes, inputs, outputs, groups=1, noise=noisy) for part in parts]
            if name in ("in_proj_weight", "in_proj_bias", "k_proj_weight", "bias_k"):
                along = [-1 if axis is OUT else 1 for axis in axes]
                new[len(new) // 2] *= share.to(parameter).view(along)
            path, _, own_name = name.rpartition(".")
            setattr(module.get_submodule(path), own_name, in_place_of(parameter, torch.cat(new)))
        module.head_dim = each
        module.out_proj.in_features = module.out_proj.out_features = len(outputs)
        for name in ("embed_dim", "kdim", "vdim"):
            if getattr(module, name) == old:
                setattr(module, name, len(outputs))

    def norms(self, module: Any) -> torch.Tensor:
        return module.out_proj.weight.detach().float().cpu().square().sum(1)

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        shapes = shapes_of(node, read)
        q, k, v = (shapes[tensor] for tensor in _tensors(node))
        tokens = -2 if module.batch_first or len(q) == 2 else 0
        n, m, rows = q[tokens], k[tokens], math.prod(q[:-1]) // q[tokens]
        added = (module.bias_k is not None) + module.add_zero_attn
        projections = 2 * n * q[-1] + m * (k[-1] + v[-1])
        return rows * q[-1] * (projections + 2 * n * (m + added))
