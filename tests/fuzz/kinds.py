"""The kinds of bad input: how each is made, and what is done with it."""

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import safetensors.torch
import scipy.sparse
import tomli_w
import torch
from hypothesis import strategies as st
from torch import nn

import labkit
from labkit.cli import main
from labkit.data.jets import JET_CLASSES, JET_FEATURES
from labkit.show.page import write_page
from labkit.study import open_study
from labkit.study.checkpoint import load_weights
from labkit.study.config import to_tables
from labkit.transform import Plan
from tests.conftest import REFERENCE_TOML
from tests.fuzz.judge import LONGEST, BrokenError
from tests.fuzz.values import DAMAGES, ODD, changed, changes, damaged, edited, edits, odd


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        cases: Draws what tells one case from another, small and printable.
        run: Does with it what a user would, in a folder.
    """

    cases: st.SearchStrategy[Any]
    run: Callable[[Any, Path], Any]


# Valid input, which the cases change.


@functools.cache
def rows() -> labkit.Dataset:
    """A small data set as the jets are shaped."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 5
    return labkit.Dataset.from_arrays(rng.normal(size=(200, 16)) + y[:, None], y, name="rows")


def tables() -> dict[str, Any]:
    """The reference's configuration, for one quick trial."""
    known = tomllib.loads(REFERENCE_TOML.read_text())
    known["search"]["strategy"]["setup"] |= {"n_trials": 1, "n_jobs": 2}
    known["search"]["strategy"]["sw_runner"]["basic_train"] |= {"max_epochs": 1, "batch_size": 100}
    return known


@functools.cache
def results() -> Path:
    """A results folder with two trials, and its data set beside it."""
    home = Path(tempfile.mkdtemp(prefix="labkit-fuzz-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    rng = np.random.default_rng(0)
    y = np.arange(200) % 5
    np.savez(home / "rows.npz", x=rng.normal(size=(200, 16)) + y[:, None], label=y)
    config = tables() | {"dataset": str(home / "rows.npz")}
    config["search"]["strategy"]["setup"] |= {"n_trials": 3, "n_jobs": 3}
    labkit.search(config, folder=home / "out", progress=False)
    return home / "out"


# Configurations.


def _toml(drawn: Any, folder: Path) -> None:
    text = edited(tomli_w.dumps(tables()), drawn)
    (folder / "a.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    labkit.load_config(folder / "a.toml").replace(n_trials=2)


def _tables(drawn: Any, folder: Path) -> None:
    config = labkit.load_config(changed(tables(), drawn))
    search = labkit.Search(to_tables(config), data=rows())
    labkit.count(search.space)


SEARCH: dict[str, Any] = {
    "model": None, "data": None, "widths": [0.5, 1, 2], "trials": 1, "epochs": 1, "seed": 0,
    "objectives": {"accuracy": "maximize", "total_flops": "minimize"}, "folder": "out",
    "storage": None,
}  # fmt: skip


def _search(drawn: Any, folder: Path) -> None:
    arguments = changed(SEARCH, drawn)
    own = {"model": labkit.get_model("jsc-toy"), "data": rows()}
    arguments |= {key: own[key] for key in own if arguments.get(key) is None}
    known = {key: arguments[key] for key in SEARCH if key in arguments}
    above = ODD["'/' * 5_000"]()
    if isinstance(known.get("folder"), str) and known["folder"] == above:  # is asked for
        known["folder"] = "out"
    labkit.Search(**known).results()


PASS: dict[str, Any] = {
    "by": "name",
    "default": {"config": {"name": "NA"}},
    "seq_blocks_2": {"config": {"name": "output_only", "channel_multiplier": 2}},
    "seq_blocks_4": {
        "config": {"name": "both", "input_multiplier": 2, "output_multiplier": 0.5},
    },
}  # fmt: skip
BY_TYPE = {
    "by": "type",
    "default": {"config": {"name": "NA"}},
    "linear": {"config": {"name": "both", "channel_multiplier": 1.5}},
}
OPTIONS: dict[str, Any] = {"weights": "keep", "seed": 0, "noise": 0.1, "strict": False}


def _pass(drawn: Any, folder: Path) -> None:
    by_type, in_pass, in_options, example = drawn
    config = changed(BY_TYPE if by_type else PASS, in_pass)
    options = changed(OPTIONS, in_options)
    given = torch.zeros(1, 16) if example is None else ODD[example]()
    model = labkit.get_model("jsc-toy")
    labkit.channel_multiplier_transform_pass(
        model, config, example_input=given,
        **{key: options[key] for key in OPTIONS if key in options},
    )  # fmt: skip
    labkit.linear_multiplier_transform_pass(model, config)


WIDTHS = {"seq_blocks_2": 64, "seq_blocks_5": 32, "seq_blocks_8": 32}


def _plan(drawn: Any, folder: Path) -> None:
    model = labkit.get_model("jsc-toy")
    channels = labkit.find_channels(model, torch.zeros(1, 16))
    widths = changed({group.name: group.width for group in channels.free}, drawn)
    plan = Plan(tuple(widths.items())) if isinstance(widths, dict) else widths
    labkit.apply(model, plan, channels=channels, weights="fresh", seed=0)
    labkit.cost_of(channels, plan)


# Data.


def _flat(x: np.ndarray) -> np.ndarray:
    """Returns rows of small, finite numbers."""
    return np.nan_to_num(x, posinf=0, neginf=0).reshape(len(x), -1).clip(-100, 100)


KINDS_OF_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "list": lambda x: x.tolist(),
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "int8": lambda x: x.astype(np.int8),
    "uint64": lambda x: np.abs(x).astype(np.uint64),
    "bool": lambda x: x > 0,
    "complex": lambda x: x + 1j,
    "object": lambda x: x.astype(object),
    "text": lambda x: x.astype(str),
    "bytes": lambda x: x.astype("S8"),
    "dates": lambda x: x.astype("datetime64[s]"),
    "durations": lambda x: x.astype("timedelta64[s]"),
    "structured": lambda x: np.zeros(x.shape, [("a", float), ("b", int)]),
    "masked": lambda x: np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) % 7 == 0),
    "torch": torch.from_numpy,
    "torch float16": lambda x: torch.from_numpy(x).half(),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch complex": lambda x: torch.from_numpy(x) + 1j,
    "torch sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "torch grad": lambda x: torch.from_numpy(x * 1.0).requires_grad_(),
    "torch meta": lambda x: torch.from_numpy(x).to("meta"),
    "torch quantized": lambda x: torch.quantize_per_tensor(
        torch.from_numpy(x).float(), 0.1, 0, torch.qint8
    ),
    "scipy sparse": lambda x: scipy.sparse.csr_array(x if x.ndim <= 2 else x[:, 0, 0]),
    "frame": lambda x: pd.DataFrame(x) if x.ndim <= 2 else pd.Series(list(x)),
    "Int64": lambda x: pd.DataFrame(_flat(x).astype(int)).astype("Int64"),
    "Int64 with NA": lambda x: pd.DataFrame(_flat(x).astype(int)).astype("Int64").where(
        lambda frame: frame != 0
    ),
    "category": lambda x: pd.Series(x.ravel()).astype("category"),
    "string": lambda x: pd.Series(x.ravel()).astype("string"),
    "ragged": lambda x: [row[: i % 3 + 1] for i, row in enumerate(_flat(x).tolist())],
    "transposed": lambda x: x.T,
    "flat": lambda x: x.ravel(),
    "one row": lambda x: x[:1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "3 axes": lambda x: x[..., None],
    "4 axes": lambda x: x.reshape(*x.shape, 1, 1),
    "read only": lambda x: np.broadcast_to(x[:1], x.shape),
    "big endian": lambda x: x.astype(">f8"),
    "memoryview": lambda x: memoryview(np.ascontiguousarray(x)),
}  # fmt: skip
SPECIAL = (
    np.nan, np.inf, -np.inf, 0.0, 1e-320, 1e-200, 1e16, 1e38, 1e39, 1e150, 1e160, 1e300, 1.7e308,
    -1.7e308,
)  # fmt: skip
ARRAYS: dict[str, Any] = {
    "classes": None, "features": None, "name": "arrays", "validation": 0.2, "test": 0.2, "seed": 0,
}  # fmt: skip


def _arrays(drawn: Any, folder: Path) -> None:
    n, images, kind, label_kind, special, scale, in_options = drawn
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 2, 3, 3) if images else (n, 4)) * scale
    y = np.arange(n) % 3
    for value, share in special:
        x.flat[min(int(share * x.size), x.size - 1)] = value
    options = changed(ARRAYS, in_options)
    data = labkit.Dataset.from_arrays(
        KINDS_OF_ARRAYS[kind](x), KINDS_OF_ARRAYS[label_kind](y),
        **{key: options[key] for key in ARRAYS if key in options},
    )  # fmt: skip
    for split in ("train", "val", "test"):
        x, y = data.split(split)  # type: ignore[arg-type]
        if not torch.isfinite(x).all() or not 0 <= int(y.min()) <= int(y.max()) < len(data.classes):
            raise BrokenError("a data set that is not finite", str(x))
    if kind == "as it is" and scale and not special and not data.x_train.any():
        raise BrokenError("a data set of zeros", str(data))
    if "masked" in (kind, label_kind):
        raise BrokenError("a mask is ignored", str(data))
    if "complex" in kind:
        raise BrokenError("imaginary parts are ignored", str(data))
    repr(data), data.fingerprint()


kinds_of_labels = st.sampled_from(["as it is"] * len(KINDS_OF_ARRAYS) + list(KINDS_OF_ARRAYS))
ODD_ARRAYS = st.one_of(st.just(()), st.just(()), changes(ARRAYS, most=1, whole=False))


def _odd_arrays(drawn: Any, folder: Path) -> None:
    x, y = (ODD[each]() for each in drawn)
    labkit.Dataset.from_arrays(np.ones((30, 4)) if drawn[0] == "None" else x, y)


@functools.cache
def files() -> dict[str, bytes]:
    """Name → the bytes of a small data set in each of the formats."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 4))
    frame = pd.DataFrame(x, columns=list("abcd")).assign(label=y)
    nullable = frame.assign(a=frame["a"].round().astype("Int64"), label=y.astype(str))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame.to_csv(folder / "a.csv", index=False)
        words = frame.assign(a=y.astype(str), b=["red", "blue", None] * 20)
        words.to_csv(folder / "b.tsv.gz", sep="\t")
        words.to_csv(folder / "c.csv", sep=";", decimal=",", encoding="utf-16")
        frame.to_parquet(folder / "a.parquet")
        nullable.to_parquet(folder / "b.parquet")
        np.savez(folder / "a.npz", x=x, label=y)
        np.savez_compressed(folder / "b.npz", x=x.astype(np.float16), label=y.astype(str))
        kind = np.dtype([(f"j_{column}", "f4") for column in JET_FEATURES + JET_CLASSES])
        jets = np.zeros(60, kind)
        for column in JET_FEATURES:
            jets[f"j_{column}"] = rng.normal(size=60)
        for i in range(60):
            jets[f"j_{JET_CLASSES[i % 5]}"][i] = 1
        for suffix, options in (("a.h5", {}), ("b.hdf5", {"chunks": True, "compression": "gzip"})):
            with h5py.File(folder / suffix, "w") as file:
                file.create_dataset("t_allpar_new", data=jets, **options)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _strange(path: Path, how: str) -> None:
    """Makes something else than a file."""
    match how:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "nowhere":
            path.symlink_to("nowhere")
        case "huge":
            with path.open("ab") as file:
                file.truncate(12 * 10**12)
        case "missing":
            pass


STRANGE = ("folder", "fifo", "device", "loop", "nowhere", "huge", "missing")
harm = st.tuples(st.sampled_from(DAMAGES * 3 + STRANGE), edits(3))


def damage(path: Path, content: bytes, drawn: Any) -> None:
    """Puts a damaged file, or something else, in the place of a file."""
    how, drawn_edits = drawn
    if path.is_dir():  # damaged before
        path.rmdir()
    path.unlink(missing_ok=True)
    if how in STRANGE:
        if how == "huge":
            path.write_bytes(content)
        _strange(path, how)
    else:
        path.write_bytes(damaged(content, how, drawn_edits))


def _files(drawn: Any, folder: Path) -> None:
    name, how, label = drawn
    damage(folder / name, files()[name], how)
    missing = "error" if name.endswith((".h5", ".hdf5")) else "impute"
    labkit.load_data(
        folder / name, label="label" if label is None else ODD[label](), missing=missing
    )


@functools.cache
def checkpoints() -> dict[str, bytes]:
    """Name → the bytes of a checkpoint in each of the formats."""
    state = labkit.get_model("jsc-toy").state_dict()
    whole, lightning = io.BytesIO(), io.BytesIO()
    torch.save(state, whole)
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 1}, lightning)
    return {
        "a.safetensors": safetensors.torch.save(state),
        "a.pt": whole.getvalue(),
        "b.ckpt": lightning.getvalue(),
    }


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda _: None,
    "list": lambda state: list(state.values()),
    "empty": lambda _: {},
    "nested": lambda state: {"state_dict": {"state_dict": state}},
    "text": lambda state: {"state_dict": "x" * 10_000},
    "numbers": lambda state: {"state_dict": {1: 2}},
    "odd keys": lambda state: dict(enumerate(state.values())),
    "long keys": lambda state: {key * 1_000: value for key, value in state.items()},
    "complex": lambda state: {k: v + 1j for k, v in state.items()},
    "text values": lambda state: dict.fromkeys(state, "x"),
    "sparse": lambda state: {k: v.float().to_sparse() if v.ndim else v for k, v in state.items()},
    "nan": lambda state: {k: v * torch.nan for k, v in state.items()},
    "meta": lambda state: {k: v.to("meta") for k, v in state.items()},
    "huge views": lambda state: {k: torch.zeros(1).expand(10**12) for k in state},
    "wide": lambda state: {k: torch.zeros([n + 1 for n in v.shape]) for k, v in state.items()},
    "float16": lambda state: {k: v.half() if v.ndim else v for k, v in state.items()},
}


def _checkpoints(drawn: Any, folder: Path) -> None:
    name, how = drawn
    if name in STATES:
        torch.save(STATES[name](dict(labkit.get_model("jsc-toy").state_dict())), folder / "a.pt")
        load_weights(labkit.get_model("jsc-toy"), folder / "a.pt")
    else:
        damage(folder / name, checkpoints()[name], how)
        load_weights(labkit.get_model("jsc-toy"), folder / name)


# Training.

SETTINGS: dict[str, Any] = {
    "max_epochs": 1, "batch_size": 100, "learning_rate": 1e-3, "optimizer": "adam",
    "weight_decay": 0.0, "lr_scheduler": "linear", "num_warmup_steps": 0, "num_samples": None,
    "patience": None,
}  # fmt: skip


class TwoInputs(nn.Module):
    """A network that a data set cannot feed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 5)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.layer(a + b)


class Raises(nn.Module):
    """A network that raises what nobody expects."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("x" * 1_000)


NETWORKS: dict[str, Callable[[], Any]] = {
    "two inputs": TwoInputs,
    "raises": Raises,
    "narrow": lambda: nn.Linear(15, 5),
    "lazy": lambda: nn.LazyLinear(5),
    "tuple": lambda: nn.LSTM(16, 5),
    "double": lambda: nn.Linear(16, 5).double(),
    "bfloat16": lambda: nn.Linear(16, 5).bfloat16(),
    "meta": lambda: nn.Linear(16, 5, device="meta"),
    "frozen": lambda: nn.Linear(16, 5).requires_grad_(False),
    "empty": nn.Sequential,
    "one logit": lambda: nn.Linear(16, 1),
    "embedding": lambda: nn.Embedding(16, 5),
    "conv": lambda: nn.Conv2d(16, 5, 1),
    "softmax": lambda: nn.Sequential(nn.Linear(16, 5), nn.Softmax(1)),
    "none": lambda: None,
    "type": lambda: nn.Linear,
}


def _training(drawn: Any, folder: Path) -> None:
    in_settings, network = drawn
    settings = labkit.TrainSettings(**changed(SETTINGS, in_settings))
    if settings.max_epochs > 100:  # is asked for, and takes long
        return
    if network is None:
        model: Any = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    else:
        model = NETWORKS[network]()
    labkit.train(model, rows(), settings)


def _networks(drawn: Any, folder: Path) -> None:
    network, what = drawn
    model = NETWORKS[network]()
    match what:
        case "search":
            labkit.Search(model=model, data=rows(), widths=[1, 2], trials=1, epochs=1)
        case "cost":
            labkit.total_cost(model)
        case "groups":
            labkit.channel_groups(model, rows().x_val[:1])
        case "table":
            labkit.report_graph_analysis_pass(model)
        case "evaluate":
            labkit.evaluate(model, *rows().split("val"))


# The public functions: all arguments but one or two as they should be.


@functools.cache
def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Name → a function, and arguments that it takes."""
    model = labkit.get_model("jsc-toy")
    channels = labkit.find_channels(model, rows().x_val[:1])
    plan = Plan(tuple((group.name, group.width) for group in channels.free))
    priced = {"batch_size": 1, "convention": "inference", "precision": 32}
    quick = labkit.TrainSettings(max_epochs=1)
    functions = (
        (labkit.apply, {"model": model, "plan": plan, "channels": channels, "weights": "keep"}),
        (labkit.channel_groups, {"model": model, "example_input": rows().x_val[:1]}),
        (labkit.compare, {"before": model, "after": plan, **priced}),
        (labkit.cost_of, {"channels": channels, "plan": plan, **priced}),
        (labkit.count, {"space": None}),
        (labkit.dashboard, {"folder": "out", "port": None}),
        (labkit.evaluate, {"model": model, "x": rows().x_val, "y": rows().y_val}),
        (labkit.find_channels, {"model": model, "example_input": rows().x_val[:1]}),
        (labkit.get_model, {"model": "jsc-toy"}),
        (labkit.layer_table, {"network": model, "plan": plan, **priced}),
        (labkit.load_best, {"folder": "out", "number": None, "model": None}),
        (labkit.load_config, {"source": tables()}),
        (
            labkit.load_data,
            {"name": "digits", "label": "label", "drop": (), "separator": None, "encoding": None},
        ),
        (labkit.report_graph_analysis_pass, {"model": model}),
        (labkit.resolve, {"model": channels, "pass_config": PASS, "strict": False}),
        (labkit.total_cost, {"model": model, **priced, "example_input": rows().x_val[:1]}),
        (labkit.train, {"model": model, "data": rows(), "settings": quick, "seed": 0}),
        (
            labkit.train_stack,
            {"model": model, "plans": [plan], "data": rows(), "settings": quick, "seeds": 0},
        ),
        (labkit.verify, {"folder": "nowhere", "number": None}),
        (labkit.LayerExplorer, {"model": model}),
        (labkit.StudyPanel, {"folder": "nowhere"}),
        (labkit.Results.from_study, {"study": None}),
    )
    return {function.__qualname__: (function, known) for function, known in functions}


def _calls(drawn: Any, folder: Path) -> None:
    name, wrong = drawn
    function, known = calls()[name]
    names = list(known)
    new = {names[int(share * len(names))]: ODD[value]() for share, value in wrong}
    if "out" in known.values():
        shutil.copytree(results(), folder / "out")
    result = function(**known | new)
    if name == "dashboard":
        result.stop()


# Results folders and the command.


def _member(pattern: str) -> str:
    """Returns the name of a file of the results, by the beginning of it."""
    found = sorted(path.relative_to(results()) for path in results().rglob(pattern))
    return str(found[0])


SAVED = {"number": 0, "plan": WIDTHS, "input_shape": [16], "software_metrics": {"accuracy": 1}}
FILES = (
    "config.toml", "study.db", "trial_*.json", "trial_*.safetensors", "best.json", "log.json",
    "runs.json",
)  # fmt: skip
DOINGS = ("load_best", "load_best n", "results", "replicate", "continue", "dashboard", "page")


def _folders(drawn: Any, folder: Path) -> None:
    harmed, doing, tables_drawn = drawn
    out = folder / "out"
    shutil.copytree(results(), out)
    for pattern, how in harmed:
        name = _member(pattern)
        damage(out / name, (results() / name).read_bytes(), how)
    if tables_drawn is not None:
        path = out / _member("trial_*.json")
        known = changed(json.loads((results() / _member("trial_*.json")).read_text()), tables_drawn)
        with contextlib.suppress(TypeError, ValueError, RecursionError, OSError):
            text = json.dumps(known)
            path.unlink(missing_ok=True)  # it may be a link by now
            path.write_text(text)
    match doing:
        case "load_best":
            labkit.load_best(out)
        case "load_best n":
            labkit.load_best(out, 0)
        case "results":
            found = labkit.Results.from_study(open_study(out))
            found.best_markdown(), found.trials, found.front_table(), found.counts()
        case "replicate":
            labkit.Search(out / "config.toml", folder=out).replicate(2, progress=False)
        case "continue":
            labkit.Search(out / "config.toml", folder=out, trials=4).run(progress=False)
        case "dashboard":
            labkit.dashboard(out).stop()
        case "page":
            write_page(labkit.Results.from_study(open_study(out)), folder / "page.html")


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("search", "a.toml", "--trials", "1", "--epochs", "1", "--seed", "0", "--out", "out"),
    ("replicate", "done", "--seeds", "1"),
    ("dashboard", "nowhere", "--port", "1"),
)
WORDS = (
    "", "-", "--", "-1", "0", "1", "2", "1e3", "nan", "9" * 5_000, "x" * 10_000, "a\nb", "\udcff",
    "--trials", "--seeds", "--out", "--storage", "--nonsense", "--version=1", "out", "a.toml", ".",
    "..", "/dev/null", "/dev/null/out", "sqlite:///nowhere/a.db", "sqlite://", "nonsense://", "://",
    "a.db",
    "postgresql://127.0.0.1:1/x", "é", "%00", "search", "replicate", "@a.toml", "--trial", "-x",
)  # fmt: skip


def _commands(drawn: Any, folder: Path) -> None:
    which, word_edits = drawn
    arguments = list(COMMANDS[which])
    for share, how, word in word_edits:
        at = int(share * len(arguments))
        arguments[at : at + (how != "insert")] = [] if how == "remove" else [word]
    if "dashboard" in arguments and "done" in arguments:
        return  # would serve until Ctrl-C
    config = tables() | {"dataset": str(results().parent / "rows.npz")}
    (folder / "a.toml").write_text(tomli_w.dumps(config))
    if "replicate" in arguments:
        shutil.copytree(results(), folder / "done")
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    if code == 2:
        # What the progress bar wrote before is no message.
        message = errors.getvalue().removesuffix("\n").split("\r")[-1].split("\n")[-1]
        if not message.startswith("labkit: ") or len(message) > LONGEST + len("labkit: "):
            raise BrokenError("a command's message", repr(errors.getvalue()[-1_000:]))
        raise labkit.LabkitError(message.removeprefix("labkit: "))
    if code not in (0, 1):
        raise BrokenError("a command's exit code", str(code))


word_edits = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["replace", "insert", "remove"]), st.sampled_from(WORDS)
    ),
    min_size=1,
    max_size=3,
)


def _maybe(strategy: st.SearchStrategy[Any], otherwise: Any = None) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(otherwise), strategy)


def _lists(valid: Sequence[str], most: int) -> st.SearchStrategy[Any]:
    return st.lists(st.tuples(st.sampled_from(valid), harm), min_size=1, max_size=most)


KINDS: dict[str, Kind] = {
    "toml": Kind(edits(), _toml),
    "tables": Kind(changes(tables()), _tables),
    "search": Kind(changes(SEARCH, most=2, whole=False), _search),
    "pass": Kind(
        st.tuples(
            st.booleans(), changes(PASS), _maybe(changes(OPTIONS, most=1, whole=False), ()),
            _maybe(odd),
        ),
        _pass,
    ),
    "plan": Kind(changes(WIDTHS), _plan),
    "arrays": Kind(
        st.tuples(
            st.integers(1, 60), st.booleans(), st.sampled_from(list(KINDS_OF_ARRAYS)),
            kinds_of_labels,
            st.lists(st.tuples(st.sampled_from(SPECIAL), st.floats(0, 1)), max_size=3),
            st.sampled_from((1.0, 1.0, 0.0, 1e-300, 1e-170, 1e100, 1e200, 1e300)), ODD_ARRAYS,
        ),
        _arrays,
    ),
    "odd arrays": Kind(st.tuples(odd, odd), _odd_arrays),
    "files": Kind(st.tuples(st.sampled_from(list(files())), harm, _maybe(odd)), _files),
    "checkpoints": Kind(
        st.tuples(st.sampled_from([*checkpoints(), *checkpoints(), *STATES]), harm), _checkpoints
    ),
    "training": Kind(
        st.tuples(
            changes(SETTINGS, most=2, whole=False), _maybe(st.sampled_from(list(NETWORKS)))
        ),
        _training,
    ),
    "calls": Kind(
        st.tuples(
            st.sampled_from(list(calls())),
            st.lists(st.tuples(st.floats(0, 1, exclude_max=True), odd), min_size=1, max_size=2),
        ),
        _calls,
    ),
    "networks": Kind(
        st.tuples(
            st.sampled_from(list(NETWORKS)),
            st.sampled_from(["search", "cost", "groups", "table", "evaluate"]),
        ),
        _networks,
    ),
    "folders": Kind(
        st.tuples(
            _lists(FILES, 2), st.sampled_from(DOINGS),
            _maybe(changes(SAVED, most=2)),
        ),
        _folders,
    ),
    "commands": Kind(st.tuples(st.integers(0, 2), word_edits), _commands),
}  # fmt: skip
