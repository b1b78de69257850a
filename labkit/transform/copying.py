"""Copies of networks, and graphs that are given the layers of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.node import map_aggregate

from labkit.errors import LabkitError
from labkit.operators.weights import in_place_of

Known = Mapping[str, type[nn.Module]]
Constants = Mapping[str, torch.Tensor]


def all_tensors(value: Any) -> list[torch.Tensor]:
    """Returns the tensors in nested containers."""
    found: list[torch.Tensor] = []
    map_aggregate(
        value, lambda each: found.append(each) if isinstance(each, torch.Tensor) else None
    )
    return found


def copied(model: nn.Module, copy_of: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns a copy of a network, whose tensors are what `copy_of` makes of each.

    Raises:
        LabkitError: The network cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in all_tensors([*vars(module).values()]):
            if id(tensor) not in memo:
                memo[id(tensor)] = in_place_of(tensor, copy_of(tensor.detach()))
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise LabkitError(f"model: {type(model).__name__} cannot be copied: {error}") from error


def assembled(model: nn.Module, graph: Graph, known: Known, constants: Constants) -> GraphModule:
    """Returns a graph with the layers and tensors of the network that it is of.

    Args:
        model: That network.
        graph: Its graph.
        known: `Tracer.known`: these layers become what they inherit from, with the same
            parameters.
        constants: Tensors that only the code has.
    """
    root = nn.Module.__new__(nn.Module)
    vars(root).update(vars(model), _buffers={**model._buffers, **constants})
    traced = GraphModule(root, graph, class_name=type(model).__name__)
    for path, kind in known.items():
        layer = kind.__new__(kind)
        layer.__dict__ = vars(model.get_submodule(path))
        traced.set_submodule(path, layer)
    own = {path: type(model.get_submodule(path)) for path in known}
    traced.meta |= {"known": known, "constants": constants, "classes": own}
    return traced
