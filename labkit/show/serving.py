"""optuna-dashboard on the study of a results folder: on loopback, for whoever has the link."""

import hmac
import html
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import optuna_dashboard

from labkit.checks import as_path
from labkit.errors import in_words, shown
from labkit.study.record import Trial
from labkit.study.results import Results
from labkit.study.studies import Description, describe, open_study, read_trials

HOST = "127.0.0.1"
ON_A_HUB = (
    "optuna-dashboard's pages ask for /api and /static at the root of their server, so that no "
    "proxy can show them below a path: the link opens on the server itself. Here are labkit's own."
)
STUDY = re.compile(r"/api/studies/\d+")  # what the dashboard's pages ask for a study and its trials


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Writes no line a request: they would spill into a notebook's cells."""


class Dashboard:
    """optuna-dashboard, running in the background until `stop`.

    In a notebook it displays itself; on JupyterHub and Binder, where no browser reaches it, what
    `labkit.plots` draws of the study.

    Attributes:
        link: Where it is, on this computer only, and the token that lets a browser in.
    """

    def __init__(self, folder: str | Path, port: int | None = None):
        self._folder = as_path("folder", folder)
        app = _WithNotes(self._folder)
        with in_words(f"port: {shown(port)} cannot be used"):
            at = 0 if port is None else port
            self._server = make_server(HOST, at, app, _Server, _QuietHandler)
        guard = _Guard(app, self._server.server_port)
        self._server.set_app(guard)
        self.link = f"{guard.origin}/dashboard?token={guard.token}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Blocks until it is stopped, or interrupted."""
        self._thread.join()

    def stop(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        from labkit.show import plots

        if "JUPYTERHUB_SERVICE_PREFIX" not in os.environ:  # as on Binder
            display(HTML(self._repr_html_()))
            return
        print(ON_A_HUB)
        results = Results.from_study(open_study(self._folder))
        display(results)
        views = plots.hypervolume({"search": results}), plots.width_importance(results)
        for view in (plots.pareto_front(results), *views, plots.widths_along_front(results)):
            display(view)

    def _repr_html_(self) -> str:
        address = self.link.partition("?")[0]
        return (
            f'<p><a href="{self.link}" target="_blank" rel="noopener">{address}</a></p><iframe '
            f'src="{self.link}" title="optuna-dashboard" width="100%" height="600"></iframe>'
        )


def dashboard(folder: str | Path, port: int | None = None) -> Dashboard:
    """Starts optuna-dashboard on the study of a results folder.

    Args:
        folder: A results folder.
        port: By default a free one.

    Raises:
        LabkitError: The folder holds no study, or the port is taken.
    """
    return Dashboard(folder, port)


class _Guard:
    """Lets in who has the link: by the token in it, and then by a cookie.

    Pages of other sites that are open in the user's browser reach loopback, too, and by DNS
    rebinding even under a name of their own: hence the Host, and the Origin of what writes.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], port: int):
        self._app = app
        self._host = HOST if port == 80 else f"{HOST}:{port}"  # browsers leave that one out
        self.origin = f"http://{self._host}"
        self.token = secrets.token_urlsafe()
        self._cookie = f"labkit-{port}={self.token}"  # browsers share cookies between ports

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = parse_qs(environ.get("QUERY_STRING", "")).get("token", [""])[0]
        has_link = _equal(given, self.token)
        if refusal := self._refusal(environ, has_link):
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"labkit: {refusal}\n".encode()]
        if not has_link:
            return self._app(environ, start_response)
        # A notebook that is open as `localhost` is of another site than its frame: browsers keep a
        # strict cookie from that, but not one for frames in that notebook's site alone.
        place = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_SEC_FETCH_DEST")
        framed = place == ("cross-site", "iframe")
        site = "None; Secure; Partitioned" if framed else "Strict"
        cookie = ("Set-Cookie", f"{self._cookie}; Path=/; HttpOnly; SameSite={site}")
        return self._app(
            environ,
            lambda status, headers, *error: start_response(status, [*headers, cookie], *error),
        )

    def _refusal(self, environ: WSGIEnvironment, has_link: bool) -> str | None:
        """Returns why a request is not answered, if it is not."""
        if environ.get("HTTP_HOST") != self._host:
            return f"this dashboard answers at {self.origin} only"
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if not reads and environ.get("HTTP_ORIGIN") != self.origin:
            return "only the dashboard's own pages may change a study"
        cookies = environ.get("HTTP_COOKIE", "").split(";")
        if not has_link and not any(_equal(cookie.strip(), self._cookie) for cookie in cookies):
            return "open the whole link that labkit gave, with its token"
        return None


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


class _WithNotes:
    """optuna-dashboard, where what has no note has one: the study, and each of its trials.

    A trial's are its widths, or why it failed. Notes are shown and not stored: to store one takes
    the dashboard's own function some 0.2 s.
    """

    def __init__(self, folder: Path):
        self._study = open_study(folder)
        self._app = optuna_dashboard.wsgi(self._study._storage)
        self._about = _study_note(describe(self._study))
        self._notes: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or not STUDY.fullmatch(environ["PATH_INFO"]):
            return self._app(environ, start_response)
        answer: list[Any] = []
        body = b"".join(self._app(environ, lambda *started: answer.extend(started)))
        status, headers, *_ = answer
        if status.startswith("200"):
            body = self._with_notes(body)
        headers = [(key, value) for key, value in headers if key.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _with_notes(self, body: bytes) -> bytes:
        study = json.loads(body)
        with self._lock:
            if any(trial["number"] >= len(self._notes) for trial in study["trials"]):
                self._notes += map(_note, read_trials(self._study)[len(self._notes) :])
        study["note"]["body"] = study["note"]["body"] or self._about
        for trial in study["trials"]:
            if not trial["note"]["body"] and trial["number"] < len(self._notes):
                trial["note"]["body"] = self._notes[trial["number"]]
        return json.dumps(study).encode()


def _study_note(description: Description) -> str:
    about, ways = description.about, description.objectives.items()
    return (
        f"A search of labkit for the widths of {_code(about['model'])} on "
        f"{_code(about['dataset'])}: {', '.join(f'{way} {_code(name)}' for name, way in ways)}. "
        "Each trial is a network, and its note says how wide each group of channels is. Its "
        "parameters are what was asked for: two that ask for the same widths are one network, "
        f"which is trained once.\n\nSeed {about['seed']}; FLOPs are counted by the convention "
        f"{_code(about['convention'])}. The Pareto front is drawn under *History*."
    )


def _note(trial: Trial) -> str:
    record = trial.record
    said = record.source if record.failure is None else html.escape(record.failure.message)
    return f"{said}\n\n" + "".join(f"- {_code(name)}: {n}\n" for name, n in record.widths.items())


def _code(name: object) -> str:
    """Returns a name, which may be anyone's, as Markdown shows it letter by letter."""
    return f"`{html.escape(str(name)).replace('`', chr(39))}`"
