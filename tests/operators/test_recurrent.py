"""Recurrent layers: their hidden width, exactly, and their FLOPs."""

from typing import Any

import pytest
import torch
from torch import nn

from labkit.transform.channels import find_channels
from labkit.transform.cost import total_cost
from tests.operators.widening import products, trained, widened

X = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Embeds a sequence; its head reads all steps, and what is carried from the last one."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any):
        super().__init__()
        self.embed, self.layer = nn.Linear(6, 8), kind(8, 12, batch_first=True, **options)
        width = options.get("proj_size", 12)
        self.head, self.last = (
            nn.Linear(width * (1 + self.layer.bidirectional), 3),
            nn.Linear(width, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.layer(self.embed(x).relu())
        y, state = self.layer(self.embed(-x).relu(), state)  # goes on from there
        state = state[0] if isinstance(self.layer, nn.LSTM) else state
        return self.head(y) + self.last(state[-1])[:, None]


CASES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {"nonlinearity": "relu"}),
    "both directions, two layers": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "three layers without bias": (nn.GRU, {"bias": False, "num_layers": 3}),
    "projected": (nn.LSTM, {"proj_size": 5, "bidirectional": True, "num_layers": 2}),
}


@pytest.mark.parametrize("multiplier", [1.5, 2, 3, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same_with_more_hidden_channels(name: str, multiplier: float) -> None:
    kind, options = CASES[name]
    info = widened(trained(Recurrent(kind, **options)), X, multiplier)
    assert bool(info.inexact) == (multiplier < 1)
    assert len(info.plan.widths) == (1 if name == "projected" else 2)


def test_hidden_channels_that_are_projected_stay() -> None:
    groups = find_channels(Recurrent(nn.LSTM, proj_size=5).double(), X).groups
    reason = next(group.fixed for group in groups if group.name == "layer")
    assert "projects its hidden channels" in str(reason)


@pytest.mark.parametrize("name", CASES)
def test_it_costs_its_products(name: str) -> None:
    kind, options = CASES[name]
    ours, pytorchs = products(Recurrent(kind, **options).double(), X)
    assert ours == pytorchs


def test_an_lstm_costs_four_gates_for_each_step() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 12, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    assert total_cost(Only(), example_input=torch.zeros(1, 7, 8)).total_flops == 7 * 4 * 12 * 20
