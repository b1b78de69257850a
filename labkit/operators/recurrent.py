"""Recurrent layers: several gates for each hidden channel, which every step reads again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from labkit.operators import layout as lay
from labkit.operators.base import Call, Operator, Shape, register_operator
from labkit.operators.layout import Layout
from labkit.operators.nodes import as_tuple, describe
from labkit.operators.weights import IN, OUT, carried, in_place_of


@register_operator
class Recurrent(Operator):
    """`[rows, steps, in]` → `[rows, steps, directions · out]`, and the last states.

    Hidden channels that are projected to fewer ones keep their width, and so do these.
    """

    modules = (nn.LSTM, nn.GRU, nn.RNN)
    scalable = matrix_product = True

    def sides(self, module: nn.RNNBase) -> tuple[Layout, Layout]:
        out = lay.width(module.proj_size or module.hidden_size)
        return lay.width(module.input_size), out * (1 + module.bidirectional)

    def flow(self, call: Call) -> Any:
        module: Any = call.module
        if call.sides is None or not isinstance(call.x, list):
            return None
        lay.join(call.x[-1], call.sides[0])
        out = call.sides[1][: len(call.sides[1]) // (1 + module.bidirectional)]
        cell = out
        if module.proj_size:
            lay.fix(out, f"{describe(call.node)} projects its hidden channels to it")
            cell = lay.plain(module.hidden_size)
        states: Any = [call.axes.get(state) for state in as_tuple(call.argument(1, "hx"))]
        for axes, width in zip(states[0] if isinstance(states[0], tuple) else states, (out, cell)):
            lay.join((axes or [width])[-1], width)
        y = [*call.x[:-1], call.sides[1]]
        if isinstance(module, nn.LSTM):
            ends = zip(call.shape[1], (out, cell))
            return y, tuple([*map(lay.plain, shape[:-1]), width] for shape, width in ends)
        return y, [*map(lay.plain, call.shape[1][:-1]), out]

    def carry(
        self, module: Any, inputs: torch.Tensor, outputs: torch.Tensor, noise: float = 0.0
    ) -> None:
        device = next(module.parameters()).device
        inputs, outputs = inputs.to(device), outputs.to(device)
        again = outputs[: len(outputs) // (1 + module.bidirectional)]
        hidden = torch.arange(module.hidden_size, device=device) if module.proj_size else again
        for name, parameter in list(module.named_parameters()):
            if name.startswith("weight_hr"):
                continue
            read = again if "hh" in name else inputs if "_l0" in name else outputs
            axes, noisy = (OUT, IN)[: parameter.ndim], noise if parameter.ndim > 1 else 0.0
            gates = parameter.detach().split(module.hidden_size)
            new = [carried(gate, axes, read, hidden, groups=1, noise=noisy) for gate in gates]
            setattr(module, name, in_place_of(parameter, torch.cat(new)))
        module.input_size, module.hidden_size = len(inputs), len(hidden)

    def norms(self, module: Any) -> torch.Tensor:
        if module.proj_size:
            return torch.zeros(())
        last = f"_l{module.num_layers - 1}"
        weights = [p for n, p in module.named_parameters() if n.startswith(f"weight_ih{last}")]
        gates = [w.detach().float().cpu().view(-1, module.hidden_size, w.shape[1]) for w in weights]
        return torch.cat([gate.square().sum((0, 2)) for gate in gates])

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int:
        n_in, n_out, directions = read[0][-1], written[-1], 1 + module.bidirectional
        again = n_out // directions
        hidden = module.hidden_size if module.proj_size else again
        gates = module.weight_hh_l0.shape[0] // module.hidden_size
        reads = n_in + (module.num_layers - 1) * n_out + module.num_layers * again
        projections = module.num_layers * hidden * module.proj_size
        each = gates * hidden * reads + projections
        return math.prod(written[:-1]) * directions * each
