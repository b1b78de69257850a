"""The search configuration: the reference's TOML, checked before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from labkit.errors import LabkitError, did_you_mean
from labkit.study.runners import RUNNERS, RunnerSettings, get_runner
from labkit.training import TrainSettings

Direction = Literal["maximize", "minimize"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpaceTable(_Table):
    """`[search.search_space]`: the name of a space, and its own two tables."""

    name: str
    setup: dict[str, Any] = Field(default_factory=dict)
    seed: dict[str, Any]


class SetupTable(_Table):
    """`[search.strategy.setup]`.

    Attributes:
        n_trials: Trials of the whole study, those of earlier runs included.
        timeout: Seconds after which no new trial begins; `None` is no limit.
        sampler: Which of Optuna's samplers proposes; `grid` is another name of `bruteforce`.
        sum_scaled_metrics: One objective, the sum of the scaled metrics, in place of several.
        direction: Of that sum.
        n_jobs: Networks that train at once, at most: trials of one round, in one stack.
    """

    n_trials: int = Field(100, ge=1)
    timeout: float | None = Field(None, gt=0)
    sampler: Literal["random", "tpe", "nsgaii", "nsgaiii", "qmc", "bruteforce", "grid"] = "tpe"
    sum_scaled_metrics: bool = False
    direction: Direction | None = None
    n_jobs: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _sum_has_direction(self) -> Self:
        if self.sum_scaled_metrics and self.direction is None:
            raise ValueError("sum_scaled_metrics = true needs direction = 'maximize' or 'minimize'")
        return self


class MetricTable(_Table):
    """`[search.strategy.metrics.NAME]`: an objective."""

    scale: float = Field(1.0, allow_inf_nan=False)
    direction: Direction


class StrategyTable(_Table):
    """`[search.strategy]`. `eval_mode` is read and has no effect: runners set the mode."""

    name: Literal["optuna"] = "optuna"
    eval_mode: bool = False
    sw_runner: dict[str, dict[str, Any]] = Field(min_length=1)
    hw_runner: dict[str, dict[str, Any]] = Field(default_factory=dict)
    setup: SetupTable = SetupTable()
    metrics: dict[str, MetricTable] = Field(min_length=1)


class SearchTable(_Table):
    """`[search]`."""

    search_space: SpaceTable
    strategy: StrategyTable


class SearchConfig(_Table):
    """A whole configuration. The keys at the top are the reference's.

    Attributes:
        model: A name from `labkit.transform.models`, or `package.module:function`.
        dataset: A name, a file, or `package.module:function`; see `labkit.data.load_data`.
        label: The label column of a file of one's own.
        task: Only classification.
        max_epochs, batch_size, learning_rate: For `basic_train`, where its own table is silent.
        accelerator: `cpu`, `cuda` (or `gpu`), or `auto`: CUDA where there is any.
        project: The name of the study.
        seed: Of everything that is random.
        load_name: A checkpoint of trained weights, for `basic_evaluation`, and for
            `basic_train` with `weights = "keep"`.
        load_type: What kind it is; the kinds that need unpickling are refused.
        search: The search itself.
    """

    model: str
    dataset: str
    label: str = "label"
    task: Literal["cls", "classification"] = "cls"
    max_epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    accelerator: Literal["auto", "cpu", "cuda", "gpu"] = "auto"
    project: str = "labkit"
    seed: int = Field(0, ge=0, lt=2**32)
    load_name: Path | None = None
    load_type: Literal["pt", "pl", "safetensors"] = "pt"
    search: SearchTable

    @model_validator(mode="after")
    def _runners_are_valid(self) -> Self:
        self.runners("sw_runner")
        self.runners("hw_runner")
        strategy = self.search.strategy
        provided = [
            metric
            for name in (*strategy.sw_runner, *strategy.hw_runner)
            for metric in RUNNERS[name].metrics
        ]
        for metric in strategy.metrics:
            if metric not in provided:
                raise LabkitError(
                    f"search.strategy.metrics.{metric}: no runner measures it; "
                    f"{did_you_mean(metric, provided)}"
                )
        return self

    def runners(self, kind: Literal["sw_runner", "hw_runner"]) -> dict[str, RunnerSettings]:
        """Returns runner name → its settings, for the software or the hardware runners.

        Raises:
            LabkitError: No runner has that name, or its settings are wrong.
        """
        runners = {}
        inherited = ("max_epochs", "batch_size", "learning_rate")
        for name, table in getattr(self.search.strategy, kind).items():
            key = f"search.strategy.{kind}.{name}"
            settings_type = get_runner(key, name).settings
            trains = issubclass(settings_type, TrainSettings)
            defaults = {option: getattr(self, option) for option in inherited} if trains else {}
            try:
                runners[name] = settings_type.model_validate(defaults | table)
            except ValidationError as error:
                raise LabkitError(_explain(error, settings_type, key)) from error
        return runners


def load_config(source: str | Path | Mapping[str, Any] | SearchConfig) -> SearchConfig:
    """Returns a checked configuration.

    Args:
        source: The path of a TOML file, or the tables that one holds.

    Raises:
        LabkitError: The file cannot be read or a key is wrong; the message names the key, its
            value and what was expected.
    """
    if isinstance(source, SearchConfig):
        return source
    if not isinstance(source, Mapping):
        path = Path(source)
        try:
            source = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LabkitError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LabkitError(f"{path} is not valid TOML: {error}") from error
    try:
        return SearchConfig.model_validate(source)
    except ValidationError as error:
        raise LabkitError(_explain(error, SearchConfig)) from error


def with_overrides(
    config: SearchConfig,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> SearchConfig:
    """Returns a configuration with some values replaced; `None` leaves one as it is.

    Args:
        config: The configuration; it is not changed.
        trials: Replaces `n_trials`.
        epochs: Replaces `max_epochs`, at the top and in the tables of runners that train.
        seed: Replaces `seed`.

    Raises:
        LabkitError: A value is out of range.
    """
    tables = to_tables(config)
    if trials is not None:
        tables["search"]["strategy"]["setup"]["n_trials"] = trials
    if epochs is not None:
        tables["max_epochs"] = epochs
        for name, table in tables["search"]["strategy"]["sw_runner"].items():
            if issubclass(RUNNERS[name].settings, TrainSettings):
                table["max_epochs"] = epochs
    if seed is not None:
        tables["seed"] = seed
    return load_config(tables)


def to_tables(config: SearchConfig) -> dict[str, Any]:
    """Returns the tables of a configuration, as TOML can hold them."""
    return config.model_dump(mode="json", exclude_none=True)


def _explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """Returns pydantic's first complaint as one line: the key, the value, what was expected."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([where, *location] if where else location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "missing":
            return f"{key}: missing{more}"
        case "extra_forbidden":
            known = _keys(model, location[:-1])
            return f"{key}: unknown key; {did_you_mean(location[-1], known)}{more}"
        case "value_error":
            return f"{key}: {first['ctx']['error']}{more}".removeprefix(": ")
    expected = first["msg"].replace("Input should be", "expected")
    return f"{key}: {expected}, got {first['input']!r}{more}"


def _keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """Returns the keys that a table of the configuration may have."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif part in model.model_fields and part == "metrics":
            model = MetricTable
    return list(model.model_fields)
