"""What a network costs: FLOPs, bitops, parameters and activations, under a named convention.

Every elementary arithmetic operation counts 1, and so does a multiply-accumulate. With `n` the
number of elements that a layer puts out:

| layer              | forward                           | backward    |
|--------------------|-----------------------------------|-------------|
| Linear             | n · in_features (no bias)         | 2 × forward |
| Conv               | n · in/groups · kernel (no bias)  | 2 × forward |
| BatchNorm and kin  | 4 · n (subtract, scale, and affine)| 4 · n      |
| activation, add, … | n                                 | n           |
| Dropout, Flatten, …| 0                                 | 0           |

These are the report's rules (they reproduce its published figures). The conventions differ in what
they add up:

- `inference`: forward, the shapes that the network has. The default.
- `training`: forward and backward, the shapes that the network has.
- `reference`: the report's own counting. Forward and backward, but every layer except Linear takes
  its shape from `shapes_from`, the network before the transform. That is a flaw, kept to reproduce
  published figures.

Bitops are FLOPs × the product of the operand precisions: precision² for layers with weights,
precision for the others.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from labkit.channels import (
    CHANNELWISE_MODULES,
    ELEMENTWISE_MODULES,
    SHAPE_PRESERVING_FUNCTIONS,
    SHAPE_PRESERVING_METHODS,
)
from labkit.errors import LabkitError, did_you_mean
from labkit.graph import describe, trace

CONVENTIONS = ("inference", "training", "reference")

MATMUL_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
FREE_MODULES = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Flatten, nn.Unflatten)
FREE_NAMES = {"dropout", "flatten", "view", "reshape", "size", "contiguous", "getattr", "getitem"}


@dataclass(frozen=True)
class LayerCost:
    """The cost of one node of the network.

    Attributes:
        name: Its fx name.
        type: The class of the layer, or the name of the function.
        flops: Floating-point operations, a multiply-accumulate counted as 1.
        bitops: `flops` × the product of the operand precisions.
        parameters: Its parameters.
        activations: The elements that it puts out.
    """

    name: str
    type: str
    flops: int
    bitops: int
    parameters: int
    activations: int


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        layers: The cost of every node, in graph order.
        parameters: All parameters; one that several layers share counts once.
        convention: How it was counted: a name from `CONVENTIONS`.
        batch_size: The samples that `flops`, `bitops` and `activations` are for.
        precision: Bits of a weight and of an activation.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    convention: str
    batch_size: int
    precision: int

    @property
    def total_flops(self) -> int:
        """FLOPs of all layers."""
        return sum(layer.flops for layer in self.layers)

    @property
    def total_bitops(self) -> int:
        """Bitops of all layers."""
        return sum(layer.bitops for layer in self.layers)


def example_input_for(model: nn.Module) -> torch.Tensor:
    """Returns zeros `[1, features]` that fit the first layer of a network of linear layers.

    Raises:
        LabkitError: The input width cannot be read off the first layer.
    """
    traced = trace(model)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node in inputs[0].users if len(inputs) == 1 else ():
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        match module:
            case nn.Linear():
                width = module.in_features
            case nn.BatchNorm1d():
                width = module.num_features
            case nn.LayerNorm() if len(module.normalized_shape) == 1:
                width = module.normalized_shape[0]
            case _:
                continue
        parameter = next(model.parameters(), torch.empty(0))
        return torch.zeros(1, width, dtype=parameter.dtype, device=parameter.device)
    raise LabkitError(
        f"example_input: the input shape of {type(model).__name__} cannot be told from its first "
        "layer; pass one input, with its batch axis"
    )


class _OutputShapes(Interpreter):
    """Runs a network and keeps the shape of every tensor, without its batch axis."""

    def __init__(self, traced: GraphModule):
        super().__init__(traced)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n.name] = tuple(result.shape[1:])
        return result


def output_shapes(
    model: nn.Module, example_input: torch.Tensor | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every node's output by fx name, without the batch axis.

    Args:
        model: The network; it is run once, in evaluation mode, on a copy.
        example_input: `[batch, …]`; by default read off the first layer.

    Raises:
        LabkitError: The network does not take this input.
    """
    if example_input is None:
        example_input = example_input_for(model)
    interpreter = _OutputShapes(copy.deepcopy(trace(model)).eval())
    try:
        with torch.no_grad():
            interpreter.run(example_input[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        shape = tuple(example_input.shape)
        raise LabkitError(f"model: it does not take an input of shape {shape}: {error}") from error
    return interpreter.shapes


def _passes(node: Node, module: nn.Module | None, elements: int) -> tuple[int, int]:
    """Returns the FLOPs of the forward and of the backward pass of one node."""
    if isinstance(module, MATMUL_MODULES):
        macs = elements * math.prod(module.weight.shape[1:])
        return macs, 2 * macs
    if isinstance(module, NORM_MODULES):
        return 4 * elements, 4 * elements
    if isinstance(module, ELEMENTWISE_MODULES + CHANNELWISE_MODULES):
        free = isinstance(module, FREE_MODULES)
    elif node.target in SHAPE_PRESERVING_FUNCTIONS or node.target in SHAPE_PRESERVING_METHODS:
        free = getattr(node.target, "__name__", node.target) in FREE_NAMES
    else:
        free = True
        name = getattr(node.target, "__name__", node.target)
        if not isinstance(module, FREE_MODULES) and name not in FREE_NAMES:
            warnings.warn(f"no cost is known for {describe(node)}; it counts as 0", stacklevel=4)
    return (0, 0) if free else (elements, elements)


def _layer_costs(
    traced: GraphModule,
    *,
    shapes: dict[str, tuple[int, ...]],
    old_shapes: dict[str, tuple[int, ...]],
    batch_size: int,
    backward: bool,
    precision: int,
) -> Iterator[LayerCost]:
    for node in traced.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        if node.name not in shapes:  # not a tensor, as in x.size(0)
            continue
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        elements = batch_size * math.prod(shapes[node.name])
        counted = elements
        if not isinstance(module, MATMUL_MODULES):
            counted = batch_size * math.prod(old_shapes.get(node.name, shapes[node.name]))
        forward, backward_flops = _passes(node, module, counted)
        flops = forward + backward_flops * backward
        parameters = sum(p.numel() for p in module.parameters()) if module is not None else 0
        yield LayerCost(
            name=node.name,
            type=type(module).__name__ if module is not None else node.name,
            flops=flops,
            bitops=flops * precision ** (2 if parameters else 1),
            parameters=parameters,
            activations=elements,
        )


def total_cost(
    model: nn.Module,
    *,
    batch_size: int = 1,
    convention: str = "inference",
    precision: int = 32,
    shapes_from: nn.Module | None = None,
    example_input: torch.Tensor | None = None,
) -> Cost:
    """Returns what a network costs.

    Args:
        model: The network.
        batch_size: Samples in the batch that is counted.
        convention: `inference`, `training` or `reference`; see the module's documentation.
        precision: Bits of a weight and of an activation.
        shapes_from: Under `reference`, the network before the transform, which every layer except
            Linear takes its shape from; by default the network itself.
        example_input: `[batch, …]`, of which only the shape after the batch axis matters. By
            default read off the first layer.

    Raises:
        LabkitError: An argument is out of range, or the network does not take the example.
    """
    if convention not in CONVENTIONS:
        raise LabkitError(
            f"convention: unknown {convention!r}; {did_you_mean(convention, CONVENTIONS)}"
        )
    for key, value in (("batch_size", batch_size), ("precision", precision)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LabkitError(f"{key}: expected a positive integer, got {value!r}")
    if shapes_from is not None and convention != "reference":
        raise LabkitError(f"shapes_from: only 'reference' uses it, not {convention!r}")
    if example_input is None:
        example_input = example_input_for(model)
    old_shapes = output_shapes(shapes_from, example_input) if shapes_from is not None else {}
    layers = _layer_costs(
        trace(model),
        shapes=output_shapes(model, example_input),
        old_shapes=old_shapes,
        batch_size=batch_size,
        backward=convention != "inference",
        precision=precision,
    )
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(tuple(layers), parameters, convention, batch_size, precision)
