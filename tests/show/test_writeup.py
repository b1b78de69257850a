"""The write-up of a search."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit import Results
from labkit.cli import main
from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.show import writeup
from labkit.study.files import write_config
from labkit.study.networks import read_results
from tests.conftest import ROOT
from tests.show.browser import CHROMIUM
from tests.show.studies import study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def searched(blobs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was given its data."""
    config = labkit.load_config(Path(__file__).parents[1] / "data" / "reference.toml")
    config = config.replace(n_trials=4, max_epochs=2, learning_rate=1e-2)
    folder = tmp_path_factory.mktemp("searched")
    labkit.search(config, data=blobs, folder=folder, progress=False)
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "folder"))


@pytest.fixture(autouse=True)
def quick_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not what these tests are about."""
    monkeypatch.setattr(writeup, "picture", lambda figure, kind="png": b"<svg/>")


def test_it_says_what_was_done_and_found(folder: Path, blobs: Dataset) -> None:
    results = read_results(folder)
    results.report(folder / "report.md", data=blobs)
    text = (folder / "report.md").read_text()
    headings = re.findall("^## (.*)", text, re.MULTILINE)
    assert headings == [
        "Overview", "The network", "Pass configurations", "Method", "Results", "Limits"
    ]  # fmt: skip
    for number in results.front.index:
        assert re.search(rf"^\| {number} +\|", text, re.MULTILINE)
    for said in ("Sampler: tpe", "seed 42", "one seed", "max_epochs 2", "convention 'inference'",
                 "800 training rows", "trained once", "seq_blocks_2", '"by": "name"'):  # fmt: skip
        assert said in text
    network = labkit.load_best(folder)
    accuracy = labkit.evaluate(network, *blobs.split("test"))["accuracy"]
    assert f"its accuracy is **{accuracy:.4f}** on the 100 rows" in text
    assert (folder / "report-front.png").read_bytes() == b"<svg/>"


def test_the_test_split_is_opened_once(folder: Path, blobs: Dataset) -> None:
    results = read_results(folder)
    results.report(folder / "report.md")
    assert (
        "not measured: data: 'jsc (embedded jets)' is not what was"
        in (folder / "report.md").read_text()
    )
    assert not (folder / "test.json").exists()
    results.report(folder / "report.md", data=blobs)
    before = (folder / "report.md").read_text()
    assert "It was measured once" in before
    results.report(folder / "report.md")  # without data: it is read
    assert (folder / "report.md").read_text() == before
    (folder / "test.json").write_text('{"trial": "x"}')
    results.report(folder / "report.md", data=blobs)
    assert "not measured: test.json" in (folder / "report.md").read_text()


def test_other_data_are_refused(folder: Path, blobs: Dataset) -> None:
    other = replace(blobs, x_train=blobs.x_train + 1)
    read_results(folder).report(folder / "report.md", data=other)
    said = "not measured: data: 'blobs' is not what was searched with"
    assert said in (folder / "report.md").read_text()


OWN = "I like *small* networks.\n\n- really"
IN_A_PAGE = "<p>Mine\n\n    &amp; <b>bold</b></p>"


def put(file: Path, mark: str, text: str) -> None:
    old = file.read_text()
    new = re.sub(rf"(<!-- yours: {mark} -->\n).*?(\n<!-- end -->)", rf"\1{text}\2", old, flags=re.S)
    assert new != old
    file.write_text(new)


def test_what_a_student_writes_stays(folder: Path) -> None:
    results = read_results(folder)
    results.report(folder / "report.md")
    put(folder / "report.md", "discussion", OWN)
    results.report(folder / "report.md")
    assert f"\n{OWN}\n<!-- end -->" in (folder / "report.md").read_text()

    results.report(folder / "report.html")  # begins with what is in the Markdown
    page = (folder / "report.html").read_text()
    assert "<p>I like <em>small</em> networks.</p>\n<ul>\n<li>really</li>\n</ul>" in page
    put(folder / "report.html", "overview", IN_A_PAGE)
    for _ in range(2):
        results.report(folder / "report.html")
        page = (folder / "report.html").read_text()
        assert f"<!-- yours: overview -->\n{IN_A_PAGE}\n<!-- end -->" in page
        assert "<li>really</li>" in page


def test_what_has_no_marks_is_not_written_over(folder: Path) -> None:
    (folder / "report.html").write_text("my own page")
    with pytest.raises(LabkitError, match=r"report.html' lacks lines such as <!-- yours: overview"):
        read_results(folder).report(folder / "report.html")
    assert (folder / "report.html").read_text() == "my own page"


def test_a_page_needs_nothing_else_and_a_pdf_is_one(folder: Path) -> None:
    read_results(folder).report(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert not re.search('<(script|link)|src="(?!data:)', page)
    assert page.count("<table>") == 2
    read_results(folder).report(folder / "report.pdf")
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")


def write_up(results: Results, tmp_path: Path, tables: dict[str, Any]) -> str:
    write_config(labkit.load_config(tables), tmp_path)
    replace(results, folder=tmp_path).report(tmp_path / "report.md")
    return (tmp_path / "report.md").read_text()


def test_what_all_have_in_common_is_true(tmp_path: Path, tables: dict[str, Any]) -> None:
    widths = [{"a": 8, "b": 8, "c": 8, "d": 8}, {"a": 8, "b": 16, "c": 4, "d": 2},
              {"a": 8, "b": 32, "c": 4, "d": 16}]  # fmt: skip
    values = [(0.1, 300), (0.5, 100), (0.6, 200)]  # the first, which is the original, is dominated
    trials = [(w, {"accuracy": a, "total_flops": f}) for w, (a, f) in zip(widths, values)]
    text = write_up(study(trials), tmp_path, tables)
    assert re.findall("^- (.* is .*), in all 2 networks", text, re.MULTILINE) == [
        "a is 8, as in the original",
        "b is wider than the original's 8",
        "c is 4, where the original has 8",
    ]


def test_names_are_text(tmp_path: Path, tables: dict[str, Any]) -> None:
    evil = "</td>|`<script>alert(1)</script>\n<!-- end -->"
    results = study([({evil: 8}, {"accuracy": 0.5, "total_flops": 9})], dataset=evil, model=evil)
    assert "<script>" not in write_up(results, tmp_path, tables)
    replace(results, folder=tmp_path).report(tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("report.docx", r"path: expected a name ending in .html, .md or .pdf, got '.*report.docx'"),
        ("nowhere/report.md", r"out: cannot write '.*nowhere/report-front.png': No such"),
    ],
)
def test_bad_paths(folder: Path, path: str, said: str) -> None:
    with pytest.raises(LabkitError, match=said):
        read_results(folder).report(folder / path)


def test_what_cannot_be_written_up(tmp_path: Path, tables: dict[str, Any]) -> None:
    results = study([({"a": 8}, {"accuracy": 0.5, "total_flops": 9})])
    with pytest.raises(LabkitError, match="report: it tells what a folder records"):
        results.report(tmp_path / "report.md")
    failed = study([({"a": 8}, None)])
    with pytest.raises(LabkitError, match="no trial has finished"):
        write_up(failed, tmp_path, tables)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder), "--format", "md"]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.md'}\n"
    assert main(["report", str(folder / "nowhere")]) == 2
    assert "holds no study.db" in capsys.readouterr().err
    assert main(["report", str(folder), "--format", "doc"]) == 2
    assert "invalid choice: 'doc'" in capsys.readouterr().err


def test_the_guides_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = re.findall("```python\n(.*?)```", (ROOT / "docs/report.md").read_text(), re.DOTALL)
    exec(compile(block, "report.md", "exec"), {})
    text = (tmp_path / "clouds" / "report.md").read_text()
    assert "It was measured once" in text
    assert "Linear" in text  # the network is there, though no name says which
