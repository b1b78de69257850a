"""`runs.json` of a results folder: when, where and by which command its search was run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from labkit.checks import readable
from labkit.data import Dataset
from labkit.study.config import SearchConfig
from labkit.study.files import write
from labkit.study.storage import without_password

FILE = "runs.json"
PACKAGES = ("labkit", "torch", "numpy", "optuna")


def here(device: torch.device) -> dict[str, Any]:
    """Returns the versions and the hardware that a training's last digits depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def add_run(folder: Path, config: SearchConfig, data: Dataset) -> None:
    """Adds the run that begins now, on this machine, to those of a results folder."""
    training = config.training
    run = {
        "started": datetime.now().isoformat(),
        "command": _command(),
        "sampler": config.search.strategy.setup.sampler,
        "epochs": training and training.max_epochs,
        "learning_rate": training and training.learning_rate,
        "seed": config.seed,
        "data": data.fingerprint(),
        "training_rows": len(data.x_train),
        "validation_rows": len(data.x_val),
        **here(data.x_train.device),
    }
    write(folder / FILE, json.dumps([*read_runs(folder), run], indent=2) + "\n")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Returns the runs of a folder, the latest one last; those that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        runs = json.loads(readable("folder", folder / FILE).read_text())
        return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    return []


def _command() -> str:
    program, *arguments = sys.argv or [""]
    if Path(program).name not in ("labkit", "cli.py"):
        return "labkit.Search(…)"
    return shlex.join(["labkit", *map(without_password, arguments)])


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
