"""Tables: numbers for code, and words for people."""

import html
import re
import sys
from collections.abc import Callable
from numbers import Integral, Real

import pandas as pd

# Lines that show on a light page and on a dark one; colours are the page's.
STYLE = """<style>
.labkit {overflow-x: auto}
:is(.widget-html, .widget-html-content):has(.labkit) {min-width: 0}
.labkit table {border-collapse: collapse}
.labkit :is(th, td) {padding: 0.2em 0.8em; text-align: right; border: none}
.labkit tr :is(th, td) {border-bottom: 1px solid rgba(128, 128, 128, 0.3)}
.labkit thead tr th {text-align: right}
.labkit tbody th {text-align: left}
</style>"""
LONGEST = 32  # of words, in letters
ROWS = 60  # at most, of what a notebook shows


class Table(pd.DataFrame):
    """A table that a notebook shows as `html_table` writes it; otherwise one of pandas'."""

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    def _repr_html_(self) -> str:
        return html_table(self, ROWS)


def html_table(table: pd.DataFrame, max_rows: int | None = None) -> str:
    """Returns a table for a page or a panel.

    Whole numbers have their thousands apart, others four digits; a column `share` is in percent;
    what is missing is empty. Long words are shortened, and whole in a tooltip.

    Args:
        table: Any.
        max_rows: Of longer tables the middle is left out.
    """
    # The name of the index goes into the corner: on its own it would take a line.
    corner = [table.index.name, *[None] * (table.columns.nlevels - 1)]
    table = table.set_axis(table.columns.set_names(corner), axis=1).rename_axis(index=None)
    shown = _as_words(table)
    cut = len(table) > (max_rows or len(table))
    with pd.option_context("display.max_colwidth", None):
        text = shown.to_html(border=0, escape=False, max_rows=max_rows, show_dimensions=cut)
    return f'{STYLE}<div class="labkit" tabindex="0">{text}</div>'


def markdown_table(table: pd.DataFrame) -> str:
    """Returns a table for Markdown, in the same words."""
    shown = _as_words(table.reset_index())
    cells = shown.map(lambda words: words.replace("|", "&#124;"))
    sides = ["left", *["right"] * (len(cells.columns) - 1)]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=sides)


def print_table(table: pd.DataFrame) -> None:
    """Prints a table: with colours on a terminal, plain lines elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    cells, live = _as_words(table.reset_index(), str), sys.stdout.isatty()
    console = Console(width=None if live else 10_000, highlight=False, markup=False, emoji=False)
    grid = Grid(
        box=box.SIMPLE_HEAD if live else None, padding=(0, 0 if live else 2, 0, 0),
        show_edge=False, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for i, name in enumerate(cells.columns):
        style = "cyan" if i == 0 else "dim" if name.endswith("to original") else ""
        head = name.replace(" to ", "\nto ") if live else name
        grid.add_column(head, justify="right", style=style, overflow="fold")
    for row in cells.itertuples(index=False):
        grid.add_row(*row)
    console.print(grid)


def shortened(name: str, most: int = LONGEST) -> str:
    """Returns a name of at most so many letters: the middle of a longer one is left out."""
    kept = most - 1
    return name if len(name) <= most else f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def _as_words(table: pd.DataFrame, words: Callable[[object], str] | None = None) -> pd.DataFrame:
    """Returns a table of words; by default as HTML."""
    words = words or _words
    return table.apply(_column, words=words).rename(index=words, columns=words)


def _column(column: pd.Series, words: Callable[[object], str]) -> pd.Series:
    values = [None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in column]
    if column.name == "share":
        values = [None if v is None else f"{v:.1%}" for v in values]
    whole = all(map(_whole, values))
    return pd.Series([_cell(v, whole, words) for v in values], column.index, dtype=object)


def _whole(value: object) -> bool:
    return not isinstance(value, float) or value.is_integer()


def _cell(value: object, whole: bool, words: Callable[[object], str]) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        parts = (f"{words(key)} {_cell(one, _whole(one), words)}" for key, one in value.items())
        return ", ".join(parts)
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{value:,.{0 if whole or isinstance(value, Integral) else 4}f}"
    return words(value)


def _words(value: object) -> str:
    """Returns text as HTML; what does not fit of a long word is in its tooltip."""
    text = html.escape(str(value))
    return re.sub(rf"[^\s&;]{{{LONGEST + 1},}}", _tooltip, text)


def _tooltip(word: re.Match[str]) -> str:
    return f'<span title="{word[0]}">{shortened(word[0])}</span>'
