"""Prints `docs/licences.md`: what constraints.txt pins, and under which licences it is.

`make lock` runs it, with an interpreter that has all of it installed; a test compares.
"""

from __future__ import annotations

import importlib.metadata
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """# Licences

Written by `make lock`: what is installed beside labkit (Apache-2.0), and the licences that each
package names in its metadata.

| package | version | licence |
|:--|:--|:--|
"""


def licence(package: Message) -> str:
    """Returns what a package says of its licence: an expression, classifiers, or a line of text."""
    if expression := package.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ") for c in package.get_all("Classifier", [])]
    named = [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2]
    text = package.get("License", "").strip().split("\n")[0]
    return ", ".join(named) or text or "see its files"


def table() -> str:
    """Returns the text of `docs/licences.md`."""
    rows = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        about = importlib.metadata.metadata(name)
        rows.append(f"| {name} | {version} | {licence(about).replace('|', ' ')} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
