"""Attention: heads, their width, the embedding and the MLP are widths of their own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from labkit.transform.applying import apply, channel_multiplier_transform_pass, initialise
from labkit.transform.channels import find_channels
from labkit.transform.cost import total_cost
from labkit.transform.plan import resolve
from tests.operators.widening import products, trained, widened

random = torch.Generator().manual_seed(0)
X = torch.randn(2, 7, 6, dtype=torch.float64, generator=random)
IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=random)


class Attention(nn.Module):
    """Its code has the heads and their width as numbers, in one layer for all three."""

    def __init__(self, width: int = 16, heads: int = 4):
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.embed, self.out = nn.Linear(6, width), nn.Linear(width, 3)
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q @ k.transpose(-2, -1)) * self.each**-0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


class Separate(nn.Module):
    """A layer for each of the three, and einsum; values of another width than keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 15, bias=False)
        self.out = nn.Linear(15, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, -1)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("b n h d, b m h d -> b h n m", q, k).softmax(-1)
        return self.out(torch.einsum("bhnm,bmhd->bnhd", scores, v).flatten(2))


class Biased(nn.Module):
    """As Swin and rotary attention have it: a bias for each head, from a table; turned pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.heads, self.table = 4, nn.Parameter(torch.zeros(49, 4))
        self.norm, self.frequencies = nn.LayerNorm(4), nn.Parameter(torch.zeros(2))
        self.register_buffer("places", torch.arange(49).view(7, 7).flip(0))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(7, dtype=x.dtype), self.frequencies)
        angles, half = torch.cat([angles, angles], -1), x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = (x := self.embed(x)).shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.turned(self.norm(q)) @ self.turned(k).mT
        bias = self.table[self.places.view(-1)].view(n, n, -1).permute(2, 0, 1)
        return self.out(((scores + bias).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q * self.scale, k, v, scale=1.0)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A plain vision transformer."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class Wrapped(nn.Module):
    """A layer of PyTorch's between two linear ones, given one tensor for each of its inputs."""

    def __init__(self, layer: nn.Module, n_inputs: int, context: int = 16):
        super().__init__()
        self.embed, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.layer, self.n_inputs = layer, n_inputs
        self.context = nn.Linear(6, context)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        others = [self.context(x)] * (self.n_inputs - 1)
        y = self.layer(self.embed(x), *others)
        if isinstance(self.layer, nn.MultiheadAttention):
            y, _ = y
        return self.out(y)


def heads(**options: Any) -> nn.Module:
    attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)
    return Wrapped(attention, 3, options.get("kdim", 16))


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True, **options)
    return Wrapped(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 1)


CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "fused": (Attention, X),
    "separate": (Separate, X),
    "biased": (Biased, X),
    "ViT": (ViT, IMAGES),
    "MultiheadAttention": (heads, X),
    "keys of another width": (lambda: heads(kdim=10, vdim=10, add_bias_kv=True), X),
    "biases and a zero": (lambda: heads(add_bias_kv=True, add_zero_attn=True, bias=False), X),
    "encoder": (encoder, X),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation="gelu"), X),
    "decoder": (lambda: Wrapped(nn.TransformerDecoderLayer(16, 4, 20, batch_first=True), 2), X),
}


@pytest.mark.parametrize("multiplier", [1.5, 2, 3, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same_with_more_heads(name: str, multiplier: float) -> None:
    build, x = CASES[name]
    info = widened(trained(build()), x, multiplier)
    widths = info.plan.to_dict()
    by_heads = {width for group, width in widths.items() if group.endswith("heads")}
    assert by_heads == {(3 if name == "separate" else 4) * multiplier} or name == "separate"
    if multiplier in (2, 3):
        assert not info.inexact


@pytest.mark.parametrize("multiplier", [1.5, 2, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_each_of_its_widths_can_change(name: str, multiplier: float) -> None:
    """Also that of a head, over which scores sum."""
    build, x = CASES[name]
    info = widened(trained(build()), x, multiplier, groups=True)
    exact = multiplier > 1 and name in ("fused", "separate")
    if exact or (multiplier == 2 and name != "biased"):  # pairs that turn are no plain sum
        assert not info.inexact


def test_the_groups_are_those_of_the_architecture() -> None:
    assert [group.name for group in find_channels(ViT().double(), IMAGES).free] == [
        "patches",
        *("blocks_0_qkv heads", "blocks_0_qkv head width", "blocks_0_mlp_0"),
        *("blocks_1_qkv heads", "blocks_1_qkv head width", "blocks_1_mlp_0"),
    ]


@pytest.mark.parametrize("name", CASES)
def test_it_costs_its_products(name: str) -> None:
    build, x = CASES[name]
    ours, pytorchs = products(build().double(), x)
    if name == "ViT":  # PyTorch does not count a fused attention on a CPU
        tokens, width, n_blocks = 16, 24, 2
        pytorchs += 2 * len(x) * n_blocks * 2 * tokens * tokens * width
    assert ours == pytorchs


def test_attention_costs_what_its_closed_form_says() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, x, x)[0]

    cost = total_cost(Only(), example_input=torch.zeros(1, 10, 32)).total_flops
    assert cost == 4 * 10 * 32 * 32 + 2 * 10 * 10 * 32


def test_a_vision_transformer_grows_as_a_residual_network_does() -> None:
    model = trained(ViT(96, 4))
    info = widened(model, IMAGES, 1.5)
    row = info.layers["blocks_0_mlp_0"]
    assert (row["new_in"], row["new_out"]) == (144, 576)
    assert info.layers["blocks_0_qkv"]["new_out"] == 432


def test_returned_weights_are_those_of_the_heads_that_it_has() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = (
                nn.Linear(6, 16),
                nn.MultiheadAttention(16, 4, batch_first=True),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.embed(x)
            return self.layer(y, y, y, average_attn_weights=False)[1]

    model = trained(Weights())
    assert {group.name for group in find_channels(model, X).free} == {"embed"}
    widened(model, X, 2)


def test_fresh_weights_are_drawn_as_pytorch_draws_them() -> None:
    model = Wrapped(nn.MultiheadAttention(16, 4, batch_first=True), 3)
    nn.init.zeros_(model.layer.in_proj_weight)
    request = {"config": {"name": "output_only", "channel_multiplier": 4}}
    config = {"by": "type", "default": {"config": {"name": None}}, "multiheadattention": request}
    new = apply(model, resolve(model, config, example_input=X.float()), example_input=X.float())
    other = initialise(copy.deepcopy(new), seed=1)
    limit = (6 / (64 + 3 * 64)) ** 0.5
    for each in (new, other):
        weights: torch.Tensor = each.layer.in_proj_weight
        assert weights.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
        assert weights.abs().max() <= limit
        assert not each.layer.out_proj.bias.any()
    assert not torch.equal(new.layer.in_proj_weight, other.layer.in_proj_weight)


def test_a_function_that_was_wrapped_is_traced_into() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Dropping(), nn.Linear(8, 3))
    info = widened(trained(model), X, 2)
    assert "0" in find_channels(model, X).free[0].name
    assert not info.inexact
    new, _ = channel_multiplier_transform_pass(
        model, {"by": "type", "default": {"config": {"name": None}}}, example_input=X
    )
    assert not torch.equal(new.train()(X), new.eval()(X))  # it still drops


def dropped(x: torch.Tensor, training: bool) -> torch.Tensor:
    return x * torch.rand(x.shape[0], 1, 1) if training else x


torch.fx.wrap("dropped")


class Dropping(nn.Module):
    """As stochastic depth is written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropped(x, self.training)
