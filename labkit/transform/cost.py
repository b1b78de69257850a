"""What a network costs: the one that it is given, or the one that a plan would give.

How costs are counted, and under which conventions, is in `labkit.transform.counting`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping

from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError
from labkit.operators.nodes import is_shape, module_of
from labkit.operators.registry import operator_of
from labkit.transform.channels import find_channels
from labkit.transform.counting import Cost, Counting, LayerCost, Shapes
from labkit.transform.graph import Example, example_input_for, trace
from labkit.transform.groups import Channels, Side
from labkit.transform.plan import Plan, Resolution, widths_of


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
    return {
        node.name: node.meta["shape"]
        for node in traced.graph.nodes
        if node.op != "output" and is_shape(node.meta["shape"])
    }


def _calls(traced: GraphModule) -> list[Node]:
    """Returns the calls that put out a tensor, and not a number as `x.size(0)` does."""
    calls = ("call_module", "call_function", "call_method")
    return [n for n in traced.graph.nodes if n.op in calls and is_shape(n.meta["shape"])]


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
        convention: `inference`, `training` or `reference`; see `labkit.transform.counting`.
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
    return counting.total(layers, _n_parameters(model))


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
        batch_size: As `total_cost` takes it.
        convention: As there. Under `reference` all but matrix products have the shapes of the
            network as it is.
        precision: As there.
        example_input: As `find_channels` takes it.

    Raises:
        LabkitError: An argument is out of range, or the plan is for another network.
    """
    counting = Counting.checked(batch_size, convention, precision)
    channels = find_channels(channels, example_input)
    widths = widths_of(channels, plan)
    by_counting = _prices.setdefault(channels, {})
    if counting not in by_counting:
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
    return counting.total(layers, parameters)


class _Priced:
    """A call of a network, with what it costs for each of the widths that were asked for.

    Args:
        node: The call.
        channels: Of the network.
        counting: How it is counted.

    Attributes:
        resized: The layer that it calls, if that has widths of its own.
        own_parameters: Those of the layer as it is.
    """

    def __init__(self, node: Node, channels: Channels, counting: Counting):
        self.node, self.counting = node, counting
        module, operator = module_of(node), operator_of(node)
        is_resized = operator is not None and operator.sides(module) is not None
        self.resized = module if is_resized else None
        self.own_parameters = _n_parameters(module)
        names = [n.name for n in (*node.all_input_nodes, node) if n.name in channels.shapes]
        self.axes = {name: channels.shapes[name] for name in names}
        self.sides = (channels.inputs[node.name], channels.outputs[node.name]) if is_resized else ()
        axes = (*self.sides, *itertools.chain(*self.axes.values()))
        groups = (g for axis in axes if isinstance(axis, Side) for g in axis.groups)
        self.groups = tuple(dict.fromkeys(g.name for g in groups if g.fixed is None))
        self.costs: dict[tuple[int, ...], LayerCost] = {}

    def cost(self, widths: Mapping[str, int]) -> LayerCost:
        """Returns what it costs under a plan.

        Args:
            widths: Group name → width.
        """
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
        return {
            name: [axis.width_in(widths) if isinstance(axis, Side) else axis for axis in axes]
            for name, axes in self.axes.items()
        }


_prices: weakref.WeakKeyDictionary[Channels, dict[Counting, list[_Priced]]] = (
    weakref.WeakKeyDictionary()
)
