"""A study read back: trials as typed records, and as the tables that people read."""

from __future__ import annotations

import functools
import html
import itertools
import pkgutil
import re
import statistics
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
from labkit.study.front import Front
from labkit.study.record import COLUMNS, Metrics, Source, Trial
from labkit.study.runners import summary
from labkit.study.storage import faults_of
from labkit.study.studies import Description, describe, read_replicates, read_trials
from labkit.table import ROWS, Table, html_table
from labkit.transform import Plan

# What the report's table shows of the software metrics; the files have all of them.
REPORT_METRICS = ("loss", "accuracy", "total_flops", "total_bitops")
WRITE_UP = "labkit.show.writeup:write_report"  # a package above this one draws it
_RECORDED = ("software_metrics", "hardware_metrics", "scaled_metrics")


def indistinguishable(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether Student's paired t-test, two-sided at 5%, finds no difference of the means.

    Args:
        a: One value a seed.
        b: The same for the same seeds.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    # Equal differences have no spread to test against: only the difference itself counts.
    if len(set(differences)) == 1:
        return differences[0] == 0
    import scipy.stats

    return bool(scipy.stats.ttest_rel(a, b).pvalue >= 0.05)


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
        failure, and one a metric.
        """
        elapsed = _elapsed(self.records)
        rows = [self._row(trial) | {"elapsed": elapsed[trial.number]} for trial in self.records]
        names = dict.fromkeys([*COLUMNS, *(key for row in rows for key in row), *self.objectives])
        table = Table(rows).reindex(columns=list(names))
        return table.set_index("number").astype({"trained_in": "Int64"})

    def _row(self, trial: Trial) -> dict[str, Any]:
        record, replicates = trial.record, self.replicates(trial.number)
        return {
            "number": trial.number,
            "state": "FAIL" if trial.values is None else "COMPLETE",
            "source": record.source and record.source.value,
            "trained_in": record.trained_in,
            "seconds": (trial.ended - trial.started).total_seconds(),
            "network": str(record.plan) if record.widths else None,
            "failure": record.failure and record.failure.message,
            **record.software_metrics,
            **(summary(replicates) if replicates else {}),
            **record.hardware_metrics,
        }

    @property
    def networks(self) -> pd.DataFrame:
        """The trials that trained a network: one row a network."""
        return self.trials[self.trials["source"] == Source.TRAINED.value]

    @functools.cached_property
    def front_trials(self) -> list[Trial]:
        """The trials that no other dominates, each network once, by number."""
        front: Front[Trial] = Front(self.description.directions.values())
        for trial in self.records:
            if trial.values is not None and trial.record.source == Source.TRAINED:
                front.add(trial, trial.values)
        return sorted(front.members, key=lambda trial: trial.number)

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` that no other dominates, each network once."""
        return self.trials.loc[[trial.number for trial in self.front_trials]]

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

    def best(self, metric: str = "accuracy") -> nn.Module:
        """Returns the trained network of `best_trial`, in evaluation mode.

        Raises:
            LabkitError: As there; or the results were read without networks.
        """
        number = self.best_trial(metric)
        if self.open_network is None:
            raise LabkitError("results: they were read without networks; use labkit.load_best")
        return self.open_network(number)

    def best_trial(self, metric: str = "accuracy") -> int:
        """Returns the trial whose network is, of those on the front, best by a metric.

        Args:
            metric: One that was measured. What is not an objective is taken to be maximised.

        Raises:
            LabkitError: Nothing measured the metric, or no trial finished.
        """
        front = self.front
        if front.empty:
            raise LabkitError("results: no trial has finished")
        if metric not in front.select_dtypes("number"):
            known = list(dict.fromkeys([*self.objectives, *self.records[-1].record.metrics]))
            raise LabkitError(f"metric: nothing measured {metric!r}; {did_you_mean(metric, known)}")
        sign = -1 if self.objectives.get(metric) == "minimize" else 1
        ranked = (sign * front[metric]).sort_values(ascending=False, kind="stable")
        return int(ranked.index[0])

    @functools.cached_property
    def best_trials(self) -> pd.DataFrame:
        """One row for each network on the front, as the report has it.

        Columns: `number`, `software_metrics`, `hardware_metrics`, `scaled_metrics`, and `network`.
        Where the networks have replicates, also `accuracy` (mean ± standard deviation) and `ties`,
        the numbers of those on the front whose accuracy is not told from its own by Student's
        paired t-test over the same seeds, two-sided at 5%, uncorrected for several tests.
        """
        columns = ["number", *_RECORDED, "network"]
        rows = [
            (t.number, *(getattr(t.record, name) for name in _RECORDED), str(t.record.plan))
            for t in self.front_trials
        ]
        table = Table(rows, columns=columns)
        accuracies = {
            t.number: [metrics["accuracy"] for metrics in self.replicates(t.number)]
            for t in self.front_trials
        }
        if accuracies and min(map(len, accuracies.values())) >= 2:
            shared = min(map(len, accuracies.values()))
            table["accuracy"] = [_spread(values) for values in accuracies.values()]
            table["ties"] = [
                [
                    other
                    for other, theirs in accuracies.items()
                    if other != number and indistinguishable(own[:shared], theirs[:shared])
                ]
                for number, own in accuracies.items()
            ]
        return table

    def front_table(self) -> pd.DataFrame:
        """Returns the front, cheap first: the objectives, with spread and ties, and each width."""
        costs = [metric for metric, way in self.objectives.items() if way == "minimize"]
        front = self.front.sort_values(costs) if costs else self.front
        table = front[list(self.objectives)].copy()
        if "accuracy" in self.objectives and "accuracy" in self.best_trials:
            table[["accuracy", "ties"]] = self.best_trials.set_index("number")[["accuracy", "ties"]]
        widths = [self.plan(number).to_dict() for number in front.index]
        return table.join(pd.DataFrame(widths, index=front.index)).rename_axis("trial")

    def best_markdown(self) -> str:
        """Returns the table of best trials as the report prints it."""
        table = self.best_trials.copy()
        shown = {*REPORT_METRICS, *self.objectives}
        for column in _RECORDED:
            table[column] = table[column].map(
                lambda metrics: {n: round(v, 3) for n, v in metrics.items() if n in shown}
            )
        return table.map(as_markdown).to_markdown()

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
        sources = [trial.record.source for trial in self.records]
        n_failed = sum(trial.values is None for trial in self.records)
        return (
            f"{len(sources)} trials: {sources.count(Source.TRAINED)} networks trained, "
            f"{sources.count(Source.LOOKED_UP)} looked up, {n_failed} failed"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self.counts()}</p>{html_table(self.front_table(), ROWS)}"


def as_markdown(cell: object) -> Any:
    """Returns a cell whose names, which may be anyone's, are text and no markup."""
    if not isinstance(cell, str | dict):
        return cell
    one_line = " ".join(str(cell).split())
    return re.sub(r"([\\`|\[])", r"\\\1", html.escape(one_line, quote=False))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


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
