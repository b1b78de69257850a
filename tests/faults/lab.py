"""Commands in processes of their own, and faults that end them at a numbered moment or at any.

A *moment* is just before a file of the results folder is opened to be written, renamed or removed,
or a folder made; and before and after each statement that changes the database, and before each
commit. Nothing in labkit knows of it: Python's audit events and SQLAlchemy's say so.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import sqlalchemy
import tomli_w

from labkit.data import Dataset, load_data
from labkit.study.networks import load_best, saved_networks
from labkit.study.results import Results
from labkit.study.studies import open_study
from labkit.training import evaluate

LIMIT = 300.0  # seconds that a command may take on a busy machine
FINISHED = ("COMPLETE", "FAIL")


def write_search(folder: Path, n_jobs: int = 1) -> Path:
    """Writes a search over six small networks, and its data beside it; returns the TOML's path."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 200)
    np.savez(folder / "rows.npz", x=rng.normal(size=(200, 16)) + y[:, None], label=y)
    offered = {"seq_blocks_2": [1, 2], "seq_blocks_5": [1, 2, 3], "default": [1]}
    strategy = {
        "name": "optuna",
        "sw_runner": {
            "basic_train": {"name": "accuracy", "learning_rate": 0.03},
            "basic_computations": {"name": "total_flops"},
        },
        "setup": {"n_jobs": n_jobs, "n_trials": 100, "sampler": "bruteforce"},
        "metrics": {
            "accuracy": {"scale": 1.0, "direction": "maximize"},
            "total_flops": {"scale": 1.0, "direction": "minimize"},
        },
    }
    space = {
        "name": "transform/channel_multiplier",
        "setup": {"by": "name"},
        "seed": {name: {"config": {"channel_multiplier": m}} for name, m in offered.items()},
    }
    tables = {
        "model": "jsc-toy", "dataset": str(folder / "rows.npz"), "project": "small", "seed": 3,
        "max_epochs": 3, "batch_size": 16, "search": {"search_space": space, "strategy": strategy},
    }  # fmt: skip
    path = folder / "search.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


# In the process of the command.


@dataclass(frozen=True)
class Fault:
    """What happens to a command.

    Attributes:
        how: The name of a signal to its process, or `"ENOSPC"`: no space for a file.
        moment: At which moment; or else
        seconds: how long after its start.
    """

    how: str
    moment: int | None = None
    seconds: float | None = None


class _Moments:
    def __init__(self, folder: Path, fault: Fault | None, log: Path):
        self._folder, self._fault, self._log = str(folder), fault, log.open("w")
        self._n = 0

    def watch(self) -> None:
        """Counts from now on, for the rest of the process."""
        sys.addaudithook(self._on_event)
        engine = sqlalchemy.engine.Engine
        for place in ("before", "after"):
            sqlalchemy.event.listen(
                engine, f"{place}_cursor_execute",
                lambda _c, _cursor, statement, *_, place=place: self._on_sql(place, statement),
            )  # fmt: skip
        sqlalchemy.event.listen(engine, "commit", lambda _: self._on_sql("before", "COMMIT"))

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir"):
            return
        if not isinstance(args[0], (str, os.PathLike)):
            return
        path = os.fspath(args[0])
        writes = event != "open" or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and path.startswith(self._folder):
            name = re.sub(r"\.[0-9a-f]{8}\.", ".*.", path.removeprefix(self._folder))
            self._passes(f"{event} {re.sub(r'[0-9]+', 'N', name)}", file=True)

    def _on_sql(self, place: str, statement: str) -> None:
        words = statement.split()
        if words[0] in ("INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT"):
            self._passes(f"{place} {' '.join(words[:3])}")

    def _passes(self, label: str, *, file: bool = False) -> None:
        self._n += 1
        print(label, file=self._log, flush=True)
        if self._fault is not None and self._fault.moment == self._n:
            if self._fault.how != "ENOSPC":
                os.kill(os.getpid(), signal.Signals[self._fault.how])
            elif file:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _command(arguments: list[str], folder: Path, fault: Fault | None, out: Path) -> None:
    from labkit.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    sys.stdout = sys.stderr = (out / "said").open("w", buffering=1)
    _Moments(folder, fault, out / "moments").watch()
    os._exit(main(arguments))


# In the process of the test.


@dataclass
class Ended:
    """How a command ended: its exit code (below 0: by a signal), what it said, what it passed."""

    code: int
    said: str
    moments: list[str]
    seconds: float


@dataclass
class Kept:
    """What is in a results folder, byte by byte.

    Attributes:
        trials: Number → all that the database has of a finished trial, with its times.
        unfinished: States of trials that are none of these.
        replicates: Trial → those added later, by seed.
        weights: Trial → the file of its network.
        files: The names of all files.
    """

    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    replicates: dict[str, list[Any]] = field(default_factory=dict)
    weights: dict[str, bytes] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def results(self) -> dict[int, dict[str, Any]]:
        """The trials without their times: the same for every run of the same search."""
        return {n: {k: v for k, v in t.items() if k != "times"} for n, t in self.trials.items()}


def kept(folder: Path) -> Kept:
    """Reads a folder as it lies, without touching it."""
    if not folder.is_dir():
        return Kept()
    found = Kept(
        weights={path.name: path.read_bytes() for path in folder.glob("best/*.safetensors")},
        files={str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()},
    )
    with tempfile.TemporaryDirectory() as copies:  # to read it may roll a transaction back
        for path in folder.glob("study.db*"):
            shutil.copy(path, copies)
        with contextlib.closing(sqlite3.connect(Path(copies) / "study.db")) as db:
            if db.execute("SELECT * FROM sqlite_master WHERE name = 'trials'").fetchall():
                _read_database(db, found)
    return found


def _read_database(db: sqlite3.Connection, found: Kept) -> None:
    for identity, number, state, *times in db.execute(
        "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials"
    ):
        if state not in FINISHED:
            found.unfinished.append(state)
            continue
        found.trials[number] = {"state": state, "times": times}
        for table, columns in (
            ("trial_values", "objective, value"),
            ("trial_params", "param_name, param_value, distribution_json"),
            ("trial_user_attributes", "key, value_json"),
        ):
            rows = db.execute(f"SELECT {columns} FROM {table} WHERE trial_id = ?", [identity])
            found.trials[number][table] = sorted(rows)
    for key, value in db.execute("SELECT key, value_json FROM study_user_attributes"):
        if key.startswith("labkit:replicates:"):
            found.replicates[key] = json.loads(value)


class Lab:
    """Runs commands on a small search, each in a process that is forked from a warm one.

    Args:
        root: An empty folder.
        n_jobs: Of the search. With one every network trains alone, and to the same bits.
        options: Of each command.
    """

    def __init__(self, root: Path, n_jobs: int = 1, options: Sequence[str] = ()):
        self.root, self.config, self.options = root, write_search(root, n_jobs), options
        self.data: Dataset = load_data(str(root / "rows.npz"))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.warm"])
        begin = self._context.Process(target=int)  # the first one waits until the server is warm
        begin.start()
        begin.join()

    @contextlib.contextmanager
    def folder(self, like: Path | None = None) -> Iterator[Path]:
        """A place for a results folder, at first not there or a copy of one."""
        with tempfile.TemporaryDirectory(dir=self.root) as place:
            folder = Path(place) / "out"
            if like is not None:
                shutil.copytree(like, folder)
            yield folder

    def run(self, command: str, folder: Path, fault: Fault | None = None) -> Ended:
        """Runs `search` or `replicate`, which meets a fault; nothing that it started is left."""
        arguments = {
            "search": ["search", str(self.config), "--out", str(folder)],
            "replicate": ["replicate", str(folder), "--seeds", "3"],
        }[command]
        with tempfile.TemporaryDirectory(dir=self.root) as out:
            process = self._context.Process(
                target=_command, args=([*arguments, *self.options], folder, fault, Path(out))
            )
            started = time.monotonic()
            process.start()
            children = []
            if fault is not None and fault.seconds is not None:
                process.join(fault.seconds)
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    children = psutil.Process(process.pid).children(recursive=True)
                    os.kill(process.pid or 0, signal.Signals[fault.how])
            process.join(LIMIT)
            _, alive = psutil.wait_procs(children, LIMIT)
            for left in alive:
                left.kill()
            if process.exitcode is None or alive:
                process.kill()
                raise TimeoutError(f"{command} with {fault}: still running after {LIMIT} s")
            said, moments = (
                path.read_text() if (path := Path(out) / name).exists() else ""
                for name in ("said", "moments")
            )
        assert process.exitcode is not None
        seconds = time.monotonic() - started
        return Ended(process.exitcode, said, moments.splitlines(), seconds)

    def opens(self, folder: Path) -> None:
        """Asserts that every network of the front opens, and is as accurate as its trial says."""
        front = Results.from_study(open_study(folder)).front_trials
        for trial in front:
            network = load_best(folder, trial.number)
            measured = evaluate(network, self.data.x_val, self.data.y_val)["accuracy"]
            assert measured == trial.record.software_metrics["accuracy"]
        assert saved_networks(folder) >= {trial.number for trial in front}

    def lost_nothing(self, folder: Path, before: Kept, undisturbed: Kept, *, exact: bool) -> None:
        """Asserts that a command which was run again left what an undisturbed one leaves.

        Args:
            folder: Its results folder.
            before: What was kept when the fault happened.
            undisturbed: What a run without faults leaves.
            exact: Whether the runs train to the same bits.
        """
        after = kept(folder)
        assert not after.unfinished
        assert _numberless(after.files) == _numberless(undisturbed.files)
        assert {n: after.trials[n] for n in before.trials} == before.trials
        for key, by_seed in before.replicates.items():
            assert [a for a, b in zip(after.replicates[key], by_seed) if b] == [
                b for b in by_seed if b
            ]
        recorded = {f"trial_{n}.safetensors" for n in before.trials}
        for name in before.weights.keys() & after.weights.keys() & recorded:
            assert after.weights[name] == before.weights[name]
        if exact:
            assert after.results() == undisturbed.results()
            assert after.replicates == undisturbed.replicates
            assert after.weights == undisturbed.weights
        else:
            assert _networks(after) == _networks(undisturbed)
        self.opens(folder)


def _numberless(files: set[str]) -> list[str]:
    """The order of trials, and so their numbers, may be another one; not how many."""
    return sorted(re.sub(r"trial_\d+", "trial_N", name) for name in files)


def _networks(found: Kept) -> dict[str, Any]:
    """Returns widths → values: of a space that was exhausted, whatever the order."""
    return {
        str(json.loads(dict(t["trial_user_attributes"])["labkit"])["widths"]): t["trial_values"]
        for t in found.trials.values()
    }
