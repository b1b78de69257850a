"""What the operators of a stack are built with: one padded network of many candidates.

Candidates that differ only in widths are padded with zeros to the widest. Zero is a fixed point of
training: a padded channel's weights, gradients and moments stay exactly zero, so each candidate
follows the trajectory that it would have had alone.

Tensors of the stacked network have one of two layouts. What is `[rows, channels]` in a candidate
becomes `[candidates, channels, rows]`; what is `[rows, channels, …]` becomes
`[rows, candidates · channels, …]`. In both, normalising or convolving a channel sees contiguous
memory, which matters more to the speed than anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from labkit.errors import LabkitError
from labkit.operators.nodes import describe, run
from labkit.operators.weights import in_place_of


class NotStackable(LabkitError):  # noqa: N818 — not a mistake: the plain loop can train it
    """A network that cannot be trained in a stack; the message says why."""


class Stacked(NamedTuple):
    """A tensor of the stacked network.

    Attributes:
        node: What computes it, in the stack's graph.
        real: bool `[candidates, channels]`: which of the padded channels a candidate has.
        spatial: Whether the candidate axis is folded into the channels; see the module.
    """

    node: Node
    real: torch.Tensor
    spatial: bool


class StackBuilder:
    """The stacked network while it is built.

    Args:
        candidates: Networks that differ only in widths, with the weights to start from.

    Attributes:
        size: The number of candidates.
        graph: That of the stack.
        root: Its layers.
        tensors: A candidate's node → what it is in the stack.
        real: Name of a parameter or buffer → bool `[candidates, *channel axes]`; false is padding.
    """

    def __init__(self, candidates: Sequence[nn.Module]):
        self.candidates = candidates
        self.size = len(candidates)
        self.graph = Graph()
        self.root = GraphModule({}, Graph())
        self.tensors: dict[Node, Stacked] = {}
        self.real: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, torch.Tensor] = {}  # of each layer: its input's real channels

    def inputs(self, node: Node) -> list[Stacked]:
        """Returns what a call reads, each tensor once.

        Raises:
            NotStackable: Something that it reads is not in the stack, or it reads nothing.
        """
        sources = node.all_input_nodes
        if not sources or any(source not in self.tensors for source in sources):
            raise NotStackable(f"{describe(node)} reads what is not in the stack")
        return [self.tensors[source] for source in sources]

    def spatial(self, node: Node) -> Stacked:
        """Returns the one tensor that a call reads, which must have space.

        Raises:
            NotStackable: It has none, or is not in the stack.
        """
        x, *_ = self.inputs(node)
        if not x.spatial:
            raise NotStackable(f"{describe(node)} has no spatial axes to work on")
        return x

    def modules(self, node: Node) -> list[Any]:
        """Returns the layer of each candidate that a node calls."""
        return [candidate.get_submodule(str(node.target)) for candidate in self.candidates]

    def module(self, node: Node) -> Any:
        """Returns the layer of the first candidate that a node calls; `None` for a function."""
        return self.modules(node)[0] if node.op == "call_module" else None

    def call(self, function: Callable[..., torch.Tensor], *args: Any) -> Node:
        """Adds a call of a function to the graph."""
        return self.graph.call_function(function, args)

    def repeat(self, node: Node, like: Stacked) -> Stacked:
        """Does in the stack what a node does in a candidate; the channels stay where they are."""
        module = self.module(node)
        if module is not None:
            self.root.add_submodule(str(node.target), copy.deepcopy(module))
        return self._called(node, like.real, like.spatial)

    def layer(
        self, node: Node, build: Callable[[], nn.Module], x: Stacked, real: torch.Tensor
    ) -> Stacked:
        """Puts a layer with parameters into the stack; one that is called twice is built once.

        Args:
            node: Its call.
            build: Returns it.
            x: What it reads.
            real: The channels that it writes.
        """
        target = str(node.target)
        if target not in self._inputs:
            self._inputs[target] = x.real
            self.root.add_submodule(target, build())
        elif not torch.equal(self._inputs[target], x.real):
            raise NotStackable(f"{describe(node)} is called on channels in different places")
        return self._called(node, real, x.spatial)

    def _called(self, node: Node, real: torch.Tensor, spatial: bool) -> Stacked:
        stacked = self.graph.node_copy(node, lambda source: self.tensors[source].node)
        return Stacked(stacked, real, spatial)

    def masked(self, stacked: Stacked, name: str, ndim: int) -> Stacked:
        """Makes padding zero again.

        Args:
            stacked: A tensor.
            name: Of the buffer that says which of its channels are real.
            ndim: The number of axes that the tensor has in a candidate.
        """
        mask = stacked.real[:, :, None]
        if stacked.spatial:
            mask = stacked.real.reshape(1, -1, *[1] * (ndim - 2))
        product = self.call(torch.mul, stacked.node, self.constant(name, mask))
        return stacked._replace(node=product)

    def constant(self, name: str, value: torch.Tensor) -> Node:
        """Adds a tensor that does not train to the graph."""
        self.root.register_buffer(name, value, persistent=False)
        return self.graph.get_attr(name)

    def first(self, widths: Sequence[int]) -> torch.Tensor:
        """Returns channels of which each candidate has the first ones, so many."""
        return torch.arange(max(widths)) < torch.tensor(widths)[:, None]

    @torch.no_grad()
    def load(self, node: Node, name: str, real: torch.Tensor, *, folded: bool = False) -> Any:
        """Returns the candidates' tensors of that name as one, padded with zeros.

        Args:
            node: The call of the layer.
            name: Of its parameter or buffer.
            real: bool `[candidates, *channel axes]`.
            folded: Whether the candidate axis is to be folded into the axis after it.
        """
        tensors = [getattr(module, name) for module in self.modules(node)]
        if tensors[0] is None:
            return None
        rest = tensors[0].shape[real.ndim - 1 :]
        padded = tensors[0].new_zeros(real.shape + rest)
        padded[real] = torch.cat([tensor.detach().reshape(-1, *rest) for tensor in tensors])
        self.real[f"{node.target}.{name}"] = real
        stacked = padded.flatten(0, 1) if folded else padded
        return in_place_of(tensors[0], stacked)


def outer(out: torch.Tensor, in_: torch.Tensor) -> torch.Tensor:
    """Returns bool `[candidates, out, in]`: which entries of a weight are real."""
    return out[:, :, None] & in_[:, None, :]


def folded(x: torch.Tensor) -> torch.Tensor:
    """`[candidates, channels, rows]` → `[1, candidates · channels, rows]`."""
    return x.reshape(1, -1, x.shape[-1])


def flattened(x: torch.Tensor, candidates: int) -> torch.Tensor:
    """`[rows, candidates · channels, …]` → `[candidates, channels · …, rows]`."""
    return x.reshape(len(x), candidates, -1).permute(1, 2, 0)


def at_zero(node: Node, module: nn.Module | None) -> float:
    """Returns what an elementwise node makes of zeros.

    Raises:
        NotStackable: The value or the gradient there is not finite, so padding would spread.
    """
    zero = torch.zeros(1, requires_grad=True)
    with torch.enable_grad():
        value = run(node, module, lambda: zero * 1)  # a copy, for what works in place
        if value.requires_grad:
            value.sum().backward()
    gradient = zero if zero.grad is None else zero.grad
    if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
        raise NotStackable(f"{describe(node)} is not smooth at zero, which padding needs")
    return value.item()
