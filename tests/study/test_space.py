"""The report's space: its size, its networks, and what is refused."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.study.space import SearchSpaceBase, count, get_space
from labkit.study.spaces import ChannelMultiplierSpace, LinearChannelMultiplierSpace
from labkit.transform.models import get_model
from tests.conftest import EXAMPLES


def space_of(tables: dict[str, Any], model: str = "jsc-toy") -> SearchSpaceBase:
    table = tables["search"]["search_space"]
    return get_space(table["name"])(get_model(model), table["setup"], table["seed"])


def test_the_reports_space_has_3072_configurations_and_16_networks(tables: dict[str, Any]) -> None:
    space = space_of(tables)
    assert isinstance(space, LinearChannelMultiplierSpace)
    assert space.n_configurations == 3072
    every = itertools.product(*(range(len(options)) for options in space.choices.values()))
    configs = [space.sampled_config(dict(zip(space.choices, indices))) for indices in every]
    assert len(set(map(str, configs))) == 3072
    networks = {tuple(space.resolve(config).to_dict().values()) for config in configs}
    assert networks == set(itertools.product([8, 16, 32, 64], repeat=2))


def test_an_index_a_key_becomes_a_nested_configuration(tables: dict[str, Any]) -> None:
    space = space_of(tables)
    config = space.sampled_config({"seq_blocks_2/config/channel_multiplier": 3})
    assert config["seq_blocks_2"] == {"config": {"name": "output_only", "channel_multiplier": 8}}
    assert config["by"] == "name"
    assert "seq_blocks_2/config/name" not in space.distributions  # one option is no choice
    assert space.resolve(config).to_dict()["seq_blocks_2"] == 64


def test_by_type_every_linear_layer_chooses_by_itself(tables: dict[str, Any]) -> None:
    tables["search"]["search_space"] |= {
        "setup": {"by": "type"},
        "seed": {
            "default": {"config": {"name": ["NA"]}},
            "linear": {"config": {"name": ["output_only"], "channel_multiplier": [1, 0.5]}},
        },
    }
    space = space_of(tables, "jsc-s")
    assert space.n_configurations == 2**5
    keys = list(space.distributions)
    plan = space.resolve(space.sampled_config({keys[1]: 1}))
    assert list(plan.to_dict().values()) == [64, 16, 32, 32]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ({}, "search.search_space.seed.default: missing"),
        ({"default": {"conf": {}}}, "seed.default: expected one table 'config'"),
        ({"default": {"config": {}}}, "seed.default.config: expected .*'name'"),
        ({"default": {"config": {"name": "NA"}}}, "config.name: expected a list .* got 'NA'"),
        ({"default": {"config": {"name": []}}}, r"expected a list of options, got \[\]"),
        ({"default": {"config": {"name": ["all"]}}}, "config.name: expected .* got 'all'"),
        ({"default": {"config": {"name": [["both"]]}}}, r"config.name: expected .* got \['both'\]"),
        ({"default": {"config": {"name": ["NA", "NA"]}}}, "listed twice"),
        ({"default": {"config": {"nam": ["NA"]}}}, "config.nam: unknown key; did you mean 'name'"),
        (
            {"default": {"config": {"name": ["both"], "multiplier": [1]}}},
            "config.multiplier: unknown key",
        ),
    ],
)
def test_wrong_tables_are_named(tables: dict[str, Any], seed: Any, message: str) -> None:
    tables["search"]["search_space"]["seed"] = seed
    with pytest.raises(LabkitError, match=message):
        space_of(tables)


@pytest.mark.parametrize(
    ("layer", "config", "message"),
    [
        ("seq_blocks_9", {"name": ["both"]}, "seq_blocks_9"),
        ("seq_blocks_99", {"name": ["NA"]}, "seq_blocks_99: no such layer"),
        ("seq_blocks_2", {"name": ["both"]}, "needs 'input_multiplier' or"),
        ("seq_blocks_2", {"name": ["NA", "both"], "channel_multiplier": [1, -1]}, "got -1"),
    ],
)
def test_wrong_options_show_before_the_search(
    tables: dict[str, Any], layer: str, config: Any, message: str
) -> None:
    tables["search"]["search_space"]["seed"][layer] = {"config": config}
    with pytest.raises(LabkitError, match=message):
        space_of(tables)


def test_unknown_names_are_refused(tables: dict[str, Any]) -> None:
    with pytest.raises(LabkitError, match="did you mean 'transform/linear_channel_multiplier'"):
        get_space("transform/linear_channel")
    tables["search"]["search_space"]["setup"] = {"by": "kind"}
    with pytest.raises(LabkitError, match="setup.by: expected 'name' or 'type', got 'kind'"):
        space_of(tables)


def test_networks_are_counted_while_they_can_be_and_bounded_beyond(
    tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(tables)
    assert count(space) == (3072, 16, True)
    assert str(count(space)) == "3,072 configurations, 16 networks"
    assert all(
        space.resolve(space.sampled_config(indices)) == plan
        for plan, indices in space.networks.items()
    )
    monkeypatch.setattr("labkit.study.space.MAX_ENUMERATED", 3071)
    large = space_of(tables)
    assert count(large) == (3072, 16, False)  # here the bound is tight
    assert str(count(large)) == "3,072 configurations, at most 16 networks"
    with pytest.raises(LabkitError, match="3,072 configurations are too many to enumerate"):
        _ = large.networks
    monkeypatch.setattr("labkit.study.space.MAX_ENUMERATED", 3072)
    assert count(space_of(tables)).exact


def group_space(
    model: str, seed: dict[str, list[float]], by: str = "name"
) -> ChannelMultiplierSpace:
    table = {key: {"config": {"channel_multiplier": values}} for key, values in seed.items()}
    space = get_space("transform/channel_multiplier")(
        get_model(model), {"by": by}, table, example_input=EXAMPLES[model]
    )
    assert isinstance(space, ChannelMultiplierSpace)
    return space


def offered(space: SearchSpaceBase) -> dict[str, list[Any]]:
    return {
        key.split("/")[0]: options
        for key, options in space.choices.items()
        if key.endswith("channel_multiplier")
    }


@pytest.mark.parametrize("space", [None, 5, ["a"]])
def test_what_is_no_space_is_not_counted(space: Any) -> None:
    with pytest.raises(LabkitError, match="^space: expected one of a search, got"):
        count(space)


def test_every_configuration_of_groups_is_another_network() -> None:
    space = group_space("jsc-toy", {"default": [0.5, 1, 1.01, 1.1, 2]})  # 1.01 and 1.1 give 9
    assert offered(space) == {"seq_blocks_2": [0.5, 1, 1.01, 2], "seq_blocks_5": [0.5, 1, 1.01, 2]}
    assert count(space) == (16, 16, True)
    assert {tuple(plan.to_dict().values()) for plan in space.networks} == set(
        itertools.product([4, 8, 9, 16], repeat=2)
    )
    large = group_space("vgg7", {"default": [0.1, 0.2, 0.3, 0.4]})
    assert count(large) == (4**8, 4**8, True)


def test_groups_are_named_by_layer_by_pattern_and_by_type() -> None:
    by_name = offered(
        group_space(
            "resnet8",
            {
                "stages.1.conv1": [3],  # the full name, though a pattern comes after it
                "stages_2_shortcut_0": [2],  # a layer that writes the group of stages_2_conv2
                "stages_*": [0.5],
                "default": [1],
            },
        )
    )
    assert by_name == {
        "stem": [0.5],  # stages_0_conv2 writes it, too
        "stages_0_conv1": [0.5],
        "stages_1_conv1": [3],
        "stages_1_conv2": [0.5],
        "stages_2_conv1": [0.5],
        "stages_2_conv2": [2],
    }
    by_type = offered(group_space("vgg7", {"conv2d": [0.25], "default": [0.5]}, by="type"))
    assert by_type == {
        **{f"feature_layers_{i}": [0.25] for i in (0, 3, 7, 10, 14, 17)},
        **{f"classifier_{i}": [0.5] for i in (0, 2)},
    }


@pytest.mark.parametrize(
    ("by", "seed", "message"),
    [
        ("name", {"seq_blocks_5": [1]}, "seed.default: missing"),
        ("name", {"default": [1], "seq_blocks_8": [2]}, "seq_blocks_8: no channel group that can"),
        ("name", {"default": [1], "layers_*": [2]}, r"layers_\*: no channel group that can change"),
        ("name", {"default": [0]}, "channel_multiplier: expected a positive number, .* got 0"),
        ("type", {"default": [1], "conv2d": [2]}, "conv2d: no such operator; expected one of: lin"),
        ("glob", {"default": [1]}, "setup.by: expected 'name' or 'type', got 'glob'"),
    ],
)
def test_wrong_groups_are_named(by: str, seed: dict[str, list[float]], message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        group_space("jsc-toy", seed, by)


def test_a_space_of_groups_takes_multipliers_alone() -> None:
    table = {"default": {"config": {"name": ["both"], "channel_multiplier": [1]}}}
    with pytest.raises(LabkitError, match="the one key 'channel_multiplier', got .*'name'"):
        ChannelMultiplierSpace(get_model("jsc-toy"), {"by": "name"}, table)


def test_the_space_of_convolutions_leaves_linear_layers_alone() -> None:
    seed = {
        "default": {"config": {"name": ["NA"]}},
        "conv2d": {"config": {"name": ["output_only"], "channel_multiplier": [0.5, 1]}},
    }
    space = get_space("transform/conv2d_channel_multiplier")(
        get_model("vgg7"), {"by": "type"}, seed, example_input=EXAMPLES["vgg7"]
    )
    assert count(space) == (2**6, 2**6, True)
    plan = space.resolve(space.sampled_config({}))
    assert list(plan.to_dict().values()) == [64, 64, 128, 128, 256, 256, 1024, 1024]


def test_choices_in_words_are_read_back(tables: dict[str, Any]) -> None:
    space = space_of(tables)
    chosen = {key: (3 * i) % len(space.choices[key]) for i, key in enumerate(space.distributions)}
    labels = space.labels(chosen)
    assert space.indices(labels) == chosen
    assert set(labels) == set(space.label_distributions) == set(space.distributions)
    for key, label in labels.items():
        assert space.label_distributions[key].to_external_repr(0) != ""
        assert label in ("both", "input_only", "output_only", "×1", "×2", "×4", "×8")
    assert labels["seq_blocks_2/config/channel_multiplier"] == "×1"


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        (
            {"default": [1]},
            "every choice gives the same widths; offer several multipliers to seq_b",
        ),
        ({"default": [1, 1.0001]}, None),  # 8 or 9 channels
        ({"default": [1, 0.99]}, "every choice gives the same widths"),  # both 8, rounded up
    ],
)
def test_a_space_of_one_network_has_nothing_to_search(
    seed: dict[str, list[float]], said: str | None
) -> None:
    space = group_space("jsc-toy", seed)
    if said is None:
        space.check_searchable()
    else:
        with pytest.raises(LabkitError, match=f"nothing to search, since {said}"):
            space.check_searchable()


class Doubled(nn.Module):
    """A network without a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_network_whose_widths_are_fixed_has_nothing_to_search() -> None:
    space = group_space("jsc-tiny", {"default": [1, 2]})
    why = "no width can change: '.*' because it is the network's (input|output)"
    with pytest.raises(LabkitError, match=f"nothing to search, since {why}"):
        space.check_searchable()
    nothing = ChannelMultiplierSpace(
        Doubled(), {"by": "name"},
        {"default": {"config": {"channel_multiplier": [1, 2]}}}, torch.zeros(1, 4),
    )  # fmt: skip
    with pytest.raises(LabkitError, match="since the network has no layers with channels"):
        nothing.check_searchable()


def test_a_space_of_ones_own_is_named_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_space.py").write_text(
        "from labkit.study.spaces import ChannelMultiplierSpace\n\n\n"
        "class Doubling(ChannelMultiplierSpace):\n"
        "    def build_choices(self, setup, seed):\n"
        "        free = self.channels.free\n"
        "        names = {f'{g.name}/config/name': ['output_only'] for g in free}\n"
        "        key = 'config/channel_multiplier'\n"
        "        return names | {f'{g.name}/{key}': [1, 2] for g in free}\n"
    )
    monkeypatch.chdir(tmp_path)
    space = get_space("own_space:Doubling")(get_model("jsc-toy"), {}, {})
    assert count(space) == (4, 4, True)
    with pytest.raises(LabkitError, match="expected 'json:loads' to be a SearchSpaceBase"):
        get_space("json:loads")


@pytest.mark.parametrize("way", [1, -1])
def test_every_network_of_a_large_space_is_found_again(way: int) -> None:
    layers = [module for _ in range(8) for module in (nn.Linear(16, 16), nn.ReLU())]
    config = {"name": ["output_only", "both"], "channel_multiplier": [1, 0.5, 2, 0.25]}
    names = [f"_{2 * i}" for i in range(7)][::way]
    seed = {"default": {"config": {"name": ["NA"]}}} | {n: {"config": config} for n in names}
    space = LinearChannelMultiplierSpace(nn.Sequential(*layers), {"by": "name"}, seed)
    assert not space.enumerable
    rng = random.Random(0)
    for _ in range(200):
        plan = space.resolve(space.sampled_config(space.draw(rng)))
        assert space.nearest(plan)[0] == plan
