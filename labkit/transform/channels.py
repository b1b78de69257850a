"""Channel groups: which sides of which layers must have the same width, from the dataflow.

A layer's *side* is its input or its output. Two sides belong to one group when some tensor joins
them, so a group is the smallest thing whose width can change without breaking the network. A side
may be made of several groups, one after the other, as behind a concatenation.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from labkit.operators import layout as lay
from labkit.operators.layout import Layout, Term, Var
from labkit.transform.graph import (
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    SCALABLE_MODULES,
    TRANSPOSED_CONVOLUTIONS,
    Example,
    Size,
    describe,
    example_input_for,
    is_shape,
    layer_nodes,
    trace,
)

ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink,
    nn.Tanhshrink, nn.Threshold, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
# Not elementwise, but they keep the shape and have no parameters, so a width passes through.
SOFTMAX_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
POOLING_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.LPPool1d, nn.LPPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# They work on the last axes of each channel by itself; how many axes is in the name.
SPATIAL_MODULES: tuple[type[nn.Module], ...] = (
    *POOLING_MODULES, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d,
    nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
POOLING_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d,
    F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool1d, torch.max_pool2d,
    torch.max_pool3d, F.lp_pool1d, F.lp_pool2d,
}  # fmt: skip
SOFTMAX_NAMES = {F.softmax, F.log_softmax, torch.softmax, "softmax", "log_softmax"}
SHAPE_PRESERVING_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus, F.softsign, F.logsigmoid, F.dropout,
    F.dropout1d, F.dropout2d, F.dropout3d,
    F.softmax, F.log_softmax, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.log,
    torch.abs, torch.neg, torch.sqrt, torch.square, torch.clamp, torch.softmax, torch.add,
    torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, operator.add, operator.sub,
    operator.mul, operator.truediv, operator.neg, operator.iadd, operator.isub, operator.imul,
    operator.itruediv, operator.pow, torch.pow,
}  # fmt: skip
SHAPE_PRESERVING_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "log", "abs", "neg", "sqrt",
    "square", "clamp", "clamp_", "softmax", "log_softmax", "add", "add_", "sub", "sub_", "mul",
    "mul_", "div", "div_", "contiguous", "clone", "detach", "float", "double", "pow",
}  # fmt: skip
# What a tensor's axes are made of.
Axes = list[Layout]


@dataclass(frozen=True)
class ChannelGroup:
    """The sides of layers that share one width.

    Attributes:
        name: The fx name of the first layer that writes these channels, with their range where it
            writes others too (`split_0[0:8]`); where no layer does, that of the first layer that
            reads them, followed by " input".
        width: The number of channels in the network as it was given.
        multiple: What the width must stay a multiple of, as before a grouped convolution.
        writers: fx names of the layers with weights whose output has these channels.
        readers: fx names of the layers with weights whose input has these channels.
        fixed: Why the width cannot change, or `None` where it can.
        unknown: True where it is fixed because some node's effect on channels is not known.
    """

    name: str
    width: int
    multiple: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    fixed: str | None
    unknown: bool = False

    @property
    def n_units(self) -> int:
        """How many times the width has what it is a multiple of: what copies are made of."""
        return self.width // self.multiple


@dataclass(frozen=True)
class Part:
    """A group's channels within a side.

    Attributes:
        group: The group.
        inner: Elements of the side for each `group.multiple` of its channels: the size of a block
            behind a flattening.
        ordered: Whether a channel's elements lie together, in the order of the channels.
    """

    group: ChannelGroup
    inner: int
    ordered: bool


@dataclass(frozen=True)
class Side:
    """What the channels of one side of a layer are made of, in their order."""

    parts: tuple[Part, ...]

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups, each once."""
        return tuple(dict.fromkeys(part.group for part in self.parts))

    @property
    def width(self) -> int:
        """The channels in the network as it was given."""
        return self.width_in({})

    def width_in(self, widths: Mapping[str, int]) -> int:
        """Returns the channels under a plan.

        Args:
            widths: Group name → width; a group that is missing keeps its own.
        """
        return sum(
            widths.get(part.group.name, part.group.width) // part.group.multiple * part.inner
            for part in self.parts
        )


@dataclass(frozen=True)
class Literal:
    """A size that the network's code has as a number, which follows a width.

    Attributes:
        node: The name of the call.
        path: Where in its arguments: keys, indices, and `"start"` or `"stop"` of a slice.
        value: The side that it is the size of; several for a list of sizes.
    """

    node: str
    path: tuple[str | int, ...]
    value: Side | tuple[Side, ...]


@dataclass(frozen=True)
class Mixing:
    """A node that computes something over channels, and not of each alone.

    Attributes:
        node: The node in words.
        side: The channels.
        averages: Whether channels copied equally often leave what it computes as it is.
    """

    node: str
    side: Side
    averages: bool


@dataclass(frozen=True)
class Channels:
    """A network's channel groups, and the groups on each side of each layer.

    Attributes:
        traced: The network as an fx graph.
        example_input: What it was traced with.
        groups: All groups that some layer has, in graph order.
        inputs: fx name of a layer → its input channels.
        outputs: fx name of a layer → its output channels.
        literals: Numbers in the network's code that follow a width.
        mixing: What copied channels may change the result of.
    """

    traced: GraphModule
    example_input: Example
    groups: tuple[ChannelGroup, ...]
    inputs: dict[str, Side]
    outputs: dict[str, Side]
    literals: tuple[Literal, ...]
    mixing: tuple[Mixing, ...]

    # Cached, since a search resolves thousands of configurations.
    @functools.cached_property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width can change."""
        return tuple(group for group in self.groups if group.fixed is None)

    @functools.cached_property
    def layers(self) -> dict[str, nn.Module]:
        """Fx name of a call of a module → the module, in graph order."""
        return {node.name: module for node, module in layer_nodes(self.traced)}


def find_channels(model: nn.Module | Channels, example_input: Example | None = None) -> Channels:
    """Returns the channel groups of a network.

    Args:
        model: A network that torch.fx can trace; an analysis made before is returned as it is.
        example_input: `[batch, …]`, or one such tensor for each input; by default read off the
            first layer, where that is linear.

    Raises:
        LabkitError: The network cannot be traced, or does not take the example.
    """
    if isinstance(model, Channels):
        return model
    if example_input is None:
        example_input = example_input_for(model)
    traced = trace(model, example_input)
    return _Analysis(traced).channels(example_input)


def channel_groups(
    model: nn.Module | Channels, example_input: Example | None = None
) -> pd.DataFrame:
    """Returns the channel groups of a network, for people to read.

    Args:
        model: As `find_channels` takes it.
        example_input: As there.

    Returns:
        One row a group, indexed by name: width, multiple, writers, readers, and why it is fixed
        (empty where it can change).

    Raises:
        LabkitError: As `find_channels` raises it.
    """
    rows = {
        group.name: {
            "width": group.width,
            "multiple": group.multiple,
            "writers": ", ".join(group.writers),
            "readers": ", ".join(group.readers),
            "fixed": group.fixed or "",
        }
        for group in find_channels(model, example_input).groups
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def follows_its_input(module: nn.Module) -> bool:
    """Returns whether a layer has one group of channels for each channel: a depthwise layer."""
    match module:
        case nn.GroupNorm():
            return module.num_groups == module.num_channels
        case _ if isinstance(module, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS):
            return module.groups == module.in_channels > 1
    return False


def _sides(module: nn.Module) -> tuple[Layout, Layout] | None:
    """Returns the channels of a layer's input and output, or `None` if it has none of its own."""
    match module:
        case nn.Linear():
            return (Term(Var(module.in_features)),), (Term(Var(module.out_features)),)
        case _ if isinstance(module, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS):
            before, after, groups = module.in_channels, module.out_channels, module.groups
            if follows_its_input(module):
                var = Var(before)
                return (Term(var),), (Term(var, after // before),)
            # In equal groups, so that the width stays a multiple of their number.
            return (Term(Var(before // groups)),) * groups, (Term(Var(after // groups)),) * groups
        case nn.Embedding():
            why = "it is a table of as many entries"
            return lay.constant(module.num_embeddings, why), (Term(Var(module.embedding_dim)),)
        case nn.GroupNorm():
            groups = 1 if follows_its_input(module) else module.num_groups
            axis: Layout = (Term(Var(module.num_channels // groups)),) * groups
        case nn.LayerNorm() if len(module.normalized_shape) == 1:
            axis = (Term(Var(module.normalized_shape[0])),)
        case nn.PReLU() if module.num_parameters > 1:
            axis = (Term(Var(module.num_parameters)),)
        case _ if isinstance(module, BATCH_NORMS + INSTANCE_NORMS):
            axis = (Term(Var(int(module.num_features))),)
        case _:
            return None
    return axis, axis


def has_widths(module: nn.Module) -> bool:
    """Returns whether a layer has widths of its own, and not just those of its input."""
    return _sides(module) is not None


def _tied_modules(traced: GraphModule) -> dict[nn.Module, str]:
    """Returns the modules whose parameters are not theirs alone, with the reason to leave them."""
    owners = Counter(id(p) for m in set(traced.modules()) for p in m.parameters(recurse=False))
    attributes = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    used = {id(p) for name, p in traced.named_parameters() if name in attributes}
    reasons = {}
    for node, module in layer_nodes(traced):
        own = {id(p) for p in module.parameters(recurse=False)}
        if hasattr(module, "parametrizations"):
            reasons[module] = f"'{node.name}' has a parametrized weight"
        elif any(owners[p] > 1 for p in own):
            reasons[module] = f"'{node.name}' shares its weight with another layer"
        elif own & used:
            reasons[module] = f"the weight of '{node.name}' is used outside it, too"
    return reasons


class _Analysis:
    """One walk over the graph that says what each axis of each tensor is made of."""

    def __init__(self, traced: GraphModule):
        self.traced = traced
        self.axes: dict[Node, Any] = {}  # a tensor's axes, or a tuple of several tensors'
        self.sides: dict[nn.Module, tuple[Layout, Layout] | None] = {}
        self.literals: list[tuple[str, tuple[str | int, ...], Layout | list[Layout]]] = []
        self.mixing: list[tuple[str, Layout, bool]] = []
        tied = _tied_modules(traced)
        for _, module in layer_nodes(traced):
            if module not in self.sides:  # a shared module has one pair of sides
                self.sides[module] = _sides(module)
                for side in (self.sides[module] or ()) if module in tied else ():
                    lay.fix(side, tied[module], unknown=True)
        for node in traced.graph.nodes:
            self.visit(node)

    # What each node does to its axes.

    def visit(self, node: Node) -> None:
        shape = node.meta["shape"]
        inputs = [self.axes[n] for n in node.all_input_nodes if n in self.axes]
        match node.op:
            case "placeholder":
                if shape is not None:
                    self.axes[node] = self.fixed(shape, "it is the network's input")
                return
            case "get_attr":
                if shape is not None:
                    self.axes[node] = self.fixed(shape, f"it meets the constant '{node.target}'")
                return
            case "output":
                for axis in _all_axes(inputs):
                    lay.fix(axis, "it is the network's output")
                return
        if shape is None and not inputs:
            return  # arithmetic with sizes
        if shape is None and node.target in ("size", "dim", "numel", getattr):
            return
        if node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
            axes = self.visit_layer(node, module, inputs)
        else:
            rule = RULES.get(node.target)
            axes = rule(self, node, inputs) if rule is not None and inputs else None
        self.axes[node] = self.unknown(node, inputs) if axes is None else axes

    def visit_layer(self, node: Node, module: nn.Module, inputs: list[Any]) -> Axes | None:
        if len(inputs) != 1 or not isinstance(inputs[0], list):
            return None
        x, sides, shape = inputs[0], self.sides[module], node.meta["shape"]
        if sides is not None:
            return self.visit_sided(node, module, x, *sides)
        if isinstance(module, ELEMENTWISE_MODULES + CHANNEL_DROPOUTS + (nn.PReLU,)):
            return list(x)
        if isinstance(module, SOFTMAX_MODULES):
            self.mix(node, x[1 if module.dim is None else module.dim], averages=False)
            return list(x)
        if isinstance(module, SPATIAL_MODULES):
            return self.spatial(x, shape, _spatial_rank(module))
        match module:
            case nn.Upsample():
                return self.spatial(x, shape, len(shape) - 2)
            case nn.Flatten():
                return self.reshaped(node, x)
            case nn.ChannelShuffle():
                block = lay.split_evenly(x[1], module.groups)
                shuffled = tuple(replace(t, inner=t.inner * module.groups) for t in block)
                return [x[0], shuffled, *x[2:]]
        return None

    def visit_sided(
        self, node: Node, module: nn.Module, x: Axes, before: Layout, after: Layout
    ) -> Axes | None:
        shape = node.meta["shape"]
        if isinstance(module, nn.Embedding):
            return [*x, after]
        if isinstance(module, nn.Linear | nn.LayerNorm):
            axis = len(x) - 1
            if isinstance(module, nn.LayerNorm):
                self.mix(node, before, averages=True)
        elif isinstance(module, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS + INSTANCE_NORMS):
            axis = len(x) - 1 - _spatial_rank(module)
        else:
            axis = min(1, len(x) - 1)
            if isinstance(module, nn.GroupNorm) and not follows_its_input(module):
                self.mix(node, before, averages=True)
        lay.join(x[axis], before)
        if not isinstance(module, BATCH_NORMS):
            for space in x[axis + 1 :]:
                lay.fix(space, f"it is space to {describe(node)}")
        return [
            after if i == axis else kept if lay.size(kept) == shape[i] else self.sized(shape[i])
            for i, kept in enumerate(x)
        ]

    def unknown(self, node: Node, inputs: list[Any]) -> Any:
        why = f"labkit does not know what {describe(node)} does to channels"
        for axis in _all_axes(inputs):
            lay.fix(axis, why, unknown=True)
        return self.fixed(node.meta["shape"], why, unknown=True)

    @classmethod
    def fixed(cls, shape: Any, why: str, unknown: bool = False) -> Any:
        if not is_shape(shape):
            return tuple(cls.fixed(part, why, unknown) for part in shape or ())
        return [lay.constant(size, why, unknown) for size in shape]

    @staticmethod
    def sized(size: int) -> Layout:
        return lay.constant(size, "it is no axis of channels")

    def mix(self, node: Node, axis: Layout, averages: bool) -> None:
        self.mixing.append((describe(node), axis, averages))

    def literal(self, node: Node, path: Sequence[str | int], value: Layout | list[Layout]) -> None:
        self.literals.append((node.name, tuple(path), value))

    def elementwise(self, node: Node, inputs: list[Any]) -> Axes | None:
        if not all(isinstance(axes, list) for axes in inputs):
            return None
        if node.target in SOFTMAX_NAMES:
            dim = _argument(node, 1, "dim")
            self.mix(node, inputs[0][1 if dim is None else dim], averages=False)
        result: Axes = []
        for i in range(1, max(map(len, inputs)) + 1):
            meeting = [axes[-i] for axes in inputs if len(axes) >= i]
            wide = [axis for axis in meeting if lay.size(axis) > 1]
            for axis in meeting if wide else ():
                if lay.size(axis) == 1:
                    lay.fix(axis, f"it is broadcast over channels in {describe(node)}")
            first, *others = wide or meeting
            for axis in others:
                lay.join(first, axis)
            result.insert(0, first)
        return result

    def spatial(self, x: Axes, shape: Sequence[int], rank: int) -> Axes | None:
        """Keeps all axes but the last `rank`, which have no channels."""
        kept = x[: len(x) - rank]
        if any(map(lay.free, x[len(kept) :])):
            return None
        return [*kept, *map(self.sized, shape[len(kept) :])]

    def pooled(self, node: Node, inputs: list[Any]) -> Axes | None:
        return self.spatial(inputs[0], node.meta["shape"], _spatial_rank(node.target))

    def interpolated(self, node: Node, inputs: list[Any]) -> Axes | None:
        return self.spatial(inputs[0], node.meta["shape"], len(inputs[0]) - 2)

    def padded(self, node: Node, inputs: list[Any]) -> Axes | None:
        x, pads = list(inputs[0]), _argument(node, 1, "pad")
        for i, (before, after) in enumerate(zip(pads[::2], pads[1::2])):
            if min(before, after) < 0 and lay.free(x[-1 - i]):
                return None
            if min(before, after) < 0:
                x[-1 - i] = self.sized(node.meta["shape"][-1 - i])
                continue
            why = f"{describe(node)} pads with so many channels"
            pad = [lay.constant(n, why) if n else () for n in (before, after)]
            x[-1 - i] = (*pad[0], *x[-1 - i], *pad[1])
        return x

    def concatenated(self, node: Node, inputs: list[Any]) -> Axes | None:
        parts = [self.axes[part] for part in _argument(node, 0, "tensors")]
        dim = _argument(node, 1, "dim", 0) % len(parts[0])
        first, *others = parts
        for other in others:
            for i in range(len(first)):
                if i != dim:
                    lay.join(first[i], other[i])
        together = tuple(term for part in parts for term in part[dim])
        return [together if i == dim else axis for i, axis in enumerate(first)]

    def chunked(self, node: Node, inputs: list[Any]) -> Any:
        x, n = inputs[0], _argument(node, 1, "chunks")
        dim = _argument(node, 2, "dim", 0) % len(x)
        shapes = node.meta["shape"]
        if not lay.free(x[dim]):
            return self.cut(x, dim, [shape[dim] for shape in shapes])
        if len(shapes) != n or lay.size(x[dim]) % n:
            return None  # the last chunk is smaller, which other widths would change
        part = lay.split_evenly(x[dim], n)
        return tuple([*x[:dim], part, *x[dim + 1 :]] for _ in range(n))

    def cut(self, x: Axes, dim: int, sizes: Sequence[int]) -> tuple[Axes, ...]:
        return tuple([*x[:dim], part, *x[dim + 1 :]] for part in lay.split(x[dim], sizes))

    def split(self, node: Node, inputs: list[Any]) -> Any:
        x = inputs[0]
        dim = _argument(node, 2, "dim", 0) % len(x)
        parts = self.cut(x, dim, [shape[dim] for shape in node.meta["shape"]])
        if lay.free(x[dim]):
            path = ("args", 1) if len(node.args) > 1 else ("kwargs", _split_key(node))
            self.literal(node, path, [part[dim] for part in parts])
        return parts

    def item(self, node: Node, inputs: list[Any]) -> Any:
        x, index = inputs[0], node.args[1]
        if isinstance(x, tuple):
            return x[index] if isinstance(index, int) else None
        items = index if isinstance(index, tuple) else (index,)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            n_named = sum(item is not None and item is not Ellipsis for item in items)
            items = (*items[:at], *[slice(None)] * (len(x) - n_named), *items[at + 1 :])
        result: Axes = []
        rest = list(x)
        for place, item in enumerate(items):
            if item is None:
                result.append(self.sized(1))
            elif item == slice(None):
                result.append(rest.pop(0))
            elif isinstance(item, int) and not lay.free(rest[0]):
                rest.pop(0)
            elif isinstance(item, slice) and not lay.free(rest[0]):
                result.append(self.sized(node.meta["shape"][len(result)]))
                rest.pop(0)
            elif isinstance(item, slice) and Ellipsis not in _as_tuple(index):
                path = ("args", 1, place) if isinstance(index, tuple) else ("args", 1)
                part = self.sliced(node, rest.pop(0), item, path)
                if part is None:
                    return None
                result.append(part)
            else:
                return None
        return [*result, *rest]

    def sliced(
        self, node: Node, axis: Layout, item: slice, path: Sequence[str | int]
    ) -> Layout | None:
        if item.step not in (None, 1) or any(isinstance(b, Node) for b in (item.start, item.stop)):
            return None
        start, stop, _ = item.indices(lay.size(axis))
        before, part, _ = lay.split(axis, [start, stop - start, lay.size(axis) - stop])
        if item.start is not None:
            self.literal(node, [*path, "start"], before)
        if item.stop is not None:
            self.literal(node, [*path, "stop"], (*before, *part))
        return part

    def reduced(self, node: Node, inputs: list[Any]) -> Axes | None:
        x, shape = inputs[0], node.meta["shape"]
        dims = _argument(node, 1, "dim")
        keep = bool(_argument(node, 2, "keepdim", False))
        if dims is None or not is_shape(shape):
            return None
        dims = {dim % len(x) for dim in _as_tuple(dims)}
        for dim in dims:
            if lay.free(x[dim]):
                name = getattr(node.target, "__name__", str(node.target))
                if name not in ("amax", "amin"):  # a copy does not change the extremes
                    self.mix(node, x[dim], averages=name == "mean")
        kept = [self.sized(1) if i in dims else axis for i, axis in enumerate(x)]
        return kept if keep else [axis for i, axis in enumerate(kept) if i not in dims]

    def transposed(self, node: Node, inputs: list[Any]) -> Axes:
        x = list(inputs[0])
        i, j = _argument(node, 1, "dim0"), _argument(node, 2, "dim1")
        x[i], x[j] = x[j], x[i]
        return x

    def permuted(self, node: Node, inputs: list[Any]) -> Axes:
        dims: Any = node.kwargs.get("dims", node.args[1:])
        dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
        return [inputs[0][dim] for dim in dims]

    def unsqueezed(self, node: Node, inputs: list[Any]) -> Axes:
        x = list(inputs[0])
        x.insert(_argument(node, 1, "dim") % (len(x) + 1), self.sized(1))
        return x

    def squeezed(self, node: Node, inputs: list[Any]) -> Axes | None:
        x, dim = inputs[0], _argument(node, 1, "dim")
        dims = range(len(x)) if dim is None else [d % len(x) for d in _as_tuple(dim)]
        gone = [i for i in dims if lay.size(x[i]) == 1]
        if any(lay.free(x[i]) for i in dims if i in gone):
            return None
        return [axis for i, axis in enumerate(x) if i not in gone]

    def expanded(self, node: Node, inputs: list[Any]) -> Axes | None:
        x, shape = inputs[0], node.meta["shape"]
        if len(inputs) > 1:  # expand_as
            return self.elementwise(node, inputs)
        if len(shape) != len(x) or any(
            lay.size(axis) != size and lay.free(axis) for axis, size in zip(x, shape)
        ):
            return None
        sizes = _sizes(node)
        for i, axis in enumerate(x):
            if lay.free(axis) and isinstance(sizes[i][0], int) and sizes[i][0] != -1:
                self.literal(node, sizes[i][1], axis)
        return [
            axis if lay.size(axis) == size else self.sized(size) for axis, size in zip(x, shape)
        ]

    def reshaped(self, node: Node, inputs: list[Any]) -> Axes | None:
        """Takes apart and puts together axes, as `view` and `flatten` do.

        Axes are matched in runs of equal size. Within a run the channels may become a block each
        (`[x, 4, 4]` → `[x · 16]`), or be dealt into groups (`[x]` → `[2, x / 2]`).
        """
        x: Axes = inputs if node.op == "call_module" else inputs[0]
        shape = node.meta["shape"]
        by_number = node.target in ("view", "reshape", torch.reshape)
        sizes = _sizes(node) if by_number else []
        if by_number and len(sizes) != len(shape):
            return None  # not a list of sizes
        result: Axes = []
        for before, after in _runs([lay.size(axis) for axis in x], shape):
            axes, n_after = x[before.start : before.stop], len(after)
            if not any(map(lay.free, axes)):
                whole = axes[0] if len(axes) == n_after == 1 else None
                result += [whole] if whole else map(self.sized, shape[after.start : after.stop])
                continue
            if before.start == 0:
                return None  # channels fold into the batch
            merged: Layout | None = axes[0]
            for axis in axes[1:]:
                merged = None if merged is None else lay.product(merged, axis)
            if merged is None:
                return None  # channels times channels
            where = [sizes[i][0] if by_number else None for i in after]
            as_image = len(x) == 2 and after.start == 1  # from features to channels and space
            result += self.dealt(merged, [shape[i] for i in after], where, as_image)
        for size, axis, (given, path) in zip(shape, result, sizes):
            if given == size and isinstance(given, int) and lay.free(axis):
                self.literal(node, path, axis)
        return result

    def dealt(self, axis: Layout, sizes: Sequence[int], given: Sequence[Any], first: bool) -> Axes:
        """Returns an axis as several, of which one has the channels: the first, where asked."""
        if len(sizes) == 1:
            return [axis]
        # The one whose size the code read off a tensor or left open; else the first that can be.
        derived = [i for i, g in enumerate(given) if isinstance(g, Size) or g == -1]
        possible = [
            i
            for i in range(len(sizes))
            if all(term.inner % math.prod(sizes[i + 1 :]) == 0 for term in lay.expand(axis))
        ]
        if len(derived) == 1:
            at = derived[0]
        else:
            at = 0 if first else possible[0] if possible else len(sizes) - 1
        axis = lay.without_inner(axis, math.prod(sizes[at + 1 :]))
        axis = lay.split_evenly(axis, math.prod(sizes[:at]))
        return [*map(self.sized, sizes[:at]), axis, *map(self.sized, sizes[at + 1 :])]

    # The outcome.

    def named_sides(self) -> Iterator[tuple[str, nn.Module, Layout, Layout]]:
        """Yields each layer that has channels, and what those of its input and output are."""
        for node, module in layer_nodes(self.traced):
            sides = self.sides[module]
            if sides is not None:
                yield node.name, module, lay.expand(sides[0]), lay.expand(sides[1])
                continue
            tensors = [self.axes.get(n) for n in (*node.all_input_nodes[:1], node)]
            channels = [
                next((lay.expand(axis) for axis in axes if lay.free(axis)), lay.expand(axes[1]))
                for axes in tensors
                if isinstance(axes, list) and len(axes) > 1
            ]
            if len(channels) == 2:
                yield node.name, module, channels[0], channels[1]

    def channels(self, example_input: Example) -> Channels:
        layers = list(self.named_sides())
        groups: dict[Var, ChannelGroup] = {}

        def side_of(layout: Layout) -> Side:
            layout = lay.expand(layout)
            for term in layout:
                if term.var not in groups:
                    groups[term.var] = _group(term.var, layers, layout)
            return Side(tuple(Part(groups[t.var], t.inner, t.ordered) for t in layout))

        inputs = {name: side_of(before) for name, _, before, _ in layers}
        outputs = {name: side_of(after) for name, _, _, after in layers}
        order = dict.fromkeys(
            g for name in inputs for g in inputs[name].groups + outputs[name].groups
        )
        literals = [
            Literal(node, path, tuple(map(side_of, v)) if isinstance(v, list) else side_of(v))
            for node, path, v in self.literals
        ]
        mixing = [
            Mixing(node, side_of(axis), averages)
            for node, axis, averages in self.mixing
            if lay.free(axis)
        ]
        return Channels(
            self.traced,
            example_input,
            tuple(order),
            inputs,
            outputs,
            tuple(literals),
            tuple(mixing),
        )


def _group(
    var: Var, layers: Sequence[tuple[str, nn.Module, Layout, Layout]], met_in: Layout
) -> ChannelGroup:
    """Returns the group of a variable.

    Args:
        var: One that no other defines.
        layers: Name, module, and the two sides of each layer.
        met_in: An axis that has it, in case that no layer does.
    """
    weighted = [
        (name, before, after)
        for name, module, before, after in layers
        if isinstance(module, SCALABLE_MODULES) and not follows_its_input(module)
    ]
    writers = [name for name, _, after in weighted if any(t.var is var for t in after)]
    readers = [name for name, before, _ in weighted if any(t.var is var for t in before)]
    if writers:
        name = writers[0]
        side = next(after for other, _, after in weighted if other == name)
    else:
        first = ((n, s) for n, _, *sides in layers for s in sides if any(t.var is var for t in s))
        name, side = next(first, ("", met_in))
        name = f"{name} input"
    if any(term.var is not var for term in side):
        at = next(i for i, term in enumerate(side) if term.var is var)
        start = lay.size(side[:at])
        name = f"{name}[{start}:{start + side[at].size}]"
    multiple = sum(term.inner for term in side if term.var is var)
    return ChannelGroup(
        name, multiple * var.size, multiple, tuple(writers), tuple(readers), var.fixed, var.unknown
    )


# Small questions about nodes.


def _all_axes(inputs: Sequence[Any]) -> Iterator[Layout]:
    for axes in inputs:
        if isinstance(axes, list):
            yield from axes
        else:
            yield from _all_axes(axes)


def _argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a function, or of a method whose first one is the tensor itself."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _spatial_rank(called: Any) -> int:
    """Returns how many last axes a layer or function works on: 2 for `Conv2d`, as its name says."""
    named = type(called).__mro__ if isinstance(called, nn.Module) else (called,)
    found = (re.search(r"(\d)d$", each.__name__) for each in named)
    return next(int(match[1]) for match in found if match)


def _split_key(node: Node) -> str:
    return "split_size" if "split_size" in node.kwargs else "split_size_or_sections"


def _sizes(node: Node) -> list[tuple[Any, tuple[str | int, ...]]]:
    """Returns the sizes that a reshaping call is given, each with its path in the arguments."""
    if "shape" in node.kwargs:
        sizes: Any = node.kwargs["shape"]
        return [(size, ("kwargs", "shape", i)) for i, size in enumerate(sizes)]
    if len(node.args) == 2 and isinstance(node.args[1], tuple | list):
        return [(size, ("args", 1, i)) for i, size in enumerate(node.args[1])]
    return [(size, ("args", i)) for i, size in enumerate(node.args) if i > 0]


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yields the shortest runs of axes of two shapes that have equal products, in order."""
    i = j = 0
    while i < len(before) and j < len(after):
        first_i, first_j, p, q = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                p, i = p * before[i], i + 1
            else:
                q, j = q * after[j], j + 1
        yield range(first_i, i), range(first_j, j)
    if i < len(before) or j < len(after):  # axes of size 1 are left
        yield range(i, len(before)), range(j, len(after))


Rule = Callable[[_Analysis, Node, list[Any]], Any]
RULES: dict[Any, Rule] = {
    **dict.fromkeys(SHAPE_PRESERVING_FUNCTIONS | SHAPE_PRESERVING_METHODS, _Analysis.elementwise),
    **dict.fromkeys(POOLING_FUNCTIONS, _Analysis.pooled),
    F.interpolate: _Analysis.interpolated,
    F.pad: _Analysis.padded,
    **dict.fromkeys([torch.cat, torch.concat], _Analysis.concatenated),
    **dict.fromkeys([torch.chunk, "chunk"], _Analysis.chunked),
    **dict.fromkeys([torch.split, "split"], _Analysis.split),
    operator.getitem: _Analysis.item,
    **dict.fromkeys(
        [torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"],
        _Analysis.reduced,
    ),
    **dict.fromkeys([torch.transpose, "transpose"], _Analysis.transposed),
    **dict.fromkeys([torch.permute, "permute"], _Analysis.permuted),
    **dict.fromkeys([torch.unsqueeze, "unsqueeze"], _Analysis.unsqueezed),
    **dict.fromkeys([torch.squeeze, "squeeze"], _Analysis.squeezed),
    **dict.fromkeys(["expand", "expand_as"], _Analysis.expanded),
    **dict.fromkeys(
        [torch.flatten, torch.reshape, "flatten", "view", "reshape"], _Analysis.reshaped
    ),
}
