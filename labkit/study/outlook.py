"""Before a search runs: what there is to name, what a configuration would do, and a first one."""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import tomli_w

from labkit.checks import checked
from labkit.data.loading import DATA, names_file
from labkit.errors import LabkitError
from labkit.operators import NotStackable
from labkit.study.config import CONFIGS, SearchConfig
from labkit.study.experiment import Experiment
from labkit.study.files import write
from labkit.study.known_cost import KnownCostSampler
from labkit.study.progress import clock
from labkit.study.proposals import make_sampler
from labkit.study.record import Candidate, Sampler
from labkit.study.runners import RUNNERS
from labkit.study.space import SPACES, count
from labkit.training import step_seconds
from labkit.training.settings import n_steps
from labkit.transform import Plan, cost_of
from labkit.transform.models import MODELS

FIRST = Path(__file__).with_name("first.toml")


def known_names() -> dict[str, dict[str, str]]:
    """Returns what a configuration may name: kind → name → what it is, in a line.

    Example:
        >>> known_names()["networks"]["jsc-tiny"]
        '16 → 5.'
    """
    samplers: dict[str, type] = {
        name: type(make_sampler(name, 0)) for name in typing.get_args(Sampler)
    }
    samplers |= {"known-cost": KnownCostSampler, "bruteforce": optuna.samplers.BruteForceSampler}
    measured: dict[str, str] = {}
    for name, runner in RUNNERS.items():
        for metric in runner.measures:
            measured[metric] = f"{measured[metric]}, {name}" if metric in measured else f"by {name}"
    return {
        "networks": {name: _line(made) for name, made in MODELS.items()},
        "data sets": {name: _line(read) for name, read in DATA.items()},
        "runners": {name: _line(runner.run) for name, runner in RUNNERS.items()},
        "metrics": measured,
        "samplers": {name: _line(kind) for name, kind in samplers.items()},
        "spaces": {name: _line(kind) for name, kind in SPACES.items()},
        "configurations": {
            name: " ".join(re.findall("^# (.*)", file.read_text("utf-8"), re.MULTILINE)[:1])
            for name, file in CONFIGS.items()
        },
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
    n = min(setup.n_trials, size.networks)
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


def write_first(file: Path, model: str, data: str, label: str) -> None:
    """Writes a first configuration, with comments, and checks that it can run.

    Args:
        file: Where; there must be none yet.
        model, data, label: As in `SearchConfig`, but a file of data is relative to here.

    Raises:
        LabkitError: The file exists, or there is no such network or data, or they do not fit.
    """
    if file.exists():
        raise LabkitError(f"file: {str(file)!r} exists; give another name")
    if names_file(data, place := Path(data).expanduser()):
        data = os.path.relpath(place, file.parent)
    text = FIRST.read_text("utf-8")
    values = {"model": model, "dataset": data, "label": label, "project": file.stem}
    for key, value in values.items():
        text = text.replace(f'{key} = ""\n', tomli_w.dumps({key: value}))
    config = checked(SearchConfig, tomllib.loads(text), context=file.parent)
    groups = [
        f"# {json.dumps(group.name, ensure_ascii=False)}.config.channel_multiplier = [1, 2]"
        f"  # now {group.width}"
        for group in Experiment(config).space.channels.free
    ]
    write(file, text.replace("# GROUPS", "\n".join(groups)))
