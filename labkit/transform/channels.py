"""Channel groups: which sides of which layers must have the same width, from the dataflow.

A layer's *side* is its input or its output. Two sides belong to one group when some tensor joins
them, so a group is the smallest thing whose width can change without breaking the network. A side
may be made of several groups, one after the other, as behind a concatenation.

What each operator does to channels is its own knowledge (`labkit.operators`); here is the walk.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
from torch import nn
from torch.fx import GraphModule, Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Operator, operator_of
from labkit.operators.layout import Layout, Var
from labkit.operators.nodes import describe, is_shape, module_of
from labkit.operators.shaping import Attribute, Reshape, Unflatten
from labkit.transform.graph import Example, example_input_for, layer_nodes, trace
from labkit.transform.groups import ChannelGroup, Channels, Literal, Mixing, Part, Side


def find_channels(model: nn.Module | Channels, example_input: Example | None = None) -> Channels:
    """Returns the channel groups of a network.

    Args:
        model: A network that torch.fx can trace; an analysis made before is returned as it is.
        example_input: `[batch, …]`, or one such tensor for each input; by default read off the
            first layer, where that is linear.

    Raises:
        LabkitError: The network cannot be traced, or does not take the example.
    """
    if isinstance(model, Channels):
        return model
    if example_input is None:
        example_input = example_input_for(model)
    walk = _walked(trace(model, example_input))
    return walk.channels(example_input, sum(p.numel() for p in model.parameters()))


def channel_groups(
    model: nn.Module | Channels, example_input: Example | None = None
) -> pd.DataFrame:
    """Returns the channel groups of a network, for people to read.

    It takes and raises what `find_channels` does.

    Returns:
        One row a group, indexed by name: width, multiple, writers, readers, and why it is fixed
        (empty where it can change).
    """
    rows = {
        group.name: {
            "width": group.width,
            "multiple": group.multiple,
            "writers": ", ".join(group.writers),
            "readers": ", ".join(group.readers),
            "fixed": group.fixed or "",
        }
        for group in find_channels(model, example_input).groups
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def _reasons(traced: GraphModule) -> dict[nn.Module, str]:
    """Returns the layers whose widths must stay, because of their parameters, with the reason."""
    owners = Counter(id(p) for m in set(traced.modules()) for p in m.parameters(recurse=False))
    attributes = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    used = {id(p) for name, p in traced.named_parameters() if name in attributes}
    reasons = {}
    for node, module in layer_nodes(traced):
        own = {id(p) for p in module.parameters(recurse=False)}
        if hasattr(module, "parametrizations"):
            reasons[module] = f"'{node.name}' has a parametrized weight"
        elif any(owners[p] > 1 for p in own):
            reasons[module] = f"'{node.name}' shares its weight with another layer"
        elif own & used:
            reasons[module] = f"the weight of '{node.name}' is used outside it, too"
        elif unknown := _unknown_tensors(module):
            names = ", ".join(f"'{name}'" for name in unknown)
            reasons[module] = f"labkit does not know what {names} of '{node.name}' follows"
    return reasons


def _unknown_tensors(module: nn.Module) -> list[str]:
    operator = operator_of(module)
    if operator is None or type(operator).carry is not Operator.carry:
        return []
    tensors = *module.named_parameters(), *module.named_buffers()
    return [name for name, tensor in tensors if tensor.ndim and name not in operator.tensors]


class _Layer(NamedTuple):
    name: str
    weighted: bool  # it writes its output channels, and reads its input channels
    before: Layout
    after: Layout


# The name of a node, and which axis of its tensor is one of heads.
_Heads = frozenset[tuple[str, int]]


def _walked(traced: GraphModule) -> _Walk:
    """Walks twice where there are heads: where a tensor is dealt out, it is not known what for."""
    walk = _Walk(traced)
    heads = walk.batches()
    while heads:
        walk = _Walk(traced, heads)
        still = frozenset(h for h in heads if h in walk.batches())
        if still == heads:
            return walk
        heads = still
    return _Walk(traced)


class _Walk:
    """One walk over the graph that says what each axis of each tensor is made of.

    Args:
        traced: The graph.
        heads: Axes that are known to be heads, whose number can change.
    """

    def __init__(self, traced: GraphModule, heads: _Heads = frozenset()):
        self.traced, self.heads = traced, heads
        self.axes: dict[Node, Any] = {}  # a tensor's axes, or a tuple of several tensors'
        self.sides: dict[nn.Module, tuple[Layout, Layout] | None] = {}
        self.calls: list[Call] = []
        reasons = _reasons(traced)
        for _, module in layer_nodes(traced):
            if module not in self.sides:  # a shared module has one pair of sides
                operator = operator_of(module)
                self.sides[module] = sides = None if operator is None else operator.sides(module)
                for side in sides if sides is not None and module in reasons else ():
                    lay.fix(side, reasons[module], unknown=True)
        for node in traced.graph.nodes:
            self.visit(node)

    def visit(self, node: Node) -> None:
        shape = node.meta["shape"]
        inputs = [self.axes[n] for n in node.all_input_nodes if n in self.axes]
        match node.op:
            case "placeholder":
                if shape is not None:
                    self.axes[node] = _fixed(shape, "it is the network's input")
            case "get_attr":
                if shape is not None:
                    self.axes[node] = _fixed(shape, f"it meets the constant '{node.target}'")
            case "output":
                for axis in _all_axes(inputs):
                    lay.fix(axis, "it is the network's output")
            case _ if shape is not None or (inputs and node.target not in Attribute.functions):
                module = module_of(node)
                heads = [axis for name, axis in self.heads if name == node.name]
                call = Call(node, module, inputs, self.sides.get(module), self.axes, heads=heads)  # type: ignore[arg-type]
                operator = operator_of(node)
                axes = operator.flow(call) if operator is not None and inputs else None
                if axes is None:
                    axes = _unknown(call)
                self.axes[node] = axes
                self.calls.append(call)

    def batches(self) -> _Heads:
        """Returns the axes that a reshaping dealt out, of which something does each the same."""
        vars = {t.var for call in self.calls for axis in call.batches for t in lay.expand(axis)}
        return frozenset(
            (call.node.name, i)
            for call in self.calls
            if isinstance(operator_of(call.node), Reshape | Unflatten)
            for i, (axis, width) in enumerate(itertools.pairwise(self.axes[call.node]))
            if lay.size(axis) > 1 and lay.free(width) and vars & {t.var for t in lay.expand(axis)}
            if not self.heads or lay.free(axis)
        )

    def layers(self) -> Iterator[_Layer]:
        """Yields each layer that has channels."""
        for node, module in layer_nodes(self.traced):
            sides, operator = self.sides[module], operator_of(module)
            weighted = operator is not None and operator.writes
            if sides is not None:
                yield _Layer(node.name, weighted, *map(lay.expand, sides))
                continue
            tensors = [self.axes.get(n) for n in (*node.all_input_nodes[:1], node)]
            channels = [
                next((lay.expand(axis) for axis in axes if lay.free(axis)), lay.expand(axes[1]))
                for axes in tensors
                if isinstance(axes, list) and len(axes) > 1
            ]
            if len(channels) == 2:
                yield _Layer(node.name, weighted, *channels)

    def channels(self, example_input: Example, n_parameters: int) -> Channels:
        layers = list(self.layers())
        groups: dict[Var, ChannelGroup] = {}

        def side_of(layout: Layout) -> Side:
            parts: list[Part] = []
            layout = lay.expand(layout)
            for term in layout:
                heads, block = term.var.factors or ((replace(term, inner=1),), None)
                for head in lay.expand(heads):
                    if head.var not in groups:
                        groups[head.var] = _group(head.var, layers, layout)
                    side = None if block is None else Side(side_of(block).parts * head.inner)
                    part = Part(groups[head.var], term.inner, term.ordered and head.ordered, side)
                    parts.append(part)
            return Side(tuple(parts))

        inputs = {layer.name: side_of(layer.before) for layer in layers}
        outputs = {layer.name: side_of(layer.after) for layer in layers}
        order = dict.fromkeys(
            g for name in inputs for g in inputs[name].groups + outputs[name].groups
        )
        literals = tuple(
            Literal(
                call.node.name,
                tuple(path),
                tuple(map(side_of, axis)) if isinstance(axis, list) else side_of(axis),
            )
            for call in self.calls
            for path, axis in call.literals
        )
        mixing = tuple(
            Mixing(describe(call.node), side_of(axis), averages)
            for call in self.calls
            for axis, averages in call.mixing
            if lay.free(axis)
        )
        shapes = {}
        for node, tensor in self.axes.items():
            axes = next(iter(_tensors(tensor)), None)  # of several tensors the first, as in a cost
            if axes is not None:
                sizes = (side_of(axis) if lay.free(axis) else lay.size(axis) for axis in axes)
                shapes[node.name] = tuple(sizes)
        return Channels(
            self.traced, example_input, tuple(order), inputs, outputs, literals, mixing, shapes,
            n_parameters,
        )  # fmt: skip


def _unknown(call: Call) -> Any:
    why = f"labkit does not know what {describe(call.node)} does to channels"
    for axis in (*_all_axes(call.inputs), *(call.sides or ())):
        lay.fix(axis, why, unknown=True)
    return _fixed(call.shape, why, unknown=True)


def _fixed(shape: Any, why: str, unknown: bool = False) -> Any:
    if not is_shape(shape):
        return tuple(_fixed(part, why, unknown) for part in shape or ())
    return [lay.constant(size, why, unknown) for size in shape]


def _tensors(axes: Any) -> Iterator[list[Layout]]:
    """Yields the axes of each of several tensors."""
    if isinstance(axes, list):
        yield axes
    else:
        for part in axes:
            yield from _tensors(part)


def _all_axes(inputs: Sequence[Any]) -> Iterator[Layout]:
    return itertools.chain.from_iterable(_tensors(tuple(inputs)))


def _group(var: Var, layers: Sequence[_Layer], met_in: Layout) -> ChannelGroup:
    """Returns the group of a variable, which is in some axis also where no layer has it."""

    def has_it(axis: Layout) -> bool:
        return any(
            term.var is var or any(has_it(lay.expand(factor)) for factor in term.var.factors or ())
            for term in axis
        )

    writers = [layer for layer in layers if layer.weighted and has_it(layer.after)]
    readers = [layer.name for layer in layers if layer.weighted and has_it(layer.before)]
    if writers:
        name, side = writers[0].name, writers[0].after
    else:
        first = ((n, side) for n, _, *sides in layers for side in sides if has_it(side))
        name, side = next(first, ("", met_in))
        name = f"{name} input"
    factors = next((t.var.factors for t in side if t.var.factors and has_it((t,))), None)
    if factors is not None:
        side, block = map(lay.expand, factors)
        name, side = (f"{name} heads", side) if has_it(side) else (f"{name} head width", block)
    if any(term.var is not var for term in side):
        at = next(i for i, term in enumerate(side) if term.var is var)
        start = lay.size(side[:at])
        name = f"{name}[{start}:{start + side[at].size}]"
    multiple = sum(term.inner for term in side if term.var is var)
    return ChannelGroup(
        name, multiple * var.size, multiple, tuple(layer.name for layer in writers),
        tuple(readers), var.fixed, var.unknown,
    )  # fmt: skip
