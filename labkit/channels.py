"""Channel groups: which sides of which layers must have the same width, from the dataflow.

Tensors here are `[..., features]`: one channel axis, the last, as linear layers see it. A layer's
*side* is its input or its output. Two sides belong to one group when some tensor joins them, so a
group is the smallest thing whose width can change without breaking the network.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError
from labkit.graph import describe, layer_nodes, trace

ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink,
    nn.Tanhshrink, nn.Threshold, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
# Not elementwise, but they keep the shape and have no parameters, so a width passes through.
SHAPE_PRESERVING_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
# One parameter (or running statistic) a channel.
CHANNELWISE_MODULES = (nn.BatchNorm1d, nn.LayerNorm, nn.PReLU)

SHAPE_PRESERVING_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus, F.softsign, F.logsigmoid, F.dropout,
    F.softmax, F.log_softmax, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.log,
    torch.abs, torch.neg, torch.sqrt, torch.square, torch.clamp, torch.softmax, torch.add,
    torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, operator.add, operator.sub,
    operator.mul, operator.truediv, operator.neg, operator.iadd, operator.isub, operator.imul,
    operator.itruediv,
}  # fmt: skip
SHAPE_PRESERVING_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "log", "abs", "neg", "sqrt",
    "square", "clamp", "clamp_", "softmax", "log_softmax", "add", "add_", "sub", "sub_", "mul",
    "mul_", "div", "div_", "contiguous", "clone", "detach", "float", "double",
}  # fmt: skip


@dataclass(frozen=True)
class ChannelGroup:
    """The sides of layers that share one width.

    Attributes:
        name: The fx name of the first linear layer that writes these channels; where none does,
            that of the first layer that reads them, followed by " input".
        width: The number of channels in the network as it was given.
        writers: fx names of the linear layers whose output has these channels.
        readers: fx names of the linear layers whose input has these channels.
        fixed: Why the width cannot change, or `None` where it can.
        unknown: True where it is fixed because some node's effect on channels is not known.
    """

    name: str
    width: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    fixed: str | None
    unknown: bool = False


@dataclass(frozen=True)
class Channels:
    """A network's channel groups, and the group on each side of each layer.

    Attributes:
        traced: The network as an fx graph.
        groups: All groups that some layer has, in graph order.
        inputs: fx name of a layer → the group of its input channels.
        outputs: fx name of a layer → the group of its output channels.
    """

    traced: GraphModule
    groups: tuple[ChannelGroup, ...]
    inputs: dict[str, ChannelGroup]
    outputs: dict[str, ChannelGroup]

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width can change."""
        return tuple(group for group in self.groups if group.fixed is None)


class _Axis:
    """The channel axis of a tensor, or a side of a layer: an element of a union-find forest."""

    def __init__(self, width: int | None = None, fixed: str | None = None, unknown: bool = False):
        self.parent = self
        self.width = width
        self.fixed = fixed
        self.unknown = unknown

    def root(self) -> _Axis:
        axis = self
        while axis.parent is not axis:
            axis = axis.parent
        return axis

    def fix(self, why: str, unknown: bool = False) -> None:
        root = self.root()
        # An unknown node is the stronger reason: the request is then an error, not a warning.
        if root.fixed is None or (unknown and not root.unknown):
            root.fixed, root.unknown = why, unknown

    def join(self, other: _Axis, node: Node) -> None:
        a, b = self.root(), other.root()
        if a is b:
            return
        if a.width is not None and b.width is not None and a.width != b.width:
            raise LabkitError(
                f"model: {describe(node)} receives {a.width} channels but expects {b.width}"
            )
        b.parent = a
        a.width = b.width if a.width is None else a.width
        if b.fixed is not None:
            a.fix(b.fixed, b.unknown)


def _sides(module: nn.Module) -> tuple[_Axis, _Axis] | None:
    """Returns the axes of a layer's input and output, or `None` if it has no width of its own."""
    if isinstance(module, nn.Linear):
        return _Axis(module.in_features), _Axis(module.out_features)
    if isinstance(module, nn.BatchNorm1d):
        axis = _Axis(module.num_features)
        return axis, axis
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        axis = _Axis(module.normalized_shape[0])
        return axis, axis
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        axis = _Axis(module.num_parameters)
        return axis, axis
    return None


def _tied_modules(traced: GraphModule) -> dict[nn.Module, str]:
    """Returns the modules whose parameters are not theirs alone, with the reason to leave them."""
    owners = Counter(id(p) for m in set(traced.modules()) for p in m.parameters(recurse=False))
    reasons = {}
    for node, module in layer_nodes(traced):
        if hasattr(module, "parametrizations"):
            reasons[module] = f"'{node.name}' has a parametrized weight"
        elif any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            reasons[module] = f"'{node.name}' shares its weight with another layer"
    return reasons


class _Analysis:
    """One walk over the graph that gives every tensor a channel axis and joins what must agree."""

    def __init__(self, traced: GraphModule):
        self.traced = traced
        self.axis: dict[Node, _Axis] = {}
        self.sides: dict[nn.Module, tuple[_Axis, _Axis] | None] = {}
        tied = _tied_modules(traced)
        for _, module in layer_nodes(traced):
            if module not in self.sides:  # a shared module has one pair of sides
                self.sides[module] = _sides(module)
                if module in tied:
                    for side in self.sides[module] or ():
                        side.fix(tied[module], unknown=True)
        for node in traced.graph.nodes:
            self.visit(node)

    def visit(self, node: Node) -> None:
        inputs = [self.axis[n] for n in node.all_input_nodes if n in self.axis]
        match node.op:
            case "placeholder":
                self.axis[node] = _Axis(fixed="it is the network's input")
            case "output":
                for axis in inputs:
                    axis.fix("it is the network's output")
            case "get_attr":
                self.axis[node] = _Axis(fixed=f"it meets the constant '{node.target}'")
            case "call_module":
                self.visit_layer(node, inputs)
            case "call_function" if inputs and node.target in SHAPE_PRESERVING_FUNCTIONS:
                self.axis[node] = self.join_all(node, inputs)
            case "call_method" if inputs and node.target in SHAPE_PRESERVING_METHODS:
                self.axis[node] = self.join_all(node, inputs)
            case _:
                self.axis[node] = self.fix_unknown(node, inputs)

    def visit_layer(self, node: Node, inputs: list[_Axis]) -> None:
        module = self.traced.get_submodule(str(node.target))
        sides = self.sides[module]
        if sides is not None and len(inputs) == 1:
            inputs[0].join(sides[0], node)
            self.axis[node] = sides[1]
        elif isinstance(module, ELEMENTWISE_MODULES + SHAPE_PRESERVING_MODULES) or (
            isinstance(module, nn.PReLU) and module.num_parameters == 1
        ):
            self.axis[node] = self.join_all(node, inputs)
        else:
            self.axis[node] = self.fix_unknown(node, inputs)

    @staticmethod
    def join_all(node: Node, inputs: list[_Axis]) -> _Axis:
        widest = max(inputs, key=lambda axis: axis.root().width or 0)
        for axis in inputs:
            if axis.root().width == 1 and widest.root().width not in (1, None):
                axis.fix(f"it is broadcast over channels in {describe(node)}")
            else:
                widest.join(axis, node)
        return widest

    @staticmethod
    def fix_unknown(node: Node, inputs: list[_Axis]) -> _Axis:
        why = f"labkit does not know what {describe(node)} does to channels"
        for axis in inputs:
            axis.fix(why, unknown=True)
        return _Axis(fixed=why, unknown=True)

    def named_sides(self) -> Iterator[tuple[str, nn.Module, _Axis, _Axis]]:
        for node, module in layer_nodes(self.traced):
            sides = self.sides[module]
            if sides is not None:
                yield node.name, module, sides[0].root(), sides[1].root()
            elif (axis := self.axis[node].root()).width is not None:
                yield node.name, module, axis, axis


def find_channels(model: nn.Module | Channels) -> Channels:
    """Returns the channel groups of a network of linear layers.

    Args:
        model: A network that torch.fx can trace; an analysis made before is returned as it is.

    Raises:
        LabkitError: The network cannot be traced, or two widths that must agree differ.
    """
    if isinstance(model, Channels):
        return model
    traced = trace(model)
    sides = list(_Analysis(traced).named_sides())
    groups: dict[_Axis, ChannelGroup] = {}
    for axis in dict.fromkeys(axis for _, _, a, b in sides for axis in (a, b)):
        linear = [(n, a, b) for n, module, a, b in sides if isinstance(module, nn.Linear)]
        writers = tuple(name for name, _, output in linear if output is axis)
        readers = tuple(name for name, input_, _ in linear if input_ is axis)
        first = next(name for name, _, a, b in sides if axis in (a, b))
        assert axis.width is not None
        groups[axis] = ChannelGroup(
            writers[0] if writers else f"{first} input",
            axis.width,
            writers,
            readers,
            axis.fixed,
            axis.unknown,
        )
    return Channels(
        traced,
        tuple(groups.values()),
        {name: groups[a] for name, _, a, _ in sides},
        {name: groups[b] for name, _, _, b in sides},
    )
