"""Channel groups: which sides of which layers must have the same width, from the dataflow.

A layer's *side* is its input or its output. Two sides belong to one group when some tensor joins
them, so a group is the smallest thing whose width can change without breaking the network. A side
may be made of several groups, one after the other, as behind a concatenation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
from torch import nn

from labkit.operators import layout as lay
from labkit.operators.base import inherited, operator_of
from labkit.operators.layout import Layout, Var
from labkit.operators.nodes import describe
from labkit.operators.weights import IN, OUT
from labkit.table import Table
from labkit.transform.graph import (
    Example,
    example_input_for,
    graphs_of,
    layer_nodes,
    rooted,
    unwrapped,
)
from labkit.transform.groups import ChannelGroup, Channels, Literal, Mixing, Part, Side, Sizes
from labkit.transform.sums import Sum, find_sum
from labkit.transform.walk import Walk, all_axes, tensors_of, walked


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
    model = rooted(unwrapped(model))
    if example_input is None:
        example_input = example_input_for(model)
    walk = walked(*graphs_of(model, example_input))
    return _channels(walk, example_input, model)


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
    return Table.from_dict(rows, orient="index").rename_axis("group")


class _Layer(NamedTuple):
    name: str
    weighted: bool  # it writes its output channels, and reads its input channels
    before: Layout
    after: Layout


def _layers(walk: Walk) -> Iterator[_Layer]:
    """Yields each layer that has channels."""
    calls = {n.name: (n, m) for n, m in itertools.chain(*map(layer_nodes, walk.graphs[::-1]))}
    for node, module in itertools.chain(*map(layer_nodes, walk.graphs)):
        if calls.pop(node.name, None) is None:  # in the graph of training, too
            continue
        sides, operator = walk.sides[str(node.target)], operator_of(module)
        weighted = operator is not None and operator.writes
        if sides is not None:
            yield _Layer(node.name, weighted, *map(lay.expand, sides))
            continue
        tensors = [walk.axes.get(n) for n in (*node.all_input_nodes[:1], node)]
        channels = [
            next((lay.expand(axis) for axis in axes if lay.free(axis)), lay.expand(axes[1]))
            for axes in tensors
            if isinstance(axes, list) and len(axes) > 1
        ]
        if len(channels) == 2:
            yield _Layer(node.name, weighted, *channels)


def _in_code(walk: Walk, model: nn.Module) -> Iterator[tuple[_Layer, str, nn.Module]]:
    """Yields modules with whose weights code multiplies that is not a layer's, with their paths.

    A weight that is not called so has a path of its own.
    """
    products = {
        str(operand.target): dim
        for call in walk.calls
        for each in call.sums
        for operand, dim in each.operands
    }
    taken = {call.node.name for call in walk.calls}
    for module_path, module in model.named_modules():
        operator = inherited(module)
        known = operator.tensors if operator.scalable else {}
        for name, weight in module.named_parameters(recurse=False):
            full = f"{module_path}.{name}"
            if module_path in ("", *walk.sides) or full not in walk.tensors:
                continue
            dims = range(min(weight.ndim, 2)) if full in products else ()
            by_product = [IN if dim == products[full] else OUT for dim in dims]
            axes = map(lay.expand, walk.tensors[full])
            sides = dict(zip(known.get(name, by_product), axes))
            path = module_path if name == "weight" else full
            fx_name = re.sub(r"^(?=\d)|\.", "_", path)
            if {IN, OUT} <= sides.keys() and fx_name not in taken:
                yield _Layer(fx_name, True, sides[IN], sides[OUT]), path, module


class _Sides:
    """Axes as sides: each variable of a walk becomes a group, once."""

    def __init__(self, layers: Sequence[_Layer]):
        self.layers = layers
        self.groups: dict[Var, ChannelGroup] = {}
        self.names: dict[str, int] = {}  # of groups → how many have it

    def of(self, layout: Layout) -> Side:
        parts: list[Part] = []
        layout = lay.expand(layout)
        for term in layout:
            heads, block = term.var.factors or ((replace(term, inner=1),), None)
            for head in lay.expand(heads):
                if head.var not in self.groups:
                    own = _group(head.var, self.layers, layout)
                    self.names[own.name] = n = self.names.get(own.name, 0) + 1
                    name = own.name if n == 1 else f"{own.name} {n}"
                    self.groups[head.var] = replace(own, name=name)
                group, side = self.groups[head.var], None
                if block is not None:
                    side = Side(self.of(block).parts * head.inner)
                parts.append(Part(group, term.inner, term.ordered and head.ordered, side))
        return Side(tuple(parts))

    def sizes(self, axes: Iterable[Layout]) -> Sizes:
        return tuple(self.of(axis) if lay.free(axis) else lay.size(axis) for axis in axes)

    def literals(self, walk: Walk) -> Iterator[Literal]:
        for call in walk.calls:
            graph = walk.graphs.index(call.node.graph.owning_module)
            for path, axis in call.literals:
                value = tuple(map(self.of, axis)) if isinstance(axis, list) else self.of(axis)
                yield Literal(graph, call.node.name, tuple(path), value)

    def mixing(self, walk: Walk) -> Iterator[Mixing | Sum]:
        for call in walk.calls:
            for axis, averages in call.mixing:
                if lay.free(axis):
                    yield Mixing(describe(call.node), self.of(axis), averages)
        for call in walk.calls:
            for summed in call.sums:
                if lay.free(summed.axis):
                    side = self.of(summed.axis)
                    found = find_sum(call.node, summed, side)
                    yield found or Mixing(describe(call.node), side, averages=False)


def _channels(walk: Walk, example_input: Example, model: nn.Module) -> Channels:
    in_code = list(_in_code(walk, model))
    layers = [*_layers(walk), *(layer for layer, *_ in in_code)]
    in_layers = set().union(*(lay.variables(side) for layer in layers for side in layer[2:]))
    for axis in all_axes(walk.tensors.values()):
        if not lay.variables(axis) <= in_layers:
            lay.fix(axis, "no layer has these channels")
    sides = _Sides(layers)
    inputs = {layer.name: sides.of(layer.before) for layer in layers}
    outputs = {layer.name: sides.of(layer.after) for layer in layers}
    groups = dict.fromkeys(g for n in inputs for g in inputs[n].groups + outputs[n].groups)
    nodes = [node for graph in walk.graphs for node in graph.graph.nodes]
    options = tuple(
        (option, sides.of(walk.axes[node][dim]))
        for node in nodes
        for dim, option in node.meta.get("compared", ())
        if option == node.meta["shape"][dim] and lay.free(walk.axes[node][dim])
    )
    mixing = list(sides.mixing(walk))
    sums = {  # the graph of training has the same
        (each.path, *each.places.tolist()): each for each in mixing if isinstance(each, Sum)
    }
    # Of several tensors the first, as in a cost.
    first = {node: next(iter(tensors_of(axes)), None) for node, axes in walk.axes.items()}
    sizes: list[dict[str, Sizes]] = [{} for _ in walk.graphs]
    for node in nodes:
        if (axes := first.get(node)) is not None:
            sizes[walk.graphs.index(node.graph.owning_module)][node.name] = sides.sizes(axes)
    return Channels(
        graphs=tuple(walk.graphs),
        example_input=example_input,
        groups=tuple(groups),
        inputs=inputs,
        outputs=outputs,
        literals=tuple(sides.literals(walk)),
        options=options,
        mixing=tuple(each for each in mixing if isinstance(each, Mixing)),
        sums=tuple(sums.values()),
        sizes=tuple(sizes),
        tensors={path: sides.sizes(axes) for path, axes in walk.tensors.items()},
        in_code={layer.name: (path, module) for layer, path, module in in_code},
        only_code=walk.only_code,
        n_parameters=sum(p.numel() for p in model.parameters()),
    )


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
