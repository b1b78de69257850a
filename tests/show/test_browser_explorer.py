"""A browser looks at figures and at the explorer in JupyterLab."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import plotly.offline
import pytest
from playwright.sync_api import Locator, Page, expect

from labkit import plots
from labkit.show.page import write_page
from tests.show.browser import (
    IN_BROWSER,
    barriers,
    darken,
    move,
    open_notebook,
    run_all,
    run_notebook,
    shoot,
)  # fmt: skip
from tests.show.studies import study
from tests.show.test_style import contrast

pytestmark = IN_BROWSER

FIGURES = """
import labkit
from labkit import plots
from labkit.show.page import write_page
model = labkit.get_model("jsc-toy")
display(plots.layer_costs(labkit.compare(model, None)))
labkit.LayerExplorer(model)
"""
DEEP = """
import labkit, torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
    def forward(self, x):
        return x + self.conv3(self.conv2(self.conv1(x)).relu()).relu()
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        stages = (nn.Sequential(*(Block() for _ in range(n))) for n in (3, 4, 6, 3))
        self.feature_extractor_stages = nn.Sequential(*stages)
    def forward(self, x):
        return self.feature_extractor_stages(x)
labkit.LayerExplorer(Deep(), example_input=torch.zeros(1, 8, 8, 8))
"""
COLOURS = """async ([picture]) => {
    const image = new Image();
    image.src = "data:image/png;base64," + picture;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    return [...canvas.getImageData(0, 0, image.width, image.height).data];
}"""

TICKS = """async figure => {
    await Plotly.newPlot("figure", figure);
    return ["x", "y"].map(axis => [...document.querySelectorAll(`.${axis}tick text`)]
        .map(tick => tick.textContent).filter(label => label.trim()));
}"""


def colours(part: Locator) -> list[np.ndarray]:
    """Returns the colours that a part of the page shows, the most frequent first, 0 to 1."""
    picture = base64.b64encode(part.screenshot()).decode()
    pixels: Any = np.reshape(part.page.evaluate(COLOURS, [picture]), (-1, 4))[:, :3]
    return [np.array(c) / 255 for c, _ in Counter(map(tuple, pixels.tolist())).most_common()]


def test_logarithmic_axes_have_ticks_with_labels(page: Page) -> None:
    page.set_content("<div id=figure></div>")
    page.add_script_tag(content=plotly.offline.get_plotlyjs())
    rng = np.random.default_rng(0)
    lowest = 10 ** rng.uniform(0, 10, 60)
    ranges = zip(lowest, lowest * 10 ** (rng.uniform(0, 1, 60) * rng.choice([0, 0.1, 1, 6], 60)))
    for low, high in [*ranges, (1, 9.9), (2.1, 4.9), (5.1, 19), (5.1, 51), (1.1, 9.9e4)]:
        trials = [({"a": int(x)}, {"accuracy": 1.0, "total_flops": x}) for x in (low, high)]
        for draw in (plots.pareto_front, plots.widths_along_front):
            figure = json.loads(draw(study(trials)).update_layout(width=480).to_json())
            x, y = page.evaluate(TICKS, figure)
            assert 2 <= len(x) <= 14, (low, high, x)
            assert len(y) >= 2, (low, high, y)


def test_the_page_is_narrow_and_dark_where_it_must_be(page: Page, tmp_path: Path) -> None:
    widths = [{"a_name_of_a_group_that_is_long": a, "b": b} for a in (8, 16) for b in (8, 32)]
    trials = [(w, {"accuracy": w["b"] / 99, "total_flops": sum(w.values())}) for w in widths]
    write_page(study(trials), tmp_path / "pareto.html")
    page.set_viewport_size({"width": 480, "height": 900})
    for scheme, background in (("light", 1), ("dark", 17 / 255)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto((tmp_path / "pareto.html").as_uri())
        figure = page.locator(".js-plotly-plot").first
        expect(figure.locator(".points path").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 480
        for part in (page.locator("h1"), figure):
            paper, *shown = colours(part)
            assert paper == pytest.approx(background, abs=0.003)
            assert max(contrast(colour, paper) for colour in shown) >= 4.5
        titles = page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
        assert titles
        assert not any("hare" in title or "lotly" in title for title in titles)
        shoot(page, f"page-{scheme}")
    page.emulate_media(media="print")
    assert colours(page.locator("h1"))[0] == pytest.approx(1)


def test_figures_follow_the_theme_and_lead_to_no_cloud(lab: str, page: Page) -> None:
    run_notebook(page, lab, "figures.ipynb", FIGURES)
    page.locator(".jp-RenderedPlotly").hover()  # until then it is a picture
    figures = page.locator(".js-plotly-plot")
    expect(figures).to_have_count(2)
    for background in (1, 17 / 255):
        for i in range(2):
            figure = figures.nth(i)
            figure.scroll_into_view_if_needed()
            page.mouse.move(0, 0)
            paper, bars, *_ = colours(figure)
            assert paper == pytest.approx(background, abs=0.003)
            assert contrast(bars, paper) >= 3
            for text in (".gtitle", ".xtick text", ".legendtext"):
                shown = colours(figure.locator(text).first)
                assert max(contrast(colour, paper) for colour in shown) >= 4.5
        shoot(page, f"figures-{round(background * 255)}")
        if background == 1:
            darken(page)
    buttons = figures.locator(".modebar-btn")
    titles = buttons.evaluate_all("all => all.map(one => one.dataset.title)")
    assert titles.count("Download plot as a PNG") == 2
    assert not any("hare" in title or "lotly" in title for title in titles)


def test_a_picture_of_a_figure_is_dark_in_a_dark_notebook(lab: str, page: Page) -> None:
    run_notebook(page, lab, "pictures.ipynb", FIGURES)
    darken(page)
    paper, *_ = colours(page.locator(".plot-img"))
    assert paper == pytest.approx(17 / 255, abs=0.003)


def test_the_sliders_of_a_network(lab: str, page: Page) -> None:
    open_notebook(page, lab, "01_channel_multiplier.ipynb")
    run_all(page)
    explorer = page.locator(".labkit-panel")
    explorer.scroll_into_view_if_needed()
    expect(explorer.get_by_text("parameters: 327 → 327")).to_be_visible()
    move(page, "seq_blocks_5 output", "ArrowRight", 4)
    expect(explorer.get_by_text("parameters: 327 → 455")).to_be_visible()
    slider = page.get_by_role("slider", name="seq_blocks_8 input multiplier")  # of the same group
    expect(slider).to_have_value("2")
    expect(slider).to_have_attribute("aria-valuetext", "× 2")
    move(page, "seq_blocks_2 input", "ArrowRight", 1)
    expect(explorer.get_by_text("the width stays 16 because")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("slider", name="seq_blocks_2 output")).to_be_focused()
    expect(explorer.get_by_text("parameters: 327 → 455")).to_be_visible()  # no key went elsewhere
    assert barriers(page, ".labkit-panel") == []


def test_a_deep_network_in_the_explorer(lab: str, page: Page) -> None:
    run_notebook(page, lab, "deep.ipynb", DEEP)
    explorer = page.locator(".labkit-panel")
    explorer.scroll_into_view_if_needed()
    expect(explorer.locator("summary:visible")).not_to_have_count(0)
    assert explorer.get_by_role("slider").count() < 20  # the others are folded
    search = explorer.get_by_role("searchbox", name="Find a layer")
    search.fill("STAGES_2_1_CONV2")
    expect(explorer.get_by_role("slider")).to_have_count(2)
    search.fill("conv2")
    expect(explorer.get_by_role("slider")).to_have_count(32)
    for width in (1024, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1000)  # JupyterLab and plotly lay out anew
        explorer.evaluate("it => it.scrollIntoView()")
        last = explorer.get_by_role("slider").last
        last.focus()
        last.press("ArrowRight")
        for seen in (explorer.get_by_text("parameters:"), explorer.locator(".legend"), last):
            expect(seen).to_be_in_viewport(ratio=0.99)
        assert explorer.evaluate("it => it.scrollWidth <= it.clientWidth")
        labels = explorer.locator(".labkit-blocks span:visible")
        assert labels.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
        tick = explorer.locator(".xtick").last.bounding_box()
        assert tick is not None
        assert tick["x"] + tick["width"] <= width
        shoot(page, f"explorer-{width}")
