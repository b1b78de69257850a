"""Normalisations: four operations an element (subtract, scale, and affine)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Layer, Operator, register_operator
from labkit.operators.building import StackBuilder, Stacked, folded
from labkit.operators.layout import Layout
from labkit.operators.nodes import spatial_rank
from labkit.operators.weights import OUT


class Normalisation(Layer):
    """One parameter (or running statistic) a channel.

    Attributes:
        mixes: Whether it normalises over channels.
    """

    flops_each = 4
    mixes: ClassVar[bool] = False
    tensors: ClassVar = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (OUT,))
    attributes: ClassVar = {"num_features": OUT}

    def example(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        module(args[0][:1], *args[1:], **kwargs)  # which may say that it does not fit
        return args[0]

    def flow(self, call: Call) -> Any:
        if self.mixes and call.sides is not None:
            call.mix(call.sides[0], averages=True)
        return super().flow(call)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        x, module = stack.inputs(node)[0], stack.module(node)
        layer = self.stacked_layer(module, x)
        if layer is None:
            return None

        def build() -> nn.Module:
            for name in self.tensors:
                if getattr(module, name, None) is not None:
                    setattr(layer, name, stack.load(node, name, x.real, folded=True))
            return layer

        return stack.layer(node, build, x, x.real)

    def stacked_layer(self, module: Any, x: Stacked) -> nn.Module | None:
        """Returns the layer of all candidates, still with the tensors of one, or `None`."""
        if not x.spatial:
            return None
        layer = copy.deepcopy(module)
        for name in self.attributes:
            setattr(layer, name, x.real.numel())
        return layer


@register_operator
class BatchNorm(Normalisation):
    """Each channel over the batch and space."""

    modules = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    fixes_space = False

    def axis(self, module: nn.Module, ndim: int) -> int:
        return min(1, ndim - 1)

    def stacked_layer(self, module: Any, x: Stacked) -> nn.Module | None:
        return super().stacked_layer(module, x) if x.spatial else StackedBatchNorm(module)


class StackedBatchNorm(nn.BatchNorm1d):
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
            return super().forward(folded(x)).view_as(x)
        rows = x.shape[2]
        channels = x.numel() // rows
        y, mean, rstd = torch.native_group_norm(
            x.reshape(1, channels, rows),
            self.weight,
            self.bias,
            1,
            channels,
            rows,
            channels,
            self.eps,
        )
        count = self.num_batches_tracked if self.track_running_stats else None
        if count is not None and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                count += 1
                factor = 1 / count.item() if self.momentum is None else self.momentum
                variance = rstd[0].pow(-2).sub_(self.eps).mul_(rows / (rows - 1))  # unbiased
                self.running_mean.lerp_(mean[0], factor)
                self.running_var.lerp_(variance, factor)
        return y.view_as(x)


@register_operator
class InstanceNorm(Normalisation):
    """Each channel of each image over space."""

    modules = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

    def axis(self, module: nn.Module, ndim: int) -> int:
        return ndim - 1 - spatial_rank(module)


@register_operator
class GroupNorm(Normalisation):
    """Equal groups of channels; with one for each channel, it follows the width of its input."""

    modules = (nn.GroupNorm,)
    mixes = True
    tensors: ClassVar = {"weight": (OUT,), "bias": (OUT,)}
    attributes: ClassVar = {"num_channels": OUT}

    def variant(self, module: Any) -> Operator:
        return CHANNEL_NORM if module.num_groups == module.num_channels else self

    def axis(self, module: nn.Module, ndim: int) -> int:
        return 1

    def groups(self, module: nn.GroupNorm) -> int:
        return module.num_groups

    def stacked_layer(self, module: Any, x: Stacked) -> nn.Module | None:
        return StackedNorm(module, x, module.num_groups)


class ChannelNorm(GroupNorm):
    """A group norm with a group for each channel."""

    mixes = False
    attributes: ClassVar = {"num_channels": OUT, "num_groups": OUT}

    def groups(self, module: nn.GroupNorm) -> int:
        return 1

    def stacked_layer(self, module: Any, x: Stacked) -> nn.Module | None:
        return Normalisation.stacked_layer(self, module, x)


CHANNEL_NORM = ChannelNorm()


@register_operator
class LayerNorm(Normalisation):
    """All features of the last axis; over several axes it is not known."""

    modules = (nn.LayerNorm, nn.RMSNorm)
    mixes = True
    tensors: ClassVar = {"weight": (OUT,), "bias": (OUT,)}
    attributes: ClassVar = {"normalized_shape": OUT}

    def sides(self, module: nn.LayerNorm | nn.RMSNorm) -> tuple[Layout, Layout] | None:
        if len(module.normalized_shape) > 1:
            return None
        axis = lay.width(module.normalized_shape[0])
        return axis, axis

    def stacked_layer(self, module: Any, x: Stacked) -> nn.Module | None:
        return None if x.spatial else StackedNorm(module, x, 1)


class StackedNorm(nn.Module):
    """A norm over equal groups of each candidate's channels; padding is in none and stays zero.

    Args:
        norm: That of one candidate.
        x: What it reads.
        groups: Their number.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    members: torch.Tensor

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm | nn.RMSNorm, x: Stacked, groups: int):
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.centred, self.eps = not isinstance(norm, nn.RMSNorm), norm.eps
        self.spatial, self.padded = x.spatial, x.real.shape
        place = (x.real.cumsum(1) - 1) * groups // x.real.sum(1, keepdim=True)
        members = (place[:, None] == torch.arange(groups)[:, None]) & x.real[:, None]
        self.register_buffer("members", members, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.view(len(x), *self.padded, -1) if self.spatial else x
        if self.centred:
            y = y - self._mean(y)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps  # as nn.RMSNorm does
        y = y * (self._mean(y.square()) + eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight.view(*self.padded, 1)
        if self.bias is not None:
            y = y + self.bias.view(*self.padded, 1)
        return y.view_as(x)

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean of the group that each channel is in, in a form that broadcasts."""
        members = self.members.to(x.dtype)
        x = x.mean(3).permute(1, 2, 0) if self.spatial else x
        mean = members.mT @ (members @ x / members.sum(2, keepdim=True))
        return mean.permute(2, 0, 1)[..., None] if self.spatial else mean
