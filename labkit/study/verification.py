"""Training a network of a front again, from what its folder records, to see whether that is so."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from labkit import names, runtime
from labkit.checks import as_path
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.config import load_config
from labkit.study.executor import LocalExecutor, Task
from labkit.study.experiment import Experiment
from labkit.study.fingerprint import difference
from labkit.study.networks import load_best, stack_of
from labkit.study.progress import Progress
from labkit.study.record import Candidate, Metrics, Outcome
from labkit.study.results import Results
from labkit.study.runs import here, read_runs
from labkit.study.session import bar
from labkit.study.studies import open_study
from labkit.training import evaluate, main_of

SEEDS = 5  # trainings that tell how far seeds alone move an accuracy
FEWEST = 3  # replicates that tell it, too
ROUNDING = 0.002  # of the accuracy of the same weights, on another machine


@dataclass(frozen=True)
class Verification:
    """Whether a training came out as it was recorded.

    Attributes:
        agrees: To the bit, or within what seeds alone make of it.
        message: What was compared, how it came out, and what differs here.
    """

    agrees: bool
    message: str


def verify(
    folder: str | Path,
    number: int | None = None,
    *,
    model: nn.Module | None = None,
    data: Dataset | None = None,
    trust: bool = False,
    progress: bool = True,
) -> Verification:
    """Trains a network of a search's Pareto front again; the folder is only read.

    On the machine that trained it, weights and metrics come out equal to the bit. Elsewhere, the
    accuracy (or R²) that was recorded has to be that of the weights, and, as what comes out, to lie
    in the 95% prediction interval of trainings with several seeds: the replicates, or, where there
    are fewer than three, five trainings here.

    Args:
        folder: The results folder.
        number: A trial on the front; by default the most accurate one.
        model: The network, where the search was given a module and not a name.
        data: The data set, where it was given one.
        trust: Whether to run the code that the folder names as `package.module:name`.
        progress: Show how many epochs have been trained.

    Raises:
        LabkitError: The folder holds no such network, or what was searched is not found.

    Example:
        >>> labkit.verify("results/jsc_toy").agrees
        True
    """
    folder = as_path("folder", folder)
    with names.opening(trust=trust):
        experiment = Experiment(load_config(folder / "config.toml"), model, data)
    results = Results.from_study(open_study(folder))
    trials = {trial.number: trial for trial in results.front_trials if trial.record.history}
    if not trials:
        raise LabkitError(f"folder: {str(folder)!r} holds no network that a search trained")
    if number is None:
        main = results.trials[main_of(results.trials)]
        number = max(trials, key=lambda n: main[n])
    kept = load_best(folder, number, model=experiment.model)
    if changed := _other_search(results, experiment):
        return Verification(False, f"trial {number} is not trained again. {changed}")

    recorded, plan, seed = trials[number].record.history, results.plan(number), experiment.seeds[0]
    own = Candidate(plan, seed, **trials[number].record.rates)
    threads, stack = stack_of(folder, number)
    with runtime.threads(spare=torch.get_num_threads() - threads):
        again = _train(experiment.task, stack if own in stack else [own], progress)[own]
    if again.failure is not None:
        return Verification(False, f"trial {number} does not agree: {again.failure.message}")
    same = all(torch.equal(again.weights[n].cpu(), w) for n, w in kept.state_dict().items())
    if same and again.history == recorded:
        what = f"all weights and the metrics of {len(recorded)} epochs are equal to the bit"
        return Verification(True, f"trial {number} agrees: {what}")

    replicates = results.replicates(number)
    agrees, compared = _by_metric(experiment, kept, recorded, again, replicates, progress=progress)
    said = f"trial {number} {'agrees' if agrees else 'does not agree'}: {compared}. "
    device = experiment.data.x_val.device
    return Verification(agrees, said + _differences(folder, trials[number].started, device))


def _other_search(results: Results, experiment: Experiment) -> str | None:
    """Returns in words what is not as it was searched, but for labkit's own version."""
    known, found = results.description.identity, experiment.description().identity
    settings = {**found.settings, "labkit": known.settings.get("labkit")}
    changed = difference(known, replace(found, settings=settings))
    return changed and changed.replace(": ", ": the folder holds ", 1)


def _train(task: Task, candidates: Sequence[Candidate], progress: bool) -> dict[Candidate, Outcome]:
    """Trains candidates in one stack, or one alone."""
    executor = LocalExecutor(stackable=len(candidates) > 1)
    ahead = Progress(len(candidates), epochs=task.settings.max_epochs)
    with bar(ahead) if progress else contextlib.nullcontext(lambda: None) as show:

        def on_epoch(metrics: Mapping[Candidate, Metrics]) -> None:
            ahead.on_epoch(metrics)
            show()

        return {o.candidate: o for o in executor.run(task, [candidates], on_epoch=on_epoch)}


def _by_metric(
    experiment: Experiment, kept: nn.Module, recorded: Sequence[Metrics], again: Outcome,
    replicates: Sequence[Metrics], *, progress: bool,
) -> tuple[bool, str]:  # fmt: skip
    """Returns whether accuracies, or R², agree, where not all bits do, and which there are."""
    import scipy.stats

    x, y = experiment.data.split("val")
    of_weights = (measured := evaluate(kept.to(x.device), x, y))[main := main_of(measured)]
    then, now = experiment.selected(recorded)[main], experiment.selected(again.history)[main]
    whose = "replicates"
    if len(replicates) < FEWEST:
        one = again.candidate
        others = [replace(one, seed=one.seed + i) for i in range(1, SEEDS)]
        trained = [again, *_train(experiment.task, others, progress).values()]
        replicates = [experiment.selected(o.history) for o in trained if o.failure is None]
        whose = "trainings here, with several seeds since it has too few replicates,"
    values = [metrics[main] for metrics in replicates]
    n, mean = len(values), statistics.fmean(values)
    deviation = statistics.stdev(values) if n > 1 else 0.0
    half = scipy.stats.t.ppf(0.975, n - 1) * deviation * math.sqrt(1 + 1 / n)
    half = max(1 / len(y), half)  # an accuracy is a number of rows: a difference of one is none
    as_trained = max(abs(then - mean), abs(now - mean)) <= half
    return as_trained and abs(of_weights - then) <= max(ROUNDING, 1 / len(y)), (
        f"{main} {then:.4f} was recorded, its weights have {of_weights:.4f}, and {now:.4f} came "
        f"out; {n} {whose} have {mean:.4f} ± {deviation:.4f}"
    )


def _differences(folder: Path, started: datetime, device: torch.device) -> str:
    """Returns in words in what the machine that trained a trial differs from this one."""
    earlier = [r for r in read_runs(folder) if str(r.get("started")) <= started.isoformat()]
    if not earlier:
        return "Which machine trained it is not recorded"
    then, now = earlier[-1], here(device)
    changed = [f"{k} was {then.get(k)!r} and is {now[k]!r}" for k in now if then.get(k) != now[k]]
    return "; ".join(changed) or "Versions and hardware are those that trained it"
