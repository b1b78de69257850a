"""Tables of a network and of its plans."""

import io
import math
import re
import sys
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from labkit import apply, compare, find_channels, get_model, layer_table, resolve
from labkit.table import html_table, print_table
from labkit.transform import graph
from tests.conftest import EXAMPLES

DOUBLE = {
    "by": "name",
    "default": {"config": {"name": "output_only", "channel_multiplier": 2}},
}


@pytest.mark.filterwarnings("ignore::labkit.transform.plan.SkippedRequest")
@pytest.mark.parametrize("convention", ["inference", "training", "reference"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_plan_is_compared_as_the_network_that_it_makes(name: str, convention: str) -> None:
    channels = find_channels(get_model(name), EXAMPLES[name])
    resolution = resolve(channels, DOUBLE)
    network = apply(get_model(name), resolution, channels=channels)
    options: dict[str, Any] = {"convention": convention, "batch_size": 2}
    built = compare(get_model(name), network, example_input=EXAMPLES[name], **options)
    for plan in (resolution, resolution.plan):
        pd.testing.assert_frame_equal(compare(channels, plan, **options), built)
    assert built["parameters", "after"]["total"] == sum(p.numel() for p in network.parameters())


def test_nothing_is_traced_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = find_channels(get_model("jsc-toy"))
    plan = resolve(channels, {"by": "type", "default": {"config": {"name": None}}})

    def trace(*_: object) -> None:
        raise AssertionError("it was traced")

    monkeypatch.setattr(graph.Tracer, "trace", trace)
    assert compare(channels, plan)["flops", "ratio"]["total"] == 1
    assert layer_table(channels, plan)["out"]["seq_blocks_2"] == 8


def test_the_layers_of_a_network() -> None:
    table = layer_table(get_model("jsc-toy"), convention="training", batch_size=10)
    assert table.loc["seq_blocks_2"].tolist() == [
        "Linear", 16, 8, "seq_blocks_2", 16 * 8 + 8, 3 * 10 * 16 * 8, 3 * 10 * 16 * 8 * 32**2,
        pytest.approx(3 * 10 * 16 * 8 / table["flops"]["total"]),
    ]  # fmt: skip
    assert table["share"].iloc[:-1].sum() == pytest.approx(1)
    assert table["flops"]["total"] == table["flops"].iloc[:-1].sum()


def test_a_layer_may_be_called_total() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.total(x)

    table = layer_table(Named())
    assert table["type"].tolist() == ["Linear", ""]
    assert compare(Named(), Named())["flops", "ratio"].tolist() == [1, 1]


def test_tables_for_pages() -> None:
    columns = {
        "whole": [1234.0, None],
        "part": [0.5, math.nan],
        "name": ["<b>", None],
        "share": [1 / 3, None],
        "record": [{"flops": 1500.0, "loss": 0.25}, {}],
        "widths": ["a: 8, " * 40 + "b", "&" * 40],
    }
    name = "x" * 50 + "y" * 50
    table = pd.DataFrame(columns).astype({"whole": "Int64"}).set_axis(["<i>", name])
    shown = html_table(table)
    for absent in ("NA", "NaN", "nan", "None", "<i>"):
        assert absent not in shown
    assert f'<span title="{name}">{"x" * 16}…{"y" * 15}</span>' in shown
    assert html_table(table.head(0)).count("<td>") == 0
    words = ("&lt;b&gt;", "flops 1,500, loss 0.2500", "a: 8, " * 40 + "b", "&amp;" * 40)
    for cell in ("1,234", "", "0.5000", "33.3%", *words):
        assert f"<td>{cell}</td>" in shown


def test_what_a_notebook_shows_of_a_table_that_code_computes_with() -> None:
    table = layer_table(get_model("jsc-toy"))
    assert isinstance(table, pd.DataFrame)
    assert table["flops"]["total"] == 417
    wide = pd.concat([table.head(3)] * 5, axis=1)
    for shown in map(type(table)._repr_html_, (table, table.query("flops > 100"), wide)):
        assert "<td>30.7%</td>" in shown  # 128 of 417
        assert "<td>131,072</td>" in shown
        assert "..." not in shown
    long = pd.concat([table] * 20)._repr_html_()
    assert long.count("<tr") < 70
    assert "240 rows" in long


@pytest.mark.filterwarnings("ignore:no cost is known")
def test_a_cost_that_is_not_known_is_missing_and_not_zero() -> None:
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).cumsum(1)

    for table, flops in (
        (layer_table(Sorts()), "flops"),
        (compare(Sorts(), None), ("flops", "after")),
    ):
        assert table[flops].isna().to_list() == [False, True, False]
        assert table[flops]["total"] == 24
        assert "<td></td>" in html_table(table)


def test_a_printed_table_holds_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a<b & c", "x" * 60]
    print_table(pd.DataFrame({"name": names, "flops": [1000, 2]}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["index", "name", "flops"], ["0", "a<b", "&", "c", "1,000"], ["1", "x" * 60, "2"],
    ]  # fmt: skip


def test_a_table_fits_a_terminal_and_is_coloured_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    columns = {
        "accuracy": 0.3648, "total_flops": 1113, "accuracy to original": "+13.6 points",
        "total_flops to original": "×2.67", "seq_blocks_2": 64, "seq_blocks_5": 16,
    }  # fmt: skip
    print_table(pd.DataFrame(columns, index=pd.Index([10], name="trial")))
    *_, row = screen.getvalue().splitlines()
    assert "\x1b[36m" in row
    words = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, words)) <= 80
    assert words[-1].split() == ["10", "0.3648", "1,113", "+13.6", "points", "×2.67", "64", "16"]
