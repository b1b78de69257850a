"""The error that labkit raises for a mistake its user can mend, a kind of it, and its words."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Iterator

LONGEST = 300  # characters of a message


class LabkitError(ValueError):
    """A mistake in what labkit was given; the message names it and says what was expected.

    The message is one line, of at most 300 characters: from a longer one, the middle is left out.
    """

    def __init__(self, message: str):
        printable = "".join(c if c.isprintable() else " " for c in message)
        line = " ".join(printable.split())
        if len(line) > LONGEST:
            line = f"{line[:190]} … {line[-100:]}"
        super().__init__(line)


class DivergenceError(LabkitError):
    """Training ended in a loss that is not finite, as it would again."""


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = self.maxtuple = 8
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write longer ones.
        return super().repr_int(x, level) if x.bit_length() < 10_000 else "a number of many digits"


shown = _Shown().repr  # what was given, in a few words, whatever it is


@contextlib.contextmanager
def in_words(problem: str) -> Iterator[None]:
    """Says in words what other code raises within: a library's, or a user's, which may raise any.

    Args:
        problem: The key and what is wrong; what the error says comes after it.
    """
    try:
        yield
    except LabkitError:
        raise
    except Exception as error:
        raise LabkitError(f"{problem}: {str(error) or type(error).__name__}") from error


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns the end of an error message: the closest known word, or else all of them.

    Args:
        word: What was given.
        known: What would have been accepted.
    """
    known = list(known)
    # Of a long one the beginning is enough, and takes no minutes.
    close = difflib.get_close_matches(shown(word).strip("'"), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of: {', '.join(known)}" if known else "there are none"
