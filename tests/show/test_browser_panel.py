"""A browser launches a search from the panel: by a hasty hand, at three widths, in both themes."""

import re

from playwright.sync_api import Browser, Locator, Page, expect

from tests.show.browser import (
    IN_BROWSER,
    barriers,
    click_a_point_of_the_front,
    darken,
    open_notebook,
    run_notebook,
    shoot,
)  # fmt: skip

pytestmark = IN_BROWSER

PANEL = ".jp-OutputArea-output:has(.labkit-panel)"
CELL = """
from labkit import SearchPanel, load_config, load_data
config = load_config("../configs/jsc_toy.toml").replace(
    n_trials=12, max_epochs=EPOCHS, num_samples=20_000, learning_rate=3e-3, n_jobs=4
)
SearchPanel(config, load_data("jsc"))
"""


def is_whole(panel: Locator) -> bool:
    """Whether nothing of it is cut at the right; tables may scroll."""
    cut = """panel => [...panel.querySelectorAll("p, li, h4, svg, button, input, label")]
        .filter(part => part.getBoundingClientRect().right > panel.getBoundingClientRect().right)
        .map(part => part.outerHTML.slice(0, 100))"""
    found = panel.evaluate(cut)
    return found == [] or print(found) is not None


def places(panel: Locator) -> tuple[dict[str, float], dict[str, float]]:
    """Where the front and the report are."""
    figure = panel.locator(".js-plotly-plot").first.bounding_box()
    report = panel.get_by_role("heading", name=re.compile("^Trial")).bounding_box()
    assert figure is not None
    assert report is not None
    return dict(figure), dict(report)


def test_the_search_panel(lab: str, page: Page) -> None:
    run_notebook(page, lab, "panel.ipynb", CELL.replace("EPOCHS", "50"))  # until it is stopped
    panel = page.locator(PANEL)
    expect(panel.get_by_text("no network yet")).to_have_count(2)
    rate = panel.get_by_role("slider", name="Learning rate")
    expect(rate).to_have_attribute("aria-valuetext", "0.003")
    rate.press("ArrowRight")
    expect(rate).to_have_attribute("aria-valuetext", "0.005")
    rate.press("ArrowLeft")
    assert barriers(page, PANEL) == []

    field = panel.get_by_label("seq_blocks_5")
    field.fill("1, two")
    launch = panel.get_by_role("button", name="Launch")
    launch.click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(panel.get_by_role("status")).to_contain_text("expected numbers like '1, 2, 4'")
    field.fill("1, 2, 4, 8")
    expect(field).to_have_attribute("aria-invalid", "false")

    launch.click()
    expect(launch).to_be_disabled()
    expect(panel.get_by_text(re.compile("Running.*best accuracy 0.*left; 0 of 12"))).to_be_visible()
    assert panel.get_by_role("progressbar").get_attribute("max") == "600"
    expect(panel.locator(".scatterlayer .trace .js-line").first).to_be_attached()  # it grows
    shoot(page, "9-panel-running")
    panel.get_by_role("button", name="Stop").click()
    said = panel.get_by_text(re.compile("^Stopped: .* Resume goes on from there"))
    expect(said).to_be_visible(timeout=120_000)
    expect(launch).to_be_enabled()
    shoot(page, "10-panel-stopped")


def test_a_point_of_a_search_that_was_launched_twice(
    lab: str, page: Page, browser: Browser
) -> None:
    run_notebook(page, lab, "panel.ipynb", CELL.replace("EPOCHS", "6"))
    panel = page.locator(PANEL)
    panel.get_by_role("button", name="Launch").dblclick()
    expect(panel.get_by_text(re.compile("Finished: .*; 12 of 12 trials"))).to_be_visible()
    click_a_point_of_the_front(page, panel)
    expect(panel.get_by_role("heading", name=re.compile("^Trial"))).to_be_visible()
    expect(panel.locator(".legendtext", has_text="trial ")).to_be_visible()
    code = panel.locator("code", has_text="load_best(")
    expect(code).to_contain_text("/run-1'")  # two clicks made one search
    panel.get_by_role("button", name="Copy").click()
    expect(panel.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == code.inner_text()
    assert barriers(page, PANEL) == []
    for width in (1920, 1280, 1024):
        page.set_viewport_size({"width": width, "height": 1500})
        page.wait_for_timeout(1000)  # figures follow
        assert is_whole(panel), width
        figure, report = places(panel)
        if width > 1024:
            assert figure["x"] + figure["width"] <= report["x"] + 1
            assert abs(figure["y"] - report["y"]) < 150
        else:
            assert report["y"] > figure["y"] + figure["height"]
        shoot(page, f"11-panel-{width}")
    darken(page)
    assert barriers(page, PANEL) == []
    shoot(page, "12-panel-dark")

    page.keyboard.press("Control+s")
    later = browser.new_page(viewport={"width": 1280, "height": 1500})
    errors: list[str] = []
    later.on("pageerror", lambda error: errors.append(str(error)))
    open_notebook(later, lab, "panel.ipynb")
    panel = later.locator(PANEL)
    click_a_point_of_the_front(later, panel)
    expect(panel.get_by_role("button", name="Copy")).to_be_visible()  # a figure that is seen, hears
    assert errors == []
    later.close()
