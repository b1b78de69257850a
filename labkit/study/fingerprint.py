"""What a study *is*: the network, the data, the settings and the definitions that it depends on.

Results may be looked up only where all of that is equal. It is kept in parts, so that a refusal can
say in words what differs.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import json
import pickle
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from labkit.operators import operator_of
from labkit.transform.channels import Channels


@dataclass(frozen=True)
class Identity:
    """All that the results of a study depend on: what must agree to continue it.

    Attributes:
        settings: The configuration, flat; those of a larger budget left out.
        network: What the network computes; see `network_identity`.
        data: A hash of the rows.
        definitions: Name of a runner, a metric, a loss or the space → a hash of its code.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    definitions: Mapping[str, str] = field(default_factory=dict)


def network_identity(channels: Channels, *, with_weights: bool = False) -> dict[str, str]:
    """Returns what a network computes, in parts: forward, layers, functions and constants.

    Args:
        channels: The traced network.
        with_weights: Whether training starts from its parameters, and not from fresh ones.
    """
    traced = channels.traced
    parts = {"forward": _digest("".join(graph.code for graph in channels.graphs))}
    for node in traced.graph.nodes:
        if node.op == "call_function" and not _is_library(node.target):
            parts[f"function {node.name}"] = definition(node.target)
        operator = operator_of(node)
        if operator is not None and not _is_library(type(operator)):
            parts[f"operator {type(operator).__name__}"] = definition(type(operator))
        if node.op == "placeholder":
            parts[f"input {node.name}"] = str(node.meta["shape"][1:])
    for name, (node, layer) in channels.calls.items():
        own = traced.meta["classes"].get(str(node.target), type(layer))
        parts[f"layer {name}"] = _layer(layer, own)
    # What `initialise` leaves as it is: masks, tables and other constants.
    for path, module in traced.named_modules():
        fresh = callable(getattr(module, "reset_parameters", None))
        tensors: list[tuple[str, torch.Tensor]] = []
        if with_weights or not fresh:
            tensors += module.named_buffers(recurse=False)
        if with_weights:
            tensors += module.named_parameters(recurse=False)
        for name, tensor in tensors:
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            full_name = f"{path}.{name}".lstrip(".")
            parts[f"constant {full_name}"] = _digest(
                f"{tuple(tensor.shape)} {tensor.dtype} ", data.numpy().tobytes()
            )
    return parts


def _layer(layer: nn.Module, own: type[nn.Module]) -> str:
    if _is_library(own):
        return repr(layer)
    # A layer of the user's own: its class, and what it was made with.
    made_with = {key: _plain(value) for key, value in vars(layer).items() if key != "training"}
    return f"{layer!r} {_digest(repr(made_with))} {definition(own)}"


def definition(thing: Any) -> str:
    """Returns a hash of a function's or class's code, and of the user's own code that it calls."""
    return _digest(*_definitions(thing, set()))


def definition_of_own(function: Any) -> str:
    """Returns the `definition` of a loss or a metric, which may be a partial, or a library's."""
    code = definition(getattr(function, "func", function))
    kind = type(function).__module__.split(".")[0]  # others' objects may change as they are called
    if _is_library(function) and kind in ("builtins", "functools", "torch"):
        with contextlib.suppress(Exception):  # of one that cannot be pickled, its code has to do
            _Held(held := io.BytesIO()).dump(function)
            return _digest(code, held.getvalue())
    return code


class _Held(pickle.Pickler):
    """Pickles tensors by their numbers: PyTorch names their memory, too."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return bytes, (obj.detach().cpu().numpy().tobytes(),)
        return NotImplemented


def _definitions(thing: Any, seen: set[int]) -> Iterator[str]:
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if id(thing) in seen or isinstance(thing, ModuleType):
        return
    seen.add(id(thing))
    if (plain := _plain(thing)) is not None:
        yield plain
    elif isinstance(thing, staticmethod | classmethod | property):
        inner = thing.fget if isinstance(thing, property) else thing.__func__
        yield from _definitions(inner, seen)
    elif _is_library(thing):
        return
    elif isinstance(thing, type):
        for part in (*vars(thing).values(), *thing.__bases__):
            yield from _definitions(part, seen)
    elif isinstance(thing, FunctionType):
        yield _source(thing)
        cells = [c.cell_contents for c in thing.__closure__ or () if not _is_empty(c)]
        named = [thing.__globals__[n] for n in _names(thing.__code__) if n in thing.__globals__]
        for used in (*(thing.__defaults__ or ()), *cells, *named):
            yield from _definitions(used, seen)
    else:  # an object, such as one with `__call__`
        yield from _definitions(type(thing), seen)


def _plain(value: Any) -> str | None:
    """Returns a number, a text, or a table of such, as text that is the same in every process."""
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(value, sort_keys=True)
    return None


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _source(function: FunctionType) -> str:
    """Returns the source without comments and layout; the bytecode where there is none."""
    with contextlib.suppress(OSError, SyntaxError, TypeError):
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    return _bytecode(function.__code__)


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_library(thing: Any) -> bool:
    """Whether something is not the user's to edit: Python's, labkit's, or installed."""
    name = getattr(thing, "__module__", None) or type(thing).__module__
    top = name.split(".")[0]
    if top == "__main__":
        return False
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return top in sys.stdlib_module_names or top == "labkit" or "site-packages" in file


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def difference(known: Identity, new: Identity) -> str | None:
    """Returns the first difference of two identities in words, `None` where they are equal.

    Args:
        known: Of the study that exists.
        new: Of the search that is to continue it.

    Returns:
        Such as `"seed: a search with 42, not 43"`; it begins with the key that differs.
    """
    for key, old, now in _changes(known.settings, new.settings):
        return f"{key}: a search with {old!r}, not {now!r}"
    # The smallest piece says most; the code of forward names its layers, and differs with them.
    order = ("layer", "operator", "function", "constant", "input", "forward")
    changes = [key for key, *_ in _changes(known.network, new.network)]
    for key in sorted(changes, key=lambda key: order.index(key.split()[0])):
        what, _, name = key.partition(" ")
        named = f"{what} {name!r}" if name else what
        return f"model: a search of another network, whose {named} changed"
    if known.data != new.data:
        return "data: a search on other data"
    for key, *_ in _changes(known.definitions, new.definitions):
        return f"{key}: a search by another definition of it, which changed"
    return None


def _changes(
    known: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterable[tuple[str, object, object]]:
    for key in dict.fromkeys([*known, *new]):
        if known.get(key) != new.get(key):
            yield key, known.get(key), new.get(key)
