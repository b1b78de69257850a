"""A study read back: trials as typed records, and as the tables that people read."""

from __future__ import annotations

import functools
import itertools
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from torch import nn

from labkit.checks import as_path
from labkit.data import Dataset
from labkit.errors import LabkitError, did_you_mean, shown
from labkit.study import front_tables
from labkit.study.front import Front
from labkit.study.limits import limits_text
from labkit.study.record import COLUMNS, Metrics, Source, Trial
from labkit.study.runners import summary
from labkit.study.storage import faults_of
from labkit.study.studies import Description, describe, read_replicates, read_trials
from labkit.table import ROWS, Table, html_table
from labkit.training import direction_of, main_of
from labkit.transform import Plan

WRITE_UP = "labkit.show.writeup:write_report"  # a package above this one draws it


@dataclass(frozen=True)
class Results:
    """The outcome of a search.

    Attributes:
        records: Its trials, by number.
        description: What the study says of itself.
        added_replicates: Trial → the replicates of its network by seed, where some were added
            later; `None` where one is missing.
        interrupted: Whether the run that returned this was stopped before its end.
        open_network: Returns the trained network of a trial on the front; `None` where the
            results were read without the networks.
        folder: Where the search left them, if anywhere.
    """

    records: Sequence[Trial]
    description: Description
    added_replicates: Mapping[int, Sequence[Metrics | None]] = field(default_factory=dict)
    interrupted: bool = False
    open_network: Callable[[int], nn.Module] | None = None
    folder: Path | None = None

    @classmethod
    def from_study(cls, study: optuna.Study) -> Results:
        """Reads a study that labkit made.

        Raises:
            LabkitError: It is none, or cannot be read.
        """
        if not isinstance(study, optuna.Study):
            raise LabkitError(f"study: expected one of Optuna's, got {shown(study)}")
        with faults_of(study.study_name):
            return cls(read_trials(study), describe(study), read_replicates(study))

    @property
    def objectives(self) -> Mapping[str, str]:
        """Metric → `"maximize"` or `"minimize"`."""
        return self.description.objectives

    @property
    def about(self) -> Mapping[str, Any]:
        """What every figure must say: `model`, `dataset`, `seed`, `convention`; and `original`."""
        return self.description.about

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial, indexed by number.

        The columns are state, source (`trained` or `looked up`), trained_in (the trial that trained
        this network), seconds (from its start to its end; the trials of a round overlap), elapsed
        (seconds by the clock until it ended in which the search ran), network (the plan in words),
        failure, breaks (the limits that it breaks, where the search has any), and one a metric.
        """
        elapsed = _elapsed(self.records)
        rows = [self._row(trial) | {"elapsed": elapsed[trial.number]} for trial in self.records]
        names = dict.fromkeys([*COLUMNS, *(key for row in rows for key in row), *self.objectives])
        if not self.description.limits:
            del names["breaks"]
        table = Table(rows).reindex(columns=list(names))
        return table.set_index("number").astype({"trained_in": "Int64"})

    def _row(self, trial: Trial) -> dict[str, Any]:
        record, replicates = trial.record, self.replicates(trial.number)
        return {
            "number": trial.number,
            "state": trial.state,
            "source": record.source and record.source.value,
            "trained_in": record.trained_in,
            "seconds": (trial.ended - trial.started).total_seconds(),
            "network": str(record.plan) if record.widths else None,
            "failure": record.failure and record.failure.message,
            "breaks": ", ".join(m for m, by in record.constraints.items() if by > 0) or None,
            **record.rates,
            **record.software_metrics,
            **(summary(replicates) if replicates else {}),
            **record.hardware_metrics,
        }

    @property
    def networks(self) -> pd.DataFrame:
        """The trials that trained a network which keeps all limits: one row a network."""
        return self.trials.loc[[trial.record.competes for trial in self.records]]

    @functools.cached_property
    def front_trials(self) -> list[Trial]:
        """The trials that no other dominates, each network once, by number."""
        front: Front[Trial] = Front(self.description.directions.values())
        for trial in self.records:
            if trial.values is not None and trial.record.competes:
                front.add(trial, trial.values)
        return sorted(front.members, key=lambda trial: trial.number)

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` that no other dominates, each network once."""
        return self.trials.loc[[trial.number for trial in self.front_trials]]

    @functools.cached_property
    def original(self) -> int | None:
        """The trial that trained the network that the search set out from, if any did."""
        widths = self.about.get("original")
        same = (t for t in self.records if t.record.widths == widths)
        return next((t.number for t in same if t.record.source == Source.TRAINED), None)

    def plan(self, number: int) -> Plan:
        """Returns the widths of a trial's network."""
        return self.records[number].record.plan

    def replicates(self, number: int) -> Sequence[Metrics]:
        """Returns the last epoch's metrics of a trial's network by each seed, as far as all are."""
        by_seed = self.added_replicates.get(number, self.records[number].record.replicates)
        return [metrics for metrics in itertools.takewhile(bool, by_seed) if metrics]

    @property
    def histories(self) -> dict[int, list[Metrics]]:
        """Trial that trained a network → its metrics after each epoch, by the first seed."""
        return {t.number: t.record.history for t in self.records if t.record.history}

    def best(self, metric: str | None = None) -> nn.Module:
        """Returns the trained network of `best_trial`, in evaluation mode.

        Raises:
            LabkitError: As there; or the results were read without networks.
        """
        number = self.best_trial(metric)
        if self.open_network is None:
            raise LabkitError("results: they were read without networks; use labkit.load_best")
        return self.open_network(number)

    def best_trial(self, metric: str | None = None) -> int:
        """Returns the trial whose network is, of those on the front, best by a metric.

        Args:
            metric: One that was measured; by default `accuracy`, or `r2` of a regression.

        Raises:
            LabkitError: Nothing measured the metric, or no trial finished.
        """
        front = self.front
        if front.empty:
            limits = limits_text(self.description.limits)
            which = (
                f"network that was trained is within {limits}" if limits else "trial has finished"
            )
            raise LabkitError(f"results: no {which}")
        metric = main_of(self.trials) if metric is None else metric
        if metric not in front.select_dtypes("number"):
            known = list(dict.fromkeys([*self.objectives, *self.records[-1].record.metrics]))
            raise LabkitError(f"metric: nothing measured {metric!r}; {did_you_mean(metric, known)}")
        sign = 1 if direction_of(metric, self.objectives) == "maximize" else -1
        ranked = (sign * front[metric]).sort_values(ascending=False, kind="stable")
        return int(ranked.index[0])

    @functools.cached_property
    def best_trials(self) -> pd.DataFrame:
        """One row for each network on the front, as the report has it; see `front_tables`."""
        return front_tables.best_trials(self)

    def front_table(self) -> pd.DataFrame:
        """Returns the front, cheap first, beside the original; see `front_tables`."""
        return front_tables.front_table(self)

    def best_markdown(self) -> str:
        """Returns the table of best trials as the report prints it."""
        return front_tables.best_markdown(self)

    def report(self, path: str | Path, *, data: Dataset | None = None, trust: bool = False) -> None:
        """Writes a lab write-up; see `labkit.show.writeup`.

        Args:
            path: Where, by the name's ending as a page (`.html`), Markdown (`.md`) or `.pdf`.
            data: The data set, where the search was given one: for the accuracy on the test split.
            trust: Whether to run the code that the folder names as the data set.

        Raises:
            LabkitError: The search has no folder, or the file is not one of labkit's to write.

        Example:
            >>> results = search("configs/jsc_toy.toml", folder="results/first")
            >>> results.report("results/first/report.html")
        """
        if self.folder is None:
            raise LabkitError("report: it tells what a folder records; search with folder=")
        write_report = pkgutil.resolve_name(WRITE_UP)
        write_report(self, self.folder, as_path("path", path), data=data, trust=trust)

    def counts(self) -> str:
        """Returns how many trials there were, and what became of them, in words."""
        sources = Counter(trial.record.source for trial in self.records)
        states = Counter(trial.state for trial in self.records)
        text = (
            f"{len(self.records)} trials: {sources[Source.TRAINED]} networks trained, "
            f"{sources[Source.LOOKED_UP]} looked up, {states['FAIL']} failed"
        )
        if states["PRUNED"]:
            text += f", {states['PRUNED']} not trained for a limit"
        if not (self.description.limits and sources[Source.TRAINED]):
            return text
        left_out = sources[Source.TRAINED] - sum(trial.record.competes for trial in self.records)
        which = f"{left_out} left out as not" if left_out else "all"
        return f"{text}; {which} within {limits_text(self.description.limits)}"

    def _repr_html_(self) -> str:
        return f"<p>{self.counts()}</p>{html_table(self.front_table(), ROWS)}"


def _elapsed(trials: Iterable[Trial]) -> dict[int, float]:
    """Returns trial → for how many seconds, until it ended, any trial had been running."""
    elapsed = {}
    total = timedelta()
    latest = datetime.min
    for start, end, number in sorted((t.started, t.ended, t.number) for t in trials):
        # Running time up to this trial's end: `total` reaches to `latest`, and it ran meanwhile.
        elapsed[number] = (total + end - max(start, latest)).total_seconds()
        if end > latest:
            total += end - max(start, latest)
            latest = end
    return elapsed
