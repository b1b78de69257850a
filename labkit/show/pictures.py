"""Pictures of figures, for where nothing runs: files, exported notebooks, code hosting, print.

Chromium draws them. It takes seconds to start, then 0.3 s a picture, and 160 MB of its own: one
serves the process, and ends when nothing was drawn for a while. It asks no network.
"""

import asyncio
import atexit
import base64
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from labkit.checks import as_path
from labkit.errors import LabkitError, in_words

IDLE = 20.0  # seconds after which Chromium ends
LIMIT = 60.0  # seconds that it may take
SCALE = 1.5  # pixels of a picture for each of the figure's


def picture(figure: go.Figure | dict[str, Any], kind: str = "png") -> bytes:
    """Returns a figure as `"png"`, `"svg"` or `"pdf"`.

    Raises:
        LabkitError: There is no Chromium or Chrome, or it fails.
    """
    options = {"format": kind, "scale": SCALE if kind == "png" else 1}
    return _chromium.ask(lambda browser: browser.calc_fig(figure, opts=options))


def save_image(figure: go.Figure, path: str | Path) -> None:
    """Writes a figure as PNG, SVG or PDF, by the name's ending; needs Chromium, and no network.

    Raises:
        LabkitError: The ending is another, there is no Chromium or Chrome, or no such place.
    """
    path = as_path("path", path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise LabkitError(f"path: expected a name ending in .png, .svg or .pdf, got {str(path)!r}")
    drawn = picture(figure, path.suffix[1:])
    with in_words(f"path: cannot write {str(path)!r}"):
        path.write_bytes(drawn)


def printed(page: str) -> bytes:
    """Returns a page of HTML as a PDF file.

    Raises:
        LabkitError: There is no Chromium or Chrome, or it fails.
    """

    async def ask(browser: Any) -> bytes:
        tab = await browser.create_tab("about:blank")
        shown = {"frameId": tab.target_id, "html": page}
        decoded = "Promise.all([...document.images].map(image => image.decode()))"
        paper = {"preferCSSPageSize": True, "printBackground": True}
        await tab.send_command("Page.setDocumentContent", shown)
        await tab.send_command("Runtime.evaluate", {"expression": decoded, "awaitPromise": True})
        answer = await tab.send_command("Page.printToPDF", paper)
        await browser.close_tab(tab)
        return base64.b64decode(answer["result"]["data"])

    return _chromium.ask(ask)


class _Chromium:
    """One browser, in a thread of its own; it starts when it is asked, and ends when it is idle."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._browser: Any = None
        self._turn, self._making = asyncio.Lock(), threading.Lock()
        self._end_later: asyncio.TimerHandle | None = None

    def ask(self, question: Callable[[Any], Awaitable[bytes]]) -> bytes:
        """Returns what a coroutine makes of the browser."""
        with self._making:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
                atexit.register(self._at_exit)
        with in_words("images: Chromium draws them"):
            return asyncio.run_coroutine_threadsafe(self._ask(question), self._loop).result()

    def _at_exit(self) -> None:
        assert self._loop is not None
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)

    async def _ask(self, question: Callable[[Any], Awaitable[bytes]]) -> bytes:
        async with self._turn:
            if self._end_later is not None:
                self._end_later.cancel()
            try:
                return await asyncio.wait_for(self._answer(question), LIMIT)
            except BaseException:
                await self._close()  # the next one starts another
                raise
            finally:
                loop = asyncio.get_running_loop()
                self._end_later = loop.call_later(IDLE, lambda: loop.create_task(self._end()))

    async def _answer(self, question: Callable[[Any], Awaitable[bytes]]) -> bytes:
        if self._browser is None:
            import kaleido

            self._browser = kaleido.Kaleido(mathjax=False)  # which the network would be asked for
            await self._browser.open()
        return await question(self._browser)

    async def _end(self) -> None:
        async with self._turn:
            await self._close()

    async def _close(self) -> None:
        browser, self._browser = self._browser, None
        if browser is not None:
            await browser.close()


_chromium = _Chromium()


class PictureRenderer(MimetypeRenderer):
    """Gives a figure in a notebook a picture beside its data; without Chromium it has none."""

    fails = False

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """Returns the picture, by its kind."""
        try:
            shown = {} if self.fails else {"image/png": picture(fig_dict)}
        except LabkitError:
            PictureRenderer.fails, shown = True, {}  # of this process: not tried at every cell
        return {kind: base64.b64encode(drawn).decode() for kind, drawn in shown.items()}


pio.renderers["picture"] = PictureRenderer()
# In a notebook, unless the user chose what shows figures.
if pio.renderers.default in ("plotly_mimetype", "vscode") and "PLOTLY_RENDERER" not in os.environ:
    pio.renderers.default += "+picture"
