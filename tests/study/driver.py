"""A driver of a study as a process: it measures each network in a moment and notes that it did."""

import json
import os
import sys
import time
from pathlib import Path

from labkit.study import RunnerSettings, Search, register_runner
from labkit.study.config import simple_tables
from labkit.study.runners import CandidateNetwork

MULTIPLIERS = [0.25, 0.5, 0.75, 1, 1.5, 2]
N_NETWORKS = len(MULTIPLIERS) ** 2


class Settings(RunnerSettings):
    seconds: float


@register_runner("slow", Settings, metrics=["score"])
def slow(candidate: CandidateNetwork, settings: Settings) -> dict[str, float]:
    plan = candidate.plan.to_dict()
    with Path(os.environ["LOG"]).open("a") as log:
        log.write(json.dumps(plan) + "\n")
    time.sleep(settings.seconds)
    return {"score": float(sum(plan.values()))}


def make(
    storage: object, log: Path, *, sampler: str = "bruteforce", seconds: float = 0.05,
    n_jobs: int = 4, n_trials: int = N_NETWORKS, folder: Path | None = None, shared: bool = True,
) -> Search:  # fmt: skip
    """A search whose drivers may be many; what this process measures is in a log."""
    os.environ["LOG"] = str(log)
    tables = simple_tables({"default": MULTIPLIERS})
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"slow": {"seconds": seconds}}
    strategy["metrics"] = {"score": {"direction": "maximize"}}
    strategy["setup"] = {"sampler": sampler, "n_trials": n_trials, "n_jobs": n_jobs}
    tables |= {"model": "jsc-toy", "dataset": "jsc", "project": "many"}
    return Search(tables, storage=storage, folder=folder, shared=shared)  # type: ignore[arg-type]


if __name__ == "__main__":
    storage, log, options = sys.argv[1:]
    make(storage, Path(log), **json.loads(options)).run(progress=False)
