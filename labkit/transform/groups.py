"""What the analysis of a network finds: channel groups, and the sides of layers made of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError, did_you_mean
from labkit.operators.base import operator_of, scalable_modules
from labkit.operators.nodes import Option
from labkit.transform.graph import Example, layer_nodes

if TYPE_CHECKING:
    from labkit.transform.sums import Sum

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
        block: What each of these has so many of, where that can change too, as the heads of an
            attention have a width.
    """

    group: ChannelGroup
    inner: int
    ordered: bool
    block: Side | None = None

    def width_in(self, widths: Mapping[str, int]) -> int:
        """Returns how many channels of the side it is under a plan."""
        units = widths.get(self.group.name, self.group.width) // self.group.multiple
        return units * self.inner * (1 if self.block is None else self.block.width_in(widths))

    def places(self, chosen: Copies) -> torch.Tensor:
        """Returns int `[new channels]`: which of its own each copies."""
        units = chosen.get(self.group.name, torch.arange(self.group.n_units))
        block, old = torch.zeros(1, dtype=torch.long), 1
        if self.block is not None:
            block, old = self.block.positions(chosen), self.block.width
        outer = (units[:, None] * old + block).reshape(-1, 1)
        return (outer * self.inner + torch.arange(self.inner)).flatten()


@dataclass(frozen=True)
class Side:
    """What the channels of one side of a layer are made of, in their order."""

    parts: tuple[Part, ...]

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups, each once."""
        groups: dict[ChannelGroup, None] = {}
        for part in self.parts:
            groups |= dict.fromkeys((part.group, *(part.block.groups if part.block else ())))
        return tuple(groups)

    @property
    def width(self) -> int:
        """The channels in the network as it was given."""
        return self.width_in({})

    def width_in(self, widths: Mapping[str, int]) -> int:
        """Returns the channels under a plan: group name → width; a missing one keeps its own."""
        return sum(part.width_in(widths) for part in self.parts)

    def heads_in(self, widths: Mapping[str, int]) -> int | None:
        """Returns how many heads it is under a plan; `None` where their number is no width."""
        heads = Side(tuple(replace(part, block=None) for part in self.parts))
        return heads.width_in(widths) if any(part.block for part in self.parts) else None

    def positions(self, chosen: Copies) -> torch.Tensor:
        """Returns int `[new channels]`: which one each copies; groups that are missing stay."""
        positions, start = [], 0
        for part in self.parts:
            positions.append(start + part.places(chosen))
            start += part.width_in({})
        return torch.cat(positions)

    def units(self, group: ChannelGroup) -> torch.Tensor:
        """Returns int `[channels]`: which unit of a group each has, -1 where none."""
        units = []
        for part in self.parts:
            block = torch.full((1,), -1) if part.block is None else part.block.units(group)
            inside = block.repeat_interleave(part.inner).repeat(part.group.n_units)
            own = torch.arange(part.group.n_units).repeat_interleave(len(block) * part.inner)
            units.append(own if part.group is group else inside)
        return torch.cat(units)


@dataclass(frozen=True)
class Literal:
    """A size that the network's code has as a number, which follows a width.

    Attributes:
        graph: Which of the network's graphs has it.
        node: The name of the call.
        path: Where in its arguments: keys, indices, and `"start"` or `"stop"` of a slice.
        value: The side that it is the size of; several for a list of sizes.
    """

    graph: int
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


Sizes = tuple[Side | int, ...]  # of the axes of a tensor: a side where it follows some width


def size_in(size: Side | int, widths: Mapping[str, int]) -> int:
    """Returns the size of an axis under a plan: group name → width."""
    return size.width_in(widths) if isinstance(size, Side) else size


@dataclass(frozen=True, eq=False)
class Channels:
    """A network's channel groups, and the groups on each side of each layer.

    Attributes:
        graphs: The network as an fx graph, and as that of its training, where it is another one.
        example_input: What it was traced with.
        groups: All groups that some layer has, in graph order.
        inputs: fx name of a layer → its input channels.
        outputs: fx name of a layer → its output channels.
        literals: Numbers in the network's code that follow a width.
        options: Numbers that modules have as attributes, and the code compares with a size: each
            with that size.
        mixing: What copied channels may change the result of.
        sums: Sums over channels which stay as they are, since a layer before them is divided.
        sizes: For each graph, fx name of each node that is a tensor → the size of each of its axes,
            for two rows: a side where it follows some width.
        tensors: The same of the parameters and buffers that the code uses by itself, by path.
        in_code: Fx name of each module with whose weights code multiplies that is not a layer's →
            its path, and the module.
        only_code: Why no graph can stand for the network's code, or `None`.
        n_parameters: All parameters of the network; one that several layers share counts once.
    """

    graphs: tuple[GraphModule, ...]
    example_input: Example
    groups: tuple[ChannelGroup, ...]
    inputs: Mapping[str, Side]
    outputs: Mapping[str, Side]
    literals: tuple[Literal, ...]
    options: tuple[tuple[Option, Side], ...]
    mixing: tuple[Mixing, ...]
    sums: tuple[Sum, ...]
    sizes: tuple[Mapping[str, Sizes], ...]
    tensors: Mapping[str, Sizes]
    in_code: Mapping[str, tuple[str, nn.Module]]
    only_code: str | None
    n_parameters: int

    @property
    def traced(self) -> GraphModule:
        """The network as an fx graph."""
        return self.graphs[0]

    @property
    def shapes(self) -> Mapping[str, Sizes]:
        """The sizes of that graph."""
        return self.sizes[0]

    @functools.cached_property
    def parameters(self) -> tuple[Sizes, ...]:
        """The sizes of the parameters that the code uses by itself, and that follow some width."""
        paths = {name for graph in self.graphs for name, _ in graph.named_parameters()}
        return tuple(
            sizes
            for path, sizes in self.tensors.items()
            if path in paths and any(isinstance(size, Side) for size in sizes)
        )

    # Cached, since a search resolves thousands of configurations.
    @functools.cached_property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups whose width can change."""
        return tuple(group for group in self.groups if group.fixed is None)

    @functools.cached_property
    def layers(self) -> dict[str, nn.Module]:
        """Fx name of a call of a module → the module, in graph order; then those of `in_code`."""
        called = {name: module for name, (_, module) in self.calls.items()}
        return called | {name: module for name, (_, module) in self.in_code.items()}

    @functools.cached_property
    def paths(self) -> dict[str, str]:
        """Fx name of each of these → its path."""
        called = {name: str(node.target) for name, (node, _) in self.calls.items()}
        return called | {name: path for name, (path, _) in self.in_code.items()}

    def find(self, name: str) -> str:
        """Returns the fx name of a layer (`seq_blocks_2`), given that or its path (`seq_blocks.2`).

        Raises:
            LabkitError: No layer has that name; the message names the closest one.
        """
        for layer, path in self.paths.items():
            if name in (layer, path):
                return layer
        raise LabkitError(
            f"{name}: no such layer in the network; {did_you_mean(name, [*self.paths])}"
        )

    def scalable(self, kinds: tuple[type[nn.Module], ...] | None) -> list[str]:
        """Returns the layers of some kinds, by default all that a configuration can scale."""
        own = self.in_code if kinds is None else {}
        kinds = scalable_modules() if kinds is None else kinds
        return [n for n, module in self.layers.items() if n in own or isinstance(module, kinds)]

    @functools.cached_property
    def calls(self) -> dict[str, tuple[Node, nn.Module]]:
        """Fx name of a call of a module → the call and the module; those of training are last."""
        found: dict[str, tuple[Node, nn.Module]] = {}
        for node, module in itertools.chain(*map(layer_nodes, self.graphs)):
            found.setdefault(node.name, (node, module))
        return found


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
    norms = {g.name: torch.zeros(g.n_units, dtype=torch.float) for g in channels.groups}
    for node, module in channels.calls.values():
        operator = operator_of(module)
        if operator is None or not operator.writes:
            continue
        side = channels.outputs[node.name]
        by_output = operator.norms(model.get_submodule(str(node.target))).float().expand(side.width)
        for group in side.groups:
            units = side.units(group)
            norms[group.name].index_add_(0, units[units >= 0], by_output[units >= 0])
    return norms


def inexact(channels: Channels, widths: Mapping[str, int]) -> Iterator[str]:
    """Yields why a network of other widths cannot compute what it did, a sentence a reason."""
    for group in channels.free:
        if widths[group.name] < group.width:
            yield f"'{group.name}' has fewer channels"
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
