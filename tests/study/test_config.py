"""The reference's TOML is taken as it is; every mistake is named in one line."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from labkit.errors import LabkitError
from labkit.study.config import load_config, simple_tables, to_tables
from tests.conftest import REFERENCE_TOML, ROOT


def test_the_references_file_is_taken_unchanged() -> None:
    config = load_config(REFERENCE_TOML)
    train = config.software["basic_train"][1].model_dump()
    assert train["max_epochs"] == 10
    assert train["learning_rate"] == 1e-4
    assert train["num_samples"] == 1_000_000
    assert config.search.strategy.setup.n_trials == 100
    assert config.search.strategy.metrics["total_flops"].direction == "minimize"


def test_the_reports_search_is_the_references_file() -> None:
    ours = to_tables(load_config(ROOT / "configs" / "jsc_toy.toml"))
    theirs = to_tables(load_config(REFERENCE_TOML))
    assert ours["search"]["search_space"] == theirs["search"]["search_space"]
    assert ours["search"]["strategy"]["metrics"] == theirs["search"]["strategy"]["metrics"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    config = load_config(path)
    assert load_config(to_tables(config)) == config


def test_top_level_values_stand_in_for_a_runners_own(tables: dict[str, Any]) -> None:
    own = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    del own["max_epochs"], own["learning_rate"]
    tables |= {"max_epochs": 3, "batch_size": 64, "learning_rate": 0.5}
    train = load_config(tables).software["basic_train"][1].model_dump()
    assert (train["max_epochs"], train["batch_size"], train["learning_rate"]) == (3, 64, 0.5)


def test_overrides_reach_every_place(tables: dict[str, Any]) -> None:
    before = load_config(tables)
    config = before.replace(n_trials=3, max_epochs=7, seed=9)
    assert before == load_config(tables)
    assert config.search.strategy.setup.n_trials == 3
    assert config.software["basic_train"][1].model_dump()["max_epochs"] == 7
    assert (config.max_epochs, config.seed) == (7, 9)
    with pytest.raises(LabkitError, match="n_trials: expected greater than or equal to 1, got 0"):
        config.replace(n_trials=0)
    with pytest.raises(LabkitError, match="sampler: expected 'random', .* got 'best'"):
        config.replace(sampler="best")
    with pytest.raises(LabkitError, match="n_trial: unknown key; did you mean 'n_trials'"):
        config.replace(n_trial=1)
    with pytest.raises(LabkitError, match="limit: unknown key; did you mean 'limits'"):
        config.replace(limit={"accuracy": 0.5})
    assert config.replace() == config.replace(seed=None) == config
    assert config.replace(sampler="grid").search.strategy.setup.sampler == "bruteforce"


def test_training_is_replaced_at_its_runner(tables: dict[str, Any]) -> None:
    config = load_config(tables).replace(learning_rate=0.25, replicates=3)
    assert config.training is not None
    assert (config.training.learning_rate, config.training.replicates) == (0.25, 3)
    del tables["search"]["strategy"]["sw_runner"]["basic_train"]
    tables["search"]["strategy"]["metrics"] = {"total_flops": {"direction": "minimize"}}
    assert load_config(tables).training is None


def test_objectives_bring_what_measures_them(tables: dict[str, Any]) -> None:
    tables["search"]["strategy"]["metrics"]["accuracy"]["scale"] = 2.0
    config = load_config(tables).replace(objectives={"accuracy": "maximize", "latency": "minimize"})
    assert config.search.strategy.metrics["accuracy"].scale == 2
    assert list(config.search.strategy.metrics) == ["accuracy", "latency"]
    assert "latency" in config.all_runners
    with pytest.raises(LabkitError, match="metrics.latencies: no runner measures it; did you mean"):
        config.replace(objectives={"latencies": "minimize"})
    with pytest.raises(LabkitError, match="metrics.accuracy.direction: expected 'maximize' or"):
        config.replace(objectives={"accuracy": "up"})
    with pytest.raises(LabkitError, match="accuracy_std: it needs replicates = 2 or more, got 1"):
        config.replace(objectives={"accuracy_std": "minimize"})


def test_widths_are_a_space_of_groups(tables: dict[str, Any]) -> None:
    config = load_config(tables)
    for_all = config.replace(widths=[0.5, 1]).search.search_space
    assert for_all.name == "transform/channel_multiplier"
    assert for_all.seed == {"default": {"config": {"channel_multiplier": [0.5, 1]}}}
    some = config.replace(widths={"seq_blocks_2": [1, 2]})
    assert some.offered == {"default": [1], "seq_blocks_2": [1, 2]}


def test_offered_multipliers_are_replaced_in_every_list_of_their_layer(
    tables: dict[str, Any],
) -> None:
    config = load_config(tables)
    assert config.offered["seq_blocks_5"] == [1, 2, 4, 8]
    changed = config.replace(offered={"seq_blocks_5": [0.5, 3]})
    request = changed.search.search_space.seed["seq_blocks_5"]["config"]
    assert request["name"] == ["output_only", "input_only", "both"]
    assert request["input_multiplier"] == request["output_multiplier"] == [0.5, 3]
    assert changed.offered["seq_blocks_2"] == [1, 2, 4, 8]


def test_a_search_from_python_begins_with_accuracy_against_flops() -> None:
    config = load_config({"model": "m", "dataset": "d", **simple_tables([1, 2])})
    assert set(config.search.strategy.metrics) == {"accuracy", "total_flops"}
    assert config.training is not None
    assert config.search.strategy.setup.sampler == "known-cost"


def test_the_reports_search_keeps_its_sampler() -> None:
    report = Path(__file__).parents[2] / "configs" / "jsc_toy.toml"
    assert load_config(report).search.strategy.setup.sampler == "tpe"


def replaced(tables: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    table = tables
    for parent in parents:
        table = table[parent]
    table[last] = value
    return tables


SETUP = "search.strategy.setup"
TRAIN = "search.strategy.sw_runner.basic_train"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sed", 1, "sed: unknown key; did you mean 'seed'?"),
        ("seed", "x", "seed: expected a valid integer.* got 'x'"),
        ("seed", -1, "seed: expected greater than or equal to 0, got -1"),
        (
            "task",
            "regresion",
            "task: expected 'classification', 'binary' or 'regression', got 'reg",
        ),
        ("accelerator", "tpu", "accelerator: expected 'auto', .* got 'tpu'"),
        ("load_type", "mz", "load_type: expected 'pt', .* got 'mz'"),
        (f"{SETUP}.sampler", "tpee", f"{SETUP}.sampler: expected 'random', .* got 'tpee'"),
        (f"{SETUP}.n_trial", 3, f"{SETUP}.n_trial: unknown key; did you mean 'n_trials'"),
        (f"{SETUP}.timeout", -1, f"{SETUP}.timeout: expected greater than 0, got -1"),
        (f"{SETUP}.sum_scaled_metrics", True, "sum_scaled_metrics = true needs direction"),
        ("search.strategy.metrics.accuracy.direction", "up", "accuracy.direction: expected"),
        ("search.strategy.metrics.accuracy.scal", 1, "scal: unknown key; did you mean 'scale'"),
        (
            "search.strategy.metrics.acuracy",
            {"direction": "maximize"},
            "metrics.acuracy: no runner measures it; did you mean 'accuracy'",
        ),
        ("search.strategy.metrics", {}, "search.strategy.metrics: "),
        (f"{TRAIN}.learning_rate", 0, f"{TRAIN}.learning_rate: expected a number above 0, "),
        (f"{TRAIN}.learning_rates", 1, "learning_rates: unknown key; did you mean 'learning_rate'"),
        (f"{TRAIN}.optimizer", "lion", "optimizer: expected 'adam', 'adamw' or 'sgd', got 'lion'"),
        (f"{TRAIN}.data_loader", "test_dataloader", "data_loader: expected 'train_dataloader'"),
        (
            "search.strategy.sw_runner.basic_trian",
            {},
            "sw_runner.basic_trian: unknown runner 'basic_trian'; did you mean 'basic_train'",
        ),
        ("search.search_space", {"name": "x"}, "search.search_space.seed: missing"),
    ],
)
def test_every_mistake_names_key_value_and_expectation(
    tables: dict[str, Any], key: str, value: Any, message: str
) -> None:
    with pytest.raises(LabkitError, match=message) as caught:
        load_config(replaced(tables, key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "smallest", "refused"),
    [
        ("seed", 2**32 - 1, 2**32),
        ("seed", 0, -1),
        ("max_epochs", 1, 0),
        ("batch_size", 2, 0),
        ("learning_rate", 1e-9, 0.0),
        ("learning_rate", 1e3, math.inf),
        (f"{SETUP}.n_trials", 1, 0),
        (f"{SETUP}.n_jobs", 1, 0),
        (f"{SETUP}.timeout", 1e-9, 0.0),
        ("search.strategy.metrics.accuracy.scale", -1.0, math.nan),
        (f"{TRAIN}.replicates", 1, 0),
    ],
)
def test_values_at_the_edge(
    tables: dict[str, Any], key: str, smallest: float, refused: float
) -> None:
    load_config(replaced(tables, key, smallest))
    with pytest.raises(LabkitError, match=f"{key}: expected "):
        load_config(replaced(tables, key, refused))


def test_what_a_configuration_leaves_out_is_the_documented_default() -> None:
    tables = simple_tables([1, 2])
    del tables["search"]["strategy"]["setup"]
    config = load_config({"model": "m", "dataset": "d", **tables})
    top = {"label", "task", "max_epochs", "batch_size", "learning_rate", "accelerator", "project",
           "seed", "load_name", "load_type", "operators"}  # fmt: skip
    assert config.model_dump(include=top) == {
        "label": "label", "task": None, "max_epochs": 10, "batch_size": 256,
        "learning_rate": 1e-3, "accelerator": "auto", "project": "labkit", "seed": 0,
        "load_name": None, "load_type": "pt", "operators": (),
    }  # fmt: skip
    assert config.search.strategy.setup.model_dump() == {
        "n_trials": 100, "timeout": None, "sampler": "tpe", "sum_scaled_metrics": False,
        "direction": None, "n_jobs": 16, "workers": None, "storage": None, "baseline": True,
        "start_from": (),
    }  # fmt: skip
    assert not config.search.strategy.eval_mode
    assert config.search.strategy.metrics["accuracy"].scale == 1


def test_files_that_cannot_be_read_are_named(tmp_path: Path, tables: dict[str, Any]) -> None:
    with pytest.raises(LabkitError, match="config: there is no file .*none.toml"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("model = ")
    with pytest.raises(LabkitError, match="bad.toml is not valid TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "good.toml").write_text(tomli_w.dumps(tables))
    assert load_config(tmp_path / "good.toml") == load_config(tables)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "config: expected the path of a TOML file, or its tables, got None"),
        (5, "config: expected the path of a TOML file, or its tables, got 5"),
        ("a\0b", "config: there is no file"),
        ({"seed": 10**100_000}, "seed: "),
        ({"a" * 100_000: 1}, r"^aaa.* … .*operators, strict, search$"),
        ({"batch_size": 1}, "batch_size: expected greater than or equal to 2, got 1"),
        ({"max_epochs": math.nan}, "max_epochs: "),
    ],
)
def test_what_is_no_configuration(tables: dict[str, Any], source: Any, message: str) -> None:
    whole = tables | source if isinstance(source, dict) else source
    with pytest.raises(LabkitError, match=message):
        load_config(whole)


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "9" * 100_000,
        "seed = " + "[" * 5_000,
        "a = {" * 5_000,
        "\0",
        "\udcff",
        "a." * 100_000 + "a = 1",
    ],
)
def test_what_is_no_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LabkitError, match=r"a\.toml is not valid TOML: "):
        load_config(tmp_path / "a.toml")


def test_a_pipe_and_a_file_of_terabytes_are_no_toml(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(LabkitError, match="there is no file"):
        load_config(tmp_path / "pipe.toml")
    (tmp_path / "huge.toml").touch()
    os.truncate(tmp_path / "huge.toml", 12 * 10**12)
    with pytest.raises(LabkitError, match=r"takes 12,000\.0 GB"):
        load_config(tmp_path / "huge.toml")
