"""Tables of a front: as the report prints it, and for people, beside the original network."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from labkit.table import Table
from labkit.training import main_of

if TYPE_CHECKING:
    from labkit.study.results import Results

# What the report's table shows of the software metrics; the files have all of them.
REPORT_METRICS = ("loss", "accuracy", "r2", "total_flops", "total_bitops")
SHARES = (
    "accuracy",
    "accuracy_macro",
    "balanced_accuracy",
    "f1",
    "auc",
    "r2",
)  # whose differences are told in points
_RECORDED = ("software_metrics", "hardware_metrics", "scaled_metrics")


def indistinguishable(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether Student's paired t-test, two-sided at 5%, finds no difference of the means.

    Args:
        a: One value a seed.
        b: The same for the same seeds.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    # Equal differences have no spread to test against: only the difference itself counts.
    if len(set(differences)) == 1:
        return differences[0] == 0
    import scipy.stats

    return bool(scipy.stats.ttest_rel(a, b).pvalue >= 0.05)


def best_trials(results: Results) -> pd.DataFrame:
    """Returns one row for each network on the front, as the report has it.

    Columns: `number`, `software_metrics`, `hardware_metrics`, `scaled_metrics`, and `network`.
    Where the networks have replicates, also `accuracy`, or `r2` (mean ± standard deviation), and
    `ties`, the numbers of those on the front whose accuracy is not told from its own by Student's
    paired t-test over the same seeds, two-sided at 5%, uncorrected for several tests.
    """
    front = results.front_trials
    columns = ["number", *_RECORDED, "network"]
    rows = [
        (t.number, *(getattr(t.record, name) for name in _RECORDED), str(t.record.plan))
        for t in front
    ]
    return Table(rows, columns=columns).join(_spread_and_ties(results), on="number")


def _spread_and_ties(results: Results) -> pd.DataFrame:
    """Returns columns of the main metric over seeds, where all of the front have several."""
    main = main_of(results.trials)
    accuracies = {
        t.number: [metrics[main] for metrics in results.replicates(t.number)]
        for t in results.front_trials
    }
    shared = min(map(len, accuracies.values()), default=0)
    if shared < 2:
        return pd.DataFrame()
    rows = {
        number: {
            main: f"{statistics.fmean(own):.4f} ± {statistics.stdev(own):.4f}",
            "ties": [
                other
                for other, theirs in accuracies.items()
                if other != number and indistinguishable(own[:shared], theirs[:shared])
            ],
        }
        for number, own in accuracies.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def front_table(results: Results) -> pd.DataFrame:
    """Returns the front, cheap first: objectives, what they are to the original's, and widths.

    A column such as `accuracy to original` is there where the original network was trained: a
    difference in points for what is a share, such as an accuracy, and a ratio, `×2.1`, for others.
    Where networks were trained with several rates, that which counts is a column.
    Objectives with replicates have their spread and ties, as in `best_trials`.
    """
    objectives = results.objectives
    costs = [metric for metric, way in objectives.items() if way == "minimize"]
    front = results.front.sort_values(costs) if costs else results.front
    rates = [key for key in ("learning_rate", "weight_decay") if key in front]
    table = front[[*objectives, *rates]].copy()
    spread = _spread_and_ties(results)
    if not spread.empty and spread.columns[0] in objectives:
        table[[*spread]] = spread
    if results.original is not None:
        for metric in objectives:
            original = float(results.trials[metric][results.original])
            table[f"{metric} to original"] = [_to(metric, v, original) for v in front[metric]]
    widths = [results.plan(number).to_dict() for number in front.index]
    of_layers = pd.DataFrame(widths, index=front.index)
    table = table.merge(
        of_layers, "left", left_index=True, right_index=True, suffixes=("", " width")
    )
    return table.rename_axis("trial")


def _to(metric: str, value: float, original: float) -> str | None:
    if metric in SHARES:
        return f"{100 * (value - original):+.1f} points"
    return f"×{value / original:.3g}" if original > 0 else None


def best_markdown(results: Results) -> str:
    """Returns the table of best trials as the report prints it."""
    table = results.best_trials.copy()
    shown = {*REPORT_METRICS, *results.objectives}

    def short(metrics: Mapping[str, float]) -> dict[str, float]:
        return {name: round(value, 3) for name, value in metrics.items() if name in shown}

    for column in _RECORDED:
        table[column] = table[column].map(short)
    return table.map(as_markdown).to_markdown()


def as_markdown(cell: object) -> Any:
    """Returns a cell whose names, which may be anyone's, are text and no markup."""
    if not isinstance(cell, str | dict):
        return cell
    one_line = " ".join(str(cell).split())
    return re.sub(r"([\\`|\[])", r"\\\1", html.escape(one_line, quote=False))
