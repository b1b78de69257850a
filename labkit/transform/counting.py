"""How costs are counted: FLOPs, bitops, parameters and activations, under a named convention.

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
figures); the others go on in their spirit. The conventions differ in what they add up:

- `inference`: forward, the shapes that the network has. The default.
- `training`: forward and backward, the shapes that the network has.
- `reference`: the report's own counting. Forward and backward, but all except matrix products take
  their shapes from the network before the transform. That is a flaw, kept to reproduce published
  figures.

Bitops are FLOPs × the product of the operand precisions: precision² for layers with weights,
precision for the others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch.fx import Node

from labkit.errors import LabkitError, did_you_mean
from labkit.operators.base import Shape
from labkit.operators.nodes import describe, module_of
from labkit.operators.registry import operator_of

Shapes = Mapping[str, Shape]
CONVENTIONS = ("inference", "training", "reference")
TRACED_ROWS = 2  # in the shapes of a traced graph


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


class Counting(NamedTuple):
    """How costs are counted: the options of `total_cost` and `cost_of`, checked."""

    batch_size: int
    convention: str
    precision: int

    @classmethod
    def checked(cls, batch_size: int, convention: str, precision: int) -> Counting:
        """Returns the options.

        Raises:
            LabkitError: One is out of range.
        """
        if convention not in CONVENTIONS:
            raise LabkitError(
                f"convention: unknown {convention!r}; {did_you_mean(convention, CONVENTIONS)}"
            )
        for key, value in (("batch_size", batch_size), ("precision", precision)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LabkitError(f"{key}: expected a positive integer, got {value!r}")
        return cls(batch_size, convention, precision)

    def price(self, node: Node, shapes: Shapes, old_shapes: Shapes, parameters: int) -> LayerCost:
        """Returns what a call costs.

        Args:
            node: The call, of a graph of the network or of the one before the transform.
            shapes: fx name → shape of each tensor that it reads and of the one that it returns, for
                two rows.
            old_shapes: Those that count where it is no matrix product.
            parameters: Those of the layer that it calls.
        """
        module, operator = module_of(node), operator_of(node)
        is_product = operator is not None and operator.matrix_product
        counted = shapes if is_product else old_shapes
        written = counted[node.name]
        read = [counted[n.name] for n in node.all_input_nodes if n.name in counted] or [written]
        forward = None if operator is None else operator.flops(node, module, read, written)
        if forward is None:
            forward = 0
            warnings.warn(f"no cost is known for {describe(node)}; it counts as 0", stacklevel=4)
        passes = 1 if self.convention == "inference" else 3 if is_product else 2
        flops = passes * forward * self.batch_size // TRACED_ROWS
        return LayerCost(
            name=node.name,
            type=node.name if module is None else type(module).__name__,
            flops=flops,
            bitops=flops * self.precision ** (2 if parameters else 1),
            parameters=parameters,
            activations=math.prod(shapes[node.name]) * self.batch_size // TRACED_ROWS,
        )

    def total(self, layers: Iterable[LayerCost], parameters: int) -> Cost:
        """Returns the cost of a network."""
        return Cost(tuple(layers), parameters, self.convention, self.batch_size, self.precision)
