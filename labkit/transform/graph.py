"""Tracing a network with torch.fx."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import GraphModule, Node, _symbolic_trace
from torch.fx.node import map_aggregate
from torch.nn.parameter import is_lazy

from labkit.errors import LabkitError
from labkit.operators import layout as lay
from labkit.operators.base import operator_of, scalable_modules
from labkit.operators.nodes import describe, module_of
from labkit.transform.copying import assembled, copied
from labkit.transform.tracing import Batches, Tracer

Example = torch.Tensor | Sequence[Any] | Mapping[str, Any]
CONSTANT = "_tensor_constant"  # so torch.fx names a tensor that only the code has

# Layers that take [batch, features].
FEATURES = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.PReLU)
# Tracing replaces `nn.Module.__call__` and `__getattr__` for all threads: one traces at a time.
_tracing = threading.RLock()


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside of `DataParallel` and what `torch.compile` returns.

    Raises:
        LabkitError: It is no network.
    """
    if not isinstance(model, nn.Module):
        raise LabkitError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    inner: Any = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return model if inner is None else unwrapped(inner)


def rooted(model: nn.Module) -> nn.Module:
    """Returns a network whose layers are in its graph: one around it where it is a layer itself."""
    operator = operator_of(model)
    return nn.Sequential(model) if operator is not None and operator.leaf else model


def _batches(example_input: Example, model: nn.Module) -> Batches:
    """Returns an example as the inputs of two batches of different sizes."""
    one = isinstance(example_input, torch.Tensor | Mapping)
    inputs = [example_input] if one else list(example_input)
    device = next((parameter.device for parameter in model.parameters()), None)

    def rows(x: Any, n: int) -> Any:
        if not isinstance(x, torch.Tensor) or not x.ndim:
            return x
        return x[:1].detach().expand(n, *x.shape[1:]).to(device, copy=True)

    return map_aggregate(inputs, lambda x: rows(x, 2)), map_aggregate(inputs, lambda x: rows(x, 3))


def trace(
    model: nn.Module, example_input: Example | None = None, *, training: bool = False
) -> GraphModule:
    """Returns the network as an fx graph; its modules are shared with `model`, not copied.

    Args:
        model: Any module that torch.fx can trace; `DataParallel` and `torch.compile` are unwrapped.
        example_input: `[batch, …]`, or one such tensor for each input, or for each a dict or list
            of such tensors. With it, code that looks at shapes can be traced as well, and
            `node.meta["shape"]` is the shape that each node has for a batch of two rows.
        training: The mode in which its code is run.

    Raises:
        LabkitError: The model is not a module, has lazy layers, cannot be traced, or does not take
            the example.
    """
    model = unwrapped(model)
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LabkitError(f"model: {name} is not initialised; run one forward pass first")
    if "forward" in vars(model):
        raise LabkitError("model: its forward was replaced on the object; define it in its class")
    if example_input is None and isinstance(model, GraphModule):
        return model
    model = rooted(model)
    try:
        # Some code changes its parameters, and some functions cannot be traced into.
        for copy_of, through in ((_without_elements, True), (torch.clone, True)):
            with contextlib.suppress(Exception):
                return _trace(model, example_input, training, copy_of, through)
        return _trace(model, example_input, training, torch.clone, through=False)
    except LabkitError:
        raise
    # Tracing runs the user's own forward function, which may raise anything.
    except Exception as error:
        raise LabkitError(
            f"model: torch.fx cannot trace {type(model).__name__}: {error} "
            "(its forward must not branch on the values of tensors)"
        ) from error


def _without_elements(tensor: torch.Tensor) -> torch.Tensor:
    is_parameter = tensor.is_floating_point() and tensor.numel() > 1
    return tensor.new_zeros(()).expand(tensor.shape) if is_parameter else tensor.clone()


def _trace(
    model: nn.Module,
    example_input: Example | None,
    training: bool,
    copy_of: Callable[[torch.Tensor], torch.Tensor],
    through: bool,
) -> GraphModule:
    with _tracing:
        shadow = copied(model, copy_of)
        shadow.train(training)  # the user's own may return nothing
        tracer = Tracer(None if example_input is None else _batches(example_input, model))
        # What torch.fx.wrap was told of, such as stochastic depth, is traced into, too.
        with mock.patch.dict(_symbolic_trace._wrapped_fns_to_patch, clear=through):
            graph = tracer.trace(shadow)
    constants = {name: tensor for name, tensor in vars(shadow).items() if name.startswith(CONSTANT)}
    traced = assembled(model, graph, tracer.known, constants)
    traced.meta["reads mode"] = tracer.reads_mode
    return traced


def takes_more(model: nn.Module, example_input: Example) -> bool:
    """Returns whether a network takes batches of another size than that of the graph."""
    try:
        with torch.no_grad():
            (shadow := copied(model, torch.clone)).eval()
            shadow(*_batches(example_input, model)[1])
    except Exception:  # whatever the user's own code raises
        return False
    return True


def graphs_of(model: nn.Module, example_input: Example) -> tuple[list[GraphModule], str | None]:
    """Returns the network's graph, and that in training where it is another one.

    Also why no graph can replace the network's code, if so.
    """
    traced = training = trace(model, example_input)
    try:
        if traced.meta["reads mode"]:
            training = trace(model, example_input, training=True)
    except LabkitError:
        layers = {str(node.target) for node, _ in layer_nodes(traced)}
        for path, module in model.named_modules():
            if path not in layers and isinstance(module, scalable_modules()):
                raise
        return [traced], "its code in training cannot be traced"
    for node, other in itertools.zip_longest(traced.graph.nodes, training.graph.nodes):
        if node is None or other is None or _in_words(node) != _in_words(other):
            where = describe(other if node is None else node)
            hint = "; use nn.Dropout" if "dropout" in where else ""
            return [traced, training], f"{where} does something else in training{hint}"
    if any(node.meta.get("one size") for node in traced.graph.nodes) and takes_more(
        model, example_input
    ):
        return [traced], "it computes with the size of the batch"
    return [traced], None


def _in_words(node: Node) -> tuple[str, ...]:
    return node.op, str(node.target), str(node.args), str(node.kwargs)


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


def operator_name(module: nn.Module) -> str:
    """Returns the operator by which a configuration with `by = "type"` names this layer."""
    return type(module).__name__.lower()
