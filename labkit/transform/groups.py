"""What the analysis of a network finds: channel groups, and the sides of layers made of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from labkit.operators.base import operator_of
from labkit.transform.graph import Example, layer_nodes

# Name of a group → `[units]`: which of its units (`multiple` channels) each new one copies.
Copies = Mapping[str, torch.Tensor]


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
        """Returns the channels under a plan: group name → width; a missing one keeps its own."""
        return sum(
            widths.get(part.group.name, part.group.width) // part.group.multiple * part.inner
            for part in self.parts
        )

    def positions(self, chosen: Copies) -> torch.Tensor:
        """Returns int `[new channels]`: which one each copies; groups that are missing stay."""
        positions, start = [], 0
        for part in self.parts:
            group, block = part.group, torch.arange(part.inner)
            units = chosen.get(group.name, torch.arange(group.n_units))
            positions.append((start + units[:, None] * part.inner + block).flatten())
            start += group.n_units * part.inner
        return torch.cat(positions)


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

    def value_in(self, widths: Mapping[str, int]) -> int | list[int]:
        """Returns the size under a plan: group name → width."""
        if isinstance(self.value, Side):
            return self.value.width_in(widths)
        return [side.width_in(widths) for side in self.value]


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


@dataclass(frozen=True, eq=False)
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
        shapes: fx name of each node that is a tensor → the size of each of its axes, for two rows:
            a side where it follows some width.
        n_parameters: All parameters of the network; one that several layers share counts once.
    """

    traced: GraphModule
    example_input: Example
    groups: tuple[ChannelGroup, ...]
    inputs: dict[str, Side]
    outputs: dict[str, Side]
    literals: tuple[Literal, ...]
    mixing: tuple[Mixing, ...]
    shapes: dict[str, tuple[int | Side, ...]]
    n_parameters: int

    # Cached, since a search resolves thousands of configurations.
    @functools.cached_property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width can change."""
        return tuple(group for group in self.groups if group.fixed is None)

    @functools.cached_property
    def layers(self) -> dict[str, nn.Module]:
        """Fx name of a call of a module → the module, in graph order."""
        return {node.name: module for node, module in layer_nodes(self.traced)}


def copies(channels: Channels, widths: Mapping[str, int], model: nn.Module | None = None) -> Copies:
    """Returns, for each group whose width changes, which unit each new one copies.

    Copies are shared out evenly: unit j is a copy of unit j modulo their old number. A narrower
    group keeps its largest channels in the model; without one, its first ones.
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
    for node, module in layer_nodes(channels.traced):
        operator = operator_of(module)
        if operator is None or not operator.writes:
            continue
        side, start = channels.outputs[node.name], 0
        by_output = operator.norms(model.get_submodule(str(node.target))).expand(side.width)
        for part in side.parts:
            stop = start + part.group.n_units * part.inner
            norms[part.group.name] += by_output[start:stop].view(-1, part.inner).sum(1)
            start = stop
    return norms


def inexact(channels: Channels, widths: Mapping[str, int]) -> Iterator[str]:
    """Yields why a widened network cannot compute just what it did, a sentence a reason."""
    grown = {group.name for group in channels.free if widths[group.name] > group.width}
    chosen = copies(channels, widths)
    for mixing in channels.mixing:
        if not any(group.name in grown for group in mixing.side.groups):
            continue
        counts = mixing.side.positions(chosen).bincount(minlength=mixing.side.width)
        if not mixing.averages:
            yield f"{mixing.node} computes over channels, whose number grows"
        elif len(counts.unique()) > 1:
            yield f"{mixing.node} averages over channels, which are not all copied equally often"
    sides = [*channels.inputs.values(), *channels.outputs.values()]
    scattered = (part.group.name for side in sides for part in side.parts if not part.ordered)
    for name in dict.fromkeys(scattered):
        if name in grown:
            yield f"the channels of '{name}' are dealt out, and copies do not stay by originals"
