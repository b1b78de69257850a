"""The guide to data says what happens."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from labkit.data.columns import Reading

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_the_guides_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "data.md", "exec"), names)
    assert [f"{caplog.messages[0]}\n{capsys.readouterr().out}"] == blocks("text")
    assert names["iris"].classes == ("setosa", "versicolor", "virginica")
    assert [len(names["own"].split(s).x) for s in ("train", "val", "test")] == [60, 15, 15]


def test_the_guides_keys_are_those_of_a_configuration() -> None:
    (block,) = blocks("toml")
    assert set(tomllib.loads(block)) - {"dataset"} <= set(Reading.model_fields)
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)) == set(Reading.model_fields)
