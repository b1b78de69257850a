"""The tables of a configuration's `[search]`: the space, the strategy and its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from labkit.checks import Table, plain
from labkit.study.record import Direction, Sampler
from labkit.study.starting import start_tables
from labkit.study.storage import as_url

Bound = Annotated[float, BeforeValidator(plain), Field(strict=True, allow_inf_nan=False)]


class SpaceTable(Table):
    """`[search.search_space]`: the name of a space, and its own two tables."""

    name: str
    setup: dict[str, Any] = Field(default_factory=dict)
    seed: dict[str, Any]


class SetupTable(Table):
    """`[search.strategy.setup]`.

    Attributes:
        n_trials: Trials of the whole study, those of earlier runs included.
        timeout: Seconds after which no new trial begins; `None` is no limit.
        sampler: What proposes: one of Optuna's samplers; `known-cost`, which learns only what is
            not known before a network trains, and with which a search from Python begins; or
            `bruteforce`, whose other name is `grid`.
        sum_scaled_metrics: One objective, the sum of the scaled metrics, in place of several.
        direction: Of that sum.
        n_jobs: Trials that a worker is given at once, at most: their networks train in one stack.
        baseline: Whether to train the original network first, as one of the trials.
        start_from: Networks to train next, as tables of layer → channels (16) or multiplier (0.5);
            or the results folder of an earlier search: those of its front.
        workers: Processes of this machine that train. By default one, and as many as there are
            cores once training has taken a while, where networks train one by one.
        storage: The URL of the storage that keeps the study; by default `study.db` in the results
            folder. An SQLite file is relative to the TOML.
    """

    n_trials: int = Field(100, ge=1)
    timeout: float | None = Field(None, gt=0)
    sampler: Annotated[Sampler, BeforeValidator(lambda s: "bruteforce" if s == "grid" else s)] = (
        "tpe"
    )
    sum_scaled_metrics: bool = False
    direction: Direction | None = None
    n_jobs: int = Field(16, ge=1)
    storage: Annotated[str, AfterValidator(lambda url, info: as_url(url, info.context))] | None = (
        None
    )
    workers: int | None = Field(None, ge=1)
    baseline: bool = True
    start_from: Annotated[
        str | tuple[dict[str, int | float], ...], BeforeValidator(start_tables)
    ] = ()

    @model_validator(mode="after")
    def _sum_has_direction(self) -> Self:
        if self.sum_scaled_metrics and self.direction is None:
            raise ValueError("sum_scaled_metrics = true needs direction = 'maximize' or 'minimize'")
        return self


class MetricTable(Table):
    """`[search.strategy.metrics.NAME]`: an objective."""

    scale: float = Field(1.0, allow_inf_nan=False)
    direction: Direction


class StrategyTable(Table):
    """`[search.strategy]`. `eval_mode` is read and has no effect: runners set the mode.

    Attributes:
        limits: Metric → what a network may have at most, or, where more is better, at least.
    """

    name: Literal["optuna"] = "optuna"
    eval_mode: bool = False
    sw_runner: dict[str, dict[str, Any]] = Field(min_length=1)
    hw_runner: dict[str, dict[str, Any]] = Field(default_factory=dict)
    setup: SetupTable = SetupTable()
    metrics: dict[str, MetricTable] = Field(min_length=1)
    limits: dict[str, Bound] = Field(default_factory=dict)


class SearchTable(Table):
    """`[search]`."""

    search_space: SpaceTable
    strategy: StrategyTable
