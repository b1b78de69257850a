"""Nothing is built twice: what the report's search traces, analyses and builds."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from torch import fx

from labkit.data import Dataset
from labkit.study import executor
from labkit.study.search import Search
from labkit.transform import walk as walk_module


def test_the_reports_search_traces_once_and_builds_each_candidate_once(
    tables: dict[str, Any], blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        return run

    monkeypatch.setattr(fx.Tracer, "trace", counted("trace", fx.Tracer.trace))
    analysis = walk_module.Walk
    monkeypatch.setattr(analysis, "__init__", counted("analysis", analysis.__init__))
    monkeypatch.setattr(executor, "apply", counted("apply", executor.apply))
    tables["search"]["strategy"]["setup"] |= {"n_trials": 16, "sampler": "bruteforce"}
    results = Search(tables, data=blobs).run(progress=False)
    assert len(results.networks) == 16
    # Each network of other widths is traced, too, and compared with what was meant.
    assert calls == {"trace": 16, "analysis": 1, "apply": 16}
