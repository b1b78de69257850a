"""From a name to an object: one that labkit knows, or `package.module:name`, a user's own.

Networks, data sets, losses, metrics, runners, spaces and operators are all named this way. What a
user runs may name code; what a user opens, such as a results folder from elsewhere, may not, unless
it is trusted.
"""

import contextlib
import contextvars
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from labkit.errors import LabkitError, did_you_mean, shown
from labkit.runtime import importable_from

T = TypeVar("T")

_trusted = contextvars.ContextVar("trusted", default=True)


@contextlib.contextmanager
def opening(*, trust: bool) -> Iterator[None]:
    """While a folder is opened: imports what it names only where the user trusts who wrote it."""
    token = _trusted.set(trust)
    try:
        yield
    finally:
        _trusted.reset(token)


def find(key: str, name: str, known: Mapping[str, Any], what: str, more: str = "") -> Any:
    """Returns what a name stands for.

    Args:
        key: The configuration key to name in an error.
        name: A key of `known`, or `package.module:name`, which is imported.
        known: The objects that have a name of their own.
        what: What they are, such as `"network"`, for the message.
        more: What else the caller would have taken, for the message.

    Returns:
        A value of `known`, or whatever was imported: the caller checks that.

    Raises:
        LabkitError: Nothing has that name, or importing it failed.
    """
    if name in known:
        return known[name]
    if ":" in name:
        return imported(key, name)
    hint = f"{did_you_mean(name, known)} (or package.module:name{more})"
    raise LabkitError(f"{key}: unknown {what} {name!r}; {hint}")


def imported(key: str, reference: str) -> Any:
    """Returns the object that `package.module:name` names; the working directory is searched too.

    Raises:
        LabkitError: There is no such module or name, the module raised when it was imported, or a
            folder names it that is not trusted.
    """
    if not _trusted.get():
        raise LabkitError(
            f"{key}: the folder names code, {reference!r}, which is run only where you trust who "
            "made it, by trust=True or --trust"
        )
    with _users_code(f"{key}: cannot import {reference!r}"):
        return pkgutil.resolve_name(reference)


def build(key: str, name: str, make: Any, kind: type[T]) -> T:
    """Returns what a function or class makes when it is called without arguments.

    Args:
        key: The configuration key to name in an error.
        name: What the configuration calls the function.
        make: The function, as `find` returned it.
        kind: What it must return.

    Raises:
        LabkitError: It is no function, it raised, or it returned something else.
    """
    if not callable(make):
        raise LabkitError(f"{key}: expected {name!r} to be a function, got {shown(make)}")
    with _users_code(f"{key}: {name!r} failed, called without arguments"):
        built = make()
    if not isinstance(built, kind):
        got = f"got a {type(built).__name__}"
        raise LabkitError(f"{key}: expected {name!r} to return a {kind.__name__}, {got}")
    return built


@contextlib.contextmanager
def _users_code(problem: str) -> Iterator[None]:
    """Imports from the working directory too, and says in words what the code within raised."""
    # A file may have been written a moment ago. What importlib.invalidate_caches does breaks where
    # another thread imports meanwhile.
    here = Path.cwd()
    for place in list(sys.path_importer_cache):
        if place.startswith(str(here)):
            sys.path_importer_cache.pop(place, None)
    with importable_from(here):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it may raise anything, SystemExit too
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise LabkitError(f"{problem}: {said}") from error
