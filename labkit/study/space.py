"""Search spaces: flattened choices, and how a sampled index for each becomes a network."""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from torch import nn

from labkit import names
from labkit.errors import LabkitError, shown
from labkit.transform.channels import find_channels
from labkit.transform.graph import Example
from labkit.transform.groups import Channels
from labkit.transform.plan import Plan

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

    Args:
        name: As it was registered, or `package.module:ClassName`.

    Raises:
        LabkitError: No space has that name.
    """
    key = "search.search_space.name"
    space = names.find(key, name, SPACES, "space")
    if not (isinstance(space, type) and issubclass(space, SearchSpaceBase)):
        raise LabkitError(f"{key}: expected {name!r} to be a SearchSpaceBase, got {space!r}")
    return space


class SearchSpaceBase(ABC):
    """A finite space of pass configurations.

    A subclass says which choices there are; everything else follows.

    Args:
        model: The network to transform, or its channel groups found before.
        setup: The table `[search.search_space.setup]`.
        seed: The table `[search.search_space.seed]`.
        example_input: As `labkit.transform.channels.find_channels` takes it.

    Attributes:
        channels: The network's channel groups.
        choices: Flattened key, such as `seq_blocks_5/config/input_multiplier` → the options.
    """

    name: ClassVar[str]
    distinct: ClassVar[bool] = False  # whether no two configurations give the same network

    def __init__(
        self,
        model: nn.Module | Channels,
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

    @functools.cached_property
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

    def labels(self, indices: Mapping[str, int]) -> dict[str, str]:
        """Returns the same choices in words, such as `×2`, as a study shows them."""
        return {key: _label(self.choices[key][index]) for key, index in indices.items()}

    @functools.cached_property
    def label_distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna: the choices in words."""
        return {
            key: CategoricalDistribution([_label(option) for option in self.choices[key]])
            for key in self.distributions
        }

    def indices(self, labels: Mapping[str, str]) -> dict[str, int]:
        """Returns the choices that `labels` put into words."""
        return {
            key: [_label(option) for option in self.choices[key]].index(label)
            for key, label in labels.items()
        }

    @property
    def n_configurations(self) -> int:
        """How many configurations the space has."""
        return math.prod(len(options) for options in self.choices.values())

    @functools.cached_property
    def networks(self) -> dict[Plan, dict[str, int]]:
        """Every different network, with the indices of its first configuration.

        Raises:
            LabkitError: The space has more than `MAX_ENUMERATED` configurations.
        """
        if self.n_configurations > MAX_ENUMERATED:
            raise LabkitError(
                f"search.search_space: {self.n_configurations:,} configurations are too many to "
                f"enumerate; expected at most {MAX_ENUMERATED:,}"
            )
        keys = list(self.distributions)
        found: dict[Plan, dict[str, int]] = {}
        for indices in itertools.product(*(range(len(self.choices[key])) for key in keys)):
            chosen = dict(zip(keys, indices))
            found.setdefault(self.resolve(self.sampled_config(chosen)), chosen)
        return found

    def check_searchable(self) -> None:
        """Checks that there is something to search.

        Raises:
            LabkitError: There is the original network only; the message says why.
        """
        original = Plan(tuple((group.name, group.width) for group in self.channels.free))
        if self.n_configurations > MAX_ENUMERATED or self.networks.keys() - {original}:
            return
        if not self.channels.free:
            reasons = dict.fromkeys(f"'{g.name}' because {g.fixed}" for g in self.channels.groups)
            why = f"no width can change: {'; '.join(itertools.islice(reasons, 5))}"
            why = why if reasons else "the network has no layers with channels"
        else:
            groups = ", ".join(group.name for group in self.channels.free[:5])
            why = f"every choice gives the same widths; offer several multipliers to {groups}"
        raise LabkitError(f"search.search_space: there is nothing to search, since {why}")


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


def _label(option: object) -> str:
    return str(option) if isinstance(option, str | None) else f"×{option}"


def count(space: SearchSpaceBase) -> Count:
    """Returns how many configurations and different networks a space has.

    Networks are counted while the space has at most `MAX_ENUMERATED` configurations. Beyond, their
    number is bounded by the product, over channel groups, of the widths that some layer can give.
    """
    if not isinstance(space, SearchSpaceBase):
        raise LabkitError(f"space: expected one of a search, got {shown(space)}")
    configurations = space.n_configurations
    if space.distinct:
        return Count(configurations, configurations, True)
    if configurations <= MAX_ENUMERATED:
        return Count(configurations, len(space.networks), True)
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
