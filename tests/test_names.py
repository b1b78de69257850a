"""One way from a name to an object."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.names import build, find, imported

KNOWN = {"small": int, "large": float}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of one's own, whose modules are forgotten again."""
    monkeypatch.chdir(tmp_path)
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    assert sys.path == path


def test_known_names_come_first_and_others_are_imported(here: Path) -> None:
    (here / "mine_1.py").write_text("class Nets:\n    wide = 'an object'\n")
    assert find("model", "small", KNOWN, "network") is int
    assert find("model", "mine_1:Nets.wide", KNOWN, "network") == "an object"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smal",
            r"'smal'; did you mean 'small'\? \(or package.module:name, or a path\)$",
        ),
        ("x", r"^model: unknown network 'x'; expected one of: small, large \(or package"),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        find("model", name, KNOWN, "network", ", or a path")


@pytest.mark.parametrize(
    ("code", "reference", "message"),
    [
        ("", "no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "mine_2:f", "AttributeError: module 'mine_2' has no attribute 'f'"),
        ("", "not a module:f", "ValueError"),
        ("import no_such_package", "mine_2:f", "No module named 'no_such_package'"),
        ("def f(:", "mine_2:f", r"SyntaxError: .*mine_2.py, line 1"),
        ("1 / 0", "mine_2:f", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", "mine_2:f", "SystemExit: bye"),
        ("raise SystemExit", "mine_2:f", "SystemExit$"),
        ("class End(BaseException): pass\nraise End('x')", "mine_2:f", "End: x"),
        ("def g(): g()\ng()", "mine_2:f", "RecursionError: maximum recursion depth"),
    ],
)
def test_whatever_an_import_raises_is_said(
    here: Path, code: str, reference: str, message: str
) -> None:
    (here / "mine_2.py").write_text(code)
    with pytest.raises(LabkitError, match=rf"^model: .*'{reference}'.*({message})"):
        build("model", reference, imported("model", reference), int)


def test_ctrl_c_is_no_mistake_of_the_user(here: Path) -> None:
    (here / "mine_3.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        imported("model", "mine_3:f")


def test_what_is_built_may_import_from_the_working_directory(here: Path) -> None:
    (here / "mine_4.py").write_text("def f():\n    import beside_4\n    return beside_4.N\n")
    (here / "beside_4.py").write_text("N = 3\n")
    assert build("model", "mine_4:f", imported("model", "mine_4:f"), int) == 3


def test_a_module_that_changes_the_path_itself_is_let(here: Path) -> None:
    (here / "mine_5.py").write_text("import sys\nsys.path[:1] = ['elsewhere', 'b']\nN = 3\n")
    assert imported("model", "mine_5:N") == 3  # and the path is given back


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("f = 3", r"expected 'mine_6:f' to be a function, got 3"),
        ("f = str", r"expected 'mine_6:f' to return a int, got a str"),
        ("def f(width):\n    return width", r"'mine_6:f' failed, called without arg.*TypeError"),
    ],
)
def test_what_builds_nothing_is_refused(here: Path, code: str, message: str) -> None:
    (here / "mine_6.py").write_text(code)
    with pytest.raises(LabkitError, match=f"^model: {message}"):
        build("model", "mine_6:f", imported("model", "mine_6:f"), int)


def test_names_are_found_in_several_threads(here: Path) -> None:
    found = []

    def finds() -> None:
        for _ in range(100):
            # As Python does, for each place where it looks for a module.
            sys.path_importer_cache.update({f"{here}/{i}": None for i in range(200)})
            found.append(build("model", "known", dict, dict))

    threads = [threading.Thread(target=finds) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{}] * 300


def test_a_file_that_was_written_a_moment_ago_is_found(here: Path) -> None:
    with pytest.raises(LabkitError, match="no_such"):
        imported("model", "written:no_such")
    for n in range(20):
        (here / f"written_{n}.py").write_text(f"value = {n}")
        assert imported("model", f"written_{n}:value") == n
