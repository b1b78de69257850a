"""Scores sum over copies of a head's channels: exactly where a layer can be divided, else named."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.widening import trained, widened

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Function = Callable[..., torch.Tensor]


class Scores(nn.Module):
    """Attention over tokens; what makes the scores of three layers' outputs is given."""

    def __init__(self, scores: Function):
        super().__init__()
        self.scores = scores
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.scores(self, self.q(x), self.k(x))
        return self.out(scores.softmax(-1) @ self.v(x))


@pytest.mark.parametrize("multiplier", [1.5, 1.25, 3])
@pytest.mark.parametrize(
    "scores",
    [
        lambda net, q, k: q @ k.mT,
        lambda net, q, k: torch.einsum("bnd,bmd->bnm", q * 0.2, k / 3),
        lambda net, q, k: q.relu() @ k.transpose(1, 2),
        # Numbers of the width: what they became is undone.
        lambda net, q, k: (q @ k.mT) / math.sqrt(k.shape[-1]),
        lambda net, q, k: (q * q.size(-1) ** -0.5) @ (k / k.size(-1)).mT,
        lambda net, q, k: net.k.out_features**-0.5 * (3 * torch.bmm(q, k.mT)),
        lambda net, q, k: q @ k.chunk(2, 1)[0].mT @ torch.ones(2, 3, 5, dtype=q.dtype),
        lambda net, q, k: q @ k.view(2, 5, 8).contiguous().unsqueeze(1).squeeze(1).mT,
        lambda net, q, k: q[..., :4] @ k[..., :4].mT + q[..., 4:] @ k[..., 4:].mT,
    ],
)
def test_wider_channels_leave_the_scores(scores: Function, multiplier: float) -> None:
    model = trained(Scores(scores))
    assert not widened(model, X, multiplier, groups=True).inexact


@pytest.mark.parametrize(
    "scores",
    [
        lambda net, q, k: q @ q.mT,
        lambda net, q, k: (q @ k.mT) * (k + q).amax((1, 2), keepdim=True),
        lambda net, q, k: q.tanh() @ (1 / k).mT,
        lambda net, q, k: (q @ k.mT) / k.norm(dim=-1, keepdim=True),
        lambda net, q, k: (q * q.size(-1)) @ q.tanh().mT,
        lambda net, q, k: q.tanh() @ k.tanh().mT,
        lambda net, q, k: (q @ k.mT) + F.scaled_dot_product_attention(q, k, k).amax(-1, True),
    ],
)
def test_where_no_layer_can_be_divided_the_sum_is_named(scores: Function) -> None:
    info = widened(trained(Scores(scores)), X, 2, groups=True)
    assert len(set(info.inexact)) == len(info.inexact)
    reasons = "computes over channels, whose number grows", "has a number of the widths"
    assert any(reason in each for each in info.inexact for reason in reasons)


def test_a_norm_of_each_head_is_divided() -> None:
    model = Scores(lambda net, q, k: q @ net.norm(k).mT)
    model.norm = nn.LayerNorm(8)
    assert not widened(trained(model), X, 2, groups=True).inexact


@pytest.mark.parametrize(
    "head",
    [
        lambda x, w: x @ w,
        lambda x, w: x @ w.unsqueeze(0).squeeze(0).contiguous(),
        lambda x, w: F.linear(x, w.mT),
        lambda x, w: torch.addmm(torch.ones(3, dtype=x.dtype), x.flatten(0, 1), w / 2),
        lambda x, w: torch.einsum("bnk,km->bmn", x, w),
    ],
)
@pytest.mark.parametrize("multiplier", [1.5, 2])
def test_a_parameter_that_the_code_multiplies_with_is_divided(
    head: Function, multiplier: float
) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.weight = nn.Linear(6, 8), nn.Parameter(torch.zeros(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return head(self.embed(x), self.weight)

    assert not widened(trained(Head()), X, multiplier).inexact
