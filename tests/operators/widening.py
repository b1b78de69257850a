"""Checks that a network computes the same with other widths, or that labkit says why not."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit.transform import TransformInfo, channel_multiplier_transform_pass
from labkit.transform.channels import find_channels
from labkit.transform.cost import cost_of, total_cost


def trained(model: nn.Module) -> nn.Module:
    """Gives a network weights as training leaves them: none is zero, and no two are alike."""
    torch.manual_seed(1)
    for parameter in model.double().parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.uniform_(parameter, 0.2, 1.2)
    return model.eval()


def widened(
    model: nn.Module, x: torch.Tensor, multiplier: float, *, groups: bool = False
) -> TransformInfo:
    """Scales a network by all of its layers, or by all of its groups, and compares.

    The wider network equals the given one to 1e-9, or `inexact` says why not. It has the cost that
    its plan has, and trains with fresh weights.
    """
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    config: dict[str, Any] = {"by": "type", "default": request}
    if groups:
        names = [group.name for group in find_channels(model, x).free]
        config = {
            "by": "name",
            "default": {"config": {"name": None}},
            **dict.fromkeys(names, request),
        }
    with warnings.catch_warnings(action="ignore"):  # of the output's width
        new, info = channel_multiplier_transform_pass(
            model, config, example_input=x, weights="keep"
        )
        fresh, _ = channel_multiplier_transform_pass(model, config, example_input=x)
    assert any(width != group.width for (_, width), group in zip(
        info.plan.widths, find_channels(model, x).free
    ))  # fmt: skip
    with torch.no_grad():
        y, z = model(x), new.eval()(x)
    assert z.shape == y.shape
    if multiplier > 1:
        exact = float((z - y).norm() / y.norm()) < 1e-9
        assert exact == (not info.inexact), info.inexact
    planned, built = cost_of(model, info.plan, example_input=x), total_cost(new, example_input=x)
    assert planned.total_flops == built.total_flops
    assert planned.parameters == built.parameters == sum(p.numel() for p in new.parameters())
    fresh.train()(x).square().sum().backward()
    return info


def products(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Returns the FLOPs of a network's products, as labkit and as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        model.train()(x)  # in evaluation it takes fast paths, which PyTorch does not count
    kinds = ("linear", "conv", "attention", "matmul", "bmm", "einsum", "lstm", "gru", "rnn")
    layers = total_cost(model.eval(), example_input=x, batch_size=len(x)).layers
    counted = sum(c.flops for c in layers if any(kind in c.type.lower() for kind in kinds))
    return 2 * counted, counter.get_total_flops()
