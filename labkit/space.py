"""Search spaces: flattened choices, and how a sampled index for each becomes a network."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from optuna.distributions import BaseDistribution, IntDistribution
from torch import nn

from labkit.channels import find_channels
from labkit.errors import LabkitError, did_you_mean
from labkit.graph import Example, find_layer, layer_nodes, operator_name
from labkit.multiplier import REQUEST_KEYS, SIDES, Plan, SkippedRequest, resolve

SPACES: dict[str, type[SearchSpaceBase]] = {}
MAX_ENUMERATED = 20_000  # configurations; a few seconds


def register_space(name: str) -> Callable[[type[SearchSpaceBase]], type[SearchSpaceBase]]:
    """Returns a class decorator that makes a search space known by name."""

    def register(space: type[SearchSpaceBase]) -> type[SearchSpaceBase]:
        SPACES[name] = space
        space.name = name
        return space

    return register


def get_space(name: str) -> type[SearchSpaceBase]:
    """Returns the class of a search space.

    Raises:
        LabkitError: No space has that name.
    """
    if name not in SPACES:
        raise LabkitError(
            f"search.search_space.name: unknown space {name!r}; {did_you_mean(name, SPACES)}"
        )
    return SPACES[name]


class SearchSpaceBase(ABC):
    """A finite space of pass configurations.

    A subclass says which choices there are; everything else follows.

    Args:
        model: The network to transform.
        setup: The table `[search.search_space.setup]`.
        seed: The table `[search.search_space.seed]`.
        example_input: As `labkit.channels.find_channels` takes it.

    Attributes:
        channels: The network's channel groups.
        choices: Flattened key, such as `seq_blocks_5/config/input_multiplier` → the options.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        setup: Mapping[str, Any],
        seed: Mapping[str, Any],
        example_input: Example | None = None,
    ):
        self.channels = find_channels(model, example_input)
        self.choices = self.build_choices(setup, seed)

    @abstractmethod
    def build_choices(
        self, setup: Mapping[str, Any], seed: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """Returns the flattened choices.

        Raises:
            LabkitError: The tables are wrong.
        """

    @abstractmethod
    def resolve(self, pass_config: Mapping[str, Any]) -> Plan:
        """Returns the plan of a pass configuration of this space."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna: an index for each key with more than one option.

        Indices, not options: the lists are usually ordered, which TPE and QMC make use of.
        """
        return {
            key: IntDistribution(0, len(options) - 1)
            for key, options in self.choices.items()
            if len(options) > 1
        }

    def sampled_config(self, indices: Mapping[str, int]) -> dict[str, Any]:
        """Returns the nested pass configuration for an index a key; a missing one is 0."""
        nested: dict[str, Any] = {"by": "name", "default": {"config": {"name": "NA"}}}
        for key, options in self.choices.items():
            layer, table, option = key.split("/")
            request = nested.setdefault(layer, {}).setdefault(table, {})
            request[option] = options[indices.get(key, 0)]
        return nested

    @property
    def n_configurations(self) -> int:
        """How many configurations the space has."""
        return math.prod(len(options) for options in self.choices.values())


class Count(NamedTuple):
    """How large a space is.

    Attributes:
        configurations: How many configurations it has.
        networks: How many different networks, or at most how many.
        exact: Whether `networks` was counted; otherwise it is an upper bound.
    """

    configurations: int
    networks: int
    exact: bool

    def __str__(self) -> str:
        bound = "" if self.exact else "at most "
        return f"{self.configurations:,} configurations, {bound}{self.networks:,} networks"


@functools.lru_cache(maxsize=1)  # the search lists them, and so does whoever counts its space
def networks(space: SearchSpaceBase) -> dict[Plan, dict[str, int]]:
    """Returns every different network of a space, with the indices of its first configuration.

    Raises:
        LabkitError: The space has more than `MAX_ENUMERATED` configurations.
    """
    if space.n_configurations > MAX_ENUMERATED:
        raise LabkitError(
            f"search.search_space: {space.n_configurations:,} configurations are too many to "
            f"enumerate; expected at most {MAX_ENUMERATED:,}"
        )
    keys = list(space.distributions)
    found: dict[Plan, dict[str, int]] = {}
    for indices in itertools.product(*(range(len(space.choices[key])) for key in keys)):
        chosen = dict(zip(keys, indices))
        found.setdefault(space.resolve(space.sampled_config(chosen)), chosen)
    return found


def count(space: SearchSpaceBase) -> Count:
    """Returns how many configurations and different networks a space has.

    Networks are counted while the space has at most `MAX_ENUMERATED` configurations. Beyond, their
    number is bounded by the product, over channel groups, of the widths that some layer can give.
    """
    configurations = space.n_configurations
    if configurations <= MAX_ENUMERATED:
        return Count(configurations, len(networks(space)), True)
    widths = {group.name: {group.width} for group in space.channels.free}
    by_layer: dict[str, list[str]] = {}
    for key in space.choices:
        by_layer.setdefault(key.split("/")[0], []).append(key)
    for layer, keys in by_layer.items():
        for indices in itertools.product(*(range(len(space.choices[key])) for key in keys)):
            whole = space.sampled_config(dict(zip(keys, indices)))
            alone = {key: whole[key] for key in ("by", "default", layer)}
            for name, width in space.resolve(alone).widths:
                widths[name].add(width)
    bound = math.prod(len(options) for options in widths.values())
    return Count(configurations, min(bound, configurations), False)


@register_space("transform/linear_channel_multiplier")
class LinearChannelMultiplierSpace(SearchSpaceBase):
    """The report's space: for each linear layer, which sides to scale and by how much.

    With `by = "name"` the seed lists options layer by layer; with `by = "type"` the key `linear`
    lists those that each linear layer chooses from by itself. `default` covers all other linear
    layers.
    """

    def build_choices(
        self, setup: Mapping[str, Any], seed: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        if (by := setup.get("by")) not in ("name", "type"):
            raise LabkitError(
                f"search.search_space.setup.by: expected 'name' or 'type', got {by!r}"
            )
        where = "search.search_space.seed"
        if "default" not in seed:
            raise LabkitError(f"{where}.default: missing; expected the options of other layers")
        options = {key: _check_options(f"{where}.{key}", entry) for key, entry in seed.items()}
        default = options.pop("default")
        layers = {node.name: module for node, module in layer_nodes(self.channels.traced)}
        linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
        if by == "type":
            operators = {operator_name(module) for module in layers.values()} | {"linear"}
            for key in options:
                if key not in operators:
                    raise LabkitError(
                        f"{where}.{key}: no such operator; {did_you_mean(key, operators)}"
                    )
            chosen = {name: options.get("linear", default) for name in linear}
        else:
            chosen = dict.fromkeys(linear, default)
            for key, named in options.items():
                chosen[find_layer(self.channels.traced, key).name] = named
        choices = {
            f"{layer}/config/{option}": values
            for layer, request in chosen.items()
            for option, values in request.items()
        }
        self._check_every_option(chosen)
        return choices

    def _check_every_option(self, chosen: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Resolves a configuration for each option, so that mistakes show before a search."""
        for layer, request in chosen.items():
            for option, values in request.items():
                for value in values:
                    config = {key: options[0] for key, options in request.items()}
                    self.resolve(
                        {
                            "by": "name",
                            "default": {"config": {"name": "NA"}},
                            layer: {"config": {**config, option: value}},
                        }
                    )

    def resolve(self, pass_config: Mapping[str, Any]) -> Plan:
        with warnings.catch_warnings():
            # A search asks thousands of times; the plan itself says what was skipped.
            warnings.simplefilter("ignore", SkippedRequest)
            return resolve(self.channels, pass_config)


def _check_options(where: str, entry: object) -> dict[str, list[Any]]:
    if not isinstance(entry, Mapping) or set(entry) != {"config"}:
        raise LabkitError(f"{where}: expected one table 'config', got {entry!r}")
    request = entry["config"]
    if not isinstance(request, Mapping) or "name" not in request:
        raise LabkitError(f"{where}.config: expected a table with the key 'name', got {request!r}")
    for option, values in request.items():
        if option not in REQUEST_KEYS:
            raise LabkitError(
                f"{where}.config.{option}: unknown key; {did_you_mean(option, REQUEST_KEYS)}"
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise LabkitError(
                f"{where}.config.{option}: expected a list of options, got {values!r}"
            )
        if len(set(map(repr, values))) < len(values):
            raise LabkitError(f"{where}.config.{option}: an option is listed twice in {values!r}")
    for value in request["name"]:
        if value not in SIDES:
            raise LabkitError(
                f"{where}.config.name: expected {', '.join(map(str, SIDES))}; got {value!r}"
            )
    return {option: list(values) for option, values in request.items()}
