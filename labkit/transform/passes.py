"""The channel-multiplier pass: a configuration is resolved to a plan, and the plan applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from labkit.errors import LabkitError
from labkit.transform.applying import Weights, apply, copies
from labkit.transform.channels import find_channels
from labkit.transform.graph import Example, layer_nodes
from labkit.transform.groups import Channels, Side
from labkit.transform.plan import PassConfig, Plan, Resolution, resolve


@dataclass(frozen=True)
class TransformInfo:
    """What a transform did: one row a layer, and the requests that were skipped.

    Attributes:
        resolution: The plan that was applied, and how the configuration came to it.
        layers: fx name of each layer that has channels → its type, its widths before and after
            (`in`, `new_in`, `out`, `new_out`), and the request that decided each side
            (`in_decided_by`, `out_decided_by`; `None` where no request did).
        inexact: Where weights were kept, a sentence for each reason why the wider network does not
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
        return pd.DataFrame.from_dict(self.layers, orient="index").rename_axis("layer")

    def _repr_html_(self) -> str:
        return self.to_frame().to_html()


def inexact(channels: Channels, widths: Mapping[str, int]) -> Iterator[str]:
    """Yields why a widened network cannot compute just what it did, a sentence a reason.

    Args:
        channels: The network's channel groups.
        widths: Group name → new width.
    """
    grown = {group.name for group in channels.free if widths[group.name] > group.width}
    chosen = copies(channels, widths)
    for mixing in channels.mixing:
        if not any(group.name in grown for group in mixing.side.groups):
            continue
        counts = mixing.side.positions(chosen).bincount(minlength=mixing.side.width)
        if not mixing.averages:
            yield f"{mixing.node} computes over channels, whose number grows"
        elif len(counts.unique()) > 1:
            yield f"{mixing.node} averages over channels, which are not all copied equally often"
    sides = [*channels.inputs.values(), *channels.outputs.values()]
    scattered = (part.group.name for side in sides for part in side.parts if not part.ordered)
    for name in dict.fromkeys(scattered):
        if name in grown:
            yield f"the channels of '{name}' are dealt out, and copies do not stay by originals"


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
    reasons: tuple[str, ...] = ()
    if weights == "keep":
        reasons = tuple(inexact(channels, resolution.plan.to_dict()))
        if strict and reasons:
            raise LabkitError(f"weights: they cannot be kept exactly: {'; '.join(reasons)}")
    new_model = apply(model, resolution, channels=channels, weights=weights, seed=seed, noise=noise)
    return new_model, _info(channels, resolution, reasons)


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
    return TransformInfo(resolution, layers, reasons)
