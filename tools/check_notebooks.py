"""Checks that notebooks are committed as they should be: run from top to bottom, with outputs.

    python tools/check_notebooks.py notebooks/*.ipynb

Prints what is wrong, a line each; exit code 1 where there is anything.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METADATA = {"kernelspec", "language_info"}
WIDGET = "application/vnd.jupyter.widget-view+json"  # empty without the kernel that made it
PLOTLY = "application/vnd.plotly.v1+json"
HOME = re.compile(r"/(root|home/\w|Users/\w)")


def problems(notebook: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a notebook, given as its JSON."""
    if more := sorted(set(notebook["metadata"]) - METADATA):
        yield f"metadata: {', '.join(more)}"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        yield "not run from top to bottom in a new kernel"
    if cells and not any(cell["outputs"] for cell in cells):
        yield "no outputs"
    for cell in notebook["cells"]:
        start = "".join(cell["source"]).partition("\n")[0]
        if more := sorted(set(cell["metadata"]) - {"tags"}):
            yield f"metadata of the cell that begins with {start!r}: {', '.join(more)}"
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"an error below {start!r}"
            kinds = output.get("data", {})
            if WIDGET in kinds:
                yield f"the view of a widget below {start!r}"
            if PLOTLY in kinds and "image/png" not in kinds:
                yield f"a figure without a picture below {start!r}: Chromium draws them"
            if HOME.search(json.dumps(output)):
                yield f"a path of one machine below {start!r}"


def main(files: list[str]) -> int:
    found = [
        f"{file}: {what}" for file in files for what in problems(json.loads(Path(file).read_text()))
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
