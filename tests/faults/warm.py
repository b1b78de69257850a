"""What the server of forks has done before it forks: a search, so that all is imported and warm.

A process that is forked from it begins its command at once, and a kill costs a second, not four.
"""

import tempfile
from pathlib import Path

import torch

from labkit.cli import main  # noqa: F401
from labkit.study import files
from labkit.study.networks import load_best
from labkit.study.results import Results
from labkit.study.search import Search
from tests.faults import lab


def write_page(results: Results, path: Path) -> None:
    """Stands in for the page, whose figures take most of a small search's time."""
    files.write(path, results.front_table().to_html())


files.PAGE = f"{__name__}:write_page"
torch.set_num_threads(1)  # threads do not survive a fork
with tempfile.TemporaryDirectory() as folder:
    lab.write_search(Path(folder))
    search = Search(Path(folder) / "search.toml", folder=Path(folder) / "out", trials=2)
    search.run(progress=False)
    load_best(Path(folder) / "out")
    search.study._storage.remove_session()
    del search
