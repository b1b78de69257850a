"""Which operator is known for what a network calls; users register theirs."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.fx import Node

from labkit.errors import LabkitError
from labkit.operators.base import Modules, Operator
from labkit.operators.nodes import module_of

_modules: dict[type[nn.Module], Operator] = {}
_functions: dict[Callable[..., Any] | str, Operator] = {}
Kind = TypeVar("Kind", bound=type[Operator])


def register_operator(kind: Kind) -> Kind:
    """Makes an operator known: tracing, channels, weights, cost and stacks ask it from now on.

    Its layers become single nodes of a traced graph, and so do its functions where they are global
    names of the module whose code calls them.

    Example:
        >>> @register_operator
        ... class Scaling(Operator):
        ...     functions = (scale,)
        ...     def flow(self, call):
        ...         return call.x
        ...     def flops(self, node, module, read, written):
        ...         return math.prod(written)

    Args:
        kind: A subclass of `Operator`; it takes over what another one was registered for.

    Returns:
        The same class.

    Raises:
        LabkitError: It is no such class, or is for nothing.
    """
    if not (isinstance(kind, type) and issubclass(kind, Operator)):
        raise LabkitError(f"register_operator: expected a subclass of Operator, got {kind!r}")
    if not (kind.modules or kind.functions):
        raise LabkitError(f"{kind.__name__}: expected modules or functions that it is for")
    operator = kind()
    _modules.update(dict.fromkeys(kind.modules, operator))
    _functions.update(dict.fromkeys(kind.functions, operator))
    return kind


def operator_of(called: Node | nn.Module | Callable[..., Any] | str) -> Operator | None:
    """Returns the operator of a call in a graph, a layer, a function, or a method by its name.

    `None` is that of which labkit knows nothing.
    """
    if isinstance(called, Node):
        if called.op not in ("call_module", "call_function", "call_method"):
            return None
        called = module_of(called) or called.target
    if not isinstance(called, nn.Module):
        return _functions.get(called)
    kind = _registered(called)
    return None if kind is None else _modules[kind].variant(called)


def _registered(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type(module).__mro__ if kind in _modules), None)


def has_own_forward(module: nn.Module) -> bool:
    """Returns whether a layer computes something else than the class that has the operator."""
    kind = _registered(module)
    return kind is not None and type(module).forward is not kind.forward


def scalable_modules() -> Modules:
    """Returns the classes of layers that a configuration can scale."""
    return tuple(kind for kind, operator in _modules.items() if operator.scalable)


def leaf_functions() -> tuple[Callable[..., Any], ...]:
    """Returns the functions, other than PyTorch's, that are one node of a traced graph each."""
    return tuple(
        function
        for function in _functions
        if isinstance(function, types.FunctionType) and not function.__module__.startswith("torch")
    )
