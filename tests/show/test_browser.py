"""A browser opens JupyterLab and uses the panel, as a student would."""

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

import labkit
from labkit.data import Dataset
from tests.show.browser import (
    IN_BROWSER,
    click_a_point_of_the_front,
    move,
    open_notebook,
    press_key,
    run_all,
    shoot,
)  # fmt: skip

pytestmark = IN_BROWSER


@pytest.fixture
def folder(tables: dict[str, Any], blobs: Dataset, tmp_path: Path) -> Path:
    """The results of a short search."""
    labkit.search(tables, data=blobs, trials=2, folder=tmp_path, progress=False)
    return tmp_path


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


def test_a_search_from_the_panel(lab: str, page: Page) -> None:
    open_notebook(page, lab, "03_tpe_search.ipynb")
    run_all(page)
    panel = page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Launch"))
    panel.scroll_into_view_if_needed()
    points = panel.locator(".scatterlayer .points path")
    expect(panel.get_by_text("12 of 12 trials")).to_be_visible()
    shoot(page, "1-after-run-all")

    press_key(page, "Trials", "ArrowRight", 8)
    press_key(page, "Epochs", "ArrowRight", 15)
    panel.get_by_role("button", name="Launch").click()
    stop = panel.get_by_role("button", name="Stop")
    expect(stop).to_be_enabled()
    expect(panel.get_by_text(re.compile(r"left.*; ([1-9]|1\d) of 20 trials"))).to_be_visible(
        timeout=200_000
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


def parts_of_a_still(page: Page) -> tuple[Locator, Locator]:
    cell = page.locator(".jp-CodeCell", has_text="explorer = LayerExplorer(model)")
    outputs = cell.locator(".jp-OutputArea-child")
    picture = outputs.filter(has=page.locator("img[src^='data:image/png']"))
    text = outputs.filter(has=page.locator("code", has_text="seq_blocks_5 output"))
    return picture.first, text.first


def test_what_is_left_of_a_panel_shows_when_its_kernel_is_gone(
    lab: str, page: Page, browser: Browser
) -> None:
    open_notebook(page, lab, "01_channel_multiplier.ipynb")
    run_all(page)
    picture, text = parts_of_a_still(page)
    move(page, "seq_blocks_5 output", "ArrowRight", 4)
    expect(page.locator(".labkit-panel")).to_be_visible()
    expect(text).to_contain_text("seq_blocks_5 output ───●───────── 2")  # after a moment
    expect(picture).to_be_hidden()
    expect(text).to_be_hidden()
    page.keyboard.press("Control+s")
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-item[data-command='kernelmenu:shutdown']").click()
    expect(page.get_by_text("No Kernel").first).to_be_visible()
    later = browser.new_page()  # where Jupyter says in the console that it lacks the widget
    open_notebook(later, lab, "01_channel_multiplier.ipynb")
    picture, text = parts_of_a_still(later)
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    expect(text).to_be_visible()
    shoot(later, "8-what-is-left")
