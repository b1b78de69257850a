"""What a configuration asks of a network: the widths of its channel groups.

The configuration is the report's: `by` (`"name"` or `"type"`), a required `default`, and any number
of layers or operators, each `{"config": {"name": N, "channel_multiplier": k, …}}`.
"""

from __future__ import annotations

import functools
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import nn

from labkit.errors import LabkitError, did_you_mean, shown
from labkit.transform.channels import find_channels
from labkit.transform.graph import Example, operator_name
from labkit.transform.groups import ChannelGroup, Channels, Part, Side

# The sides of a layer that each request name writes, in the order in which it writes them.
SIDES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "NA": (),
    "output_only": ("output",),
    "input_only": ("input",),
    "both": ("input", "output"),
}
REQUEST_KEYS = ("name", "channel_multiplier", "input_multiplier", "output_multiplier")
# A wider layer is a slip of the keyboard; without a bound it would end as an allocation error.
MAX_WIDTH = 2**20

PassConfig = Mapping[str, Any]


class SkippedRequest(UserWarning):
    """A request to change a width that cannot change was skipped."""


@dataclass(frozen=True)
class Plan:
    """The width of every channel group that can change: what a candidate network *is*.

    Two configurations that resolve to equal plans give the same network.

    Attributes:
        widths: (group name, width) of every free group, in graph order.
    """

    widths: tuple[tuple[str, int], ...]

    def to_dict(self) -> dict[str, int]:
        """Returns group name → width."""
        return dict(self.widths)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {width}" for name, width in self.widths)


@dataclass(frozen=True)
class Resolution:
    """A plan, and how a configuration came to it.

    Attributes:
        plan: The widths.
        decided_by: group name → the request that had the last word, e.g.
            `"seq_blocks_4 input × 2"`. Groups that no request named are missing.
        skipped: A sentence for each request that a fixed width refused.
    """

    plan: Plan
    decided_by: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def widths_of(channels: Channels, plan: Plan | Resolution | None) -> dict[str, int]:
    """Returns group name → width of every free group of a network.

    Args:
        channels: The network's channel groups.
        plan: A plan for this network; `None` leaves it as it is.

    Raises:
        LabkitError: The plan names other groups than the network has, or a width that its group
            cannot have.
    """
    own = {group.name: group for group in channels.free}
    if plan is None:
        return {name: group.width for name, group in own.items()}
    plan = plan.plan if isinstance(plan, Resolution) else plan
    if not isinstance(plan, Plan):
        raise LabkitError(f"plan: expected a Plan, got {shown(plan)}")
    widths = plan.to_dict()
    if widths.keys() != own.keys():
        wrong = ", ".join(sorted(map(str, widths.keys() ^ own.keys())))
        raise LabkitError(f"plan: it is for another network; these groups differ: {wrong}")
    for name, group in own.items():
        width, multiple = widths[name], group.multiple
        whole = isinstance(width, int) and not isinstance(width, bool)
        if not whole or not 0 < width <= MAX_WIDTH or width % multiple:
            raise LabkitError(
                f"plan: {name}: expected a positive multiple of {multiple}, at most {MAX_WIDTH}, "
                f"got {shown(width)}"
            )
    return widths


@dataclass(frozen=True)
class _Request:
    """A wish for one side of one layer, or for a group of channels."""

    layer: str  # its fx name, or the name of the group
    side: str  # "input" or "output"
    multiplier: float
    named: bool  # by the configuration, which does not just name its type or all others

    def __str__(self) -> str:
        return f"{self.layer} {self.side} × {self.multiplier:g}"

    def side_of(self, channels: Channels) -> Side:
        """Returns the channels that it asks for."""
        sides = channels.inputs if self.side == "input" else channels.outputs
        if self.layer in sides:
            return sides[self.layer]
        group = next(group for group in channels.groups if group.name == self.layer)
        return Side((Part(group, group.multiple, ordered=True),))


def _check_multiplier(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise LabkitError(f"{where}: expected a number, got {shown(value)}")
    if not value <= MAX_WIDTH or value <= 0:  # NaN is neither
        expected = f"expected a positive number, at most {MAX_WIDTH}"
        raise LabkitError(f"{where}: {expected}, got {shown(value)}")
    return float(value)


def _check_request(key: str, entry: object) -> dict[str, Any]:
    """Returns the `config` table of one entry of a pass configuration, checked."""
    if not isinstance(entry, Mapping) or set(entry) != {"config"}:
        raise LabkitError(f'{key}: expected {{"config": {{…}}}}, got {shown(entry)}')
    config = entry["config"]
    if not isinstance(config, Mapping) or "name" not in config:
        raise LabkitError(
            f"{key}.config: expected a table with the key 'name', got {shown(config)}"
        )
    for option in config:
        if option not in REQUEST_KEYS:
            raise LabkitError(
                f"{key}.config.{option}: unknown key; {did_you_mean(option, REQUEST_KEYS)}"
            )
    name = config["name"]
    if not isinstance(name, str | None) or name not in SIDES:
        raise LabkitError(
            f"{key}.config.name: expected one of {', '.join(map(str, SIDES))}; got {shown(name)}"
        )
    checked: dict[str, Any] = {"name": name}
    for option in REQUEST_KEYS[1:]:
        if option in config:
            checked[option] = _check_multiplier(f"{key}.config.{option}", config[option])
    for side in SIDES[name]:
        if f"{side}_multiplier" not in checked and "channel_multiplier" not in checked:
            raise LabkitError(
                f"{key}.config: {name!r} needs '{side}_multiplier' or 'channel_multiplier'"
            )
    return checked


def _requests(
    channels: Channels, pass_config: PassConfig, kinds: tuple[type[nn.Module], ...] | None
) -> Iterator[_Request]:
    """Yields what a configuration asks of each layer of some kinds, in graph order."""
    if not isinstance(pass_config, Mapping):
        raise LabkitError(f"pass configuration: expected a table, got {shown(pass_config)}")
    by = pass_config.get("by")
    if not isinstance(by, str) or by not in ("name", "type"):
        raise LabkitError(f"by: expected 'name' or 'type', got {shown(by)}")
    if "default" not in pass_config:
        raise LabkitError('default: missing; expected {"config": {"name": …}}')
    checked = {key: _check_request(key, v) for key, v in pass_config.items() if key != "by"}
    default = checked.pop("default")

    layers = channels.layers
    scalable = channels.scalable(kinds)
    operators = {name: operator_name(module) for name, module in layers.items()}
    can_be_scaled = sorted({operators[name] for name in scalable})
    named: dict[str, dict[str, Any]] = {}
    if by == "name":
        groups = {group.name for group in channels.free}
        for key, request in checked.items():
            name = key if key in groups else channels.find(key)
            if name in named:
                raise LabkitError(f"{key}: layer {name!r} is named twice")
            if name not in (*scalable, *groups) and SIDES[request["name"]]:
                raise LabkitError(
                    f"{key}: expected a layer that can be scaled ({', '.join(can_be_scaled)}), got "
                    f"a {type(layers[name]).__name__}; those are {', '.join(scalable)}"
                )
            named[name] = request
        wanted = {name: named.get(name, default) for name in dict.fromkeys([*scalable, *named])}
    else:
        for key, request in checked.items():
            if key not in operators.values():
                known = sorted(set(operators.values()))
                raise LabkitError(f"{key}: no such operator; {did_you_mean(key, known)}")
            if key not in can_be_scaled and SIDES[request["name"]]:
                raise LabkitError(
                    f"{key}: only the operators {', '.join(can_be_scaled)} can be scaled"
                )
        wanted = {name: checked.get(operators[name], default) for name in scalable}

    for name, request in wanted.items():
        for side in SIDES[request["name"]]:
            own = f"{side}_multiplier"
            multiplier = request[own if own in request else "channel_multiplier"]
            yield _Request(name, side, multiplier, name in named)


@functools.lru_cache(maxsize=1024)  # most configurations of a space ask the same
def _scaled(width: int, request: _Request) -> int:
    # The decimal that the user wrote, not its binary neighbour: 100 × 1.1 is 110, not 111.
    new_width = math.ceil(width * Fraction(str(request.multiplier)))
    if new_width > MAX_WIDTH:
        raise LabkitError(f"{request}: {new_width} channels; expected at most {MAX_WIDTH}")
    return new_width


def _kept(side: Side, request: _Request) -> set[ChannelGroup]:
    """Returns the groups that stay where a side has products of two, of which one is scaled."""
    kept: set[ChannelGroup] = set()
    for part in side.parts:
        if part.block is not None:
            heads, block = {part.group}, set(part.block.groups)
            uneven = [
                any(_scaled(g.n_units, request) != g.n_units * request.multiplier for g in factor)
                for factor in (heads, block)
            ]
            kept |= heads if uneven == [True, False] else block
    return kept


def resolve(
    model: nn.Module | Channels,
    pass_config: PassConfig,
    *,
    strict: bool = False,
    example_input: Example | None = None,
    kinds: tuple[type[nn.Module], ...] | None = None,
) -> Resolution:
    """Returns the widths that a configuration asks of a network; builds nothing.

    Layers are visited in graph order, those whose weights other code multiplies with last, and for
    `both` the input before the output; a later write to the same channels replaces an earlier one.
    A new width is ceil(original width × multiplier), rounded up to a multiple where the group has
    one. A side that is made of several groups scales each that can change; where it is heads times
    their width, the heads, or their width where only that gives a whole number.

    Args:
        model: The network, or its channel groups found before.
        pass_config: The report's configuration. Layers are named by fx name (`seq_blocks_2`) or
            path (`seq_blocks.2`), groups of channels by their names; with `by = "type"` an
            operator such as `linear` or `conv2d` means all of its layers.
        strict: Raise where a request would change a width that cannot change, instead of skipping
            it with a `SkippedRequest` warning.
        example_input: As `find_channels` takes it.
        kinds: The classes of layers that a configuration reaches; by default all that can be
            scaled.

    Raises:
        LabkitError: The configuration is wrong, or a layer that it names meets a node of which
            labkit does not know what it does to channels.
    """
    channels = find_channels(model, example_input)
    resolution = resolution_of(channels, pass_config, strict=strict, kinds=kinds)
    for sentence in resolution.skipped:
        warnings.warn(sentence, SkippedRequest, stacklevel=3)
    return resolution


def resolution_of(
    channels: Channels,
    pass_config: PassConfig,
    *,
    strict: bool = False,
    kinds: tuple[type[nn.Module], ...] | None = None,
) -> Resolution:
    """Returns what `resolve` does, without a warning: the resolution says what was skipped."""
    widths = {group.name: group.width for group in channels.free}
    decided_by: dict[str, str] = {}
    skipped: list[str] = []
    for request in _requests(channels, pass_config, kinds):
        side = request.side_of(channels)
        free = [group for group in side.groups if group.fixed is None]
        kept = _kept(side, request).intersection(free)
        widths |= {group.name: group.width for group in kept}
        for group in (group for group in free if group not in kept):
            widths[group.name] = group.multiple * _scaled(group.n_units, request)
            decided_by[group.name] = str(request)
            if widths[group.name] != _scaled(group.width, request):
                decided_by[group.name] += f", rounded up to a multiple of {group.multiple}"
        if free or _scaled(side.width, request) == side.width:
            continue
        group = next((group for group in side.groups if group.unknown), side.groups[0])
        reason = f"{side.width} because {group.fixed}"
        if strict or (group.unknown and request.named):
            raise LabkitError(f"{request}: the width must stay {reason}")
        skipped.append(f"{request}: skipped, the width stays {reason}")
    return Resolution(Plan(tuple(widths.items())), decided_by, tuple(skipped))
