"""The error that labkit raises for a mistake its user can mend, and a kind of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabkitError(ValueError):
    """A mistake in what labkit was given; the message names it and says what was expected."""


class DivergenceError(LabkitError):
    """Training ended in a loss that is not finite, as it would again."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns the end of an error message: the closest known word, or else all of them.

    Args:
        word: What was given.
        known: What would have been accepted.
    """
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of: {', '.join(known)}" if known else "there are none"
