"""One padded network of many candidates: the graph that `labkit.training.stack` trains."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from labkit.errors import LabkitError
from labkit.transform.channels import (
    ELEMENTWISE_MODULES,
    SHAPE_PRESERVING_FUNCTIONS,
    SHAPE_PRESERVING_METHODS,
)
from labkit.transform.graph import describe, is_shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
# Each channel by itself, but not each element: these need the layout of convolutions.
SPATIAL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Dropout1d, nn.Dropout2d,
)  # fmt: skip
SPATIAL_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.dropout1d, F.dropout2d,
}  # fmt: skip
MIXING = {F.softmax, F.log_softmax, torch.softmax, "softmax", "log_softmax"}
FUNCTIONS = SHAPE_PRESERVING_FUNCTIONS - MIXING
METHODS = SHAPE_PRESERVING_METHODS - MIXING
# Alpha dropout turns zeros into other numbers, so padding would not stay zero.
ELEMENTWISE = tuple(
    kind for kind in ELEMENTWISE_MODULES if kind not in (nn.AlphaDropout, nn.FeatureAlphaDropout)
)
RESHAPES = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}
# What computes a shape for a reshape; the stacked network knows its shapes.
SHAPE_QUERIES = {"size", getattr, operator.getitem}


class NotStackable(LabkitError):  # noqa: N818 — not a mistake: the plain loop can train it
    """A network that cannot be trained in a stack; the message says why."""


class _Channels(NamedTuple):
    """The layout of a tensor of the stacked network.

    Attributes:
        real: bool `[candidates, channels]`: which of the padded channels a candidate has.
        spatial: Whether the candidate axis is folded into the channels; see the module.
    """

    real: torch.Tensor
    spatial: bool


class _Linear(nn.Module):
    """`nn.Linear` for each candidate: `[candidates, in, rows]` → `[candidates, out, rows]`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.bmm(self.weight, x)
        # In place, since baddbmm would first write out the bias for every row, slowly.
        return y if self.bias is None else y.add_(self.bias[:, :, None])


class _PReLU(nn.PReLU):
    """`nn.PReLU` for each candidate, of `[candidates, channels, rows]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_fold(x)).view_as(x)


class _BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` for each candidate, of `[candidates, channels, rows]`.

    In training it is computed as a group norm with a group a channel: the same within rounding, and
    on a CPU several times faster where a channel's rows are contiguous.
    """

    def __init__(self, norm: nn.BatchNorm1d):
        features = norm.num_features
        super().__init__(features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.num_batches_tracked = copy.deepcopy(norm.num_batches_tracked)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(_fold(x)).view_as(x)
        rows = x.shape[2]
        channels = x.numel() // rows
        y, mean, rstd = torch.native_group_norm(
            x.contiguous(), self.weight, self.bias, 1, channels, rows, channels, self.eps
        )
        count = self.num_batches_tracked if self.track_running_stats else None
        if count is not None and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                count += 1
                factor = 1 / count.item() if self.momentum is None else self.momentum
                variance = rstd[0].pow(-2).sub_(self.eps).mul_(rows / (rows - 1))  # unbiased
                self.running_mean.lerp_(mean[0], factor)
                self.running_var.lerp_(variance, factor)
        return y


class Stack:
    """Candidates as one network.

    Args:
        traced: The network that they were made of, traced with shapes: `Channels.traced`.
        candidates: Networks that differ only in widths, with the weights to start from.

    Attributes:
        size: The number of candidates.
        network: Maps what `spread` returns to logits `[candidates, classes, rows]`.
        real: Name of a parameter or buffer → bool `[candidates, *channel axes]`; false is padding.

    Raises:
        NotStackable: The network mixes channels, or does what the stack does not know.
    """

    def __init__(self, traced: GraphModule, candidates: Sequence[nn.Module]):
        self.traced = traced
        self.candidates = candidates
        self.size = len(candidates)
        self.real: dict[str, torch.Tensor] = {}
        self.layers: dict[str, tuple[nn.Module, _Channels, _Channels]] = {}
        self._check_modules()
        self.shapes = {node: _size(node) for node in traced.graph.nodes}
        self.channels: dict[Node, _Channels] = {}
        self.root = nn.Module()
        self.graph = Graph()
        self.node: dict[Node, Node] = {}
        for node in self.traced.graph.nodes:
            self.visit(node)
        self.network = GraphModule(self.root, self.graph)

    def _check_modules(self) -> None:
        """Refuses hooks, and parameters that are not one layer's alone."""
        owned: set[int] = set()
        for name, module in self.candidates[0].named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                where = f"'{name}'" if name else "the network"
                raise NotStackable(f"{where} ({type(module).__name__}) has a forward hook")
            if hasattr(module, "parametrizations"):
                raise NotStackable(f"'{name}' has a parametrized weight")
            for parameter in module.parameters(recurse=False):
                if id(parameter) in owned:
                    raise NotStackable(f"'{name}' shares its weight with another layer")
                owned.add(id(parameter))

    # What each node becomes.

    def visit(self, node: Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self.channels]
        module = self.candidates[0].get_submodule(node.target) if node.op == "call_module" else None  # type: ignore[arg-type]
        known = inputs and len(inputs) == len(node.all_input_nodes)
        if node.op == "placeholder":
            shape = self.shapes[node]
            assert shape is not None
            real = torch.ones(self.size, shape[1], dtype=torch.bool)
            self.put(node, self.graph.placeholder(node.name), _Channels(real, len(shape) > 2))
        elif node.op == "output":
            if not isinstance(node.args[0], Node) or node.args[0] not in self.node:
                raise NotStackable("its output is not one tensor of logits")
            self.graph.output(self.node[node.args[0]])
        elif isinstance(module, nn.Linear) and known:
            self.visit_linear(node, module, inputs[0])
        elif isinstance(module, CONVOLUTIONS) and known:
            self.visit_convolution(node, module, inputs[0])
        elif isinstance(module, CHANNELWISE) and known:
            self.visit_channelwise(node, module, inputs[0])
        elif isinstance(module, nn.Flatten) or node.target in RESHAPES:
            self.visit_reshape(node, inputs[0])
        elif node.target in SHAPE_QUERIES and self.shapes[node] is None:
            pass  # only a reshape can use it, and that does without
        elif node.target in (torch.cat, torch.concat) and known:
            self.visit_cat(node, inputs)
        elif node.target in ("mean", torch.mean) and known:
            self.visit_mean(node, inputs[0])
        elif (isinstance(module, SPATIAL_MODULES) or node.target in SPATIAL_FUNCTIONS) and known:
            self.require_spatial(node, inputs[0])
            self.copy(node, module, self.channels[inputs[0]])
        elif (
            isinstance(module, ELEMENTWISE) or node.target in FUNCTIONS or node.target in METHODS
        ) and known:
            self.visit_elementwise(node, module, inputs)
        else:
            raise NotStackable(f"{describe(node)} mixes channels, or labkit does not know it")

    def put(self, node: Node, stacked: Node, channels: _Channels) -> None:
        self.node[node], self.channels[node] = stacked, channels

    def copy(self, node: Node, module: nn.Module | None, channels: _Channels) -> None:
        """Does in the stack what the node does."""
        if module is not None:
            self.add_layer(node, copy.deepcopy(module))
        self.put(node, self.graph.node_copy(node, self.node.__getitem__), channels)

    def call(self, function: Callable[..., torch.Tensor], *args: Any) -> Node:
        return self.graph.call_function(function, args)

    def require_spatial(self, node: Node, source: Node) -> None:
        if not self.channels[source].spatial:
            raise NotStackable(f"{describe(node)} has no spatial axes to work on")

    def visit_linear(self, node: Node, module: nn.Linear, source: Node) -> None:
        before = self.channels[source]
        if before.spatial:
            raise NotStackable(f"{describe(node)} is applied to more than [rows, channels]")
        after = self.widths(node, "out_features", spatial=False)

        def build() -> nn.Module:
            weight = self.load(node, "weight", _outer(after.real, before.real))
            return _Linear(weight, self.load(node, "bias", after.real))

        self.layer(node, build, before, after)

    def visit_convolution(self, node: Node, module: nn.Module, source: Node) -> None:
        before = self.channels[source]
        self.require_spatial(node, source)
        after = self.widths(node, "out_channels", spatial=True)
        convolutions = [c.get_submodule(str(node.target)) for c in self.candidates]
        depthwise = all(c.groups == c.in_channels == c.out_channels for c in convolutions)
        if module.groups != 1 and not (depthwise and torch.equal(before.real, after.real)):
            raise NotStackable(f"{describe(node)} has groups of channels")

        def build() -> nn.Module:
            layer: Any = copy.deepcopy(module)
            real = after.real if depthwise else _outer(after.real, before.real)
            layer.weight = self.load(node, "weight", real, folded=True)
            layer.bias = self.load(node, "bias", after.real, folded=True)
            layer.groups = after.real.numel() if depthwise else self.size
            return layer

        self.layer(node, build, before, after)

    def visit_channelwise(self, node: Node, module: nn.Module, source: Node) -> None:
        before = self.channels[source]
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            raise NotStackable(f"{describe(node)} has one parameter for all channels")

        def build() -> nn.Module:
            layer = copy.deepcopy(module)
            if not before.spatial:
                layer = _BatchNorm(module) if isinstance(module, nn.BatchNorm1d) else _PReLU()
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, name, None) is not None:
                    setattr(layer, name, self.load(node, name, before.real, folded=True))
            return layer

        self.layer(node, build, before, before)

    def visit_reshape(self, node: Node, source: Node) -> None:
        before = self.channels[source]
        shape, after = self.shapes[source], self.shapes[node]
        assert shape is not None
        if after != torch.Size([shape[0], shape[1:].numel()]):
            raise NotStackable(f"{describe(node)} does more than flatten all but the rows")
        real = before.real.repeat_interleave(shape[2:].numel(), dim=1)
        stacked = self.node[source]
        if before.spatial:
            stacked = self.call(_flatten, stacked, self.size)
        self.put(node, stacked, _Channels(real, spatial=False))

    def visit_mean(self, node: Node, source: Node) -> None:
        before, shape = self.channels[source], self.shapes[source]
        assert shape is not None
        if not before.spatial or self.shapes[node] != shape[:2]:
            raise NotStackable(f"{describe(node)} does more than average over spatial axes")
        mean = self.call(torch.mean, self.node[source], list(range(2, len(shape))))
        stacked = self.call(_flatten, mean, self.size)
        self.put(node, stacked, _Channels(before.real, spatial=False))

    def visit_cat(self, node: Node, inputs: list[Node]) -> None:
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        shape = self.shapes[node]
        assert shape is not None
        spatial = {self.channels[part].spatial for part in inputs}
        if dim % len(shape) != 1 or len(spatial) > 1:
            raise NotStackable(f"{describe(node)} does more than concatenate channels")
        real = torch.cat([self.channels[part].real for part in parts], dim=1)
        stacked = [self.node[part] for part in parts]
        if spatial == {True}:
            cat = self.call(_cat_spatial, stacked, self.size)
        else:
            cat = self.call(torch.cat, stacked, 1)
        self.put(node, cat, _Channels(real, spatial == {True}))

    def visit_elementwise(self, node: Node, module: nn.Module | None, inputs: list[Node]) -> None:
        first = self.channels[inputs[0]]
        for other in map(self.channels.__getitem__, inputs[1:]):
            if other.spatial != first.spatial or not torch.equal(other.real, first.real):
                raise NotStackable(f"{describe(node)} joins channels that lie in different places")
        at_zero = _at_zero(node, module)
        self.copy(node, module, first)
        if at_zero != 0 and not first.real.all():
            mask = first.real.reshape(1, -1, *[1] * (len(self.shapes[node] or ()) - 2))
            mask = mask if first.spatial else first.real[:, :, None]
            self.root.register_buffer(f"{node.name}_real", mask, persistent=False)
            real = self.graph.get_attr(f"{node.name}_real")
            self.node[node] = self.call(torch.mul, self.node[node], real)

    # Layers and their tensors.

    def widths(self, node: Node, attribute: str, spatial: bool) -> _Channels:
        """Returns the output channels of a layer: each candidate's first ones are real."""
        modules = [candidate.get_submodule(str(node.target)) for candidate in self.candidates]
        widths = torch.tensor([getattr(module, attribute) for module in modules])
        return _Channels(torch.arange(int(widths.max())) < widths[:, None], spatial)

    def layer(
        self, node: Node, build: Callable[[], nn.Module], before: _Channels, after: _Channels
    ) -> None:
        """Puts a layer with parameters into the stack; one that is called twice is built once."""
        target = str(node.target)
        if target not in self.layers:
            self.layers[target] = (build(), before, after)
            self.add_layer(node, self.layers[target][0])
        elif not torch.equal(self.layers[target][1].real, before.real):
            raise NotStackable(f"{describe(node)} is called on channels in different places")
        self.put(node, self.graph.node_copy(node, self.node.__getitem__), after)

    def add_layer(self, node: Node, layer: nn.Module) -> None:
        *path, name = str(node.target).split(".")
        parent = self.root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, layer)

    @torch.no_grad()
    def load(self, node: Node, name: str, real: torch.Tensor, *, folded: bool = False) -> Any:
        """Returns the candidates' tensors of that name as one, padded with zeros.

        Args:
            node: The call of the layer.
            name: Of its parameter or buffer.
            real: bool `[candidates, *channel axes]`.
            folded: Whether the candidate axis is to be folded into the axis after it.
        """
        modules = [candidate.get_submodule(str(node.target)) for candidate in self.candidates]
        tensors = [getattr(module, name) for module in modules]
        if tensors[0] is None:
            return None
        rest = tensors[0].shape[real.ndim - 1 :]
        padded = tensors[0].new_zeros(real.shape + rest)
        padded[real] = torch.cat([tensor.detach().reshape(-1, *rest) for tensor in tensors])
        self.real[f"{node.target}.{name}"] = real
        stacked = padded.flatten(0, 1) if folded else padded
        if isinstance(tensors[0], nn.Parameter):
            return nn.Parameter(stacked, requires_grad=tensors[0].requires_grad)
        return stacked

    def spread(self, x: torch.Tensor, order_of: torch.Tensor) -> torch.Tensor:
        """Returns the input of the network.

        Args:
            x: `[orders, rows, channels, …]`: the batch of each order of the rows.
            order_of: `[candidates]`, the order that each candidate sees.
        """
        x = x.expand(self.size, *x.shape[1:]) if len(x) == 1 else x[order_of]
        if x.ndim == 3:
            return x.transpose(1, 2).contiguous()
        return x.transpose(0, 1).flatten(1, 2).contiguous()

    @torch.no_grad()
    def unload(self, index: int) -> None:
        """Copies a candidate's weights from the stack back to the candidate."""
        stacked = self.network.state_dict()
        for name, tensor in self.candidates[index].state_dict().items():
            if name in self.real:
                real = self.real[name]
                padded = stacked[name].reshape(*real.shape, *tensor.shape[real.ndim - 1 :])
                tensor.copy_(padded[index][real[index]].reshape(tensor.shape))
            elif name in stacked:  # a count of batches
                tensor.copy_(stacked[name])


def _outer(out: torch.Tensor, in_: torch.Tensor) -> torch.Tensor:
    return out[:, :, None] & in_[:, None, :]


def _fold(x: torch.Tensor) -> torch.Tensor:
    """`[candidates, channels, rows]` → `[1, candidates · channels, rows]`."""
    return x.reshape(1, -1, x.shape[-1])


def _flatten(x: torch.Tensor, candidates: int) -> torch.Tensor:
    """`[rows, candidates · channels, …]` → `[candidates, channels · …, rows]`."""
    return x.reshape(len(x), candidates, -1).permute(1, 2, 0)


def _cat_spatial(parts: Sequence[torch.Tensor], candidates: int) -> torch.Tensor:
    """Concatenates `[rows, candidates · channels, …]` over each candidate's channels."""
    unfolded = [part.unflatten(1, (candidates, -1)) for part in parts]
    return torch.cat(unfolded, dim=2).flatten(1, 2)


def _size(node: Node) -> torch.Size | None:
    shape = node.meta["shape"]
    return torch.Size(shape) if is_shape(shape) else None


def _at_zero(node: Node, module: nn.Module | None) -> float:
    """Returns what an elementwise node makes of zeros.

    Raises:
        NotStackable: The value or the gradient there is not finite, so padding would spread.
    """
    zero = torch.zeros(1, requires_grad=True)
    args: Any = map_arg(node.args, lambda _: zero * 1)  # a copy, for what works in place
    kwargs: Any = map_arg(node.kwargs, lambda _: zero * 1)
    with torch.enable_grad():
        if module is not None:
            value = module(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            value = node.target(*args, **kwargs)
        if value.requires_grad:
            value.sum().backward()
    if (
        not torch.isfinite(value).all()
        or not torch.isfinite(zero.grad if zero.grad is not None else zero).all()
    ):
        raise NotStackable(f"{describe(node)} is not smooth at zero, which padding needs")
    return value.item()
