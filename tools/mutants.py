"""Do the tests notice? Small random changes to the code, one at a time, against its tests.

    python tools/mutants.py --sample 60 --seed 0 operators transform training study

A mutant (`<=` for `<`, `or` for `and`, `max` for `min`, a number one more, a condition turned
round) lives in the memory of the process that tests it: no file changes. It is held against the
tests that mirror its package, those of its module first. Printed are the mutants that no test
noticed: a test is missing, the code says more than it must, or the change means nothing.
"""

import argparse
import ast
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
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
    """A change of one node: which, as `ast.walk` comes by it, and the change in words."""

    file: Path
    node: int
    text: str


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
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=int() | float()):
            node.value += 1
        case ast.If() | ast.IfExp() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Name(id=name) if name in NAMES:
            node.id = NAMES[name]
        case _:
            return False
    ast.fix_missing_locations(node)
    return True


def mutants(file: Path) -> list[Mutant]:
    """Returns every mutant of a module."""
    found, hints = [], set()
    tree = ast.parse(file.read_text())
    for i, node in enumerate(list(ast.walk(tree))):  # from the top down
        hint = getattr(node, "annotation", None) or getattr(node, "returns", None)
        hints |= {id(part) for part in ast.walk(hint)} if hint else set()
        before = ast.unparse(node).partition("\n")[0]
        if id(node) not in hints and mutate(node):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            after = ast.unparse(node).partition("\n")[0]
            found.append(Mutant(file, i, f"{where}: {before}  →  {after}"))
    return found


def test(package: str, mutant: Mutant | None) -> None:
    """Runs the tests of a package, and ends this process with pytest's exit code."""
    import pytest

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for stream in (1, 2) if mutant else ():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    tests = ROOT / "tests" / package
    first = list(tests.glob(f"test_{mutant.file.stem}.py")) if mutant else []
    if mutant:
        tree = ast.parse(mutant.file.read_text())
        mutate(list(ast.walk(tree))[mutant.node])
        code = compile(tree, mutant.file, "exec")
        unchanged, changed = SourceFileLoader.get_code, f"labkit.{package}.{mutant.file.stem}"
        SourceFileLoader.get_code = (  # type: ignore[method-assign]
            lambda loader, name: code if name == changed else unchanged(loader, name)
        )
    options = ["-xqo", "addopts=", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    os._exit(pytest.main([*options, "-m", "not slow", *map(str, [*first, tests])]))


def passes(package: str, mutant: Mutant | None, seconds: float) -> bool:
    """Whether the tests of a package pass in a process of their own, within some seconds."""
    process = multiprocessing.get_context("forkserver").Process(target=test, args=(package, mutant))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == 0


def examine(package: str, n: int, seed: int) -> tuple[int, int]:
    """Tries mutants of a package, prints the survivors, and counts: the noticed, and all."""
    start = time.monotonic()
    if not passes(package, None, 1200):
        sys.exit(f"{package}: its tests fail without a change")
    limit = 60 + 3 * (time.monotonic() - start)
    files = sorted((ROOT / "labkit" / package).glob("[!_]*.py"))
    every = [mutant for file in files for mutant in mutants(file)]
    sample = random.Random(f"{seed} {package}").sample(every, min(n, len(every)))
    noticed = 0
    with ThreadPoolExecutor(2) as pool:
        passed = pool.map(lambda mutant: passes(package, mutant, limit), sample)
        for mutant, survives in zip(sample, passed):
            noticed += not survives
            print(*[mutant.text] * survives, sep="\n", end="\n" * survives, flush=True)
    seconds = (time.monotonic() - start) / max(len(sample), 1)
    said = f"{noticed} of {len(sample)} noticed ({len(every)} possible, {seconds:.0f} s each)"
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
    os.environ |= {
        "OMP_NUM_THREADS": "1",  # two at once, a core each
        "HYPOTHESIS_STORAGE_DIRECTORY": tempfile.mkdtemp(),
        "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
    }
    multiprocessing.set_forkserver_preload(["torch", "pandas", "optuna", "pydantic", "pytest"])
    n, more = divmod(arguments.sample, len(packages))
    counts = [examine(name, n + (i < more), arguments.seed) for i, name in enumerate(packages)]
    noticed, tried = map(sum, zip(*counts))
    print(f"{noticed} of {tried} noticed: {noticed / tried:.0%}")


if __name__ == "__main__":
    main()
