"""Layers of other widths, with fresh weights or with weights that keep what they compute.

Keeping: a channel that is added copies another one, and whatever reads the copies divides their
weights by the number of copies, so a wider network computes what it did before (Net2WiderNet,
arXiv:1511.05641). A narrower layer keeps the channels whose weights have the largest norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from labkit.transform.channels import Channels, Side, follows_its_input
from labkit.transform.graph import (
    CONVOLUTIONS,
    SCALABLE_MODULES,
    TRANSPOSED_CONVOLUTIONS,
    layer_nodes,
)

# Name of a group → `[units]`: which of its units (`multiple` channels) each new one copies.
Copies = Mapping[str, torch.Tensor]
MATRICES = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)


def copies(channels: Channels, widths: Mapping[str, int], model: nn.Module | None = None) -> Copies:
    """Returns, for each group whose width changes, which unit each new one copies.

    Copies are shared out evenly: unit j is a copy of unit j modulo their old number.

    Args:
        channels: The network's channel groups.
        widths: Group name → new width.
        model: The network whose largest channels a narrower group keeps; without it, it keeps its
            first ones.
    """
    chosen: dict[str, torch.Tensor] = {}
    norms: dict[str, torch.Tensor] = {}
    for group in channels.free:
        before, after = group.n_units, widths[group.name] // group.multiple
        if after < before and model is not None:
            norms = norms or _norms(model, channels)
            chosen[group.name] = norms[group.name].topk(after).indices.sort().values
        elif after != before:
            chosen[group.name] = torch.arange(after) % before
    return chosen


def _norms(model: nn.Module, channels: Channels) -> dict[str, torch.Tensor]:
    """Returns, for each group, the squared norm of all weights that write each of its units."""
    norms = {g.name: torch.zeros(g.n_units) for g in channels.groups}
    for node, _ in layer_nodes(channels.traced):
        module = model.get_submodule(str(node.target))
        if not isinstance(module, SCALABLE_MODULES) or follows_its_input(module):
            continue
        squares = module.weight.detach().float().cpu().square()
        if isinstance(module, TRANSPOSED_CONVOLUTIONS):  # [in, out / groups, …]
            by_output = squares.flatten(2).sum(2).unflatten(0, (module.groups, -1)).sum(1).flatten()
        elif isinstance(module, nn.Embedding):
            by_output = squares.sum(0)
        else:
            by_output = squares.flatten(1).sum(1)
        start = 0
        for part in channels.outputs[node.name].parts:
            stop = start + part.group.n_units * part.inner
            norms[part.group.name] += by_output[start:stop].view(-1, part.inner).sum(1)
            start = stop
    return norms


def _positions(side: Side, chosen: Copies) -> torch.Tensor:
    """Returns which of the old elements of a side each new one copies."""
    positions, start = [], 0
    for part in side.parts:
        units = chosen.get(part.group.name, torch.arange(part.group.n_units))
        positions.append((start + units[:, None] * part.inner + torch.arange(part.inner)).flatten())
        start += part.group.n_units * part.inner
    return torch.cat(positions)


def inexact(channels: Channels, widths: Mapping[str, int]) -> Iterator[str]:
    """Yields why a widened network cannot compute just what it did, a sentence a reason.

    Args:
        channels: The network's channel groups.
        widths: Group name → new width.
    """
    grown = {group.name for group in channels.free if widths[group.name] > group.width}
    chosen = copies(channels, widths)
    for mixing in channels.mixing:
        if not any(group.name in grown for group in mixing.side.groups):
            continue
        counts = _positions(mixing.side, chosen).bincount(minlength=mixing.side.width)
        if not mixing.averages:
            yield f"{mixing.node} computes over channels, whose number grows"
        elif len(counts.unique()) > 1:
            yield f"{mixing.node} averages over channels, which are not all copied equally often"
    sides = [*channels.inputs.values(), *channels.outputs.values()]
    scattered = (part.group.name for side in sides for part in side.parts if not part.ordered)
    for name in dict.fromkeys(scattered):
        if name in grown:
            yield f"the channels of '{name}' are dealt out, and copies do not stay by originals"


def resize(
    module: nn.Module,
    before: Side,
    after: Side,
    chosen: Copies,
    *,
    keep: bool = False,
    noise: float = 0.0,
) -> None:
    """Gives a layer new widths, keeping its options, device, dtype and mode; in place.

    Args:
        module: The layer, with widths of its own.
        before: Its input channels.
        after: Its output channels.
        chosen: What each new unit of a group copies.
        keep: Whether copies carry the weights; otherwise all weights of the layer are fresh.
        noise: As `labkit.transform.plan.apply` takes it.
    """
    inputs, outputs = _positions(before, chosen), _positions(after, chosen)
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.ndim == 0:  # a count of batches
            continue
        places = inputs.to(tensor.device), outputs.to(tensor.device)
        new = _carried(module, name, tensor.detach(), *places)
        if noise and name == "weight" and isinstance(module, SCALABLE_MODULES):
            amplitude = noise * tensor.detach().std() * torch.randn_like(new)
            new = new + amplitude * _writes_copies(module, new, *places)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        setattr(module, name, new)
    _set_widths(module, len(inputs), len(outputs))
    if not keep and callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def _groups(module: nn.Module, n_in: int) -> int:
    """Returns in how many groups a layer works when it has that many input channels."""
    return n_in if follows_its_input(module) else int(getattr(module, "groups", 1))


def _set_widths(module: Any, n_in: int, n_out: int) -> None:
    match module:
        case nn.Linear():
            module.in_features, module.out_features = n_in, n_out
        case nn.Embedding():
            module.embedding_dim = n_out
        case nn.GroupNorm():
            if follows_its_input(module):
                module.num_groups = n_out
            module.num_channels = n_out
        case nn.LayerNorm():
            module.normalized_shape = (n_out,)
        case nn.PReLU():
            module.num_parameters = n_out
        case _ if isinstance(module, MATRICES):
            module.groups = _groups(module, n_in)
            module.in_channels, module.out_channels = n_in, n_out
        case _ if hasattr(module, "num_features"):
            module.num_features = n_out


def _carried(
    module: nn.Module, name: str, tensor: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor
) -> torch.Tensor:
    """Returns a layer's parameter or buffer for channels that copy others.

    Args:
        module: The layer, as it was.
        name: Of its tensor.
        tensor: What it was.
        inputs: `[new input channels]`, the old one that each copies.
        outputs: The same of its output.
    """
    if isinstance(module, nn.Embedding):
        return tensor[:, outputs]
    if not isinstance(module, MATRICES) or name == "bias":
        return tensor[outputs]
    transposed = isinstance(module, TRANSPOSED_CONVOLUTIONS)
    if follows_its_input(module):
        return tensor[inputs if transposed else outputs]
    groups = _groups(module, len(inputs))
    share = 1 / inputs.bincount()[inputs].to(tensor.dtype)
    if transposed:  # [in, out / groups, …]
        selected = _selected(tensor, inputs, outputs, groups)
        share = share[:, None]
    else:  # [out, in / groups, …]: each block of outputs reads the inputs of its group
        selected = _selected(tensor, outputs, inputs, groups)
        share = share.view(groups, -1).repeat_interleave(len(outputs) // groups, dim=0)
    return selected * share.view(*share.shape, *[1] * (tensor.ndim - 2))


def _writes_copies(
    module: nn.Module, weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor
) -> torch.Tensor:
    """Returns which of a new weight writes a channel whose original has a copy before it."""
    places = torch.arange(len(outputs), device=outputs.device)
    first = torch.full_like(outputs, len(outputs)).scatter_reduce(0, outputs, places, "amin")
    copied = first[outputs] != places
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):  # [in, out / groups, …]
        groups = _groups(module, len(inputs))
        copied = copied.view(groups, -1).repeat_interleave(len(inputs) // groups, dim=0)
    elif isinstance(module, nn.Embedding):
        copied = copied[None]
    else:
        copied = copied[:, None]
    return copied.view(*copied.shape, *[1] * (weight.ndim - 2))


def _selected(
    tensor: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, groups: int
) -> torch.Tensor:
    """Returns `tensor[rows][:, columns]`, where each group of rows has columns of its own."""
    width = tensor.shape[1]
    selected = [
        tensor[own_rows][:, own_columns % width]
        for own_rows, own_columns in zip(rows.chunk(groups), columns.chunk(groups))
    ]
    return torch.cat(selected)
