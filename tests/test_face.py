"""The face: `import labkit` is cheap, and everything that a user needs is there."""

import ast
import importlib
import pkgutil
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import labkit

FACE = {
    *("LOSSES", "METRICS", "Metric"),
    *("Dataset", "LabkitError", "LayerExplorer", "Operator", "Results", "Search", "SearchPanel"),
    *("StudyPanel", "TrainSettings", "apply", "channel_groups", "compare", "cost_of", "count"),
    *("channel_multiplier_transform_pass", "dashboard", "evaluate", "find_channels", "get_model"),
    *("layer_table", "linear_multiplier_transform_pass", "load_best", "load_config", "load_data"),
    *("plots", "register_operator", "register_runner", "register_space", "resolve", "search"),
    *("report_graph_analysis_pass", "total_cost", "train", "train_stack", "verify"),
}
HEAVY = {
    *("torch", "plotly", "pandas", "sklearn", "scipy", "optuna", "ipywidgets", "IPython"),
    *("numpy", "pydantic", "tqdm"),
}
# Imports run down this list: a module imports from its own row's package and from those above.
ROWS = [
    {"errors"}, {"runtime", "checks", "table"}, {"names"}, {"data", "operators"}, {"transform"},
    {"training"}, {"study"}, {"show", "cli"},
]  # fmt: skip


def packages() -> list[ModuleType]:
    found = pkgutil.walk_packages(labkit.__path__, "labkit.")
    return [labkit, *(importlib.import_module(m.name) for m in found if m.ispkg)]


def run(code: str) -> tuple[str, float]:
    """Returns what a fresh interpreter prints, and the seconds of CPU that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_every_name_is_there() -> None:
    assert set(labkit.__all__) == set(dir(labkit)) == FACE
    for name in labkit.__all__:
        assert getattr(labkit, name) is not None
    assert isinstance(labkit.plots, ModuleType)
    assert labkit.search.__module__ == "labkit.study.search"
    with pytest.raises(AttributeError, match="'labkit' has no attribute 'serach'"):
        labkit.serach  # noqa: B018


def test_what_needs_an_extra_says_which() -> None:
    code = (
        "import sys, labkit\n"
        "sys.modules['ipywidgets'] = None\n"  # as if it were not installed
        "try: labkit.SearchPanel\n"
        "except labkit.LabkitError as error: print(error)"
    )
    assert run(code)[0] == "labkit.SearchPanel needs ipywidgets: pip install 'labkit[lab]'\n"


def test_importing_labkit_loads_nothing_heavy() -> None:
    code = f"import labkit, sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert run(code)[0] == "[]\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_answers_at_once(option: str) -> None:
    code = (
        "import sys, labkit.cli\n"
        f"try: labkit.cli.main(['{option}'])\n"
        f"except SystemExit: print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    printed, seconds = run(code)
    assert printed.endswith("[]\n")
    assert "labkit" in printed
    assert seconds < 0.5


def test_a_module_is_never_hidden_by_what_its_package_exports() -> None:
    for package in packages():
        for module in pkgutil.iter_modules(package.__path__):
            assert isinstance(getattr(package, module.name, package), ModuleType), module.name
            name = f"{package.__name__}.{module.name}"
            assert importlib.import_module(name) is getattr(package, module.name)
    for name in labkit.__all__:
        assert not Path(labkit.__path__[0], name).exists()
        assert not Path(labkit.__path__[0], f"{name}.py").exists()


def labkit_imports(file: Path) -> set[str]:
    """Returns the packages and modules, one level below labkit, that a file imports."""
    statements = list(ast.walk(ast.parse(file.read_text())))
    names = [s.module for s in statements if isinstance(s, ast.ImportFrom) and s.module]
    names += [a.name for s in statements if isinstance(s, ast.Import) for a in s.names]
    return {name.split(".")[1] for name in names if name.startswith("labkit.")}


def test_imports_run_down() -> None:
    root = Path(labkit.__path__[0])
    wrong = []
    for row, own in enumerate(ROWS):
        for name in own:
            below = set().union(*ROWS[:row], {name})
            files = [*root.glob(f"{name}.py"), *root.glob(f"{name}/*.py")]
            imports = {(file.name, to) for file in files for to in labkit_imports(file) - below}
            wrong += sorted(f"{name}: {file} imports {to}" for file, to in imports)
    assert wrong == []
    known = {path.stem for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert known - {"__init__", "__pycache__", "configs"} <= set().union(*ROWS)
