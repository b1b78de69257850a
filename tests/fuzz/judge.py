"""What bad input may end in: a result or a sentence, soon, in little memory, in its folder."""

import contextlib
import errno
import faulthandler
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

LONGEST = 300  # characters of a message
SECONDS = 60  # for a case, on a machine that does much else
MEMORY = 1 << 30  # bytes that a case may need
# What writes → which of its arguments are places, and whether a link there is followed.
WRITES = {
    "os.remove": ((0,), False), "os.rename": ((0, 1), False), "os.mkdir": ((0,), False),
    "os.rmdir": ((0,), False), "os.symlink": ((1,), False), "os.link": ((1,), False),
    "os.truncate": ((0,), True), "open": ((0,), True), "sqlite3.connect": ((0,), True),
}  # fmt: skip

_watched: list[Path] = []  # the home of the case that is being judged
_outside: list[str] = []  # what the case wrote elsewhere


class Hang(BaseException):
    """A case takes too long. No `except Exception` holds it."""


class BrokenError(AssertionError):
    """A case ended in something else than a result or a sentence.

    Attributes:
        kind: What went wrong, and where: equal for cases that one change would mend.
    """

    def __init__(self, kind: str, said: str):
        super().__init__(f"{kind}: {said}")
        self.kind = kind


def judge(run: Callable[[], Any], home: Path) -> str:
    """Runs a case, and returns its outcome: `"accepted"` or `"refused"`.

    Args:
        run: The case. Its working directory is a folder some levels below.
        home: The only place that it can write to.

    Raises:
        BrokenError: It raised something else than a `LabkitError`, its message is no short line, it
            took too long or too much memory, or wrote elsewhere.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_memory()
    outcome = "accepted"
    try:
        with _limited(home.resolve()):
            run()
    except LabkitError as error:
        _check_sentence(str(error), error)
        outcome = "refused"
    except Hang as hang:
        raise BrokenError(f"hang in {_place(hang)}", f"more than {SECONDS} s") from hang
    except (Exception, SystemExit) as error:
        if not _outside:
            kind = f"{type(error).__name__} in {_place(error)}"
            raise BrokenError(kind, f"{error!s:.500}") from error
    if _outside:
        raise BrokenError("wrote outside", ", ".join(_outside))
    grown = _peak_memory() - before
    if grown > MEMORY:
        raise BrokenError("memory", f"{grown:,} bytes")
    return outcome


def _peak_memory() -> int:
    """Returns the most bytes that this process has had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _check_sentence(message: str, error: BaseException) -> None:
    if len(message) > LONGEST:
        raise BrokenError(f"long message from {_place(error)}", f"{len(message)}: {message:.200}")
    if not message.strip() or not message.isprintable():
        raise BrokenError(f"no line from {_place(error)}", repr(message))


def _place(error: BaseException) -> str:
    """Returns the line of labkit in which something was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/labkit/" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


@contextlib.contextmanager
def _limited(home: Path) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal is heard
    _outside.clear()
    folder = home / "in" / "in" / "in"  # so that a case may name folders above its own
    folder.mkdir(parents=True)
    _watched[:] = [home]
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _watched.clear()


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Notes and forbids what Python is about to write outside of the home that is watched."""
    if not _watched or event not in WRITES:
        return
    if event == "open" and not set(str(args[1] or "")) & set("wax+") and not (args[2] or 0) & 3:
        return
    which, follows = WRITES[event]
    for given in (args[i] for i in which if isinstance(args[i], str | bytes | Path)):
        place = Path(os.fsdecode(given))
        # Byte code, and the compiler's cache, are Python's and torch's own.
        if place.is_relative_to("/dev") or re.search("__pycache__|inductor", str(place)):
            continue
        real = os.path.realpath(place if follows else place.parent)
        if not Path(real).is_relative_to(_watched[0]):
            _outside.append(f"{event} {place}")
            raise PermissionError(errno.EACCES, "outside of the home of the case", str(place))


sys.addaudithook(_watch)
