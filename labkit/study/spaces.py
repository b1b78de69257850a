"""The spaces that labkit knows by name, and the checks of their tables."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import nn

from labkit.errors import LabkitError, did_you_mean, in_words, shown
from labkit.study.space import SearchSpaceBase, register_space
from labkit.transform import ChannelGroup, Plan, resolution_of
from labkit.transform.graph import operator_name
from labkit.transform.plan import REQUEST_KEYS, SIDES

SEED = "search.search_space.seed"
Options = TypeVar("Options")


class _LayerSpace(SearchSpaceBase):
    """For each layer of some kind, which sides to scale and by how much.

    With `by = "name"` the seed lists options layer by layer; with `by = "type"` the name of an
    operator, such as `linear`, lists those that each of its layers chooses from by itself.
    `default` covers all other layers of the kind.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...] | None]

    def build_choices(
        self, setup: Mapping[str, Any], seed: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        options = {key: _check_options(f"{SEED}.{key}", entry) for key, entry in seed.items()}
        default, by_type = _default(options), _by_type(setup)
        layers, scalable = self.channels.layers, self.channels.scalable(self.kinds)
        if by_type:
            _check_operators(options, [layers[name] for name in scalable])
            chosen = {name: options.get(operator_name(layers[name]), default) for name in scalable}
        else:
            chosen = dict.fromkeys(scalable, default)
        # Only a layer that is named may ask for what a node that labkit does not know fixes.
        chosen = {name: own for name, own in chosen.items() if not self._meets_unknown(name)}
        if not by_type:
            for key, named in options.items():
                chosen[self.channels.find(key)] = named
        choices = {
            f"{layer}/config/{option}": values
            for layer, request in chosen.items()
            for option, values in request.items()
        }
        self._check_every_option(chosen)
        return choices

    def _meets_unknown(self, layer: str) -> bool:
        sides = self.channels.inputs[layer], self.channels.outputs[layer]
        return any(group.unknown for side in sides for group in side.groups)

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
        return resolution_of(self.channels, pass_config, kinds=self.kinds).plan


@register_space("transform/linear_channel_multiplier")
class LinearChannelMultiplierSpace(_LayerSpace):
    """The report's space: linear layers, by name or by the operator `linear`."""

    kinds = (nn.Linear,)


@register_space("transform/conv2d_channel_multiplier")
class Conv2dChannelMultiplierSpace(_LayerSpace):
    """The report's space for 2D convolutions, by name or by the operator `conv2d`."""

    kinds = (nn.Conv2d,)


@register_space("transform/layer_channel_multiplier")
class LayerChannelMultiplierSpace(_LayerSpace):
    """The same for layers of every kind that has channels."""

    kinds = None


@register_space("transform/channel_multiplier")
class ChannelMultiplierSpace(SearchSpaceBase):
    """One choice for each channel group that can change: every configuration is a network.

    A table of the seed has one list, `config.channel_multiplier`. With `by = "name"` its key is the
    name of a group, of a layer that writes it, or a pattern such as `features_*`, of which a later
    one counts more and a full name most; with `by = "type"` it is the operator, such as `conv2d`,
    of the layer that writes the group first. `default` covers all other groups. Multipliers that
    give a group the same width are one option.
    """

    distinct = True

    def build_choices(
        self, setup: Mapping[str, Any], seed: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        lists = {key: _check_multipliers(f"{SEED}.{key}", entry) for key, entry in seed.items()}
        default, by_type = _default(lists), _by_type(setup)
        chosen = dict.fromkeys((group.name for group in self.channels.free), default)
        layers = self.channels.layers
        if by_type:
            _check_operators(lists, [layers[name] for name in self.channels.scalable(None)])
        # Patterns first: a full name has the last word.
        for key in sorted(lists, key=lambda key: not _is_pattern(key)):
            groups = [
                group.name
                for group in self.channels.free
                if (
                    any(operator_name(layers[writer]) == key for writer in group.writers[:1])
                    if by_type
                    else _names(key, group, self.channels.paths)
                )
            ]
            if not groups and not by_type:
                known = [group.name for group in self.channels.free]
                raise LabkitError(
                    f"{SEED}.{key}: no channel group that can change; {did_you_mean(key, known)}"
                )
            chosen |= dict.fromkeys(groups, lists[key])
        choices: dict[str, list[Any]] = {}
        for name, multipliers in chosen.items():
            by_width: dict[int, float] = {}
            for multiplier in multipliers:
                config = {"name": "output_only", "channel_multiplier": multiplier}
                plan = self.resolve(
                    {"by": "name", "default": {"config": {"name": "NA"}}, name: {"config": config}}
                )
                by_width.setdefault(plan.to_dict()[name], multiplier)
            choices[f"{name}/config/name"] = ["output_only"]
            choices[f"{name}/config/channel_multiplier"] = list(by_width.values())
        return choices

    def resolve(self, pass_config: Mapping[str, Any]) -> Plan:
        return resolution_of(self.channels, pass_config).plan


def _by_type(setup: Mapping[str, Any]) -> bool:
    by = setup.get("by")
    if not isinstance(by, str) or by not in ("name", "type"):
        expected = "expected 'name' or 'type'"
        raise LabkitError(f"search.search_space.setup.by: {expected}, got {shown(by)}")
    return by == "type"


def _default(options: dict[str, Options]) -> Options:
    if "default" not in options:
        raise LabkitError(f"{SEED}.default: missing; expected the options of other layers")
    return options.pop("default")


def _check_operators(keys: Iterable[str], modules: Iterable[nn.Module]) -> None:
    known = {operator_name(module) for module in modules}
    for key in keys:
        if key not in known:
            raise LabkitError(f"{SEED}.{key}: no such operator; {did_you_mean(key, known)}")


def _is_pattern(key: str) -> bool:
    return any(character in key for character in "*?")


def _names(key: str, group: ChannelGroup, paths: Mapping[str, str]) -> bool:
    """Whether a key means a group: by the name of it, or by that or the path of a layer."""
    names = [group.name, *group.writers, *(paths[writer] for writer in group.writers)]
    return key in names or (_is_pattern(key) and any(fnmatch.fnmatchcase(n, key) for n in names))


def _check_multipliers(where: str, entry: object) -> list[float]:
    options = _check_table(where, entry)
    if set(options) != {"channel_multiplier"}:
        raise LabkitError(
            f"{where}.config: expected the one key 'channel_multiplier', got {sorted(options)}"
        )
    return options["channel_multiplier"]


def _check_options(where: str, entry: object) -> dict[str, list[Any]]:
    options = _check_table(where, entry)
    if "name" not in options:
        raise LabkitError(
            f"{where}.config: expected a table with the key 'name', got {shown(options)}"
        )
    for value in options["name"]:
        if not isinstance(value, str | None) or value not in SIDES:
            raise LabkitError(
                f"{where}.config.name: expected {', '.join(map(str, SIDES))}; got {shown(value)}"
            )
    return options


def _check_table(where: str, entry: object) -> dict[str, list[Any]]:
    """Returns the table `config` of one entry of the seed: lists of options."""
    if not isinstance(entry, Mapping) or set(entry) != {"config"}:
        raise LabkitError(f"{where}: expected one table 'config', got {shown(entry)}")
    request = entry["config"]
    if not isinstance(request, Mapping):
        raise LabkitError(f"{where}.config: expected a table, got {shown(request)}")
    for option, values in request.items():
        if option not in REQUEST_KEYS:
            raise LabkitError(
                f"{where}.config.{option}: unknown key; {did_you_mean(option, REQUEST_KEYS)}"
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise LabkitError(
                f"{where}.config.{option}: expected a list of options, got {shown(values)}"
            )
        with in_words(f"{where}.config.{option}: expected options, got {shown(values)}"):
            if len(set(map(repr, values))) < len(values):
                raise LabkitError(
                    f"{where}.config.{option}: an option is listed twice in {shown(values)}"
                )
    return {option: list(values) for option, values in request.items()}
