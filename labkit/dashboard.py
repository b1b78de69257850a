"""optuna-dashboard on the study of a results folder, on loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import optuna
import optuna_dashboard

from labkit.errors import LabkitError

HOST = "127.0.0.1"


def serve(folder: str | Path, port: int | None = None) -> None:
    """Serves a results folder's study until interrupted, and prints the link.

    Args:
        folder: A results folder.
        port: By default a free one.

    Raises:
        LabkitError: The folder holds no study, or the port is taken.
    """
    database = Path(folder) / "study.db"
    if not database.is_file():
        raise LabkitError(f"folder: {str(folder)!r} holds no study.db; `labkit search` makes one")
    port = _free_port(port)
    print(f"http://{HOST}:{port}/  (Ctrl-C stops it)", flush=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
    optuna_dashboard.run_server(storage, host=HOST, port=port)


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise LabkitError(f"port: {port} cannot be used: {error}") from error
        return int(probe.getsockname()[1])
