"""The tables of a study."""

from datetime import datetime, timedelta
from typing import Any

import optuna
import pandas as pd
import pytest

from labkit.show.tables import html_table
from labkit.study.results import INTERRUPTED, TRAINED, Results


def add(study: optuna.Study, start: float, end: float, **attributes: Any) -> None:
    """Adds a trial that ran between two times, in seconds."""
    state = optuna.trial.TrialState.FAIL if attributes else optuna.trial.TrialState.COMPLETE
    study.add_trial(
        optuna.trial.FrozenTrial(
            number=0, trial_id=0, state=state, value=None, params={}, distributions={},
            values=[0.5, 100] if not attributes else None, intermediate_values={}, system_attrs={},
            datetime_start=datetime(2026, 1, 1) + timedelta(seconds=start),
            datetime_complete=datetime(2026, 1, 1) + timedelta(seconds=end),
            user_attrs={"source": TRAINED, "plan": {"a": 8}, "software_metrics": {},
                        "hardware_metrics": {}, "scaled_metrics": {}} | attributes,
        )
    )  # fmt: skip


def test_elapsed_is_the_time_in_which_the_search_ran() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    add(study, 0, 10)
    add(study, 1, 11)  # of the same round
    add(study, 2, 9)
    add(study, 20, 5000, failure=INTERRUPTED)  # its process was killed, and continued later
    add(study, 5000, 5003)
    add(study, 5001, 5004, failure="ValueError: no")
    trials = Results.from_study(study).trials
    assert trials["elapsed"].drop(3).tolist() == pytest.approx([10, 11, 9, 14, 15])
    assert trials["elapsed"].isna().tolist() == [False, False, False, True, False, False]
    assert trials["seconds"][1] == 10


def test_counts_add_up_while_a_search_runs() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    add(study, 0, 10)
    study.ask()
    counts = Results.from_study(study).counts()
    assert counts == "2 trials: 1 networks trained, 0 looked up, 0 failed, 1 running"


def test_the_front_is_read_from_cheap_to_dear_with_its_spread_and_widths() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.set_user_attr("objectives", {"accuracy": "maximize", "total_flops": "minimize"})
    for values, width in (([0.75, 3000], 16), ([0.5, 1000], 8)):
        metrics = {"accuracy": values[0], "total_flops": values[1], "accuracy_std": 0.01}
        plan = {"first": width, "a.b": 4}
        study.add_trial(
            optuna.create_trial(
                values=values,
                user_attrs={"source": TRAINED, "plan": plan, "software_metrics": metrics,
                            "hardware_metrics": {}, "scaled_metrics": {}},
            )
        )  # fmt: skip
    results = Results.from_study(study)
    table = results.front_table()
    assert table.columns.tolist() == ["accuracy", "total_flops", "first", "a.b"]
    assert table.index.tolist() == [1, 0]
    assert table["accuracy"].tolist() == ["0.5000 ± 0.0100", "0.7500 ± 0.0100"]
    assert table["first"].tolist() == [8, 16]
    assert "<td>1,000</td>" in results._repr_html_()

    # What `labkit replicate` adds later replaces the spread that the search saw.
    study.set_user_attr("replicates", {"0": [{"accuracy": 0.7}, {"accuracy": 0.9}],
                                       "1": [{"accuracy": 0.4}, {"accuracy": 0.4}]})  # fmt: skip
    again = Results.from_study(study).front_table()
    assert again["accuracy"].tolist() == ["0.4000 ± 0.0000", "0.8000 ± 0.1414"]


def test_tables_for_pages() -> None:
    table = pd.DataFrame({"whole": [1234.0, None], "part": [0.5, 2], "name": ["<b>", None]})
    shown = html_table(table.astype({"whole": "Int64"}))
    assert "NA" not in shown
    assert "None" not in shown
    assert html_table(table.head(0)).count("<td>") == 0
    for cell in ("1,234", "", "0.5000", "2.0000", "&lt;b&gt;"):
        assert f"<td>{cell}</td>" in shown
