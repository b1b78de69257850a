"""Thousands of cases: `make fuzz`.

Each kind runs in a process of its own, whose memory is bounded. Prints what became of how many, and
of each way to break the simplest case. The exit code is 1 where there is any.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

ADDRESS_SPACE = 12 << 30  # of which torch and its like reserve some, and use little


def fuzz(kind: str, cases: int, drawn: int) -> int:
    """Runs the cases of a kind in this process, and prints what became of them."""
    from tests.fuzz.judge import BrokenError, judge
    from tests.fuzz.kinds import KINDS, results

    results()  # made before any case, which may write to its own folder only
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    outcomes: Counter[str] = Counter()
    broken: dict[str, list[str]] = {}

    @seed(drawn)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(KINDS[kind].cases)
    def run(case: object) -> None:
        with tempfile.TemporaryDirectory() as home:
            try:
                outcomes[judge(lambda: KINDS[kind].run(case, Path.cwd()), Path(home))] += 1
            except BrokenError as error:
                outcomes["broken"] += 1
                broken.setdefault(error.kind, []).append(f"{error!s:.300}\n    {case!r}")

    run()
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
    print(f"{kind}: {outcomes.total()} cases: {counts}")
    for way, cases_of_it in sorted(broken.items(), key=lambda item: -len(item[1])):
        print(f"  {len(cases_of_it)} × {way}\n    {min(cases_of_it, key=len)[:1500]}")
    return outcomes["broken"]


def main() -> int:
    """Runs all kinds, as many at once as there are cores."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=12_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--kind", help="one kind only, in this process")
    arguments = parser.parse_args()
    if arguments.kind:
        return int(fuzz(arguments.kind, arguments.cases, arguments.seed) > 0)
    from tests.fuzz.kinds import KINDS

    print(f"seed {arguments.seed}", flush=True)
    each = -(-arguments.cases // len(KINDS))

    def child(kind: str) -> int:
        options = ["--kind", kind, "--cases", str(each), "--seed", str(arguments.seed)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout.rstrip() or f"{kind}: ended by {done.returncode}", flush=True)
        if done.returncode not in (0, 1) or not done.stdout:
            print(done.stderr[-2_000:], flush=True)
        return done.returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return int(any([*pool.map(child, KINDS)]))


if __name__ == "__main__":
    sys.exit(main())
