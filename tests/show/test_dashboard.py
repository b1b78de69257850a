"""The dashboard, as Python code starts it."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import optuna
import optuna_dashboard
import pytest

import labkit
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show.serving import _note, _study_note
from labkit.study.proposals import Asked
from labkit.study.record import Failure, FailureKind, Record, Source, Trial
from labkit.study.studies import Description


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(
    link: str, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> Answer:
    """What a dashboard answers: headers are named as in Python, `set_cookie`."""
    connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=300)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


def path_of(link: str) -> str:
    """What a browser asks for first."""
    return f"{urlsplit(link).path}?{urlsplit(link).query}"


def cookie(link: str, **headers: str) -> str:
    """What a browser sends back after the first visit."""
    first = ask(link, path_of(link), **headers)
    assert first.status == 200
    [one] = SimpleCookie(first.headers["Set-Cookie"]).values()
    return f"{one.key}={one.value}"


def notes(link: str) -> list[str]:
    """What the dashboard's page gets as the notes of the only study's trials."""
    study = json.loads(ask(link, "/api/studies/1?after=0", cookie=cookie(link)).body)
    assert study["objective_names"] == ["accuracy", "total_flops"]
    return [trial["note"]["body"] for trial in study["trials"]]


def test_the_dashboard_shows_names_and_widths_and_frees_its_port(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    labkit.search(tables, data=blobs, folder=tmp_path, progress=False)
    dashboard = labkit.dashboard(tmp_path)
    assert dashboard.link.startswith("http://127.0.0.1:")
    assert f'<iframe src="{dashboard.link}"' in dashboard._repr_html_()
    assert len(notes(dashboard.link)) == 2
    tables["search"]["strategy"]["setup"]["n_trials"] = 3  # while the dashboard is open
    labkit.search(tables, data=blobs, folder=tmp_path, progress=False)
    deadline = time.monotonic() + 300  # it looks at the study every two seconds
    while len(notes(dashboard.link)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(notes(dashboard.link)) == 3
    assert all("- `seq_blocks_2`: " in note for note in notes(dashboard.link))
    dashboard.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(dashboard.link).port)) != 0


def test_a_note_is_shown_and_not_stored_and_ones_own_stays(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    study = labkit.Search(tables, data=blobs, folder=tmp_path)
    study.run(progress=False)
    trial = optuna.Trial(study.study, study.study.trials[1]._trial_id)
    optuna_dashboard.save_note(trial, "my own")
    failure = Failure(kind=FailureKind.RUNNER, message="energy: <b>no</b>")
    study.store.tell(Asked({}, {}), Record(failure=failure), None)
    before = (tmp_path / "study.db").read_bytes()
    dashboard = labkit.dashboard(tmp_path)
    widths, own, failed = notes(dashboard.link)
    known = cookie(dashboard.link)
    of_study = json.loads(ask(dashboard.link, "/api/studies/1?after=0", cookie=known).body)["note"]
    dashboard.stop()
    assert "`jsc-toy` on `blobs`: maximize `accuracy`, minimize `total_flops`. " in of_study["body"]
    assert widths.startswith("trained\n\n- `seq_blocks_2`: ")
    assert (own, failed) == ("my own", "energy: &lt;b&gt;no&lt;/b&gt;\n\n")
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.fixture
def served(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> Iterator[str]:
    """The link of a dashboard on a study of one trial."""
    labkit.search(tables, data=blobs, trials=1, folder=tmp_path, progress=False)
    dashboard = labkit.dashboard(tmp_path)
    yield dashboard.link
    dashboard.stop()


def test_all_that_the_page_asks_for_is_there_for_who_has_the_link(served: str) -> None:
    known = cookie(served)
    for path, kind in {
        "/": "text/html", "/dashboard/studies/1": "text/html", "/static/bundle.js": "javascript",
        "/api/meta": "json", "/api/studies": "json", "/api/studies/1?after=0": "json",
        "/csv/1": "csv", "/favicon.ico": "icon",
    }.items():  # fmt: skip
        answer = ask(served, path, cookie=f"other=1; {known}", accept_encoding="identity")
        assert answer.status in (200, 302), path
        assert kind in answer.headers["Content-Type"], path
        refused = ask(served, path, accept_encoding="identity")
        assert refused.status == 403, path
        assert refused.body == b"labkit: open the whole link that labkit gave, with its token\n"


@pytest.mark.parametrize("given", ["token=", "token=x", "token=%ff&token=é", "tok=1", "token"])
def test_another_token_lets_nobody_in(served: str, given: str) -> None:
    assert ask(served, f"/api/studies?{given.replace('é', '%C3%A9')}").status == 403
    port = urlsplit(served).port
    assert ask(served, "/api/studies", cookie=f"labkit-{port}={given}").status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost", "127.0.0.1"])
def test_rebinding_a_name_to_loopback_opens_nothing(served: str, host: str) -> None:
    """Even with the token, which such a page cannot have."""
    port = urlsplit(served).port
    answer = ask(served, path_of(served), host=host.format(port=port), cookie=cookie(served))
    assert answer.status == 403
    assert (
        answer.body == f"labkit: this dashboard answers at http://127.0.0.1:{port} only\n".encode()
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/studies", '{"study_name": "x", "directions": ["minimize"]}'),
        ("PUT", "/api/studies/1/note", '{"body": "x", "version": 1}'),
        ("DELETE", "/api/studies/1", '{"remove_associated_artifacts": false}'),
    ],
)
def test_only_its_own_pages_write(served: str, method: str, path: str, body: str) -> None:
    known, origin = cookie(served), f"http://{urlsplit(served).netloc}"
    kind = "application/json"
    for foreign in ("http://evil.example", "null", f"{origin}0", "http://127.0.0.1"):
        refused = ask(served, path, method, body, cookie=known, origin=foreign, content_type=kind)
        assert (refused.status, b"own pages" in refused.body) == (403, True)
    assert ask(served, path, method, body, cookie=known, content_type=kind).status == 403
    assert ask(served, path, method, body, origin=origin, content_type=kind).status == 403
    assert len(notes(served)) == 1  # nothing was deleted
    own = ask(served, path, method, body, cookie=known, origin=origin, content_type=kind)
    assert own.status in (200, 201, 204)


def test_the_cookie_is_for_this_server_and_no_script(served: str) -> None:
    def attributes(**headers: str) -> set[str]:
        answer = ask(served, path_of(served), **headers)
        return set(answer.headers["Set-Cookie"].split("; ")[1:])

    assert attributes() == {"Path=/", "HttpOnly", "SameSite=Strict"}
    linked = attributes(sec_fetch_site="cross-site", sec_fetch_dest="document")
    assert linked == {"Path=/", "HttpOnly", "SameSite=Strict"}
    framed = attributes(sec_fetch_site="cross-site", sec_fetch_dest="iframe")
    assert framed == {"Path=/", "HttpOnly", "SameSite=None", "Secure", "Partitioned"}


def test_two_dashboards_have_tokens_of_their_own(served: str, tmp_path: Path) -> None:
    other = labkit.dashboard(tmp_path)
    assert ask(served, f"/api/studies?{urlsplit(other.link).query}").status == 403
    assert ask(other.link, "/api/studies", cookie=cookie(served)).status == 403
    other.stop()


def test_a_note_shows_a_hostile_name_as_text() -> None:
    record = Record(widths={"a`<img src=x onerror=alert(1)>": 3}, source=Source.TRAINED)
    now = datetime.now()
    note = _note(Trial(0, {}, (0.5,), record, now, now))
    hostile = {"model": "`<b>", "dataset": "`<b>", "seed": 0, "convention": "training"}
    study_note = _study_note(Description(None, {}, {}, hostile))  # type: ignore[arg-type]
    assert "<" not in note + study_note
    assert (note.count("`"), study_note.count("`")) == (2, 6)


def test_on_a_hub_a_notebook_shows_labkits_own_figures(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    dashboard = labkit.dashboard(tmp_path)
    dashboard._ipython_display_()
    assert [dashboard.link in one.data for one in shown] == [True]
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    shown.clear()
    dashboard._ipython_display_()
    dashboard.stop()
    assert "no proxy can show them below a path" in capsys.readouterr().out
    titles = [figure.layout.title.text for figure in shown[1:]]
    assert len(titles) == 4
    assert all("jsc-toy on blobs" in title for title in titles)


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(LabkitError, match="holds no study"):
        labkit.dashboard(tmp_path)


@pytest.mark.parametrize("port", ["a", -1, 2**64, [1]])
def test_a_port_is_a_number(served: str, tmp_path: Path, port: Any) -> None:
    with pytest.raises(LabkitError, match="^port: .* cannot be used"):
        labkit.dashboard(tmp_path, port)
