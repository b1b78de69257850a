"""optuna-dashboard on the study of a results folder, on loopback."""

from __future__ import annotations

import html
import threading
import warnings
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna
import optuna_dashboard

from labkit.errors import LabkitError
from labkit.results import plan_of

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
        study = open_study(folder)
        _write_notes(study)
        try:
            self._server = _Server((HOST, port or 0), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise LabkitError(f"port: {port} cannot be used: {error}") from error
        self._server.set_app(optuna_dashboard.wsgi(study._storage))
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


def _write_notes(study: optuna.Study) -> None:
    """Gives each trial a note with its widths, which the dashboard shows; others' notes stay."""
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        for trial in study.get_trials(deepcopy=False):
            # A note on a trial is an attribute of the study, which ended trials may still get.
            handle = optuna.Trial(study, trial._trial_id)
            if "plan" in trial.user_attrs and not optuna_dashboard.get_note(handle):
                widths = "\n".join(f"- `{name}`: {width}" for name, width in plan_of(trial).widths)
                optuna_dashboard.save_note(
                    handle, f"{trial.user_attrs.get('source')}\n\n{widths}\n"
                )
