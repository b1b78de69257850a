"""Tracing a network with torch.fx, and finding its layers by node name or module path."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.parameter import is_lazy

from labkit.errors import LabkitError, did_you_mean


def trace(model: nn.Module) -> GraphModule:
    """Returns the network as an fx graph; its modules are shared with `model`, not copied.

    Args:
        model: Any module that torch.fx can trace, or a `GraphModule`, which is returned as it is.

    Raises:
        LabkitError: The model is not a module, has lazy layers, or cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise LabkitError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LabkitError(f"model: {name} is not initialised; run one forward pass first")
    if isinstance(model, GraphModule):
        return model
    try:
        return symbolic_trace(model)
    # Tracing runs the user's own forward function, which may raise anything.
    except Exception as error:
        raise LabkitError(
            f"model: torch.fx cannot trace {type(model).__name__}: {error} "
            "(its forward must not branch on the values of tensors)"
        ) from error


def layer_nodes(traced: GraphModule) -> Iterator[tuple[Node, nn.Module]]:
    """Yields every call of a module, in graph order, with the module that it calls."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            yield node, traced.get_submodule(str(node.target))


def find_layer(traced: GraphModule, name: str) -> Node:
    """Returns the node of a layer given its fx name (`seq_blocks_2`) or path (`seq_blocks.2`).

    Raises:
        LabkitError: No layer has that name; the message names the closest one.
    """
    nodes = [node for node, _ in layer_nodes(traced)]
    for node in nodes:
        if name in (node.name, node.target):
            return node
    raise LabkitError(
        f"{name}: no such layer in the network; {did_you_mean(name, [n.name for n in nodes])}"
    )


def operator_name(module: nn.Module) -> str:
    """Returns the operator by which a configuration with `by = "type"` names this layer."""
    return type(module).__name__.lower()


def describe(node: Node) -> str:
    """Returns a node the way an error message names it: its name and what it calls."""
    if node.op == "call_module":
        module = node.graph.owning_module
        called: object = type(module.get_submodule(str(node.target))).__name__ if module else "?"
    elif node.op == "call_function":
        called = torch.typename(node.target)
    else:
        called = node.target
    return f"'{node.name}' ({called})"
