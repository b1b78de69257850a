"""Each operator's stack against the candidates one by one, and its weights under other widths."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.operators import NotStackable, Stack
from labkit.transform import Channels, Plan, apply, find_channels, initialise
from tests.networks import CASES, network

STACKED = {"vgg", "resnet", "preresnet", "densenet", "inception", "shared"}


class Between(nn.Module):
    """A function between layers, on rows (32 of 6 numbers) or on images (32 of 3 × 4 × 4)."""

    def __init__(self, between: Callable[..., Any], last: int, image: bool):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3) if image else nn.Linear(6, 6)
        self.b = nn.Conv2d(3, 6, 3, bias=False) if image else nn.Linear(6, 6)
        self.between, self.out = between, nn.Linear(last, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.between(self.a(x), self.b(x)))


def cut(x: torch.Tensor) -> torch.Tensor:
    """What a candidate of images reads as rows."""
    return x.reshape(x.size(0), -1)


BETWEEN: dict[str, Between] = {
    "add": Between(lambda a, b: a + b, 6, False),
    "cat": Between(lambda a, b: torch.cat([a, b], 1), 12, False),
    "cat by name": Between(lambda a, b: torch.cat((b, a), dim=-1), 12, False),
    "times": Between(lambda a, b: torch.sigmoid(a) * b, 6, False),
    "softplus": Between(lambda a, b: F.softplus(a) - 2 * b.tanh(), 6, False),
    "view": Between(lambda a, b: (a + b).view(a.size(0), -1), 24, True),
    "flatten": Between(lambda a, b: torch.flatten(torch.cat([a, b], 1), 1), 48, True),
    "pool": Between(lambda a, b: cut(F.max_pool2d(a.relu() + b, 2)), 6, True),
    "mean": Between(lambda a, b: (a.exp() * b).mean([2, 3]), 6, True),
    "softmax": Between(lambda a, b: a.softmax(1) * b, 6, False),
    "log softmax": Between(lambda a, b: F.log_softmax(a, dim=-1) + b, 6, False),
    "softmax over channels": Between(lambda a, b: cut(F.softmax(a, 1) * b), 24, True),
    "mean of sum": Between(lambda a, b: cut(F.adaptive_avg_pool2d(a + b, 1)), 6, True),
}
ROWS, IMAGES = (32, 6), (32, 3, 4, 4)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "norm": (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)), ROWS),
    "plain norm": (
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5)), ROWS,
    ),
    "layer norm": (
        nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5)), ROWS,
    ),
    "layer norm without bias": (
        nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, bias=False), nn.Linear(6, 5)), ROWS,
    ),
    "rms norm": (
        nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 5)), ROWS,
    ),
    "group norm": (
        nn.Sequential(nn.Linear(6, 12), nn.GroupNorm(2, 12, eps=1e-2), nn.Linear(12, 5)), ROWS,
    ),
    "spatial group norm": (
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(2, 12), nn.Flatten(), nn.Linear(48, 5)),
        IMAGES,
    ),
    "a group a channel": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(6, 6), nn.Flatten(), nn.Linear(24, 5)),
        IMAGES,
    ),
    "instance norm": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Flatten(),
                      nn.Linear(24, 5)), IMAGES,
    ),
    "softmax layer": (
        nn.Sequential(nn.Linear(6, 6), nn.Softmax(dim=1), nn.Linear(6, 5)), ROWS,
    ),
    "prelu": (nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 5)), ROWS),
    "spatial prelu": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Flatten(), nn.Linear(24, 5)), IMAGES,
    ),
    "spatial norm": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5)),
        IMAGES,
    ),
    "depthwise": (
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(24, 5)
        ),
        IMAGES,
    ),
    "one spatial axis": (
        nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)), (32, 3, 4),
    ),
    "pools": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(1),
                      nn.Linear(6, 5)), IMAGES,
    ),
}  # fmt: skip

# Of these, copies compute the same only where all channels are copied equally often.
OVER_CHANNELS = {
    "softmax", "log softmax", "softmax over channels", "layer norm", "layer norm without bias",
    "rms norm", "group norm", "spatial group norm", "softmax layer",
}  # fmt: skip


def candidates(model: nn.Module, channels: Channels, n: int = 3) -> list[nn.Module]:
    """Candidates of different widths, each group wider in one than in the others."""
    made = []
    for k in range(n):
        widths = {g.name: max(g.width - 2 * ((i + k) % 3), 1) for i, g in enumerate(channels.free)}
        plan = Plan(tuple(widths.items()))
        made.append(initialise(apply(model, plan, channels=channels), k).double())
    return made


def check(model: nn.Module, x: torch.Tensor, n: int = 3) -> None:
    """A training step, and what it computes after it, as by each candidate alone."""
    model = model.double()
    channels = find_channels(model, x[:1])
    networks = candidates(model, channels, n)
    assert len({str(network) for network in networks}) == n > 1
    alone = [copy.deepcopy(network) for network in networks]
    stack = Stack(channels.traced, networks)
    order_of = torch.tensor([1, 0, 1])
    orders = torch.stack([x, x.flip(0)])
    labels = torch.arange(len(x)) % 5

    def losses(logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [F.cross_entropy(rows, labels) for rows in logits]

    optimizer = torch.optim.SGD(stack.network.parameters(), lr=0.1)
    for _ in range(2):
        together = stack.network(stack.spread(orders, order_of)).transpose(1, 2)
        expected = [one(orders[order]) for one, order in zip(alone, order_of)]
        for logits, own in zip(together, expected):
            torch.testing.assert_close(logits, own, rtol=0, atol=1e-8)
        optimizer.zero_grad()
        sum(losses([*together])).backward()  # type: ignore[union-attr]
        optimizer.step()
        for one, loss in zip(alone, losses(expected)):
            one.zero_grad()
            loss.backward()
            torch.optim.SGD(one.parameters(), lr=0.1).step()
    for index, (trained, one) in enumerate(zip(networks, alone)):
        stack.unload(index)
        for (name, tensor), own in zip(trained.state_dict().items(), one.state_dict().values()):
            torch.testing.assert_close(tensor, own, rtol=0, atol=1e-8, msg=name)
    # All in one order, as validation is.
    stack.network.eval()
    logits = stack.network(stack.spread(x[None], torch.zeros(n, dtype=torch.long)))
    for row, one in zip(logits, alone):
        torch.testing.assert_close(row.T, one.eval()(x), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", BETWEEN)
def test_a_function_in_a_stack(name: str) -> None:
    model = BETWEEN[name]
    image = isinstance(model.a, nn.Conv2d)
    check(copy.deepcopy(model), torch.randn(IMAGES if image else ROWS).double())


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_a_stack(name: str) -> None:
    model, shape = LAYERS[name]
    check(copy.deepcopy(model), torch.randn(shape).double())


@pytest.mark.parametrize("name", sorted(STACKED))
def test_a_network_in_a_stack(name: str) -> None:
    model, (x,) = network(name, 8)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    check(model, x.double())


@pytest.mark.parametrize("name", sorted(CASES.keys() - STACKED))
def test_other_networks_are_refused(name: str) -> None:
    model, inputs = network(name, 2)
    channels = find_channels(model, inputs)
    with pytest.raises(NotStackable):
        Stack(channels.traced, [model, copy.deepcopy(model)])


class ByIndex(nn.Module):
    """A layer twice, the second time on other channels."""

    def __init__(self, again: bool):
        super().__init__()
        self.first, self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.other = nn.Linear(6, 8)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(self.first(x))
        return self.out(self.body(y) if self.again else y + self.other(x))


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 5))
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    model[1].register_forward_pre_hook(lambda *_: None)
    return model


def normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 5))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmin(1), nn.Linear(6, 5)), "mixes channe"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 5)), "one parameter for"),
        (lambda: Between(lambda a, b: a.sqrt() + b, 6, False), "not smooth at zero"),
        (lambda: Between(lambda a, b: a / b, 6, False), "not smooth at zero"),
        (shared, "'2' shares its weight with another layer"),
        (hooked, "'1' .ReLU. has a hook"),
        (normed, "'0' has a parametrized weight"),
    ],
)
def test_what_cannot_be_stacked_says_why(make: Callable[[], nn.Module], said: str) -> None:
    model = make()
    with pytest.raises(NotStackable, match=said):
        Stack(find_channels(copy.deepcopy(model), torch.randn(1, 6)).traced, [model, model])


@pytest.mark.parametrize("layer", [nn.MaxPool3d(2), nn.AvgPool3d(2), nn.Dropout3d()])
def test_volumes_are_not_stacked(layer: nn.Module) -> None:
    n = layer(torch.zeros(1, 3, 2, 4, 2)).numel()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(n, 6), nn.ReLU(), nn.Linear(6, 5))
    channels = find_channels(copy.deepcopy(model), torch.randn(1, 3, 2, 4, 2))
    with pytest.raises(NotStackable, match=type(layer).__name__):
        Stack(channels.traced, [model, model])


@pytest.mark.parametrize("dim", [2, -1])
def test_images_side_by_side_are_not_stacked(dim: int) -> None:
    model = Between(lambda a, b: cut(torch.cat([a, b], dim)), 48, True)
    channels = find_channels(copy.deepcopy(model), torch.randn(1, *IMAGES[1:]))
    with pytest.raises(NotStackable, match="does more than concatenate channels"):
        Stack(channels.traced, [model, model])


def test_channels_in_different_places_are_not_joined() -> None:
    class Halves(Between):
        """What one layer writes, plus what two write side by side."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.whole(x) + torch.cat([self.a(x), self.b(x)], 1))

    model = Halves(torch.add, 12, False)
    model.whole = nn.Linear(6, 12)
    channels = find_channels(model, torch.randn(1, 6))
    with pytest.raises(NotStackable, match="channels that lie in different places"):
        Stack(channels.traced, candidates(model, channels))


def test_a_layer_that_is_called_twice_is_one() -> None:
    check(ByIndex(again=True), torch.randn(ROWS).double())


@pytest.mark.parametrize("name", [n for n in (*BETWEEN, *LAYERS) if n not in OVER_CHANNELS])
def test_copies_of_channels_compute_what_one_did(name: str) -> None:
    """Twice as wide with the weights kept: the same logits, and with noise others."""
    model, shape = LAYERS.get(name) or (
        BETWEEN[name],
        IMAGES if isinstance(BETWEEN[name].a, nn.Conv2d) else ROWS,
    )
    model = initialise(copy.deepcopy(model), 0).double().eval()
    x = torch.randn(shape).double()
    channels = find_channels(model, x[:1])
    plan = Plan(tuple((g.name, 2 * g.width + 1) for g in channels.free))
    wider = apply(model, plan, channels=channels, weights="keep").eval()
    torch.testing.assert_close(wider(x), model(x), rtol=1e-9, atol=1e-9)
    noisy = apply(model, plan, channels=channels, weights="keep", seed=0, noise=0.1).eval()
    assert not torch.allclose(noisy(x), model(x))
