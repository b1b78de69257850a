"""Networks that other people write: widened exactly, or with true reasons, or named."""

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from labkit.errors import LabkitError
from labkit.training.metrics import evaluate
from labkit.transform import (
    TransformInfo,
    channel_multiplier_transform_pass,
    cost_of,
    find_channels,
    total_cost,
)
from labkit.transform.plan import SkippedRequest, resolve

ROWS, IMAGES = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 3, 8, 8, dtype=torch.float64)
Function = Callable[[torch.Tensor], torch.Tensor]


def widened(
    model: nn.Module, x: Any, multiplier: float = 2, weights: str = "keep"
) -> tuple[nn.Module, TransformInfo]:
    """The network with all channels scaled that can be."""
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    with warnings.catch_warnings(action="ignore", category=SkippedRequest):
        return channel_multiplier_transform_pass(
            model, {"by": "type", "default": request}, example_input=x, weights=weights
        )


def outputs(model: nn.Module, x: Any) -> torch.Tensor:
    y = model(x) if isinstance(x, torch.Tensor | Mapping) else model(*x)
    while not isinstance(y, torch.Tensor):
        y = next(iter(y.values())) if isinstance(y, Mapping) else y[0]
    return y


def as_if_trained(model: nn.Module) -> nn.Module:
    """The network with random parameters and statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and "mask" not in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator).add(0.2))
    return model.double().eval()


class Around(nn.Module):
    """Something between two convolutions, the first of 8 channels."""

    def __init__(self, what: Function, after: int = 8):
        super().__init__()
        self.a, self.what, self.b = nn.Conv2d(3, 8, 3), what, nn.Conv2d(after, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.what(self.a(x)))


class WeightStandardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        return super()._conv_forward(x, weight / weight.shape[1], bias)


class MaskedConvolution(nn.Conv2d):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones_like(self.weight).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias)


class Gained(nn.Conv2d):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias)


class LowRank(nn.Conv2d):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(self.down(x))


class EqualisedRate(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * (2 / self.weight[0].numel()) ** 0.5, self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x))


class ActivatedByHand(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return F.relu(x)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByHandNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class FrozenNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1)).rsqrt()
        bias = self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale
        return x * scale + bias


class LayerScale(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class PlainTensor(nn.Module):
    """Its tensor is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.rand(1, 8, 1, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.offset


class Remembers(nn.Module):
    """It changes itself when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))
        self.scale, self.cache, self.last = nn.Parameter(torch.ones(1, 8, 1, 1)), {}, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if "scale" not in self.cache:
            self.cache["scale"] = self.scale * 2
        self.last = x * self.cache["scale"]
        return self.last


class HeldByNumber(nn.Module):
    """Its attribute says how wide it is."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.sides = width, (4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, self.width, *self.sides).reshape(-1, self.width, 6, 6)


def hooked(wrap: Callable[..., Any], **options: Any) -> nn.Module:
    layer = nn.Conv2d(8, 8, 3)
    wrap(layer, **options)
    return layer


class SplitByWidth(nn.Module):
    """Its layer has channels beside those of what it reads, and it takes them apart by number."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(8, 19, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, gate = torch.split(self.both(x), (x.shape[1], x.shape[1], 3), 1)
        return a * b.relu() * gate.amax(1, keepdim=True)


def assigned(x: torch.Tensor, rows: Any, value: torch.Tensor) -> torch.Tensor:
    x[:, :, rows] = value
    return x


EXACT: dict[str, tuple[Function, int]] = {
    "activation behind a known norm": (Activated(8), 8),
    "known norm by hand": (ActivatedByHand(8), 8),
    "low rank": (LowRank(8, 8, 1), 8),
    "frozen norm": (FrozenNorm(8), 8),
    "layer scale": (LayerScale(8, 1, 1), 8),
    "positional map": (LayerScale(1, 8, 6, 6), 8),
    "plain tensor": (PlainTensor(), 8),
    "remembers": (Remembers(), 8),
    "attribute": (HeldByNumber(8), 8),
    "cat by axis": (lambda x: torch.cat([x, x.relu()], axis=1), 16),  # type: ignore[call-overload]
    "cat of a split": (lambda x: torch.cat(torch.split(x, 4, 1), 1), 8),
    "pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 8),
    "unpool": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 8),
    "pad by computation": (lambda x: F.pad(x, [(9 - x.shape[-1]) // 2, 2, 0, 0]), 8),
    "pad by batch": (lambda x: F.pad(x, (x.shape[0] - x.shape[0], 1)), 8),
    "numel": (lambda x: x.reshape(x.numel() // x[0].numel(), -1, 6, 6), 8),
    "if numel": (lambda x: x if x.numel() > 0 else x * 2, 8),
    "dtype": (lambda x: x if x.dtype == torch.float64 else x.double(), 8),
    "device": (lambda x: x.half() if x.is_cuda or x.device.type == "mps" else x, 8),
    "zeros of the batch": (lambda x: x + torch.zeros(x.shape[0], 1, 6, 6), 8),
    "zeros of all": (lambda x: torch.cat([x, x.new_zeros(x.shape)], 1), 16),
    "ones like": (lambda x: x + torch.ones_like(x), 8),
    "shape of another": (lambda x: x.mean((2, 3)).view(x.shape[0], x.shape[1], 1, 1) * x, 8),
    "mean by hand": (lambda x: x - (x.sum(1) / x.shape[1])[:, None], 8),
    "mean by size": (lambda x: x - x.sum(dim=1, keepdim=True).div(x.size(1)), 8),
    "assigned entries": (lambda x: assigned(x * 1, slice(1, 3), x[:, :, 1:3] * 2), 8),
    "assigned rows": (lambda x: assigned(x * 1, Ellipsis, x.amax(1, keepdim=True)), 8),
    "zeroed channels": (
        lambda x: x + torch.ones_like(x)[:, : x.shape[1] // 2].zero_().amax(1)[:, None],
        8,
    ),
    "fields": (lambda x: x * x.max(2, keepdim=True).values.clamp(-2, 2), 8),
    "split by its own width": (SplitByWidth(), 8),
    "random branch": (lambda x: x if x.shape[0] >= 1 else x * 2, 8),
}


BY_GRAPH = ("cat of a split", "split by its own width")  # their code has a width as a number


@pytest.mark.parametrize("multiplier", [1.5, 2, 3, 0.5])
@pytest.mark.parametrize("name", EXACT)
def test_it_computes_the_same_or_says_why_not(name: str, multiplier: float) -> None:
    what, after = EXACT[name]
    model = as_if_trained(Around(copy.deepcopy(what), after))
    channels = find_channels(model, IMAGES)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    new, info = widened(model, IMAGES, multiplier)
    assert new.a.out_channels == 8 * multiplier, info.skipped  # type: ignore[union-attr]
    assert (type(new) is Around) == (name not in BY_GRAPH)
    for key, tensor in model.state_dict().items():  # the given one is as it was
        assert torch.equal(tensor, state[key])
    y, z = model(IMAGES), new(IMAGES)
    assert torch.allclose(y, z, rtol=1e-9) == (not info.inexact), info.inexact
    if multiplier in (2, 3):
        assert not info.inexact
    new.train()(IMAGES).sum().backward()
    assert cost_of(channels, info.plan).parameters == sum(p.numel() for p in new.parameters())


NAMED: dict[str, tuple[Function, str]] = {
    "weight standardised": (WeightStandardised(8, 8, 3), ""),
    "own convolution": (OwnConvolution(8, 8, 3), ""),
    "masked": (MaskedConvolution(8, 8, 3), ""),
    "gained": (Gained(8, 8, 3), ""),
    "equalised": (EqualisedRate(8, 8, 3), ""),
    "weight norm, old": (hooked(nn.utils.weight_norm), "'what'.*weight"),
    "spectral norm, old": (hooked(nn.utils.spectral_norm), "'what'.*weight"),
    "pruned": (hooked(prune.l1_unstructured, name="weight", amount=0.3), "'what'.*weight"),
    "weight norm": (hooked(parametrizations.weight_norm), "'what'.*parametrized"),
    "norm by hand": (ByHandNorm(8), ""),
}


@pytest.mark.parametrize("multiplier", [1.5, 2, 3, 0.5])
@pytest.mark.parametrize("name", NAMED)
def test_what_computes_a_weight_is_exact_or_named(name: str, multiplier: float) -> None:
    model = as_if_trained(Around(NAMED[name][0]))
    new, info = widened(model, IMAGES, multiplier)
    exact = torch.allclose(model(IMAGES), new(IMAGES), rtol=1e-9)
    assert exact or info.inexact
    reasons = " ".join(group.fixed or "" for group in find_channels(model, IMAGES).groups)
    assert re.search(NAMED[name][1], reasons)


NUMBERS: dict[str, Function] = {
    "power of a size": lambda x: x * x.shape[1] ** -0.5,
    "root of a size": lambda x: x / math.sqrt(x.size(1)),
    "branch by width": lambda x: x.relu() if x.shape[1] <= 8 else x.tanh(),
    "sum": lambda x: x - x.sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_width_used_as_a_number_is_said(name: str) -> None:
    model = as_if_trained(Around(NUMBERS[name]))
    new, info = widened(model, IMAGES)
    assert not torch.allclose(model(IMAGES), new(IMAGES))
    assert info.inexact


class MaskedLinear(nn.Linear):
    """As in MADE: what a unit may read."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones_like(self.weight).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Squared(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.weight, self.bias)


class Transposed(nn.Module):
    """A layer that inherits from none, with its weight the other way round."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(n_in, n_out)),
            nn.Parameter(torch.ones(n_out)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)


IN_CODE = {MaskedLinear: True, Squared: False, Transposed: True}


@pytest.mark.parametrize("multiplier", [1.5, 2, 0.5])
@pytest.mark.parametrize("kind", IN_CODE)
def test_layers_whose_weights_are_used_in_code_are_scaled(kind: Any, multiplier: float) -> None:
    layers = (kind(6, 8), nn.ReLU(), kind(8, 4), nn.ReLU(), kind(4, 3))
    model = as_if_trained(nn.Sequential(*layers))
    new, info = widened(model, ROWS, multiplier)
    assert [info.layers[name]["new_out"] for name in ("_0", "_2", "_4")] == [
        8 * multiplier,
        4 * multiplier,
        3,
    ]
    assert "_4 output" in info.skipped[0]
    same = torch.allclose(model(ROWS), new(ROWS), rtol=1e-9)
    assert same == (not info.inexact) == (IN_CODE[kind] and multiplier > 1)
    if issubclass(kind, nn.Linear):
        assert new[2].in_features == new[0].out_features == 8 * multiplier  # type: ignore[index]
    by_name = {"by": "name", "default": {"config": {"name": None}}}
    request = {"config": {"name": "output_only", "channel_multiplier": 2}}
    for name in ("2", "_2"):
        plan = resolve(find_channels(model, ROWS), {**by_name, name: request}).plan
        assert dict(plan.widths)["_2"] == 8
    with pytest.raises(LabkitError, match="network's output"):
        resolve(find_channels(model, ROWS), {**by_name, "4": request}, strict=True)


class Auxiliary(nn.Module):
    """Its second head runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.hidden, self.aux = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.a(x).relu()
        return (self.b(h), self.aux(self.hidden(h))) if self.training else self.b(h)


@pytest.mark.parametrize("multiplier", [1.5, 2, 0.5])
def test_layers_that_only_run_in_training_follow(multiplier: float) -> None:
    model = as_if_trained(Auxiliary())
    new, info = widened(model, ROWS, multiplier)
    assert info.layers["aux"]["new_in"] == 4 * multiplier
    assert (new.a.out_features, new.hidden.in_features) == (8 * multiplier,) * 2  # type: ignore[union-attr]
    for y, z in zip(model.train()(ROWS), new.train()(ROWS)):
        assert torch.allclose(y, z) == (multiplier > 1)
    assert type(new) is Auxiliary
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    config = {"by": "name", "default": {"config": {"name": None}}, "hidden": request}
    assert resolve(model, config, example_input=ROWS).plan.to_dict()["hidden"] == 4 * multiplier


class Noisy(nn.Module):
    """Its code has a width as a number, and does something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        if self.training:
            h = h + torch.randn_like(h)
        return self.b(h.view(-1, 8 * 64))


class NoisyByAttribute(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.width = 512

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.b((h + torch.randn_like(h) if self.training else h).view(-1, self.width))


def test_what_only_happens_in_training_is_never_lost() -> None:
    new, info = widened(Noisy().double(), IMAGES)
    assert type(new) is Noisy
    assert "'view' (view) has it as a number" in info.skipped[0]
    new, info = widened(model := as_if_trained(NoisyByAttribute()), IMAGES)
    assert (new.a.out_channels, new.width) == (16, 1024)  # type: ignore[union-attr]
    assert torch.allclose(model(IMAGES), new(IMAGES))
    assert not torch.equal(new.train()(IMAGES), new(IMAGES))


class NormByHand(nn.BatchNorm2d):
    """As libraries write norms that activate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training).relu()


def test_a_graph_never_stands_for_norms_that_know_the_mode() -> None:
    model = as_if_trained(Around(nn.Sequential(NormByHand(8), nn.Conv2d(8, 8, 1), Halves())))
    new, info = widened(model, IMAGES)
    assert not info.inexact
    assert "does something else in training" in " ".join(info.skipped)
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(IMAGES), new.train(mode)(IMAGES))


class Halves(nn.Module):
    """It has a width as a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(x.split(4, 1), 1)


class NoisySplit(SplitByWidth):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + torch.randn_like(y) if self.training else y


def test_sizes_follow_what_they_are_read_off_where_only_the_code_will_do() -> None:
    model = as_if_trained(Around(NoisySplit()))
    new, info = widened(model, IMAGES, 1.5)
    assert type(new) is Around
    assert new.what.both.out_channels == 12 + 12 + 3  # type: ignore[union-attr]
    assert not info.inexact
    torch.testing.assert_close(model(IMAGES), new(IMAGES))


class Inputs(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def joined(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x) * self.b(y))


class Many(Inputs):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.joined(*inputs)


class Named(Inputs):
    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        y = inputs["y"] if "y" in inputs else inputs["x"]
        return {"out": self.joined(inputs["x"], y), "all": list(inputs.values())}


class Listed(Inputs):
    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, None]:
        x, y = inputs
        return self.joined(x, y), None


class Optional(Inputs):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0
    ) -> torch.Tensor:
        h = self.joined(x, x)
        if mask is not None:
            h = h * mask
        return h * scale if scale > 1 else h


@pytest.mark.parametrize(
    ("kind", "x"),
    [
        (Many, (ROWS, ROWS)),
        (Named, {"x": ROWS, "y": ROWS}),
        (Named, {"x": ROWS}),
        (Listed, ([ROWS, ROWS],)),
        (Optional, ROWS),
        (Optional, (ROWS, torch.ones(3, 3, dtype=torch.float64))),
    ],
    ids=str,
)
def test_all_kinds_of_inputs(kind: type[Inputs], x: Any) -> None:
    model = as_if_trained(kind("k"))
    new, info = widened(model, x)
    assert new.a.out_features == 16, info.skipped  # type: ignore[union-attr]
    assert not info.inexact
    assert torch.allclose(outputs(model, x), outputs(new, x))


def test_wrapped_networks_and_single_layers() -> None:
    model = as_if_trained(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        new, _ = widened(wrapped, ROWS)  # type: ignore[arg-type]
        assert isinstance(new, nn.Sequential)
        assert new[0].out_features == 16
        assert torch.allclose(model(ROWS), new(ROWS))
    for layer, x in ((nn.Linear(6, 8), ROWS), (nn.Conv2d(3, 4, 3, groups=1), IMAGES)):
        new, _ = widened(layer.double(), x)
        assert type(new) is type(layer)
        assert torch.equal(new(x), layer(x))
    assert total_cost(nn.Linear(6, 8), example_input=torch.zeros(1, 6)).total_flops == 48


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_the_layout_of_memory(dtype: torch.dtype) -> None:
    model = as_if_trained(Around(nn.BatchNorm2d(8))).to(dtype)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for weights in ("keep", "fresh"):
        new, _ = widened(model, IMAGES.to(dtype), weights=weights)
        for parameter in new.parameters():
            assert parameter.dtype == dtype
            if parameter.ndim == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_networks_without_elements() -> None:
    with torch.device("meta"):
        model = Around(nn.BatchNorm2d(8))
    new, _ = widened(model, torch.zeros(1, 3, 8, 8), 1.5)
    assert new.a.weight.shape == (12, 3, 3, 3)  # type: ignore[union-attr]
    assert all(tensor.is_meta for tensor in new.state_dict().values())


def test_a_network_that_was_called_before_is_as_it_was() -> None:
    model = as_if_trained(Around(Remembers()))
    model(IMAGES)
    calls, last = model.what.calls.clone(), model.what.last  # type: ignore[union-attr]
    for _ in range(2):
        find_channels(model, IMAGES)
    assert torch.equal(model.what.calls, calls)  # type: ignore[union-attr]
    assert model.what.last is last  # type: ignore[union-attr]
    assert set(vars(model)) == set(vars(Around(Remembers())))
    with pytest.raises(
        LabkitError, match=r"other widths: .*keeps in 'what\.cache', 'what\.last' may"
    ):
        widened(model, IMAGES)


def test_what_a_network_caches_until_its_mode_is_set_is_computed_anew() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.BatchNorm2d(8), nn.Parameter(torch.ones(1, 8, 1, 1))
            self.cache: dict[str, torch.Tensor] = {}

        def train(self, mode: bool = True) -> Self:
            self.cache = {}
            return super().train(mode)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                return self.norm(x * self.scale)
            if "scale" not in self.cache:
                self.cache["scale"] = self.scale * 1
            return self.norm(x * self.cache["scale"])

    caches = Caches()
    model = as_if_trained(Around(caches))
    before, cached = model(IMAGES), caches.cache["scale"]
    caches.norm.training = True  # a mode of its own
    new, _ = widened(model, IMAGES)
    assert caches.cache["scale"] is cached
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    new.what.norm.training = False  # type: ignore[union-attr]
    torch.testing.assert_close(new(IMAGES), before)


def test_flops_of_what_no_row_changes_are_counted_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = (
                nn.Parameter(torch.ones(5, 6)),
                nn.Linear(6, 8),
                nn.Linear(6, 8),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [batch, 5, 6]
            return self.a(self.table) + self.b(x.permute(1, 0, 2)).permute(1, 0, 2)

    for batch_size in (1, 2, 7):
        cost = total_cost(Net(), example_input=torch.zeros(1, 5, 6), batch_size=batch_size)
        assert cost.total_flops == 5 * 6 * 8 + batch_size * (5 * 6 * 8 + 5 * 8)


def test_a_network_whose_own_train_returns_nothing() -> None:
    class Frozen(Around):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)
            self.what.eval()  # type: ignore[union-attr]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if self.training else super().forward(x) * 1

    (model := Frozen(nn.BatchNorm2d(8)).double()).eval()
    new, info = widened(model, IMAGES)
    assert not info.inexact
    torch.testing.assert_close(model(IMAGES), new(IMAGES))

    class Head(nn.Linear):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    assert evaluate(Head(6, 3).double(), ROWS, torch.arange(3))


def test_group_norms_of_thousands_of_groups() -> None:
    layers = nn.Conv2d(3, 2400, 1), nn.GroupNorm(1200, 2400), nn.Conv2d(2400, 2, 1)
    new, info = widened(model := as_if_trained(nn.Sequential(*layers)), IMAGES)
    assert new[1].num_channels == 4800  # type: ignore[index]
    assert not info.inexact
    torch.testing.assert_close(model(IMAGES), new(IMAGES))
