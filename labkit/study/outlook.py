"""Before a search runs: what there is to name, what a configuration would do, and a first one."""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import optuna
import tomli_w

from labkit.checks import checked
from labkit.data.loading import DATA, names_file
from labkit.errors import LabkitError
from labkit.operators import NotStackable
from labkit.study.config import SearchConfig
from labkit.study.experiment import Experiment, data_of
from labkit.study.files import write
from labkit.study.known_cost import KnownCostSampler
from labkit.study.progress import clock
from labkit.study.proposals import make_sampler
from labkit.study.record import Candidate, Sampler
from labkit.study.runners import RUNNERS
from labkit.study.space import SPACES, count
from labkit.study.toml_files import CONFIGS
from labkit.training import MAIN_METRIC, direction_of, step_seconds
from labkit.training.settings import n_steps
from labkit.transform import Plan, cost_of
from labkit.transform.models import MODELS


def known_names() -> dict[str, dict[str, str]]:
    """Returns what a configuration may name: kind → name → what it is, in a line."""
    samplers: dict[str, type] = {n: type(make_sampler(n, 0)) for n in typing.get_args(Sampler)}
    samplers |= {"known-cost": KnownCostSampler, "bruteforce": optuna.samplers.BruteForceSampler}
    measured: dict[str, list[str]] = {}
    for name, runner in RUNNERS.items():
        for metric in runner.measures:
            measured.setdefault(metric, []).append(name)
    documented: dict[str, Mapping[str, object]] = {
        "networks": MODELS, "data sets": DATA, "samplers": samplers, "spaces": SPACES,
        "runners": {name: runner.run for name, runner in RUNNERS.items()},
    }  # fmt: skip
    firsts = {name: file.read_text("utf-8").partition("\n")[0] for name, file in CONFIGS.items()}
    return {
        **{kind: {n: _line(one) for n, one in known.items()} for kind, known in documented.items()},
        "metrics": {m: f"{direction_of(m)}; by {', '.join(by)}" for m, by in measured.items()},
        "configurations": {name: line.removeprefix("# ") for name, line in firsts.items()},
    }


def _line(made: object) -> str:
    """Returns the first paragraph of a docstring as a line."""
    first = (inspect.getdoc(made) or "").partition("\n\n")[0]
    return " ".join(first.split()).removeprefix("Returns ")


def outlook(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yields what a search would do, in words; nothing is trained but a few steps, of copies."""
    config, space, data = experiment.config, experiment.space, experiment.data
    setup, training, size = config.search.strategy.setup, experiment.training, count(space)
    widths = ", ".join(f"{group.name} {group.width}" for group in space.channels.free)
    yield "network", f"{config.model}: {widths}"
    yield "data", f"{data}"
    yield "space", f"{config.search.search_space.name}: {size}"
    plans = sorted(space.sample, key=lambda plan: plan.widths)
    options = config.computations.cost_options(config.batch_size)
    costs = [cost_of(space.channels, plan, **options) for plan in [None, *plans]]
    drawn = "" if space.enumerable else f", of {len(plans):,} drawn"
    for name in ("total_flops", "total_bitops", "parameters"):
        own, *others = (getattr(cost, name) for cost in costs)
        yield name, f"{min(others):,} to {max(others):,}{drawn}; {own:,} as it is"
    for said in experiment.said:
        yield "limits", said
    ways = (f"{way.direction} {name}" for name, way in config.search.strategy.metrics.items())
    yield "objectives", ", ".join(ways)
    yield "search", f"{setup.n_trials} trials by {setup.sampler}, seed {config.seed}"
    if training is None:
        return
    n = min(setup.n_trials, experiment.n_networks)
    lists = {"seeds": experiment.seeds, "rates": experiment.variants}
    each = "".join(f" × {len(several)} {of}" for of, several in lists.items() if len(several) > 1)
    epochs = f"{training.max_epochs} epochs on {data.x_train.device}"
    yield "training", f"at most {n:,} networks{each} × {epochs}"
    yield "time", _time(experiment, plans, n)


def _time(experiment: Experiment, plans: Sequence[Plan], n: int) -> str:
    """Returns about how long it takes to train some networks, from a few steps of a stack."""
    data, task = experiment.data, experiment.task
    training = task.settings_of(experiment.candidates(plans[0])[0])
    size = min(experiment.config.search.strategy.setup.n_jobs, n)
    sample = plans[:: -(-len(plans) // size)]
    networks = [task.build(Candidate(plan, seed=0)) for plan in sample]
    try:
        seconds = min(step_seconds(networks, experiment.space.channels, data, training))
    except NotStackable as reason:
        return f"not known before it runs: {reason}"
    steps = n_steps(len(data.x_train[: training.num_samples]), training)
    n *= len(experiment.candidates(plans[0]))
    of = f"a stack of {len(networks)}" if len(networks) > 1 else "one network"
    return f"about {clock(seconds / len(networks) * n * steps)}, by a few steps of {of}"


def write_first(file: Path, **values: str) -> None:
    """Writes a first configuration, with comments, once it is checked that it can run.

    Args:
        file: Where; there must be none yet.
        **values: `model`, `dataset`, `label` and `task`, as in `SearchConfig`; what is empty is
            left to its default. Files are relative to here.

    Raises:
        LabkitError: The file exists, or there is no such network or data, or they do not fit.
    """
    if file.exists():
        raise LabkitError(f"file: {str(file)!r} exists; give another name")
    if names_file(values["dataset"], place := Path(values["dataset"]).expanduser()):
        values["dataset"] = os.path.relpath(place, file.parent)
    given = {key: value for key, value in {**values, "project": file.stem}.items() if value}
    keys = re.compile(f"(# )?({'|'.join(given)}) = ")
    text = "".join(
        tomli_w.dumps({found[2]: given[found[2]]}) if (found := keys.match(line)) else line
        for line in CONFIGS["first"].read_text("utf-8").splitlines(keepends=True)
    )
    data = data_of(checked(SearchConfig, tomllib.loads(text), context=file.parent))
    text = text.replace("accuracy.direction", f"{MAIN_METRIC[data.task]}.direction")
    config = checked(SearchConfig, tomllib.loads(text), context=file.parent)
    groups = [
        f"# {json.dumps(group.name, ensure_ascii=False)}.config.channel_multiplier = [1, 2]"
        f"  # now {group.width}\n"
        for group in Experiment(config, data=data).space.channels.free
    ]
    write(file, re.sub('(# "seq_.*\n)+', lambda _: "".join(groups), text))
