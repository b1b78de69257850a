"""Search spaces: flattened choices, and how a sampled index for each becomes a network."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
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
DRAWN = 1_000  # networks of a space that is too large to look at all
UNCHANGED = {"by": "name", "default": {"config": {"name": "NA"}}}  # asks for nothing


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

    @property
    def original(self) -> Plan:
        """The network before the transform."""
        return Plan(tuple((group.name, group.width) for group in self.channels.free))

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
        nested: dict[str, Any] = copy.deepcopy(UNCHANGED)
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

    @property
    def enumerable(self) -> bool:
        """Whether it has at most `MAX_ENUMERATED` configurations."""
        return self.n_configurations <= MAX_ENUMERATED

    @functools.cached_property
    def networks(self) -> dict[Plan, dict[str, int]]:
        """Every different network, with the indices of its first configuration.

        Raises:
            LabkitError: The space has more than `MAX_ENUMERATED` configurations.
        """
        if not self.enumerable:
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

    def draw(self, rng: random.Random) -> dict[str, int]:
        """Returns indices drawn at random."""
        return {key: rng.randrange(len(self.choices[key])) for key in self.distributions}

    @functools.cached_property
    def sample(self) -> list[Plan]:
        """All networks; of a space that is too large, the smallest and some drawn at random."""
        if self.enumerable:
            return list(self.networks)
        rng = random.Random(0)
        smallest, _ = self.nearest(Plan(tuple((group.name, 1) for group in self.channels.free)))
        drawn = (self.resolve(self.sampled_config(self.draw(rng))) for _ in range(DRAWN))
        return list(dict.fromkeys([smallest, *drawn]))

    @functools.cached_property
    def by_layer(self) -> list[list[str]]:
        """The keys of `choices`, those of a layer together, in the network's order."""
        order = {name: i for i, name in enumerate(self.channels.layers)}
        keys = sorted(self.choices, key=lambda key: (order.get(key.split("/")[0], -1), key))
        return [list(of_one) for _, of_one in itertools.groupby(keys, lambda k: k.split("/")[0])]

    def nearest(self, plan: Plan) -> tuple[Plan, dict[str, int]]:
        """Returns the network of the space whose widths differ least from a plan's, by ratios.

        In a space that is too large to look at all, one that changing any one layer takes away
        from it.

        Returns:
            Its plan, and the indices of its configuration.
        """
        widths = plan.to_dict()

        def apart(other: Plan) -> float:
            return sum(abs(math.log(width / widths[name])) for name, width in other.widths)

        if self.enumerable:
            found = plan if plan in self.networks else min(self.networks, key=apart)
            return found, self.networks[found]
        indices = {key: _unchanged(self.choices[key]) for key in self.distributions}
        found, moved = self.resolve(self.sampled_config(indices)), True
        while moved and found != plan:
            moved = False
            for keys in self.by_layer:
                for options in itertools.product(*(range(len(self.choices[key])) for key in keys)):
                    other = indices | {k: i for k, i in zip(keys, options) if k in indices}
                    network = self.resolve(self.sampled_config(other))
                    if apart(network) < apart(found):
                        found, indices, moved = network, other, True
        return found, indices

    def check_searchable(self) -> None:
        """Checks that there is something to search.

        Raises:
            LabkitError: There is the original network only; the message says why.
        """
        if not self.enumerable or self.networks.keys() - {self.original}:
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


def _unchanged(options: list[Any]) -> int:
    """Returns the index of the option that leaves a layer as it is, or of the first."""
    return next((options.index(option) for option in (1, "NA", None) if option in options), 0)


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
    if space.enumerable:
        return Count(configurations, len(space.networks), True)
    widths = {group.name: {group.width} for group in space.channels.free}
    for keys in space.by_layer:
        for indices in itertools.product(*(range(len(space.choices[key])) for key in keys)):
            whole = space.sampled_config(dict(zip(keys, indices)))
            alone = {key: whole[key] for key in ("by", "default", keys[0].split("/")[0])}
            for name, width in space.resolve(alone).widths:
                widths[name].add(width)
    bound = math.prod(len(options) for options in widths.values())
    return Count(configurations, min(bound, configurations), False)
