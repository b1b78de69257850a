"""The project's files agree with each other."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import labkit
from labkit import get_model, load_best
from labkit.cli import main
from labkit.study.space import get_space
from tests.conftest import ROOT


def python(*arguments: str | Path) -> str:
    """Returns what a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table `[project]` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """The versions in constraints.txt, by canonical name."""
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def required(project: dict[str, Any]) -> dict[str, Requirement]:
    """What pyproject.toml asks for."""
    extras = project["optional-dependencies"].values()
    lines = project["dependencies"] + [line for extra in extras for line in extra]
    return {Requirement(line).name: Requirement(line) for line in lines}


def test_the_pins_are_what_the_package_asks_for(
    pinned: dict[str, str], required: dict[str, Requirement]
) -> None:
    for name, requirement in required.items():
        assert Version(pinned[canonicalize_name(name)]) in requirement.specifier, name
    assert pinned["torch"] == "2.13.0"


def test_conda_gets_the_same_versions(pinned: dict[str, str]) -> None:
    written = python(ROOT / "tools" / "conda_environment.py")
    assert (ROOT / "environment.yml").read_text() == written
    *conda, pip = yaml.safe_load(written)["dependencies"]
    assert {"python=3.11", f"pytorch={pinned['torch']}", f"ruff={pinned['ruff']}"} <= set(conda)
    assert f"thop=={pinned['thop']}" in pip["pip"]


@pytest.mark.skipif(Path(sys.prefix).name != ".venv", reason="only make's environment is pinned")
def test_what_is_installed_is_what_is_pinned(pinned: dict[str, str]) -> None:
    installed = {name: importlib.metadata.version(name) for name in pinned}
    changed = {
        n: v for n, v in installed.items() if Version(Version(v).public) != Version(pinned[n])
    }
    assert changed == {}
    assert python(ROOT / "tools" / "licences.py") == (ROOT / "docs" / "licences.md").read_text()


def test_every_pinned_package_has_a_licence(pinned: dict[str, str]) -> None:
    lines = (ROOT / "docs" / "licences.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line][2:]
    assert {canonicalize_name(name): version for name, version, _ in rows} == pinned
    assert all(licence for *_, licence in rows)


def test_users_are_not_bound_from_above(project: dict[str, Any]) -> None:
    lines = project["dependencies"] + project["optional-dependencies"]["lab"]
    operators = {bound.operator for line in lines for bound in Requirement(line).specifier}
    assert operators == {">="}


def test_a_pass_and_a_search_need_nothing_of_the_lab(project: dict[str, Any]) -> None:
    lab = {Requirement(line).name for line in project["optional-dependencies"]["lab"]}
    modules = {name.replace("-", "_") for name in lab}
    code = (
        "import sys, labkit\n"
        "labkit.search, labkit.channel_multiplier_transform_pass, labkit.layer_table\n"
        f"print(sorted({modules} & set(sys.modules)))"
    )
    assert python("-c", code) == "[]\n"


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    text = (ROOT / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(document: str) -> set[str]:
    """The commands in the shell blocks of a document."""
    lines = "".join(blocks(document, "sh")).splitlines()
    return {line.split("#")[0].strip() for line in lines}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documented_make_targets_exist(document: str) -> None:
    targets = {line.split()[1] for line in commands(document) if line.startswith("make ")}
    assert targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`((?:configs|tools)/[^` ]+)`", text)
    for link in links:
        assert (ROOT / link).exists(), link


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in commands("README.md")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_readmes_example_runs() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    names = {"x": rng.normal(size=(300, 8)) + y[:, None], "y": y}
    exec(compile(blocks("README.md", "python")[1], "README.md", "exec"), names)
    assert len(names["results"].trials) == 20  # type: ignore[attr-defined]


def test_the_guides_example_runs() -> None:
    names: dict[str, Any] = {}
    for block in blocks("docs/own.md", "python"):
        exec(compile(block, "own.md", "exec"), names)
    assert len(names["results"].trials) == 3


def test_the_reference_lists_the_face() -> None:
    rows = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "docs/api/index.md").read_text(), re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == labkit.__all__


def test_the_readmes_wider_network_computes_what_the_trained_one_does() -> None:
    names: dict[str, Any] = {"trained": get_model("resnet8"), "images": torch.randn(2, 3, 32, 32)}
    exec(compile(blocks("README.md", "python")[2], "README.md", "exec"), names)
    wider, trained, images = (names[name] for name in ("wider", "trained", "images"))
    assert (trained.stem.out_channels, wider.stem.out_channels) == (16, 32)
    torch.testing.assert_close(wider.eval()(images), trained.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_readmes_space_is_one() -> None:
    (block,) = blocks("README.md", "toml")
    table = tomllib.loads(block.replace("layer1_*", "stages_0_*"))["search"]["search_space"]
    space = get_space(table["name"])(
        get_model("resnet8"), table["setup"], table["seed"], torch.zeros(1, 3, 32, 32)
    )
    assert space.n_configurations == 3**2  # the block's own width, and that of its shortcut


@pytest.mark.slow
def test_the_readmes_search_runs(tmp_path: Path) -> None:
    (command,) = (line for line in commands("README.md") if "labkit search" in line)
    _, *arguments = command.replace("results/first", str(tmp_path)).split()
    assert main(arguments) == 0
    assert load_best(tmp_path)(torch.zeros(2, 16)).shape == (2, 5)


@pytest.mark.slow
def test_the_documented_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 8))).assign(kind=rng.choice([*"abc"], 300))
    table.to_csv("clouds.csv", index=False)
    Path("my_networks.py").write_text(
        "from torch.nn import Linear, ReLU, Sequential\n\n\n"
        "def wide_mlp():\n    return Sequential(Linear(8, 16), ReLU(), Linear(16, 3))\n"
    )
    said = {}
    for line in "".join(
        [*blocks("README.md", "sh"), *blocks("docs/command.md", "sh")]
    ).splitlines():
        program, *arguments = line.partition("#")[0].split() or [""]
        if program.endswith("labkit") and arguments[0] != "dashboard":  # which does not end
            assert main(arguments) == 0, line
            said[arguments[0]] = capsys.readouterr().out
    [shown] = blocks("docs/command.md", "text")
    assert said["show"].splitlines()[:-1] == shown.splitlines()[:-1]  # but for the time


@pytest.mark.slow
def test_the_benchmark_prints_its_ratios() -> None:
    ratios = json.loads(python(ROOT / "benchmarks" / "trainers.py", "--quick", "--json"))
    assert set(ratios) == {
        "stack_vs_reference",
        "stack_vs_two_process_loop",
        "search_vs_reference",
        "useful_share_of_peak",
    }
    assert min(ratios.values()) > 0


@pytest.mark.slow
def test_the_benchmark_prints_the_table_of_a_device() -> None:
    printed = python(ROOT / "benchmarks" / "trainers.py", "--device", "cpu", "--quick")
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| (")]
    assert [row[0][:5] for row in rows] == [
        "| (a)",
        "| (c)",
        *["| (f)"] * 3,
        "| (a)",
        "| (c)",
        "| (f)",
    ]
    for _, rate, ratio, share, binds, _ in rows:
        assert float(rate) > 0 < float(ratio)
        assert float(share.rstrip("%")) > 0
        assert binds in ("memory", "products")


def load(tool: str) -> ModuleType:
    """A module of `tools/`."""
    spec = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PATH = {"output_type": "stream", "text": "/home/me/labkit"}
WIDGET = "application/vnd.jupyter.widget-view+json"
VIEW = {"output_type": "display_data", "data": {WIDGET: {}}}


def cell(**changes: Any) -> dict[str, Any]:
    output = {"output_type": "stream", "text": ["3"]}
    return {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": ["1 + 2"],
            "outputs": [output]} | changes  # fmt: skip


def figure(*pictures: str) -> dict[str, Any]:
    kinds = dict.fromkeys(["application/vnd.plotly.v1+json", *pictures], "")
    return {"output_type": "display_data", "data": kinds}


@pytest.mark.parametrize(
    ("cells", "metadata", "said"),
    [
        ([cell()], {"kernelspec": {}}, []),
        ([cell()], {"widgets": {}}, ["metadata: widgets"]),
        ([cell(), cell()], {}, ["not run from top to bottom in a new kernel"]),
        ([cell(outputs=[])], {}, ["no outputs"]),
        ([cell(metadata={"tags": ["nbval-ignore-output"]})], {}, []),
        (
            [cell(metadata={"tags": [], "scrolled": True})],
            {},
            ["metadata of the cell that begins with '1 + 2': scrolled"],
        ),
        ([cell(outputs=[{"output_type": "error"}])], {}, ["an error below '1 + 2'"]),
        ([cell(outputs=[PATH])], {}, ["a path of one machine below '1 + 2'"]),
        ([cell(outputs=[VIEW])], {}, ["the view of a widget below '1 + 2'"]),
        ([cell(outputs=[figure("image/png")])], {}, []),
        (
            [cell(outputs=[figure()])],
            {},
            ["a figure without a picture below '1 + 2': Chromium draws them"],
        ),
    ],
)
def test_a_notebook_that_should_not_be_committed_is_named(
    cells: list[Any], metadata: dict[str, Any], said: list[str]
) -> None:
    notebook = {"cells": cells, "metadata": metadata}
    assert list(load("check_notebooks").problems(notebook)) == said


def test_the_notebooks_are_committed_as_they_should_be() -> None:
    assert (
        python(ROOT / "tools" / "check_notebooks.py", *(ROOT / "notebooks").rglob("*.ipynb")) == ""
    )


def test_the_hooks_run_what_is_here() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}  # the network is not needed
    for hook in hooks[0]["hooks"]:
        program, *arguments = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        assert all((ROOT / name).exists() for name in arguments if name.endswith(".py"))


def test_mutants_are_all_the_small_changes(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "def f(a: Literal[7] = 1):\n    if a < 2 and min(a, 3):\n        return 'x' + a\n"
    )
    mutants = load("mutants")
    mutants.ROOT = tmp_path
    found = {mutant.text.split(": ", 1)[1] for mutant in mutants.mutants(tmp_path / "code.py")}
    assert found == {
        "if a < 2 and min(a, 3):  →  if not (a < 2 and min(a, 3)):",
        "a < 2 and min(a, 3)  →  a < 2 or min(a, 3)",
        "a < 2  →  a <= 2",
        "min  →  max",
        *("1  →  2", "2  →  3", "3  →  4"),
    }
