"""The tables of a study."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.study.front_tables import indistinguishable
from labkit.study.record import Source
from labkit.study.results import Results
from tests.study.conftest import description, results, trial


def test_elapsed_is_the_time_in_which_the_search_ran() -> None:
    table = results(
        trial(0, (0.5, 100), start=0, end=10),
        trial(1, (0.5, 100), start=1, end=11),  # of the same round
        trial(2, (0.5, 100), start=2, end=9),
        trial(3, (0.5, 100), start=5000, end=5003),  # the search was continued
        trial(4, None, start=5001, end=5004),
    ).trials
    assert table["elapsed"].tolist() == pytest.approx([10, 11, 9, 14, 15])
    assert table["seconds"][1] == 10


def test_counts_add_up() -> None:
    counts = results(
        trial(0, (0.5, 100)), trial(1, None), trial(2, (0.5, 100), source=Source.LOOKED_UP)
    ).counts()
    assert counts == "3 trials: 1 networks trained, 1 looked up, 1 failed"
    limited = replace(description(), limits={"loss": ("≤", 1.0)})
    failed = replace(results(trial(0, None)), description=limited)
    assert failed.counts() == "1 trials: 0 networks trained, 0 looked up, 1 failed"


def test_results_of_no_trials_are_empty_tables() -> None:
    empty = results()
    assert empty.trials.empty
    assert empty.counts().startswith("0 trials")
    assert empty.front.empty
    assert "COMPLETE" not in empty.best_markdown()
    with pytest.raises(LabkitError, match="no trial has finished"):
        empty.best()


def test_the_front_is_read_from_cheap_to_dear_with_its_spread_and_widths() -> None:
    found = (
        trial(0, (0.75, 3000), {"first": 16, "a.b": 4}),
        trial(1, (0.5, 1000), {"first": 8, "a.b": 4}),
        trial(2, (0.4, 2000), {"first": 9, "a.b": 4}),  # dominated
        trial(3, (0.5, 1000), {"first": 8, "a.b": 4}, source=Source.LOOKED_UP),  # the same network
    )
    table = results(*found).front_table()
    assert table.columns.tolist() == ["accuracy", "total_flops", "first", "a.b"]
    assert table.index.tolist() == [1, 0]
    assert table["first"].tolist() == [8, 16]
    assert "<td>1,000" in results(*found)._repr_html_()

    # What `labkit replicate` adds later replaces what the search saw.
    added = {0: [{"accuracy": 0.7}, {"accuracy": 0.9}], 1: [{"accuracy": 0.4}, {"accuracy": 0.4}]}
    again = results(*found, added_replicates=added)
    assert again.front_table()["accuracy"].tolist() == ["0.4000 ± 0.0000", "0.8000 ± 0.1414"]
    assert again.front_table()["ties"].tolist() == [[0], [1]]
    assert again.trials["accuracy"][0] == pytest.approx(0.8)
    assert again.trials["accuracy_std"][0] == pytest.approx(0.1414, abs=1e-4)  # a figure's bars
    assert again.best_trials["ties"].tolist() == [[1], [0]]


def test_replicates_of_a_few_are_not_compared() -> None:
    once = {0: [{"accuracy": 0.7}, {"accuracy": 0.9}], 1: [{"accuracy": 0.4}]}
    table = results(
        trial(0, (0.75, 3000)), trial(1, (0.5, 1000)), added_replicates=once
    ).best_trials
    assert "ties" not in table


def test_ties_are_what_a_paired_t_test_cannot_tell_apart() -> None:
    base = [0.70, 0.71, 0.69, 0.72, 0.70]
    assert indistinguishable(base, base)
    assert indistinguishable(base, [0.71, 0.70, 0.70, 0.71, 0.70])
    shifted = [value + shift for value, shift in zip(base, [0.01, 0.011, 0.012, 0.01, 0.011])]
    assert not indistinguishable(base, shifted)  # though the two ranges overlap


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_a_tie_is_a_difference_within_the_confidence_interval(
    pairs: list[tuple[float, float]],
) -> None:
    differences = np.array([a - b for a, b in pairs])
    spread = differences.std(ddof=1)
    if spread < 1e-6:
        return
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * spread / np.sqrt(len(pairs))
    if abs(abs(differences.mean()) - half) > 1e-9:
        a, b = zip(*pairs)
        assert indistinguishable(a, b) == (abs(differences.mean()) < half)


def test_metrics_that_only_some_trials_have_are_columns() -> None:
    table = results(
        trial(0, (0.5, 100), hardware_metrics={"latency": 2.0}), trial(1, (0.5, 100))
    ).trials
    assert table["latency"][0] == 2
    assert pd.isna(table["latency"][1])


def test_the_front_stands_beside_the_original() -> None:
    found = Results(
        (
            trial(0, (0.5, 1000), {"a": 8}),
            trial(1, (0.534, 2100), {"a": 16}),
            trial(2, (0.5, 1000), {"a": 8}, source=Source.LOOKED_UP),
        ),
        description(original={"a": 8}),
    )
    assert found.original == 0
    table = found.front_table()
    assert table["total_flops to original"].tolist() == ["×1", "×2.1"]
    assert table["accuracy to original"].tolist() == ["+0.0 points", "+3.4 points"]
    assert not any(isinstance(cell, dict) for row in table.to_numpy() for cell in row)
