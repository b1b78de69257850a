"""The `labkit` command.

What a command needs is imported when it runs: `labkit --help` answers at once.
"""

import argparse
import contextlib
import importlib.metadata
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import labkit
from labkit.errors import LabkitError

# In bash, the names of the configurations that come with labkit are offered beside files.
NAMED = '_labkit_configs() {{ compgen -W "{}" -- "$1"; compgen -f -- "$1"; }}'
Run = Callable[[argparse.Namespace], int]
POSITIONAL = ("config", "folder", "file", "shell")


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0 on success, 1 where no trial finished or what was verified does not agree, 2 on bad input;
        130 after Ctrl-C, and so on with 128 and the number of other signals.
    """
    arguments = argparse.Namespace()
    try:
        _parser().parse_args(argv, arguments)
        from labkit import runtime

        with runtime.signals_interrupt():
            return int(arguments.run(arguments))
    except LabkitError as error:
        print(f"labkit: {_by_flag(str(error), arguments)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt as interrupt:
        print("Interrupted; the same command continues.")
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabkitError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _by_flag(message: str, arguments: argparse.Namespace) -> str:
    """Returns an error's message with the flag that gave the value in place of its key."""
    key, _, rest = message.partition(": ")
    name = {"number": "trial", "dataset": "data"}.get(key, key)
    given = vars(arguments).get(name)
    if name in POSITIONAL or not given or not (given is True or str(given) in rest):
        return message
    flag = {"executor": "workers" if isinstance(given, int) else "dask"}.get(name, name)
    return f"--{flag}: {rest}"


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="labkit", description="Find how wide each layer of a small neural network should be."
    )
    version = f"labkit {importlib.metadata.version('labkit')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, what: str, reads: str = "", *, asks: bool = False) -> _Parser:
        one = commands.add_parser(name, help=what)
        one.set_defaults(run=run)
        if reads == "config":
            named = "a file, or the name of a configuration that comes with labkit"
            one.add_argument("config", type=Path, metavar="CONFIG", help=named)
            strict = "refuse what would be read as another dialect has it"
            one.add_argument("--strict", action="store_true", help=strict)
        elif reads == "folder":
            one.add_argument("folder", type=Path, metavar="FOLDER")
        if asks:
            trust = "run the code that the folder names; only where you know who made it"
            one.add_argument("--trust", action="store_true", help=trust)
        return one

    command("list", _list, "what a configuration may name, a line each")
    command("show", _show, "what a search would do: networks, costs, time", "config")

    init = command("init", _init, "write a first configuration, for a model and data")
    init.add_argument("file", type=Path, metavar="FILE.toml")
    init.add_argument("--model", default="jsc-toy", metavar="NAME", help="or package.module:name")
    init.add_argument("--data", default="jsc", metavar="NAME", help="or a file")
    init.add_argument("--label", metavar="COLUMN", help="of the file; label")
    init.add_argument("--task", choices=["classification", "binary", "regression"])

    search = command("search", _search, "run a search, or continue one", "config")
    search.add_argument("--trials", type=_count, metavar="N", help="trials of the whole study")
    search.add_argument("--epochs", type=_count, metavar="N", help="epochs for each network")
    search.add_argument("--seed", type=int, metavar="N")
    folder = "by default results/ and the name of CONFIG"
    search.add_argument("--out", type=Path, metavar="FOLDER", help=folder)
    storage = "an Optuna storage; by default the one that FOLDER was made with, or its study.db"
    search.add_argument("--storage", metavar="URL", help=storage)
    shared = "run beside other searches of the same study, on a storage that all of them reach"
    search.add_argument("--shared", action="store_true", help=shared)
    _add_executors(search)

    again = command("replicate", _replicate, "train the front with more seeds", "folder", asks=True)
    again.add_argument("--seeds", type=_count, metavar="N", default=5, help="of each network; 5")
    again.add_argument("--storage", metavar="URL", help=storage)
    _add_executors(again)

    report = command("report", _report, "write up what a search found", "folder", asks=True)
    report.add_argument("--format", choices=["html", "md", "pdf"], default="html", help="html")
    report.add_argument("--seeds", type=_count, metavar="N", help="first replicate the front")
    report.set_defaults(storage=None, executor=None)

    check = command("verify", _verify, "train a network of the front again", "folder", asks=True)
    check.add_argument("--trial", type=int, metavar="N", help="by default the most accurate")

    browse = command("dashboard", _dashboard, "browse with optuna-dashboard", "folder")
    browse.add_argument("--port", type=int, metavar="N", help="by default a free one")

    complete = command("completion", _completion, "print what makes a shell complete this command")
    complete.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def _add_executors(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group()
    workers = "processes of this machine that train"
    where.add_argument("--workers", type=_count, metavar="N", dest="executor", help=workers)
    dask = "the scheduler of a Dask cluster that trains, such as tcp://127.0.0.1:8786"
    where.add_argument("--dask", metavar="ADDRESS", dest="executor", help=dask)


def _list(_: argparse.Namespace) -> int:
    from labkit.study.outlook import known_names

    for kind, names in known_names().items():
        print(kind)
        for name, line in names.items():
            print(f"  {name:<36}{line}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from labkit.study.experiment import Experiment
    from labkit.study.outlook import outlook

    config = labkit.load_config(arguments.config, strict=arguments.strict)
    for what, words in outlook(Experiment(config)):
        print(f"{what:<14}{words}", flush=True)
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from labkit.study.outlook import write_first

    named = {"dataset": arguments.data, "label": arguments.label, "task": arguments.task}
    write_first(arguments.file, model=arguments.model, **named)
    print(f"{arguments.file}: run it by labkit search {arguments.file}")
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from labkit.study.toml_files import CONFIGS

    parser = _parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for action in (action for one in commands.choices.values() for action in one._actions):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.dest in ("folder", "out") else shtab.FILE
        if action.dest == "config":
            action.complete = shtab.FILE | {"bash": "_labkit_configs"}
    preamble = NAMED.format(" ".join(CONFIGS)) if arguments.shell == "bash" else ""
    print(shtab.complete(parser, arguments.shell, preamble=preamble))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from labkit.table import print_table

    folder = arguments.out or Path("results") / arguments.config.stem
    options = "trials", "epochs", "seed", "storage", "shared"
    changes = {name: getattr(arguments, name) for name in options}
    given = labkit.load_config(arguments.config, strict=arguments.strict)
    search = labkit.Search(given, folder=folder, executor=arguments.executor, **changes)
    config, data = search.config, search.experiment.data
    setup = config.search.strategy.setup
    trials, device = f"{setup.n_trials} trials", data.x_train.device
    print(f"{config.model} on {data}")
    size = labkit.count(search.space)
    print(f"{size}; {trials} by {setup.sampler}, seed {config.seed}, on {device}")
    if size.exact and setup.n_trials >= size.networks and setup.sampler != "bruteforce":
        print(f'{trials} cover all networks: sampler = "bruteforce" trains each once')
    if len(search.store.trials) >= setup.n_trials:
        print(f"nothing to do: {len(search.store.trials)} of {trials} are done")
    results = search.run()
    print(results.counts())
    if results.records:
        print_table(results.front_table())
        print(f"{folder}/: pareto.html, trials.csv, best.md, best.json, log.json, best/")
    return _ended(results)


def _replicate(arguments: argparse.Namespace) -> int:
    from labkit import names
    from labkit.study import open_study
    from labkit.table import print_table

    if arguments.storage is None:
        open_study(arguments.folder)  # or else an empty one would be made
    with names.opening(trust=arguments.trust):
        search = labkit.Search(
            arguments.folder / "config.toml", folder=arguments.folder, storage=arguments.storage,
            executor=arguments.executor,
        )  # fmt: skip
        results = search.replicate(arguments.seeds)
    print_table(results.front_table())
    return _ended(results)


def _report(arguments: argparse.Namespace) -> int:
    from labkit.study.networks import read_results

    if arguments.seeds is not None and (ended := _replicate(arguments)):
        return ended
    path = arguments.folder / f"report.{arguments.format}"
    read_results(arguments.folder, trust=arguments.trust).report(path, trust=arguments.trust)
    print(path)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    verification = labkit.verify(arguments.folder, arguments.trial, trust=arguments.trust)
    print(verification.message)
    return 0 if verification.agrees else 1


def _ended(results: "labkit.Results") -> int:
    if results.interrupted:
        raise KeyboardInterrupt
    return 0 if len(results.networks) else 1


def _dashboard(arguments: argparse.Namespace) -> int:
    browser = labkit.dashboard(arguments.folder, arguments.port)
    print(f"{browser.link}  (Ctrl-C stops it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        browser.wait()
    browser.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
