"""What a search leaves in its folder, and how a network of its front is opened again.

Every file is written beside its place and renamed into it, so that none is ever cut in the middle.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import tomli_w

from labkit import names
from labkit.errors import LabkitError
from labkit.study.config import SearchConfig, to_tables
from labkit.study.record import Trial
from labkit.study.results import Results

log = logging.getLogger(__name__)

# Drawn by a package above this one, which a search without a folder does not need.
PAGE = "labkit.show.page:write_page"


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole, or not at all."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    beside.replace(path)


def make_folder(folder: Path) -> None:
    """Makes a results folder.

    Raises:
        LabkitError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabkitError(f"out: cannot make {str(folder)!r}: {error}") from error


def write_config(config: SearchConfig, folder: Path) -> None:
    """Writes `config.toml`: the settings of a search."""
    write(folder / "config.toml", tomli_w.dumps(to_tables(config)))


def write_results(results: Results, folder: Path) -> None:
    """Writes `log.json`, `best.json`, `trials.csv`, `best.md` and `pareto.html`."""
    entries = {trial.number: _entry(trial) for trial in results.records}
    best = {trial.number: entries[trial.number] for trial in results.front_trials}
    for name, content in (("log.json", entries), ("best.json", best)):
        write(folder / name, json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")
    write(folder / "trials.csv", results.trials.to_csv())
    write(folder / "best.md", results.best_markdown() + "\n")
    try:
        names.imported("page", PAGE)(results, folder / "pareto.html")
    except Exception as error:  # a figure never fails a search
        log.warning("pareto.html was not written: %s: %s", type(error).__name__, error)


def _entry(trial: Trial) -> dict[str, Any]:
    record = trial.record.model_dump(mode="json")
    return {
        "state": "FAIL" if trial.values is None else "COMPLETE",
        "values": trial.values,
        "params": trial.params,
        "started": trial.started,
        "finished": trial.ended,
        **record,
    }
