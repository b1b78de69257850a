"""Pictures of figures, for where nothing runs: files, exported notebooks, code hosting, print.

Chromium draws them. It takes seconds to start, then 0.3 s a picture, and 160 MB of its own: one
serves the process, and ends when nothing was drawn for a while. It asks no network.
"""

import asyncio
import atexit
import base64
import functools
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.io.base_renderers import MimetypeRenderer

from labkit.checks import as_path
from labkit.errors import LabkitError, in_words

IDLE = 20.0  # seconds after which Chromium ends
LIMIT = 60.0  # seconds that a picture may take
SCALE = 1.5  # pixels of a picture for each of the figure's


def picture(figure: go.Figure | dict[str, Any], kind: str = "png") -> bytes:
    """Returns a figure as `"png"`, `"svg"` or `"pdf"`.

    Raises:
        LabkitError: There is no Chromium or Chrome, or it fails.
    """
    options = {"format": kind, "scale": SCALE if kind == "png" else 1}
    return _answer(lambda browser: browser.calc_fig(figure, opts=options))


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
    """Returns a page of HTML as a PDF file; its scripts do not run.

    Raises:
        LabkitError: There is no Chromium or Chrome, or it fails.
    """

    async def ask(browser: Any) -> bytes:
        tab = await browser.create_tab("about:blank")
        shown = {"frameId": tab.target_id, "html": page}
        decoded = "Promise.all([...document.images].map(image => image.decode()))"
        await tab.send_command("Emulation.setScriptExecutionDisabled", {"value": True})
        await tab.send_command("Page.setDocumentContent", shown)
        await tab.send_command("Runtime.evaluate", {"expression": decoded, "awaitPromise": True})
        answer = await tab.send_command("Page.printToPDF", {"preferCSSPageSize": True})
        await browser.close_tab(tab)
        return base64.b64decode(answer["result"]["data"])

    return _answer(ask)


Question = Callable[[Any], Awaitable[bytes]]  # what a coroutine makes of a browser
_asked: queue.Queue[tuple[Question, Future[bytes]] | None] = queue.Queue()


def _answer(question: Question) -> bytes:
    _start()
    answer: Future[bytes] = Future()
    _asked.put((question, answer))
    with in_words("images: Chromium draws them"):
        return answer.result(LIMIT)


@functools.cache
def _start() -> None:
    thread = threading.Thread(target=lambda: asyncio.run(_serve()), daemon=True)
    thread.start()
    atexit.register(thread.join, 5)  # after the next line's: the last registered is called first
    atexit.register(_asked.put, None)


async def _serve() -> None:
    """Answers one question after the other, by a Chromium that ends when it is idle."""
    while asked := _asked.get():
        question, answer = asked
        try:
            import kaleido

            async with kaleido.Kaleido(mathjax=False) as browser:  # else it would ask the network
                while asked:
                    question, answer = asked
                    answer.set_result(await question(browser))
                    asked = _asked.get(timeout=IDLE)
            return
        except queue.Empty:
            pass
        except Exception as error:  # the next question starts another
            if not answer.done():
                answer.set_exception(error)


class PictureRenderer(MimetypeRenderer):
    """Gives a figure in a notebook a picture beside its data; without Chromium it has none."""

    fails = False  # in this process: it is not tried again at every cell

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """Returns the picture, by its kind."""
        if not self.fails:
            try:
                return {"image/png": base64.b64encode(picture(fig_dict)).decode()}
            except LabkitError:
                PictureRenderer.fails = True
        return {}
