"""Pictures of figures: by Chromium, which ends when it is idle, and without which figures show."""

import base64
import contextlib
import os
import re
import struct
import subprocess
import sys
import time

import plotly.graph_objects as go
import psutil
import pytest

from labkit.errors import LabkitError
from labkit.show import pictures
from labkit.show.pictures import PictureRenderer, picture, printed
from tests.show.browser import CHROMIUM

FIGURE = go.Figure(go.Scatter(y=[1, 2]), layout={"width": 300, "height": 200})
with_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def browsers() -> list[psutil.Process]:
    """Those of this process that run; other tests may have left workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@with_chromium
def test_a_picture_is_as_large_as_its_figure() -> None:
    drawn = base64.b64decode(PictureRenderer().to_mimebundle(FIGURE.to_dict())["image/png"])
    assert struct.unpack(">II", drawn[16:24]) == (450, 300)  # the size in a PNG's header
    assert picture(FIGURE, "svg").startswith(b"<svg")


@with_chromium
def test_one_chromium_serves_all_and_ends_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    picture(FIGURE)
    before = {process.pid for process in browsers()}
    assert before
    printed("<p>Hello</p>")
    assert before & {process.pid for process in browsers()}
    monkeypatch.setattr(pictures, "IDLE", 0.1)
    picture(FIGURE)
    deadline = time.monotonic() + 60
    while browsers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not browsers()
    assert picture(FIGURE)  # by another


@with_chromium
def test_a_page_is_printed_and_its_scripts_do_not_run() -> None:
    sheet = "<div style='break-after: page'>x</div>"
    script = f'<p>x</p><img src="x" onerror="document.body.innerHTML = `{sheet}`.repeat(7)">'
    n_pages = [len(re.findall(rb"/Type /Page\b", printed(page))) for page in (sheet * 3, script)]
    assert n_pages == [3, 1]


@with_chromium
def test_after_a_crash_the_next_picture_is_drawn() -> None:
    picture(FIGURE)
    for process in browsers():
        process.kill()
    with pytest.raises(LabkitError, match="images: Chromium draws them"):
        picture(FIGURE)
    assert picture(FIGURE)


def test_without_chromium_a_notebook_shows_figures_and_says_nothing() -> None:
    code = (
        "import ipykernel, plotly.io as pio, plotly.graph_objects as go\n"
        "pio.renderers.default = 'plotly_mimetype'\n"  # as in a kernel
        "from labkit import plots\n"
        "print(pio.renderers.default)\n"
        "print(*go.Figure()._repr_mimebundle_())\n"
        "try: plots.save_image(go.Figure(), 'front.png')\n"
        "except ValueError as error: print(error)"
    )
    environment = os.environ | {"BROWSER_PATH": "/nowhere"}
    environment.pop("PLOTLY_RENDERER", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    renderer, kinds, said, *_ = done.stdout.splitlines()
    assert renderer == "plotly_mimetype+picture"
    assert kinds == "application/vnd.plotly.v1+json"
    assert said.startswith("images: Chromium draws them: No browser found")
    assert done.stderr == ""


def test_what_a_user_chose_stays() -> None:
    code = (
        "import ipykernel, plotly.io as pio\n"
        "pio.renderers.default = 'svg'\n"
        "from labkit import plots\n"
        "print(pio.renderers.default)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "svg\n"
