"""A plan becomes a network: a copy of the one that it is for, with other widths.

The passes resolve a configuration to a plan first.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from typing import Literal as OneOf

import pandas as pd
import torch
from torch import nn

from labkit.checks import check_memory
from labkit.errors import LabkitError, shown
from labkit.operators.base import operator_of
from labkit.runtime import seeded
from labkit.table import Table, html_table
from labkit.transform.channels import find_channels
from labkit.transform.copying import copied
from labkit.transform.cost import cost_of
from labkit.transform.fitting import carry_tensor, fitted_to
from labkit.transform.graph import Example, rooted, unwrapped
from labkit.transform.groups import Channels, Side, copies, inexact
from labkit.transform.plan import PassConfig, Plan, Resolution, resolve, widths_of

Weights = OneOf["fresh", "keep"]
# What gives a module the weights that PyTorch starts it with; that of an attention comes last.
RESETS = ("reset_parameters", "_reset_parameters")


def apply(
    model: nn.Module,
    plan: Plan | Resolution,
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
            they carry their weights over, so that a wider network computes what it did; a narrower
            layer keeps the channels whose weights have the largest norm.
        seed: Of fresh weights and of noise; by default PyTorch's own generator draws them.
        noise: With `"keep"`, added to the weights that write a copied channel, so that training can
            tell it from its original: a share of their standard deviation.

    Returns:
        A network of the same class; a `GraphModule` where a size that its code has as a number, as
        in `view(-1, 512 * 4 * 4)`, and not as an attribute, had to follow a width.

    Raises:
        LabkitError: The plan names other channel groups than the network has, or a width that its
            group cannot have, or the network's code does not work with it.
    """
    channels = find_channels(model if channels is None else channels, example_input)
    return _applied(model, plan, channels, weights=weights, seed=seed, noise=noise)[0]


def _applied(
    model: nn.Module,
    plan: Plan | Resolution,
    channels: Channels,
    *,
    weights: Weights,
    seed: int | None,
    noise: float,
) -> tuple[nn.Module, list[str]]:
    """Returns what `apply` does, and why its code may not compute what it did."""
    if not isinstance(weights, str) or weights not in ("fresh", "keep"):
        raise LabkitError(f"weights: expected 'fresh' or 'keep', got {shown(weights)}")
    if not isinstance(noise, float | int) or not 0 <= noise < float("inf"):
        raise LabkitError(f"noise: expected a number from 0 on, got {shown(noise)}")
    model = unwrapped(model)
    root = rooted(model)
    widths = widths_of(channels, plan)
    growth = max((widths[group.name] / group.width for group in channels.free), default=1)
    if channels.n_parameters * growth**2 > 2**28:  # at most so many: only then is it worth the time
        check_memory("plan: its network", 4 * cost_of(channels, plan).parameters)
    keep = weights == "keep"
    chosen = copies(channels, widths, root if keep else None)
    new_root = copied(root, torch.clone)
    if chosen:
        _set_modes(new_root)
    resized: dict[str, nn.Module] = {}  # by path, since a shared module is called more than once
    with contextlib.nullcontext() if seed is None else seeded(seed):
        for node, module in channels.calls.values():
            operator, path = operator_of(module), str(node.target)
            if operator is None or operator.sides(module) is None or path in resized:
                continue
            before, after = channels.inputs[node.name], channels.outputs[node.name]
            if not any(group.name in chosen for group in before.groups + after.groups):
                continue
            layer = resized[path] = new_root.get_submodule(path)
            places = before.positions(chosen), after.positions(chosen)
            if operator.heads and (heads := after.heads_in(widths)):
                setattr(layer, operator.heads, heads)
            operator.carry(layer, *places, noise if keep else 0.0)
            if not keep:
                _reset(layer)
        for path, axes in channels.tensors.items():
            sides = [axis for axis in axes if isinstance(axis, Side)]
            if any(group.name in chosen for side in sides for group in side.groups):
                owner = resized[path] = carry_tensor(new_root, path, axes, chosen)
                if not keep and callable(reset := getattr(owner, RESETS[0], None)):
                    reset()
    for summed in channels.sums if keep else ():
        if any(group.name in chosen for group in summed.side.groups):
            summed.scale(new_root, channels, chosen)
    if not chosen:
        return (new_root if root is model else new_root[0]), []
    fitted, changes = fitted_to(new_root, channels, widths)
    reasons = []
    for change in dict.fromkeys(changes):
        scaled = next((each for each in channels.sums if change.node in each.scalers), None)
        if scaled is None or change.factor is None:
            reasons.append(change.reason)
        elif keep:
            scaled.scale(fitted, channels, chosen, change.factor)
    return (fitted if root is model else fitted.get_submodule("0")), reasons


def _set_modes(model: nn.Module) -> None:
    """Sets the modes that the modules are in; what was cached for old widths is cleared at that.

    As the network was traced in modes that were set, its code is known to work so.
    """
    modes = {module: module.training for module in model.modules()}
    for module, mode in modes.items():
        if type(module).train is not nn.Module.train:
            module.train(mode)
    for module, mode in modes.items():
        module.training = mode


def _reset(model: nn.Module) -> None:
    for name in RESETS:
        for module in model.modules():
            if callable(reset := getattr(module, name, None)):
                reset()


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Gives every layer the weights that PyTorch starts it with, from a seed; in place.

    Args:
        model: The network; modules without `reset_parameters` keep the weights that they have.
        seed: The same network and seed always give the same weights.

    Returns:
        The same network.
    """
    with seeded(seed):
        _reset(model)
    return model


@dataclass(frozen=True)
class TransformInfo:
    """What a transform did: one row a layer, and the requests that were skipped.

    Attributes:
        resolution: The plan that was applied, and how the configuration came to it.
        layers: fx name of each layer that has channels → its type, its widths before and after
            (`in`, `new_in`, `out`, `new_out`), and the request that decided each side
            (`in_decided_by`, `out_decided_by`; `None` where no request did).
        inexact: Where weights were kept, a sentence for each reason why the new network does not
            compute just what the given one does.
    """

    resolution: Resolution
    layers: dict[str, dict[str, Any]]
    inexact: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """The plan that was applied."""
        return self.resolution.plan

    @property
    def skipped(self) -> tuple[str, ...]:
        """A sentence for each request that a fixed width refused."""
        return self.resolution.skipped

    def to_frame(self) -> pd.DataFrame:
        """Returns the layers as a table, indexed by layer."""
        return Table.from_dict(self.layers, orient="index").rename_axis("layer")

    def _repr_html_(self) -> str:
        return html_table(self.to_frame())


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
    resolution = resolve(channels, pass_config, strict=strict)
    widths = resolution.plan.to_dict()
    new_model, by_code = _applied(
        model, resolution, channels, weights=weights, seed=seed, noise=noise
    )
    reasons: tuple[str, ...] = ()
    if weights == "keep":
        reasons = tuple(dict.fromkeys((*inexact(channels, widths), *by_code)))
        wider = all(widths[group.name] >= group.width for group in channels.free)
        if strict and wider and reasons:
            raise LabkitError(f"weights: they cannot be kept exactly: {'; '.join(reasons)}")
    return new_model, _info(channels, resolution, reasons)


def linear_multiplier_transform_pass(
    model: nn.Module,
    pass_config: PassConfig,
    *,
    example_input: Example | None = None,
    strict: bool = False,
) -> tuple[nn.Module, TransformInfo]:
    """Scales the channels of linear layers: `channel_multiplier_transform_pass` for these alone.

    It takes, returns and raises what that does; the example is by default read off the first layer,
    where that is linear, and weights are fresh where a width changes.
    """
    channels = find_channels(model, example_input)
    resolution = resolve(channels, pass_config, strict=strict, kinds=(nn.Linear,))
    return apply(model, resolution, channels=channels), _info(channels, resolution)


def _info(
    channels: Channels, resolution: Resolution, reasons: tuple[str, ...] = ()
) -> TransformInfo:
    widths = resolution.plan.to_dict()

    def decided_by(side: Side) -> str | None:
        decisions = (resolution.decided_by.get(group.name) for group in side.groups)
        return "; ".join(dict.fromkeys(filter(None, decisions))) or None

    layers = {}
    for name, module in channels.layers.items():
        if name in channels.inputs:
            before, after = channels.inputs[name], channels.outputs[name]
            layers[name] = {
                "type": type(module).__name__,
                "in": before.width,
                "new_in": before.width_in(widths),
                "out": after.width,
                "new_out": after.width_in(widths),
                "in_decided_by": decided_by(before),
                "out_decided_by": decided_by(after),
            }
    return TransformInfo(resolution, layers, reasons)
