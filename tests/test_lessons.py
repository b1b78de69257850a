"""The lessons: each asks, answers and has exercises with solutions; what they link to is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit import channel_multiplier_transform_pass
from tests.conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[Any]:
    """The sources of the cells of a kind."""
    read = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in read if cell["cell_type"] == kind]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_asks_one_question_and_answers_it(lesson: Path) -> None:
    text = "\n".join(cells(lesson, "markdown"))
    assert len(re.findall(r"^\*\*Question: ", text, re.MULTILINE)) == 1
    assert len(re.findall("^## What we found$", text, re.MULTILINE)) == 1
    assert f"notebooks/{lesson.name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("lesson", LESSONS[1:], ids=lambda path: path.stem)
def test_each_exercise_has_a_hint_and_a_solution(lesson: Path) -> None:
    exercises = cells(lesson, "markdown")[-1].partition("## Exercises")[2]
    numbers = re.findall(r"^(\d)\. ", exercises, re.MULTILINE)
    assert numbers == list("123")
    assert exercises.count("<summary>Hint</summary>") == exercises.count("</details>") == 3
    solutions = "\n".join(cells(NOTEBOOKS / "solutions" / lesson.name, "markdown"))
    assert re.findall(r"^\*\*(\d)\. ", solutions, re.MULTILINE) == numbers


@pytest.mark.parametrize("notebook", [*LESSONS, *SOLUTIONS], ids=lambda path: path.stem)
def test_links_lead_somewhere_and_no_test_shows(notebook: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(cells(notebook, "markdown"))):
        assert link.startswith("https://") or (notebook.parent / link).exists(), link
    assert not any("NBVAL" in cell for cell in cells(notebook, "code"))


def test_the_configuration_of_the_summary_works() -> None:
    [code] = re.findall(r"```python\n(.*?)```", (NOTEBOOKS / "summary.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    _, info = channel_multiplier_transform_pass(
        Network(), names["pass_config"], example_input=torch.zeros(1, 4)
    )
    assert info.plan.to_dict() == {"first": 16}
