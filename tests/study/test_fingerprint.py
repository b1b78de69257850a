"""A study's identity: what changes it, what does not, and the words of a refusal."""

import importlib
import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.fingerprint import definition, network_identity
from labkit.study.runners import RUNNERS
from labkit.study.search import search
from labkit.transform import find_channels

NETWORK = """
import torch
from torch import nn
from torch.nn import functional as F

SCALE = 2.0


def activation(x):
    return torch.relu(x)


class Scaled(nn.Linear):
    factor = 1.0

    def forward(self, x):
        return super().forward(x) * self.factor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8, eps=1e-5)
        self.own = Scaled(8, 8)
        self.last = nn.Linear(8, 5)
        self.register_buffer("mask", torch.ones(16))

    def forward(self, x):
        x = activation(self.norm(self.first(x * self.mask))) * SCALE
        x = F.dropout(x, 0.1, self.training)
        return self.last(self.own(x))
"""
Make = Callable[..., Any]
NUMBERS = itertools.count()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Imports a module of that source, afresh."""
    monkeypatch.syspath_prepend(tmp_path)

    def imported(source: str, *edits: tuple[str, str]) -> Any:
        for old, new in edits:
            assert old in source
            source = source.replace(old, new)
        n = next(NUMBERS)  # a module is imported once in a process
        (tmp_path / f"own_{n}.py").write_text(source)
        importlib.invalidate_caches()
        module = importlib.import_module(f"own_{n}")
        for thing in vars(module).values():  # as where the file is edited in place
            if getattr(thing, "__module__", "") == module.__name__:
                thing.__module__ = "own"
        sys.modules["own"] = module
        return module

    return imported


def identity(module: Any, **options: Any) -> dict[str, str]:
    return network_identity(find_channels(module.Net(), torch.zeros(1, 16)), **options)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (("torch.relu(x)", "torch.tanh(x)"), "forward"),
        (("SCALE = 2.0", "SCALE = 3.0"), "forward"),
        (("F.dropout(x, 0.1", "F.dropout(x, 0.2"), "forward"),
        (("self.last(self.own(x))", "self.last(self.own(self.own(x)))"), "forward"),
        (("eps=1e-5", "eps=1e-3"), "layer norm"),
        (("factor = 1.0", "factor = 2.0"), "layer own"),
        (("super().forward(x) *", "super().forward(x) +"), "layer own"),
        (("nn.Linear(8, 5)", "nn.Linear(8, 5, bias=False)"), "layer last"),
        (("torch.ones(16)", "torch.zeros(16)"), "constant mask"),
    ],
)
def test_an_edit_changes_its_part(make: Make, edit: tuple[str, str], part: str) -> None:
    before, after = identity(make(NETWORK)), identity(make(NETWORK, edit))
    assert part in {key for key in before | after if before.get(key) != after.get(key)}


@pytest.mark.parametrize(
    "edit",
    [
        ("# a comment", "# another"),
        ("    def forward(self, x):\n        x =", "    def forward(self, x):\n\n        x ="),
    ],
)
def test_layout_and_fresh_weights_are_no_difference(make: Make, edit: tuple[str, str]) -> None:
    source = NETWORK.replace("class Net", "# a comment\n\n\nclass Net")
    assert identity(make(source)) == identity(make(source, edit))


def test_weights_count_where_training_starts_from_them(make: Make) -> None:
    module = make(NETWORK)
    assert identity(module, with_weights=True) != identity(module, with_weights=True)


def test_equal_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NETWORK)
    script = textwrap.dedent(
        """
        import torch, own
        from labkit.study.fingerprint import network_identity
        from labkit.transform import find_channels
        print(network_identity(find_channels(own.Net(), torch.zeros(1, 16))))
        """
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second != ""


RUNNER = """
FACTOR = 1.0
OPTIONS = {"power": 2}


def helper(x):
    return x * FACTOR


class Meter:
    def read(self, x):
        return helper(x) ** OPTIONS["power"]


def run(candidate, settings, extra=3):
    return {"mine": Meter().read(extra)}
"""


@pytest.mark.parametrize(
    "edit",
    [
        ("x * FACTOR", "x + FACTOR"),
        ("FACTOR = 1.0", "FACTOR = 2.0"),
        ('{"power": 2}', '{"power": 3}'),
        ("helper(x) **", "helper(x) *"),
        ("extra=3", "extra=4"),
        ('{"mine": Meter', '{"other": Meter'),
    ],
)
def test_a_definition_is_the_users_code_that_it_reaches(make: Make, edit: tuple[str, str]) -> None:
    assert definition(make(RUNNER).run) != definition(make(RUNNER, edit).run)
    commented = make(RUNNER, ("def run", "# a comment\ndef run"))
    assert definition(make(RUNNER).run) == definition(commented.run)


def test_code_without_a_source_has_a_definition() -> None:
    spaces: list[dict[str, Any]] = [{"__name__": "__main__"}, {"__name__": "__main__"}]
    for space, code in zip(spaces, ("x + 1", "x + 2")):
        exec(f"def f(x):\n    return {code}", space)
    assert definition(spaces[0]["f"]) != definition(spaces[1]["f"])


# What a user does: edit, and run on in the same folder.


def test_another_network_is_not_looked_up(make: Make, blobs: Dataset, tmp_path: Path) -> None:
    options: Any = {"data": blobs, "widths": [0.5, 1], "epochs": 1, "progress": False}
    options["folder"] = tmp_path / "out"
    search(model=make(NETWORK).Net(), trials=2, **options)
    edited = make(NETWORK, ("torch.relu", "torch.tanh")).Net()
    with pytest.raises(LabkitError, match=r"^model: .* another network, whose forward changed; us"):
        search(model=edited, trials=4, **options)
    wider = make(NETWORK, ("eps=1e-5", "eps=1e-3")).Net()
    with pytest.raises(LabkitError, match="another network, whose layer 'norm' changed"):
        search(model=wider, trials=4, **options)
    assert len(search(model=make(NETWORK).Net(), trials=4, **options).trials) == 4


def test_a_metric_that_was_edited_is_not_looked_up(
    make: Make, tables: dict[str, Any], blobs: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    strategy = tables["search"]["strategy"]
    strategy["sw_runner"] = {"hw_dummy": {}}
    strategy["metrics"] = {"mine": {"direction": "maximize"}}
    dummy = RUNNERS["hw_dummy"]._replace(metrics=("mine",))
    monkeypatch.setitem(RUNNERS, "hw_dummy", dummy._replace(run=make(RUNNER).run))
    search(tables, data=blobs, folder=tmp_path / "out", progress=False)
    edited = make(RUNNER, ("x * FACTOR", "x + FACTOR")).run
    monkeypatch.setitem(RUNNERS, "hw_dummy", dummy._replace(run=edited))
    with pytest.raises(LabkitError, match="^hw_dummy: .* another definition of it, which changed"):
        search(tables, data=blobs, folder=tmp_path / "out", progress=False)


def test_one_folder_one_study(blobs: Dataset, tables: dict[str, Any], tmp_path: Path) -> None:
    search(tables, data=blobs, folder=tmp_path, progress=False)
    networks = sorted(tmp_path.glob("best/*"))
    with pytest.raises(LabkitError, match=r"^project: .* holds the search 'jsc-toy', not 'other'"):
        search(tables | {"project": "other"}, data=blobs, folder=tmp_path, progress=False)
    assert sorted(tmp_path.glob("best/*")) == networks


def test_a_network_of_modules_only_has_an_identity() -> None:
    parts = network_identity(find_channels(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))))
    assert {"forward", "layer _0", "layer _1"} <= set(parts)
