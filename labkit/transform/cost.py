"""What a network costs: FLOPs, bitops, parameters and activations, under a named convention.

Every elementary arithmetic operation counts 1, and so does a multiply-accumulate. With `n` the
number of elements that a layer puts out:

| layer              | forward                              | backward    |
|--------------------|--------------------------------------|-------------|
| Linear             | n · in_features (no bias)            | 2 × forward |
| Conv               | n · in/groups · kernel (no bias)     | 2 × forward |
| ConvTranspose      | inputs · out/groups · kernel         | 2 × forward |
| BatchNorm and kin  | 4 · n (subtract, scale, and affine)  | 4 · n       |
| activation, add, … | n                                    | n           |
| pooling, mean      | inputs                               | inputs      |
| Dropout, reshaping | 0                                    | 0           |

Those for the layers of the report's networks are the report's rules (they reproduce its published
figures); the others go on in their spirit. The conventions differ in what
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

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError, did_you_mean
from labkit.transform.channels import (
    CHANNEL_DROPOUTS,
    ELEMENTWISE_MODULES,
    POOLING_FUNCTIONS,
    POOLING_MODULES,
    SHAPE_PRESERVING_FUNCTIONS,
    SHAPE_PRESERVING_METHODS,
    SOFTMAX_MODULES,
)
from labkit.transform.graph import (
    BATCH_NORMS,
    CHANNELWISE_MODULES,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    TRANSPOSED_CONVOLUTIONS,
    Example,
    describe,
    example_input_for,
    is_shape,
    trace,
)

CONVENTIONS = ("inference", "training", "reference")

MATMUL_MODULES = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
NORM_MODULES = (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm)
ACTIVATION_MODULES = (*ELEMENTWISE_MODULES, *CHANNELWISE_MODULES, *SOFTMAX_MODULES)
REDUCTIONS = {"mean", "sum", "amax", "amin"}
FREE_MODULES = (
    nn.Identity, nn.Dropout, nn.AlphaDropout, *CHANNEL_DROPOUTS, nn.Flatten, nn.Unflatten,
    nn.ChannelShuffle, nn.Embedding, nn.Upsample,
)  # fmt: skip
FREE_NAMES = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "flatten", "view", "reshape", "size",
    "contiguous", "clone", "detach", "getattr", "getitem", "cat", "concat", "chunk", "split",
    "transpose", "permute", "squeeze", "unsqueeze", "expand", "expand_as", "interpolate", "pad",
}  # fmt: skip


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


def output_shapes(
    model: nn.Module, example_input: Example | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every node's output by fx name, without the batch axis.

    Args:
        model: The network; it is run once, in evaluation mode.
        example_input: `[batch, …]`, or one such tensor for each input; by default read off the
            first layer.

    Raises:
        LabkitError: The network does not take this input.
    """
    return _shapes(_traced(model, example_input))


def _traced(model: nn.Module, example_input: Example | None) -> GraphModule:
    return trace(model, example_input_for(model) if example_input is None else example_input)


def _shapes(traced: GraphModule) -> dict[str, tuple[int, ...]]:
    return {
        node.name: node.meta["shape"][1:]
        for node in traced.graph.nodes
        if node.op != "output" and is_shape(node.meta["shape"])
    }


def _passes(node: Node, module: nn.Module | None, read: int, written: int) -> tuple[int, int]:
    """Returns the FLOPs of the forward and of the backward pass of one node.

    Args:
        node: The node.
        module: The layer that it calls, if it does.
        read: Elements of its first input.
        written: Elements that it puts out.
    """
    name = getattr(node.target, "__name__", node.target)
    if isinstance(module, MATMUL_MODULES):
        # Each weight of [out, in / groups, …] meets each output; transposed, each input.
        transposed = isinstance(module, TRANSPOSED_CONVOLUTIONS)
        macs = (read if transposed else written) * math.prod(module.weight.shape[1:])
        return macs, 2 * macs
    if isinstance(module, NORM_MODULES):
        return 4 * written, 4 * written
    if isinstance(module, FREE_MODULES) or (module is None and name in FREE_NAMES):
        return 0, 0
    if isinstance(module, ACTIVATION_MODULES):
        return written, written
    if isinstance(module, POOLING_MODULES) or node.target in POOLING_FUNCTIONS:
        return read, read
    if module is None and name in REDUCTIONS:
        return read, read
    if node.target in SHAPE_PRESERVING_FUNCTIONS or node.target in SHAPE_PRESERVING_METHODS:
        return written, written
    warnings.warn(f"no cost is known for {describe(node)}; it counts as 0", stacklevel=4)
    return 0, 0


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
        counted = shapes if isinstance(module, MATMUL_MODULES) else shapes | old_shapes
        source = next((n.name for n in node.all_input_nodes if n.name in counted), node.name)
        read, written = (batch_size * math.prod(counted[name]) for name in (source, node.name))
        forward, backward_flops = _passes(node, module, read, written)
        flops = forward + backward_flops * backward
        parameters = sum(p.numel() for p in module.parameters()) if module is not None else 0
        yield LayerCost(
            name=node.name,
            type=type(module).__name__ if module is not None else node.name,
            flops=flops,
            bitops=flops * precision ** (2 if parameters else 1),
            parameters=parameters,
            activations=batch_size * math.prod(shapes[node.name]),
        )


def total_cost(
    model: nn.Module,
    *,
    batch_size: int = 1,
    convention: str = "inference",
    precision: int = 32,
    shapes_from: nn.Module | None = None,
    example_input: Example | None = None,
) -> Cost:
    """Returns what a network costs.

    Args:
        model: The network.
        batch_size: Samples in the batch that is counted.
        convention: `inference`, `training` or `reference`; see the module's documentation.
        precision: Bits of a weight and of an activation.
        shapes_from: Under `reference`, the network before the transform, which every layer except
            Linear takes its shape from; by default the network itself.
        example_input: `[batch, …]`, or one such tensor for each input; only shapes after the batch
            axis matter. By default read off the first layer.

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
    traced = _traced(model, example_input)
    old_shapes = output_shapes(shapes_from, example_input) if shapes_from is not None else {}
    layers = _layer_costs(
        traced,
        shapes=_shapes(traced),
        old_shapes=old_shapes,
        batch_size=batch_size,
        backward=convention != "inference",
        precision=precision,
    )
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(tuple(layers), parameters, convention, batch_size, precision)
