"""The walk over a network's graphs: what each axis of each tensor is made of.

What each operator does to channels is its own knowledge (`labkit.operators`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.fx import GraphModule, Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Operator, operator_of
from labkit.operators.layout import Layout
from labkit.operators.nodes import (
    Option,
    Size,
    argument_at,
    as_tuple,
    describe,
    is_shape,
    module_of,
)
from labkit.operators.shaping import Attribute, Creation, Reshape, Unflatten
from labkit.transform.graph import CONSTANT, layer_nodes

# The name of a node, and which axis of its tensor is one of heads.
Heads = frozenset[tuple[str, int]]


def walked(graphs: Sequence[GraphModule], only_code: str | None) -> Walk:
    """Walks twice where there are heads: where a tensor is dealt out, it is not known what for."""
    walk = Walk(graphs, only_code)
    heads = walk.batches()
    while heads:
        again = Walk(graphs, only_code, heads)
        still = heads & again.batches()
        if still == heads:
            return again
        heads = still
    return walk


class Walk:
    """One walk over the graphs that says what each axis of each tensor is made of.

    Args:
        graphs: The graphs.
        only_code: Why no graph can stand for the network's code, or `None`.
        heads: Axes that are known to be heads, whose number can change.
    """

    def __init__(
        self, graphs: Sequence[GraphModule], only_code: str | None, heads: Heads = frozenset()
    ):
        self.graphs, self.only_code, self.heads = graphs, only_code, heads
        self.axes: dict[Node, Any] = {}  # a tensor's axes, or a tuple of several tensors'
        self.sides: dict[str, tuple[Layout, Layout] | None] = {}
        self.tensors: dict[str, Any] = {}  # the axes of parameters and buffers, by their paths
        self.calls: list[Call] = []
        reasons = _reasons(graphs)
        for node, module in itertools.chain(*map(layer_nodes, graphs)):
            path = str(node.target)
            if path not in self.sides:  # a shared module has one pair of sides
                operator = operator_of(module)
                self.sides[path] = sides = None if operator is None else operator.sides(module)
                for side in sides if sides is not None and path in reasons else ():
                    lay.fix(side, reasons[path], unknown=True)
        in_layers = {
            id(parameter)
            for graph in graphs
            for _, module in layer_nodes(graph)
            if (operator := operator_of(module)) is not None
            for name, parameter in module.named_parameters()
            if name in operator.tensors
        }
        for graph in graphs:
            for path, tensor in _tensors_in(graph).items():
                why = f"it meets the constant '{path}'"
                if id(tensor) in in_layers or path.startswith(CONSTANT):
                    self.tensors[path] = _fixed(tensor.shape, why)
                elif path not in self.tensors:
                    axes = [lay.width(n) if n > 1 else lay.plain(n) for n in tensor.shape]
                    self.tensors[path] = axes
            for node in graph.graph.nodes:
                self.visit(node)

    def visit(self, node: Node) -> None:
        shape = node.meta["shape"]
        inputs = [self.axes[n] for n in node.all_input_nodes if n in self.axes]
        match node.op:
            case "placeholder":
                if shape is not None:
                    self.axes[node] = _fixed(shape, "it is the network's input")
            case "get_attr":
                if shape is not None:  # otherwise the code kept it from another call
                    self.axes[node] = self.tensors[str(node.target)]
            case "output":
                for axis in all_axes(inputs):
                    lay.fix(axis, "it is the network's output")
            case _ if shape is not None or (inputs and node.target not in Attribute.functions):
                module = module_of(node)
                sides = self.sides[str(node.target)] if module is not None else None
                heads = [axis for name, axis in self.heads if name == node.name]
                call = Call(node, module, inputs, sides, self.axes, heads=heads)
                axes = self.flow(call)
                self.axes[node] = _unknown(call) if axes is None else axes
                self.calls.append(call)

    def flow(self, call: Call) -> Any:
        """Returns what the axes of a call's output are made of, `None` where that is not known."""
        operator = operator_of(call.node)
        if operator is None or not (call.inputs or isinstance(operator, Creation)):
            return None
        try:
            axes = operator.flow(call)
            for number, axis in self.numbers(call):
                if isinstance(number, Size) and number.axis is not None:
                    source, dim = number.axis  # its code has it as the size of that
                    lay.join(axis, self.axes[source][dim])
        except (TypeError, ValueError, IndexError, AttributeError, KeyError):
            return None  # it was asked with arguments that its operator does not expect
        why = f"{describe(call.node)} has it as a number, and {self.only_code}"
        for number, axis in self.numbers(call):
            if not isinstance(number, Size | Option):
                lay.fix(axis, why, unknown=True)
        return axes

    def numbers(self, call: Call) -> Iterator[tuple[Any, Layout]]:
        """Yields sizes in a call that its code must get right, with the axes that they are of."""
        for path, sizes in call.literals if self.only_code is not None else ():
            numbers = as_tuple(argument_at(call.node, path))
            axes = sizes if isinstance(sizes, list) else [sizes]
            yield from zip(itertools.cycle(numbers), axes)

    def batches(self) -> Heads:
        """Returns the axes that a reshaping dealt out, of which something does each the same."""
        vars = {t.var for call in self.calls for axis in call.batches for t in lay.expand(axis)}
        return frozenset(
            (call.node.name, i)
            for call in self.calls
            if isinstance(operator_of(call.node), Reshape | Unflatten)
            for i, (axis, width) in enumerate(itertools.pairwise(self.axes[call.node]))
            if lay.size(axis) > 1 and vars & {t.var for t in lay.expand(axis)}
            if lay.free(axis) or (lay.free(width) and not self.heads)
        )


def _reasons(graphs: Sequence[GraphModule]) -> dict[str, str]:
    """Returns the layers whose widths must stay, because of their parameters, with the reason."""
    layers = {str(node.target): (node, module) for g in graphs for node, module in layer_nodes(g)}
    owners: dict[int, set[str]] = {}  # of a parameter: all of its paths
    for path, (_, module) in layers.items():
        for name, parameter in module.named_parameters():
            owners.setdefault(id(parameter), set()).add(f"{path}.{name}")
    used = {id(tensor) for graph in graphs for tensor in _tensors_in(graph).values()}
    reasons = {}
    for path, (node, module) in layers.items():
        operator = operator_of(module)
        if operator is None:
            continue
        own = {name: getattr(module, name, None) for name in operator.tensors}
        below = f"{path}."
        inner = tuple(f"{p.removeprefix(below)}." for p in layers if p.startswith(below))
        if hasattr(module, "parametrizations"):
            reasons[path] = f"'{node.name}' has a parametrized weight"
        elif computed := [
            n for n, tensor in own.items() if n in vars(module) and tensor is not None
        ]:
            reasons[path] = f"'{node.name}' computes its {', '.join(computed)}"
        elif any(len(owners[id(p)]) > 1 for p in module.parameters()):
            reasons[path] = f"'{node.name}' shares its weight with another layer"
        elif any(id(tensor) in used for tensor in own.values()):
            reasons[path] = f"the weight of '{node.name}' is used outside it, too"
        elif unknown := [
            name
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if type(operator).carry is Operator.carry  # others may know more
            if tensor.ndim and name not in operator.tensors and id(tensor) not in used
            if not name.startswith(inner)
        ]:
            names = ", ".join(f"'{name}'" for name in unknown)
            reasons[path] = f"labkit does not know what {names} of '{node.name}' follows"
    return reasons


def _tensors_in(traced: GraphModule) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers that code uses outside of layers that labkit knows."""
    paths = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    return {path: attrgetter(path)(traced) for path in paths}


def _unknown(call: Call) -> Any:
    why = f"labkit does not know what {describe(call.node)} does to channels"
    for axis in (*all_axes(call.inputs), *(call.sides or ())):
        lay.fix(axis, why, unknown=True)
    return _fixed(call.shape, why, unknown=True)


def _fixed(shape: Any, why: str, unknown: bool = False) -> Any:
    if isinstance(shape, Mapping):
        return {key: _fixed(part, why, unknown) for key, part in shape.items()}
    if not is_shape(shape):
        return tuple(_fixed(part, why, unknown) for part in shape or ())
    return [lay.constant(size, why, unknown) for size in shape]


def tensors_of(axes: Any) -> Iterator[list[Layout]]:
    """Yields the axes of each of several tensors."""
    if isinstance(axes, list):
        yield axes
    else:
        for part in axes.values() if isinstance(axes, Mapping) else axes:
            yield from tensors_of(part)


def all_axes(inputs: Iterable[Any]) -> Iterator[Layout]:
    return itertools.chain.from_iterable(tensors_of(tuple(inputs)))
