"""Fronts against their definition, point by point."""

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.study.front import Front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=25)


@given(POINTS)
def test_a_front_is_what_nothing_dominates(points: list[tuple[int, int, int]]) -> None:
    front: Front[int] = Front(["maximize", "minimize", "minimize"])
    for i, point in enumerate(points):
        admitted = front.admits(point)
        front.add(i, point)
        assert (i in front.members) == admitted
    losses = np.array([(-a, b, c) for a, b, c in points]).reshape(-1, 3)
    expected = [
        i
        for i, own in enumerate(losses)
        if not any((other <= own).all() and (other < own).any() for other in losses)
    ]
    assert front.members == expected


def test_optuna_finds_the_same_front() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    front: Front[int] = Front(["maximize", "minimize"])
    values = np.random.default_rng(0).integers(0, 30, (200, 2))
    for i, (a, b) in enumerate(values):
        study.add_trial(optuna.trial.create_trial(values=[float(a), float(b)]))
        front.add(i, (float(a), float(b)))
    assert front.members == sorted(trial.number for trial in study.best_trials)


@pytest.mark.parametrize(("way", "best"), [("maximize", 3), ("minimize", 0)])
def test_of_one_value_the_best_is_left(way: str, best: int) -> None:
    front: Front[int] = Front([way])
    for i in range(4):
        front.add(i, [float(i)])
    assert front.members == [best]
