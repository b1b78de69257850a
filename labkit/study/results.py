"""What a search leaves behind: the table of its trials, the Pareto front, and the files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import safetensors.torch
import scipy.stats
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from labkit.errors import DivergenceError, LabkitError
from labkit.show.tables import html_table
from labkit.study.config import load_config
from labkit.study.runners import Metrics, load_weights, summary
from labkit.transform.applying import apply
from labkit.transform.models import get_model
from labkit.transform.plan import Plan

TRAINED, LOOKED_UP = "trained", "looked up"
INTERRUPTED = "interrupted"
# What the report's table shows of the software metrics; the files have all of them.
REPORT_METRICS = ("loss", "accuracy", "total_flops", "total_bitops")


def plan_of(trial: FrozenTrial) -> Plan:
    """Returns the plan that a trial recorded."""
    return Plan(tuple(trial.user_attrs["plan"].items()))


def widths_of(network: str) -> dict[str, int]:
    """Returns channel group → width, read off a plan in words."""
    pairs = (pair.rpartition(": ") for pair in network.split(", "))
    return {group: int(width) for group, _, width in pairs}


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that have metrics."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def has_diverged(trial: FrozenTrial) -> bool:
    """Returns whether a trial failed because its network's training diverged."""
    return trial.user_attrs.get("failure", "").startswith(f"{DivergenceError.__name__}: ")


def pareto_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that no other dominates, each network once, by its first trial."""
    networks: dict[Plan, FrozenTrial] = {}
    for trial in sorted(study.best_trials, key=lambda trial: trial.number):
        networks.setdefault(plan_of(trial), trial)
    return list(networks.values())


def replicates_of(study: optuna.Study, trial: FrozenTrial) -> list[Metrics]:
    """Returns what each replicate of a trial's network measured, by seed; later ones included."""
    added = study.user_attrs.get("replicates", {}).get(str(trial.number))
    return list(added or trial.user_attrs.get("replicates", []))


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
    return bool(scipy.stats.ttest_rel(a, b).pvalue >= 0.05)


@dataclass(frozen=True)
class Results:
    """The outcome of a search, as tables.

    Attributes:
        trials: One row a trial, indexed by number: state, source (`trained` or `looked up`),
            trained_in (the trial that trained this network), seconds (from its start to its end;
            the trials of a round overlap), elapsed (seconds by the clock until it ended in which
            the search ran, interrupted trials left out), network (the plan in words), failure,
            and one column a metric.
        best: One row for each network on the Pareto front, with the report's columns `number`,
            `software_metrics`, `hardware_metrics` and `scaled_metrics`, and `network`. Where the
            networks have replicates, also `accuracy` (mean ± standard deviation) and `ties`, the
            numbers of those on the front whose accuracy is not told from its own by Student's
            paired t-test over the same seeds, two-sided at 5%, uncorrected for several tests.
        objectives: Metric → `"maximize"` or `"minimize"`.
        about: What every figure must say: `model`, `dataset`, `seed` and `convention`.
        histories: Trial that trained a network → its metrics after each epoch, by the first seed.
    """

    trials: pd.DataFrame
    best: pd.DataFrame
    objectives: Mapping[str, str]
    about: Mapping[str, Any]
    histories: Mapping[int, Sequence[Metrics]] = field(default_factory=dict)

    @classmethod
    def from_study(cls, study: optuna.Study) -> Results:
        """Reads the tables off a study that labkit made."""
        columns = ["number", "state", "source", "trained_in", "seconds", "elapsed", "network"]
        all_trials = study.get_trials(deepcopy=False)
        elapsed = _elapsed(all_trials)
        trials = pd.DataFrame(
            [
                _trial_row(study, trial) | {"elapsed": elapsed.get(trial.number)}
                for trial in all_trials
            ]
        ).reindex(columns=[*columns, "failure", *_metric_names(study)])
        best = pd.DataFrame(
            [_best_row(trial) for trial in pareto_trials(study)],
            columns=["number", *_RECORDED, "network"],
        )
        best = _with_replicates(study, best)
        attributes = study.user_attrs
        return cls(
            trials.set_index("number").astype({"trained_in": "Int64"}),
            best,
            attributes.get("objectives", {}),
            attributes.get("about", {}),
            {t.number: t.user_attrs["history"] for t in all_trials if "history" in t.user_attrs},
        )

    @property
    def networks(self) -> pd.DataFrame:
        """The trials that trained a network: one row a network."""
        return self.trials[self.trials["source"] == TRAINED]

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` that no other dominates, each network once."""
        return self.trials.loc[self.best["number"]]

    def front_table(self) -> pd.DataFrame:
        """Returns the front, cheap first: the objectives, with their spread, and each width."""
        costs = [metric for metric, way in self.objectives.items() if way == "minimize"]
        front = self.front.sort_values(costs) if costs else self.front
        table = front[list(self.objectives)].copy()
        for metric in self.objectives:
            if metric in self.best:
                table[metric] = self.best.set_index("number")[metric]
            elif f"{metric}_std" in front:
                table[metric] = [
                    f"{mean:.4f} ± {spread:.4f}"
                    for mean, spread in zip(front[metric], front[f"{metric}_std"])
                ]
        widths = [widths_of(network) for network in front["network"]]
        return table.join(pd.DataFrame(widths, index=front.index)).rename_axis("trial")

    def best_markdown(self) -> str:
        """Returns the table of best trials as the report prints it."""
        table = self.best.copy()
        shown = {*REPORT_METRICS, *self.objectives}
        for column in _RECORDED:
            table[column] = table[column].map(
                lambda metrics: {n: round(v, 3) for n, v in metrics.items() if n in shown}
            )
        return table.to_markdown()

    def counts(self) -> str:
        """Returns how many trials there were, and what became of them, in words."""
        n_failed = int((self.trials["state"] == "FAIL").sum())
        n_running = int((self.trials["state"] == "RUNNING").sum())
        n_looked_up = int((self.trials["source"] == LOOKED_UP).sum())
        return (
            f"{len(self.trials)} trials: {len(self.networks)} networks trained, "
            f"{n_looked_up} looked up, {n_failed} failed"
            + (f", {n_running} running" if n_running else "")
        )

    def _repr_html_(self) -> str:
        return f"<p>{self.counts()}</p>" + html_table(self.front_table())


_RECORDED = ("software_metrics", "hardware_metrics", "scaled_metrics")


def _metric_names(study: optuna.Study) -> list[str]:
    """Returns all metrics that were measured, and the objectives even where none was."""
    names: dict[str, None] = {}
    for trial in finished_trials(study):
        for kind in ("software_metrics", "hardware_metrics"):
            names |= dict.fromkeys(trial.user_attrs[kind])
    return list(names | dict.fromkeys(study.user_attrs.get("objectives", {})))


def _trial_row(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    replicates = replicates_of(study, trial)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "source": attributes.get("source"),
        "trained_in": attributes.get("trained_in"),
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "network": str(plan_of(trial)) if "plan" in attributes else None,
        "failure": attributes.get("failure"),
        **attributes.get("software_metrics", {}),
        **(summary(replicates) if replicates else {}),
        **attributes.get("hardware_metrics", {}),
    }


def _elapsed(trials: Iterable[FrozenTrial]) -> dict[int, float]:
    """Returns trial → for how many seconds, until it ended, any trial had been running."""
    intervals = sorted(
        (trial.datetime_start, trial.datetime_complete, trial.number)
        for trial in trials
        if trial.datetime_start is not None
        and trial.datetime_complete is not None
        # A killed search's trials are ended by the run that continues it, perhaps days later.
        and trial.user_attrs.get("failure") != INTERRUPTED
    )
    elapsed = {}
    total = timedelta()
    latest = datetime.min
    for start, end, number in intervals:
        # Running time up to this trial's end: `total` reaches to `latest`, and it ran meanwhile.
        elapsed[number] = (total + end - max(start, latest)).total_seconds()
        if end > latest:
            total += end - max(start, latest)
            latest = end
    return elapsed


def _best_row(trial: FrozenTrial) -> dict[str, Any]:
    recorded = {column: trial.user_attrs[column] for column in _RECORDED}
    return {"number": trial.number, **recorded, "network": str(plan_of(trial))}


def _with_replicates(study: optuna.Study, best: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns `accuracy` and `ties`, where every network has at least two replicates."""
    values = {
        trial.number: [metrics["accuracy"] for metrics in replicates_of(study, trial)]
        for trial in pareto_trials(study)
    }
    if not values or min(map(len, values.values())) < 2:
        return best
    shared = min(map(len, values.values()))
    best = best.copy()
    best["accuracy"] = [
        f"{statistics.fmean(values[n]):.4f} ± {statistics.stdev(values[n]):.4f}"
        for n in best["number"]
    ]
    best["ties"] = [
        [
            other
            for other in values
            if other != n and indistinguishable(values[n][:shared], values[other][:shared])
        ]
        for n in best["number"]
    ]
    return best


def write_tables(study: optuna.Study, folder: Path) -> Results:
    """Writes `log.json`, `best.json`, `trials.csv` and `best.md` into a results folder.

    Returns:
        The tables that were written.
    """
    results = Results.from_study(study)
    log = {
        trial.number: {
            "state": trial.state.name,
            "values": trial.values,
            "params": trial.params,
            "started": trial.datetime_start,
            "finished": trial.datetime_complete,
            **trial.user_attrs,
        }
        for trial in study.get_trials(deepcopy=False)
    }
    best = {trial.number: log[trial.number] for trial in pareto_trials(study)}
    for name, content in (("log.json", log), ("best.json", best)):
        (folder / name).write_text(json.dumps(content, indent=2, default=str) + "\n")
    results.trials.to_csv(folder / "trials.csv")
    (folder / "best.md").write_text(results.best_markdown() + "\n")
    return results


def save_network(
    folder: Path, trial: FrozenTrial, model: nn.Module, input_shape: Sequence[int]
) -> None:
    """Keeps a network of the front: `best/trial_N.safetensors`, and its plan in `.json`."""
    best = folder / "best"
    best.mkdir(exist_ok=True)
    description = {
        "number": trial.number,
        "plan": trial.user_attrs["plan"],
        "input_shape": input_shape,
        "software_metrics": trial.user_attrs["software_metrics"],
        "hardware_metrics": trial.user_attrs["hardware_metrics"],
    }
    (best / f"trial_{trial.number}.json").write_text(json.dumps(description, indent=2) + "\n")
    # The weights come last: they are what says that a network is there.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, best / f"trial_{trial.number}.safetensors")


def drop_networks(folder: Path, kept: Iterable[int]) -> None:
    """Removes the networks from `best/` whose trial is no longer on the front."""
    kept = set(kept)
    for number in saved_networks(folder) - kept:
        for suffix in ("safetensors", "json"):
            (folder / "best" / f"trial_{number}.{suffix}").unlink(missing_ok=True)


def saved_networks(folder: Path) -> set[int]:
    """Returns the numbers of the trials whose networks are in `best/`."""
    return {
        int(path.stem.removeprefix("trial_")) for path in folder.glob("best/trial_*.safetensors")
    }


def recorded_example(record: Mapping[str, Any]) -> torch.Tensor | None:
    """Returns one input of the shape that a record names; `None` for a record that names none.

    Those are from before shapes were kept, and of networks whose first layer tells it.
    """
    shape = record.get("input_shape")
    return None if shape is None else torch.zeros(1, *shape)


def load_best(
    folder: str | Path, number: int | None = None, *, model: nn.Module | None = None
) -> nn.Module:
    """Returns a trained network of a search's Pareto front, in evaluation mode.

    Args:
        folder: The results folder.
        number: Its trial; by default the network with the highest accuracy.
        model: The network that was searched, where the search was given a module and not a name.

    Raises:
        LabkitError: The folder holds no networks, or not this one.
    """
    folder = Path(folder)
    saved = saved_networks(folder)
    if not saved:
        raise LabkitError(f"folder: {str(folder)!r} holds no trained networks (best/trial_*)")
    described = {
        n: json.loads((folder / "best" / f"trial_{n}.json").read_text()) for n in sorted(saved)
    }
    if number is None:
        number = max(described, key=lambda n: described[n]["software_metrics"].get("accuracy", 0.0))
    if number not in described:
        raise LabkitError(
            f"number: trial {number} is not on the front; expected one of {sorted(saved)}"
        )
    if model is None:
        model = get_model(load_config(folder / "config.toml").model)
    chosen = described[number]
    network = apply(
        model, Plan(tuple(chosen["plan"].items())), example_input=recorded_example(chosen)
    )
    load_weights(network, folder / "best" / f"trial_{number}.safetensors")
    return network.eval()
