"""What a panel leaves in a notebook."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets as ipw
import pytest

from labkit import LayerExplorer, StudyPanel, get_model, search
from labkit.data import Dataset
from labkit.show import stills
from labkit.show.stills import WithStill


class Notebook:
    """What a notebook gets; each output can be updated."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []

    def display(self, bundle: dict[str, Any], **_: Any) -> Any:
        self.outputs.append(bundle)
        return SimpleNamespace(update=functools.partial(self.update, len(self.outputs) - 1))

    def update(self, place: int, bundle: dict[str, Any], **_: Any) -> None:
        self.outputs[place] = bundle


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    notebook = Notebook()
    monkeypatch.setattr(stills, "display", notebook.display)
    monkeypatch.setattr(stills.PictureRenderer, "fails", True)  # as without Chromium
    return notebook


def test_a_panel_shows_its_view_and_what_is_left_of_it(notebook: Notebook) -> None:
    explorer = LayerExplorer(get_model("jsc-toy"))
    explorer._ipython_display_()
    view, picture, text = notebook.outputs
    assert [*view] == ["application/vnd.jupyter.widget-view+json"]
    assert picture == {"text/plain": "LayerExplorer(…)"}
    assert "parameters: 327 → <b>327</b>" in text["text/html"]
    assert "seq_blocks_5 output</code> ─●─────────── <b>1</b>" in text["text/html"]
    assert "<style>" not in text["text/html"]

    explorer.sliders.values = {"seq_blocks_5": 8}
    explorer.keep()
    assert notebook.outputs[0] is view  # which would flicker
    assert "seq_blocks_5 output</code> ────────────● <b>8</b>" in notebook.outputs[2]["text/html"]


def test_the_panel_of_a_study_is_drawn_before_it_is_shown(
    tables: dict[str, Any], blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tables, data=blobs, trials=2, folder=tmp_path, progress=False)
    monkeypatch.setattr(StudyPanel, "_watch", lambda self: None)
    panel = StudyPanel(tmp_path)
    assert sum(len(trace.x) for trace in panel.figure.data) >= 2
    panel.close()


def test_names_are_text_and_what_is_hidden_is_left_out() -> None:
    hidden = ipw.Label("secret", layout=ipw.Layout(display="none"))
    shown = [ipw.Text("<i>", description="<b>"), ipw.Label("<u>"), ipw.Button(description="Go")]
    html = stills._as_html(WithStill([ipw.HBox(shown), hidden]))
    assert html == "<div><code>&lt;b&gt;</code> <b>&lt;i&gt;</b></div><div>&lt;u&gt;</div>"
