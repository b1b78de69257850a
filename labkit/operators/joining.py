"""What puts tensors side by side, and what takes parts of them. It costs nothing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Axes, Call, Path
from labkit.operators.building import NotStackable, StackBuilder, Stacked
from labkit.operators.layout import Layout
from labkit.operators.nodes import argument, as_tuple, describe
from labkit.operators.registry import register_operator
from labkit.operators.shaping import Moving


@register_operator
class Cat(Moving):
    """Tensors side by side on one axis."""

    functions = (torch.cat, torch.concat)

    def flow(self, call: Call) -> Any:
        parts = [call.axes[part] for part in call.argument(0, "tensors")]
        first, *others = parts
        dim = call.argument(1, "dim", 0) % len(first)
        for other in others:
            for i in range(len(first)):
                if i != dim:
                    lay.join(first[i], other[i])
        together = tuple(term for part in parts for term in part[dim])
        return [together if i == dim else axis for i, axis in enumerate(first)]

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked:
        stack.inputs(node)
        parts = [stack.tensors[part] for part in argument(node, 0, "tensors")]
        dim = argument(node, 1, "dim", 0) % len(node.meta["shape"])
        spatial = parts[0].spatial
        if dim != 1 or any(part.spatial != spatial for part in parts):
            raise NotStackable(f"{describe(node)} does more than concatenate channels")
        real = torch.cat([part.real for part in parts], dim=1)
        nodes = [part.node for part in parts]
        if spatial:
            return Stacked(stack.call(cat_spatial, nodes, stack.size), real, spatial)
        return Stacked(stack.call(torch.cat, nodes, 1), real, spatial)


def cat_spatial(parts: Sequence[torch.Tensor], candidates: int) -> torch.Tensor:
    """Concatenates `[rows, candidates · channels, …]` over each candidate's channels."""
    unfolded = [part.unflatten(1, (candidates, -1)) for part in parts]
    return torch.cat(unfolded, dim=2).flatten(1, 2)


def _cut(x: Axes, dim: int, sizes: Sequence[int]) -> tuple[Axes, ...]:
    return tuple([*x[:dim], part, *x[dim + 1 :]] for part in lay.split(x[dim], sizes))


@register_operator
class Chunk(Moving):
    """Equal parts of an axis, so many."""

    functions = (torch.chunk, "chunk")

    def flow(self, call: Call) -> Any:
        x, n, shapes = call.x, call.argument(1, "chunks"), call.shape
        dim = call.argument(2, "dim", 0) % len(x)
        if not lay.free(x[dim]):
            return _cut(x, dim, [shape[dim] for shape in shapes])
        if len(shapes) != n or lay.size(x[dim]) % n:
            return None  # the last chunk is smaller, which other widths would change
        part = lay.split_evenly(x[dim], n)
        return tuple([*x[:dim], part, *x[dim + 1 :]] for _ in range(n))


@register_operator
class Split(Moving):
    """Parts of an axis, of given sizes."""

    functions = (torch.split, "split")

    def flow(self, call: Call) -> Any:
        node, x = call.node, call.x
        dim = call.argument(2, "dim", 0) % len(x)
        parts = _cut(x, dim, [shape[dim] for shape in call.shape])
        if lay.free(x[dim]):
            key = "split_size" if "split_size" in node.kwargs else "split_size_or_sections"
            path: Path = ("args", 1) if len(node.args) > 1 else ("kwargs", key)
            call.literal(path, [part[dim] for part in parts])
        return parts


@register_operator
class Item(Moving):
    """Indexing: one of several tensors, or a part of one."""

    functions = (operator.getitem,)

    def flow(self, call: Call) -> Any:
        x, index = call.x, call.node.args[1]
        if isinstance(x, tuple):
            return x[index] if isinstance(index, int) else None
        items = index if isinstance(index, tuple) else (index,)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            n_named = sum(item is not None and item is not Ellipsis for item in items)
            items = (*items[:at], *[slice(None)] * (len(x) - n_named), *items[at + 1 :])
        result: Axes = []
        rest = list(x)
        for place, item in enumerate(items):
            if item is None:
                result.append(lay.plain(1))
            elif item == slice(None):
                result.append(rest.pop(0))
            elif isinstance(item, int) and not lay.free(rest[0]):
                rest.pop(0)
            elif isinstance(item, slice) and not lay.free(rest[0]):
                result.append(lay.plain(call.shape[len(result)]))
                rest.pop(0)
            elif isinstance(item, slice) and Ellipsis not in as_tuple(index):
                path = ("args", 1, place) if isinstance(index, tuple) else ("args", 1)
                part = _sliced(call, rest.pop(0), item, path)
                if part is None:
                    return None
                result.append(part)
            else:
                return None
        return [*result, *rest]


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
