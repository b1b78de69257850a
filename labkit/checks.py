"""What comes from outside, checked before it is used: tables, files, and the memory they take."""

from __future__ import annotations

import numbers
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from labkit.errors import LabkitError, did_you_mean, in_words, shown

TableType = TypeVar("TableType", bound=BaseModel)


class Table(BaseModel):
    """A table of settings: frozen, and a `LabkitError` where a key or a value is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        for key, given in values.items() if isinstance(values, Mapping) else ():
            kind = cls.model_fields[key].annotation if key in cls.model_fields else None
            takes = {kind, *get_args(kind)}
            if takes & {bool, int, float} and (bool in takes) != isinstance(given, bool):
                expected = "true or false" if bool in takes else "a number"
                raise ValueError(f"{key}: expected {expected}, got {shown(given)}")
        return values

    if not TYPE_CHECKING:  # a type checker knows the fields

        def __init__(self, **values):
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise LabkitError(_explain(error, type(self))) from error

        __init__.__pydantic_base_init__ = True  # pydantic goes around it for a table in a table


def checked(
    kind: type[TableType], values: object, where: str = "", *, context: object = None
) -> TableType:
    """Returns a table of a kind.

    Args:
        kind: Its class.
        values: Key → value; or bytes, which are JSON.
        where: The key of the table, to go before those in it.
        context: What its fields' own checks need to know.

    Raises:
        LabkitError: A key or a value is wrong; the message names both and what was expected.
    """
    try:
        if isinstance(values, bytes):
            return kind.model_validate_json(values, context=context)
        return kind.model_validate(values, context=context)
    except ValidationError as error:
        raise LabkitError(_explain(error, kind, where)) from error


def _explain(error: ValidationError, kind: type[BaseModel], where: str = "") -> str:
    """Returns pydantic's first complaint as one line: the key, the value, what was expected."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([where, *location] if where else location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "missing":
            return f"{key}: missing{more}"
        case "extra_forbidden":
            known = _keys(kind, location[:-1])
            return f"{key}: unknown key; {did_you_mean(location[-1], known)}{more}"
        case "value_error":
            reason = str(first["ctx"]["error"]).removeprefix(
                f"{location[-1]}: " if location else ""
            )
            return f"{key}: {reason}{more}".removeprefix(": ")
        case "too_short":
            return f"{key}: expected at least one entry, got {shown(first['input'])}{more}"
    expected = first["msg"].replace("Input should be", "expected")
    return f"{key}: {expected}, got {shown(first['input'])}{more}".removeprefix(": ")


def _keys(kind: type[BaseModel], location: list[str]) -> list[str]:
    """Returns the keys that a table may have."""
    for part in location:
        if part not in kind.model_fields:  # the name of an entry, of the kind found above
            continue
        annotation = kind.model_fields[part].annotation
        kinds = (annotation, *get_args(annotation))
        kind = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(kind.model_fields)


def plain(value: object) -> object:
    """Returns a number, such as one of NumPy's, as TOML can hold it; all else as it is."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def as_path(key: str, given: object) -> Path:
    """Returns a path that a user gave.

    Raises:
        LabkitError: It is something else, or too long for one.
    """
    with in_words(f"{key}: expected a path, got {shown(given)}"):
        path = Path(given)  # type: ignore[arg-type]
        path.exists()  # raises where no file can have such a name
    return path


def readable(key: str, path: Path) -> Path:
    """Returns the path of a file that can be read into memory.

    Args:
        key: What named it, for an error.
        path: Of the file.

    Raises:
        LabkitError: There is no such file, it is something else (a folder, a pipe, a device), or
            what it holds is larger than the memory that is free.
    """
    with in_words(f"{key}: cannot read {shown(str(path))}"):
        if not path.is_file():
            raise LabkitError(f"{key}: there is no file {str(path)!r}")
        size = path.stat().st_size
        if zipfile.is_zipfile(path):  # an NPZ file, or torch's
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
        elif path.suffix.lower() == ".gz":  # which ends in its size
            with path.open("rb") as file:
                file.seek(-4, 2)
                size = max(size, int.from_bytes(file.read(), "little"))
        check_memory(f"{key}: {str(path)!r}", size)
    return path


def check_memory(what: str, n_bytes: float) -> None:
    """Checks that there is memory for something before it is made.

    Raises:
        LabkitError: There is not; the message says how much it takes, and how much is free.
    """
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise LabkitError(f"{what} takes {n_bytes / 1e9:,.1f} GB; {free / 1e9:,.1f} GB are free")
