"""Prints `environment.yml`: what pyproject.toml asks for, at the versions of constraints.txt.

`make lock` runs it, with an interpreter that has `packaging`; a test compares.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "kaleido": "python-kaleido"}
NOT_ON_CONDA = {"axe-playwright-python", "fastjet", "pythia8mc", "thop", "torch-pruning"}
EXTRAS = {
    "lab": "for notebooks",
    "cluster": "for many machines",
    "test": "for `make test`",
    "dev": "for its checks",
    "jets": "",
}


def environment() -> str:
    """Returns the text of `environment.yml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    versions = {canonicalize_name(name): version for name, version in pins}
    lines = [
        "# Written by `make lock` from pyproject.toml and constraints.txt.",
        "name: labkit",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
    ]
    pip = []
    for extra, what in {"": "", **EXTRAS}.items():
        lines += [f"  # {what}"] if what else []
        asked = project["optional-dependencies"][extra] if extra else project["dependencies"]
        for name in (Requirement(line).name for line in asked):
            version = versions[canonicalize_name(name)]
            if name in NOT_ON_CONDA:
                pip.append(f"      - {name}=={version}")
            else:
                lines.append(f"  - {CONDA_NAMES.get(name, name)}={version}")
    return "\n".join([*lines, "  - pip:", *pip, "      - --no-deps --editable .", ""])


if __name__ == "__main__":
    print(environment(), end="")
