"""Colours: what can be told from the background, on light pages and on dark ones."""

import re

import numpy as np
import plotly.io as pio
import pytest

from labkit.show import style

# The matrix of hue-rotate(180deg): W3C, "Filter Effects Module Level 1", its cosine being -1.
TURNED = [[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]]


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def inverted(colour: np.ndarray) -> np.ndarray:
    """As the filter of dark pages shows it."""
    amount = float(re.search(r"invert\((.*?)\) hue-rotate\(180deg\)", style.INVERTED)[1])  # type: ignore[index]
    return np.clip(TURNED @ (colour * (1 - 2 * amount) + amount), 0, 1)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """As W3C's WCAG 2.1 defines it."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (a, b)]
    dark, light = sorted(one @ [0.2126, 0.7152, 0.0722] for one in linear)
    return (light + 0.05) / (dark + 0.05)


TEXT = pio.templates[style.TEMPLATE].layout.font.color


@pytest.mark.parametrize(
    ("colour", "least"), [(TEXT, 4.5), *((colour, 3) for colour in style.COLOURS)]
)
def test_what_is_drawn_can_be_seen_on_both_backgrounds(colour: str, least: float) -> None:
    white, dark = rgb("#ffffff"), rgb(style.DARK)
    assert inverted(white) == pytest.approx(dark, abs=1 / 255)
    assert contrast(rgb(colour), white) >= least
    assert contrast(inverted(rgb(colour)), dark) >= least
