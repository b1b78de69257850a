"""The channel-multiplier pass: a configuration resolves to a plan of widths, which is applied.

The configuration is the report's: `by` (`"name"` or `"type"`), a required `default`, and any number
of layers or operators, each `{"config": {"name": N, "channel_multiplier": k, …}}`.
"""

from __future__ import annotations

import copy
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pandas as pd
import torch
from torch import nn

from labkit.channels import ChannelGroup, Channels, find_channels
from labkit.errors import LabkitError, did_you_mean
from labkit.graph import find_layer, layer_nodes, operator_name

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

    Two configurations that resolve to equal plans give the same network. Only the widths take part
    in comparison and hashing.

    Attributes:
        widths: (group name, width) of every free group, in graph order.
        decided_by: group name → the request that had the last word, e.g.
            `"seq_blocks_4 input × 2"`. Groups that no request named are missing.
        skipped: A sentence for each request that a fixed width refused.
    """

    widths: tuple[tuple[str, int], ...]
    decided_by: Mapping[str, str] = field(default_factory=dict, compare=False)
    skipped: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, int]:
        """Returns group name → width."""
        return dict(self.widths)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {width}" for name, width in self.widths)


@dataclass(frozen=True)
class TransformInfo:
    """What a transform did: one row a layer, and the requests that were skipped.

    Attributes:
        plan: The plan that was applied.
        layers: fx name of each layer that has channels → its type, its widths before and after
            (`in`, `new_in`, `out`, `new_out`), and the request that decided each side
            (`in_decided_by`, `out_decided_by`; `None` where no request did).
    """

    plan: Plan
    layers: dict[str, dict[str, Any]]

    @property
    def skipped(self) -> tuple[str, ...]:
        """A sentence for each request that a fixed width refused."""
        return self.plan.skipped

    def to_frame(self) -> pd.DataFrame:
        """Returns the layers as a table, indexed by layer."""
        return pd.DataFrame.from_dict(self.layers, orient="index").rename_axis("layer")

    def _repr_html_(self) -> str:
        return self.to_frame().to_html()


@dataclass(frozen=True)
class _Request:
    """A wish for one side of one layer."""

    layer: str
    side: str
    multiplier: float

    def __str__(self) -> str:
        return f"{self.layer} {self.side} × {self.multiplier:g}"


def _check_multiplier(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise LabkitError(f"{where}: expected a number, got {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise LabkitError(f"{where}: expected a positive, finite number, got {value!r}")
    return float(value)


def _check_request(key: str, entry: object) -> dict[str, Any]:
    """Returns the `config` table of one entry of a pass configuration, checked."""
    if not isinstance(entry, Mapping) or set(entry) != {"config"}:
        raise LabkitError(f'{key}: expected {{"config": {{…}}}}, got {entry!r}')
    config = entry["config"]
    if not isinstance(config, Mapping) or "name" not in config:
        raise LabkitError(f"{key}.config: expected a table with the key 'name', got {config!r}")
    for option in config:
        if option not in REQUEST_KEYS:
            raise LabkitError(
                f"{key}.config.{option}: unknown key; {did_you_mean(option, REQUEST_KEYS)}"
            )
    name = config["name"]
    if not isinstance(name, str | None) or name not in SIDES:
        raise LabkitError(
            f"{key}.config.name: expected one of {', '.join(map(str, SIDES))}; got {name!r}"
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


def _requests(channels: Channels, pass_config: PassConfig) -> Iterator[_Request]:
    """Yields what a configuration asks of each linear layer, in graph order."""
    if not isinstance(pass_config, Mapping):
        raise LabkitError(f"pass configuration: expected a table, got {pass_config!r}")
    if pass_config.get("by") not in ("name", "type"):
        raise LabkitError(f"by: expected 'name' or 'type', got {pass_config.get('by')!r}")
    if "default" not in pass_config:
        raise LabkitError('default: missing; expected {"config": {"name": …}}')
    checked = {key: _check_request(key, v) for key, v in pass_config.items() if key != "by"}
    default = checked.pop("default")

    layers = {node.name: module for node, module in layer_nodes(channels.traced)}
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    if pass_config["by"] == "name":
        named: dict[str, dict[str, Any]] = {}
        for key, request in checked.items():
            name = find_layer(channels.traced, key).name
            if name in named:
                raise LabkitError(f"{key}: layer {name!r} is named twice")
            if name not in linear and SIDES[request["name"]]:
                raise LabkitError(
                    f"{key}: expected a linear layer, got a {type(layers[name]).__name__}; "
                    f"the linear layers are {', '.join(linear)}"
                )
            named[name] = request
    else:
        operators = {"linear"} | {operator_name(module) for module in layers.values()}
        for key, request in checked.items():
            if key not in operators:
                raise LabkitError(f"{key}: no such operator; {did_you_mean(key, operators)}")
            if key != "linear" and SIDES[request["name"]]:
                raise LabkitError(f"{key}: only the operator 'linear' can be scaled")
        named = {name: checked.get("linear", default) for name in linear}

    for name in linear:
        request = named.get(name, default)
        for side in SIDES[request["name"]]:
            own = f"{side}_multiplier"
            yield _Request(name, side, request[own if own in request else "channel_multiplier"])


def _scaled(group: ChannelGroup, request: _Request) -> int:
    # The decimal that the user wrote, not its binary neighbour: 100 × 1.1 is 110, not 111.
    width = math.ceil(group.width * Fraction(str(request.multiplier)))
    if width > MAX_WIDTH:
        raise LabkitError(f"{request}: {width} channels; expected at most {MAX_WIDTH}")
    return width


def resolve(model: nn.Module | Channels, pass_config: PassConfig, *, strict: bool = False) -> Plan:
    """Returns the plan of widths that a configuration asks of a network; builds nothing.

    Layers are visited in graph order, and for `both` the input before the output; a later write to
    the same channels replaces an earlier one. A new width is ceil(original width × multiplier).

    Args:
        model: The network, or its channel groups found before.
        pass_config: The report's configuration. Layers are named by fx name (`seq_blocks_2`) or
            path (`seq_blocks.2`); with `by = "type"` the operator `linear` means all of them.
        strict: Raise where a request would change a width that cannot change, instead of skipping
            it with a `SkippedRequest` warning.

    Raises:
        LabkitError: The configuration is wrong, or a request needs to know what a node that labkit
            does not know does to channels.
    """
    channels = find_channels(model)
    widths = {group.name: group.width for group in channels.free}
    decided_by: dict[str, str] = {}
    skipped: list[str] = []
    for request in _requests(channels, pass_config):
        sides = channels.inputs if request.side == "input" else channels.outputs
        group = sides[request.layer]
        width = _scaled(group, request)
        if group.fixed is None:
            widths[group.name] = width
            decided_by[group.name] = str(request)
        elif width != group.width:
            sentence = f"{request}: skipped, the width stays {group.width} because {group.fixed}"
            if strict or group.unknown:
                raise LabkitError(
                    sentence.replace("skipped, the width stays", "the width must stay")
                )
            warnings.warn(sentence, SkippedRequest, stacklevel=3)
            skipped.append(sentence)
    return Plan(tuple(widths.items()), decided_by, tuple(skipped))


def _resize(module: nn.Module, input_width: int, output_width: int) -> None:
    """Gives a layer new widths and fresh weights, keeping its options, device, dtype and mode."""
    match module:
        case nn.Linear():
            module.in_features, module.out_features = input_width, output_width
            shape: tuple[int, ...] = (output_width, input_width)
        case nn.BatchNorm1d():
            module.num_features = output_width
            shape = (output_width,)
        case nn.LayerNorm():
            module.normalized_shape = (output_width,)
            shape = (output_width,)
        case nn.PReLU():
            module.num_parameters = output_width
            shape = (output_width,)
        case _:
            return  # elementwise layers have no width of their own
    for name, parameter in list(module.named_parameters(recurse=False)):
        new = parameter.new_empty(shape if name == "weight" else shape[:1])
        setattr(module, name, nn.Parameter(new, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:  # running statistics, not the count of batches
            setattr(module, name, buffer.new_zeros(shape))
    module.reset_parameters()


def apply(model: nn.Module, plan: Plan, *, channels: Channels | None = None) -> nn.Module:
    """Returns a copy of the network with the widths of a plan.

    Layers whose width changes start with fresh weights; all others keep theirs.

    Args:
        model: The network that the plan was resolved for; it is not changed.
        plan: A plan for this network.
        channels: The network's channel groups, if they were found before.

    Raises:
        LabkitError: The plan names other channel groups than the network has.
    """
    channels = find_channels(model) if channels is None else channels
    widths = plan.to_dict()
    names = {group.name for group in channels.free}
    if widths.keys() != names:
        wrong = ", ".join(sorted(widths.keys() ^ names))
        raise LabkitError(f"plan: it is for another network; these groups differ: {wrong}")
    new_model = copy.deepcopy(model)
    for node, _ in layer_nodes(channels.traced):
        if node.name not in channels.inputs:
            continue
        before = channels.inputs[node.name], channels.outputs[node.name]
        after = [widths.get(group.name, group.width) for group in before]
        if after != [group.width for group in before]:
            _resize(new_model.get_submodule(str(node.target)), *after)
    return new_model


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Gives every layer the weights that PyTorch starts it with, from a seed; in place.

    Args:
        model: The network; modules without `reset_parameters` keep the weights that they have.
        seed: The same network and seed always give the same weights.

    Returns:
        The same network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return model


def linear_multiplier_transform_pass(
    model: nn.Module, pass_config: PassConfig, *, strict: bool = False
) -> tuple[nn.Module, TransformInfo]:
    """Scales the channels of linear layers, and of everything between them that must follow.

    Widths spread along the dataflow through BatchNorm, LayerNorm, Dropout, activations and anything
    elementwise, up to and including the neighbouring linear layers. The network's input and output
    widths are fixed. Tensors are taken to be `[batch, features]`.

    Args:
        model: An `nn.Module` or `GraphModule` that torch.fx can trace; it is not changed.
        pass_config: The report's configuration; see `resolve`.
        strict: Raise where a request cannot be met, instead of skipping it with a warning.

    Returns:
        The new network, of the same class as the given one, and what was done to each layer.

    Raises:
        LabkitError: See `resolve`; nothing is built then.
    """
    channels = find_channels(model)
    plan = resolve(channels, pass_config, strict=strict)
    return apply(model, plan, channels=channels), _info(channels, plan)


def _info(channels: Channels, plan: Plan) -> TransformInfo:
    widths = plan.to_dict()
    layers = {}
    for node, module in layer_nodes(channels.traced):
        if node.name in channels.inputs:
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            layers[node.name] = {
                "type": type(module).__name__,
                "in": before.width,
                "new_in": widths.get(before.name, before.width),
                "out": after.width,
                "new_out": widths.get(after.name, after.width),
                "in_decided_by": plan.decided_by.get(before.name),
                "out_decided_by": plan.decided_by.get(after.name),
            }
    return TransformInfo(plan, layers)
