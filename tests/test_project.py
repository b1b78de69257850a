"""The project's files agree with each other."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from labkit import get_model, load_best
from labkit.cli import main
from labkit.study.space import get_space
from tests.conftest import ROOT

CONDA_NAMES = {"pytorch": "torch", "python-kaleido": "kaleido"}


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """The versions in constraints.txt, by canonical name."""
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def required() -> dict[str, Requirement]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    versions = dict(re.split("=+", line) for line in conda if "=" in line)
    del versions["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {CONDA_NAMES.get(name, name) for name in versions}
    assert {Requirement(line).name for line in project["dependencies"]} <= names | {
        re.split("[=<>]", line)[0] for line in pip["pip"]
    }
    for name, version in versions.items():
        assert pinned[canonicalize_name(CONDA_NAMES.get(name, name))] == version, name
    for line in pip["pip"]:
        if "==" in line:
            name, version = line.split("==")
            assert pinned[canonicalize_name(name)] == version, name


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
    assert len(names["results"].trials) == 10  # type: ignore[attr-defined]


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
def test_the_benchmark_prints_its_ratios() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "trainers.py", "--quick", "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ratios = json.loads(printed)
    assert set(ratios) == {
        "stack_vs_reference",
        "stack_vs_two_process_loop",
        "search_vs_reference",
        "useful_share_of_peak",
    }
    assert min(ratios.values()) > 0
