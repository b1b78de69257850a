"""A plan becomes a network: a copy of the one that it is for, with other widths."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any
from typing import Literal as OneOf

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError
from labkit.operators.nodes import describe
from labkit.operators.registry import operator_of
from labkit.transform.channels import find_channels
from labkit.transform.graph import Example, layer_nodes, trace
from labkit.transform.groups import Channels, Copies, Literal, Side
from labkit.transform.plan import Plan, Resolution, widths_of

Weights = OneOf["fresh", "keep"]


def apply(
    model: nn.Module,
    plan: Plan | Resolution,
    *,
    channels: Channels | None = None,
    example_input: Example | None = None,
    weights: Weights = "fresh",
    seed: int | None = None,
    noise: float = 0.0,
) -> nn.Module:
    """Returns a copy of the network with the widths of a plan.

    Layers whose width does not change keep their weights.

    Args:
        model: The network that the plan was resolved for; it is not changed.
        plan: A plan for this network.
        channels: The network's channel groups, if they were found before.
        example_input: As `find_channels` takes it.
        weights: `"fresh"`: layers whose width changes start as they would by themselves. `"keep"`:
            they carry their weights over, so that a wider network computes what it did; a narrower
            layer keeps the channels whose weights have the largest norm.
        seed: Of fresh weights and of noise; by default PyTorch's own generator draws them.
        noise: With `"keep"`, added to the weights that write a copied channel, so that training can
            tell it from its original: a share of their standard deviation.

    Returns:
        A network of the same class; a `GraphModule` where a size that its code has as a number, as
        in `view(-1, 512 * 4 * 4)`, had to follow a width.

    Raises:
        LabkitError: The plan names other channel groups than the network has, or a width that its
            group cannot have.
    """
    if weights not in ("fresh", "keep"):
        raise LabkitError(f"weights: expected 'fresh' or 'keep', got {weights!r}")
    channels = find_channels(model, example_input) if channels is None else channels
    widths = widths_of(channels, plan)
    keep = weights == "keep"
    chosen = copies(channels, widths, model if keep else None)
    new_model = copy.deepcopy(model)
    done = set()  # a shared module is called more than once
    with _seeded(seed):
        for node, module in layer_nodes(channels.traced):
            operator = operator_of(module)
            if operator is None or operator.sides(module) is None or module in done:
                continue
            done.add(module)
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            if not any(group.name in chosen for group in before.groups + after.groups):
                continue
            layer = new_model.get_submodule(str(node.target))
            places = before.positions(chosen), after.positions(chosen)
            operator.carry(layer, *places, noise if keep else 0.0)
            if not keep and callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return _with_literals(new_model, channels, widths) if chosen else new_model


def copies(channels: Channels, widths: Mapping[str, int], model: nn.Module | None = None) -> Copies:
    """Returns, for each group whose width changes, which unit each new one copies.

    Copies are shared out evenly: unit j is a copy of unit j modulo their old number.

    Args:
        channels: The network's channel groups.
        widths: Group name → new width.
        model: The network whose largest channels a narrower group keeps; without it, it keeps its
            first ones.
    """
    chosen: dict[str, torch.Tensor] = {}
    norms: dict[str, torch.Tensor] = {}
    for group in channels.free:
        before, after = group.n_units, widths[group.name] // group.multiple
        if after < before and model is not None:
            norms = norms or _norms(model, channels)
            chosen[group.name] = norms[group.name].topk(after).indices.sort().values
        elif after != before:
            chosen[group.name] = torch.arange(after) % before
    return chosen


def _norms(model: nn.Module, channels: Channels) -> dict[str, torch.Tensor]:
    """Returns, for each group, the squared norm of all weights that write each of its units."""
    norms = {g.name: torch.zeros(g.n_units) for g in channels.groups}
    for node, module in layer_nodes(channels.traced):
        operator = operator_of(module)
        if operator is None or not operator.writes:
            continue
        side, start = channels.outputs[node.name], 0
        by_output = operator.norms(model.get_submodule(str(node.target))).expand(side.width)
        for part in side.parts:
            stop = start + part.group.n_units * part.inner
            norms[part.group.name] += by_output[start:stop].view(-1, part.inner).sum(1)
            start = stop
    return norms


def _with_literals(model: nn.Module, channels: Channels, widths: Mapping[str, int]) -> nn.Module:
    """Returns the resized network with the numbers in its code that the widths ask for."""
    # Also those that stay as they are: half of another width may be what the code computes.
    wanted = {
        (literal.node, literal.path): _value(literal, widths) for literal in channels.literals
    }
    if not wanted:
        return model
    try:  # code that reads its sizes off a tensor has them right by itself
        own = {node.name: node for node in trace(model, channels.example_input).graph.nodes}
        if all(
            node in own and _same(_at(own[node], path), value)
            for (node, path), value in wanted.items()
        ):
            return model
    except LabkitError:
        pass
    graph = copy.deepcopy(channels.traced.graph)
    for node in graph.nodes:
        if node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
            raise LabkitError(
                f"model: {describe(node, model)} keeps the mode in which it was traced where "
                "numbers in the code have to follow the widths; use nn.Dropout"
            )
        for (name, path), value in wanted.items():
            if node.name == name:
                arguments = {"args": node.args, "kwargs": node.kwargs}
                replaced = _replaced(arguments, path, value)
                node.args, node.kwargs = replaced["args"], replaced["kwargs"]
    return GraphModule(model, graph, class_name=type(model).__name__)


def _value(literal: Literal, widths: Mapping[str, int]) -> Any:
    if isinstance(literal.value, Side):
        return literal.value.width_in(widths)
    return [side.width_in(widths) for side in literal.value]


def _at(node: Node, path: tuple[str | int, ...]) -> Any:
    """Returns what stands at a path of a call's arguments, `None` where nothing does."""
    value: Any = {"args": node.args, "kwargs": node.kwargs}
    for key in path:
        try:
            value = getattr(value, str(key)) if isinstance(value, slice) else value[key]
        except (IndexError, KeyError, TypeError):
            return None
    return value


def _same(given: Any, wanted: Any) -> bool:
    """Whether a size, or a list of sizes that one number may stand for, is what it should be."""
    if isinstance(wanted, list) and isinstance(given, int):
        return all(size == given for size in wanted)
    return bool(given == wanted)


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


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draws from a seed, and leaves PyTorch's generator as it was; `None` draws from that one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Gives every layer the weights that PyTorch starts it with, from a seed; in place.

    Args:
        model: The network; modules without `reset_parameters` keep the weights that they have.
        seed: The same network and seed always give the same weights.

    Returns:
        The same network.
    """
    with _seeded(seed):
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return model
