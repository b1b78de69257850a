"""Users' own objects, by the name under which Python imports them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError


def import_object(key: str, reference: str) -> Any:
    """Returns the object that `package.module:name` names; the working directory is searched too.

    Args:
        key: The configuration key to name in an error.
        reference: Such as `"my_networks:wide_mlp"`.

    Raises:
        LabkitError: There is no such module, or it has no such name.
    """
    module_name, _, attribute = reference.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise LabkitError(f"{key}: cannot import {reference!r}: {error}") from error
