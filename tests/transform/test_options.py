"""Numbers that modules have as attributes, and compare with the sizes of tensors."""

import pytest
import torch
from torch import nn

from labkit.transform.channels import find_channels
from tests.operators.widening import trained, widened

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Checked(nn.Module):
    """Its code refuses other widths than the one that it has as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.width = nn.Linear(6, 8), nn.Linear(8, 3), 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        assert x.shape[-1] == self.width, "other width"
        if self.width != x.size(-1):
            raise ValueError("other width")
        return self.last(x)


class Translating(nn.Module):
    """PyTorch's transformer, which compares both of its inputs with its width."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.both = nn.Transformer(16, 4, 1, 1, 20, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.both(self.one(x), self.two(x.flip(1))))


@pytest.mark.parametrize("build", [Checked, Translating])
@pytest.mark.parametrize("multiplier", [1.5, 2, 0.5])
def test_they_follow_the_width_that_they_are_compared_with(
    build: type[nn.Module], multiplier: float
) -> None:
    model = trained(build())
    info = widened(model, X, multiplier)
    assert multiplier != 2 or not info.inexact
    assert find_channels(model, X).options
