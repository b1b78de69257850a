"""The trained networks of a front: kept while they are on it, and opened again."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import FiniteFloat, PositiveInt
from torch import nn

from labkit import names
from labkit.checks import Table, as_path, check_memory, checked, readable
from labkit.errors import LabkitError, in_words, shown
from labkit.study.checkpoint import load_weights
from labkit.study.config import load_config
from labkit.study.files import remove, write
from labkit.study.record import Candidate, Metrics, Outcome, Record, Trial
from labkit.study.results import Results
from labkit.study.studies import open_study
from labkit.training import main_of
from labkit.transform import Channels, Plan, apply, get_model


class FrontNetworks:
    """The networks of a search's front, in its folder or in memory.

    In the folder, a network is `best/trial_N.safetensors`, and its plan `best/trial_N.json`.

    Args:
        folder: The results folder, or `None`.
        model: The network before the transform.
        channels: Its channel groups.
        input_shape: Of one row of the data.
    """

    def __init__(
        self, folder: Path | None, model: nn.Module, channels: Channels, input_shape: Sequence[int]
    ):
        self._folder, self._model, self._channels = folder, model, channels
        self._input_shape = list(input_shape)
        self._in_memory: dict[int, tuple[Plan, Mapping[str, torch.Tensor]]] = {}

    def keep(self, number: int, record: Record, trained: Outcome) -> None:
        """Keeps the network of a trial, and how it was trained, of which its last digits depend."""
        if self._folder is None:
            self._in_memory[number] = record.plan, trained.weights
            return
        best = self._folder / "best"
        with in_words(f"out: cannot make {str(best)!r}"):
            best.mkdir(exist_ok=True)
        description = {
            "number": number,
            "plan": record.widths,
            "input_shape": self._input_shape,
            "software_metrics": record.software_metrics,
            "hardware_metrics": record.hardware_metrics,
            "threads": trained.threads,
            "stack": [{"plan": c.plan.to_dict(), "seed": c.seed, **c.rates} for c in trained.stack],
        }
        write(best / f"trial_{number}.json", json.dumps(description, indent=2) + "\n")
        # The weights come last: they are what says that a network is there.
        tensors = {name: t.detach().cpu().contiguous() for name, t in trained.weights.items()}
        write(best / f"trial_{number}.safetensors", safetensors.torch.save(tensors))

    def missing(self, front: Iterable[Trial]) -> list[Trial]:
        """Returns the trials of a front that trained a network which is not whole in the folder."""
        if self._folder is None:
            return []
        return [t for t in front if t.record.history and not _is_whole(self._folder, t)]

    def drop_others(self, front: Iterable[int]) -> None:
        """Removes the networks of trials that are not on the front."""
        kept = set(front)
        for number in self._in_memory.keys() - kept:
            del self._in_memory[number]
        if self._folder is not None:
            for suffix in ("safetensors", "json"):  # a kill may have left one of the two
                for number in saved_networks(self._folder, suffix) - kept:
                    remove(self._folder / "best" / f"trial_{number}.{suffix}")

    def open(self, number: int) -> nn.Module:
        """Returns the trained network of a trial, in evaluation mode.

        Raises:
            LabkitError: It is not on the front.
        """
        if self._folder is not None:
            return _opened(self._folder, number, self._model)
        if number not in self._in_memory:
            raise LabkitError(
                f"number: the network of trial {number} was not kept, since this search did not "
                "train it; search with a folder to keep the front's networks"
            )
        plan, weights = self._in_memory[number]
        network = apply(self._model, plan, channels=self._channels, seed=0)
        network.load_state_dict(weights)
        network.eval()
        return network


def saved_networks(folder: Path, suffix: str = "safetensors") -> set[int]:
    """Returns the numbers of the trials whose networks are in `best/`."""
    numbers = (path.stem.removeprefix("trial_") for path in folder.glob(f"best/trial_*.{suffix}"))
    return {int(number) for number in numbers if number.isdecimal()}


def load_best(
    folder: str | Path,
    number: int | None = None,
    *,
    model: nn.Module | None = None,
    trust: bool = False,
) -> nn.Module:
    """Returns a trained network of a search's Pareto front, in evaluation mode.

    Args:
        folder: The results folder.
        number: Its trial; by default the network with the highest accuracy, or R².
        model: The network that was searched, where the search was given a module and not a name.
        trust: Whether to run the code that the folder names as `package.module:name`.

    Raises:
        LabkitError: The folder holds no networks, or not this one. The search, run in it again,
            trains those of the front whose weights are missing.

    Example:
        >>> network = labkit.load_best("results/jsc_toy")
    """
    folder = as_path("folder", folder)
    trained = _trained(folder)
    if not trained:
        raise LabkitError(f"folder: {str(folder)!r} holds no trained networks (best/trial_*)")
    if number is None:
        number = max(trained, key=lambda n: trained[n].get(main_of(trained[n]), 0.0))
    if not isinstance(number, Hashable) or number not in trained:
        raise LabkitError(
            f"number: trial {shown(number)} is not on the front; expected one of {sorted(trained)}"
        )
    if number not in saved_networks(folder):
        raise LabkitError(
            f"number: the weights of trial {number} are not in {str(folder / 'best')!r}; "
            "the same search, run again in this folder, trains them"
        )
    with names.opening(trust=trust):
        return _opened(folder, number, model)


def read_results(folder: str | Path, *, trust: bool = False) -> Results:
    """Returns the results of a folder, with its networks; see `load_best` for the arguments."""
    folder = as_path("folder", folder)
    opened = functools.partial(load_best, folder, trust=trust)
    return replace(Results.from_study(open_study(folder)), folder=folder, open_network=opened)


def _trained(folder: Path) -> dict[int, Metrics]:
    """Returns the front's networks → what was measured; those in `best/` without a study."""
    try:
        results = Results.from_study(open_study(folder))
        rows: Any = results.front.to_dict("index")  # with means over replicates, as `best` has them
        return {t.number: rows[t.number] for t in results.front_trials if t.record.history}
    except LabkitError:
        described: dict[int, Metrics] = {}
        for number in sorted(saved_networks(folder)):
            described[number] = {}
            with contextlib.suppress(LabkitError):  # which opening this one says
                described[number] = _description(folder, number).software_metrics
        return described


class _Trained(Table):
    """A candidate, as a file names it."""

    plan: dict[str, int]
    seed: int
    learning_rate: FiniteFloat | None = None
    weight_decay: FiniteFloat | None = None


class _Description(Table):
    """What `trial_N.json` holds."""

    number: int
    plan: dict[str, int]
    input_shape: list[PositiveInt]
    software_metrics: dict[str, FiniteFloat]
    hardware_metrics: dict[str, FiniteFloat]
    threads: PositiveInt = 1
    stack: tuple[_Trained, ...] = ()


def _description(folder: Path, number: int) -> _Description:
    path = readable("folder", folder / "best" / f"trial_{number}.json")
    with in_words(f"folder: {str(path)!r} cannot be read"):
        return checked(_Description, path.read_bytes(), path.name)


def stack_of(folder: Path, number: int) -> tuple[int, list[Candidate]]:
    """Returns how many threads trained a network of the front, and the networks of its stack."""
    description = _description(folder, number)
    stack = [
        Candidate(Plan(tuple(c.plan.items())), c.seed, c.learning_rate, c.weight_decay)
        for c in description.stack
    ]
    return description.threads, stack


def _is_whole(folder: Path, trial: Trial) -> bool:
    """Whether the files of a trial's network are there, and neither cut nor another network's."""
    try:
        path = readable("folder", folder / "best" / f"trial_{trial.number}.safetensors")
        with safetensors.safe_open(path, "pt"):
            return _description(folder, trial.number).plan == trial.record.widths
    except (OSError, safetensors.SafetensorError, LabkitError):
        return False


def _opened(folder: Path, number: int, model: nn.Module | None) -> nn.Module:
    if model is None:
        try:
            model = get_model(load_config(folder / "config.toml").model)
        except LabkitError as error:
            raise LabkitError(f"{error}; a module of one's own is given by model=") from error
    chosen = _description(folder, number)
    check_memory("input_shape: one row", 4 * math.prod(chosen.input_shape))
    example = torch.zeros(1, *chosen.input_shape)
    network = apply(model, Plan(tuple(chosen.plan.items())), example_input=example, seed=0)
    load_weights(network, folder / "best" / f"trial_{number}.safetensors")
    network.eval()  # which returns nothing where its own `train` does
    return network
