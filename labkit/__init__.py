"""Find how wide each layer of a small neural network should be."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

# Name → the module that it is imported from when it is first used. The list is `__init__.pyi`.
_HOMES = {
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom) and statement.module
    for alias in statement.names
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    try:
        home = import_module(_HOMES[name])
        value = getattr(home, name, None) or import_module(f"{_HOMES[name]}.{name}")
    except ModuleNotFoundError as error:
        from labkit.errors import LabkitError

        said = f"labkit.{name} needs {error.name}: pip install 'labkit[lab]'"
        raise LabkitError(said) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
