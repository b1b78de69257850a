"""Small networks, one of each kind that the pass knows: what the tests widen and narrow.

All take images `[batch, 3, 16, 16]` unless their `Case` says otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Inputs = tuple[torch.Tensor, ...]


def conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the image, but for the stride."""
    return nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def block(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution, batch normalisation, activation."""
    layers = conv(n_in, n_out, kernel, stride, groups), nn.BatchNorm2d(n_out), nn.ReLU()
    return nn.Sequential(*layers)


class Head(nn.Module):
    """Mean over space, then a linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class VGG(nn.Module):
    """Its code has the size that it flattens to as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 6), nn.MaxPool2d(2), block(6, 9), nn.Conv2d(9, 12, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc1 = nn.Linear(12 * 4 * 4, 20)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).view(-1, 12 * 4 * 4)
        return self.fc2(self.drop(self.fc1(x).relu()))


class Residual(nn.Module):
    """Two convolutions and a shortcut, which downsamples where the width or the size changes."""

    def __init__(self, n_in: int, n_out: int, stride: int, groups: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            block(n_in, n_out, 1), block(n_out, n_out, 3, stride, groups), conv(n_out, n_out),
            nn.BatchNorm2d(n_out),
        )  # fmt: skip
        self.shortcut = None
        if (n_in, stride) != (n_out, 1):
            self.shortcut = nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.body(x) + kept)


def resnet() -> nn.Module:
    return nn.Sequential(block(3, 6), Residual(6, 6, 1), Residual(6, 10, 2), Head(10))


def resnext() -> nn.Module:
    return nn.Sequential(block(3, 6), Residual(6, 6, 1, groups=2), Residual(6, 12, 2, 3), Head(12))


class PreActivation(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), conv(n_in, n_out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(n_out), conv(n_out, n_out)
        self.shortcut = conv(n_in, n_out, 1, stride) if (n_in, stride) != (n_out, 1) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x).relu()
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(self.norm2(self.conv1(y)).relu())
        y += kept
        return y


def preresnet() -> nn.Module:
    layers = conv(3, 6), PreActivation(6, 6, 1), PreActivation(6, 10, 2)
    return nn.Sequential(*layers, nn.BatchNorm2d(10), nn.ReLU(), Head(10))


class InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        wide = 2 * n_in
        self.residual = (n_in, stride) == (n_out, 1)
        self.body = nn.Sequential(
            block(n_in, wide, 1), conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide),
            nn.ReLU6(), conv(wide, n_out, 1), nn.BatchNorm2d(n_out),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> nn.Module:
    layers = InvertedResidual(6, 6, 1), InvertedResidual(6, 9, 2)
    # A depthwise layer may write several channels for each that it reads.
    return nn.Sequential(block(3, 6), *layers, conv(9, 18, groups=9), block(18, 8, 1), Head(8))


class Gated(nn.Module):
    """Squeeze and excitation: a gate for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = block(width, width)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.reduce, self.expand = nn.Linear(width, 3), nn.Linear(3, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = y * torch.sigmoid(self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()))
        gate = self.expand(F.silu(self.reduce(y.mean((2, 3)))))
        return x + y * gate.sigmoid().view(y.size(0), y.size(1), 1, 1)


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, width: int, growth: int, n_layers: int):
        super().__init__()
        widths = [width + i * growth for i in range(n_layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(conv(w, growth) for w in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.convs):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return x


def densenet() -> nn.Module:
    narrow = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(), conv(14, 7, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv(3, 5), Dense(5, 3, 3), narrow, Dense(7, 2, 2), Head(11))


class Inception(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.one = block(width, 3, 1)
        self.three = nn.Sequential(block(width, 4, 1), block(4, 5))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), block(width, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pooled(x)
        return torch.cat((self.one(x), self.three(x), pooled, F.max_pool2d(x, 3, 1, 1)), dim=1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 4), block(4, 6), block(6, 8)
        self.up2, self.join2 = nn.ConvTranspose2d(8, 6, 2, 2), block(12, 6)
        self.up1, self.join1 = nn.ConvTranspose2d(6, 4, 2, 2), block(8, 5)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.bottom(F.max_pool2d(two, 2)))
        x = self.join2(torch.cat([x, two], 1))
        return self.out(self.join1(torch.cat([self.up1(x), one], 1)))


class DualPath(nn.Module):
    """The first channels are added, as in a ResNet; the others are gathered, as in a DenseNet."""

    def __init__(self, literal: bool):
        super().__init__()
        self.literal = literal
        self.stem, self.body = block(3, 6), block(6, 10)
        self.last, self.head = block(10, 8), Head(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.body(x)
        n_added = 6 if self.literal else x.size(1)
        y = self.last(torch.cat([x + y[:, :n_added], y[:, n_added:]], 1))
        half = 4 if self.literal else y.size(1) // 2
        left, right = y[:, :half], y[:, half:, :, :]
        return self.head(torch.cat([left * right, right, y], 1))


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int, wide: int):
        super().__init__()
        self.compress, self.norm1 = conv(width, wide, 1, groups=2), nn.BatchNorm2d(wide)
        self.depthwise, self.norm2 = conv(wide, wide, groups=wide), nn.BatchNorm2d(wide)
        self.expand = conv(wide, width, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = shuffled(F.relu(self.norm1(self.compress(x))), 2)
        return F.relu(x + self.expand(self.norm2(self.depthwise(y))))


def shufflenet() -> nn.Module:
    layers = ShuffleUnit(8, 4), ShuffleUnit(8, 12), nn.ChannelShuffle(2), conv(8, 6, groups=2)
    return nn.Sequential(block(3, 8), *layers, Head(6))


class ShuffleUnit2(nn.Module):
    """One half passes, the other is worked on, and they are shuffled."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(block(width // 2, width // 2, 1), block(width // 2, width // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = torch.chunk(x, chunks=2, dim=1)
        return shuffled(torch.cat([kept, self.body(changed)], 1), 2)


def shufflenet2() -> nn.Module:
    return nn.Sequential(block(3, 8), ShuffleUnit2(8), ShuffleUnit2(8), block(8, 6), Head(6))


class Splits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 9)
        self.first, self.second, self.third = block(2, 4), block(3, 4), block(4, 4)
        self.wide = conv(4, 6, 1)
        self.head = Head(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, three = self.stem(x).split([2, 3, 4], dim=1)
        y = self.wide(self.first(one) + self.second(two) - self.third(three))
        a, b = torch.split(y, 3, 1)
        return self.head(torch.maximum(a, b))


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 6, 3, 2), nn.GroupNorm(6, 6),
            nn.GELU(), conv(6, 8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            nn.SiLU(), conv(8, 6), nn.InstanceNorm2d(6), nn.Tanh(),
        )  # fmt: skip
        self.norm, self.fc, self.head = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).permute(0, 2, 3, 1)
        return self.head(self.fc(self.norm(x)).square().mean(dim=(1, 2)))


class Text(nn.Module):
    """Tokens `[batch, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 8, 3, padding=1)
        self.norm, self.pool = nn.BatchNorm1d(8), nn.MaxPool1d(2)
        self.deconv, self.fc = nn.ConvTranspose1d(8, 4, 2, 2), nn.Linear(4 * 12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).transpose(1, 2)
        x = self.deconv(self.pool(F.elu(self.norm(self.conv(x)))))
        return self.fc(x.reshape(x.size(0), -1))


class Generator(nn.Module):
    """Features `[batch, 7]` to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(7, 6 * 4 * 4), nn.BatchNorm2d(6)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.fc(x).view(-1, 6, 4, 4)).relu()
        return self.out(F.interpolate(self.up(x).tanh(), scale_factor=2)).sigmoid()


class TwoEnds(nn.Module):
    """An image and features `[batch, 4]` in, two outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.features = block(3, 6), nn.Linear(4, 6)
        self.trunk = nn.Linear(6, 8)
        self.classes, self.values = nn.Linear(8, 5), nn.Linear(14, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.features(z).relu()
        y = (self.image(x) * z[:, :, None, None]).mean(dim=[2, 3])
        y = torch.relu(self.trunk(y))
        return self.classes(y), self.values(torch.cat([y, z], -1))


class Shared(nn.Module):
    """One module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 6), block(6, 6), Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.body(self.stem(x))))


def prelu() -> nn.Module:
    layers = conv(3, 6), nn.PReLU(6), nn.Dropout2d(0.1), conv(6, 8), nn.PReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * 256, 7), nn.PReLU(7), nn.Linear(7, 5))


class Concrete(nn.Module):
    """Symbolic tracing refuses it: it branches on a shape, and computes with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 8), block(4, 4), Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if x.shape[-1] > 8:
            x = F.avg_pool2d(x, 2)
        half = int(x.size(1) * 0.5)
        return self.head(torch.cat((x[:, :half], self.body(x[:, half:])), 1))


def images(batch: int) -> Inputs:
    return (torch.randn(batch, 3, 16, 16),)


@dataclass(frozen=True)
class Case:
    """A network, and what makes its inputs from a batch size."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs] = images


CASES = {
    "vgg": Case(VGG),
    "resnet": Case(resnet),
    "preresnet": Case(preresnet),
    "resnext": Case(resnext),
    "mobilenet": Case(mobilenet),
    "senet": Case(lambda: nn.Sequential(block(3, 6), Gated(6), Gated(6), Head(6))),
    "densenet": Case(densenet),
    "inception": Case(lambda: nn.Sequential(block(3, 6), Inception(6), Inception(16), Head(26))),
    "unet": Case(UNet),
    "dpn": Case(lambda: DualPath(literal=True)),
    "dpn by size": Case(lambda: DualPath(literal=False)),
    "shufflenet": Case(shufflenet),
    "shufflenet2": Case(shufflenet2),
    "splits": Case(Splits),
    "norms": Case(Norms),
    "text": Case(Text, lambda batch: (torch.randint(11, (batch, 12)),)),
    "generator": Case(Generator, lambda batch: (torch.randn(batch, 7),)),
    "two ends": Case(TwoEnds, lambda batch: (*images(batch), torch.randn(batch, 4))),
    "shared": Case(Shared),
    "prelu": Case(prelu),
    "concrete": Case(Concrete),
}


def network(name: str, batch: int = 4) -> tuple[nn.Module, Inputs]:
    """Returns a network with weights and inputs that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[name].build(), CASES[name].inputs(batch)


def outputs(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Returns all outputs of a network, as `[batch, …]`."""
    y = model(*inputs)
    return y if isinstance(y, torch.Tensor) else torch.cat([part.flatten(1) for part in y], 1)
