"""The channel-multiplier pass: a configuration resolves to a plan of widths, which is applied.

The configuration is the report's: `by` (`"name"` or `"type"`), a required `default`, and any number
of layers or operators, each `{"config": {"name": N, "channel_multiplier": k, …}}`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from typing import Literal as OneOf

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from labkit.errors import LabkitError, did_you_mean
from labkit.transform.channels import (
    Channels,
    Literal,
    Part,
    Side,
    find_channels,
    has_widths,
)
from labkit.transform.graph import (
    SCALABLE_MODULES,
    Example,
    describe,
    find_layer,
    layer_nodes,
    operator_name,
    trace,
)
from labkit.transform.weights import copies, inexact, resize

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
Weights = OneOf["fresh", "keep"]


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
        inexact: Where weights were kept, a sentence for each reason why the wider network does not
            compute just what the given one does.
    """

    plan: Plan
    layers: dict[str, dict[str, Any]]
    inexact: tuple[str, ...] = ()

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
    """A wish for one side of one layer, or for a group of channels.

    Attributes:
        layer: Its fx name, or the name of the group.
        side: `"input"` or `"output"`.
        multiplier: New width / original width.
        named: Whether the configuration names the layer, and not just its type or all others.
    """

    layer: str
    side: str
    multiplier: float
    named: bool

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


def _requests(
    channels: Channels, pass_config: PassConfig, kinds: tuple[type[nn.Module], ...]
) -> Iterator[_Request]:
    """Yields what a configuration asks of each layer of some kinds, in graph order."""
    if not isinstance(pass_config, Mapping):
        raise LabkitError(f"pass configuration: expected a table, got {pass_config!r}")
    if pass_config.get("by") not in ("name", "type"):
        raise LabkitError(f"by: expected 'name' or 'type', got {pass_config.get('by')!r}")
    if "default" not in pass_config:
        raise LabkitError('default: missing; expected {"config": {"name": …}}')
    checked = {key: _check_request(key, v) for key, v in pass_config.items() if key != "by"}
    default = checked.pop("default")

    layers = channels.layers
    scalable = [name for name, module in layers.items() if isinstance(module, kinds)]
    operators = {name: operator_name(module) for name, module in layers.items()}
    can_be_scaled = sorted({operators[name] for name in scalable})
    named: dict[str, dict[str, Any]] = {}
    if pass_config["by"] == "name":
        groups = {group.name for group in channels.free}
        for key, request in checked.items():
            name = key if key in groups else find_layer(channels.traced, key).name
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


def resolve(
    model: nn.Module | Channels,
    pass_config: PassConfig,
    *,
    strict: bool = False,
    example_input: Example | None = None,
    kinds: tuple[type[nn.Module], ...] = SCALABLE_MODULES,
) -> Plan:
    """Returns the plan of widths that a configuration asks of a network; builds nothing.

    Layers are visited in graph order, and for `both` the input before the output; a later write to
    the same channels replaces an earlier one. A new width is ceil(original width × multiplier),
    rounded up to a multiple where the group has one. A side that is made of several groups scales
    each that can change.

    Args:
        model: The network, or its channel groups found before.
        pass_config: The report's configuration. Layers are named by fx name (`seq_blocks_2`) or
            path (`seq_blocks.2`), groups of channels by their names; with `by = "type"` an
            operator such as `linear` or `conv2d` means all of its layers.
        strict: Raise where a request would change a width that cannot change, instead of skipping
            it with a `SkippedRequest` warning.
        example_input: As `find_channels` takes it.
        kinds: The layers that a configuration reaches.

    Raises:
        LabkitError: The configuration is wrong, or a layer that it names meets a node of which
            labkit does not know what it does to channels.
    """
    channels = find_channels(model, example_input)
    widths = {group.name: group.width for group in channels.free}
    decided_by: dict[str, str] = {}
    skipped: list[str] = []
    for request in _requests(channels, pass_config, kinds):
        side = request.side_of(channels)
        wanted = _scaled(side.width, request)
        free = [group for group in side.groups if group.fixed is None]
        for group in free:
            widths[group.name] = group.multiple * _scaled(group.n_units, request)
            decided_by[group.name] = str(request)
            if widths[group.name] != _scaled(group.width, request):
                decided_by[group.name] += f", rounded up to a multiple of {group.multiple}"
        if not free and wanted != side.width:
            why = next((g for g in side.groups if g.unknown), side.groups[0])
            sentence = f"{request}: skipped, the width stays {side.width} because {why.fixed}"
            if strict or (why.unknown and request.named):
                raise LabkitError(
                    sentence.replace("skipped, the width stays", "the width must stay")
                )
            warnings.warn(sentence, SkippedRequest, stacklevel=3)
            skipped.append(sentence)
    return Plan(tuple(widths.items()), decided_by, tuple(skipped))


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    channels: Channels | None = None,
    example_input: Example | None = None,
    weights: Weights = "fresh",
    seed: int | None = None,
    noise: float = 0.0,
) -> nn.Module:
    """Returns a copy of the network with the widths of a plan.

    Layers whose width does not change keep their weights.

    Args:
        model: The network that the plan was resolved for; it is not changed.
        plan: A plan for this network.
        channels: The network's channel groups, if they were found before.
        example_input: As `find_channels` takes it.
        weights: `"fresh"`: layers whose width changes start as they would by themselves. `"keep"`:
            they carry their weights over, so that a wider network computes what it did; see
            `labkit.transform.weights`.
        seed: Of fresh weights and of noise; by default PyTorch's own generator draws them.
        noise: With `"keep"`, added to the weights that write a copied channel, so that training can
            tell it from its original: a share of their standard deviation.

    Returns:
        A network of the same class; a `GraphModule` where a size that its code has as a number, as
        in `view(-1, 512 * 4 * 4)`, had to follow a width.

    Raises:
        LabkitError: The plan names other channel groups than the network has, or a width that its
            group cannot have.
    """
    if weights not in ("fresh", "keep"):
        raise LabkitError(f"weights: expected 'fresh' or 'keep', got {weights!r}")
    channels = find_channels(model, example_input) if channels is None else channels
    widths = plan.to_dict()
    names = {group.name for group in channels.free}
    if widths.keys() != names:
        wrong = ", ".join(sorted(widths.keys() ^ names))
        raise LabkitError(f"plan: it is for another network; these groups differ: {wrong}")
    for group in channels.free:
        if widths[group.name] < 1 or widths[group.name] % group.multiple:
            raise LabkitError(
                f"plan: {group.name}: expected a positive multiple of {group.multiple}, "
                f"got {widths[group.name]}"
            )
    keep = weights == "keep"
    chosen = copies(channels, widths, model if keep else None)
    new_model = copy.deepcopy(model)
    done = set()  # a shared module is called more than once
    with _seeded(seed):
        for node, module in layer_nodes(channels.traced):
            if not has_widths(module) or module in done:
                continue
            done.add(module)
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            if any(group.name in chosen for group in before.groups + after.groups):
                layer = new_model.get_submodule(str(node.target))
                resize(layer, before, after, chosen, keep=keep, noise=noise if keep else 0.0)
    return _with_literals(new_model, channels, widths) if chosen else new_model


def _with_literals(model: nn.Module, channels: Channels, widths: Mapping[str, int]) -> nn.Module:
    """Returns the resized network with the numbers in its code that the widths ask for."""
    # Also those that stay as they are: half of another width may be what the code computes.
    wanted = {
        (literal.node, literal.path): _value(literal, widths) for literal in channels.literals
    }
    if not wanted:
        return model
    try:  # code that reads its sizes off a tensor has them right by itself
        own = {node.name: node for node in trace(model, channels.example_input).graph.nodes}
        if all(
            node in own and _same(_at(own[node], path), value)
            for (node, path), value in wanted.items()
        ):
            return model
    except LabkitError:
        pass
    graph = copy.deepcopy(channels.traced.graph)
    for node in graph.nodes:
        if node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
            raise LabkitError(
                f"model: {describe(node, model)} keeps the mode in which it was traced where "
                "numbers in the code have to follow the widths; use nn.Dropout"
            )
        for (name, path), value in wanted.items():
            if node.name == name:
                arguments = {"args": node.args, "kwargs": node.kwargs}
                replaced = _replaced(arguments, path, value)
                node.args, node.kwargs = replaced["args"], replaced["kwargs"]
    return GraphModule(model, graph, class_name=type(model).__name__)


def _value(literal: Literal, widths: Mapping[str, int]) -> Any:
    if isinstance(literal.value, Side):
        return literal.value.width_in(widths)
    return [side.width_in(widths) for side in literal.value]


def _at(node: Node, path: tuple[str | int, ...]) -> Any:
    """Returns what stands at a path of a call's arguments, `None` where nothing does."""
    value: Any = {"args": node.args, "kwargs": node.kwargs}
    for key in path:
        try:
            value = getattr(value, str(key)) if isinstance(value, slice) else value[key]
        except (IndexError, KeyError, TypeError):
            return None
    return value


def _same(given: Any, wanted: Any) -> bool:
    """Whether a size, or a list of sizes that one number may stand for, is what it should be."""
    if isinstance(wanted, list) and isinstance(given, int):
        return all(size == given for size in wanted)
    return bool(given == wanted)


def _replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Returns arguments with what stands at a path replaced."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop, str(key): new}
        return slice(bounds["start"], bounds["stop"], value.step)
    inner = _replaced(value[key], tuple(rest), new)
    if isinstance(value, Mapping):
        return {**value, key: inner}
    return type(value)(inner if i == key else item for i, item in enumerate(value))


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draws from a seed, and leaves PyTorch's generator as it was; `None` draws from that one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Gives every layer the weights that PyTorch starts it with, from a seed; in place.

    Args:
        model: The network; modules without `reset_parameters` keep the weights that they have.
        seed: The same network and seed always give the same weights.

    Returns:
        The same network.
    """
    with _seeded(seed):
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return model


def channel_multiplier_transform_pass(
    model: nn.Module,
    pass_config: PassConfig,
    *,
    example_input: Example,
    weights: Weights = "fresh",
    seed: int | None = None,
    noise: float = 0.0,
    strict: bool = False,
) -> tuple[nn.Module, TransformInfo]:
    """Scales the channels of a network's layers, and of everything that must follow.

    Widths spread along the dataflow: see `find_channels` for what is known. The widths of the
    network's input and output are fixed.

    Args:
        model: An `nn.Module` that torch.fx can trace; it is not changed.
        pass_config: The report's configuration; see `resolve`.
        example_input: `[batch, …]`, or one such tensor for each input; only shapes matter.
        weights: As `apply` takes it.
        seed: As there.
        noise: As there.
        strict: Raise where a request cannot be met, instead of skipping it with a warning, and
            where a wider network with kept weights cannot compute just what it did.

    Returns:
        The new network (see `apply`), and what was done to each layer.

    Raises:
        LabkitError: See `resolve` and `apply`; nothing is built then.
    """
    channels = find_channels(model, example_input)
    plan = resolve(channels, pass_config, strict=strict)
    reasons: tuple[str, ...] = ()
    if weights == "keep":
        reasons = tuple(inexact(channels, plan.to_dict()))
        if strict and reasons:
            raise LabkitError(f"weights: they cannot be kept exactly: {'; '.join(reasons)}")
    new_model = apply(model, plan, channels=channels, weights=weights, seed=seed, noise=noise)
    return new_model, _info(channels, plan, reasons)


def linear_multiplier_transform_pass(
    model: nn.Module,
    pass_config: PassConfig,
    *,
    example_input: Example | None = None,
    strict: bool = False,
) -> tuple[nn.Module, TransformInfo]:
    """Scales the channels of linear layers: `channel_multiplier_transform_pass` for these alone.

    Args:
        model: As there.
        pass_config: The report's configuration; it reaches linear layers only.
        example_input: As there; by default read off the first layer, where that is linear.
        strict: As there.

    Returns:
        As there; fresh weights where a width changes.

    Raises:
        LabkitError: See `resolve`; nothing is built then.
    """
    channels = find_channels(model, example_input)
    plan = resolve(channels, pass_config, strict=strict, kinds=(nn.Linear,))
    return apply(model, plan, channels=channels), _info(channels, plan)


def _info(channels: Channels, plan: Plan, reasons: tuple[str, ...] = ()) -> TransformInfo:
    widths = plan.to_dict()

    def decided_by(side: Side) -> str | None:
        decisions = (plan.decided_by.get(group.name) for group in side.groups)
        return "; ".join(dict.fromkeys(filter(None, decisions))) or None

    layers = {}
    for node, module in layer_nodes(channels.traced):
        if node.name in channels.inputs:
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            layers[node.name] = {
                "type": type(module).__name__,
                "in": before.width,
                "new_in": before.width_in(widths),
                "out": after.width,
                "new_out": after.width_in(widths),
                "in_decided_by": decided_by(before),
                "out_decided_by": decided_by(after),
            }
    return TransformInfo(plan, layers, reasons)
