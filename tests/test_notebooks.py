"""Notebooks keep their figures where nothing runs: as pages, as Markdown, as PDF. No network."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Error, sync_playwright

from tests.conftest import ROOT
from tests.show.browser import CHROMIUM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

CELLS = (
    "import labkit\nexplorer = labkit.LayerExplorer(labkit.get_model('jsc-toy'))\nexplorer",
    f"panel = labkit.SearchPanel({str(ROOT / 'configs' / 'jsc_toy.toml')!r})\n"
    "panel.controls.trials.value, panel.controls.epochs.value = 2, 1\npanel",
    "panel.launch.click()\npanel.wait()",
    "labkit.plots.pareto_front(panel.results)",
)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that a student ran and saved: an explorer, a panel whose search has ended, a figure."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(made, timeout=600, kernel_name="python3").execute()
    path = tmp_path_factory.mktemp("handed-in") / "lab.ipynb"
    nbformat.write(made, path)
    return path


def convert(to: str, *notebooks: Path, options: str = "", out: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", to, "--output-dir", str(out)]
    nowhere = {f"{way}_proxy": "http://127.0.0.1:9" for way in ("http", "https")}
    subprocess.run(
        [*command, *options.split(), *map(str, notebooks)],
        check=True,
        env=os.environ | nowhere | environment,
    )


@pytest.fixture
def playwrights_browsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder where playwright, which nbconvert prints with, finds the Chromium that is there."""
    assert CHROMIUM is not None
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with sync_playwright() as playwright:
        try:
            playwright.chromium.launch().close()
        except Error as error:
            [place] = re.findall(r"Executable doesn't exist at (\S+)", error.message)
            Path(place).parent.mkdir(parents=True)
            Path(place).symlink_to(CHROMIUM)
    return str(tmp_path)


def test_a_notebook_that_was_run_has_pictures_of_the_last_state(notebook: Path) -> None:
    outputs = [cell.outputs for cell in nbformat.read(notebook, 4).cells]
    assert ["image/png" in one.data for one in outputs[1]] == [False, True, False]
    assert "2 of 2 trials" in outputs[1][2].data["text/html"]
    assert [*outputs[3][0].data] == ["application/vnd.plotly.v1+json", "image/png"]


def pictures_in(page: str) -> list[bytes]:
    found = re.findall(r'<img[^>]+src="data:image/png;base64,([^"]+)"', page)
    return [base64.b64decode(drawn) for drawn in found]


def pictures_of(text: Path) -> list[bytes]:
    found = re.findall(r"!\[png\]\((.+?)\)", text.read_text())
    return [(text.parent / name).read_bytes() for name in found]


def test_conversions_keep_all_figures(notebook: Path, tmp_path: Path) -> None:
    convert("html", notebook, out=tmp_path)
    convert("markdown", notebook, out=tmp_path)
    text = tmp_path / "lab.md"
    pictures = pictures_in((tmp_path / "lab.html").read_text())
    assert pictures == pictures_of(text)
    assert len(pictures) == 3
    for drawn in pictures:
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) > 10_000  # it is not empty
    assert "seq_blocks_5 output" in text.read_text()
    assert "<style>" not in text.read_text()


def test_conversions_of_our_notebooks_keep_all_figures(tmp_path: Path) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    convert("html", *notebooks, out=tmp_path)
    convert("markdown", *notebooks, out=tmp_path)
    for path in notebooks:
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
        expected = sum("image/png" in out.get("data", {}) for out in outputs)
        assert len(pictures_in((tmp_path / f"{path.stem}.html").read_text())) == expected
        assert len(pictures_of(tmp_path / f"{path.stem}.md")) == expected


def test_a_notebook_becomes_a_pdf(
    notebook: Path, tmp_path: Path, playwrights_browsers: str
) -> None:
    where = {"PLAYWRIGHT_BROWSERS_PATH": playwrights_browsers}
    unboxed = "--WebPDFExporter.disable_sandbox=True"
    convert("webpdf", notebook, options=unboxed, out=tmp_path, **where)
    pdf = (tmp_path / "lab.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Subtype /Image") >= 3
