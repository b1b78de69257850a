"""What only moves elements: reshaping, transposing, adding and dropping axes. It costs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Operator, Shape
from labkit.operators.building import NotStackable, StackBuilder, Stacked, flattened
from labkit.operators.elementwise import Elementwise
from labkit.operators.layout import Layout
from labkit.operators.nodes import Size, as_tuple, describe
from labkit.operators.registry import register_operator


class Moving(Operator):
    """Costs nothing."""

    leaf = False

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        return 0


@register_operator
class Attribute(Moving):
    """What is read off a tensor: a size where it is no tensor, and otherwise unknown."""

    functions = (getattr, "size", "dim", "numel")


@register_operator
class Unflatten(Moving):
    """Its sizes are options of the layer, so what it reads keeps its width."""

    modules = (nn.Unflatten,)


@register_operator
class Reshape(Moving):
    """Takes apart and puts together axes, as `view` and `flatten` do.

    Axes are matched in runs of equal size. Within a run the channels may become a block each
    (`[x, 4, 4]` → `[x · 16]`), or be dealt into groups (`[x]` → `[2, x / 2]`).
    """

    modules = (nn.Flatten,)
    functions = (torch.flatten, torch.reshape, "flatten", "view", "reshape")

    def flow(self, call: Call) -> Any:
        shape = call.shape
        by_number = call.node.target in ("view", "reshape", torch.reshape)
        sizes = _sizes(call.node) if by_number else []
        if by_number and len(sizes) != len(shape):
            return None  # not a list of sizes
        result: Axes = []
        for before, after in _runs([lay.size(axis) for axis in call.x], shape):
            axes = call.x[before.start : before.stop]
            if not any(map(lay.free, axes)):
                kept = len(axes) == len(after) == 1
                result += axes if kept else map(lay.plain, shape[after.start : after.stop])
                continue
            if before.start == 0:
                return None  # channels fold into the batch
            merged: Layout | None = axes[0]
            for axis in axes[1:]:
                merged = None if merged is None else lay.product(merged, axis)
            if merged is None:
                return None  # channels times channels
            given = [sizes[i][0] if by_number else None for i in after]
            as_image = len(call.x) == 2 and after.start == 1  # from features to channels and space
            result += _dealt(merged, [shape[i] for i in after], given, as_image)
        for size, axis, (number, path) in zip(shape, result, sizes):
            if number == size and isinstance(number, int) and lay.free(axis):
                call.literal(path, axis)
        return result

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked:
        source, *_ = node.all_input_nodes  # the others are sizes
        x, shape = stack.tensors[source], source.meta["shape"]
        if node.meta["shape"] != (shape[0], math.prod(shape[1:])):
            raise NotStackable(f"{describe(node)} does more than flatten all but the rows")
        real = x.real.repeat_interleave(math.prod(shape[2:]), dim=1)
        flat = stack.call(flattened, x.node, stack.size) if x.spatial else x.node
        return Stacked(flat, real, spatial=False)


def _dealt(axis: Layout, sizes: Sequence[int], given: Sequence[Any], first: bool) -> Axes:
    """Returns an axis as several, of which one has the channels: the first, where asked."""
    if len(sizes) == 1:
        return [axis]
    # The one whose size the code read off a tensor or left open; else the first that can be.
    derived = [i for i, g in enumerate(given) if isinstance(g, Size) or g == -1]
    possible = [
        i
        for i in range(len(sizes))
        if all(term.inner % math.prod(sizes[i + 1 :]) == 0 for term in lay.expand(axis))
    ]
    if len(derived) == 1:
        at = derived[0]
    else:
        at = 0 if first else possible[0] if possible else len(sizes) - 1
    axis = lay.without_inner(axis, math.prod(sizes[at + 1 :]))
    axis = lay.split_evenly(axis, math.prod(sizes[:at]))
    return [*map(lay.plain, sizes[:at]), axis, *map(lay.plain, sizes[at + 1 :])]


def _sizes(node: Node) -> list[tuple[Any, tuple[str | int, ...]]]:
    """Returns the sizes that a reshaping call is given, each with its path in the arguments."""
    if "shape" in node.kwargs:
        sizes: Any = node.kwargs["shape"]
        return [(size, ("kwargs", "shape", i)) for i, size in enumerate(sizes)]
    if len(node.args) == 2 and isinstance(node.args[1], tuple | list):
        return [(size, ("args", 1, i)) for i, size in enumerate(node.args[1])]
    return [(size, ("args", i)) for i, size in enumerate(node.args) if i > 0]


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yields the shortest runs of axes of two shapes that have equal products, in order."""
    i = j = 0
    while i < len(before) and j < len(after):
        first_i, first_j, p, q = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                p, i = p * before[i], i + 1
            else:
                q, j = q * after[j], j + 1
        yield range(first_i, i), range(first_j, j)
    if i < len(before) or j < len(after):  # axes of size 1 are left
        yield range(i, len(before)), range(j, len(after))


@register_operator
class Transpose(Moving):
    """Swaps two axes."""

    functions = (torch.transpose, "transpose")

    def flow(self, call: Call) -> Any:
        axes = list(call.x)
        i, j = call.argument(1, "dim0"), call.argument(2, "dim1")
        axes[i], axes[j] = axes[j], axes[i]
        return axes


@register_operator
class Permute(Moving):
    """Puts axes in another order."""

    functions = (torch.permute, "permute")

    def flow(self, call: Call) -> Any:
        dims: Any = call.node.kwargs.get("dims", call.node.args[1:])
        dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
        return [call.x[dim] for dim in dims]


@register_operator
class Unsqueeze(Moving):
    """Adds an axis of size 1."""

    functions = (torch.unsqueeze, "unsqueeze")

    def flow(self, call: Call) -> Any:
        axes = list(call.x)
        axes.insert(call.argument(1, "dim") % (len(axes) + 1), lay.plain(1))
        return axes


@register_operator
class Squeeze(Moving):
    """Drops axes of size 1."""

    functions = (torch.squeeze, "squeeze")

    def flow(self, call: Call) -> Any:
        x, dim = call.x, call.argument(1, "dim")
        dims = range(len(x)) if dim is None else [d % len(x) for d in as_tuple(dim)]
        gone = [i for i in dims if lay.size(x[i]) == 1]
        if any(lay.free(x[i]) for i in gone):
            return None
        return [axis for i, axis in enumerate(x) if i not in gone]


@register_operator
class Expand(Moving):
    """Repeats axes of size 1, to given sizes or to those of another tensor."""

    functions = ("expand", "expand_as")

    def flow(self, call: Call) -> Any:
        x, shape = call.x, call.shape
        if len(call.inputs) > 1:
            return Elementwise.flow(self, call)  # type: ignore[arg-type]
        repeated = [lay.size(axis) != size for axis, size in zip(x, shape)]
        if len(shape) != len(x) or any(r and lay.free(axis) for r, axis in zip(repeated, x)):
            return None
        for axis, (size, path) in zip(x, _sizes(call.node)):
            if lay.free(axis) and isinstance(size, int) and size != -1:
                call.literal(path, axis)
        return [lay.plain(n) if r else axis for n, r, axis in zip(shape, repeated, x)]


@register_operator
class Shuffle(Moving):
    """Deals channels out, each of several groups in turn."""

    modules = (nn.ChannelShuffle,)

    def flow(self, call: Call) -> Any:
        rows, channels, *space = call.x
        groups: int = call.module.groups  # type: ignore[union-attr, assignment]
        block = lay.split_evenly(channels, groups)
        return [rows, tuple(replace(t, inner=t.inner * groups) for t in block), *space]
