"""The stack itself: each node of the candidates' graph, as its operator stacks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from labkit.operators.base import operator_of
from labkit.operators.building import NotStackable, StackBuilder, Stacked
from labkit.operators.nodes import describe, is_shape


class Stack(StackBuilder):
    """Candidates as one network.

    Args:
        traced: The network that they were made of, traced with shapes: `Channels.traced`.
        candidates: Networks that differ only in widths, with the weights to start from.

    Attributes:
        network: Maps what `spread` returns to logits `[candidates, classes, rows]`.

    Raises:
        NotStackable: The network mixes channels, or does what the stack does not know.
    """

    def __init__(self, traced: GraphModule, candidates: Sequence[nn.Module]):
        super().__init__(candidates)
        self.traced = traced
        _check_modules(candidates[0])
        for node in traced.graph.nodes:
            self._visit(node)
        self.network = GraphModule(self.root, self.graph)

    def _visit(self, node: Node) -> None:
        shape = node.meta["shape"]
        if node.op == "placeholder" and is_shape(shape):
            real = torch.ones(self.size, shape[1], dtype=torch.bool)
            self.tensors[node] = Stacked(self.graph.placeholder(node.name), real, len(shape) > 2)
        elif node.op == "output":
            if not isinstance(node.args[0], Node) or node.args[0] not in self.tensors:
                raise NotStackable("its output is not one tensor of logits")
            self.graph.output(self.tensors[node.args[0]].node)
        elif shape is not None:  # otherwise only a reshape can use it, and that does without
            module, operator = self.module(node), operator_of(node)
            forwards = () if operator is None else [kind.forward for kind in operator.modules]
            if module is not None and forwards and type(module).forward not in forwards:
                where = describe(node, self.candidates[0])
                raise NotStackable(f"{where} has a forward of its own")
            stacked = None if operator is None else operator.stacked(self, node)
            if stacked is None:
                raise NotStackable(f"{describe(node)} mixes channels, or labkit does not know it")
            self.tensors[node] = stacked

    def spread(self, x: Tensor, order_of: Tensor) -> Tensor:
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

    @torch.no_grad()
    def narrowed(self, places: Sequence[int]) -> tuple[Stack, Callable[[str, Tensor], Tensor]]:
        """Returns a stack of some of its candidates, as they are in this one.

        Args:
            places: The indices of these candidates.

        Returns:
            The stack; and what becomes in it of a tensor that has the shape of a parameter or
            buffer of this one, which is named.
        """
        narrow = Stack(self.traced, [self.candidates[place] for place in places])
        narrow.network.to(next(self.network.parameters()).device)
        alone, old, new = (
            module.state_dict() for module in (self.candidates[0], self.network, narrow.network)
        )

        def moved(name: str, tensor: Tensor) -> Tensor:
            if name not in self.real:  # a count of batches
                return tensor
            before, after = self.real[name], narrow.real[name]
            rest = alone[name].shape[before.ndim - 1 :]
            padded = tensor.reshape(before.shape + rest)
            result = tensor.new_zeros(after.shape + rest)
            result[after] = torch.cat([padded[place][before[place]] for place in places])
            return result.view_as(new[name])

        for name in alone.keys() & new.keys():
            new[name].copy_(moved(name, old[name]))
        return narrow, moved


def _check_modules(network: nn.Module) -> None:
    """Refuses hooks, and parameters that are not one layer's alone."""
    owned: set[int] = set()
    for name, module in network.named_modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
        if any(hooks) or module._backward_pre_hooks:
            where = f"'{name}'" if name else "the network"
            raise NotStackable(f"{where} ({type(module).__name__}) has a hook")
        if hasattr(module, "parametrizations"):
            raise NotStackable(f"'{name}' has a parametrized weight")
        for parameter in module.parameters(recurse=False):
            if id(parameter) in owned:
                raise NotStackable(f"'{name}' shares its weight with another layer")
            owned.add(id(parameter))
