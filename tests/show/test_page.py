"""The page of a search."""

import re
from pathlib import Path
from typing import Any

from labkit.data.dataset import Dataset
from labkit.show.page import figures, write_page
from labkit.study.results import Results
from labkit.study.search import Search


def titles(results: Results) -> list[str]:
    return [figure.layout.title.text.partition(":")[0] for figure in figures(results)]


def test_a_figure_is_there_where_its_data_are(tables: dict[str, Any], blobs: Dataset) -> None:
    search = Search(tables, data=blobs)
    assert titles(search.results()) == ["jsc-toy on blobs"]
    results = search.run(progress=False)
    assert titles(results) == [
        "jsc-toy on blobs",
        "Hypervolume of the front",
        "Hypervolume of the front",
        "Widths along the front",
        "Importance of widths",
        "Training curves",
    ]
    untrained = Results(results.trials, results.best, results.objectives, results.about)
    assert "Training curves" not in titles(untrained)


def test_the_page_needs_no_network_and_escapes_names(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path
) -> None:
    tables["search"]["strategy"]["setup"]["n_trials"] = 2
    results = Search(tables, data=blobs).run(progress=False)
    named = Results(
        results.trials, results.best, results.objectives,
        {**results.about, "dataset": "</script><script>alert(1)</script>"},
    )  # fmt: skip
    write_page(named, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1  # its licence: once, and not a link to it
    assert not re.search("<(script|link)[^>]+(src|href)=", page)
    assert "<script>alert" not in page
    assert "<td>" in page
