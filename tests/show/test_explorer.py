"""The explorer, without a browser."""

import pytest
import torch
from torch import fx

from labkit import (
    LayerExplorer,
    channel_multiplier_transform_pass,
    find_channels,
    get_model,
    linear_multiplier_transform_pass,
    total_cost,
)
from tests.conftest import EXAMPLES


def test_the_sides_that_share_channels_are_linked() -> None:
    model = get_model("jsc-toy")
    explorer = LayerExplorer(model)
    explorer._sliders["seq_blocks_5", "output"].value = 2
    explorer._sliders["seq_blocks_5", "output"].value = 4
    assert explorer._sliders["seq_blocks_8", "input"].value == 4
    assert explorer._sliders["seq_blocks_5", "input"].value == 1
    network, _ = linear_multiplier_transform_pass(model, explorer.pass_config)
    assert network.seq_blocks[5].out_features == 32
    before, after = explorer.figure.data
    i = list(after.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i]) == (8, 32)
    assert "parameters: 327 → <b>711</b>" in explorer.totals.value
    explorer._sliders["seq_blocks_8", "input"].value = 2  # the other way round
    assert "parameters: 327 → <b>455</b>" in explorer.totals.value


def test_nothing_is_traced_or_built_when_a_slider_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    trace = fx.Tracer.trace
    monkeypatch.setattr(fx.Tracer, "trace", lambda *a, **o: traces.append(a) or trace(*a, **o))
    explorer = LayerExplorer(get_model("jsc-toy"), example_input=EXAMPLES["jsc-toy"])
    traces.clear()

    def build(*_: object, **__: object) -> None:
        raise AssertionError("a layer was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", build)
    explorer._sliders["seq_blocks_5", "output"].value = 4
    assert "parameters: 327 → <b>711</b>" in explorer.totals.value
    assert "<td>711</td>" in explorer.table.value
    assert not traces


def test_channels_that_were_found_before_are_taken() -> None:
    channels = find_channels(get_model("resnet8"), EXAMPLES["resnet8"])
    explorer = LayerExplorer(channels, convention="training", batch_size=4)
    cost = total_cost(
        get_model("resnet8"), example_input=EXAMPLES["resnet8"], convention="training", batch_size=4
    )
    assert f"<b>{cost.total_flops:,}</b>" in explorer.totals.value


def test_sliders_keep_their_values_in_the_browser() -> None:
    slider = LayerExplorer(get_model("jsc-toy"))._sliders["seq_blocks_5", "output"]
    extent = slider.max - slider.min
    step = slider.step * 100 / extent
    value = slider.min
    while value <= slider.max:  # noUiSlider: to percents, to the nearest step, and back
        percents = round((value - slider.min) * 100 / extent / step) * step
        assert percents * extent / 100 + slider.min == value
        value += slider.step


def test_what_cannot_be_met_is_said() -> None:
    explorer = LayerExplorer(get_model("jsc-toy"))
    explorer._sliders["seq_blocks_2", "input"].value = 2
    assert "the width stays 16 because" in explorer._notes["seq_blocks_2", "input"].value
    explorer._sliders["seq_blocks_2", "input"].value = 1
    assert explorer._notes["seq_blocks_2", "input"].value == ""


def test_a_network_with_shortcuts() -> None:
    image = EXAMPLES["resnet8"]
    explorer = LayerExplorer(get_model("resnet8"), example_input=image)
    explorer._sliders["stages_1_shortcut_0", "output"].value = 0.5
    assert explorer._sliders["stages_1_conv2", "output"].value == 0.5
    assert explorer._sliders["stages_2_conv1", "input"].value == 0.5
    assert explorer._sliders["stages_1_conv1", "output"].value == 1
    network, _ = channel_multiplier_transform_pass(
        get_model("resnet8"), explorer.pass_config, example_input=image
    )
    cost = total_cost(network, example_input=image)
    assert f"<b>{cost.parameters:,}</b>" in explorer.totals.value


def test_heads_and_their_width_have_sliders_of_their_own() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v, self.out = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, v = (layer(x).reshape(-1, 5, 2, 4).transpose(1, 2) for layer in (self.q, self.v))
            y = torch.nn.functional.scaled_dot_product_attention(q, q, v)
            return self.out(y.transpose(1, 2).flatten(2))

    model, x = Attention(), torch.randn(1, 5, 8)
    explorer = LayerExplorer(model, example_input=x)
    explorer._sliders["q heads", "output"].value = 2
    explorer._sliders["v head width", "output"].value = 1.5
    network, _ = channel_multiplier_transform_pass(model, explorer.pass_config, example_input=x)
    assert (network.q.out_features, network.v.out_features) == (16, 24)
