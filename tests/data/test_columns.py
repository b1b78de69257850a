"""Columns of text and with holes become numbers, by what the training rows alone show."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit import LabkitError
from labkit.data import Dataset

N = 120
LABELS = np.arange(N) % 2
COLOUR = np.array(["red", "blue", "green", "red"])[np.arange(N) % 4]
AGE = (np.arange(N) * 7.0) % 31


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"age": AGE, "row": np.arange(float(N)), "colour": COLOUR} | columns)


def test_text_is_one_hot() -> None:
    data = Dataset.from_arrays(frame(), LABELS)
    assert data.features == ("age", "row", "colour_blue", "colour_green", "colour_red")
    assert data.notes == ("one-hot: 'colour'",)
    assert data.ranges == ((0, 30), (0, N - 1), (0, 1), (0, 1), (0, 1))
    # Rows are known by their number; a colour is there where its column is above the mean.
    row = np.rint(np.interp(data.x_val[:, 1], *ends(data)))
    for column, colour in enumerate(["blue", "green", "red"], start=2):
        assert ((data.x_val[:, column] > 0).numpy() == (COLOUR[row.astype(int)] == colour)).all()
    assert (
        Dataset.from_arrays(frame(colour=pd.Categorical(COLOUR)), LABELS).fingerprint()
        == Dataset.from_arrays(frame(colour=COLOUR.astype(object)), LABELS).fingerprint()
        == data.fingerprint()
    )


def ends(data: Dataset) -> tuple[list[float], list[float]]:
    """The standardised numbers of the first and the last row, and these."""
    x = np.concatenate([data.x_train[:, 1], data.x_val[:, 1], data.x_test[:, 1]])
    return [x.min(), x.max()], [0, N - 1]


@pytest.mark.parametrize("nothing", [np.nan, None, pd.NA])
def test_missing_values_are_imputed_by_the_training_rows_alone(nothing: Any) -> None:
    ages, colours = AGE.astype(object), COLOUR.astype(object)
    ages[::5] = colours[::7] = nothing
    table = frame(age=ages, colour=colours)
    data = Dataset.from_arrays(table, LABELS, missing="impute")
    flags = ("missingindicator_age", "missingindicator_colour")
    assert set(data.features) - set(flags) == {
        "age", "row", "colour_blue", "colour_green", "colour_red",
    }  # fmt: skip
    assert "imputed, with a feature that says where: 'age' (24), 'colour' (18)" in data.notes
    train = np.rint(np.interp(data.x_train[:, data.features.index("row")], *row_ends(data)))
    known = [age for age in ages[train.astype(int)] if not pd.isna(age)]
    for split in ("train", "val", "test"):
        x = data.split(split).x.numpy()
        rows = np.rint(np.interp(x[:, data.features.index("row")], *row_ends(data))).astype(int)
        for flag, values in zip(flags, (ages, colours)):
            assert ((x[:, data.features.index(flag)] > 0) == pd.isna(values[rows])).all()
        # Standardising is linear: the imputed age lies where the median is among the others.
        age = x[:, data.features.index("age")]
        here = pd.isna(ages[rows])
        slope, offset = np.polyfit(ages[rows][~here].astype(float), age[~here], 1)
        np.testing.assert_allclose((age[here] - offset) / slope, np.median(known), atol=1e-4)
        red = x[here := pd.isna(colours[rows]), data.features.index("colour_red")]
        assert (red > 0).all()  # the commonest of them


def row_ends(data: Dataset) -> tuple[list[float], list[float]]:
    column = data.features.index("row")
    x = np.concatenate([data.split(s).x[:, column] for s in ("train", "val", "test")])
    return [x.min(), x.max()], [0, N - 1]


def test_holes_that_the_training_rows_lack_are_filled_without_a_flag() -> None:
    holes = frame(age=[np.nan, *AGE[1:]], colour=[None, *COLOUR[1:]])
    data = Dataset.from_splits(
        frame(), LABELS, holes, LABELS, frame(), LABELS, missing="impute"
    )  # fmt: skip
    assert data.features == ("age", "row", "colour_blue", "colour_green", "colour_red")
    assert data.x_val[0, 0] == pytest.approx((np.median(AGE) - AGE.mean()) / AGE.std(), abs=1e-5)
    assert (data.x_val[0, 2:] > 0).tolist() == [False, False, True]


def test_many_texts_are_as_many_columns() -> None:
    letters = np.array([*"abcdefghijklmnopqrst"])[np.arange(N) % 20]
    data = Dataset.from_arrays(frame(colour=letters)[["colour"]], LABELS)
    assert data.features == tuple(f"colour_{letter}" for letter in sorted({*letters}))
    assert ((data.x_test > 0).sum(1) == 1).all()


def test_rows_with_missing_values_are_left_out_on_demand() -> None:
    table = frame(age=np.where(np.arange(N) % 6 == 0, np.nan, AGE))
    data = Dataset.from_arrays(table, LABELS, missing="drop")
    whole = np.arange(N) % 6 != 0
    alone = Dataset.from_arrays(table[whole], LABELS[whole])
    assert data.fingerprint() == alone.fingerprint()
    assert (data.features, data.ranges) == (alone.features, alone.ranges)
    assert data.notes[0] == "left out 20 of 120 rows"


def test_a_mark_for_what_is_missing_is_known() -> None:
    marked = np.where(np.arange(N) % 6 == 0, "?", AGE.astype(str))
    with pytest.raises(LabkitError, match=r"x: missing values in \{'age': 20\}"):
        Dataset.from_arrays(frame(age=marked), LABELS)
    data = Dataset.from_arrays(frame(age=marked), LABELS, missing="drop")
    assert data.notes[0] == "'?' in 'age' is a missing value"


def test_a_text_that_the_training_rows_lack_is_none_of_them() -> None:
    strange = frame()[:12].assign(colour="violet")
    data = Dataset.from_splits(frame(), LABELS, strange, LABELS[:12], frame(), LABELS)
    assert data.features[2:] == ("colour_blue", "colour_green", "colour_red")
    assert (data.x_val[:, 2:] < 0).all()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"categories": "error"}, r"'colour' holds text, such as 'red'; .*drop=\['colour'\]"),
        ({"id": [f"a{i}" for i in range(N)]}, {}, "'id' holds 120 texts in 120 rows, such as 'a0'"),
        ({"age": [*AGE[1:].astype(str), "<3"]}, {}, "'age' holds numbers, but '<3' in row 119"),
        ({"age": pd.date_range("2026-01-01", periods=N)}, {}, "'age' is of type datetime64"),
        ({"age": ["2026-01-31", "2026-02-01"] * (N // 2)}, {}, "'age' holds dates, such as '2026-"),
        ({"age": pd.to_timedelta(AGE, "s")}, {}, "'age' is of type timedelta64"),
        ({"age": [{}] * N}, {}, "'age' is of type object"),
        ({"age": AGE + 1j}, {}, "'age' is of type complex128"),
        ({"age": [None] * N}, {"missing": "impute"}, "'age' is empty"),
        ({"age": np.where(AGE == 3, np.inf, AGE)}, {}, r"infinite values in \{'age': 3\}; correct"),
        (
            {"age": [np.nan, *AGE[1:]], "colour": [None, None, *COLOUR[2:]]}, {},
            r"missing values in \{'age': 1, 'colour': 2\}; write drop=\['age', 'colour'\], "
            r"missing='impute', or missing='drop', which leaves 118 of 120 rows",
        ),
        ({"colour_red": AGE}, {}, "x: its columns cannot be made numbers: .*colour_red"),
    ],
)  # fmt: skip
def test_all_columns_at_fault_are_named_with_what_to_write(
    columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabkitError, match=message):
        Dataset.from_arrays(frame(**columns), LABELS, **options)
    both = {"one": [{}] * N, "two": [f"a{i}" for i in range(N)]}
    with pytest.raises(LabkitError, match=r"'one' .*'two' .*drop=\['one', 'two'\]"):
        Dataset.from_arrays(frame(**both), LABELS)
