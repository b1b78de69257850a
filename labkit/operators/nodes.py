"""Small questions about a node of a traced graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg

# Where a number stands in the arguments of a call: keys, indices, `"start"` or `"stop"` of a slice.
Path = Sequence[str | int]


class Size(int):
    """A size that was read off a tensor, or follows from one: `x.size(1) // 2` is such a size.

    Attributes:
        axis: The node and the axis that it is the size of, where it was read off.
        proxy: What stands for it while its network is traced, where it changes with the batch.
    """

    axis: tuple[Node, int] | None = None
    proxy: Any = None

    def __fx_create_arg__(self, tracer: object) -> Any:
        """Returns what stands for it in the arguments of a node: torch.fx asks."""
        return self if self.proxy is None else self.proxy.node


def _arithmetic(name: str, reflected: bool) -> Callable[[Size, Any], Any]:
    on_integers = getattr(int, f"__{'r' if reflected else ''}{name}__")

    def method(self: Size, other: Any) -> Any:
        result = on_integers(self, other)
        if result is NotImplemented:  # a tensor, or no whole number
            return result
        proxies = [n.proxy for n in (self, other) if isinstance(n, Size) and n.proxy is not None]
        if not proxies:
            return Size(result)
        operands = (other, self) if reflected else (self, other)
        function = getattr(operator, name)
        return proxies[0].tracer.create_proxy("call_function", function, operands, {})

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Size, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(Size, f"__r{_name}__", _arithmetic(_name, reflected=True))


class Option(int):
    """A number that a module has as an attribute.

    Attributes:
        path: The module.
        key: The attribute.
        index: Where it is in the attribute, which is a tuple.
    """

    path: str
    key: str
    index: int | None = None


def _comparison(name: str) -> Callable[[int, Any], Any]:
    def method(self: int, other: Any) -> Any:
        for size, option in ((self, other), (other, self)):
            if isinstance(size, Size) and isinstance(option, Option) and size.axis is not None:
                node, dim = size.axis
                node.meta.setdefault("compared", []).append((dim, option))
        return getattr(int, name)(self, other)

    return method


_compared = {name: _comparison(name) for name in ("__eq__", "__ne__")}
for _name, _method in {**_compared, "__hash__": int.__hash__}.items():
    setattr(Size, _name, _method)
    setattr(Option, _name, _method)


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


def has_hooks(module: nn.Module) -> bool:
    """Returns whether something runs before or after a module's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


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


def called(node: Node) -> str:
    """Returns the name of the function or method that a node calls, `mul` for `*`."""
    return str(getattr(node.target, "__name__", node.target))


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a function, or of a method whose first one is the tensor itself."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def path_of(node: Node, index: int, name: str) -> Path:
    """Returns where an argument stands that `argument` returns."""
    return ("args", index) if index < len(node.args) else ("kwargs", name)


def argument_at(node: Node, path: Path) -> Any:
    """Returns what stands at a path of a call's arguments, `None` where nothing does."""
    value: Any = {"args": node.args, "kwargs": node.kwargs}
    for key in path:
        try:
            value = getattr(value, str(key)) if isinstance(value, slice) else value[key]
        except (IndexError, KeyError, TypeError):
            return None
    return value


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
    found = (re.search(r"(\d)d(_with_indices)?$", each.__name__) for each in named)
    return next(int(match[1]) for match in found if match)
