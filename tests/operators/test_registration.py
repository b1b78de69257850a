"""Layers and functions of one's own, registered as a user would."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.errors import LabkitError
from labkit.operators import (
    IN,
    OUT,
    Layer,
    NotStackable,
    Operator,
    Stack,
    base,
    operator_of,
    register_operator,
    width,
)
from labkit.transform import (
    Plan,
    apply,
    channel_multiplier_transform_pass,
    cost_of,
    find_channels,
    resolve,
    total_cost,
)


class LowRank(nn.Module):
    """A linear layer whose weight is a product of two narrow ones."""

    def __init__(self, n_in: int, n_out: int, rank: int = 2):
        super().__init__()
        self.n_in, self.n_out, self.rank = n_in, n_out, rank
        self.down = nn.Parameter(torch.empty(rank, n_in))
        self.up = nn.Parameter(torch.empty(n_out, rank))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.down)
        nn.init.normal_(self.up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.detach().abs().max()) > 1e30:  # what tracing could not pass through
            raise OverflowError
        return F.linear(F.linear(x, self.down), self.up, self.bias)


@pytest.fixture
def _registered() -> Iterator[None]:
    before = dict(base._modules), dict(base._functions)

    @register_operator
    class LowRankOperator(Layer):
        modules = (LowRank,)
        scalable = True
        tensors = {"down": (None, IN), "up": (OUT, None), "bias": (OUT,)}  # noqa: RUF012
        attributes = {"n_in": IN, "n_out": OUT}  # noqa: RUF012

        def sides(self, module):  # type: ignore[no-untyped-def]
            return width(module.n_in), width(module.n_out)

        def flops(self, node, module, read, written):  # type: ignore[no-untyped-def]
            return module.rank * (math.prod(read[0]) + math.prod(written))

    @register_operator
    class Scale(Operator):
        functions = (checked_scale,)
        flops_each = 1

        def flow(self, call):  # type: ignore[no-untyped-def]
            return call.x

    yield
    for table, old in zip((base._modules, base._functions), before):
        table.clear()
        table.update(old)


def network() -> nn.Module:
    return nn.Sequential(
        LowRank(6, 8), nn.ReLU(), LowRank(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    )


def scaled_by(multiplier: float, operator: str = "lowrank") -> dict[str, Any]:
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    return {"by": "type", "default": {"config": {"name": None}}, operator: request}


X = torch.randn(5, 6, dtype=torch.float64)


@pytest.mark.usefixtures("_registered")
def test_a_registered_layer_is_widened_exactly() -> None:
    model = network().double().eval()
    new, info = channel_multiplier_transform_pass(
        model, scaled_by(2), example_input=X, weights="keep", strict=True
    )
    assert info.plan.to_dict() == {"_0": 16, "_2": 8}
    assert (new[2].n_in, new[2].n_out, new[2].up.shape) == (16, 8, (8, 2))
    torch.testing.assert_close(new(X), model(X), rtol=1e-12, atol=1e-12)
    noisy, _ = channel_multiplier_transform_pass(
        model, scaled_by(2), example_input=X, weights="keep", noise=0.1, seed=0
    )
    assert torch.equal(noisy[0].up[:8], model[0].up)
    assert not torch.equal(noisy[0].up[8:], model[0].up)


@pytest.mark.usefixtures("_registered")
def test_a_registered_layer_keeps_its_largest_channels() -> None:
    model = network().double()
    with torch.no_grad():
        model[0].up.copy_(torch.arange(8.0)[:, None].flip(0) + 1)
    new, _ = channel_multiplier_transform_pass(
        model, scaled_by(0.5), example_input=X, weights="keep"
    )
    assert torch.equal(new[0].up, model[0].up[:4])


@pytest.mark.usefixtures("_registered")
def test_a_registered_layer_is_priced() -> None:
    model = network().double()
    channels = find_channels(model, X)
    plan = resolve(channels, scaled_by(2))
    cost = cost_of(channels, plan)
    assert cost == total_cost(apply(model, plan, channels=channels), example_input=X)
    assert cost.layers[0].flops == 2 * 6 + 16 * 2
    assert cost.layers[0].parameters == 2 * 6 + 16 * 2 + 16
    assert cost.layers[2].flops == 2 * 16 + 8 * 2


@pytest.mark.usefixtures("_registered")
def test_a_registered_layer_trains_alone() -> None:
    model = network().double()
    with pytest.raises(NotStackable, match=r"'_0' \(LowRank\)"):
        Stack(find_channels(model, X).traced, [model])


@pytest.mark.usefixtures("_registered")
def test_a_class_of_ones_own_may_inherit_from_a_registered_one() -> None:
    class Narrower(LowRank):
        pass

    assert operator_of(Narrower(2, 2)) is operator_of(LowRank(2, 2))


def test_the_sides_of_a_layer_follow_from_its_attributes() -> None:
    class Both(Layer):
        attributes = {"n_in": IN, "n_out": OUT}  # noqa: RUF012

    class One(Layer):
        attributes = {"n_out": OUT}  # noqa: RUF012

        def groups(self, module: Any) -> int:
            return 4

    layer = LowRank(6, 8)
    both, one = Both().sides(layer), One().sides(layer)
    assert both is not None
    assert [[term.size for term in side] for side in both] == [[6], [8]]
    assert one is not None
    assert one[0] is one[1]
    assert [(term.size, term.var) for term in one[0]] == [(2, one[0][0].var)] * 4
    assert Layer().sides(layer) is None


def test_what_nobody_registered_is_not_known() -> None:
    assert operator_of(LowRank(2, 2)) is None
    assert operator_of(checked_scale) is None


def checked_scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    if bool(x.isnan().any()):
        raise ValueError("not a number")
    return factor * x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(checked_scale(self.a(x), factor=3.0))


@pytest.mark.usefixtures("_registered")
def test_a_registered_function_is_one_node() -> None:
    model = Scaled().double()
    channels = find_channels(model, X)
    new = apply(model, Plan((("a", 16),)), channels=channels, weights="keep")
    assert new.a.out_features == 16
    torch.testing.assert_close(new(X), model(X), rtol=1e-12, atol=1e-12)
    assert [layer.flops for layer in cost_of(channels).layers] == [48, 8, 24]


def test_a_function_that_nobody_registered_cannot_be_traced() -> None:
    with pytest.raises(LabkitError, match="cannot trace Scaled|does not take"):
        find_channels(Scaled().double(), X)


class Empty(Operator):
    pass


@pytest.mark.parametrize("kind", [Empty, LowRank, 3])
def test_what_is_no_operator_is_refused(kind: type) -> None:
    with pytest.raises(LabkitError, match="expected"):
        register_operator(kind)
