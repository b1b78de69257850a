"""Configurations as others write them, and how labkit reads them.

Many have given the reference a space of channel multipliers, each with words of its own for the
same. What can be meant in one way only is read so, and said in a line; what contradicts the network
is an error, and so is a word that is in no dialect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from labkit.errors import LabkitError, in_words, shown
from labkit.study.record import Sampler
from labkit.study.space import SPACES, SearchSpaceBase
from labkit.transform import Channels
from labkit.transform.graph import operator_name
from labkit.transform.plan import REQUEST_KEYS

if TYPE_CHECKING:
    from labkit.study.config import SearchConfig

log = logging.getLogger(__name__)

Tables = dict[str, Any]
SEED = "search.search_space.seed"
# Of the reference's other commands and its trainer: a search takes nothing from them.
ELSEWHERE = {
    "passes", "transform", "hardware", "testbench", "log_every_n_steps", "log_level", "report_to",
    "to_debug", "num_workers", "num_devices", "num_nodes", "project_dir", "training_optimizer",
    "trainer_precision", "weight_decay", "max_steps", "quant_config",
}  # fmt: skip
SPELLINGS = {"brute": "bruteforce", "nsga2": "nsgaii", "nsga3": "nsgaiii"}
SIDES = {f"channel_multiplier_{side}": f"{side}_multiplier" for side in ("input", "output")}
PARENTS = ("parent", "parent_block_name")
SIZES = ("in_features", "out_features", "num_features", "in_channels", "out_channels")
OURS, BY_GROUP = "transform/layer_channel_multiplier", "transform/channel_multiplier"


def tell(said: Iterable[str], strict: bool) -> None:
    """Logs what was read differently; or raises an error, where nothing may be."""
    for line in said:
        if strict:
            raise LabkitError(f"strict: {line}")
        log.warning("%s", line)


def translated(source: Mapping[str, Any], base: Path) -> tuple[Tables, list[str]]:
    """Returns tables in labkit's words, as far as no network is needed, and what there is to say.

    Files are relative to `base`.
    """
    with in_words("config: expected tables"):
        tables: Tables = _copied(source)
    said = [f"{key}: left out, it is no part of a search" for key in tables if key in ELSEWHERE]
    tables = {key: value for key, value in tables.items() if key not in ELSEWHERE}
    strategy = _at(tables, "search", "strategy")
    _runners(said, tables, strategy, base)
    sampler = (setup := _at(strategy, "setup")).get("sampler")
    plain = re.sub("[-_ ]", "", str(sampler).lower())
    for name in get_args(Sampler):
        if name != sampler and name.replace("-", "") == SPELLINGS.get(plain, plain):
            setup["sampler"] = name
            said.append(f"search.strategy.setup.sampler: {sampler!r} is {name!r}")
    _space(said, _at(tables, "search", "search_space"))
    if said and tables.get("accelerator") in ("cuda", "gpu") and not torch.cuda.is_available():
        tables["accelerator"] = "auto"
        said.append("accelerator: 'auto', since there is no CUDA here")
    return tables, said


def _copied(value: Any) -> Any:
    mapping = isinstance(value, Mapping)
    return {key: _copied(one) for key, one in value.items()} if mapping else value


def _at(tables: Any, *keys: str) -> Tables:
    """Returns the table at a place; an empty one where there is none."""
    for key in keys:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return tables if isinstance(tables, dict) else {}


def _runners(said: list[str], tables: Tables, strategy: Tables, base: Path) -> None:
    """Leaves out what is the same for all widths; trains, where weights are missing."""
    for place in ("hw_runner", "sw_runner", "metrics"):
        if _at(strategy, place).pop("average_bitwidth", None) is not None:
            where = f"search.strategy.{place}.average_bitwidth"
            said.append(f"{where}: left out, no objective: it is the same for all widths")
    software, name = _at(strategy, "sw_runner"), tables.get("load_name")
    keeps = _at(software, "basic_train").get("weights") == "keep"
    with in_words(f"load_name: cannot look for {shown(name)}"):
        if isinstance(name, str) and not keeps and not (base / Path(name).expanduser()).exists():
            del tables["load_name"]
            said.append(f"load_name: left out, there is no file {name!r}")
    if "basic_evaluation" in software and "load_name" not in tables:
        del software["basic_evaluation"]
        software.setdefault("basic_train", {})
        trains = "basic_train in its place: networks of other widths have no weights before"
        said.append(f"search.strategy.sw_runner.basic_evaluation: {trains}")


def _is_ours(name: object) -> bool:
    """Whether a space is one of labkit's, or of nobody: one of a user's own has its own tables."""
    kind = SPACES.get(name, SearchSpaceBase) if isinstance(name, str) and ":" not in name else None
    return kind is not None and kind.__module__.startswith("labkit.")


def _space(said: list[str], space: Tables) -> None:
    name, seed = space.get("name"), _at(space, "seed")
    lists = {*REQUEST_KEYS[1:], *SIDES}
    if not _is_ours(name) or not any(lists & _at(one, "config").keys() for one in seed.values()):
        return
    if not str(name).startswith("transform/"):
        space["name"] = OURS
        since = "since its seed lists channel multipliers"
        said.append(f"search.search_space.name: {name!r} is {OURS!r}, {since}")
    if isinstance(setup := space.setdefault("setup", {}), dict) and "by" not in setup:
        setup["by"] = "name"
        said.append("search.search_space.setup.by: 'name', where nothing is said")
    if name == BY_GROUP:
        return
    if "default" not in seed:
        seed["default"] = {"config": {"name": ["NA"]}}
        said.append(f"{SEED}.default: other layers stay as they are, where nothing is said")
    for key in [*seed]:
        config = _at(seed, key, "config")
        for theirs in [o for o, own in SIDES.items() if o in config and own not in config]:
            config[SIDES[theirs]] = config.pop(theirs)
            said.append(f"{SEED}.{key}.{theirs}: read as {SIDES[theirs]}")
        given = [option for option in SIDES.values() if option in config]
        if given and "name" not in config:
            config["name"] = ["both" if len(given) > 1 else given[0].replace("multiplier", "only")]
            said.append(f"{SEED}.{key}.name: {config['name']}, where nothing is said")
        if config.get("name") == ["input_only"] and not lists & config.keys():
            del seed[key]
            said.append(f"{SEED}.{key}: left out, without multipliers it follows what it reads")


def fitted(config: SearchConfig, channels: Channels) -> SearchConfig:
    """Returns a configuration without what follows from its network, once that is checked.

    Raises:
        LabkitError: What it says of the network is wrong, or it is to be read strictly.
    """
    table, said, seed = config.search.search_space, [], {}
    if not _is_ours(table.name):
        return config
    of = {name: operator_name(module) for name, module in channels.layers.items()}
    scaled = {*channels.scalable(None)}
    scaled |= {name for group in channels.free for name in (group.name, *group.writers)}
    by_type = table.setup.get("by") == "type"
    for key, entry in table.seed.items():
        layer = next((name for name, path in channels.paths.items() if key in (name, path)), None)
        means = [name for name in of if (of[name] == key if by_type else name == layer)]
        own = _at(entry, "config")
        claims = [option for option in own if option in (*PARENTS, *SIZES)]
        for claim in claims:
            for name in means:
                _check(f"{SEED}.{key}.config.{claim}", claim, own[claim], name, channels)
            said.append(f"{SEED}.{key}.{claim}: left out, it follows from the network")
        if means and not scaled.intersection(means):
            said.append(f"{SEED}.{key}: left out, it follows the layers before it")
        elif not means and not by_type and key in of.values():
            said.append(f"{SEED}.{key}: left out, since by = 'name' and no layer is called so")
        else:
            rest = {option: values for option, values in own.items() if option not in claims}
            seed[key] = {"config": rest} if claims else entry
    tell(said, config.strict)
    space = table.model_copy(update={"seed": seed})
    search = config.search.model_copy(update={"search_space": space})
    return config.model_copy(update={"search": search}) if said else config


def _check(where: str, claim: str, given: Any, layer: str, channels: Channels) -> None:
    """Checks what a configuration says of a layer."""
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
    found, nodes = dict[str, None](), [channels.calls[layer][0]] if layer in channels.calls else []
    while nodes:
        for node in nodes.pop().all_input_nodes:
            if node.name not in found and node.op != "placeholder":
                found[node.name] = None
                nodes += [] if node.name in channels.scalable(None) else [node]
    return [*found]
