"""A layer's tensors under other widths, from what their axes are.

A channel that is added copies another one, and what sums over the copies divides their weights by
the number of copies, so a wider network computes what it did before (Net2WiderNet,
arXiv:1511.05641).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Axis(enum.Enum):
    """What the entries along one axis of a layer's tensor are for; see `Operator.tensors`."""

    IN = "each input channel, and summed over"
    OUT = "each output channel"
    EACH = "each input channel, used by itself"


IN, OUT, EACH = Axis
Tensors = Sequence[Axis | None]


def carried(
    tensor: Tensor, axes: Tensors, inputs: Tensor, outputs: Tensor, *, groups: int, noise: float
) -> Tensor:
    """Returns a layer's tensor for channels that copy others, as `Operator.carry` is given them.

    Of several groups it is `[groups · rows, columns, …]`: a block of rows, with columns of its own,
    for each. Noise is added to what writes a channel whose original has a copy before it.
    """
    if tensor.is_meta:
        n_in, n_out = len(inputs), len(outputs)
        return tensor.new_empty(resized(tensor.shape, axes, n_in, n_out, groups))
    share = (1 / inputs.bincount()[inputs].to(tensor.dtype)).chunk(groups)
    read, wrote = inputs.chunk(groups), outputs.chunk(groups)
    written = OUT if OUT in axes else EACH
    copies = _copied(outputs if written is OUT else inputs).chunk(groups)
    blocks = []
    for block in range(groups):
        part, copied = tensor, torch.zeros((), dtype=torch.bool)
        for dim, axis in enumerate(axes):
            if axis is None:
                continue
            places = (wrote if axis is OUT else read)[block]
            part = _selected(part, dim, places % tensor.shape[dim] if dim else places)
            along = [-1 if i == dim else 1 for i in range(tensor.ndim)]
            if axis is IN:
                part.mul_(share[block].view(along))  # it was made just now
            if axis is written:
                copied = copies[block].view(along)
        if noise:
            spread = tensor.std() if tensor.numel() > 1 else tensor.abs()
            part = part + noise * spread * torch.randn_like(part) * copied
        blocks.append(part)
    joined = torch.cat(blocks) if groups > 1 else blocks[0]
    return joined.contiguous(memory_format=layout_of(tensor))


def _selected(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    """Returns entries along an axis: as a rule few runs, which are copied several times faster."""
    runs = places.tensor_split((places.diff().cpu() != 1).nonzero().flatten() + 1)
    if len(runs) > 8:
        return tensor.index_select(dim, places)
    return torch.cat([tensor.narrow(dim, int(run[0]), len(run)) for run in runs], dim)


def in_place_of(old: Tensor, new: Tensor) -> Tensor:
    """Returns a tensor as a parameter where the one that it replaces is."""
    is_parameter = isinstance(old, nn.Parameter)
    return nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new


def set_width(module: nn.Module, name: str, width: int) -> None:
    """Gives a module the width that it has as an attribute, by itself or in a tuple."""
    setattr(module, name, (width,) if isinstance(getattr(module, name), tuple) else width)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """Returns how a tensor lies in memory: its channels last, or by its axes."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    is_by_axes = not last or tensor.is_contiguous()
    return torch.contiguous_format if is_by_axes else torch.channels_last


def _copied(chosen: Tensor) -> Tensor:
    """Returns which channels copy one that has a copy before them."""
    places = torch.arange(len(chosen), device=chosen.device)
    first = chosen.new_full((int(chosen.max()) + 1,), len(chosen))
    first = first.scatter_reduce(0, chosen, places, "amin")
    return first[chosen] != places


def resized(
    shape: Sequence[int], axes: Tensors, n_in: int, n_out: int, groups: int = 1
) -> list[int]:
    """Returns the shape that a layer's tensor has for other widths."""
    sizes = list(shape)
    for dim, axis in enumerate(axes):
        if axis is not None:
            sizes[dim] = (n_out if axis is OUT else n_in) // (groups if dim else 1)
    return sizes
