"""Configurations in the words of others run, and say what was read differently."""

import logging
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import nn

from labkit import Search, register_space, search
from labkit.cli import main
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study import SearchSpaceBase
from labkit.study.config import load_config, to_tables
from labkit.study.dialects import translated
from labkit.study.experiment import Experiment
from labkit.study.toml_files import CONFIGS
from labkit.transform import Plan
from tests.conftest import REFERENCE_TOML, ROOT

Tables = dict[str, Any]
GUIDE = (ROOT / "docs" / "dialects.md").read_text()
SEED = "search.search_space.seed"
OTHERS = "transform/layer_channel_multiplier"


def entry(name: str, multipliers: list[int] | None = None, **more: Any) -> Tables:
    """What a seed says of a layer."""
    scaled = {} if multipliers is None else {"channel_multiplier": multipliers}
    return {"config": {"name": [name], **scaled, **more}}


def three_layers(tables: Tables, name: str, seed: Tables) -> Tables:
    """The reference's search on 16 → 16 → 16 → 5, with a space that others would write."""
    tables["model"] = "jsc-three-linear-layers"
    tables["search"]["search_space"] = {"name": name, "seed": seed}
    return tables


@pytest.fixture
def run(
    blobs: Dataset, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Search, list[str]]]:
    """Runs two trials, the original network's first; returns the search, and what was said."""

    def ran(tables: Tables, **options: Any) -> tuple[Search, list[str]]:
        caplog.set_level(logging.WARNING, "labkit")
        made = Search(tables, **({"data": blobs} | options), trials=2, epochs=1)
        said = list(caplog.messages)
        results = made.run(progress=False)
        assert results.trials["state"].tolist() == ["COMPLETE"] * 2
        # What it was read as says nothing, and is not changed any more.
        caplog.clear()
        read = load_config(to_tables(made.config), strict=True)
        again = Search(read, **({"data": blobs} | options))
        assert again.config.replace(seed=made.config.seed) == made.config.replace(strict=True)
        assert caplog.messages == []
        return made, said

    return ran


def widths(made: Search) -> set[tuple[int, ...]]:
    return {tuple(plan.to_dict().values()) for plan in made.space.networks}


Run = Callable[..., tuple[Search, list[str]]]


def test_no_setup_and_parents_by_a_list(tables: Tables, run: Run) -> None:
    seed = {
        "default": entry("NA", [1, 2, 3]),
        "seq_blocks_2": entry("output_only", [1, 2, 3]),
        "seq_blocks_4": entry("both", [1, 2, 3], parent=["seq_blocks_2"]),
        "seq_blocks_6": entry("input_only", [1, 2, 3], parent=["seq_blocks_4"]),
    }
    made, said = run(three_layers(tables, "graph/quantize/channel_size_modifier", seed))
    assert widths(made) == {(16 * a, 16 * b) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert said == [
        f"search.search_space.name: 'graph/quantize/channel_size_modifier' is {OTHERS!r}, since "
        "its seed lists channel multipliers",
        "search.search_space.setup.by: 'name', where nothing is said",
        f"{SEED}.seq_blocks_4.parent: left out, it follows from the network",
        f"{SEED}.seq_blocks_6.parent: left out, it follows from the network",
    ]
    kept = made.config.search.search_space.seed
    assert kept["seq_blocks_4"] == entry("both", [1, 2, 3])


def test_activations_between_named_parents(tables: Tables, run: Run) -> None:
    seed = {
        "default": entry("NA", [1]),
        "seq_blocks_2": entry("output_only", [1, 2], parent_block_name=["seq_blocks_1"]),
        "seq_blocks_3": entry("both", [1, 2, 3], parent_block_name=["seq_blocks_2"]),
        "seq_blocks_4": entry("input_only", [1, 2], parent_block_name=["seq_blocks_3"]),
    }
    made, said = run(three_layers(tables, "graph/quantize/channel_size_modifier", seed))
    assert widths(made) == {(16, 16), (32, 16)}
    assert f"{SEED}.seq_blocks_3: left out, it follows the layers before it" in said


def test_sizes_that_follow(tables: Tables, run: Run) -> None:
    seed = {
        "default": entry("NA"),
        "seq_blocks_2": entry("output_only", [1, 5], in_features=[16], out_features=[16]),
        "seq_blocks_6": entry("input_only", [1, 5], in_features=16),
    }
    made, said = run(three_layers(tables, "graph/quantize/channel_size_modifier", seed))
    assert widths(made) == {(a, b) for a in (16, 80) for b in (16, 80)}
    assert any("seq_blocks_2.out_features" in line and "follows from" in line for line in said)


def test_inplace_and_the_sides_by_other_names(tables: Tables, run: Run) -> None:
    tables["search"]["strategy"]["setup"]["sampler"] = "brute-force"
    sides = {"channel_multiplier_input": [2], "channel_multiplier_output": [4, 1]}
    seed = {
        "default": entry("NA"),
        "seq_blocks_2": entry("output_only", [2]),
        "seq_blocks_3": entry("inplace", [2]),
        "seq_blocks_4": entry("both", **sides),
        "seq_blocks_5": entry("inplace", [2]),
    }
    made, said = run(three_layers(tables, "graph/channel_multiply/channel_multiplier", seed))
    assert widths(made) == {(32, 64), (32, 16)}
    assert made.config.search.strategy.setup.sampler == "bruteforce"
    assert set(said) >= {
        f"{SEED}.seq_blocks_4.channel_multiplier_input: read as input_multiplier",
        f"{SEED}.seq_blocks_4.channel_multiplier_output: read as output_multiplier",
        f"{SEED}.seq_blocks_3: left out, it follows the layers before it",
        f"{SEED}.seq_blocks_5: left out, it follows the layers before it",
        "search.strategy.setup.sampler: 'brute-force' is 'bruteforce'",
    }


def test_neither_names_nor_a_default(tables: Tables, run: Run) -> None:
    sides = {"channel_multiplier_input": [1, 2], "channel_multiplier_output": [1, 3]}
    seed = {
        "seq_blocks_2": {"config": {"channel_multiplier_output": [1, 2]}},
        "seq_blocks_4": {"config": sides},
        "seq_blocks_6": {"config": {"channel_multiplier_input": [1, 3]}},
    }
    made, said = run(three_layers(tables, "graph/quantize/network_search", seed))
    kept = made.config.search.search_space.seed
    assert {key: one["config"]["name"] for key, one in kept.items()} == {
        "seq_blocks_2": ["output_only"], "seq_blocks_4": ["both"],
        "seq_blocks_6": ["input_only"], "default": ["NA"],
    }  # fmt: skip
    assert widths(made) == {(a, b) for a in (16, 32) for b in (16, 48)}
    assert f"{SEED}.seq_blocks_4.name: ['both'], where nothing is said" in said


def test_a_quantizers_file_with_multipliers(tables: Tables, run: Run) -> None:
    tables |= {"log_every_n_steps": 5, "passes": {"quantize": {"by": "type"}}}
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"basic_evaluation": {"num_samples": 512}}
    strategy["hw_runner"] = {"average_bitwidth": {"compare_to": 32}}
    strategy["metrics"] = {
        "accuracy": {"scale": 1.0, "direction": "maximize"},
        "average_bitwidth": {"scale": 0.2, "direction": "minimize"},
    }
    seed = {
        "default": entry("NA"),
        "seq_blocks_2": entry("output_only", [1, 4]),
        "seq_blocks_4": entry("both", [1, 2]),
        "seq_blocks_6": entry("input_only"),
    }
    made, said = run(three_layers(tables, "graph/quantize/mixed_precision_ptq", seed))
    assert widths(made) == {(16, 16), (32, 32)}  # the later write counts
    assert list(made.config.search.strategy.metrics) == ["accuracy"]
    assert set(made.config.software) == {"basic_train"}
    assert set(said) >= {
        "log_every_n_steps: left out, it is no part of a search",
        "passes: left out, it is no part of a search",
        "search.strategy.hw_runner.average_bitwidth: left out, no objective: it is the same for "
        "all widths",
        "search.strategy.metrics.average_bitwidth: left out, no objective: it is the same for all "
        "widths",
        "search.strategy.sw_runner.basic_evaluation: basic_train in its place: networks of other "
        "widths have no weights before",
        f"{SEED}.seq_blocks_6: left out, without multipliers it follows what it reads",
    }


def test_a_table_of_a_type_among_names(tables: Tables, run: Run) -> None:
    seed = {
        "default": entry("NA"),
        "linear": entry("integer", data_in_width=[4, 8]),
        "seq_blocks_2": entry("output_only", [2, 4]),
    }
    three_layers(tables, "LAB4/graph_lab4", seed)
    tables["search"]["search_space"]["setup"] = {"by": "name"}
    made, said = run(tables)
    assert widths(made) == {(32, 16), (64, 16)}
    assert f"{SEED}.linear: left out, since by = 'name' and no layer is called so" in said


def test_a_checkpoint_of_another_machine(
    tables: Tables, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tables |= {"load_name": "/home/them/best.ckpt", "load_type": "pl", "accelerator": "gpu"}
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"]["basic_evaluation"] = {"data_loader": "val_dataloader"}
    strategy["setup"] |= {"sum_scaled_metrics": True, "direction": "maximize"}
    made, said = run(tables)
    assert (made.config.load_name, made.config.accelerator) == (None, "auto")
    assert "basic_evaluation" not in made.config.software
    assert "load_name: left out, there is no file '/home/them/best.ckpt'" in said
    assert "accelerator: 'auto', since there is no CUDA here" in said


def test_an_accelerator_alone_is_no_dialect(tables: Tables, blobs: Dataset) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(LabkitError, match="accelerator: 'gpu' needs a CUDA device"):
            Search(tables | {"accelerator": "gpu"}, data=blobs)


def test_one_network_that_is_not_the_original(tables: Tables, run: Run) -> None:
    seed = {"default": entry("NA"), "seq_blocks_4": entry("both", [2])}
    made, _ = run(three_layers(tables, "graph/architecture/width", seed))
    assert widths(made) == {(32, 32)}


def test_the_guides_file_runs_and_says_what_is_there(run: Run) -> None:
    theirs, said = re.findall(r"```(?:toml|text)\n(.*?)```", GUIDE, re.DOTALL)
    made, lines = run(tomllib.loads(theirs))
    assert said.splitlines() == lines
    assert widths(made) == {(a, b) for a in (16, 32, 64) for b in (16, 32)}


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ("BruteForce", "bruteforce"), ("brute_force", "bruteforce"), ("brute", "bruteforce"),
        ("TPE", "tpe"), ("Random", "random"), ("NSGA-II", "nsgaii"), ("nsga3", "nsgaiii"),
        ("known_cost", "known-cost"), ("QMC", "qmc"),
    ],
)  # fmt: skip
def test_samplers_in_other_spellings(tables: Tables, theirs: str, own: str) -> None:
    tables["search"]["strategy"]["setup"]["sampler"] = theirs
    read, said = translated(tables, Path())
    assert read["search"]["strategy"]["setup"]["sampler"] == own
    assert said == [f"search.strategy.setup.sampler: {theirs!r} is {own!r}"]


def test_other_tables_of_the_flow(tables: Tables, run: Run) -> None:
    made, said = run(tables | {"num_workers": 4, "transform": {"style": "graph"}})
    assert made.config.model == "jsc-toy"
    assert said == [
        "num_workers: left out, it is no part of a search",
        "transform: left out, it is no part of a search",
    ]


def test_convolutions_and_linear_layers_in_one_seed(tables: Tables, run: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 3, 8, 8, generator=generator).numpy()
    data = Dataset.from_arrays(images, torch.arange(200).numpy() % 2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    seed = {
        "default": entry("NA"),
        "0": entry("output_only", [1, 2], in_channels=3),
        "1": entry("both", [1, 2], parent="0", num_features=[4]),
        "4": entry("output_only", [1, 3], parent=["1"], out_features=[6]),
    }
    three_layers(tables, "graph/quantize/channel_size_modifier", seed)
    made, said = run(tables, model=model, data=data)
    assert widths(made) == {(a, b) for a in (4, 8) for b in (6, 18)}
    assert f"{SEED}.1: left out, it follows the layers before it" in said


def test_by_type_with_activations(tables: Tables, run: Run) -> None:
    seed = {
        "default": entry("NA"),
        "linear": entry("output_only", [1, 2], in_features=[16]),
        "relu": entry("inplace", [1, 2]),
    }
    three_layers(tables, "graph/width/by_type", seed)
    tables["search"]["search_space"]["setup"] = {"by": "type"}
    made, said = run(tables)
    assert widths(made) == {(a, b) for a in (16, 32) for b in (16, 32)}
    assert f"{SEED}.relu: left out, it follows the layers before it" in said


def two_entries() -> Tables:
    """A seed of two layers."""
    first, second = entry("output_only", [1, 2]), entry("input_only", [1, 2])
    return {"default": entry("NA"), "seq_blocks_2": first, "seq_blocks_4": second}


@pytest.mark.parametrize(
    ("layer", "option", "value", "message"),
    [
        ("2", "in_features", [32], "seq_blocks_2.config.in_features: expected 16, as the network"),
        ("2", "out_features", "x", "out_features: expected 16, as the network has, got 'x'"),
        ("2", "in_features", [16, 32], r"expected 16, as the network has, got \[16, 32\]"),
        ("4", "parent", ["seq_blocks_6"], "one of seq_blocks_3, seq_blocks_2, which seq_blocks_4"),
        ("4", "parent", ["seq_blocks_1"], "parent: expected one of seq_blocks_3, seq_blocks_2"),
        ("4", "parent_block_name", "no", "parent_block_name: expected .*, got 'no'"),
        ("4", "parents", ["seq_blocks_2"], "seq_blocks_4.config.parents: unknown key"),
        ("2", "channel_multiplier_output", [2], "channel_multiplier_output: unknown key"),
        ("2", "multiplier", [2], "multiplier: unknown key; did you mean 'input_multiplier'"),
        ("2", "name", ["inplace"], "name: expected .*; got 'inplace'"),
        ("9", "name", ["both"], "seq_blocks_9: no such layer in the network; did you mean"),
    ],
)
def test_what_contradicts_the_network_or_is_in_no_dialect_is_an_error(
    tables: Tables, blobs: Dataset, layer: str, option: str, *, value: Any, message: str
) -> None:
    seed = two_entries()
    seed["seq_blocks_2"]["config"]["output_multiplier"] = [1]
    seed.setdefault(f"seq_blocks_{layer}", entry("both", [1, 2]))["config"][option] = value
    three_layers(tables, "graph/quantize/channel_size_modifier", seed)
    with pytest.raises(LabkitError, match=message):
        Search(tables, data=blobs)


@pytest.mark.parametrize(
    ("name", "seed", "message"),
    [
        (
            "transform/linear_multiplier",
            two_entries(),
            "unknown space .*; did you mean 'transform/linear_ch",
        ),
        (
            "graph/quantize/mixed_precision_ptq",
            {"default": entry("integer")},
            "unknown space",
        ),
        ("graph/width", {"default": 3}, "unknown space 'graph/width'"),
    ],
)
def test_a_space_of_something_else_is_an_error(
    tables: Tables, blobs: Dataset, name: str, seed: Tables, message: str
) -> None:
    with pytest.raises(LabkitError, match=message):
        Search(three_layers(tables, name, seed), data=blobs)


def test_a_space_of_ones_own_keeps_its_tables(tables: Tables, blobs: Dataset) -> None:
    @register_space("halved")
    class Halved(SearchSpaceBase):
        def build_choices(self, setup: Any, seed: Any) -> dict[str, list[Any]]:
            assert (setup, seed) == ({}, {"parent": {"name": 1, "in_features": [2]}})
            return {"all/config/divisor": [1, 2]}

        def resolve(self, pass_config: Any) -> Plan:
            divisor = pass_config["all"]["config"]["divisor"]
            return Plan(tuple((g.name, g.width // divisor) for g in self.channels.free))

    space = {"name": "halved", "seed": {"parent": {"name": 1, "in_features": [2]}}}
    tables["search"]["search_space"] = space
    assert len(Search(tables, data=blobs).space.networks) == 2


@pytest.mark.parametrize("place", ["top", "call"])
def test_strictly_nothing_is_read_differently(tables: Tables, blobs: Dataset, place: str) -> None:
    strict = {"strict": True} if place == "call" else {}
    tables |= {} if strict else {"strict": True}
    with pytest.raises(LabkitError, match="^strict: passes: left out, it is no part of a search"):
        load_config(tables | {"passes": {}}, **strict)
    tables["search"]["search_space"]["seed"]["seq_blocks_2"]["config"]["in_features"] = [16]
    with pytest.raises(LabkitError, match="^strict: .*seq_blocks_2.in_features: left out"):
        Search(load_config(tables, **strict), data=blobs)


@pytest.mark.parametrize("source", [*CONFIGS, REFERENCE_TOML], ids=str)
def test_our_own_files_and_the_references_say_nothing(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    Experiment(load_config(source, strict=True))
    assert caplog.messages == []


def test_the_folder_has_the_file_as_it_was_read(
    tables: Tables, tmp_path: Path, blobs: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = two_entries() | {"seq_blocks_3": entry("inplace")}
    three_layers(tables, "graph/quantize/channel_size_modifier", seed)
    theirs, out = tmp_path / "theirs.toml", tmp_path / "out"
    theirs.write_text(tomli_w.dumps(tables))
    command = ["--trials", "2", "--epochs", "1", "--out", str(out)]
    assert main(["search", str(theirs), "--strict", *command]) == 2
    assert "labkit: --strict: search.search_space.name: 'graph/" in capsys.readouterr().err
    assert not out.exists()
    assert main(["search", str(theirs), *command]) == 0
    read = tomllib.loads((out / "config.toml").read_text())["search"]["search_space"]
    assert (read["name"], "seq_blocks_3" in read["seed"]) == (OTHERS, False)
    capsys.readouterr()
    for config in (out / "config.toml", theirs):  # it is the same search
        assert main(["search", str(config), *command]) == 0
        assert "nothing to do: 2 of 2" in capsys.readouterr().out
    assert len(search(out / "config.toml", folder=out, progress=False).trials) == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"search": 3}, {"load_name": "a" * 5_000}, {"load_name": "~no-such-user/b"},
        {"search": {"strategy": []}}, {"search": {"search_space": {"seed": 1}}},
        {"model": 3, "passes": None}, {3: {}}, {"search": None},
        {"search": {"search_space": {"name": [], "seed": {"a": {"config": 3}, 2: {"name": {}}}}}},
        {"search": {"strategy": {"sw_runner": {"basic_train": 1, "basic_evaluation": 2}}}},
    ],
)  # fmt: skip
def test_what_is_no_configuration_in_any_dialect(tables: Tables, damage: Any) -> None:
    with pytest.raises(LabkitError):
        load_config(tables | damage)
