"""The tracer: it runs a network's code once, on a copy, beside two batches of different sizes.

The copy keeps what the code does to it from the network. A size that differs between the batches is
that of a batch, and stays symbolic; all others are numbers, so that the code may look at shapes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Hashable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from labkit.errors import LabkitError
from labkit.operators.base import kind_of, leaf_functions, operator_of
from labkit.operators.nodes import Option, Size, as_tuple, describe, has_hooks
from labkit.operators.shaping import Creation, Filling
from labkit.transform.copying import all_tensors

Batches = tuple[list[Any], list[Any]]  # the inputs of each

# What a tensor is asked for besides its elements.
METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_complex",
    "is_floating_point", "element_size", torch.numel, torch.is_complex, torch.is_floating_point,
}  # fmt: skip
CREATIONS = {*Creation.functions, *Filling.functions}
_missing = object()  # a value that the code computes for the first batch only


class _Value(Proxy):
    """What is being traced, with its value for each batch.

    The values are not the node's: they go when the code lets go of them.
    """

    by_batch: tuple[Any, Any]  # no name that a tensor's or tuple's field has

    @property
    def value(self) -> Any:
        return self.by_batch[0]

    def size(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        first, second = self.by_batch
        if dim % first.ndim == 0 if second is _missing else first.size(dim) != second.size(dim):
            return self.tracer.create_proxy("call_method", "size", (self, dim), {})
        size = Size(first.size(dim))
        size.axis = self.node, dim % first.ndim
        return size

    @property
    def shape(self) -> tuple[Any, ...]:
        return torch.Size([self.size(dim) for dim in range(self.value.ndim)])

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if isinstance(self.value, tuple) and (at := [x is found for x in self.value]).count(True):
            return self[at.index(True)]  # type: ignore[index]
        if isinstance(found, torch.Tensor | torch.device):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name) if callable(found) else found

    def __iter__(self) -> Iterator[Any]:
        items: Any = self  # a Proxy can be indexed, which its stub does not say
        if isinstance(self.value, tuple | list):
            return iter([items[index] for index in range(len(self.value))])
        if isinstance(self.value, torch.Tensor) and isinstance(n := self.size(0), Size):
            return iter([items[index] for index in range(n)])  # no batch
        return super().__iter__()

    def __setitem__(self, index: Any, value: Any) -> None:
        if any(isinstance(each, Proxy | torch.Tensor | list) for each in as_tuple(index)):
            raise TypeError("it assigns to entries that a tensor names")
        whole: Any = self
        part = whole[index]  # a view
        part.copy_(value) if isinstance(value, Proxy | torch.Tensor) else part.fill_(value)

    def __len__(self) -> int:
        if isinstance(self.value, tuple | list):
            return len(self.value)
        return int(self.size(0))


class _Creations(TorchFunctionMode):
    """Makes a node of a tensor that the code creates from numbers."""

    def __init__(self, tracer: Tracer):
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CREATIONS and not self.tracer.passes:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Tracer(fx.Tracer):
    """Traces a network; other threads run theirs meanwhile, as they would without.

    Given inputs, it runs each node on them while it traces. Then `meta["shape"]` is the shape of a
    node's value for the first batch, nested where it is several tensors, and `None` where it is
    something else; `meta["batched"]` says whether it is another one for the second batch.
    """

    def __init__(self, batches: Batches | None):
        super().__init__(autowrap_functions=leaf_functions())
        self.batches = batches
        self.thread = threading.get_ident()
        self.running = False  # a node, on the inputs: nothing is traced meanwhile
        self.known: dict[str, type[nn.Module]] = {}  # path of a layer → the class it is called as
        self.paths: dict[int, str] = {}  # of parameters and buffers
        self.reads_mode = False  # the code asks whether it is in training

    @property
    def passes(self) -> bool:
        """Whether what is being run now is not to be traced."""
        return self.running or threading.get_ident() != self.thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.passes:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        self.reads_mode |= attr == "training" and not self.passes
        path = None if self.passes else self.paths.get(id(attr_val))
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        operator = operator_of(m)
        if operator is not None and operator.leaf:
            return True
        made_of_others = operator is None and any(m.children())  # such as nn.TransformerEncoder
        return super().is_leaf_module(m, module_qualified_name) and not made_of_others

    def proxy(self, node: Node) -> Proxy:
        return super().proxy(node) if self.batches is None else _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(tuple(a) if isinstance(a, torch.Size) else a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if self.batches is None:
            return proxy
        proxy.by_batch = values = self._values(proxy.node, args, kwargs)
        proxy.node.meta["shape"], other = map(_shape, values)
        proxy.node.meta["batched"] = proxy.node.meta["shape"] != other
        proxy.node.meta["one size"] = values[1] is _missing
        if kind == "placeholder":
            return self._input(proxy, values[0])
        if not _is_metadata(target, args) or isinstance(values[0], torch.Tensor | torch.device):
            return proxy
        if values[0] == values[1] or not isinstance(values[0], int):
            self.graph.erase_node(proxy.node)
            return Size(values[0]) if type(values[0]) is int else values[0]
        size = Size(values[0])
        size.proxy = proxy
        return size

    def _input(self, proxy: Any, value: Any) -> Any:
        """Returns an input as the code sees it: what is no tensor is what it is."""
        if isinstance(value, Mapping):
            return {key: proxy[key] for key in value}
        if isinstance(value, tuple | list):
            return type(value)(proxy[index] for index in range(len(value)))
        return proxy if isinstance(value, torch.Tensor) else value

    def _values(self, node: Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Returns what a node computes of the first batch, and of the second."""
        values: list[Any] = []
        for i, inputs in enumerate(self.batches or ()):
            self.running = True
            try:
                given = map_aggregate((args, kwargs), functools.partial(_value_of, i))
                values.append(self._run(inputs, node, *given))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if values:  # the code has the size of the first batch as a number
                    values.append(_missing)
                    continue
                shapes = ", ".join(str((1, *x.shape[1:])) for x in all_tensors(inputs))
                raise LabkitError(
                    f"model: it does not take an input of shape {shapes}: "
                    f"{describe(node, self.root)}: {error}"
                ) from error
            finally:
                self.running = False
        return values[0], values[1]

    def _run(self, inputs: list[Any], node: Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        match node.op:
            case "placeholder":
                at = sum(each.op == "placeholder" for each in self.graph.nodes) - 1
                if target.startswith("*"):
                    return {} if target.startswith("**") else tuple(inputs[at:])
                if at >= len(inputs) and not args:
                    raise ValueError(f"the example has no {target!r}")
                return inputs[at] if at < len(inputs) else args[0]
            case "get_attr":
                return attrgetter(target)(self.root)
            case "call_module":
                module: Any = self.root.get_submodule(target)
                module.eval()
                if target in self.known:
                    return self.known[target].forward(module, *args, **kwargs)
                operator = operator_of(module)
                if operator is None or has_hooks(module):
                    return module(*args, **kwargs)
                return operator.example(module, *args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case _:
                return target(*args, **kwargs)

    def trace(self, root: Any, concrete_args: Any = None) -> Graph:
        leaves: tuple[str, ...] = ()
        for path, module in root.named_modules():
            for name, value in [*vars(module).items()]:
                if isinstance(value, torch.Tensor):
                    del module.__dict__[name]
                    module._buffers[name] = value
            kind = kind_of(module) if path and operator_of(module) is None else None
            if kind is not None:
                self._shim(module, kind)
            if self.is_leaf_module(module, path):
                leaves = (*leaves, f"{path}.")
            elif not path.startswith(leaves):
                _mark_options(path, module)
                if kind is None:  # so that `getattr` is asked
                    module._buffers["training"] = vars(module).pop("training")
        tensors = *root.named_buffers(), *root.named_parameters()
        self.paths = {id(t): name for name, t in tensors if isinstance(t, torch.Tensor)}
        with torch.no_grad(), _Creations(self):
            graph = super().trace(root, concrete_args)
        for node in graph.find_nodes(op="get_attr"):
            if not node.users:  # nn.TransformerEncoderLayer only looks at its weights
                graph.erase_node(node)
        for node in graph.nodes:
            node.meta.setdefault("shape", None)
        return graph

    def _shim(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Makes `super().forward(…)` of a class that inherits from a known layer a call of that."""
        tracer = self
        self.reads_mode = True  # it may: what is in the layer is not asked through `getattr`

        class Known(kind):  # type: ignore[valid-type, misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                if tracer.passes:
                    return super().forward(*args, **kwargs)
                path = tracer.path_of_module(self)
                tracer.known[path] = kind
                return tracer.create_proxy("call_module", path, args, kwargs)

        cls = type(module)
        module.__class__ = type(cls.__name__, (cls, Known), {"__module__": cls.__module__})


def _value_of(batch: int, argument: Any) -> Any:
    proxy: Any = argument.proxy if isinstance(argument, Size) else argument
    if not isinstance(proxy, Proxy):
        return argument
    value: Any = proxy
    if (value := value.by_batch[batch]) is _missing:
        raise ValueError("the code has a size of the batch as a number")
    return value


def _is_metadata(target: Any, args: Any) -> bool:
    """Whether a call asks a tensor for something besides its elements, or computes with that."""
    if target is getattr or (isinstance(target, Hashable) and target in METADATA):
        return True
    proxies: list[Any] = []
    map_aggregate(args, lambda a: proxies.append(a) if isinstance(a, Proxy) else a)
    return getattr(target, "__module__", None) == "_operator" and not any(
        isinstance(proxy.value, torch.Tensor | tuple | list | Mapping) for proxy in proxies
    )


def _mark_options(path: str, module: nn.Module) -> None:
    """Makes the numbers that a module has as attributes say where they come from."""

    def marked(value: int, key: str, index: int | None = None) -> Option:
        option = Option(value)
        option.path, option.key, option.index = path, key, index
        return option

    for key, value in vars(module).items():
        if type(value) is int:
            vars(module)[key] = marked(value, key)
        elif type(value) is tuple and value and all(type(each) is int for each in value):
            vars(module)[key] = tuple(marked(each, key, i) for i, each in enumerate(value))


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: _shape(each) for key, each in value.items()}
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else None
