"""What joins tensors and takes parts of them: concatenating, splitting, indexing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Operator, register_operator
from labkit.operators.building import NotStackable, StackBuilder, Stacked
from labkit.operators.elementwise import meet
from labkit.operators.layout import Layout
from labkit.operators.nodes import Path, argument, as_tuple, called, describe, path_of
from labkit.operators.shaping import Moving, put


def _dim(node: Node, index: int = 1) -> int:
    """Returns the axis that a call works on, which NumPy names otherwise."""
    return int(argument(node, index, "dim", node.kwargs.get("axis", 0)))


def _parts(call: Call) -> list[Axes]:
    """Returns the axes of the tensors that are joined: one node where a call returned them all."""
    given = call.argument(0, "tensors")
    parts = call.x if isinstance(given, Node) else [call.axes[part] for part in given]
    if not all(isinstance(part, list) for part in parts):
        raise TypeError("not a list of tensors")
    return list(parts)


@register_operator
class Cat(Moving):
    """Tensors side by side on one axis."""

    functions = (torch.cat, torch.concat, torch.concatenate)

    def flow(self, call: Call) -> Any:
        # PyTorch leaves out an empty tensor of any shape, as a cache is at first.
        parts = [part for part in _parts(call) if len(part) > 1 or lay.size(part[0])]
        first, *others = parts
        dim = _dim(call.node) % len(first)
        for other in others:
            for i in range(len(first)):
                if i != dim:
                    lay.join(first[i], other[i])
        return put(first, dim, tuple(term for part in parts for term in part[dim]))

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        stack.inputs(node)
        given = argument(node, 0, "tensors")
        if isinstance(given, Node):
            return None
        parts = [stack.tensors[part] for part in given]
        dim = _dim(node) % len(node.meta["shape"])
        spatial = parts[0].spatial
        if dim != 1 or any(part.spatial != spatial for part in parts):
            raise NotStackable(f"{describe(node)} does more than concatenate channels")
        real = torch.cat([part.real for part in parts], dim=1)
        nodes = [part.node for part in parts]
        how, n = (cat_spatial, stack.size) if spatial else (torch.cat, 1)
        return Stacked(stack.call(how, nodes, n), real, spatial)


def cat_spatial(parts: Sequence[torch.Tensor], candidates: int) -> torch.Tensor:
    """Concatenates `[rows, candidates · channels, …]` over each candidate's channels."""
    unfolded = [part.unflatten(1, (candidates, -1)) for part in parts]
    return torch.cat(unfolded, dim=2).flatten(1, 2)


@register_operator
class StackTensors(Moving):
    """Tensors of one shape on a new axis."""

    functions = (torch.stack,)

    def flow(self, call: Call) -> Any:
        parts = _parts(call)
        axes = [meet(meeting, call.node) for meeting in zip(*parts)]
        dim = call.argument(1, "dim", 0) % (len(axes) + 1)
        return [*axes[:dim], lay.plain(len(parts)), *axes[dim:]]


@register_operator
class Chunk(Moving):
    """Equal parts of an axis, so many."""

    functions = (torch.chunk, "chunk")

    def flow(self, call: Call) -> Any:
        x, n, shapes = call.x, call.argument(1, "chunks"), call.shape
        dim = _dim(call.node, 2)
        if not lay.free(x[dim]):
            parts = lay.split(x[dim], [shape[dim] for shape in shapes])
            return tuple(put(x, dim, part) for part in parts)
        if len(shapes) != n or lay.size(x[dim]) % n:
            return None  # the last chunk is smaller, which other widths would change
        return (put(x, dim, lay.split_evenly(x[dim], n)),) * n


@register_operator
class GLU(Operator):
    """The first half of an axis times the sigmoid of the second."""

    modules = (nn.GLU,)
    functions = (F.glu,)
    leaf = False
    flops_each = 2

    def flow(self, call: Call) -> Any:
        module: Any = call.module
        dim = call.argument(1, "dim", -1) if module is None else module.dim
        return put(call.x, dim, lay.split_evenly(call.x[dim], 2))


@register_operator
class Split(Moving):
    """Parts of an axis, of given sizes."""

    functions = (torch.split, "split")

    def flow(self, call: Call) -> Any:
        node, x, dim = call.node, call.x, _dim(call.node, 2)
        parts = lay.split(x[dim], [shape[dim] for shape in call.shape])
        if lay.free(x[dim]):
            key = "split_size" if "split_size" in node.kwargs else "split_size_or_sections"
            call.literal(path_of(node, 1, key), parts)
        return tuple(put(x, dim, part) for part in parts)


@register_operator
class Unbind(Moving):
    """The entries of an axis, which cannot have channels."""

    functions = (torch.unbind, "unbind")

    def flow(self, call: Call) -> Any:
        dim = call.argument(1, "dim", 0)
        return None if lay.free(call.x[dim]) else (put(call.x, dim),) * len(call.shape)


@register_operator
class Item(Moving):
    """Indexing: one of several tensors, or a part of one."""

    functions = (operator.getitem,)

    def flow(self, call: Call) -> Any:
        x, index = call.x, call.node.args[1]
        if isinstance(x, tuple):
            return x[index] if isinstance(index, int) else None
        items = index if isinstance(index, tuple) else (index,)
        at, added = len(items), 0
        if Ellipsis in items:
            at = items.index(Ellipsis)
            n_named = sum(item is not None and item is not Ellipsis for item in items)
            whole = [slice(None)] * (len(x) - n_named)
            items, added = (*items[:at], *whole, *items[at + 1 :]), len(whole) - 1
        result: Axes = []
        rest = list(x)
        for place, item in enumerate(items):
            if item is None:
                result.append(lay.plain(1))
            elif item == slice(None):
                result.append(rest.pop(0))
            elif isinstance(item, int) and not lay.free(rest[0]):
                rest.pop(0)
            elif isinstance(item, Node) and isinstance(entries := call.axes.get(item), list):
                if sum(isinstance(other, int | Node) for other in items) > 1:
                    return None
                lay.fix(rest.pop(0), f"{describe(call.node)} takes its entries by number", True)
                result += [lay.plain(lay.size(axis)) for axis in entries]
            elif isinstance(item, slice) and not lay.free(rest[0]):
                result.append(lay.plain(call.shape[len(result)]))
                rest.pop(0)
            elif isinstance(item, slice):
                given = place if place < at else place - added
                path = ("args", 1, given) if isinstance(index, tuple) else ("args", 1)
                part = _sliced(call, rest.pop(0), item, path)
                if part is None:
                    return None
                result.append(part)
            else:
                return None
        result += rest
        return result if [lay.size(axis) for axis in result] == list(call.shape) else None


def _sliced(call: Call, axis: Layout, item: slice, path: Path) -> Layout | None:
    """Returns the part of an axis with channels that a slice takes."""
    if item.step not in (None, 1) or any(isinstance(b, Node) for b in (item.start, item.stop)):
        return None
    start, stop, _ = item.indices(lay.size(axis))
    before, part, _ = lay.split(axis, [start, stop - start, lay.size(axis) - stop])
    if item.start is not None:
        call.literal([*path, "start"], before)
    if item.stop is not None:
        call.literal([*path, "stop"], (*before, *part))
    return part


@register_operator
class Picking(Moving):
    """Moved or chosen entries of axes, which keep their width."""

    functions = (torch.roll, torch.flip, torch.index_select, "roll", "flip", "index_select")

    def flow(self, call: Call) -> Any:
        at = 2 if called(call.node) == "roll" else 1
        dims = call.argument(at, "dims", call.node.kwargs.get("dim"))
        dims = range(len(call.x)) if dims in (None, ()) else as_tuple(dims)
        moved = {dim % len(call.x) for dim in dims}
        if any(lay.free(call.x[dim]) for dim in moved):
            return None
        sizes = enumerate(zip(call.x, call.shape))
        return [lay.plain(size) if i in moved else axis for i, (axis, size) in sizes]


@register_operator
class Gather(Moving):
    """Entries that another tensor names; all axes keep their width."""

    functions = (torch.gather, torch.take_along_dim, "gather")

    def flow(self, call: Call) -> Any:
        is_free = any(lay.free(axis) for axes in call.inputs for axis in axes)
        return None if is_free else list(map(lay.plain, call.shape))
