"""Messages: one short line, whatever was given."""

import pickle

import pytest

from labkit.errors import DivergenceError, LabkitError, did_you_mean, in_words, shown


def test_a_message_is_one_line_of_at_most_300_characters() -> None:
    message = "key: expected\x00 a \n\t number, got " + "9" * 100_000 + "; write 1"
    said = str(LabkitError(message))
    assert said.startswith("key: expected a number, got 999")
    assert said.endswith("99; write 1")
    assert " … " in said
    assert len(said) <= 300
    assert said.isprintable()
    assert str(LabkitError("x" * 300)) == "x" * 300
    said.encode()
    assert str(LabkitError("a\ud800b")) == "a b"  # which no file and no terminal takes


def test_a_message_survives_a_process() -> None:
    error = pickle.loads(pickle.dumps(DivergenceError("x" * 400)))
    assert isinstance(error, DivergenceError)
    assert len(str(error)) < 300


class Wordless:
    """What cannot say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_any_value_is_shown_in_a_few_words() -> None:
    for value in (10**100_000, [10**100_000], Wordless(), [0] * 10**6, "x" * 10**6, {1: {2: {}}}):
        assert 0 < len(shown(value)) <= 100


def test_a_value_nested_5000_deep_is_shown() -> None:
    value: list[object] = []
    for _ in range(5_000):
        value = [value]
    assert shown(value).startswith("[[[[")


def test_what_other_code_raises_is_a_labkit_error() -> None:
    with pytest.raises(LabkitError, match=r"^a.csv: no such column$"), in_words("a.csv"):
        raise OSError("no such column")
    with pytest.raises(LabkitError, match=r"^a.csv: MemoryError$"), in_words("a.csv"):
        raise MemoryError
    with pytest.raises(LabkitError, match=r"^own words$"), in_words("a.csv"):
        raise LabkitError("own words")
    with pytest.raises(KeyboardInterrupt), in_words("a.csv"):
        raise KeyboardInterrupt


def test_a_long_word_is_compared_at_once() -> None:
    assert did_you_mean("max_epoch", ["max_epochs"]) == "did you mean 'max_epochs'?"
    assert did_you_mean("x" * 10**6, ["max_epochs"]) == "expected one of: max_epochs"
