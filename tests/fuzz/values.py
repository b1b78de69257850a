"""Values, texts and bytes that are wrong in a way somebody once wrote them."""

import copy
import math
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st


def nested(levels: int) -> list[Any]:
    """Returns lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


# Made anew for each case: they may be changed, and a long one is not kept.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "-1": lambda: -1,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "2**64": lambda: 2**64,
    "10**400": lambda: 10**400,
    "10**100_000": lambda: 10**100_000,
    "0.5": lambda: 0.5,
    "1e-320": lambda: 1e-320,
    "1e300": lambda: 1e300,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "''": lambda: "",
    "'a'": lambda: "a",
    "'both'": lambda: "both",
    "'1'": lambda: "1",
    "NUL": lambda: "a\0b",
    "newline": lambda: "a\nb",
    "escape": lambda: "\x1b[2Ja",
    "surrogate": lambda: "\ud800",
    "'x' * 100_000": lambda: "x" * 100_000,
    "'/' * 5_000": lambda: "/" * 5_000,
    "'..'": lambda: "../../..",
    "'a:b'": lambda: "nowhere_at_all:b",
    "':'": lambda: ":",
    "bytes": lambda: b"\xff",
    "[]": list,
    "{}": dict,
    "()": tuple,
    "set": lambda: {1, 2},
    "[1]": lambda: [1],
    "[1, 1]": lambda: [1, 1],
    "[[1]]": lambda: [[1]],
    "['both']": lambda: ["both"],
    "[['both']]": lambda: [["both"]],
    "[{}]": lambda: [{}],
    "[None]": lambda: [None],
    "[10**400]": lambda: [10**400],
    "[1, inf]": lambda: [1, math.inf],
    "[nan, nan]": lambda: [math.nan, math.nan],
    "[1e9]": lambda: [1, 1e9],
    "[1e300]": lambda: [1, 1e300],
    "[1e-320]": lambda: [1, 1e-320],
    "list(range(100_000))": lambda: list(range(100_000)),
    "list(range(1, 40))": lambda: list(range(1, 40)),
    "nested": lambda: nested(5_000),
    "{1: 2}": lambda: {1: 2},
    "{'config': {}}": lambda: {"config": {}},
    "{'config': {'name': 'both'}}": lambda: {"config": {"name": "both"}},
    "{'a': {'b': 1}}": lambda: {"a": {"b": 1}},
    "many keys": lambda: {f"key{i}": i for i in range(2_000)},
    "date": lambda: date(2026, 1, 1),
    "complex": lambda: 1j,
    "object": object,
    "type": lambda: int,
    "function": lambda: len,
    "np.float64": lambda: np.float64(2),
    "np.int64": lambda: np.int64(2),
    "np.nan": lambda: np.float32("nan"),
    "array": lambda: np.arange(3),
    "empty array": lambda: np.zeros((0, 3)),
    "Path": lambda: Path("nowhere"),
    "range": lambda: range(3),
    "generator": lambda: (i for i in range(3)),
}
odd = st.sampled_from(sorted(ODD))
KEYS = (
    "", "a", "*", "[", "default", "config", "name", "by", "\0", "a/b", "k" * 50_000, "seq_blocks_2",
    "linear", "conv2d",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _places(item, (*path, i))


@st.composite
def changes(
    draw: st.DrawFn, valid: Any, most: int = 3, *, whole: bool = True
) -> tuple[tuple[Any, ...], ...]:
    """Draws what to change in nested tables, or as a whole: (path, how, what, key), a few times."""
    places = [path for path in _places(valid) if whole or path]
    how = st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename"])
    one = st.tuples(st.sampled_from(places), how, odd, st.sampled_from(KEYS))
    return tuple(draw(st.lists(one, min_size=1, max_size=most)))


def changed(valid: Any, drawn: tuple[tuple[Any, ...], ...]) -> Any:
    """Returns nested tables with what was drawn changed."""
    value = copy.deepcopy(valid)
    for path, how, what, key in drawn:
        value = _changed(value, path, how, what, key)
    return value


def _changed(value: Any, path: tuple[Any, ...], how: str, what: str, key: str) -> Any:
    if not path:
        if how == "add" and isinstance(value, dict):
            return {**value, key: ODD[what]()}
        if how == "add" and isinstance(value, list):
            return [*value, ODD[what]()]
        return ODD[what]()
    head, *rest = path
    try:
        inner = value[head]
    except (KeyError, IndexError, TypeError):  # changed away before
        return value
    if not rest and how in ("remove", "rename") and isinstance(value, dict):
        others = {k: v for k, v in value.items() if k != head}
        return others if how == "remove" else {**others, key: inner}
    new = _changed(inner, tuple(rest), how, what, key)
    if isinstance(value, dict):
        return {**value, head: new}
    return [new if i == head else item for i, item in enumerate(value)]


TOKENS = (
    "", "\n", "=", "[", "]", "[[", "{", "}", '"', "'''", ",", ".", "#", "\\", "\0", "\ufeff", "é",
    "nan", "inf", "-inf", "1e400", "1e-400", "9" * 5_000, "0x" + "f" * 5_000, "true", "[]", "{}",
    "1979-05-27", '"\\u0000"', '"\\ud800"', '[["both"]]', "[" * 5_000, "{a=" * 2_000, "a." * 5_000,
    "x" * 100_000, "null", "NaN", "-0", "1_000", '"a:b"', "-1", "0", "1", "200000000",
)  # fmt: skip
Edit = tuple[float, int, str, int]


def edits(most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """Draws what to change in a text or bytes: where (as a share), what goes, what comes."""
    one = st.tuples(
        st.floats(0, 1), st.integers(0, 40), st.sampled_from(TOKENS), st.integers(0, 255)
    )
    return st.lists(one, min_size=1, max_size=most)


def edited(text: str, drawn: list[Edit]) -> str:
    """Returns a text with what was drawn changed."""
    for share, gone, token, _ in drawn:
        at = int(share * len(text))
        text = text[:at] + token + text[at + gone :]
    return text


def damaged(content: bytes, how: str, drawn: list[Edit]) -> bytes:
    """Returns a file's bytes cut, flipped, spliced, emptied or doubled."""
    share, gone, token, byte = drawn[0]
    at = int(share * len(content))
    match how:
        case "cut":
            return content[:at]
        case "flip":
            data = bytearray(content)
            for share, _, _, byte in drawn:
                if data:
                    data[min(int(share * len(data)), len(data) - 1)] = byte
            return bytes(data)
        case "text":
            for share, gone, token, _ in drawn:
                at = int(share * len(content))
                token_bytes = token.encode("utf-8", "surrogatepass")
                content = content[:at] + token_bytes + content[at + gone :]
            return content
        case "head":  # where formats say how large things are
            data = bytearray(content)
            for share, _, _, byte in drawn:
                if data:
                    data[min(int(share * 400), len(data) - 1)] = byte
            return bytes(data)
        case "empty":
            return b""
        case "other":
            return token.encode("utf-8", "surrogatepass")
    return content + content


DAMAGES = ("cut", "flip", "flip", "text", "text", "head", "head", "empty", "other", "doubled")
