"""The networks that labkit knows by name, and how a user's own stands in for them.

The JSC networks are those of the report (16 jet features, 5 classes), with their layers in
`seq_blocks`, so that fx names them `seq_blocks_0`, `seq_blocks_1`, … The others take images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from labkit.errors import LabkitError, shown
from labkit.names import build, find


class SequentialNet(nn.Module):
    """A chain of layers.

    Args:
        *layers: The layers, in order. All subclasses here map `[batch, 16]` to logits `[batch, 5]`.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.seq_blocks = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seq_blocks(x)


def _linear(before: int, after: int, *, norm: bool = False) -> list[nn.Module]:
    """Returns a linear layer and its activation."""
    norms = [nn.BatchNorm1d(after)] if norm else []
    return [nn.Linear(before, after), *norms, nn.ReLU(inplace=True)]


def _features() -> list[nn.Module]:
    """Returns what normalises the 16 jet features."""
    return [nn.BatchNorm1d(16), nn.ReLU(inplace=True)]


class JSCTiny(SequentialNet):
    """16 → 5."""

    def __init__(self) -> None:
        super().__init__(*_features(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU())


class JSCToy(SequentialNet):
    """16 → 8 → 8 → 5 with BatchNorm: the network that the report searched."""

    def __init__(self) -> None:
        hidden = [*_linear(16, 8, norm=True), *_linear(8, 8, norm=True)]
        super().__init__(*_features(), *hidden, *_linear(8, 5, norm=True))


class JSCThreeLinearLayers(SequentialNet):
    """16 → 16 → 16 → 5: the network of the report's text."""

    def __init__(self) -> None:
        super().__init__(*_features(), *_linear(16, 16), *_linear(16, 16), *_linear(16, 5))


class JSCS(nn.Module):
    """16 → 64 → 32 → 32 → 32 → 5, its layers in `module_list`."""

    def __init__(self) -> None:
        super().__init__()
        first, hidden = _linear(16, 64, norm=True), [*_linear(64, 32), *_linear(32, 32)]
        last = [*_linear(32, 32), *_linear(32, 5, norm=True)]
        self.module_list = nn.ModuleList([*_features(), *first, *hidden, *last])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.module_list:
            x = module(x)
        return x


class HLS4MLJets(SequentialNet):
    """16 → 64 → 32 → 32 → 5 with no ReLU on the logits: the field's own (arXiv:1804.06913)."""

    def __init__(self) -> None:
        super().__init__(*_linear(16, 64), *_linear(64, 32), *_linear(32, 32), nn.Linear(32, 5))


class VGG7(nn.Module):
    """128-128, 256-256, 512-512 (3×3 convolutions, pooled in pairs), 1024, 1024, 10 classes.

    The network of the report's optional task, for images `[batch, 3, 32, 32]`.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 128, 128, 256, 256, 512, 512)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            if i % 2:
                layers.append(nn.MaxPool2d(2))
        self.feature_layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 4 * 4, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
        )
        self.last_layer = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feature_layers(x)
        x = x.view(-1, 512 * 4 * 4)
        return self.last_layer(self.classifier(x))


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions, and a 1×1 one beside them where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """The smallest of He et al.'s networks for CIFAR (arXiv:1512.03385): 16, 32, 64 channels.

    One block a stage, projections as shortcuts; images `[batch, 3, height, width]`, 10 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(
            _ResidualBlock(16, 16, 1), _ResidualBlock(16, 32, 2), _ResidualBlock(32, 64, 2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "jsc-tiny": JSCTiny,
    "jsc-toy": JSCToy,
    "jsc-three-linear-layers": JSCThreeLinearLayers,
    "jsc-s": JSCS,
    "hls4ml-jets": HLS4MLJets,
    "vgg7": VGG7,
    "resnet8": ResNet8,
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
        raise LabkitError(f"model: expected a name or an nn.Module, got {shown(model)}")
    return build("model", model, find("model", model, MODELS, "network"), nn.Module)
