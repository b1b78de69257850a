"""What of a network under other widths is not in its layers: free tensors, and numbers in its code.

A network that was given other widths is traced anew, and its graph compared with the one that is
wanted. So what its code makes of the widths is known, and a broken network is never returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError
from labkit.operators.base import inherited
from labkit.operators.nodes import Option, argument_at, as_tuple, called, describe, is_shape
from labkit.operators.weights import in_place_of, set_width
from labkit.transform.copying import all_tensors, assembled
from labkit.transform.graph import trace
from labkit.transform.groups import Channels, Copies, Literal, Side, Sizes, size_in
from labkit.transform.sums import DIVISIONS, PRODUCTS

REFUSAL = "model: its code does not work with other widths"


def carry_tensor(model: nn.Module, path: str, axes: Sizes, chosen: Copies) -> nn.Module:
    """Gives a parameter or buffer that the code uses by itself other widths; in place.

    Returns:
        The module that has it.
    """
    module_path, _, name = path.rpartition(".")
    owner = model.get_submodule(module_path)
    tensor = new = getattr(owner, name)
    with torch.no_grad():
        for dim, axis in enumerate(axes):
            if isinstance(axis, Side):
                new = new.index_select(dim, axis.positions(chosen).to(new.device))
    setattr(owner, name, in_place_of(tensor, new))
    operator = inherited(owner)
    kinds = operator.tensors.get(name, ())
    for key, kind in operator.attributes.items():
        if kind in kinds and isinstance(axes[dim := kinds.index(kind)], Side):
            set_width(owner, key, new.shape[dim])
    return owner


def _kept(model: nn.Module) -> str:
    """Says which attributes of modules hold tensors that no width is known of, such as a cache."""
    kept = [
        f"'{path}.{key}'".replace("'.", "'")
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules") and all_tensors(value)
    ]
    return f"; what it keeps in {', '.join(kept)} may be of the old widths" if kept else ""


class Change(NamedTuple):
    """What a network's code does otherwise under other widths.

    Attributes:
        reason: It in words.
        node: The call that has another number, by its name.
        factor: What undoes it, where that multiplies or divides by the number.
    """

    reason: str
    node: str = ""
    factor: float | None = None


def fitted_to(
    model: nn.Module, channels: Channels, widths: Mapping[str, int]
) -> tuple[nn.Module, list[Change]]:
    """Returns a network with the numbers in its code that the widths of its layers ask for.

    Args:
        model: The network, whose layers and tensors have these widths; it may be changed.
        channels: Those that it had before.
        widths: Group name → width.

    Returns:
        The same network where its code reads sizes off tensors or attributes, otherwise a
        `GraphModule`; and each number or branch of its code that became another.

    Raises:
        LabkitError: The code does not work with these widths.
    """
    _set_options(model, channels, widths)
    known = _fitting.setdefault(channels, set())
    if (plan := tuple(widths.items())) in known:  # with another seed
        return model, []
    found = _Comparison(model, channels, widths)
    if not found.wrong and not found.reasons:
        known.add(plan)
    if not found.wrong:
        return model, found.reasons
    if channels.only_code is not None or not channels.literals:
        raise LabkitError(f"{REFUSAL}: {found.wrong}{_kept(model)}")
    graph = copy.deepcopy(channels.traced.graph)
    nodes = {node.name: node for node in graph.nodes}
    for literal in channels.literals:
        node = nodes[literal.node]
        arguments = {"args": node.args, "kwargs": node.kwargs}
        value = literal.value_in(widths)
        node.args, node.kwargs = _replaced(arguments, literal.path, value).values()
    meta = channels.traced.meta
    new_model = assembled(model, graph, meta["known"], meta["constants"])
    found = _Comparison(new_model, channels, widths)
    if found.wrong:
        raise LabkitError(f"{REFUSAL}: {found.wrong}{_kept(model)}")
    return new_model, found.reasons


# The widths under which a network's code is as it was: a search builds them again.
_fitting: WeakKeyDictionary[Channels, set[tuple[tuple[str, int], ...]]] = WeakKeyDictionary()


class _Comparison:
    """The graphs of a network under other widths beside the ones that are wanted.

    Attributes:
        wrong: What is not as it is wanted, in words, or `None`.
        reasons: What is another number or branch.
    """

    def __init__(self, model: nn.Module, channels: Channels, widths: Mapping[str, int]):
        self.wrong: str | None = None
        self.reasons: list[Change] = []
        for i, graph in enumerate(channels.graphs):
            try:
                new = trace(model, channels.example_input, training=i > 0)
            except LabkitError as error:
                self.wrong = str(error).removeprefix("model: ")
                return
            literals = [each for each in channels.literals if each.graph == i]
            self.compare(graph, new, literals, channels.sizes[i], widths)

    def compare(
        self,
        graph: GraphModule,
        new_graph: GraphModule,
        literals: list[Literal],
        sizes: Mapping[str, Sizes],
        widths: Mapping[str, int],
    ) -> None:
        nodes, new_nodes = list(graph.graph.nodes), list(new_graph.graph.nodes)
        for node, new in zip(nodes, new_nodes):
            if (node.op, str(node.target)) != (new.op, str(new.target)):
                self.reasons.append(Change(f"the code takes another way at {describe(node)}"))
                nodes, new_nodes = nodes[-1:], new_nodes[-1:]
                break
        for node, new in zip(nodes, new_nodes):
            own = [literal for literal in literals if literal.node == node.name]
            for literal in own:
                given, wanted = argument_at(new, literal.path), literal.value_in(widths)
                if not _same(given, wanted):
                    self.wrong = f"{describe(node)} has {given} as a number, expected {wanted}"
            if node.name in sizes and is_shape(new.meta["shape"]):
                shape = tuple(size_in(size, widths) for size in sizes[node.name])
                if new.meta["shape"] != shape:
                    self.wrong = f"{describe(node)} puts out {new.meta['shape']}, expected {shape}"
            if node.meta["shape"] is None:  # a size is computed
                continue
            before, after = dict(_leaves(node)), dict(_leaves(new))
            for path, value in before.items():
                known = any(path[: len(each.path)] == each.path for each in own)
                if not known and isinstance(value, int | float) and value != after.get(path):
                    change = f"{value:g} became {after.get(path)}"
                    reason = f"{describe(node)} has a number of the widths: {change}"
                    ratio = value / after[path] if value and after.get(path) else None
                    if ratio and called(node) in DIVISIONS and path == ("args", 1):
                        ratio = 1 / ratio
                    elif called(node) not in PRODUCTS:
                        ratio = None
                    self.reasons.append(Change(reason, node.name, ratio))


def _leaves(node: Node) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yields each argument of a call that is no container, with its path."""

    def walk(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, Any]]:
        if isinstance(value, slice):
            value = {"start": value.start, "stop": value.stop, "step": value.step}
        if isinstance(value, tuple | list):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            yield path, value
            return
        for key, each in value.items():
            yield from walk(each, (*path, key))

    yield from walk({"args": node.args, "kwargs": node.kwargs}, ())


def _set_options(model: nn.Module, channels: Channels, widths: Mapping[str, int]) -> None:
    """Gives modules the numbers that their code reads off them."""
    wanted = [(option, side.width_in(widths)) for option, side in channels.options]
    for literal in channels.literals:
        nodes = channels.graphs[literal.graph].graph.nodes
        node = next(node for node in nodes if node.name == literal.node)
        given, size = argument_at(node, literal.path), literal.value_in(widths)
        pairs = zip(as_tuple(given), as_tuple(size))
        wanted += [(number, value) for number, value in pairs if isinstance(number, Option)]
    for option, value in wanted:
        module, new = model.get_submodule(option.path), value
        if option.index is not None:
            new = _replaced(getattr(module, option.key), (option.index,), value)
        setattr(module, option.key, new)


def _same(given: Any, wanted: Any) -> bool:
    """Whether a size, or a list of sizes that one number may stand for, is what it should be."""
    if isinstance(wanted, list) and isinstance(given, int):
        return all(size == given for size in wanted)
    return as_tuple(given) == as_tuple(wanted)


def _replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Returns arguments with what stands at a path replaced."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop, str(key): new}
        return slice(bounds["start"], bounds["stop"], value.step)
    inner = _replaced(value[key], tuple(rest), new)
    if isinstance(value, Mapping):
        return {**value, key: inner}
    return type(value)(inner if i == key else item for i, item in enumerate(value))
