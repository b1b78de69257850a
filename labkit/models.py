"""The networks that labkit knows by name, and how a user's own stands in for them.

The JSC networks are those of the report (16 jet features, 5 classes), with their layers in
`seq_blocks`, so that fx names them `seq_blocks_0`, `seq_blocks_1`, …
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from labkit.errors import LabkitError, did_you_mean
from labkit.imports import build


class SequentialNet(nn.Module):
    """A chain of layers.

    Args:
        *layers: The layers, in order. The network maps `[batch, 16]` to logits `[batch, 5]` for
            all networks of this module.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.seq_blocks = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seq_blocks(x)


class JSCTiny(SequentialNet):
    """16 → 5."""

    def __init__(self) -> None:
        super().__init__(
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(),
        )


class JSCToy(SequentialNet):
    """16 → 8 → 8 → 5 with BatchNorm: the network that the report searched."""

    def __init__(self) -> None:
        super().__init__(
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(inplace=True),
        )


class JSCThreeLinearLayers(SequentialNet):
    """16 → 16 → 16 → 5: the network of the report's text."""

    def __init__(self) -> None:
        super().__init__(
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 5),
            nn.ReLU(inplace=True),
        )


class JSCS(nn.Module):
    """16 → 64 → 32 → 32 → 32 → 5, its layers in `module_list`."""

    def __init__(self) -> None:
        super().__init__()
        self.module_list = nn.ModuleList(
            [
                nn.BatchNorm1d(16),
                nn.ReLU(inplace=True),
                nn.Linear(16, 64),
                nn.BatchNorm1d(64),
                nn.ReLU(inplace=True),
                nn.Linear(64, 32),
                nn.ReLU(inplace=True),
                nn.Linear(32, 32),
                nn.ReLU(inplace=True),
                nn.Linear(32, 32),
                nn.ReLU(inplace=True),
                nn.Linear(32, 5),
                nn.BatchNorm1d(5),
                nn.ReLU(inplace=True),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.module_list:
            x = module(x)
        return x


class HLS4MLJets(SequentialNet):
    """16 → 64 → 32 → 32 → 5 with no ReLU on the logits: the field's own (arXiv:1804.06913)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(16, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, 32),
            nn.ReLU(inplace=True),
            nn.Linear(32, 32),
            nn.ReLU(inplace=True),
            nn.Linear(32, 5),
        )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "jsc-tiny": JSCTiny,
    "jsc-toy": JSCToy,
    "jsc-three-linear-layers": JSCThreeLinearLayers,
    "jsc-s": JSCS,
    "hls4ml-jets": HLS4MLJets,
}


def get_model(model: str | nn.Module) -> nn.Module:
    """Returns a network.

    Args:
        model: A name from `MODELS`, `package.module:function` (a function or class that returns an
            `nn.Module` when called without arguments), or a module, which is returned as it is.

    Raises:
        LabkitError: Nothing has that name, or what has it does not return a module.
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        raise LabkitError(f"model: expected a name or an nn.Module, got {model!r}")
    if ":" in model:
        return build("model", model, nn.Module)
    if model not in MODELS:
        raise LabkitError(f"model: unknown network {model!r}; {did_you_mean(model, MODELS)}")
    return MODELS[model]()
