"""An experiment: the network, data and space of a search, and how a candidate is measured."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from labkit import names
from labkit.data import Dataset, load_data
from labkit.data.columns import Reading
from labkit.data.loading import names_file
from labkit.errors import LabkitError, in_words
from labkit.operators import register_operator
from labkit.study import fingerprint
from labkit.study.checkpoint import load_weights
from labkit.study.config import SearchConfig, to_tables
from labkit.study.dialects import fitted
from labkit.study.executor import Task, device_of
from labkit.study.limits import Limits, bounds_of
from labkit.study.record import Candidate, Failure, FailureKind, Metrics, Outcome, Record, Source
from labkit.study.runners import CandidateNetwork, as_number, basic_computations, measure
from labkit.study.space import get_space
from labkit.study.starting import first_networks, with_networks
from labkit.study.studies import Description
from labkit.training import check_fit, selected
from labkit.transform import Plan, find_channels, get_model

# What may change between two runs that continue the same study. Data and weights are known by what
# they hold, wherever they are.
BUDGET = (
    "n_trials", "timeout", "n_jobs", "sampler", "storage", "workers", "baseline", "start_from",
)  # fmt: skip
PLACES = ("dataset", "load_name")


class Experiment:
    """What a configuration names, found and checked; nothing is trained yet.

    Args:
        config: The configuration.
        model: A network, in place of the one that the configuration names.
        data: A data set, in place of the one that the configuration names.

    Attributes:
        config: As given, without what follows from the network.
        model: The network before the transform.
        data: The data set, on the device that trains.
        space: The search space.
        training: How candidates are trained; `None` where the search does not train.
        limits: What networks must keep.
        n_networks: How many networks may train, within what is known of that, at most.
        first: The networks that are trained before all others.
        said: What is decided of limits and these, in words.

    Raises:
        LabkitError: Something does not exist, the network does not fit the data, no network is
            within the limits, or one that was asked for is not in the space.
    """

    def __init__(
        self, config: SearchConfig, model: nn.Module | None = None, data: Dataset | None = None
    ):
        self.training = config.training
        self._operators = [
            register_operator(names.imported("operators", name)) for name in config.operators
        ]
        self.model = get_model(model if model is not None else config.model)
        data = data_of(config) if data is None else data
        if isinstance(data, Dataset) and config.task not in (None, data.task):
            raise LabkitError(f"task: {data.name} is for {data.task}, got {config.task!r}")
        with in_words("model: it cannot be trained"):
            check_fit(self.model.cpu(), data, self.training)
        if self.training is not None and self.training.weights == "keep":
            if config.load_name is None:
                raise LabkitError("load_name: weights = 'keep' needs the path of a checkpoint")
            self.model = copy.deepcopy(self.model)  # the user's own keeps the weights it has
            load_weights(self.model, config.load_name)
        self.data = data.to(device_of(config.accelerator))
        channels = find_channels(self.model, data.x_val[:1])
        self.config = with_networks(fitted(config, channels))
        table = self.config.search.search_space
        self.space = get_space(table.name)(channels, table.setup, table.seed)
        self.space.check_searchable()
        strategy = self.config.search.strategy
        self.limits = Limits(bounds_of(strategy), self.counted)
        self.n_networks, said = self.limits.within(self.space)
        self.first, left_out = first_networks(strategy.setup, self.space, self.limits)
        self.n_networks += sum(self.space.nearest(plan)[0] != plan for plan in self.first)
        self.said = [line for line in (said, *left_out) if line]

    @property
    def seeds(self) -> range:
        """The seeds that each network is trained with."""
        replicates = self.training.replicates if self.training else 1
        return range(self.config.seed, self.config.seed + replicates)

    @property
    def variants(self) -> list[dict[str, float]]:
        """The rates of each training of a network with one seed, where the settings list any."""
        return self.training.variants if self.training else [{}]

    def candidates(self, plan: Plan) -> list[Candidate]:
        """Returns all trainings of a network."""
        return [Candidate(plan, seed, **one) for seed in self.seeds for one in self.variants]

    @functools.cached_property
    def task(self) -> Task:
        """What an executor needs to know beside the candidates."""
        assert self.training is not None
        training = self.training
        return Task(
            self.model, self.data, training, training.weights, self.space.channels,
            self._operators, self.config.accelerator,
        )  # fmt: skip

    def description(self) -> Description:
        """Returns what its study says of itself."""
        strategy = self.config.search.strategy
        objectives = {name: metric.direction for name, metric in strategy.metrics.items()}
        directions = objectives
        if strategy.setup.sum_scaled_metrics and strategy.setup.direction is not None:
            directions = {"sum of scaled metrics": strategy.setup.direction}
        about = {
            "model": self.config.model,
            "dataset": self.data.name,
            "seed": self.config.seed,
            "convention": self.config.computations.convention,
            "input_shape": list(self.data.x_val.shape[1:]),
            "original": {group.name: group.width for group in self.space.channels.free},
        }
        return Description(self._identity(), objectives, directions, about, self.limits.bounds)

    def _identity(self) -> fingerprint.Identity:
        version = importlib.metadata.version("labkit")  # another one may train otherwise
        task = "cls" if self.data.task == "classification" else self.data.task  # its first name
        settings = {"labkit": version, **_flatten(to_tables(self.config)), "task": task}
        for key in (*PLACES, "strict", *(f"search.strategy.setup.{option}" for option in BUDGET)):
            settings.pop(key, None)
        keeps = self.training is not None and self.training.weights == "keep"
        definitions: dict[str, object] = {
            name: runner.run for name, (runner, _) in self.config.all_runners.items()
        }
        definitions[self.config.search.search_space.name] = type(self.space)
        own = {} if self.training is None else self.task.own
        checkpoint = self.config.load_name
        if checkpoint is not None and checkpoint.is_file():
            definitions["load_name"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return fingerprint.Identity(
            settings,
            fingerprint.network_identity(self.space.channels, with_weights=keeps),
            self.data.fingerprint(),
            {name: fingerprint.definition(one) for name, one in definitions.items()}
            | {n: fingerprint.definition_of_own(getattr(f, "measure", f)) for n, f in own.items()},
        )

    def counted(self, plan: Plan) -> Metrics:
        """Returns the metrics that widths alone decide: nothing is built."""
        if "basic_computations" not in self.config.software:
            return {}
        network = CandidateNetwork(
            plan, self.space.channels, self.model, self.data, batch_size=self.config.batch_size
        )
        return basic_computations(network, self.config.computations)

    def known_values(self, plan: Plan) -> list[float]:
        """Returns the values of the objectives that widths alone decide; NaN for the others."""
        strategy = self.config.search.strategy
        if strategy.setup.sum_scaled_metrics:
            return [math.nan]
        counted = self.counted(plan)
        return [m.scale * counted.get(name, math.nan) for name, m in strategy.metrics.items()]

    def selected(self, history: Sequence[Metrics]) -> Metrics:
        """Returns the metrics of a training: those of the epoch that counts."""
        assert self.training is not None
        return selected(history, self.training)

    def values(self, record: Record) -> list[float] | None:
        """Returns the values of a trial's objectives; `None` where it failed, or did not train."""
        scaled = list(record.scaled_metrics.values())
        if not scaled:
            return None
        return [sum(scaled)] if self.config.search.strategy.setup.sum_scaled_metrics else scaled

    def untrained(self, plan: Plan) -> Record:
        """Returns what is to be recorded of a network that is not trained for a limit."""
        known = {"software_metrics": self.counted(plan), "constraints": self.limits.known(plan)}
        return Record(widths=plan.to_dict(), **known)

    def measure(self, plan: Plan, outcomes: Sequence[Outcome]) -> Record:
        """Runs all runners on a network.

        Args:
            plan: Its widths.
            outcomes: Of its trainings, one a seed; empty where the search does not train.

        Returns:
            All that is to be recorded but the configuration that proposed it, and its trial.
        """
        rates = outcomes[0].candidate.rates if outcomes else {}
        record = Record(widths=plan.to_dict(), rates=rates)
        failure = next((one.failure for one in outcomes if one.failure is not None), None)
        if failure is not None:
            return record.model_copy(update={"failure": failure})
        network = CandidateNetwork(
            plan, self.space.channels, self.model, self.data, outcomes,
            self.config.batch_size, self.config.load_name,
        )  # fmt: skip
        objectives = self.config.search.strategy.metrics
        try:
            software = measure(network, self.config.software)
            hardware = measure(network, self.config.hardware)
            measured = software | hardware
            wanted = (*objectives, *self.limits.bounds)
            if missing := [name for name in wanted if name not in measured]:
                raise LabkitError(f"{missing[0]}: no runner returned this metric")
            measured_record = record.model_copy(
                update={
                    "source": Source.TRAINED,
                    "software_metrics": software,
                    "hardware_metrics": hardware,
                    "scaled_metrics": {n: m.scale * measured[n] for n, m in objectives.items()},
                    "history": outcomes[0].history if outcomes else [],
                    "replicates": [self.selected(outcome.history) for outcome in outcomes],
                    "constraints": self.limits.excess(measured),
                }
            )
            for value in self.values(measured_record) or ():
                as_number("search.strategy.metrics: a scaled metric, or the sum", value)
        except LabkitError as error:
            failure = Failure.of(FailureKind.RUNNER, error)
            return record.model_copy(update={"failure": failure})
        return measured_record


def data_of(config: SearchConfig) -> Dataset:
    """Returns the data set that a configuration names.

    Raises:
        LabkitError: It names none, or one that cannot be used.
    """
    if names_file(config.dataset, place := Path(config.dataset)) and not place.exists():
        raise LabkitError(
            f"dataset: there is no file {config.dataset!r}; correct it in the TOML (a "
            "study knows its data by what they hold), or give data="
        )
    return load_data(config.dataset, **{key: getattr(config, key) for key in Reading.model_fields})


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        inner = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
