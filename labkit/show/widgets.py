"""What panels are made of."""

import html
from collections.abc import Iterable
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go

from labkit.show.style import CONFIG, follow_theme


def labelled(kind: type[ipw.Widget], description: str, **options: Any) -> ipw.Widget:
    """Returns a control with its name; what does not fit of a long one is in the tooltip."""
    look = {"style": {"description_width": "13em"}, "layout": ipw.Layout(width="32em")}
    return kind(description=description, tooltip=description, **look, **options)


def message(lines: Iterable[object]) -> str:
    """Returns lines of text for people, which a screen reader reads out."""
    shown = "<br>".join(html.escape(str(line)) for line in lines)
    return f'<span role="status">{shown}</span>' if shown else ""


def figure_widget(figure: go.Figure) -> go.FigureWidget:
    """Returns a figure that can be updated, in the theme of the notebook."""
    follow_theme()
    widget = go.FigureWidget(figure)
    widget._config = CONFIG
    return widget


def update(figure: go.FigureWidget, new: go.Figure) -> None:
    """Gives a displayed figure the data of a new one with as many traces."""
    with figure.batch_update():
        for trace, fresh in zip(figure.data, new.data, strict=True):
            trace.update(fresh.to_plotly_json())
        layout = new.layout.to_plotly_json()
        figure.layout.annotations = new.layout.annotations
        figure.update_layout({key: layout[key] for key in layout if key != "template"})  # slow
