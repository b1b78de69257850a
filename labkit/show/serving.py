"""optuna-dashboard on the study of a results folder, on loopback."""

import html
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import optuna_dashboard

from labkit.errors import LabkitError
from labkit.study.record import Trial
from labkit.study.store import open_study, read_trials

HOST = "127.0.0.1"
STUDY = re.compile(r"/api/studies/\d+")  # what the dashboard's pages ask for a study and its trials


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Writes no line a request: they would spill into a notebook's cells."""


class Dashboard:
    """optuna-dashboard, running in the background until `stop`.

    In a notebook it displays itself.

    Attributes:
        link: Where it is, on this computer only.
    """

    def __init__(self, folder: str | Path, port: int | None = None):
        app = _WithNotes(Path(folder))
        try:
            self._server = make_server(HOST, port or 0, app, _Server, _QuietHandler)
        except (OSError, OverflowError) as error:
            raise LabkitError(f"port: {port} cannot be used: {error}") from error
        self.link = f"http://{HOST}:{self._server.server_port}/"
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

    def _repr_html_(self) -> str:
        return (
            f'<p><a href="{self.link}" target="_blank" rel="noopener">{self.link}</a></p><iframe '
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


class _WithNotes:
    """optuna-dashboard, where each trial without a note has one: its widths, or why it failed.

    They are shown and not stored: to store one takes the dashboard's own function some 0.2 s.
    """

    def __init__(self, folder: Path):
        self._study = open_study(folder)
        self._app = optuna_dashboard.wsgi(self._study._storage)
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
        for trial in study["trials"]:
            if not trial["note"]["body"] and trial["number"] < len(self._notes):
                trial["note"]["body"] = self._notes[trial["number"]]
        return json.dumps(study).encode()


def _note(trial: Trial) -> str:
    record = trial.record
    said = record.source if record.failure is None else html.escape(record.failure.message)
    return f"{said}\n\n" + "".join(f"- `{name}`: {n}\n" for name, n in record.widths.items())
