"""Small questions about a node of a traced graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg


class Size(int):
    """A size that was read off a tensor, or follows from one: `x.size(1) // 2` is such a size."""

    def __floordiv__(self, other: Any) -> int:
        return Size(int(self) // other) if isinstance(other, int) else NotImplemented

    def __mul__(self, other: Any) -> int:
        return Size(int(self) * other) if isinstance(other, int) else NotImplemented

    __rmul__ = __mul__


def is_shape(shape: Any) -> bool:
    """Returns whether `meta["shape"]` of a node is that of one tensor."""
    return isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)


def module_of(node: Node, root: nn.Module | None = None) -> nn.Module | None:
    """Returns the layer that a node calls; `None` where it calls a function or method.

    It is one of `root`, by default the network whose graph has the node.
    """
    root = root or node.graph.owning_module
    if node.op != "call_module" or root is None:
        return None
    return root.get_submodule(str(node.target))


def describe(node: Node, root: nn.Module | None = None) -> str:
    """Returns a node the way an error message names it: its name and what it calls."""
    module = module_of(node, root)
    if module is not None:
        called: object = type(module).__name__
    elif node.op == "call_function":
        called = torch.typename(node.target)
    else:
        called = node.target
    return f"'{node.name}' ({called})"


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a function, or of a method whose first one is the tensor itself."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def run(node: Node, module: nn.Module | None, value: Callable[[], torch.Tensor]) -> Any:
    """Returns what a call makes of other tensors, each made by `value`, than those it reads."""
    args: Any = map_arg(node.args, lambda _: value())
    kwargs: Any = map_arg(node.kwargs, lambda _: value())
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    called: Any = node.target if module is None else module
    return called(*args, **kwargs)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Returns a list as a tuple, and one thing as a tuple of it."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def spatial_rank(called: Any) -> int:
    """Returns how many last axes a layer or function works on: 2 for `Conv2d`, as its name says."""
    named = type(called).__mro__ if isinstance(called, nn.Module) else (called,)
    found = (re.search(r"(\d)d$", each.__name__) for each in named)
    return next(int(match[1]) for match in found if match)
