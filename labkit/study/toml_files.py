"""The TOML files of configurations: a user's own, and by name those that come with labkit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from labkit.checks import readable
from labkit.errors import LabkitError, did_you_mean, in_words, shown

# Name → the file of each configuration that comes with labkit.
CONFIGS = {
    path.stem.replace("_", "-"): path
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
}


def toml_file(source: str | Path) -> Path:
    """Returns where a configuration is: at a path, or one of `CONFIGS`, with `-` or `_`."""
    path, name = Path(source), str(source).replace("_", "-")
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    if name not in CONFIGS:
        missing = f"there is no file {shown(str(source))}, and no such name"
        raise LabkitError(f"config: {missing}; {did_you_mean(name, CONFIGS)}")
    return CONFIGS[name]


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the tables of a TOML file, unchecked."""
    path = readable("config", path)
    with in_words(f"config: {path} is not valid TOML"):
        text = path.read_text(encoding="utf-8")
        if any(line.count(".") > 1_000 for line in text.split("\n")):  # would be read for minutes
            raise ValueError("a line has more than 1,000 dots")
        return tomllib.loads(text)
