"""The whole hunt: every kind of fault at every moment, and kills at random ones, as a table.

`make faults`, or `python -m tests.faults.hunt [SEED]`. The tests beside it run a sample.
"""

import itertools
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.lab import Fault, Kept, Lab, kept

LANES = 2  # commands at a time
RANDOM_KILLS = 40
RANDOM_KILLS_OF_WORKERS = 10  # which take long to start
EXIT_CODES = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@dataclass(frozen=True)
class Case:
    """A command that a fault ends.

    Attributes:
        command: `"search"` or `"replicate"`.
        fault: What ends it.
        label: What is about to happen at that moment.
    """

    command: str
    fault: Fault
    label: str = ""


class Hunt:
    """The cases for one search, and the check of each.

    Args:
        root: An empty folder.
        n_jobs: Of the search.
        workers: Processes that train. With one job and none, every run trains to the same bits.
    """

    def __init__(self, root: Path, n_jobs: int = 1, workers: int = 0):
        root.mkdir()
        self.lab = Lab(root, n_jobs, ["--workers", str(workers)] if workers else [])
        self._exact = n_jobs == 1 and not workers
        self._begin = {"search": None, "replicate": root / "searched"}
        self._left: dict[str, Kept] = {}
        self.moments: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        for command, folder in (("search", "searched"), ("replicate", "replicated")):
            with self.lab.folder(like=self._begin[command]) as place:
                ended = self.lab.run(command, place)
                assert ended.code == 0, ended.said
                self._left[command] = kept(place)
                self.lab.opens(place)
                place.rename(root / folder)
            self.moments[command], self.seconds[command] = ended.moments, ended.seconds

    def cases(self, command: str, how: str) -> list[Case]:
        """Returns a case for each moment of a command."""
        files = how == "ENOSPC"  # happens to files; SQLite's own writing is seen by no event
        return [
            Case(command, Fault(how, moment=n), label)
            for n, label in enumerate(self.moments[command], 1)
            if not files or label.startswith(("open", "os"))
        ]

    def sample(self, command: str, how: str, rng: random.Random) -> list[Case]:
        """Returns a case for each kind of moment: a file or table, and what happens to it."""

        def kind(case: Case) -> str:
            return re.sub(r"^(before|after) |CREATE.*", "", case.label) or "CREATE"

        cases = sorted(self.cases(command, how), key=kind)
        return [rng.choice([*same]) for _, same in itertools.groupby(cases, kind)]

    def at_random(self, command: str, how: str, n: int, rng: random.Random) -> list[Case]:
        """Returns cases at random times."""
        times = [rng.uniform(0.0, self.seconds[command]) for _ in range(n)]
        return [Case(command, Fault(how, seconds=seconds)) for seconds in times]

    def check(self, case: Case) -> None:
        """Asserts that a fault loses nothing, and that the same command then ends well."""
        with self.lab.folder(like=self._begin[case.command]) as folder:
            ended = self.lab.run(case.command, folder, case.fault)
            assert "Traceback" not in ended.said, ended.said
            if case.fault.how == "ENOSPC":
                # A folder that is there already needs no space. A page that is not written is a
                # warning: a figure never fails a search.
                there = case.label.startswith("os.mkdir") and ended.code == 0
                assert there or "No space left on device" in ended.said
                assert there or ended.code == 2 or "pareto.html was not written" in ended.said
            # It may have ended before; Ctrl-C while its last files are written changes nothing.
            elif ended.code != 0 or (case.fault.seconds is None and case.fault.how != "SIGINT"):
                assert ended.code == EXIT_CODES[case.fault.how], ended.said
            before = kept(folder)
            assert not before.unfinished
            if before.trials:
                self.lab.opens(folder)
            again = self.lab.run(case.command, folder)
            assert again.code == 0, again.said
            self.lab.lost_nothing(folder, before, self._left[case.command], exact=self._exact)

    def wrong(self, cases: Iterable[Case]) -> list[str]:
        """Checks all cases, and returns what those say that fail."""

        def outcome(case: Case) -> str | None:
            try:
                self.check(case)
            except Exception as error:
                return f"{case}: {type(error).__name__}: {error}"
            finally:
                print(".", end="", file=sys.stderr, flush=True)
            return None

        with ThreadPoolExecutor(LANES) as lanes:
            return [said for said in lanes.map(outcome, cases) if said]


def kinds(root: Path, seed: int) -> Iterator[tuple[str, Hunt, list[Case]]]:
    """Yields each kind of fault: its name, and its cases."""
    rng = random.Random(seed)
    alone, stacked = Hunt(root / "alone"), Hunt(root / "stacked", n_jobs=3)
    spread = Hunt(root / "spread", workers=2)
    for command in ("search", "replicate"):
        every = f"`labkit {command}`, kill -9 at each moment"
        yield every, alone, alone.cases(command, "SIGKILL")
    for hunt, name in ((alone, "one by one"), (stacked, "in stacks")):
        for command in ("search", "replicate"):
            cases = hunt.at_random(command, "SIGKILL", RANDOM_KILLS, rng)
            yield f"`labkit {command}`, {name}, kill -9 at a random time", hunt, cases
    for how in ("SIGKILL", "SIGTERM"):
        cases = spread.at_random("search", how, RANDOM_KILLS_OF_WORKERS, rng)
        yield f"`labkit search --workers 2`, {how} to it at a random time", spread, cases
    for command in ("search", "replicate"):
        cases = alone.cases(command, "ENOSPC")
        yield f"`labkit {command}`, no space left for each file", alone, cases
    for how in ("SIGINT", "SIGTERM", "SIGHUP"):
        cases = alone.sample("search", how, rng) + alone.sample("replicate", how, rng)
        yield f"`labkit search`, `labkit replicate`, {how} at a moment of each kind", alone, cases


def main(seed: int) -> int:
    """Runs all cases, prints the table, and returns how many failed."""
    started, failed = time.monotonic(), []
    with tempfile.TemporaryDirectory() as root:
        print(f"seed {seed}\n\n| fault | times | lost something |\n|:--|--:|--:|", flush=True)
        for name, hunt, cases in kinds(Path(root), seed):
            wrong = hunt.wrong(cases)
            failed += wrong
            print(f"| {name} | {len(cases)} | {len(wrong)} |", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s", *failed, sep="\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)), 1))
