"""What tests do in a browser that has JupyterLab open."""

import shutil

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.conftest import ROOT

expect.set_options(timeout=30_000)  # a machine may be busy; what must be quick says so itself

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SCREENSHOTS = ROOT / "build" / "screenshots"

IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def open_notebook(page: Page, link: str, name: str) -> None:
    page.goto(f"{link}/lab/tree/notebooks/{name}?reset")
    # Not the notebook's indicator: it is idle before there is a kernel, and then nothing would run.
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
    page.wait_for_timeout(2000)  # the kernel is idle before the widget manager is ready


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    indicator = page.locator(".jp-Notebook-ExecutionIndicator")
    expect(indicator).to_have_attribute("data-status", "busy")
    expect(indicator).to_have_attribute("data-status", "idle", timeout=120_000)


def run_notebook(page: Page, lab: str, name: str, *cells: str) -> None:
    """Puts a notebook on the server, opens it and runs it."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    spec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": spec})
    page.goto(f"{lab}/lab")
    (token,) = (c["value"] for c in page.context.cookies() if c["name"] == "_xsrf")
    file = {"type": "notebook", "format": "json", "content": notebook}
    answer = page.request.put(
        f"{lab}/api/contents/notebooks/{name}", data=file, headers={"X-XSRFToken": token}
    )
    assert answer.ok
    open_notebook(page, lab, name)
    run_all(page)


def press_key(page: Page, slider: str, key: str, times: int) -> None:
    handle = page.locator(".widget-hslider", has_text=slider).locator(".noUi-handle")
    handle.focus()
    for _ in range(times):
        handle.press(key)


def move(page: Page, slider: str, key: str, times: int) -> None:
    """Moves a slider of the explorer."""
    handle = page.get_by_role("slider", name=f"{slider} multiplier")
    for _ in range(times):
        handle.press(key)


def darken(page: Page) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").last.click()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.wait_for_timeout(2000)  # Jupyter covers the page while it changes


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


def barriers(page: Page, part: str) -> list[str]:
    """What axe-core finds serious or critical for people with disabilities within a part.

    Args:
        page: What is open.
        part: A CSS selector, such as `.jp-OutputArea-output:has(.widget-hslider)`.
    """
    found = Axe().run(page, context=part).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:300]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
