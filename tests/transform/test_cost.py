"""Costs against the report's published figures, PyTorch's FLOP counter and thop."""

import warnings
from typing import Any

import numpy as np
import pytest
import thop
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabkitError
from labkit.show.tables import compare, layer_table, report_graph_analysis_pass
from labkit.transform.applying import linear_multiplier_transform_pass
from labkit.transform.cost import output_shapes, total_cost
from labkit.transform.models import MODELS, get_model
from tests.conftest import EXAMPLES


def scaled_toy(multiplier: int) -> nn.Module:
    """`jsc-toy` with the second linear layer's output scaled, as the report's networks are."""
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    nothing = {"config": {"name": None}}
    pass_config = {"by": "name", "default": nothing, "seq_blocks_5": request}
    return linear_multiplier_transform_pass(get_model("jsc-toy"), pass_config)[0]


@pytest.mark.parametrize(
    ("multiplier", "flops", "bitops"),
    [(2, 352768, 342441984), (4, 512512, 506019840), (8, 832000, 833175552)],
)
def test_the_reports_published_figures(multiplier: int, flops: int, bitops: int) -> None:
    cost = total_cost(
        scaled_toy(multiplier),
        batch_size=256,
        convention="reference",
        shapes_from=get_model("jsc-toy"),
    )
    assert (cost.total_flops, cost.total_bitops) == (flops, bitops)


def test_true_shapes_cost_more_than_the_reference_counts() -> None:
    # BatchNorm and ReLU at 32 channels, not 8: (8 + 2) · 24 · 256 more than the report says.
    cost = total_cost(scaled_toy(4), batch_size=256, convention="training")
    assert cost.total_flops == 512512 + 10 * 24 * 256


def matmul_flops(model: nn.Module, example_input: torch.Tensor) -> int:
    cost = total_cost(model, example_input=example_input)
    return sum(layer.flops for layer in cost.layers if layer.type in ("Linear", "Conv2d"))


@pytest.mark.parametrize("name", MODELS)
def test_layers_with_weights_agree_with_pytorchs_counter(name: str) -> None:
    model, x = get_model(name), EXAMPLES[name]
    with FlopCounterMode(display=False) as counter:
        model(x.expand(7, *x.shape[1:]))
    assert 2 * 7 * matmul_flops(model, x) == counter.get_total_flops()  # it counts a MAC as 2


def test_training_agrees_with_pytorchs_counter() -> None:
    model = get_model("hls4ml-jets")
    x = torch.randn(8, 16, requires_grad=True)  # so that the first layer's input has a gradient
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    cost = total_cost(model, batch_size=8, convention="training")
    linear = sum(layer.flops for layer in cost.layers if layer.type == "Linear")
    assert 2 * linear == counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_linear_and_norm_agree_with_thop(name: str) -> None:
    model = get_model(name)
    cost = total_cost(model, example_input=EXAMPLES[name])
    kinds = ("Linear", "Conv2d", "BatchNorm1d", "BatchNorm2d")
    ours = sum(layer.flops for layer in cost.layers if layer.type in kinds)
    theirs, parameters = thop.profile(get_model(name), (EXAMPLES[name],), verbose=False)
    assert ours == theirs
    assert cost.parameters == parameters


def test_functions_cost_as_their_modules_do() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return F.dropout(x + self.b(x).tanh(), 0.5)

    # 6 for relu, 6 for tanh, 6 for the sum, 0 for dropout
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert total_cost(Functional()).total_flops == 4 * 6 + 6 * 6 + 18


def test_an_operator_without_a_cost_is_said() -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, dim=1)

    with pytest.warns(UserWarning, match="no cost is known for 'cumsum'"):
        cost = total_cost(Sorts(), example_input=torch.zeros(1, 3))
    assert cost.total_flops == 0
    assert cost.unknown == ("'cumsum' (cumsum)",)


def test_convolutions_agree_with_pytorchs_counter() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4)
    )
    x = torch.randn(5, 4, 9, 9)
    with FlopCounterMode(display=False) as counter:
        model(x)
    cost = total_cost(model, batch_size=5, example_input=x)
    convolutions = sum(layer.flops for layer in cost.layers if layer.type == "Conv2d")
    assert 2 * convolutions == counter.get_total_flops()


def test_the_network_is_left_as_it_was() -> None:
    model = get_model("jsc-toy").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    total_cost(model)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_precision_scales_bitops() -> None:
    cost = total_cost(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), precision=8)
    assert [layer.bitops for layer in cost.layers] == [6 * 64, 2 * 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": np.array(["training", "inference"])}, "convention: unknown array"),
        ({"convention": "inferense"}, "convention: unknown 'inferense'; did you mean 'inference'"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"precision": 2.5}, "precision: expected a positive integer, got 2.5"),
        ({"shapes_from": nn.Identity()}, "shapes_from: only 'reference'"),
        ({"example_input": torch.zeros(1, 3)}, r"does not take an input of shape \(1, 3\)"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        total_cost(get_model("jsc-toy"), **options)


def test_an_input_that_cannot_be_guessed_is_asked_for() -> None:
    with pytest.raises(LabkitError, match="example_input"):
        total_cost(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_output_shapes_of_a_batch_are_without_its_axis() -> None:
    shapes = output_shapes(nn.Sequential(nn.Linear(3, 2)), torch.zeros(9, 3))
    assert shapes["_0"] == (2,)


def test_the_layer_table_adds_up() -> None:
    table = layer_table(scaled_toy(4))
    layers, total = table.iloc[:-1], table.loc["total"]
    for column in ("parameters", "flops", "bitops", "share"):
        assert layers[column].sum() == pytest.approx(total[column])
    assert tuple(table.loc["seq_blocks_5", ["in", "out"]]) == (8, 32)
    assert table["group"].to_dict()["seq_blocks_6"] == "seq_blocks_5"


def test_compare_shows_what_changed() -> None:
    table = compare(get_model("jsc-toy"), scaled_toy(4))
    assert tuple(table.loc["seq_blocks_6", "out"]) == (8, 32)
    assert table.loc["seq_blocks_5", ("flops", "ratio")] == 4
    assert table.loc["seq_blocks_2", ("flops", "ratio")] == 1
    reference = compare(get_model("jsc-toy"), scaled_toy(4), convention="reference", batch_size=256)
    assert reference.loc["total", ("flops", "after")] == 512512


def test_the_analysis_pass_prints_the_reports_sections(capsys: pytest.CaptureFixture[str]) -> None:
    model = get_model("jsc-three-linear-layers")
    assert report_graph_analysis_pass(model) == (model, {})
    printed = capsys.readouterr().out
    assert "call_module[target=seq_blocks.2]" in printed
    assert "'call_module': 8, 'output': 1}" in printed
    assert "Linear(in_features=16, out_features=5, bias=True),\n ReLU(inplace=True)]" in printed
