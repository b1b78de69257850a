"""The tables of a study."""

from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest

from labkit.results import INTERRUPTED, TRAINED, Results


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
