"""What a network costs: the one that it is given, or the one that a plan would give.

FLOPs, bitops, parameters and activations are counted under a named convention.

Every elementary arithmetic operation counts 1, and so does a multiply-accumulate. With `n` the
number of elements that a layer puts out:

| layer              | forward                              | backward    |
|--------------------|--------------------------------------|-------------|
| Linear             | n · in_features (no bias)            | 2 × forward |
| Conv               | n · in/groups · kernel (no bias)     | 2 × forward |
| ConvTranspose      | inputs · out/groups · kernel         | 2 × forward |
| LSTM, attention, … | its products                         | 2 × forward |
| matmul, einsum     | n · what is summed over              | 2 × forward |
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

Bitops are FLOPs × the product of the operand precisions: precision² for products and layers
with weights, precision for the others.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError, did_you_mean, shown
from labkit.operators.base import Shape, operator_of
from labkit.operators.nodes import is_shape, module_of
from labkit.transform.channels import find_channels
from labkit.transform.graph import Example, example_input_for, trace
from labkit.transform.groups import Channels, Side, size_in
from labkit.transform.plan import Plan, Resolution, widths_of

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
        known: Whether labkit knows what it costs; otherwise its FLOPs and bitops are 0.
    """

    name: str
    type: str
    flops: int
    bitops: int
    parameters: int
    activations: int
    known: bool = True


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

    @property
    def unknown(self) -> tuple[str, ...]:
        """The layers of which labkit does not know what they cost, in words: they count as 0."""
        return tuple(f"'{each.name}' ({each.type})" for each in self.layers if not each.known)


class Counting(NamedTuple):
    """How costs are counted: the options of `total_cost` and `cost_of`, checked."""

    batch_size: int
    convention: str
    precision: int

    @classmethod
    def checked(cls, batch_size: int, convention: str, precision: int) -> Counting:
        """Returns the options; raises where one is out of range."""
        if not isinstance(convention, str) or convention not in CONVENTIONS:
            raise LabkitError(
                f"convention: unknown {shown(convention)}; {did_you_mean(convention, CONVENTIONS)}"
            )
        for key, value in (("batch_size", batch_size), ("precision", precision)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LabkitError(f"{key}: expected a positive integer, got {shown(value)}")
        return cls(batch_size, convention, precision)

    def price(self, node: Node, shapes: Shapes, old_shapes: Shapes, parameters: int) -> LayerCost:
        """Returns what a call costs, of shapes by fx name, for two rows.

        The old shapes count where it is no matrix product.
        """
        module, operator = module_of(node), operator_of(node)
        is_product = operator is not None and operator.matrix_product
        counted = shapes if is_product else old_shapes
        written = counted[node.name]
        read = [counted[n.name] for n in node.all_input_nodes if n.name in counted] or [written]
        forward = None if operator is None else operator.flops(node, module, read, written)
        passes = 1 if self.convention == "inference" else 3 if is_product else 2
        by_batch = any(each.meta["batched"] for each in (node, *node.all_input_nodes))
        flops = self.of_batch(passes * (forward or 0), by_batch)
        return LayerCost(
            name=node.name,
            type=node.name if module is None else type(module).__name__,
            flops=flops,
            bitops=flops * self.precision ** (2 if parameters or is_product else 1),
            parameters=parameters,
            activations=self.of_batch(math.prod(shapes[node.name]), node.meta["batched"]),
            known=forward is not None,
        )

    def of_batch(self, count: int, by_batch: bool) -> int:
        """Returns a count for two rows as one for the batch, unless no row changes it."""
        return count * self.batch_size // TRACED_ROWS if by_batch else count

    def total(self, layers: Iterable[LayerCost], parameters: int) -> Cost:
        """Returns the cost of a network."""
        return Cost(tuple(layers), parameters, self.convention, self.batch_size, self.precision)


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
    shapes = _shapes(_traced(model, example_input))
    return {name: tuple(shape[1:]) for name, shape in shapes.items()}


def _traced(model: nn.Module, example_input: Example | None) -> GraphModule:
    return trace(model, example_input_for(model) if example_input is None else example_input)


def _shapes(traced: GraphModule) -> Shapes:
    shapes = {node.name: _first(node) for node in traced.graph.nodes if node.op != "output"}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _first(node: Node) -> Shape | None:
    """Returns the shape of what a node puts out; of several tensors from a layer, the first."""
    shape = node.meta["shape"]
    while node.op == "call_module" and isinstance(shape, tuple) and not is_shape(shape):
        shape = shape[0]
    return shape if is_shape(shape) else None


def _calls(traced: GraphModule) -> list[Node]:
    """Returns the calls that put out a tensor, and not a number as `x.size(0)` does."""
    calls = ("call_module", "call_function", "call_method")
    return [n for n in traced.graph.nodes if n.op in calls and _first(n) is not None]


def _n_parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def total_cost(
    model: nn.Module,
    *,
    batch_size: int = 1,
    convention: str = "inference",
    precision: int = 32,
    shapes_from: nn.Module | None = None,
    example_input: Example | None = None,
) -> Cost:
    """Returns what a network costs, from the shapes that its tensors have when it runs.

    Args:
        model: The network.
        batch_size: Samples in the batch that is counted.
        convention: `inference`, `training` or `reference`; see `labkit.transform.cost`.
        precision: Bits of a weight and of an activation.
        shapes_from: Under `reference`, the network before the transform, from which all but matrix
            products take their shapes; by default the network itself.
        example_input: `[batch, …]`, or one such tensor for each input; only shapes after the batch
            axis matter. By default read off the first layer.

    Raises:
        LabkitError: An argument is out of range, or the network does not take the example.
    """
    counting = Counting.checked(batch_size, convention, precision)
    if shapes_from is not None and convention != "reference":
        raise LabkitError(f"shapes_from: only 'reference' uses it, not {convention!r}")
    traced = _traced(model, example_input)
    shapes = old_shapes = _shapes(traced)
    if shapes_from is not None:
        old_shapes = {**shapes, **_shapes(_traced(shapes_from, example_input))}
    layers = (
        counting.price(node, shapes, old_shapes, _n_parameters(module_of(node)))
        for node in _calls(traced)
    )
    cost = counting.total(layers, _n_parameters(model))
    _warn_of_unknown(cost)
    return cost


def _warn_of_unknown(cost: Cost) -> None:
    if cost.unknown:
        names = ", ".join(cost.unknown)
        warnings.warn(f"no cost is known for {names}; it counts as 0", stacklevel=3)


def cost_of(
    channels: nn.Module | Channels,
    plan: Plan | Resolution | None = None,
    *,
    batch_size: int = 1,
    convention: str = "inference",
    precision: int = 32,
    example_input: Example | None = None,
) -> Cost:
    """Returns what a network costs under a plan: the `total_cost` of `apply(model, plan)`.

    Nothing is built or run: all shapes follow from the plan. What a layer costs is worked out once
    for the widths that it sees, so thousands of plans are priced in a fraction of a second.

    Example:
        >>> channels = find_channels(model)
        >>> flops = {plan: cost_of(channels, plan).total_flops for plan in plans}

    Args:
        channels: The network's channel groups; or the network, whose groups are found first.
        plan: A plan for this network; `None` is the network as it is.
        batch_size: As `total_cost` takes it; so is `precision`.
        convention: As there. Under `reference` all but matrix products have the shapes of the
            network as it is.
        example_input: As `find_channels` takes it.

    Raises:
        LabkitError: An argument is out of range, or the plan is for another network.
    """
    counting = Counting.checked(batch_size, convention, precision)
    channels = find_channels(channels, example_input)
    widths = widths_of(channels, plan)
    by_counting = _prices.setdefault(channels, {})
    is_first = counting not in by_counting
    if is_first:
        by_counting[counting] = [
            _Priced(node, channels, counting) for node in _calls(channels.traced)
        ]
    priced = by_counting[counting]
    layers = [each.cost(widths) for each in priced]
    parameters = channels.n_parameters
    counted: set[nn.Module] = set()
    for each, layer in zip(priced, layers):
        if each.resized is not None and each.resized not in counted:
            counted.add(each.resized)
            parameters += layer.parameters - each.own_parameters
    for sizes in channels.parameters:
        parameters += math.prod(size_in(size, widths) for size in sizes)
        parameters -= math.prod(size_in(size, {}) for size in sizes)
    cost = counting.total(layers, parameters)
    if is_first:  # a search asks thousands of times
        _warn_of_unknown(cost)
    return cost


class _Priced:
    """A call of a network, with what it costs for each of the widths that were asked for."""

    def __init__(self, node: Node, channels: Channels, counting: Counting):
        self.node, self.counting = node, counting
        module, operator = module_of(node), operator_of(node)
        sides = None if operator is None or module is None else operator.sides(module)
        self.resized = None if sides is None else module  # a layer that has widths of its own
        self.own_parameters = _n_parameters(module)  # as it is
        names = [n.name for n in (*node.all_input_nodes, node) if n.name in channels.shapes]
        self.axes = {name: channels.shapes[name] for name in names}
        self.sides = (channels.inputs[node.name], channels.outputs[node.name]) if sides else ()
        axes = (*self.sides, *itertools.chain(*self.axes.values()))
        groups = (g for axis in axes if isinstance(axis, Side) for g in axis.groups)
        self.groups = tuple(dict.fromkeys(g.name for g in groups if g.fixed is None))
        self.costs: dict[tuple[int, ...], LayerCost] = {}

    def cost(self, widths: Mapping[str, int]) -> LayerCost:
        seen = tuple([widths[name] for name in self.groups])
        if seen not in self.costs:
            shapes = self.shapes(widths)
            old_shapes = self.shapes({}) if self.counting.convention == "reference" else shapes
            parameters = self.own_parameters
            operator = operator_of(self.node)
            if self.resized is not None and operator is not None:
                n_in, n_out = (side.width_in(widths) for side in self.sides)
                parameters = operator.n_parameters(self.resized, n_in, n_out)
            self.costs[seen] = self.counting.price(self.node, shapes, old_shapes, parameters)
        return self.costs[seen]

    def shapes(self, widths: Mapping[str, int]) -> Shapes:
        """Returns the shapes of what it reads and returns under a plan."""
        return {name: [size_in(axis, widths) for axis in axes] for name, axes in self.axes.items()}


_prices: WeakKeyDictionary[Channels, dict[Counting, list[_Priced]]] = WeakKeyDictionary()
