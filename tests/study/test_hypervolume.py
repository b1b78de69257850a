"""The hypervolume: areas by hand, points thrown at random, and searches on one scale."""

import math
from dataclasses import replace

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.study.hypervolume import _volumes, dominated_volume, hypervolume_history
from labkit.study.results import Results
from tests.study.conftest import results, trial


def one(*values: tuple[float, float] | None) -> Results:
    """A search of accuracy against FLOPs whose trials take 1, 2, 3, … seconds."""
    ends = np.cumsum(range(len(values) + 1)).tolist()
    return results(*(trial(i, v, start=ends[i], end=ends[i + 1]) for i, v in enumerate(values)))


FOUND = one((0.5, 100), (0.75, 300), (0.6, 400), (0.4, 200), None)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_volume_against_random_points_of_the_box(axes: int) -> None:
    rng = np.random.default_rng(axes)
    losses = rng.random((12, axes)).round(1)  # with ties
    thrown = rng.random((200_000, axes))
    dominated = (losses[:, None] <= thrown).all(axis=2).any(axis=0).mean()
    assert dominated_volume(losses, np.ones(axes)) == pytest.approx(dominated, abs=0.005)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_what_is_not_better_than_the_reference_has_no_volume(axes: int) -> None:
    assert dominated_volume(np.empty((0, axes)), np.ones(axes)) == 0
    at_the_edge = np.zeros((1, axes))
    at_the_edge[0, -1] = 1
    assert dominated_volume(at_the_edge, np.ones(axes)) == 0
    assert dominated_volume(at_the_edge - 1, np.ones(axes)) == 2 ** (axes - 1)


def test_volume_of_two_boxes() -> None:
    losses = np.array([[0.0, 0, 2], [1, 1, 0], [5, 0, 0]])
    # 4 × 4 × 2 and 3 × 3 × 4, which share 3 × 3 × 2; the last point is outside.
    assert dominated_volume(losses, np.full(3, 4.0)) == 32 + 36 - 18


def test_it_is_the_area_under_the_steps() -> None:
    history = hypervolume_history({"tpe": FOUND}, reference=[0.25, 400])
    # The box is 0.5 by 300. First 0.25 × 300; then 0.5 × 100 and, to its right, 0.25 × 200.
    assert history["hypervolume"].tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 3, 2 / 3])
    assert history["seconds"].tolist() == [1, 3, 6, 10]
    assert history["trial"].tolist() == [1, 2, 3, 4]
    assert history["search"].tolist() == ["tpe"] * 4


def test_what_is_worse_than_the_reference_counts_nothing() -> None:
    history = hypervolume_history({"tpe": FOUND}, reference=[0.25, 250])
    # The box is 0.5 by 150: the second network is better than all others, and too dear.
    assert history["hypervolume"].tolist() == pytest.approx([1 / 2] * 4)


def test_searches_share_the_worst_and_the_best_of_all() -> None:
    other = one((0.35, 150), (0.55, 500))
    history = hypervolume_history({"a": FOUND, "b": other})
    assert history["search"].tolist() == ["a"] * 4 + ["b"] * 2
    assert history["trial"].tolist() == [1, 2, 3, 4, 1, 2]
    # The box is from 0.35 to 0.75 and from 100 to 500.
    first, second = 0.15 * 400, 0.25 * 200
    box = 0.4 * 400
    assert history["hypervolume"].tolist() == pytest.approx(
        [first / box, *[(first + second) / box] * 3, 0, 0]
    )


def test_what_is_not_finite_adds_nothing() -> None:
    found = one((0.5, 100), (math.inf, 50), (0.75, math.nan), (0.25, 50))
    history = hypervolume_history({"a": found}, reference=[0, 200])
    # The box is 0.5 by 150.
    assert history["hypervolume"].tolist() == pytest.approx([2 / 3] * 3 + [2 / 3 + 1 / 6])
    nothing = hypervolume_history({"a": one((math.nan, 1))})
    assert nothing["hypervolume"].tolist() == [0]


def test_what_never_differs_is_the_best_that_was_found() -> None:
    assert hypervolume_history({"a": one(*[(0.5, 9)] * 3)})["hypervolume"].tolist() == [1, 1, 1]
    assert hypervolume_history({"a": one((0.5, 9), (0.7, 9))})["hypervolume"].tolist() == [0, 1]


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_a_history_is_the_volume_of_the_points_so_far(axes: int) -> None:
    losses = np.random.default_rng(axes).random((40, axes)).round(1)
    reference = np.full(axes, 0.9)
    assert _volumes(losses, reference) == pytest.approx(
        [dominated_volume(losses[: n + 1], reference) for n in range(40)]
    )


def test_other_objectives_are_refused() -> None:
    fewer = replace(FOUND.description, objectives={"accuracy": "maximize"})
    with pytest.raises(LabkitError, match="the searches have different objectives"):
        hypervolume_history({"a": FOUND, "b": replace(FOUND, description=fewer)})
