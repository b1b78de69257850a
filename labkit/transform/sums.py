"""Sums of products over channels, as attention has in its scores.

Copies of a channel count as often in such a sum as there are of them, so what one of its operands
was made by is divided by their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from labkit.operators.base import Layer, operator_of
from labkit.operators.base import Sum as Summed
from labkit.operators.elementwise import Elementwise, Passing
from labkit.operators.nodes import called, is_shape, module_of, run
from labkit.operators.shaping import Expand, Moving, Reshape, Unflatten
from labkit.operators.weights import OUT
from labkit.transform.groups import Channels, Copies, Side

PRODUCTS, DIVISIONS = ("mul", "mul_", "imul"), ("truediv", "div", "div_", "itruediv")


@dataclass(frozen=True)
class Sum:
    """A sum over channels of which labkit knows what makes one of its operands, and nothing else.

    Attributes:
        path: That of a layer, or of a parameter that the code uses by itself.
        layer: The fx name of the layer, `None` for a parameter.
        axis: The axis of the parameter, or of the layer's weights, that is divided.
        side: The channels that are summed over.
        places: int `[size of that axis]`, which of these each entry makes, -1 for none.
        by_root: Whether the sum is divided by the root of their number.
        scalers: The calls that multiply it or an operand with a number, by their names.
    """

    path: str
    layer: str | None
    axis: int
    side: Side
    places: torch.Tensor
    by_root: bool
    scalers: frozenset[str]

    @torch.no_grad()
    def scale(
        self, model: nn.Module, channels: Channels, chosen: Copies, factor: float | None = None
    ) -> None:
        """Multiplies it in a network whose channels copy others; in place.

        Args:
            model: The network.
            channels: Those that it had before.
            chosen: The copies.
            factor: By default what makes the sum over the copies that over the originals.
        """
        counts = self.side.positions(chosen).bincount(minlength=self.side.width).double()
        share = (counts.sum() / len(counts)) ** (0.5 * self.by_root) / counts
        if factor is not None:
            share = torch.full_like(share, factor)
        if self.layer is None:
            size = channels.tensors[self.path][self.axis]
            tensors = [model.get_parameter(self.path)]
        else:
            layer = model.get_submodule(self.path)
            size, operator = channels.outputs[self.layer], operator_of(layer)
            written = (
                [] if operator is None else [n for n, a in operator.tensors.items() if OUT in a]
            )
            tensors = [getattr(layer, name) for name in written if hasattr(layer, name)]
        entries = size.positions(chosen) if isinstance(size, Side) else torch.arange(size)
        places = self.places[entries]
        share = torch.where(places < 0, 1.0, share[places])
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                along = [-1 if dim == self.axis else 1 for dim in range(tensor.ndim)]
                tensor.mul_(share.to(tensor).view(along))


def find_sum(node: Node, summed: Summed, side: Side) -> Sum | None:
    """Returns the sum of a call with what makes an operand, `None` where that makes more."""
    if len({operand for operand, _ in summed.operands}) < 2:
        return None
    chains = [_chain(operand) for operand, _ in summed.operands]
    scalers = {each.name for chain in chains for each in _alone(reversed(chain))}
    scalers |= {each.name for each in _results(node)}
    for chain, (operand, dim) in zip(chains[::-1], summed.operands[::-1]):
        maker, shape = chain[0], chain[0].meta["shape"]
        if not _is_maker(maker) or len(operand.users) > 1 or _is_called_again(maker):
            continue
        operator = operator_of(maker)
        name = maker.name if isinstance(operator, Layer) else None
        axes: Iterable[int] = range(len(shape))
        if isinstance(operator, Layer):
            axes = [operator.axis(module_of(maker), len(shape))]
        for axis in axes:
            places = _places(chain, axis, dim, side.width)
            if places is not None:
                at = axis if name is None else 0
                path, known = str(maker.target), frozenset(scalers)
                return Sum(path, name, at, side, places, summed.by_root, known)
    return None


def _chain(operand: Node) -> list[Node]:
    """Returns the calls from what makes a tensor to the tensor."""
    chain = [operand]
    while not _is_maker(chain[0]) and (inputs := chain[0].all_input_nodes):
        weights = [each for each in inputs if each.op != "get_attr" or _is_maker(each)]
        chain.insert(0, (weights or inputs)[0])  # and not the mask that it is multiplied with
    return chain


def _results(node: Node) -> Iterator[Node]:
    """Yields what becomes of a sum as long as it is multiplied with numbers."""
    while len(node.users) == 1 and _scaled_by(node := next(iter(node.users))) == 0:
        yield node


def _alone(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yields nodes up to the first one that more than one other reads."""
    return itertools.takewhile(lambda node: len(node.users) == 1, nodes)


def _places(chain: Sequence[Node], axis: int, dim: int, n: int) -> torch.Tensor | None:
    """Returns which of n entries of the last tensor's axis each one of the first's makes.

    The tensors are followed with the number of each entry in the place of its values.
    """
    shape = chain[0].meta["shape"]
    numbers = torch.arange(shape[axis]).view([-1 if i == axis else 1 for i in range(len(shape))])
    value: Any = numbers.expand(shape)
    elsewhere = torch.empty(0, dtype=torch.long)  # entries that are used for something else, too
    for before, node in itertools.pairwise(chain):
        others = [_moved(user, value) for user in before.users if user is not node]
        value = _moved(node, value)
        if value is None or not all(isinstance(other, torch.Tensor) for other in others):
            return None
        elsewhere = torch.cat([elsewhere, *map(torch.flatten, others)])
    numbers = value.movedim(dim, 0).flatten(1)
    entries = torch.arange(n)[:, None].expand_as(numbers)
    places = torch.full((shape[axis],), -1)
    places[numbers] = entries
    alone = torch.equal(places[numbers], entries) and (places[elsewhere] < 0).all()
    return places if alone else None


def _is_maker(node: Node) -> bool:
    """Whether a node is a parameter, or a layer whose weights each write one channel."""
    if node.op == "get_attr":
        return isinstance(attrgetter(str(node.target))(node.graph.owning_module), nn.Parameter)
    operator, module = operator_of(node), module_of(node)
    if module is None or not isinstance(operator, Layer) or not is_shape(node.meta["shape"]):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and operator.tensors.get("weight", (None,))[0] is OUT


def _is_called_again(node: Node) -> bool:
    return sum(n.op == node.op and n.target == node.target for n in node.graph.nodes) > 1


def _scaled_by(node: Node) -> int | None:
    """Returns with how many other tensors a call multiplies one, or divides it; 0 for a number.

    `None` where it does something else.
    """
    tensors = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, Node)]
    by_one = called(node) in DIVISIONS and tensors == [*node.args[:1]]
    is_product = by_one or (called(node) in PRODUCTS and len(set(tensors)) == len(tensors))
    return len(tensors) - 1 if is_product else None


def _moved(node: Node, value: Any) -> Any:
    """Returns what a call makes of a tensor of which it moves the elements, `None` if it does more.

    A product moves them, too: the sum is scaled by what it multiplies with.
    """
    operator = operator_of(node)
    if isinstance(operator, Passing):
        return value
    if isinstance(operator, Elementwise):
        return None if _scaled_by(node) is None else value.expand(node.meta["shape"])
    if isinstance(operator, Reshape | Unflatten):
        return value.reshape(node.meta["shape"])
    if isinstance(operator, Expand) and isinstance(value, torch.Tensor):
        return value.expand(node.meta["shape"])
    if isinstance(operator, Moving) and len(node.all_input_nodes) == 1 and module_of(node) is None:
        return run(node, None, lambda: value)
    return None
