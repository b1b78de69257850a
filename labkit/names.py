"""Users' own objects, by the name under which Python imports them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TypeVar

from labkit.errors import LabkitError

T = TypeVar("T")


def build(key: str, reference: str, kind: type[T]) -> T:
    """Calls the function or class that `package.module:name` names, without arguments.

    The working directory is searched too.

    Args:
        key: The configuration key to name in an error.
        reference: Such as `"my_networks:wide_mlp"`.
        kind: What it must return.

    Raises:
        LabkitError: There is no such module or name, or it does not return what it must.
    """
    module_name, _, attribute = reference.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LabkitError(f"{key}: cannot import {reference!r}: {error}") from error
    if not callable(function):
        raise LabkitError(f"{key}: expected {reference!r} to be a function, got {function!r}")
    built = function()
    if not isinstance(built, kind):
        raise LabkitError(
            f"{key}: expected {reference!r} to return a {kind.__name__}, "
            f"got a {type(built).__name__}"
        )
    return built
