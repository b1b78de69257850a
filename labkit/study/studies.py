"""Studies in their storages: opened or made, and read. How a study lies there is known here alone.

Of a study there is what it says of itself, and replicates that were added later; of a trial, its
record. The storage's parameters are in words, such as `×2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from labkit.checks import as_path
from labkit.errors import LabkitError, in_words
from labkit.runtime import quiet_optuna
from labkit.study.config import DEFAULT_PROJECT
from labkit.study.fingerprint import Identity, difference
from labkit.study.record import Bounds, Direction, Metrics, Record, Trial
from labkit.study.search_tables import SetupTable
from labkit.study.storage import DATABASE, named, open_storage
from labkit.study.toml_files import read_toml

ATTRIBUTE = "labkit"  # of a study: what it is; of a trial: its record
CONSTRAINTS = "constraints"  # of a trial: Optuna's, as all its versions and its dashboard read them
REPLICATES = "labkit:replicates:"  # of a study: those added to a trial later


@dataclass(frozen=True)
class Description:
    """What a study says of itself.

    Attributes:
        identity: What its results depend on; see `labkit.study.fingerprint`.
        objectives: Metric → `"maximize"` or `"minimize"`.
        directions: Name of each value of a trial → its direction: those of the objectives, or of
            their sum.
        about: What every figure must say: model, dataset, seed, convention; and `original`, the
            widths of the network before the search, and `input_shape`.
        limits: Metric → `≤` or `≥`, and the bound.
    """

    identity: Identity
    objectives: Mapping[str, Direction]
    directions: Mapping[str, Direction]
    about: Mapping[str, Any]
    limits: Bounds = field(default_factory=dict)


def kept_in(folder: Path) -> tuple[str | Path, str | None]:
    """Returns where the study of a results folder is kept, and its name if others may be there.

    Nothing that the folder's configuration names is imported.

    Raises:
        LabkitError: It names a server with options, which tell a driver what to load or to send.
    """
    setup = None
    with contextlib.suppress(LabkitError, ValidationError, KeyError, TypeError, AttributeError):
        tables = read_toml(folder / "config.toml")
        setup = SetupTable.model_validate(tables["search"]["strategy"]["setup"], context=folder)
        name = str(tables.get("project", DEFAULT_PROJECT))
    if setup is None or setup.storage is None:
        return folder / DATABASE, None
    url = make_url(setup.storage)
    if url.query and url.get_backend_name() != "sqlite":
        raise LabkitError(
            f"storage: the folder names an address with options, {named(setup.storage)!r}, to "
            "which labkit connects only where you give it: --storage or storage="
        )
    return setup.storage, name


def open_study(folder: str | Path) -> optuna.Study:
    """Returns the study of a results folder, also while a search writes it.

    Raises:
        LabkitError: The folder holds no study, or its storage cannot be opened.
    """
    storage, name = kept_in(as_path("folder", folder))
    with in_words(f"folder: cannot read {str(folder)!r}"):
        if isinstance(storage, Path) and not storage.is_file():
            made = "`labkit search` makes one"
            raise LabkitError(f"folder: {str(folder)!r} holds no study.db; {made}")
    opened = open_storage(storage)
    names = [study.study_name for study in opened.get_all_studies()]
    if name is None and len(names) != 1:
        raise LabkitError(f"folder: expected one study in {str(storage)!r}, got {len(names)}")
    if name is not None and name not in names:
        raise LabkitError(f"storage: {named(storage)!r} holds no search {name!r}")
    return optuna.load_study(study_name=name or names[0], storage=opened)


def open_or_create(
    storage: str | Path | BaseStorage | None, name: str, description: Description
) -> optuna.Study:
    """Returns the study of a search.

    Raises:
        LabkitError: The storage cannot be opened, or holds another search.
    """
    opened = None if storage is None else open_storage(storage, create=True)
    opened = opened or optuna.storages.InMemoryStorage()
    others = [study.study_name for study in opened.get_all_studies()]
    if isinstance(storage, Path) and others and name not in others:
        raise LabkitError(
            f"project: {str(storage.parent)!r} holds the search {others[0]!r}, not {name!r}; "
            "use another folder"
        )
    with quiet_optuna():
        study = optuna.create_study(
            study_name=name,
            storage=opened,
            directions=list(description.directions.values()),
            load_if_exists=True,
        )
    if name not in others or _was_just_made(study, description):
        study.set_user_attr(ATTRIBUTE, dataclasses.asdict(description))
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study.set_metric_names(list(description.directions))
    elif changed := difference(describe(study).identity, description.identity):
        key, _, what = changed.partition(": ")
        where = named(storage.parent if isinstance(storage, Path) else storage)
        raise LabkitError(f"{key}: {where!r} holds {what}; use another folder")
    return study


def _was_just_made(study: optuna.Study, description: Description) -> bool:
    """Whether a search was killed after it made its study and before that said what it is."""
    ways = [direction.name.lower() for direction in study.directions]
    return (
        ATTRIBUTE not in study.user_attrs
        and ways == list(description.directions.values())
        and not study.get_trials(deepcopy=False)
    )


def describe(study: optuna.Study) -> Description:
    """Returns what a study says of itself.

    Raises:
        LabkitError: labkit did not make it, or another version did.
    """
    known = study.user_attrs.get(ATTRIBUTE)
    if known is None:
        raise LabkitError(f"storage: the study {study.study_name!r} is not one of labkit's")
    try:
        return Description(**(known | {"identity": Identity(**known["identity"])}))
    except (KeyError, TypeError) as error:
        what = f"the study {study.study_name!r} was made by another version of labkit"
        raise LabkitError(f"storage: {what}") from error


def read_trials(study: optuna.Study, first: int = 0) -> list[Trial]:
    """Returns the trials of a study that labkit made, from the one with this number on."""
    return [_trial(frozen) for frozen in study.get_trials(deepcopy=False)[first:]]


def read_replicates(study: optuna.Study) -> dict[int, list[Metrics | None]]:
    """Returns trial → the replicates of its network by seed, where some were added later."""
    return {
        int(key.removeprefix(REPLICATES)): by_seed
        for key, by_seed in study.user_attrs.items()
        if key.startswith(REPLICATES)
    }


def _trial(frozen: FrozenTrial) -> Trial:
    started, ended = frozen.datetime_start, frozen.datetime_complete
    try:
        record = Record.model_validate(frozen.user_attrs[ATTRIBUTE])
        if started is None or ended is None:
            raise KeyError
    except (KeyError, ValidationError) as error:
        message = f"storage: trial {frozen.number} has no record that labkit wrote"
        raise LabkitError(message) from error
    values = None if frozen.values is None else tuple(frozen.values)
    return Trial(frozen.number, frozen.params, values, record, started, ended)


def frozen_trial(
    trial: Trial, params: Mapping[str, Any], distributions: Mapping[str, Any], *, keep_record: bool
) -> FrozenTrial:
    """Returns a trial as Optuna has it."""
    record = trial.record.model_dump(mode="json", exclude_defaults=True) if keep_record else None
    constraints = list(trial.record.constraints.values())
    frozen = optuna.trial.create_trial(
        state=TrialState[trial.state],
        values=trial.values,
        params=dict(params),
        distributions={key: distributions[key] for key in params},
        user_attrs={} if record is None else {ATTRIBUTE: record},
        system_attrs={CONSTRAINTS: constraints} if constraints else {},
    )
    frozen.datetime_start, frozen.datetime_complete = trial.started, trial.ended
    return frozen
