"""The page of a search."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data import Dataset
from labkit.show.page import figures, write_page
from labkit.study.results import Results
from labkit.study.search import Search
from tests.show.studies import study


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


def test_of_a_long_front_some_curves_are_shown() -> None:
    trials = [({"a": w}, {"accuracy": w / 99, "total_flops": w}) for w in range(1, 99)]
    *_, curves = figures(study(trials))
    assert len(curves.data) == 20
    assert "20 of the front's 98 networks" in curves.layout.title.subtitle.text


def test_the_page_needs_no_network_and_escapes_names(tmp_path: Path) -> None:
    widths = {"</script><script>alert(2)</script>": 8}
    trials = [(widths, {"accuracy": 0.5, "total_flops": 100})]
    named = study(trials, dataset="</script><script>alert(1)</script>")
    write_page(named, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1  # its licence: once, and not a link to it
    assert not re.search("<(script|link)[^>]+(src|href)=", page)
    assert "<script>alert" not in page
    assert "<td>" in page


def test_the_page_of_2000_networks_takes_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trials = [
        (
            {name: int(w) for name, w in zip("abcd", row)},
            {"accuracy": float(row.sum() + noise), "total_flops": float((row**2).sum())},
        )
        for row, noise in zip(rng.integers(1, 8, (2000, 4)), rng.normal(size=2000))
    ]
    results = study(trials)
    started = time.process_time()
    write_page(results, tmp_path / "page.html")
    assert time.process_time() - started < 5
    assert (tmp_path / "page.html").stat().st_size < 8e6
