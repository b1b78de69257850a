"""Several drivers of one study: who may, and that each network is trained once."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages.journal import JournalFileBackend

from labkit.errors import LabkitError
from labkit.study import claims, storage
from labkit.study.claims import Claims
from labkit.study.record import Source
from labkit.study.results import Results
from labkit.study.studies import open_study
from tests.study.driver import N_NETWORKS, make

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
LIMIT = 120.0  # seconds: a busy machine is slow, and a test that fails should end


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server of its own, in a temporary folder on loopback."""

    def __init__(self) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self.run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()

    def run(self, command: str, *options: str) -> None:
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        data = ["-D", str(self.folder / "data")]
        subprocess.run(
            [*as_postgres, str(POSTGRES[-1] / command), *data, *options],
            check=True, cwd=self.folder, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-F -p {self.port} -h 127.0.0.1 -k {self.folder}"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-w", "-m", mode, "stop")

    def database(self, name: str) -> str:
        import psycopg

        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}".replace("postgresql:", "postgresql+psycopg:")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """Optuna's gRPC proxy, before a file of SQLite."""
    from optuna.storages._grpc.server import make_server

    url, port = f"sqlite:///{tmp_path}/behind.db", free_port()
    server = make_server(optuna.storages.get_storage(url), "127.0.0.1", port)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], optuna.storages.BaseStorage]:
    """Opens a storage that several may open, in a moment."""
    return lambda: optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal")))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(claims, "TURN_SECONDS", 0.01)


def start(url: str, log: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.study.driver", url, str(log), json.dumps(options)]
    return subprocess.Popen(command, stderr=(log.parent / f"{log.name}.err").open("wb"))


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def check_all_once(url: str, logs: list[Path], *, lost: int = 0) -> None:
    """All networks were recorded once, and measured once but for those that a killed one had."""
    study = optuna.load_study(study_name="many", storage=storage.open_storage(url))
    records = Results.from_study(study).records
    assert [trial.record.source for trial in records] == [Source.TRAINED] * N_NETWORKS
    assert len({trial.record.plan for trial in records}) == N_NETWORKS
    assert [trial.record.trained_in for trial in records] == list(range(N_NETWORKS))
    measured = Counter(line for log in logs for line in lines(log))
    assert len(measured) == N_NETWORKS
    assert measured.total() <= N_NETWORKS + lost
    assert min(len(lines(log)) for log in logs) > 0  # each had its share


@pytest.mark.slow
def test_two_drivers_measure_each_network_once(postgres: Postgres, tmp_path: Path) -> None:
    url, logs = postgres.database("two"), [tmp_path / "a", tmp_path / "b"]
    # Both begin in an empty database, and make its tables.
    drivers = [start(url, log, folder=str(tmp_path / "one")) for log in logs]
    for driver, log in zip(drivers, logs):
        assert driver.wait(LIMIT) == 0, Path(f"{log}.err").read_text()
    check_all_once(url, logs)
    assert len(Results.from_study(open_study(tmp_path / "one")).records) == N_NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "known-cost"])
def test_drivers_with_a_sampler_look_up_what_others_trained(
    postgres: Postgres, tmp_path: Path, sampler: str
) -> None:
    name = sampler.replace("-", "_")
    url, logs = postgres.database(f"sampled_{name}"), [tmp_path / "a", tmp_path / "b"]
    drivers = [start(url, log, sampler=sampler, n_trials=30) for log in logs]
    for driver, log in zip(drivers, logs):
        assert driver.wait(LIMIT) == 0, Path(f"{log}.err").read_text()
    study = optuna.load_study(study_name="many", storage=storage.open_storage(url))
    records = [trial.record for trial in Results.from_study(study).records]
    assert 30 <= len(records) <= 30 + 2 * 4  # what both asked for at one moment
    trained = [record.plan for record in records if record.source == Source.TRAINED]
    assert len(set(trained)) == len(trained) == sum(len(lines(log)) for log in logs)
    assert {record.plan for record in records} == set(trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "proxy"])
def test_what_a_killed_driver_had_is_measured_by_another(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue(kind)
    url = server if isinstance(server, str) else server.database("killed")
    logs = [tmp_path / "a", tmp_path / "b"]
    first, second = (start(url, log) for log in logs)
    wait_for(lambda: all(len(lines(log)) >= 3 for log in logs))
    first.kill()
    first.wait()
    assert second.wait(LIMIT) == 0, Path(f"{logs[1]}.err").read_text()
    check_all_once(url, logs, lost=1)


@pytest.mark.slow
def test_a_server_that_restarts_is_waited_for(postgres: Postgres, tmp_path: Path) -> None:
    url, log = postgres.database("restarted"), tmp_path / "log"
    driver = start(url, log, shared=False)
    wait_for(lambda: len(lines(log)) >= 3)
    postgres.stop()
    time.sleep(0.5)
    postgres.start()
    assert driver.wait(LIMIT) == 0, Path(f"{log}.err").read_text()
    check_all_once(url, [log], lost=1)
    assert "trying again" in Path(f"{log}.err").read_text()


def test_a_server_that_stays_away_ends_a_search_in_a_sentence(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.5)
    log = tmp_path / "log"
    url = postgres.database("away")
    search = make(url, log, shared=False)
    stopping = threading.Thread(
        target=lambda: (wait_for(lambda: len(lines(log)) >= 3), postgres.stop())
    )
    stopping.start()
    with pytest.raises(LabkitError, match=r"storage: 'postgresql\+psycopg://postgres@127"):
        search.run(progress=False)
    stopping.join()
    postgres.start()
    kept = [trial.record for trial in search.store.trials]
    again = make(url, log, shared=False).run(progress=False)
    assert len(again.records) == N_NETWORKS
    assert [trial.record for trial in again.records[: len(kept)]] == kept


def test_one_driver_excludes_another_and_says_who(
    journal: Callable[[], optuna.storages.BaseStorage], tmp_path: Path, quick: None
) -> None:
    searches = [make(journal(), tmp_path / "log", shared=shared) for shared in (False, False, True)]
    first, second, shared = searches
    who = rf"the search 'many' is run by process {os.getpid()} on .*, since 20.*; end it, or"
    with first.store.driven(None):  # beats in the background
        for other in (second, shared):
            with pytest.raises(LabkitError, match=who):
                other.run(progress=False)
    with shared.store.driven(None), pytest.raises(LabkitError, match=who):
        second.run(progress=False)
    assert len(second.run(progress=False).records) == N_NETWORKS


def test_sharing_needs_a_storage_that_others_reach(tmp_path: Path) -> None:
    for place in (None, f"sqlite:///{tmp_path}/a.db"):
        with pytest.raises(LabkitError, match="shared: expected a storage that several machines"):
            make(place, tmp_path / "log")


def driver_elsewhere(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch
) -> tuple[Claims, int]:
    """Claims of a driver on another machine, which holds `a` and beats when it is told to."""
    study = optuna.create_study(study_name="many:claims", storage=journal(), load_if_exists=True)
    elsewhere = Claims(study._storage, "many", shared=True)
    elsewhere._study = study._study_id
    monkeypatch.setattr(claims, "_place", lambda: "another machine")
    elsewhere._join()
    monkeypatch.setattr(claims, "_place", lambda: "here")
    assert elsewhere.claim("a")
    return elsewhere, elsewhere.driver


def test_a_driver_that_is_not_heard_of_loses_its_claims(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    elsewhere, driver = driver_elsewhere(journal, monkeypatch)
    here = Claims(journal(), "many", shared=True)
    with here.driving():
        assert not here.claim("a")
        assert here.claim("b")
        until = here._beats + 3 * claims.SILENT_BEATS
        while here._beats < until:  # it beats, so it lives
            elsewhere._beat()
            here.refresh()
            assert "a" in here.elsewhere
        wait_for(lambda: (here.refresh(), "a" not in here.elsewhere)[1])  # it sleeps
        assert here.claim("a")
        # It wakes, and finds that it was taken for dead: it has nothing but what nobody took.
        monkeypatch.setattr(claims, "_place", lambda: "another machine")
        with elsewhere.turn():
            assert elsewhere.driver != driver
            assert not elsewhere._mine.keys() & {"a"}
            elsewhere.check_turn()
            elsewhere._end(elsewhere._mine["turn"])
            with pytest.raises(LabkitError, match="this process slept"):
                elsewhere.check_turn()


def test_a_driver_that_was_taken_for_dead_claims_again(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, _ = driver_elsewhere(journal, monkeypatch)
    here = Claims(journal(), "many", shared=True)
    entered = threading.Event()

    def wait_for_a_turn() -> None:
        with here.turn():
            entered.set()

    with here.driving():
        elsewhere._end(here.driver)
        assert here.claim("b")
        with elsewhere.turn():
            waiting = threading.Thread(target=wait_for_a_turn, daemon=True)
            waiting.start()
            wait_for(lambda: "turn" in here._mine)
            elsewhere._end(here.driver)
        assert entered.wait(LIMIT)
        waiting.join()
        assert here._mine.keys() == {"b"}


def test_a_driver_of_another_machine_is_waited_for_before_it_is_replaced(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    elsewhere, _ = driver_elsewhere(journal, monkeypatch)
    ended = threading.Event()
    beating = threading.Thread(target=elsewhere._beat_until, args=(ended,))
    beating.start()
    here = Claims(journal(), "many", shared=False)
    with pytest.raises(LabkitError, match="is run by process"), here.driving():
        pass
    ended.set()
    beating.join()
    with here.driving():  # it has not been heard of for ten beats
        assert here._beats > claims.SILENT_BEATS


def test_a_driver_that_is_interrupted_while_it_waits_leaves_no_claim(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    driver_elsewhere(journal, monkeypatch)
    here = Claims(journal(), "many", shared=False)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt), here.driving():
            pass
    state = here._storage.get_trial(here.driver).state
    assert state == optuna.trial.TrialState.FAIL


def test_a_process_of_this_machine_that_ended_is_known_at_once(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SILENT_BEATS", 10**6)
    elsewhere, driver = driver_elsewhere(journal, monkeypatch)
    here = Claims(journal(), "many", shared=False)
    started = psutil.Process().create_time()
    for key, value in (("place", "here"), ("pid", ended_process()), ("started", started)):
        elsewhere._storage.set_trial_user_attr(driver, key, value)
    with here.driving():
        assert here._beats == 0


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_only_one_has_its_turn(
    journal: Callable[[], optuna.storages.BaseStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TURN_SECONDS", 0.01)
    inside: list[int] = []
    most: list[int] = []

    def drive(number: int) -> None:
        one = Claims(journal(), "many", shared=True)
        with one.driving():
            for _ in range(10):
                with one.turn():
                    inside.append(number)
                    most.append(len(inside))
                    time.sleep(0.002)
                    inside.remove(number)

    threads = [threading.Thread(target=drive, args=(n,), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert most == [1] * 30
