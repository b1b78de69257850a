"""What a search leaves in its folder, and how a network of its front is opened again.

Every file is written beside its place and renamed into it: none is ever cut in the middle, and none
is written through a link.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pkgutil
import secrets
from pathlib import Path
from typing import Any

import tomli_w

from labkit.errors import LabkitError, in_words
from labkit.study.config import SearchConfig, to_tables
from labkit.study.record import Trial
from labkit.study.results import Results
from labkit.study.storage import DATABASE, without_password

log = logging.getLogger(__name__)

# Drawn by a package above this one, which a search without a folder does not need.
PAGE = "labkit.show.page:write_page"
UNFINISHED = ".labkit"  # ends the name of a file that is being written


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole, or not at all.

    Raises:
        LabkitError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with beside.open("xb") as file:  # x: a new one, and no link
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or else a power cut may leave its name without its content
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise LabkitError(f"out: cannot write {str(path)!r}: {error.strerror}") from error


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        LabkitError: It cannot be removed.
    """
    with in_words(f"out: cannot remove {str(path)!r}"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a results folder.

    Raises:
        LabkitError: It cannot be made, or what is not written by `write` would go through a link.
    """
    with in_words(f"out: cannot make {str(folder)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob(f"{DATABASE}*"), folder / ".lock", folder / "best"):
        if path.is_symlink():
            raise LabkitError(f"out: {str(path)!r} is a link, and none is written through; move it")


def remove_unfinished(folder: Path) -> None:
    """Removes files that a killed run was writing."""
    for pattern in (f".*{UNFINISHED}", f"best/.*{UNFINISHED}"):
        for path in folder.glob(pattern):
            remove(path)


def write_config(config: SearchConfig, folder: Path) -> None:
    """Writes `config.toml`: the settings of a search."""
    url = config.search.strategy.setup.storage
    kept = config.replace(storage=url and without_password(url))
    write(folder / "config.toml", tomli_w.dumps(to_tables(kept)))


def has_results(folder: Path) -> bool:
    """Returns whether a search has left trials in a folder."""
    return (folder / "log.json").exists()


def write_results(results: Results, folder: Path) -> None:
    """Writes `log.json`, `best.json`, `trials.csv`, `best.md` and `pareto.html`."""
    entries = {trial.number: _entry(trial) for trial in results.records}
    best = {trial.number: entries[trial.number] for trial in results.front_trials}
    for name, content in (("log.json", entries), ("best.json", best)):
        write(folder / name, json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")
    write(folder / "trials.csv", results.trials.to_csv())
    write(folder / "best.md", results.best_markdown() + "\n")
    try:
        pkgutil.resolve_name(PAGE)(results, folder / "pareto.html")
    except Exception as error:  # a figure never fails a search
        log.warning("pareto.html was not written: %s: %s", type(error).__name__, error)


def _entry(trial: Trial) -> dict[str, Any]:
    record = trial.record.model_dump(mode="json")
    return {
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "started": trial.started,
        "finished": trial.ended,
        **record,
    }
