"""A study's identity: what changes it, what does not, and the words of a refusal."""

import importlib
import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labkit.data import Dataset
from labkit.errors import LabkitError
from labkit.study.fingerprint import Identity, definition, difference, network_identity
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


SETTINGS = {"seed": 1, "batch_size": 2}
PARTS = {"forward": "a", "layer first": "b", "constant mask": "c", "input x": "d"}
KNOWN = Identity(SETTINGS, PARTS, "rows", {"basic_train": "e"})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"settings": SETTINGS | {"seed": 3}}, "seed: a search with 1, not 3"),
        ({"settings": {"seed": 1}}, "batch_size: a search with 2, not None"),
        ({"settings": SETTINGS | {"new": 5}}, "new: a search with None, not 5"),
        ({"network": PARTS | {"forward": "z"}}, "model: .* network, whose forward changed"),
        ({"network": PARTS | {"forward": "z", "layer first": "z"}}, "whose layer 'first' changed"),
        ({"network": PARTS | {"input x": "z", "constant mask": "z"}}, "constant 'mask' changed"),
        ({"network": PARTS | {"function f": "z", "input x": "z"}}, "function 'f' changed"),
        ({"data": "others"}, "data: a search on other data"),
        ({"data": "others", "definitions": {}}, "data: a search on other data"),
        ({"definitions": {"basic_train": "z"}}, "basic_train: a search by another definition of"),
        ({"definitions": {"basic_train": "e", "own": "z"}}, "own: a search by another definition"),
    ],
)
def test_a_difference_in_words(changed: dict[str, Any], said: str | None) -> None:
    found = difference(KNOWN, replace(KNOWN, **changed))
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found)


REACHED = """
import functools
from dataclasses import dataclass


def made(factor):
    def inner(x):
        def innermost(y):
            return deep(y) * factor
        return innermost(x)
    return inner


def deep(x):
    return x + 1


class Base:
    @staticmethod
    def still(x):
        return x + 10

    @classmethod
    def of(cls, x):
        return x + 20

    @property
    def tall(self):
        return 30


class Own(Base):
    def __call__(self, x):
        return self.still(x) + self.of(x) + self.tall


own = Own()
closed = made(2)


@functools.cache
def wrapped(x):
    return x + 40


def recursive(x):
    return recursive(x - 1) if x else run(x)


def run(candidate, settings=None):
    return {"mine": own(closed(wrapped(recursive(1))))}
"""


@pytest.mark.parametrize(
    "edit",
    [("made(2)", "made(3)"), ("x + 1\n", "x + 2\n"), ("x + 10", "x + 11"), ("x + 20", "x + 21"),
     ("return 30", "return 31"), ("x + 40", "x + 41"), ("deep(y) *", "deep(y) /"),
     ("x - 1", "x - 2"), ("self.tall", "self.tall * 2")],
)  # fmt: skip
def test_a_definition_reaches_methods_bases_closures_and_objects(
    make: Make, edit: tuple[str, str]
) -> None:
    assert definition(make(REACHED).run) == definition(make(REACHED).run)
    assert definition(make(REACHED).run) != definition(make(REACHED, edit).run)


def test_what_is_the_librarys_is_no_part_of_a_definition(make: Make) -> None:
    source = "import torch\n\n\ndef run(x):\n    return torch.relu(x)\n"
    assert definition(torch.relu) == definition(torch.tanh) == definition(search)
    assert definition(make(source).run) != definition(make(source, ("relu", "tanh")).run)


class Table(nn.Module):
    """A constant of one's own beside what `initialise` draws anew."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.register_buffer("table", table)
        self.first, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x * self.table))


def test_only_what_training_does_not_begin_anew_is_a_constant() -> None:
    zeros = torch.zeros(4)
    fresh = network_identity(find_channels(Table(zeros)))
    constants = {key for key in fresh if key.startswith("constant")}
    assert constants == {"constant table"}
    kept = network_identity(find_channels(Table(zeros)), with_weights=True)
    assert {key for key in kept if key.startswith("constant")} == {
        "constant table",
        *(f"constant first.{name}" for name in ("weight", "bias")),
        *(f"constant norm.{name}" for name in (
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
        )),
    }  # fmt: skip
    for other in (torch.ones(4), zeros.half(), zeros.int()):
        assert network_identity(find_channels(Table(other), torch.zeros(1, 4))) != fresh


def test_the_shape_of_the_input_is_a_part_and_the_rows_are_not() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    first, more, larger = (
        network_identity(find_channels(model, torch.zeros(shape)))
        for shape in ((1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 9, 9))
    )
    assert first == more
    assert {key for key in first if first[key] != larger[key]} == {"input input_1"}
