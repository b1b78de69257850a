"""Tracing a network with torch.fx, and finding its layers by node name or module path."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_aggregate
from torch.nn.parameter import is_lazy

from labkit.errors import LabkitError, did_you_mean
from labkit.operators import layout as lay
from labkit.operators.base import leaf_functions, operator_of
from labkit.operators.nodes import Size, describe, module_of

Example = torch.Tensor | Sequence[torch.Tensor]

# Layers that take [batch, features].
FEATURES = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.PReLU)
# Tracing replaces `nn.Module.__call__` and `__getattr__` for all threads: one traces at a time.
_tracing = threading.RLock()


class _Value(Proxy):
    """A tensor that is being traced, whose shape is known: only its batch axis stays symbolic."""

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def size(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        if dim % self.value.ndim == 0:
            return self.tracer.create_proxy("call_method", "size", (self, 0), {})
        return Size(self.value.size(dim))

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.size(dim) for dim in range(self.value.ndim))

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    @property
    def is_nested(self) -> bool:
        return bool(self.value.is_nested)

    def dim(self) -> int:
        return self.ndim

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, tuple | list):
            items: Any = self  # a Proxy can be indexed, which its stub does not say
            return iter([items[index] for index in range(len(self.value))])
        return super().__iter__()

    def __len__(self) -> int:
        if isinstance(self.value, tuple | list):
            return len(self.value)
        return super().__len__()


class _Tracer(Tracer):
    """Traces a network; other threads run theirs meanwhile, as they would without.

    Given inputs, it runs the network on them while it traces, so that code may look at shapes. Then
    `meta["shape"]` of each node is the shape of its tensor, a tuple of shapes, or `None` where it
    is something else.
    """

    def __init__(self, inputs: Sequence[torch.Tensor] | None):
        super().__init__(autowrap_functions=leaf_functions())
        self.inputs = inputs
        self.thread = threading.get_ident()
        self.running = False  # a node, on the inputs: nothing is traced meanwhile

    @property
    def passes(self) -> bool:
        """Whether what is being run now is not to be traced."""
        return self.running or threading.get_ident() != self.thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.passes:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.passes:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        operator = operator_of(m)
        if operator is not None and operator.leaf:
            return True
        made_of_others = operator is None and any(m.children())  # such as nn.TransformerEncoder
        return super().is_leaf_module(m, module_qualified_name) and not made_of_others

    def proxy(self, node: Node) -> Proxy:
        return super().proxy(node) if self.inputs is None else _Value(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if self.inputs is None:
            return proxy
        args, kwargs = map_aggregate(
            (args, kwargs), lambda a: a.node.meta["value"] if isinstance(a, Proxy) else a
        )
        self.running = True
        try:
            proxy.node.meta["value"] = self.run(self.inputs, kind, target, args, kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            shapes = ", ".join(str((1, *x.shape[1:])) for x in self.inputs)
            raise LabkitError(
                f"model: it does not take an input of shape {shapes}: "
                f"{describe(proxy.node, self.root)}: {error}"
            ) from error
        finally:
            self.running = False
        return proxy

    def run(
        self, inputs: Sequence[torch.Tensor], kind: str, target: Any, args: Any, kwargs: Any
    ) -> Any:
        match kind:
            case "placeholder":
                n_before = sum(node.op == "placeholder" for node in self.graph.nodes) - 1
                # An input beyond the example has its default.
                return inputs[n_before] if n_before < len(inputs) else (*args, None)[0]
            case "get_attr":
                return attrgetter(target)(self.root)
            case "call_module":
                return self.root.get_submodule(target).eval()(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case _:
                return target(*args, **kwargs)

    def trace(self, root: Any, concrete_args: Any = None) -> Graph:
        modes = {module: module.training for module in root.modules()}
        try:
            with torch.no_grad():
                graph = super().trace(root, concrete_args)
        finally:
            for module, mode in modes.items():
                module.training = mode
        for node in graph.find_nodes(op="get_attr"):
            if not node.users:  # nn.TransformerEncoderLayer only looks at its weights
                graph.erase_node(node)
        for node in graph.nodes if self.inputs is not None else ():
            node.meta["shape"] = _shape(node.meta.pop("value", None))
        return graph


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else None


def _inputs_of(model: nn.Module, example_input: Example) -> list[torch.Tensor]:
    """Returns an example as a list of inputs, each of two rows, so that a batch shows as one."""
    inputs = [example_input] if isinstance(example_input, torch.Tensor) else example_input
    device = next((parameter.device for parameter in model.parameters()), None)
    return [x[:1].expand(2, *x.shape[1:]).clone().to(device) for x in inputs]


def trace(model: nn.Module, example_input: Example | None = None) -> GraphModule:
    """Returns the network as an fx graph; its modules are shared with `model`, not copied.

    Args:
        model: Any module that torch.fx can trace.
        example_input: `[batch, …]`, or one such tensor for each input. With it, code that looks at
            shapes can be traced as well, and `node.meta["shape"]` is the shape that each node has
            for a batch of two rows.

    Raises:
        LabkitError: The model is not a module, has lazy layers, cannot be traced, or does not take
            the example.
    """
    if not isinstance(model, nn.Module):
        raise LabkitError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LabkitError(f"model: {name} is not initialised; run one forward pass first")
    if example_input is None and isinstance(model, GraphModule):
        return model
    try:
        with _tracing:
            inputs = None if example_input is None else _inputs_of(model, example_input)
            graph = _Tracer(inputs).trace(model)
            return GraphModule(model, graph, class_name=type(model).__name__)
    except LabkitError:
        raise
    # Tracing runs the user's own forward function, which may raise anything.
    except Exception as error:
        raise LabkitError(
            f"model: torch.fx cannot trace {type(model).__name__}: {error} "
            "(its forward must not branch on the values of tensors)"
        ) from error


def example_input_for(model: nn.Module) -> torch.Tensor:
    """Returns zeros `[1, features]` that fit the first layer of a network of linear layers.

    Raises:
        LabkitError: The input width cannot be read off the first layer.
    """
    traced = trace(model)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    # What has no widths of its own, such as an activation, is taken to keep the shape.
    as_wide = inputs if len(inputs) == 1 else []
    for node in traced.graph.nodes:
        if not any(source in as_wide for source in node.all_input_nodes):
            continue
        module, operator = module_of(node), operator_of(node)
        sides = None if operator is None or module is None else operator.sides(module)
        if sides is not None and isinstance(module, FEATURES):
            parameter = next(model.parameters(), torch.empty(0))
            size = lay.size(sides[0])
            return torch.zeros(1, size, dtype=parameter.dtype, device=parameter.device)
        is_layer = operator is not None and operator.leaf and module is not None
        if is_layer and not isinstance(module, nn.PReLU):
            break
        as_wide.append(node)
    raise LabkitError(
        f"example_input: the input shape of {type(model).__name__} cannot be told from its first "
        "layer; pass one input, with its batch axis"
    )


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
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    for node in nodes:
        if name in (node.name, node.target):
            return node
    raise LabkitError(
        f"{name}: no such layer in the network; {did_you_mean(name, [n.name for n in nodes])}"
    )


def operator_name(module: nn.Module) -> str:
    """Returns the operator by which a configuration with `by = "type"` names this layer."""
    return type(module).__name__.lower()
