"""optuna-dashboard on the study of a results folder, on loopback."""

from __future__ import annotations

import html
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna
import optuna_dashboard
from optuna.exceptions import ExperimentalWarning

from labkit.errors import LabkitError
from labkit.study.results import plan_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

HOST = "127.0.0.1"


def open_study(folder: str | Path) -> optuna.Study:
    """Returns the study of a results folder, also while a search writes it.

    Raises:
        LabkitError: The folder holds no study.
    """
    database = Path(folder) / "study.db"
    if not database.is_file():
        raise LabkitError(f"folder: {str(folder)!r} holds no study.db; `labkit search` makes one")
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
    (name,) = (study.study_name for study in storage.get_all_studies())
    return optuna.load_study(study_name=name, storage=storage)


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
        notes = _Notes(open_study(folder))
        try:
            self._server = _Server((HOST, port or 0), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise LabkitError(f"port: {port} cannot be used: {error}") from error
        self._server.set_app(notes)
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
        link = html.escape(self.link)
        return (
            f'<p><a href="{link}" target="_blank" rel="noopener">{link}</a></p>'
            f'<iframe src="{link}" title="optuna-dashboard" width="100%" height="600"></iframe>'
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


class _Notes:
    """optuna-dashboard, which gives each new trial a note with its widths before it shows a study.

    Notes that someone else has written stay.
    """

    def __init__(self, study: optuna.Study):
        self._study = study
        self._app = optuna_dashboard.wsgi(study._storage)
        self._noted: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/api/studies/"):
            with self._lock:
                self._write()
        return self._app(environ, start_response)

    def _write(self) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            # A trial has a plan before it trains, and a source once it is measured.
            if trial.number in self._noted or "source" not in trial.user_attrs:
                continue
            # A note on a trial is an attribute of the study, which ended trials may still get.
            handle = optuna.Trial(self._study, trial._trial_id)
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                if not optuna_dashboard.get_note(handle):
                    widths = "\n".join(f"- `{name}`: {n}" for name, n in plan_of(trial).widths)
                    optuna_dashboard.save_note(
                        handle, f"{trial.user_attrs['source']}\n\n{widths}\n"
                    )
            self._noted.add(trial.number)
