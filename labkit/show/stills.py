"""What a panel leaves in a notebook: its last state, for where no kernel runs."""

import html
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go
from IPython.display import display
from ipywidgets.widgets.widget_description import DescriptionWidget

from labkit.show.pictures import PictureRenderer
from labkit.show.sliders import Sliders

VIEW = ".jp-OutputArea-child:has(.labkit-panel)"
# A still is the two outputs after the view, which hides them as long as it is there.
HIDING = f"<style>{VIEW} + *, {VIEW} + * + * {{display: none}}</style>"
STYLES = re.compile("<style>.*?</style>", re.DOTALL)  # which pages of Markdown show as text
TRACK = 12  # characters of a slider
DELAY = 2.0  # seconds without a change, after which a still is drawn anew


class WithStill(ipw.VBox):
    """A panel that has a still below it in the notebook: its figure as a picture, the rest as text.

    Attributes:
        figure: Its main figure.
    """

    figure: go.FigureWidget
    _shown: Any = ()
    _later = threading.Timer(0, lambda: None)

    def __init__(self, children: Iterable[ipw.Widget]):
        hiding = ipw.HTML(HIDING, layout=ipw.Layout(display="none"))
        super().__init__([*children, hiding])
        self.add_class("labkit-panel")

    def _ipython_display_(self) -> None:
        view = self._repr_mimebundle_()
        view.pop("text/plain")  # the still has one
        display(view, raw=True)
        self._shown = [display(part, raw=True, display_id=True) for part in self._still()]

    def keep(self) -> None:
        """Makes the still that of now."""
        for shown, part in zip(self._shown, self._still()):
            shown.update(part, raw=True)

    def keep_later(self) -> None:
        """Makes the still that of the moment after which nothing changed for a while."""
        self._later.cancel()
        self._later = threading.Timer(DELAY, self.keep)
        self._later.daemon = True
        self._later.start()

    def _still(self) -> Iterator[dict[str, str]]:
        name = {"text/plain": f"{type(self).__name__}(…)"}
        yield name | PictureRenderer().to_mimebundle(self.figure.to_dict())
        yield name | {"text/html": STYLES.sub("", _as_html(self))}


def _as_html(widget: ipw.Widget) -> str:
    """Returns what is read in a widget and those in it."""
    match widget:
        case ipw.Widget(layout=ipw.Layout(display="none")):
            return ""
        case ipw.Label():
            return f"<div>{html.escape(widget.value)}</div>"
        case ipw.HTML():
            return f"<div>{widget.value}</div>"
        case ipw.Box():
            return "".join(map(_as_html, widget.children))
        case Sliders():
            asked = ((row["name"], widget.values.get(row["group"], 1)) for row in widget.rows)
            return "".join(_line(name, _track(value, *widget.range)) for name, value in asked)
        case ipw.IntSlider():
            said = _track(widget.value, widget.min, widget.max)
        case DescriptionWidget(value=_):
            said = f"<b>{html.escape(str(widget.value))}</b>"
        case _:
            return ""
    return _line(widget.description, said)


def _track(value: float, low: float, high: float) -> str:
    place = round(TRACK * (value - low) / (high - low))
    return f"{'─' * place}●{'─' * (TRACK - place)} <b>{value:g}</b>"


def _line(name: str, said: str) -> str:
    return f"<div><code>{html.escape(name)}</code> {said}</div>"
