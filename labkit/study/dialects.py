"""Configurations as others write them, and how labkit reads them.

Many have given the reference a space of channel multipliers, each with words of its own for the
same. What can be meant in one way only is read so, and said in a line; what contradicts the network
is an error, and so is a word that is in no dialect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from labkit.errors import LabkitError, in_words, shown
from labkit.study.record import Sampler
from labkit.study.space import SPACES, SearchSpaceBase
from labkit.transform import Channels
from labkit.transform.graph import operator_name
from labkit.transform.models import MODELS
from labkit.transform.plan import REQUEST_KEYS

if TYPE_CHECKING:
    from labkit.study.config import SearchConfig

log = logging.getLogger(__name__)

Tables = dict[str, Any]
SETUP, SPACE, SEED = "search.strategy.setup", "search.search_space", "search.search_space.seed"
# Of the reference's other commands and its trainer: a search takes nothing from them.
ELSEWHERE = {
    "": (
        "passes", "transform", "hardware", "testbench", "log_every_n_steps", "log_level",
        "report_to", "to_debug", "num_workers", "num_devices", "num_nodes", "project_dir",
        "training_optimizer", "trainer_precision", "weight_decay", "max_steps", "quant_config",
    ),
    SETUP: ("model_parallel", "runner_style"),
}  # fmt: skip
SPELLINGS = {
    "brute": "bruteforce",
    "exhaustive": "bruteforce",
    "nsga2": "nsgaii",
    "nsga3": "nsgaiii",
}
SIDES = {f"channel_multiplier_{side}": f"{side}_multiplier" for side in ("input", "output")}
PARENTS = ("parent", "parent_block_name")
SIZES = ("in_features", "out_features", "num_features", "in_channels", "out_channels")
OURS, BY_GROUP = "transform/layer_channel_multiplier", "transform/channel_multiplier"


class Said(dict[str, list[str]]):
    """What was read differently → the keys."""

    def add(self, what: str, *key: object) -> None:
        self.setdefault(what, []).append(".".join(str(part) for part in key if part != ""))

    def tell(self, strict: bool) -> None:
        """Logs a line for each; or raises an error, where nothing may be read differently."""
        for what, keys in self.items():
            if strict:
                raise LabkitError(f"strict: {', '.join(keys)}: {what}")
            log.warning("%s: %s", ", ".join(keys), what)


def translated(source: Mapping[str, Any], base: Path) -> tuple[Tables, Said]:
    """Returns tables in labkit's words, as far as no network is needed.

    Args:
        source: The tables.
        base: Where files are relative to.
    """
    said = Said()
    with in_words("config: expected tables"):
        tables: Tables = _copied(source)
    for place, keys in ELSEWHERE.items():
        table = _at(tables, place)
        for key in [key for key in keys if key in table]:
            del table[key]
            said.add("left out, it is no part of a search", place, key)
    samplers = {_plain(name): name for name in get_args(Sampler)} | SPELLINGS
    _spell(said, tables, "", "model", {_plain(name): name for name in MODELS})
    _spell(said, _at(tables, SETUP), SETUP, "sampler", samplers)
    _runners(said, tables, base)
    _space(said, _at(tables, SPACE))
    if said and tables.get("accelerator") in ("cuda", "gpu") and not torch.cuda.is_available():
        tables["accelerator"] = "auto"
        said.add("'auto', since there is no CUDA here", "accelerator")
    return tables, said


def _copied(value: Any) -> Any:
    mapping = isinstance(value, Mapping)
    return {key: _copied(one) for key, one in value.items()} if mapping else value


def _at(tables: Tables, place: str) -> Tables:
    """Returns the table at a place; an empty one where there is none."""
    for key in filter(None, place.split(".")):
        tables = tables.get(key, {}) if isinstance(tables, dict) else {}
    return tables if isinstance(tables, dict) else {}


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def _spell(said: Said, table: Tables, place: str, key: str, known: Mapping[str, str]) -> None:
    given = table.get(key)
    name = known.get(_plain(given), given) if isinstance(given, str) else given
    if name != given:
        table[key] = name
        said.add(f"{given!r} is {name!r}", place, key)


def _runners(said: Said, tables: Tables, base: Path) -> None:
    """Leaves out what is the same for all widths; trains, where weights are missing."""
    strategy = _at(tables, "search.strategy")
    for place in ("hw_runner", "sw_runner", "metrics"):
        if _at(strategy, place).pop("average_bitwidth", None) is not None:
            same = "left out, it is the same for all widths and no objective"
            said.add(same, "search.strategy", place, "average_bitwidth")
    software, name = _at(strategy, "sw_runner"), tables.get("load_name")
    keeps = _at(software, "basic_train").get("weights") == "keep"
    if isinstance(name, str) and not keeps and not (base / Path(name).expanduser()).exists():
        del tables["load_name"]
        said.add(f"left out, there is no file {name!r}", "load_name")
    if "basic_evaluation" in software and "load_name" not in tables:
        del software["basic_evaluation"]
        software.setdefault("basic_train", {})
        trains = "basic_train in its place: networks of other widths have no weights before"
        said.add(trains, "search.strategy.sw_runner.basic_evaluation")


def _is_ours(name: object) -> bool:
    """Whether a space is one of labkit's, or of nobody: one of a user's own has its own tables."""
    return (
        isinstance(name, str)
        and ":" not in name
        and (SPACES.get(name, SearchSpaceBase).__module__.startswith("labkit."))
    )


def _space(said: Said, space: Tables) -> None:
    name, seed = space.get("name"), _at(space, "seed")
    if not _is_ours(name):
        return
    for key, entry in [*seed.items()]:
        if isinstance(entry, dict) and entry.keys() & {*REQUEST_KEYS, *SIDES}:
            seed[key] = {"config": entry}
            said.add("taken as its table 'config'", SEED, key)
        _options(said, seed, key, by_group=name == BY_GROUP)
    configs = [_at(entry, "config") for entry in seed.values() if isinstance(entry, dict)]
    lists = any(option in REQUEST_KEYS[1:] for config in configs for option in config)
    if lists and not str(name).startswith("transform/"):
        space["name"] = OURS
        said.add(f"{name!r} is {OURS!r}, since its seed lists channel multipliers", SPACE, "name")
    if lists and isinstance(setup := space.setdefault("setup", {}), dict) and "by" not in setup:
        setup["by"] = "name"
        said.add("'name', where nothing is said", SPACE, "setup.by")
    if lists and name != BY_GROUP and "default" not in seed:
        seed["default"] = {"config": {"name": ["NA"]}}
        said.add("other layers stay as they are, where nothing is said", SEED, "default")


def _options(said: Said, seed: Tables, key: Any, *, by_group: bool) -> None:
    config = _at(seed[key], "config")
    for theirs, own in SIDES.items():
        if theirs in config and own not in config:
            config[own] = config.pop(theirs)
            said.add(f"{theirs} is {own}", SEED, key)
    for option in REQUEST_KEYS:
        if isinstance(config.get(option), str | int | float):
            config[option] = [config[option]]
            said.add("a list of one option", SEED, key, option)
    given = [side for side in ("input", "output") if f"{side}_multiplier" in config]
    if given and "name" not in config and not by_group:
        config["name"] = ["both" if len(given) == 2 else f"{given[0]}_only"]
        said.add("the sides that have multipliers, where nothing is said", SEED, key, "name")
    if config.get("name") == ["input_only"] and not config.keys() & {*REQUEST_KEYS[1:]}:
        del seed[key]
        said.add("left out, an input without multipliers follows the layer before it", SEED, key)


def fitted(config: SearchConfig, channels: Channels) -> SearchConfig:
    """Returns a configuration without what follows from its network, once that is checked.

    Raises:
        LabkitError: What it says of the network is wrong, or it is to be read strictly.
    """
    table, said, seed = config.search.search_space, Said(), {}
    if not _is_ours(table.name):
        return config
    of = {name: operator_name(module) for name, module in channels.layers.items()}
    scaled = {*channels.scalable(None)}
    scaled |= {name for group in channels.free for name in (group.name, *group.writers)}
    by_type = table.setup.get("by") == "type"
    for key, entry in table.seed.items():
        own = _at(entry, "config") if isinstance(entry, dict) else {}
        layer = next((name for name, path in channels.paths.items() if key in (name, path)), None)
        claims = [option for option in own if option in (*PARENTS, *SIZES)]
        for claim in claims:
            if layer is not None and not by_type:
                _check(f"{SEED}.{key}.config.{claim}", claim, own[claim], layer, channels)
            said.add("left out, it follows from the network", SEED, key, claim)
        means = {name for name in of if of[name] == key} if by_type else {layer} - {None}
        if means and not means & scaled:
            said.add("left out, it follows the layers before it", SEED, key)
        elif not means and not by_type and key in of.values():
            said.add("left out, since by = 'name' and no layer is called so", SEED, key)
        else:
            rest = {option: values for option, values in own.items() if option not in claims}
            seed[key] = {"config": rest} if claims else entry
    said.tell(config.strict)
    search = config.search.model_copy(
        update={"search_space": table.model_copy(update={"seed": seed})}
    )
    return config.model_copy(update={"search": search}) if said else config


def _check(where: str, claim: str, given: Any, layer: str, channels: Channels) -> None:
    """Checks what a configuration says of a layer.

    Raises:
        LabkitError: It is otherwise.
    """
    values = given if isinstance(given, list) else [given]
    if claim in PARENTS:
        known = _before(layer, channels)
        right = {*map(str, values)} <= {*known, *(channels.paths.get(name, "") for name in known)}
        expected = f"one of {', '.join(known)}, which {layer} reads"
    else:
        size = getattr(channels.layers[layer], claim, None)
        right, expected = size is None or values == [size], f"{size}, as the network has"
    if not right:
        raise LabkitError(f"{where}: expected {expected}, got {shown(given)}")


def _before(layer: str, channels: Channels) -> list[str]:
    """Returns what a layer reads, back to the first layers that have channels of their own."""
    found: dict[str, None] = {}
    nodes = [channels.calls[layer][0]]
    while nodes:
        for node in nodes.pop().all_input_nodes:
            if node.name not in found and node.op != "placeholder":
                found[node.name] = None
                nodes += [] if node.name in channels.scalable(None) else [node]
    return [*found]
