"""A browser opens JupyterLab and uses the panel, as a student would."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import labkit
from labkit.data import Dataset
from tests.conftest import ROOT

expect.set_options(timeout=30_000)  # a machine may be busy; what must be quick says so itself

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SCREENSHOTS = ROOT / "build" / "screenshots"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, which it saves to."""
    for folder in ("notebooks", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    link = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [
        f"--notebook-dir={tmp_path}",
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
    ]
    command += ["--IdentityProvider.token="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    settings = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path)}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{link}/api").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
        yield link
    finally:
        server.terminate()
        server.wait(timeout=300)


@pytest.fixture
def folder(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> Path:
    """The results of a short search."""
    labkit.search(tables, data=blobs, trials=2, folder=tmp_path, progress=False)
    return tmp_path


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def open_notebook(page: Page, link: str, name: str) -> None:
    page.goto(f"{link}/lab/tree/notebooks/{name}?reset")
    # Not the notebook's indicator: it is idle before there is a kernel, and then nothing would run.
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
    page.get_by_role("button", name="No", exact=True).click()  # no news of Jupyter
    page.wait_for_timeout(2000)  # the kernel is idle before the widget manager is ready


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    indicator = page.locator(".jp-Notebook-ExecutionIndicator")
    expect(indicator).to_have_attribute("data-status", "busy")
    expect(indicator).to_have_attribute("data-status", "idle", timeout=120_000)


def click_a_point_of_the_front(page: Page, panel: Locator) -> None:
    front = panel.locator(".scatterlayer .trace:has(.js-line)")
    point = front.locator(".points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)  # Plotly looks for what the pointer is over
    page.mouse.down()
    page.mouse.up()


def press_key(page: Page, slider: str, key: str, times: int) -> None:
    handle = page.locator(".widget-hslider", has_text=slider).locator(".noUi-handle")
    handle.focus()
    for _ in range(times):
        handle.press(key)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not cause an error in the browser's console."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    shoot(page, "0-last-seen")
    assert errors == []


def darken(page: Page) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").last.click()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.wait_for_timeout(2000)  # Jupyter covers the page while it changes


def look_at_the_dashboard(page: Page) -> None:
    """Follows the link that the notebook shows."""
    link = page.locator(".jp-OutputArea-output a", has_text=re.compile(r"http://127.0.0.1:\d+/"))
    link.scroll_into_view_if_needed()
    with page.expect_popup() as popup:
        link.click()
    study = popup.value
    study.get_by_text("jsc-toy").first.click()
    front = study.locator(".js-plotly-plot", has_text="accuracy").first
    expect(front.locator(".points path").first).to_be_visible()
    shoot(study, "4-dashboard")
    study.goto(re.sub("studies/(\\d+).*", r"studies/\1/trials", study.url))
    expect(study.get_by_text("seq_blocks_2").first).to_be_visible()
    shoot(study, "7-dashboard-trials")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # the latter is another site
def test_the_dashboard_in_a_notebook_opened_as(host: str, page: Page, folder: Path) -> None:
    dashboard = labkit.dashboard(folder)

    class Notebook(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(dashboard._repr_html_().encode())

    with HTTPServer(("127.0.0.1", 0), Notebook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"http://{host}:{server.server_port}/")
        expect(page.frame_locator("iframe").get_by_text("jsc-toy").first).to_be_visible()
        with page.expect_popup() as popup:
            page.locator("a").click()
        popup.value.get_by_text("jsc-toy").first.click()
        popup.value.wait_for_url("**/dashboard/studies/1**")
        popup.value.reload()
        expect(popup.value.get_by_text("jsc-toy").first).to_be_visible()
        server.shutdown()
    dashboard.stop()


def test_the_sliders_of_a_network(lab: str, page: Page) -> None:
    open_notebook(page, lab, "01_channel_multiplier.ipynb")
    run_all(page)
    explorer = page.locator(".jp-OutputArea-output", has=page.locator(".widget-hslider"))
    explorer.scroll_into_view_if_needed()
    expect(explorer.get_by_text("parameters: 327 → 327")).to_be_visible()
    press_key(page, "seq_blocks_5 output", "ArrowRight", 4)
    expect(explorer.get_by_text("parameters: 327 → 455")).to_be_visible()
    press_key(page, "seq_blocks_2 input", "ArrowRight", 1)
    expect(explorer.get_by_text("the width stays 16 because")).to_be_visible()
    widths = page.locator(".widget-hslider").evaluate_all("all => all.map(one => one.offsetWidth)")
    assert len(set(widths)) == 1  # the note leaves its slider the room
    shoot(page, "5-explorer")
    page.keyboard.press("Tab")  # to its number, which can be typed
    page.keyboard.press("Tab")
    focused = page.locator(".widget-hslider:has(:focus)")
    expect(focused).to_contain_text("seq_blocks_2 output")  # the next one down
    darken(page)
    explorer.locator(".labkit table").first.scroll_into_view_if_needed()
    shoot(page, "6-explorer-dark")


def test_a_search_from_the_panel(lab: str, page: Page) -> None:
    open_notebook(page, lab, "03_tpe_search.ipynb")
    run_all(page)
    panel = page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Launch"))
    panel.scroll_into_view_if_needed()
    points = panel.locator(".scatterlayer .points path")
    expect(panel.get_by_text("12 of 12 trials")).to_be_visible()
    shoot(page, "1-after-run-all")

    press_key(page, "Trials", "ArrowRight", 8)
    press_key(page, "Epochs", "End", 1)
    panel.get_by_role("button", name="Launch").click()
    stop = panel.get_by_role("button", name="Stop")
    expect(stop).to_be_enabled()
    expect(panel.get_by_text(re.compile(r"^([1-9]|1\d) of 20 trials, "))).to_be_visible(
        timeout=60_000
    )
    while_running = points.count()
    shoot(page, "2-running")

    cell = page.locator(".jp-CodeCell", has_text="this cell runs while the search does").first
    prompt = cell.locator(".jp-InputPrompt")
    before = prompt.inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    expect(prompt).not_to_have_text(before)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"))
    expect(stop).to_be_enabled()

    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Home")
    page.keyboard.insert_text(
        "import time; end = time.time() + 10\nwhile time.time() < end: pass\n"
    )
    page.keyboard.press("Control+Enter")
    expect(prompt).to_have_text("[*]:")
    stop.click()
    expect(stop).to_be_disabled(timeout=9_000)
    expect(prompt).to_have_text("[*]:")  # Stop did not wait for the cell
    expect(panel.get_by_text(re.compile(r"^Stopped: \d+ of 20 trials"))).to_be_visible()
    assert points.count() >= while_running > 0

    click_a_point_of_the_front(page, panel)
    report = panel.get_by_role("heading", name=re.compile(r"^Trial \d+"))
    report.scroll_into_view_if_needed()
    expect(report).to_be_visible()
    expect(panel.get_by_text("seq_blocks_5", exact=True).last).to_be_visible()
    shoot(page, "3-layer-report")
    look_at_the_dashboard(page)
