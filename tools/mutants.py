"""Do the tests notice? Small random changes to the code, one at a time, against its tests.

    python tools/mutants.py --sample 60 --seed 0 operators transform training study

A mutant (`<=` for `<`, `or` for `and`, a number one more, a condition turned round) lives in the
memory of the process that tests it: no file changes. It is held against the tests that mirror its
package: those of its module first, then the quick files before the slow. One that hangs is noticed,
by the time. Printed are the mutants that no test noticed: a test is missing, the code says more
than it must, or the change means nothing.
"""

import argparse
import ast
import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAIRS = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn), (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv),
    (ast.Div, ast.Mult), (ast.Mod, ast.FloorDiv), (ast.Pow, ast.Mult),
]  # fmt: skip
SWAPS: dict[type, type] = {b: a for a, b in PAIRS} | dict(PAIRS)
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
MEMORY = 8 * 2**30  # bytes; a mutant may ask for any number


class Mutant(NamedTuple):
    """A change of one node: which, as `walk` comes by it, and the change in words."""

    file: Path
    node: int
    text: str


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that run: no type hints, no log messages, nothing for type checkers."""
    match node:
        case ast.If(test=ast.Name("TYPE_CHECKING")) | ast.Call(ast.Attribute(ast.Name("log"))):
            return
    yield node
    for field, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST) and field not in ("annotation", "returns"):
                yield from walk(part)


def mutate(node: ast.AST) -> bool:
    """Changes a node in place; False where it has nothing to change."""
    match node:
        case ast.BinOp(left=ast.Constant(str()) | ast.JoinedStr()):
            return False
        case ast.BinOp(right=ast.Constant(str()) | ast.JoinedStr()):
            return False  # joins strings or paths
        case ast.Compare(ops=[op, *_]) if type(op) in SWAPS:
            node.ops[0] = SWAPS[type(op)]()
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPS:
            node.op = SWAPS[type(op)]()
        case ast.Constant(bool() | int() | float()):
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        case ast.If() | ast.IfExp() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Name(id=name) if name in NAMES:
            node.id = NAMES[name]
        case _:
            return False
    return True


def mutants(file: Path) -> list[Mutant]:
    """Returns every mutant of a module."""
    found = []
    for i, node in enumerate(list(walk(ast.parse(file.read_text())))):  # from the top down
        before = ast.unparse(node).partition("\n")[0]
        if mutate(node):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            after = ast.unparse(node).partition("\n")[0]
            found.append(Mutant(file, i, f"{where}: {before}  →  {after}"))
    return found


def test(tests: list[Path], mutant: Mutant | None) -> None:
    """Runs files of tests, and ends this process with pytest's exit code."""
    import pytest

    os.setsid()  # what it starts ends with it
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for stream in (1, 2) if mutant else ():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    if mutant:
        tree = ast.parse(mutant.file.read_text())
        mutate(list(walk(tree))[mutant.node])
        code = compile(ast.fix_missing_locations(tree), mutant.file, "exec")
        changed = ".".join(mutant.file.relative_to(ROOT).with_suffix("").parts)
        unchanged = SourceFileLoader.get_code
        SourceFileLoader.get_code = (  # type: ignore[method-assign]
            lambda loader, name: code if name == changed else unchanged(loader, name)
        )
    options = ["-xqo", "addopts=", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    os._exit(pytest.main([*options, "-m", "not slow", *map(str, tests)]))


def passes(tests: list[Path], mutant: Mutant | None, seconds: float) -> bool:
    """Whether tests pass in a process of their own, within some seconds."""
    process = multiprocessing.get_context("forkserver").Process(target=test, args=(tests, mutant))
    process.start()
    process.join(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == 0


def examine(package: str, n: int, seed: int) -> tuple[int, int]:
    """Tries mutants of a package, prints the survivors, and counts: the noticed, and all."""
    seconds = {}
    for file in (ROOT / "tests" / package).glob("test_*.py"):
        start = time.monotonic()
        if not passes([file], None, 1200):
            sys.exit(f"{file}: fails without a change")
        seconds[file] = time.monotonic() - start

    def survives(mutant: Mutant) -> bool:
        own = f"test_{mutant.file.stem}.py"
        tests = sorted(seconds, key=lambda file: (file.name != own, seconds[file]))
        return passes(tests, mutant, 30 + 3 * sum(seconds.values()))

    files = sorted((ROOT / "labkit" / package).glob("[!_]*.py"))
    every = [mutant for file in files for mutant in mutants(file)]
    sample = random.Random(f"{seed} {package}").sample(every, min(n, len(every)))
    start, noticed = time.monotonic(), 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, survived in zip(sample, pool.map(survives, sample)):
            noticed += not survived
            print(*[mutant.text] * survived, sep="\n", end="\n" * survived, flush=True)
    each = (time.monotonic() - start) / max(len(sample), 1)
    said = f"{noticed} of {len(sample)} noticed ({len(every)} possible, {each:.0f} s each)"
    print(f"{package}: {said}", flush=True)
    return noticed, len(sample)


def main() -> None:
    """Reads the command line and examines the packages one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packages", nargs="*")
    parser.add_argument("--sample", type=int, default=60, help="mutants in all; by default 60")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    packages = arguments.packages or ["operators", "transform", "training", "study"]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["OMP_NUM_THREADS"] = "1"  # two at once, a core each
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()
    multiprocessing.set_forkserver_preload(["torch", "pandas", "optuna", "pydantic", "pytest"])
    n, more = divmod(arguments.sample, len(packages))
    counts = [examine(name, n + (i < more), arguments.seed) for i, name in enumerate(packages)]
    noticed, tried = map(sum, zip(*counts))
    print(f"{noticed} of {tried} noticed: {noticed / tried:.0%}")


if __name__ == "__main__":
    main()
