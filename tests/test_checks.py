"""What comes from outside: tables, files and memory."""

import os
import zipfile
from pathlib import Path

import pytest
from pydantic import Field

from labkit import checks
from labkit.checks import Table, check_memory, checked, readable
from labkit.errors import LabkitError


class Inner(Table):
    """A table in a table."""

    size: int = Field(1, ge=1)


class Outer(Table):
    """A table."""

    inner: Inner = Inner()
    name: str = ""


def test_a_table_says_key_value_and_expectation() -> None:
    with pytest.raises(LabkitError, match=r"^size: expected greater than or equal to 1, got 0$"):
        Inner(size=0)
    with pytest.raises(LabkitError, match=r"^inner\.size: .*, got 'x'$"):
        Outer(inner={"size": "x"})
    with pytest.raises(LabkitError, match=r"^top\.inner\.size: .*, got 'x' \(and 1 more\)$"):
        checked(Outer, {"inner": {"size": "x"}, "name": 1}, "top")
    with pytest.raises(LabkitError, match=r"^inner\.sise: unknown key; did you mean 'size'\?$"):
        checked(Outer, {"inner": {"sise": 1}})
    assert checked(Outer, b'{"inner": {"size": 2}}').inner.size == 2
    with pytest.raises(LabkitError, match="recursion limit"):
        checked(Outer, b"[" * 5_000)


def test_a_file_has_to_be_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ["", "none", "pipe", "loop", "a\0b", "\ud800"]
    for path in [*(tmp_path / name for name in names), Path("/dev/zero")]:
        with pytest.raises(LabkitError, match=r"^key: there is no file "):
            readable("key", path)
    with pytest.raises(LabkitError, match=r"^key: cannot read .*too long"):
        readable("key", tmp_path / ("x" * 5_000))


def test_a_file_has_to_fit_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert readable("key", path) == path
    os.truncate(path, 12 * 10**12)
    with pytest.raises(LabkitError, match=r"^key: '.*file' takes 12,000\.0 GB; .* GB are free$"):
        readable("key", path)


def test_so_does_what_an_archive_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(10**6))
    assert path.stat().st_size < 10**4
    assert readable("key", path) == path

    class Little:
        available = 10**5

    monkeypatch.setattr(checks.psutil, "virtual_memory", Little)
    with pytest.raises(LabkitError, match="takes 0.0 GB"):
        readable("key", path)
    check_memory("it", 10**5)
