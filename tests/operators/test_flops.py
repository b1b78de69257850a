"""The FLOPs of each family in closed form, a multiply-accumulate counted as 1."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.operators import operator_of

Shape = tuple[int, ...]
IMAGE, ROWS = (2, 6, 5, 4), (2, 6)
N_IMAGE = 2 * 6 * 5 * 4


@pytest.mark.parametrize(
    ("called", "read", "written", "flops"),
    [
        (nn.Linear(6, 7), ROWS, (2, 7), 2 * 6 * 7),
        (nn.Linear(6, 7), (2, 3, 6), (2, 3, 7), 2 * 3 * 6 * 7),
        # Outputs × inputs of a group × kernel.
        (nn.Conv1d(6, 9, 5, groups=3), (2, 6, 10), (2, 9, 6), 2 * 9 * 6 * 2 * 5),
        (nn.Conv2d(6, 8, (3, 2)), IMAGE, (2, 8, 3, 3), 2 * 8 * 9 * 6 * 6),
        (nn.Conv3d(6, 8, 2), (2, 6, 4, 4, 4), (2, 8, 3, 3, 3), 2 * 8 * 27 * 6 * 8),
        (nn.Conv2d(6, 12, 3, groups=6), IMAGE, (2, 12, 3, 2), 2 * 12 * 6 * 9),
        # Inputs × outputs of a group × kernel.
        (nn.ConvTranspose2d(6, 8, 2, 2), IMAGE, (2, 8, 10, 8), N_IMAGE * 8 * 4),
        (nn.ConvTranspose2d(6, 9, 2, groups=3), IMAGE, (2, 9, 6, 5), N_IMAGE * 3 * 4),
        (nn.ConvTranspose2d(6, 12, 3, groups=6), IMAGE, (2, 12, 7, 6), N_IMAGE * 2 * 9),
        (nn.BatchNorm1d(6), ROWS, ROWS, 4 * 12),
        (nn.BatchNorm2d(6), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.InstanceNorm2d(6), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.GroupNorm(3, 6), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.GroupNorm(6, 6), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.LayerNorm(4), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.LayerNorm((5, 4)), IMAGE, IMAGE, 4 * N_IMAGE),
        (nn.Embedding(11, 6), (2, 5), (2, 5, 6), 0),
        (nn.GELU(), ROWS, ROWS, 12),
        (nn.PReLU(6), ROWS, ROWS, 12),
        (nn.PReLU(), ROWS, ROWS, 12),
        (nn.Softmax(1), ROWS, ROWS, 12),
        (operator.add, (2, 1), ROWS, 12),
        ("sigmoid", ROWS, ROWS, 12),
        ("softmax", ROWS, ROWS, 12),
        (nn.Dropout(), ROWS, ROWS, 0),
        (nn.AlphaDropout(), ROWS, ROWS, 0),
        (nn.Dropout2d(), IMAGE, IMAGE, 0),
        (F.dropout, ROWS, ROWS, 0),
        ("contiguous", ROWS, ROWS, 0),
        # Pooling and reductions read everything.
        (nn.MaxPool2d(2), IMAGE, (2, 6, 2, 2), N_IMAGE),
        (nn.MaxPool1d(3), (2, 6, 9), (2, 6, 3), 2 * 6 * 9),
        (nn.AvgPool3d(2), (2, 6, 4, 2, 6), (2, 6, 2, 1, 3), 2 * 6 * 4 * 2 * 6),
        (nn.AdaptiveAvgPool2d(1), IMAGE, (2, 6, 1, 1), N_IMAGE),
        (F.avg_pool2d, IMAGE, (2, 6, 2, 2), N_IMAGE),
        (nn.LPPool2d(2, 2), IMAGE, (2, 6, 2, 2), N_IMAGE),
        ("mean", IMAGE, (2, 6), N_IMAGE),
        (torch.sum, IMAGE, (2, 6), N_IMAGE),
        ("amax", IMAGE, (2, 6), N_IMAGE),
        # What only moves elements is free.
        (nn.ZeroPad2d(1), IMAGE, (2, 6, 7, 6), 0),
        (F.pad, IMAGE, (2, 6, 5, 6), 0),
        (nn.Upsample(scale_factor=2), IMAGE, (2, 6, 10, 8), 0),
        (F.interpolate, IMAGE, (2, 6, 10, 8), 0),
        (nn.Flatten(), IMAGE, (2, 120), 0),
        (nn.Unflatten(1, (2, 3)), ROWS, (2, 2, 3), 0),
        (nn.ChannelShuffle(2), IMAGE, IMAGE, 0),
        *[
            (function, IMAGE, IMAGE, 0)
            for function in (
                "view", "reshape", torch.flatten, "transpose", torch.permute, "squeeze",
                "unsqueeze", "expand", torch.cat, "chunk", torch.split, operator.getitem, getattr,
            )
        ],
    ],
)  # fmt: skip
def test_flops_are_those_of_a_closed_form(
    called: Any, read: Shape, written: Shape, flops: int
) -> None:
    known = operator_of(called)
    assert known is not None
    module = called if isinstance(called, nn.Module) else None
    if module is not None and not isinstance(module, nn.Embedding):
        assert tuple(module(torch.zeros(read)).shape) == written  # the table is about real layers
    assert known.flops(None, module, [read], written) == flops  # type: ignore[arg-type]


WIDE: list[tuple[Callable[[int, int], nn.Module], Shape]] = [
    (nn.Linear, (2, 3)),
    (lambda a, b: nn.Conv2d(a, b, 3, groups=2), (2, 5, 5)),
    (lambda a, b: nn.ConvTranspose2d(a, b, 3, groups=2, bias=False), (2, 5, 5)),
    (lambda a, b: nn.Conv2d(a, 2 * a, 3, groups=a), (2, 5, 5)),
    (lambda a, b: nn.ConvTranspose2d(a, 2 * a, 3, groups=a), (2, 5, 5)),
    (lambda a, b: nn.GroupNorm(2, a), (2, 5, 5)),
    (lambda a, b: nn.PReLU(a), (2, 5, 5)),
]


@pytest.mark.parametrize(("build", "shape"), WIDE)
def test_a_layer_is_priced_as_the_one_that_has_the_widths(
    build: Callable[[int, int], nn.Module], shape: Shape
) -> None:
    """Nothing is read off a layer's widths: what it was asks for what it becomes."""
    rows, *space = shape
    narrow, wide = build(4, 6), build(8, 10)
    x = torch.zeros(rows, 3, 8) if isinstance(wide, nn.Linear) else torch.zeros(rows, 8, *space)
    y = wide(x)
    known = operator_of(narrow)
    assert known is not None
    arguments = [tuple(x.shape)], tuple(y.shape)
    assert known.flops(None, narrow, *arguments) == known.flops(None, wide, *arguments)  # type: ignore[arg-type]
    n_out = y.shape[-1] if isinstance(wide, nn.Linear) else y.shape[1]
    n_parameters = sum(parameter.numel() for parameter in wide.parameters())
    assert known.n_parameters(narrow, 8, n_out) == n_parameters


def test_products_train_at_three_times_their_forward_pass() -> None:
    products = [nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1, groups=2)]
    others = [nn.Embedding(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.MaxPool1d(2)]
    assert all(operator_of(module).matrix_product for module in products)  # type: ignore[union-attr]
    assert not any(operator_of(module).matrix_product for module in others)  # type: ignore[union-attr]
