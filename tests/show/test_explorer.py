"""The explorer, without a browser."""

import math
from typing import Any

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
from labkit.errors import LabkitError
from tests.conftest import EXAMPLES


def test_the_sides_that_share_channels_are_linked() -> None:
    model = get_model("jsc-toy")
    explorer = LayerExplorer(model)
    explorer.sliders.values = {"seq_blocks_5": 2}
    explorer.sliders.values = {"seq_blocks_5": 4}
    group = {row["name"]: row["group"] for row in explorer.sliders.rows}
    assert group["seq_blocks_5 output"] == group["seq_blocks_8 input"] == "seq_blocks_5"
    assert group["seq_blocks_5 input"] == group["seq_blocks_2 output"] == "seq_blocks_2"
    network, _ = linear_multiplier_transform_pass(model, explorer.pass_config)
    assert network.seq_blocks[5].out_features == 32
    before, after = explorer.figure.data
    i = list(after.x).index("seq_blocks_5")
    assert (before.y[i], after.y[i]) == (8, 32)
    assert "parameters: 327 → <b>711</b>" in explorer.totals.value
    explorer.sliders.values = {"seq_blocks_5": 2}
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
    explorer.sliders.values = {"seq_blocks_5": 4}
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


def test_what_cannot_be_met_is_said() -> None:
    explorer = LayerExplorer(get_model("jsc-toy"))
    fixed = next(r["group"] for r in explorer.sliders.rows if r["name"] == "seq_blocks_2 input")
    explorer.sliders.values = {fixed: 2}
    assert "the width stays 16 because" in explorer.sliders.notes["seq_blocks_2 input"]
    explorer.sliders.values = {}
    assert explorer.sliders.notes == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seq_blocks_4": 2}, "there is no slider of 'seq_blocks_4'; did you mean 'seq_blocks_"),
        (
            {"seq_blocks_5": "wide"},
            "expected a number from 0.25 to 8, got 'wide'",
        ),
        ({"seq_blocks_5": math.nan}, "got nan"),
    ],
)
def test_values_that_no_slider_has(values: dict[str, Any], said: str) -> None:
    explorer = LayerExplorer(get_model("jsc-toy"))
    with pytest.raises(LabkitError, match=f"values.*{said}"):
        explorer.sliders.values = values
    assert explorer.sliders.values == {}


def test_a_network_with_shortcuts() -> None:
    image = EXAMPLES["resnet8"]
    explorer = LayerExplorer(get_model("resnet8"), example_input=image)
    group = {row["name"]: row["group"] for row in explorer.sliders.rows}
    shared = group["stages_1_shortcut_0 output"]
    assert shared == group["stages_1_conv2 output"] == group["stages_2_conv1 input"]
    assert shared != group["stages_1_conv1 output"]
    explorer.sliders.values = {shared: 0.5}
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
    explorer.sliders.values = {"q heads": 2, "v head width": 1.5}
    network, _ = channel_multiplier_transform_pass(model, explorer.pass_config, example_input=x)
    assert (network.q.out_features, network.v.out_features) == (16, 24)


def test_sliders_are_folded_by_what_their_names_share() -> None:
    rows = LayerExplorer(get_model("resnet8"), example_input=EXAMPLES["resnet8"]).sliders.rows
    found = {row["name"]: (row["block"], row["label"]) for row in rows}
    assert found["stages_1_shortcut_0 output"] == ("stages_1", "shortcut_0 output")
    assert found["stages_1_conv2 input"] == ("stages_1", "conv2 input")
    assert found["stem output"] == ("", "stem output")


def test_the_drawing_of_a_deep_network_has_labels_that_can_be_read() -> None:
    deep = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(200)))
    named = torch.nn.ModuleDict({"the_encoder_of_the_network": deep})["the_encoder_of_the_network"]
    drawing = LayerExplorer(named).figure
    assert len(drawing.data[0].x) == 200
    assert len(drawing.layout.xaxis.tickvals) <= 60
    assert max(map(len, drawing.layout.xaxis.ticktext)) <= 20
    assert drawing.data[0].textposition == "none"
