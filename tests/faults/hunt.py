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

KILLED = -9
LANES = 2  # commands at a time
RANDOM_KILLS = 40
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@dataclass(frozen=True)
class Case:
    """A command that a fault ends.

    Attributes:
        command: `"search"` or `"replicate"`.
        fault: At which moment, or `None` for a kill after some seconds.
        label: What is about to happen at that moment.
        kill_after: Seconds.
    """

    command: str
    fault: Fault | None = None
    label: str = ""
    kill_after: float | None = None


class Hunt:
    """The cases for one search, and the check of each.

    Args:
        root: An empty folder.
        n_jobs: Of the search; with one, every run trains to the same bits.
    """

    def __init__(self, root: Path, n_jobs: int = 1):
        root.mkdir()
        self.lab, self.exact = Lab(root, n_jobs), n_jobs == 1
        self._begin = {"search": None, "replicate": root / "searched"}
        self._left: dict[str, Kept] = {}
        self.moments: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        for command, folder in (("search", "searched"), ("replicate", "replicated")):
            with self.lab.folder(like=self._begin[command]) as place:
                ended = getattr(self.lab, command)(place)
                assert ended.code == 0, ended.said
                self._left[command] = kept(place)
                self.lab.opens(place)
                place.rename(root / folder)
            self.moments[command], self.seconds[command] = ended.moments, ended.seconds

    def cases(self, command: str, how: str) -> list[Case]:
        """Returns a case for each moment of a command."""
        files = how == "ENOSPC"  # happens to files; SQLite's own writing is seen by no event
        return [
            Case(command, Fault(n, how), label)
            for n, label in enumerate(self.moments[command], 1)
            if not files or label.startswith(("open", "os"))
        ]

    def sample(self, command: str, how: str, rng: random.Random) -> list[Case]:
        """Returns a case for each kind of moment: a file or table, and what happens to it."""

        def kind(case: Case) -> str:
            return re.sub(r"^(before|after) |CREATE.*", "", case.label) or "CREATE"

        cases = sorted(self.cases(command, how), key=kind)
        return [rng.choice([*same]) for _, same in itertools.groupby(cases, kind)]

    def kills(self, command: str, n: int, rng: random.Random) -> list[Case]:
        """Returns kills at random times."""
        longest = self.seconds[command]
        return [Case(command, kill_after=rng.uniform(0.0, longest)) for _ in range(n)]

    def check(self, case: Case) -> None:
        """Asserts that a fault loses nothing, and that the same command then ends well."""
        run = getattr(self.lab, case.command)
        with self.lab.folder(like=self._begin[case.command]) as folder:
            ended = run(folder, fault=case.fault, kill_after=case.kill_after)
            if case.fault is None or case.fault.how == "SIGKILL":
                assert ended.code in ((KILLED, 0) if case.fault is None else (KILLED,))
            elif case.fault.how == "ENOSPC":
                # A page that is not written is a warning: a figure never fails a search.
                assert "No space left on device" in ended.said
                assert "Traceback" not in ended.said
                assert ended.code == 2 or "pareto.html was not written" in ended.said
            else:
                assert ended.code == EXIT_CODES[case.fault.how], ended.said
                assert "Traceback" not in ended.said
            before = kept(folder)
            assert not before.unfinished
            if before.trials:
                self.lab.opens(folder)
            again = run(folder)
            assert again.code == 0, again.said
            self.lab.lost_nothing(folder, before, self._left[case.command], exact=self.exact)

    def wrong(self, cases: Iterable[Case]) -> list[str]:
        """Checks all cases, and returns what those say that fail."""

        def outcome(case: Case) -> str | None:
            try:
                self.check(case)
            except Exception as error:
                return f"{case}: {type(error).__name__}: {error}"
            return None

        with ThreadPoolExecutor(LANES) as lanes:
            return [said for said in lanes.map(outcome, cases) if said]


def kinds(root: Path, seed: int) -> Iterator[tuple[str, Hunt, list[Case]]]:
    """Yields each kind of fault: its name, and its cases."""
    rng = random.Random(seed)
    alone, stacked = Hunt(root / "alone"), Hunt(root / "stacked", n_jobs=3)
    for command in ("search", "replicate"):
        every = f"`labkit {command}`, kill -9 at each moment"
        yield every, alone, alone.cases(command, "SIGKILL")
    for hunt, name in ((alone, "one by one"), (stacked, "in stacks")):
        for command in ("search", "replicate"):
            cases = hunt.kills(command, RANDOM_KILLS, rng)
            yield f"`labkit {command}`, {name}, kill -9 at a random time", hunt, cases
    for command in ("search", "replicate"):
        cases = alone.cases(command, "ENOSPC")
        yield f"`labkit {command}`, no space left for each file", alone, cases
    for how in EXIT_CODES:
        cases = alone.sample("search", how, rng)
        yield f"`labkit search`, {how} at a moment of each kind", alone, cases


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
