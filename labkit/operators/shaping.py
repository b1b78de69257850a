"""What only moves elements: reshaping, transposing, repeating. It costs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Functions, Modules, Operator, register_operator
from labkit.operators.building import NotStackable, StackBuilder, Stacked, flattened
from labkit.operators.elementwise import Elementwise
from labkit.operators.layout import Layout
from labkit.operators.nodes import Path, Size, argument, as_tuple, describe, path_of, run


class Moving(Operator):
    """Costs nothing."""

    leaf = False
    flops_each = 0


def put(x: Axes, dim: int, *axes: Layout) -> Axes:
    """Returns the axes of a tensor with others in the place of one."""
    dim %= len(x)
    return [*x[:dim], *axes, *x[dim + 1 :]]


@register_operator
class Attribute(Moving):
    """What is read off a tensor: its transpose, a size where it is no tensor; else unknown."""

    functions = (getattr, "size", "dim", "numel")

    def flow(self, call: Call) -> Any:
        return transposed(call) if call.node.args[1:] in (("T",), ("mT",)) else None


@register_operator
class Creation(Moving):
    """A tensor that the code makes of numbers; its values are no channels' own."""

    functions: ClassVar[Functions] = (
        torch.arange, torch.as_tensor, torch.eye, torch.linspace, torch.logspace, torch.randint,
        torch.randperm, torch.tensor, "new_tensor",
    )  # fmt: skip

    def flow(self, call: Call) -> Any:
        why = f"it meets a constant, {describe(call.node)}"
        return [lay.constant(size, why) for size in call.shape]


@register_operator
class Filling(Creation):
    """A tensor of given sizes, which may be those of another one, whose values are all alike."""

    functions: ClassVar[Functions] = (
        torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros, "new_empty",
        "new_full", "new_ones", "new_zeros",
    )  # fmt: skip

    def flow(self, call: Call) -> Any:
        axes = super().flow(call)
        for i, (size, path) in enumerate(_sizes(call.node, int(call.node.op == "call_method"))):
            if isinstance(size, Size) and size.axis is not None and i < len(axes):
                node, dim = size.axis
                axes[i] = call.axes[node][dim]
                call.literal(path, axes[i])
        return axes


@register_operator
class Reshape(Moving):
    """Takes apart and puts together axes, as `view` and `flatten` do.

    Axes are matched in runs of equal size. Within a run the channels may become a block each
    (`[x, 4, 4]` → `[x · 16]`), or be dealt into groups (`[x]` → `[2, x / 2]`).
    """

    modules: ClassVar[Modules] = (nn.Flatten,)
    functions: ClassVar[Functions] = (torch.flatten, torch.reshape, "flatten", "view", "reshape")

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
            if before.start == 0 and call.node.meta["batched"]:
                return None  # channels fold into the batch
            merged = lay.product(*axes)
            if merged is None:
                return None  # channels times channels
            given = [sizes[i][0] if by_number else None for i in after]
            as_image = len(call.x) == 2 and after.start == 1  # from features to channels and space
            # The size of a batch times the heads is no number of the code.
            heads = [i for i, n in enumerate(given) if not isinstance(n, Node)]
            heads = [i for i in heads if i + after.start in call.heads]
            result += _dealt(merged, [shape[i] for i in after], given, as_image, heads)
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


@register_operator
class Unflatten(Moving):
    """One axis as several; a layer has their sizes as options, so it keeps what it reads."""

    modules = (nn.Unflatten,)
    functions = (torch.unflatten, "unflatten")

    def flow(self, call: Call) -> Any:
        module: Any = call.module
        dim = call.argument(1, "dim") if module is None else module.dim
        sizes = call.argument(2, "sizes") if module is None else module.unflattened_size
        dim %= len(call.x)
        shape = call.shape[dim : dim + len(sizes)]
        if not lay.free(call.x[dim]):
            return put(call.x, dim, *map(lay.plain, shape))
        heads = [i - dim for i in call.heads]
        dealt = _dealt(call.x[dim], shape, sizes, False, heads)
        for i, (axis, size) in enumerate(zip(dealt, sizes)):
            if lay.free(axis) and size != -1:
                if module is not None:
                    return None
                call.literal([*path_of(call.node, 2, "sizes"), i], axis)
        return put(call.x, dim, *dealt)


def _dealt(
    axis: Layout, sizes: Sequence[int], given: Sequence[Any], first: bool, heads: Sequence[int]
) -> Axes:
    """Returns an axis as several, of which one has the channels: the first, where asked.

    Of heads, the last but one, both their number and their width can change.
    """
    if len(sizes) == 1:
        return [axis]
    if list(heads) == [len(sizes) - 2]:
        *before, n, _ = sizes
        return [*map(lay.plain, before), *lay.factor(lay.split_evenly(axis, math.prod(before)), n)]
    # The one whose size the code read off a tensor or left open; else the first that can be.
    derived = [i for i, g in enumerate(given) if isinstance(g, Size) or g == -1]
    inner = math.gcd(*[term.inner for term in lay.expand(axis)])
    possible = (i for i in range(len(sizes)) if inner % math.prod(sizes[i + 1 :]) == 0)
    at = derived[0] if len(derived) == 1 else 0 if first else next(possible, len(sizes) - 1)
    axis = lay.without_inner(axis, math.prod(sizes[at + 1 :]))
    axis = lay.split_evenly(axis, math.prod(sizes[:at]))
    return [*map(lay.plain, sizes[:at]), axis, *map(lay.plain, sizes[at + 1 :])]


def _sizes(node: Node, first: int = 1) -> list[tuple[Any, Path]]:
    """Returns the sizes that a call is given, from some argument on, each with its path."""
    key = "size" if "size" in node.kwargs else "shape"
    path, given = path_of(node, first, key), argument(node, first, key)
    if isinstance(given, tuple | list):
        return [(size, (*path, i)) for i, size in enumerate(given)]
    return [(size, ("args", i)) for i, size in enumerate(node.args) if i >= first]


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
class ReshapeAs(Reshape):
    """A reshaping to the shape of another tensor."""

    modules = ()
    functions = ("reshape_as", "view_as")

    def flow(self, call: Call) -> Any:
        axes = super().flow(call)
        for axis, other in zip(axes or (), call.inputs[-1]):
            lay.join(axis, other)
        return axes


@register_operator
class Permute(Moving):
    """Puts axes in another order, or adds axes of size 1."""

    functions = (
        torch.transpose, torch.permute, torch.unsqueeze, torch.swapaxes, torch.movedim, torch.t,
        "transpose", "permute", "unsqueeze", "swapaxes", "movedim", "t",
    )  # fmt: skip

    def flow(self, call: Call) -> Any:
        return transposed(call)


def transposed(call: Call) -> Axes:
    """Returns the axes of a tensor in another order."""
    # The sizes of a tensor that is moved alike say which axis went where.
    marked = torch.empty([2 + i for i in range(len(call.x))], device="meta")
    moved = run(call.node, None, lambda: marked)
    return [lay.plain(1) if size == 1 else call.x[size - 2] for size in moved.shape]


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
        x = [*map(lay.plain, [1] * (len(shape) - len(x))), *x]
        repeated = [lay.size(axis) != size for axis, size in zip(x, shape)]
        if any(r and lay.free(axis) for r, axis in zip(repeated, x)):
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


@register_operator
class PixelShuffle(Moving):
    """Deals out a block of each channel over space."""

    modules = (nn.PixelShuffle,)
    functions = (F.pixel_shuffle,)

    def factor(self, call: Call) -> int:
        """Returns how many elements of one channel become space."""
        module: Any = call.module
        return int(call.argument(1, "upscale_factor") if module is None else module.upscale_factor)

    def flow(self, call: Call) -> Any:
        *rows, channels, _, _ = call.x
        channels = lay.without_inner(channels, self.factor(call) ** 2)
        return [*rows, channels, *map(lay.plain, call.shape[-2:])]


@register_operator
class PixelUnshuffle(Moving):
    """Makes a block of channels of space."""

    modules = (nn.PixelUnshuffle,)
    functions = (F.pixel_unshuffle,)

    def flow(self, call: Call) -> Any:
        *rows, channels, _, _ = call.x
        block = lay.plain(call.shape[-3] // lay.size(channels))
        return [*rows, lay.product(channels, block), *map(lay.plain, call.shape[-2:])]


@register_operator
class Repeat(Moving):
    """A tensor side by side with itself."""

    functions = ("repeat",)

    def flow(self, call: Call) -> Any:
        counts = [size for size, _ in _sizes(call.node)]
        axes = [*[lay.plain(1)] * (len(counts) - len(call.x)), *call.x]
        return [
            axis * n if lay.free(axis) else lay.plain(size)
            for axis, n, size in zip(axes, counts, call.shape, strict=True)
        ]


@register_operator
class RepeatInterleave(Moving):
    """Each entry of an axis so many times, one after the other."""

    functions = (torch.repeat_interleave, "repeat_interleave")

    def flow(self, call: Call) -> Any:
        x, n, dim = call.x, call.argument(1, "repeats"), call.argument(2, "dim")
        if not isinstance(n, int):
            return None
        return put(x, dim, lay.product(x[dim], lay.plain(n)) or ())
