"""The search configuration: the reference's TOML, checked before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationInfo,
    model_validator,
)

from labkit.checks import checked, plain
from labkit.data.columns import Reading
from labkit.data.loading import names_file
from labkit.errors import LabkitError, did_you_mean, in_words, shown
from labkit.study.dialects import tell, translated
from labkit.study.record import COLUMNS
from labkit.study.runners import (
    RUNNERS,
    BasicComputationsSettings,
    BasicTrainSettings,
    Rates,
    Runner,
    RunnerSettings,
    get_runner,
)
from labkit.study.search_tables import SearchTable, SetupTable
from labkit.study.toml_files import read_toml, toml_file
from labkit.training import TrainSettings
from labkit.training.metrics import METRICS, find_metric

# Multipliers for all groups of channels, or for each layer, group or pattern.
Widths = Sequence[float] | Mapping[str, Sequence[float]]
DEFAULT_PROJECT = "labkit"
# What runners that train take from the top of a configuration, where their own tables are silent.
INHERITED = ("max_epochs", "batch_size", "learning_rate")

T = TypeVar("T", str, Path)


def _located(file: T, info: ValidationInfo) -> T:
    """Returns where a file is; in a TOML, relative to the TOML. A name of no file stays."""
    with in_words(f"cannot look for {shown(str(file))}"):
        place = ((info.context or Path()) / Path(file).expanduser()).resolve()
        return type(file)(place) if isinstance(file, Path) or names_file(file, place) else file


class SearchConfig(Reading):
    """A whole configuration. The keys at the top are the reference's.

    Attributes:
        model: A name from `labkit.transform.models`, or `package.module:function`.
        dataset: A name, a file, or `package.module:function`; see `labkit.data.load_data`. Files
            are relative to the TOML.
        label, drop, separator, encoding, missing, categories: How a file of one's own is read, as
            for `labkit.data.load_data`.
        task: `classification` (or `cls`), `binary` or `regression`; by default that of the data.
        max_epochs, batch_size, learning_rate: For `basic_train`, where its own table is silent.
        accelerator: `cpu`, `cuda` (or `gpu`), or `auto`: CUDA where there is any.
        project: The name of the study.
        seed: Of everything that is random.
        load_name: A checkpoint of trained weights, for `basic_evaluation`, and for
            `basic_train` with `weights = "keep"`.
        load_type: What kind it is; the kinds that need unpickling are refused.
        operators: `package.module:ClassName` of operators for layers of one's own.
        strict: Whether nothing may be read as another dialect has it; see `labkit.study.dialects`.
        search: The search itself.
    """

    model: str
    dataset: Annotated[str, AfterValidator(_located)]
    max_epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=2, lt=2**31)
    learning_rate: Rates = 1e-3
    accelerator: Literal["auto", "cpu", "cuda", "gpu"] = "auto"
    project: str = DEFAULT_PROJECT
    seed: int = Field(0, ge=0, lt=2**32)
    load_name: Annotated[Path, AfterValidator(_located)] | None = None
    load_type: Literal["pt", "pl", "safetensors"] = "pt"
    operators: tuple[str, ...] = ()
    strict: bool = False
    search: SearchTable

    @model_validator(mode="after")
    def _objectives_are_measured(self) -> Self:
        provided = [m for runner, _ in self.all_runners.values() for m in runner.measures]
        strategy = self.search.strategy
        for table, measured in (("metrics", strategy.metrics), ("limits", strategy.limits)):
            for metric in measured:
                where = f"search.strategy.{table}.{metric}"
                if metric not in provided:
                    known = did_you_mean(metric, provided)
                    raise LabkitError(f"{where}: no runner measures it; {known}")
                spread = metric in RUNNERS["basic_train"].metrics
                if spread and self.training and self.training.replicates < 2:
                    raise LabkitError(
                        f"{where}: it needs replicates = 2 or more, got {self.training.replicates}"
                    )
        return self

    # Checked once: a search asks for them at every network.
    @functools.cached_property
    def software(self) -> dict[str, tuple[Runner, RunnerSettings]]:
        """Name → the runner and its settings, of the software runners."""
        return self._runners("sw_runner")

    @functools.cached_property
    def hardware(self) -> dict[str, tuple[Runner, RunnerSettings]]:
        """Name → the runner and its settings, of the hardware runners."""
        return self._runners("hw_runner")

    def _runners(self, kind: str) -> dict[str, tuple[Runner, RunnerSettings]]:
        runners = {}
        for name, table in getattr(self.search.strategy, kind).items():
            key = f"search.strategy.{kind}.{name}"
            runner = get_runner(key, name)
            trains = issubclass(runner.settings, TrainSettings)
            defaults = {option: getattr(self, option) for option in INHERITED} if trains else {}
            settings = checked(runner.settings, defaults | table, key)
            if (more := getattr(settings, "metrics", None)) is not None:
                strategy = self.search.strategy
                judged = [m for m in (*strategy.metrics, *strategy.limits) if m in METRICS]
                asked = dict.fromkeys(find_metric(m) for m in (*more, *judged))
                names = {*COLUMNS, *(m for one in RUNNERS.values() for m in one.metrics)}
                if taken := [m for m in asked if m in names]:
                    raise LabkitError(
                        f"metrics.{taken[0]}: a runner's metric, or a column of the trials, is "
                        "called so; give yours another name"
                    )
                settings = settings.model_copy(update={"metrics": tuple(asked)})
            runners[name] = runner, settings
        return runners

    @property
    def all_runners(self) -> dict[str, tuple[Runner, RunnerSettings]]:
        """Name → the runner and its settings."""
        return self.software | self.hardware

    @property
    def training(self) -> BasicTrainSettings | None:
        """How candidates are trained; `None` where the search does not train."""
        _, settings = self.software.get("basic_train", (None, None))
        return settings if isinstance(settings, BasicTrainSettings) else None

    @property
    def computations(self) -> BasicComputationsSettings:
        """How FLOPs are counted."""
        _, settings = self.software.get("basic_computations", (None, None))
        if isinstance(settings, BasicComputationsSettings):
            return settings
        return BasicComputationsSettings()

    @property
    def offered(self) -> dict[str, list[float]]:
        """Layer → the multipliers that the space offers it, where it offers any."""
        offered = {}
        for layer, entry in self.search.search_space.seed.items():
            # A space of one's own has tables of its own.
            config = entry.get("config") if isinstance(entry, Mapping) else None
            options = config.items() if isinstance(config, Mapping) else ()
            lists = [v for key, v in options if key.endswith("_multiplier")]
            if lists:
                offered[layer] = sorted({m for values in lists for m in values})
        return offered

    def replace(
        self,
        *,
        objectives: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        widths: Widths | None = None,
        offered: Mapping[str, Sequence[float]] | None = None,
        **settings: Any,
    ) -> SearchConfig:
        """Returns a configuration with some values replaced; `None` leaves one as it is.

        Args:
            objectives: Metric → `"maximize"` or `"minimize"`. What measures them is added.
            limits: As `StrategyTable` has them. What measures them is added.
            widths: Replaces the space by one choice for each group of channels: a list of
                multipliers for all, or layer, group or pattern → a list.
            offered: Layer → multipliers, in place of those in the space's tables.
            **settings: Keys of the configuration by their names alone: of its top, such as `seed`;
                of the setup, such as `n_trials`; and of training, such as `max_epochs`, for every
                runner that trains.

        Raises:
            LabkitError: There is no such key, or a value is wrong.

        Example:
            >>> config = load_config("jsc-toy").replace(n_trials=20, max_epochs=2)
        """
        tables = to_tables(self)
        strategy = tables["search"]["strategy"]
        for key, value in settings.items():
            for table in _tables_with(key, tables) if value is not None else ():
                table[key] = value.tolist() if hasattr(value, "tolist") else value
        if objectives is not None:
            _set_objectives(strategy, objectives)
        if limits is not None:
            strategy["limits"] = limits
            _add_runners(strategy, limits if isinstance(limits, Mapping) else ())
        if widths is not None:
            tables["search"]["search_space"] = _space_of(widths)
        for layer, multipliers in (offered or {}).items():
            config = tables["search"]["search_space"]["seed"][layer]["config"]
            for option in config:
                if option.endswith("_multiplier"):
                    config[option] = list(multipliers)
        return load_config(tables)


def _tables_with(key: str, tables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the tables of a configuration in which a key belongs."""
    strategy = tables["search"]["strategy"]
    places: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (SearchConfig, tables),
        (SetupTable, strategy["setup"]),
        *(
            (settings, table)
            for name, table in strategy["sw_runner"].items()
            if issubclass(settings := get_runner(name, name).settings, TrainSettings)
        ),
    ]
    found = [table for settings, table in places if key in settings.model_fields]
    if not found:
        known = [field for settings, _ in places for field in settings.model_fields]
        known += ["objectives", "limits", "widths"]
        raise LabkitError(f"{key}: unknown key; {did_you_mean(key, known)}")
    yield from found


def _set_objectives(strategy: dict[str, Any], objectives: Mapping[str, str]) -> None:
    """Gives a strategy's tables objectives, and what measures them."""
    if not isinstance(objectives, Mapping):
        raise LabkitError(
            f"objectives: expected metric → 'maximize' or 'minimize', got {shown(objectives)}"
        )
    kept = strategy["metrics"]
    strategy["metrics"] = {m: {**kept.get(m, {}), "direction": objectives[m]} for m in objectives}
    _add_runners(strategy, objectives)


def _add_runners(strategy: dict[str, Any], metrics: Iterable[str]) -> None:
    """Gives a strategy's tables runners for the metrics that none measures yet."""
    for metric in metrics:
        used = [*strategy["sw_runner"], *strategy.get("hw_runner", {})]
        if not any(metric in get_runner(name, name).measures for name in used):
            measures = (name for name, runner in RUNNERS.items() if metric in runner.measures)
            if (runner := next(measures, None)) is not None:
                strategy["sw_runner"][runner] = {}


def _space_of(widths: Widths) -> dict[str, Any]:
    """Returns the table of a space with one choice for each group of channels."""
    lists = dict(widths) if isinstance(widths, Mapping) else {"default": widths}
    for values in lists.values():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise LabkitError(
                f"widths: expected a list of multipliers, or layer → list, got {shown(values)}"
            )
    return {
        "name": "transform/channel_multiplier",
        "setup": {"by": "name"},
        "seed": {
            key: {"config": {"channel_multiplier": [plain(value) for value in values]}}
            for key, values in ({"default": [1]} | lists).items()
        },
    }


def simple_tables(widths: Widths, metric: str = "accuracy") -> dict[str, Any]:
    """Returns the tables of a search that trains and counts FLOPs: where one from Python begins.

    Args:
        widths: As `SearchConfig.replace` takes them.
        metric: What is maximised.
    """
    return {
        "search": {
            "search_space": _space_of(widths),
            "strategy": {
                "sw_runner": {"basic_train": {}, "basic_computations": {}},
                "metrics": {
                    metric: {"direction": "maximize"},
                    "total_flops": {"direction": "minimize"},
                },
                "setup": {"sampler": "known-cost"},
            },
        }
    }


def load_config(
    source: str | Path | Mapping[str, Any] | SearchConfig, *, strict: bool = False
) -> SearchConfig:
    """Returns a checked configuration, and logs what it read as another dialect has it.

    Args:
        source: The path of a TOML file, the name of one of `CONFIGS`, or the tables of one.
        strict: As its key `strict = true`.

    Raises:
        LabkitError: The file cannot be read or a key is wrong; the message names the key, its
            value and what was expected.
    """
    if isinstance(source, SearchConfig):
        return source
    base = None
    if isinstance(source, str | Path):
        path = toml_file(source)
        base, source = path.parent, read_toml(path)
    if not isinstance(source, Mapping):
        expected = "expected the path of a TOML file, or its tables"
        raise LabkitError(f"config: {expected}, got {shown(source)}")
    tables, said = translated(source, base or Path())
    config = checked(SearchConfig, tables | ({"strict": True} if strict else {}), context=base)
    tell(said, config.strict)
    return config


def to_tables(config: SearchConfig) -> dict[str, Any]:
    """Returns the tables of a configuration, as TOML can hold them."""
    with in_words("config: it cannot be written as TOML"):
        return config.model_dump(mode="json", exclude_none=True)
