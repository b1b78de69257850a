"""What keeping a study costs: ask, resolve, look up, tell and files, without any training.

    python benchmarks/overhead.py                # 100, 1,000 and 10,000 trials
    python benchmarks/overhead.py --trials 200   # seconds; --json prints the numbers

CPU milliseconds a trial, in memory and to a folder, with TPE and with random proposals; the random
sampler costs next to nothing, so its column is labkit's own. The space is the field's network for
jets with seven multipliers for each of its four groups: 2,401 networks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from labkit import Search, load_data
from labkit.data import Dataset
from labkit.study import files, search

PARTS = ("ask", "resolve", "measure", "tell", "files", "rest")


def tables(n_trials: int, sampler: str) -> dict[str, Any]:
    """The configuration: two costs as objectives, which need no training."""
    return {
        "model": "hls4ml-jets",
        "dataset": "jsc",
        "search": {
            "search_space": {
                "name": "transform/linear_channel_multiplier",
                "setup": {"by": "type"},
                "seed": {
                    "default": {"config": {"name": ["NA"]}},
                    "linear": {
                        "config": {
                            "name": ["output_only"],
                            "channel_multiplier": [0.25, 0.5, 1, 2, 4, 8, 16],
                        }
                    },
                },
            },
            "strategy": {
                "sw_runner": {"basic_computations": {}},
                "setup": {"n_trials": n_trials, "sampler": sampler},
                "metrics": {
                    "total_flops": {"direction": "minimize"},
                    "parameters": {"direction": "maximize"},
                },
            },
        },
    }


class Clock:
    """CPU seconds of this process, by part; a part within another counts as itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = ["rest"]
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, whose time is that part's."""

        def run(*args: Any, **options: Any) -> Any:
            self._switch()
            self._parts.append(part)
            try:
                return function(*args, **options)
            finally:
                self._switch()
                self._parts.pop()

        return run


def measure(n_trials: int, sampler: str, data: Dataset, folder: Path | None) -> dict[str, float]:
    """Returns CPU milliseconds a trial, by part, and in all."""
    run = Search(tables(n_trials, sampler), data=data, folder=folder)
    clock = Clock()
    run.store.ask = clock.timed("ask", run.store.ask)  # type: ignore[method-assign]
    run.store.tell = clock.timed("tell", run.store.tell)  # type: ignore[method-assign]
    run.space.resolve = clock.timed("resolve", run.space.resolve)  # type: ignore[method-assign]
    run.experiment.measure = clock.timed("measure", run.experiment.measure)  # type: ignore[method-assign]
    write_results = search.write_results
    search.write_results = clock.timed("files", files.write_results)
    begin = time.process_time()
    try:
        results = run.run(progress=False)
    finally:
        search.write_results = write_results
    clock._switch()
    assert len(results.records) == n_trials
    assert np.isfinite(results.front["total_flops"]).all()
    seconds = clock.seconds | {"all": time.process_time() - begin}
    return {part: 1e3 * seconds.get(part, 0.0) / n_trials for part in (*PARTS, "all")}


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data = load_data("jsc")
    rows: list[dict[str, Any]] = []
    print(f"| trials | sampler | where | {' | '.join(PARTS)} | all |", file=sys.stderr)
    print("|--:|:--|:--|" + "--:|" * (len(PARTS) + 1), file=sys.stderr)
    for sampler in arguments.samplers:
        for n_trials in arguments.trials:
            for where in ("memory", "folder"):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "study" if where == "folder" else None
                    found = measure(n_trials, sampler, data, path)
                rows.append({"trials": n_trials, "sampler": sampler, "where": where, **found})
                numbers = " | ".join(f"{found[part]:.2f}" for part in (*PARTS, "all"))
                print(f"| {n_trials:,} | {sampler} | {where} | {numbers} |", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
