"""What panels are made of."""

import functools
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw
import plotly.graph_objects as go
import traitlets
from plotly.serializers import custom_serializers

from labkit.show.style import CONFIG, follow_theme

HERE = Path(__file__).parent
WRONG, COPIES = "labkit-wrong", "labkit-copies"  # classes of fields and buttons, for panels.js


class _Page(anywidget.AnyWidget):
    """What panels need in the notebook's page."""

    _esm, _css = HERE / "panels.js", HERE / "panels.css"
    plotly = traitlets.Unicode(str(go.FigureWidget._esm)).tag(sync=True)


_page = functools.cache(_Page)  # one a kernel


class _Figure(go.FigureWidget):
    _esm = HERE / "figure.js"

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        state = super().get_state(key, drop_defaults)
        if key is None and "_layout_obj" in vars(self):  # plotly's own is the figure as it began
            now = {"_widget_data": self._data, "_widget_layout": self._layout_obj._props}
            state |= {name: custom_serializers["to_json"](one, self) for name, one in now.items()}
        return state


def labelled(kind: type[ipw.Widget], description: str, **options: Any) -> ipw.Widget:
    """Returns a control with its name; what does not fit of a long one is in the tooltip."""
    _page()
    look = {"style": {"description_width": "13em"}, "layout": ipw.Layout(width="32em")}
    return kind(description=description, tooltip=description, **look, **options)


def message(lines: Iterable[object]) -> str:
    """Returns lines of text for people, which a screen reader reads out."""
    shown = "<br>".join(html.escape(str(line)) for line in lines)
    return f'<span role="status">{shown}</span>' if shown else ""


def progress_bar(done: int, total: int, name: str) -> str:
    """Returns a bar of HTML's own, which says how far something is."""
    label, most = html.escape(name), max(total, 1)
    return f'<progress value="{done}" max="{most}" aria-label="{label}"></progress>'


def figure_widget(figure: go.Figure) -> go.FigureWidget:
    """Returns a figure that can be updated, in the theme of the notebook."""
    _page()
    follow_theme()
    widget = _Figure(figure)
    widget._config = CONFIG | {"responsive": True}
    return widget


def update(figure: go.FigureWidget, new: go.Figure) -> None:
    """Gives a displayed figure the data of a new one with as many traces."""
    with figure.batch_update():
        for trace, fresh in zip(figure.data, new.data, strict=True):
            trace.update(fresh.to_plotly_json())
        layout = new.layout.to_plotly_json()
        figure.layout.annotations = new.layout.annotations
        figure.update_layout({key: layout[key] for key in layout if key != "template"})  # slow
