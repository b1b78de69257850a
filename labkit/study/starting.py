"""What a search trains first: the original network, and those that the user wants tried."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationInfo

from labkit.checks import plain
from labkit.errors import LabkitError, shown
from labkit.study.space import UNCHANGED, SearchSpaceBase
from labkit.transform import Channels, Plan, resolution_of
from labkit.transform.plan import widths_of

if TYPE_CHECKING:
    from labkit.study.config import SearchConfig
    from labkit.study.limits import Limits
    from labkit.study.search_tables import SetupTable

WIDTHS = "a table of layer → channels (16) or multiplier (0.5), or a Plan"


def start_tables(given: object, info: ValidationInfo) -> Any:
    """Returns `start_from` as a TOML has it: networks as tables, or a folder relative to it."""
    if isinstance(given, str | Path):
        return str((info.context or Path()) / Path(given).expanduser())
    if isinstance(given, Mapping | Plan) or not isinstance(given, Iterable):
        raise ValueError(f"expected a results folder, or a list of {WIDTHS}, got {shown(given)}")
    return [_table(one) for one in given]


def _table(network: object) -> dict[str, object]:
    widths = network.to_dict() if isinstance(network, Plan) else network
    if not isinstance(widths, Mapping) or not widths:
        raise ValueError(f"expected {WIDTHS}, got {shown(network)}")
    for layer, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, Real):
            raise ValueError(f"{layer}: expected channels or a multiplier, got {shown(width)}")
    return {str(layer): plain(width) for layer, width in widths.items()}


def with_networks(config: SearchConfig) -> SearchConfig:
    """Returns a configuration that has the networks of a folder in place of the folder's name."""
    folder = config.search.strategy.setup.start_from
    if not isinstance(folder, str):
        return config
    from labkit.study.results import Results  # which needs a configuration
    from labkit.study.studies import open_study

    try:
        front = Results.from_study(open_study(folder)).front_trials
    except LabkitError as error:
        raise LabkitError(f"start_from: {error}") from error
    if not front:
        raise LabkitError(f"start_from: {folder!r} holds no network that a search trained")
    return config.replace(start_from=[trial.record.widths for trial in front])


def first_networks(
    setup: SetupTable, space: SearchSpaceBase, limits: Limits
) -> tuple[list[Plan], list[str]]:
    """Returns what a search trains first, and what it leaves out for its limits, in words.

    Raises:
        LabkitError: A network that is asked for is not in the space; it says which one is nearest.
    """
    plans = {space.original: "the original network"} if setup.baseline else {}
    assert not isinstance(setup.start_from, str)
    for i, table in enumerate(setup.start_from):
        where = f"start_from: network {i + 1}"
        plan = _plan(where, space.channels, table)
        found, _ = space.nearest(plan)
        if plan not in (found, space.original):
            raise LabkitError(f"{where} ({plan}) is not in the space; the nearest there is {found}")
        plans.setdefault(plan, f"{where} ({plan})")
    left_out = {plan: who for plan, who in plans.items() if not limits.admits(plan)}
    said = [f"{who} is not trained: it is beyond the limits" for who in left_out.values()]
    kept = [plan for plan in plans if plan not in left_out]
    if len(kept) > setup.n_trials:
        said.append(f"{setup.n_trials} of the {len(kept)} networks that are asked for are trained")
    return kept, said


def _plan(where: str, channels: Channels, table: Mapping[str, float]) -> Plan:
    """Returns the network of a table: what it does not name is as in the original."""
    config, widths = copy.deepcopy(UNCHANGED), dict[str, int]()
    groups = {group.name: group for group in channels.free}
    try:
        for key, value in table.items():
            if isinstance(value, float):
                config[key] = {"config": {"name": "output_only", "channel_multiplier": value}}
                continue
            own = [groups[key]] if key in groups else channels.outputs[channels.find(key)].groups
            if len(own) != 1:
                parts = ", ".join(group.name for group in own)
                raise LabkitError(f"{key}: its channels are several groups; name one of {parts}")
            if widths.setdefault(own[0].name, value) != value:
                raise LabkitError(f"{key}: it has as many channels as {own[0].name}, got {table}")
        plan = resolution_of(channels, config, strict=True).plan
        # What cannot change may be named as it is.
        fixed = {g.name: g.width for g in channels.groups if g.name not in groups}
        if wrong := [name for name in widths.keys() & fixed.keys() if widths[name] != fixed[name]]:
            raise LabkitError(f"{wrong[0]}: its width must stay {fixed[wrong[0]]}")
        widths = {name: widths.get(name, width) for name, width in plan.widths}
        return Plan(tuple(widths_of(channels, Plan(tuple(widths.items()))).items()))
    except LabkitError as error:
        raise LabkitError(f"{where}: {error}") from error
