"""Layers as functions: their parameters have the widths of what they meet."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.widening import products, trained, widened

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """A function between two convolutions, with parameters of its own."""

    def __init__(self, function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]):
        super().__init__()
        self.stem, self.head, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), function
        self.own = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.function(self.stem(x), *self.own)))


def batch_norm(x: torch.Tensor, mean: Any, var: Any, weight: Any) -> torch.Tensor:
    return F.batch_norm(x, mean.detach(), var.detach() ** 2, weight)


def layer_norm(x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (8,), weight, bias).permute(0, 3, 1, 2)


CASES: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "linear": (lambda x, w, b: F.linear(x.mT, w, b).mT, [(6, 6), (6,)]),
    "linear over channels": (lambda x, w: F.linear(x.transpose(1, 3), w).transpose(1, 3), [(8, 8)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [(8, 8, 3, 3), (8,)]),
    "conv1d": (lambda x, w: F.conv1d(x.flatten(2), w).unflatten(2, (6, 6)), [(8, 8, 1)]),
    "batch_norm": (batch_norm, [(8,)] * 3),
    "instance_norm": (F.instance_norm, []),
    "layer_norm": (layer_norm, [(8,)] * 2),
    "rms_norm": (lambda x, w: F.rms_norm(x.mT.transpose(1, 3), [8], w).transpose(1, 3), [(8,)]),
    "group_norm": (lambda x, w: F.group_norm(x, 2, w), [(8,)]),
}


@pytest.mark.parametrize("multiplier", [1.5, 2, 3, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same_with_more_channels(name: str, multiplier: float) -> None:
    function, shapes = CASES[name]
    info = widened(trained(Functional(function, *shapes)), X, multiplier)
    if multiplier in (2, 3):
        assert not info.inexact


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv1d"])
def test_it_costs_its_products(name: str) -> None:
    function, shapes = CASES[name]
    ours, pytorchs = products(Functional(function, *shapes).double(), X)
    assert ours == pytorchs
