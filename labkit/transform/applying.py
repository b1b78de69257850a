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
from labkit.transform.channels import Channels, Literal, Side, find_channels, has_widths
from labkit.transform.graph import Example, describe, layer_nodes, trace
from labkit.transform.plan import Plan, Resolution, widths_of
from labkit.transform.weights import copies, resize

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
            they carry their weights over, so that a wider network computes what it did; see
            `labkit.transform.weights`.
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
            if not has_widths(module) or module in done:
                continue
            done.add(module)
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            if any(group.name in chosen for group in before.groups + after.groups):
                layer = new_model.get_submodule(str(node.target))
                resize(layer, before, after, chosen, keep=keep, noise=noise if keep else 0.0)
    return _with_literals(new_model, channels, widths) if chosen else new_model


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
