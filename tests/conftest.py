"""What several tests need: small data, and the reference's own configuration."""

import collections
import copy
import itertools
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch: it sets how torch's threads wait.
import labkit.runtime  # noqa: F401  # isort: skip

import numpy as np
import pytest
import torch

from labkit.data.dataset import Dataset
from labkit.training import LOSSES, METRICS
from labkit.transform.models import MODELS

# The background of a script ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One input of each network that labkit knows by name.
EXAMPLES = {
    name: torch.zeros(1, 3, 32, 32) if name in ("vgg7", "resnet8") else torch.zeros(1, 16)
    for name in MODELS
}
ROOT = Path(__file__).parent.parent
REFERENCE_TOML = Path(__file__).parent / "data" / "reference.toml"


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """Five overlapping Gaussian clouds in 16 dimensions: shaped as the jets are, but small."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 1000)
    x = rng.normal(size=(1000, 16)) + 1.5 * rng.normal(size=(5, 16))[y]
    return Dataset.from_arrays(x, y, name="blobs")


@pytest.fixture
def tables() -> dict[str, Any]:
    """The reference's configuration, cut down to a few quick trials."""
    with REFERENCE_TOML.open("rb") as file:
        tables = copy.deepcopy(tomllib.load(file))
    train = tables["search"]["strategy"]["sw_runner"]["basic_train"]
    train |= {"max_epochs": 1, "learning_rate": 1e-2}
    tables["search"]["strategy"]["setup"]["n_trials"] = 8
    return tables


@pytest.fixture
def own_names() -> Iterator[None]:
    """What a test registers is gone after it."""
    losses, metrics = {**LOSSES}, {**METRICS}
    yield
    for registry, before in ((LOSSES, losses), (METRICS, metrics)):
        for name in registry.keys() - before.keys():
            del registry[name]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out what needs CUDA where there is none."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how long each notebook took: its cells are tests of their own."""
    seconds: collections.Counter[str] = collections.Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        file = getattr(report, "nodeid", "").partition("::")[0]
        if file.endswith(".ipynb"):
            seconds[file] += report.duration
    if seconds:
        terminalreporter.section(f"notebooks: {sum(seconds.values()):.0f} s")
    for file, taken in seconds.items():
        terminalreporter.write_line(f"{taken:6.1f} s  {file}")
