"""Channel groups: which sides of which layers must have the same width, from the dataflow.

A layer's *side* is its input or its output. Two sides belong to one group when some tensor joins
them, so a group is the smallest thing whose width can change without breaking the network. A side
may be made of several groups, one after the other, as behind a concatenation.

What each operator does to channels is its own knowledge (`labkit.operators`); here is the walk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError
from labkit.operators import layout as lay
from labkit.operators.base import Call, Operator, operator_of, scalable_modules
from labkit.operators.layout import Layout, Var
from labkit.operators.nodes import (
    Option,
    Size,
    argument_at,
    describe,
    is_shape,
    module_of,
)
from labkit.operators.shaping import Attribute, Creation, Reshape, Unflatten
from labkit.transform.graph import (
    CONSTANT,
    Example,
    example_input_for,
    layer_nodes,
    rooted,
    takes_more,
    trace,
    unwrapped,
)
from labkit.transform.groups import ChannelGroup, Channels, Literal, Mixing, Part, Side, Sizes
from labkit.transform.sums import Sum, find_sum


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
    walk = _walked(*_graphs(model, example_input))
    return walk.channels(example_input, sum(p.numel() for p in model.parameters()))


def _graphs(model: nn.Module, example_input: Example) -> tuple[list[GraphModule], str | None]:
    """Returns the network's graph, and that in training where it is another one.

    Also why no graph can replace the network's code, if so.
    """
    traced = training = trace(model, example_input)
    try:
        if traced.meta["reads mode"]:
            training = trace(model, example_input, training=True)
    except LabkitError:
        layers = {str(node.target) for node, _ in layer_nodes(traced)}
        for path, module in model.named_modules():
            if path not in layers and isinstance(module, scalable_modules()):
                raise
        return [traced], "its code in training cannot be traced"
    for node, other in itertools.zip_longest(traced.graph.nodes, training.graph.nodes):
        if node is None or other is None or _in_words(node) != _in_words(other):
            where = describe(other if node is None else node)
            hint = "; use nn.Dropout" if "dropout" in where else ""
            return [traced, training], f"{where} does something else in training{hint}"
    if any(node.meta.get("one size") for node in traced.graph.nodes) and takes_more(
        model, example_input
    ):
        return [traced], "it computes with the size of the batch"
    return [traced], None


def _in_words(node: Node) -> tuple[str, ...]:
    return node.op, str(node.target), str(node.args), str(node.kwargs)


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
        elif unknown := _unknown_tensors(module, operator, used, inner):
            names = ", ".join(f"'{name}'" for name in unknown)
            reasons[path] = f"labkit does not know what {names} of '{node.name}' follows"
    return reasons


def _tensors_in(traced: GraphModule) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers that code uses outside of layers that labkit knows."""
    paths = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    return {path: attrgetter(path)(traced) for path in paths}


def _unknown_tensors(
    module: nn.Module, operator: Operator, used: set[int], inner: tuple[str, ...]
) -> list[str]:
    """Returns the tensors of a layer that neither its operator, nor inner layers, nor code has."""
    if type(operator).carry is not Operator.carry:
        return []
    tensors = *module.named_parameters(), *module.named_buffers()
    return [
        name
        for name, tensor in tensors
        if tensor.ndim and name not in operator.tensors and id(tensor) not in used
        if not name.startswith(inner)
    ]


class _Layer(NamedTuple):
    name: str
    weighted: bool  # it writes its output channels, and reads its input channels
    before: Layout
    after: Layout


# The name of a node, and which axis of its tensor is one of heads.
_Heads = frozenset[tuple[str, int]]


def _walked(graphs: Sequence[GraphModule], only_code: str | None) -> _Walk:
    """Walks twice where there are heads: where a tensor is dealt out, it is not known what for."""
    walk = _Walk(graphs, only_code)
    heads = walk.batches()
    while heads:
        walk = _Walk(graphs, only_code, heads)
        still = frozenset(h for h in heads if h in walk.batches())
        if still == heads:
            return walk
        heads = still
    return _Walk(graphs, only_code)


class _Walk:
    """One walk over the graphs that says what each axis of each tensor is made of.

    Args:
        graphs: The graphs.
        only_code: Why no graph can stand for the network's code, or `None`.
        heads: Axes that are known to be heads, whose number can change.
    """

    def __init__(
        self,
        graphs: Sequence[GraphModule],
        only_code: str | None,
        heads: _Heads = frozenset(),
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
                if shape is not None:
                    self.axes[node] = self.tensors[str(node.target)]
            case "output":
                for axis in _all_axes(inputs):
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
        except (TypeError, ValueError, IndexError, AttributeError, KeyError):
            return None  # it was asked with arguments that its operator does not expect
        for path, sizes in call.literals if self.only_code is not None else ():
            given = argument_at(call.node, path)
            numbers = given if isinstance(given, tuple | list) else [given]
            if not all(isinstance(number, Size | Option) for number in numbers):
                why = f"{describe(call.node)} has it as a number, and {self.only_code}"
                for axis in sizes if isinstance(sizes, list) else [sizes]:
                    lay.fix(axis, why, unknown=True)
        return axes

    def batches(self) -> _Heads:
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

    def layers(self) -> Iterator[_Layer]:
        """Yields each layer that has channels."""
        calls = {n.name: (n, m) for n, m in itertools.chain(*map(layer_nodes, self.graphs[::-1]))}
        for node, module in itertools.chain(*map(layer_nodes, self.graphs)):
            if calls.pop(node.name, None) is None:  # in the graph of training, too
                continue
            sides, operator = self.sides[str(node.target)], operator_of(module)
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
        sides = (side for layer in layers for side in (layer.before, layer.after))
        in_layers = set().union(*map(lay.variables, sides))
        for axis in _all_axes(self.tensors.values()):
            if not lay.variables(axis) <= in_layers:
                lay.fix(axis, "no layer has these channels")
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
                self.graphs.index(call.node.graph.owning_module),
                call.node.name,
                tuple(path),
                tuple(map(side_of, axis)) if isinstance(axis, list) else side_of(axis),
            )
            for call in self.calls
            for path, axis in call.literals
        )
        options = tuple(
            (option, side_of(self.axes[node][dim]))
            for graph in self.graphs
            for node in graph.graph.nodes
            for dim, option in node.meta.get("compared", ())
            if option == node.meta["shape"][dim] and lay.free(self.axes[node][dim])
        )
        mixing = tuple(
            Mixing(describe(call.node), side_of(axis), averages)
            for call in self.calls
            for axis, averages in call.mixing
            if lay.free(axis)
        )
        sums: dict[Any, Sum] = {}  # the graph of training has the same
        for call in self.calls:
            for summed in (each for each in call.sums if lay.free(each.axis)):
                side = side_of(summed.axis)
                if (found := find_sum(call.node, summed, side)) is not None:
                    sums[found.path, tuple(found.places.tolist())] = found
                else:
                    mixing += (Mixing(describe(call.node), side, averages=False),)

        def sizes(axes: list[Layout]) -> Sizes:
            return tuple(side_of(a) if lay.free(a) else lay.size(a) for a in axes)

        # Of several tensors the first, as in a cost.
        first = {node: next(iter(_tensors(axes)), None) for node, axes in self.axes.items()}
        shapes = tuple(
            {
                node.name: sizes(axes)
                for node in graph.graph.nodes
                if (axes := first.get(node)) is not None
            }
            for graph in self.graphs
        )
        tensors = {path: sizes(axes) for path, axes in self.tensors.items()}
        return Channels(
            tuple(self.graphs), example_input, tuple(order), inputs, outputs, literals, options,
            mixing,
            tuple(sums.values()), shapes, tensors, self.only_code, n_parameters,
        )  # fmt: skip


def _unknown(call: Call) -> Any:
    why = f"labkit does not know what {describe(call.node)} does to channels"
    for axis in (*_all_axes(call.inputs), *(call.sides or ())):
        lay.fix(axis, why, unknown=True)
    return _fixed(call.shape, why, unknown=True)


def _fixed(shape: Any, why: str, unknown: bool = False) -> Any:
    if isinstance(shape, Mapping):
        return {key: _fixed(part, why, unknown) for key, part in shape.items()}
    if not is_shape(shape):
        return tuple(_fixed(part, why, unknown) for part in shape or ())
    return [lay.constant(size, why, unknown) for size in shape]


def _tensors(axes: Any) -> Iterator[list[Layout]]:
    """Yields the axes of each of several tensors."""
    if isinstance(axes, list):
        yield axes
    else:
        for part in axes.values() if isinstance(axes, Mapping) else axes:
            yield from _tensors(part)


def _all_axes(inputs: Iterable[Any]) -> Iterator[Layout]:
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
