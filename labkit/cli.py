"""The `labkit` command.

What a command needs is imported when it runs: `labkit --help` answers at once.
"""

import argparse
import contextlib
import importlib.metadata
import signal
import sys
from pathlib import Path
from typing import NoReturn

import labkit
from labkit.errors import LabkitError


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0 on success, 1 where no trial finished or what was verified does not agree, 2 on bad input;
        130 after Ctrl-C, and so on with 128 and the number of other signals.
    """
    try:
        arguments = _parser().parse_args(argv)
        from labkit import runtime

        with runtime.signals_interrupt():
            return int(arguments.run(arguments))
    except LabkitError as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("Interrupted; the same command continues.")
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabkitError(f"{message} (see {self.prog} --help)")


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

    search = commands.add_parser("search", help="run a search, or continue one")
    search.add_argument("config", type=Path, metavar="CONFIG.toml")
    search.add_argument("--trials", type=_count, metavar="N", help="trials of the whole study")
    search.add_argument("--epochs", type=_count, metavar="N", help="epochs for each network")
    search.add_argument("--seed", type=int, metavar="N")
    folder = "by default results/ and the name of CONFIG"
    search.add_argument("--out", type=Path, metavar="FOLDER", help=folder)
    storage = "an Optuna storage; by default the one that FOLDER was made with, or its study.db"
    search.add_argument("--storage", metavar="URL", help=storage)
    shared = "run beside other searches of the same study, on a storage that all of them reach"
    search.add_argument("--shared", action="store_true", help=shared)
    search.set_defaults(run=_search)
    _add_executors(search)

    trust = "run the code that the folder names; only where you know who made it"
    again = commands.add_parser("replicate", help="train the front's networks with more seeds")
    again.add_argument("folder", type=Path, metavar="FOLDER")
    again.add_argument("--seeds", type=_count, metavar="N", default=5, help="of each network; 5")
    again.add_argument("--storage", metavar="URL", help=storage)
    again.add_argument("--trust", action="store_true", help=trust)
    again.set_defaults(run=_replicate)
    _add_executors(again)

    report = commands.add_parser("report", help="write up what a search found, to hand in")
    report.add_argument("folder", type=Path, metavar="FOLDER")
    report.add_argument("--format", choices=["html", "md", "pdf"], default="html", help="html")
    report.add_argument("--seeds", type=_count, metavar="N", help="first replicate the front")
    report.add_argument("--trust", action="store_true", help=trust)
    report.set_defaults(run=_report, storage=None, executor=None)

    check = commands.add_parser("verify", help="train a network of the front again, and compare")
    check.add_argument("folder", type=Path, metavar="FOLDER")
    check.add_argument("--trial", type=int, metavar="N", help="by default the most accurate")
    check.add_argument("--trust", action="store_true", help=trust)
    check.set_defaults(run=_verify)

    browse = commands.add_parser("dashboard", help="browse a study with optuna-dashboard")
    browse.add_argument("folder", type=Path, metavar="FOLDER")
    browse.add_argument("--port", type=int, metavar="N", help="by default a free one")
    browse.set_defaults(run=_dashboard)
    return parser


def _add_executors(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group()
    workers = "processes of this machine that train"
    where.add_argument("--workers", type=_count, metavar="N", dest="executor", help=workers)
    dask = "the scheduler of a Dask cluster that trains, such as tcp://127.0.0.1:8786"
    where.add_argument("--dask", metavar="ADDRESS", dest="executor", help=dask)


def _search(arguments: argparse.Namespace) -> int:
    folder = arguments.out or Path("results") / arguments.config.stem
    options = "trials", "epochs", "seed", "storage", "shared"
    changes = {name: getattr(arguments, name) for name in options}
    search = labkit.Search(arguments.config, folder=folder, executor=arguments.executor, **changes)
    config, data = search.config, search.experiment.data
    setup = config.search.strategy.setup
    trials, device = f"{setup.n_trials} trials", data.x_train.device
    print(f"{config.model} on {data}")
    size = labkit.count(search.space)
    print(f"{size}; {trials} by {setup.sampler}, seed {config.seed}, on {device}")
    if size.exact and setup.n_trials >= size.networks and setup.sampler != "bruteforce":
        print(f'{trials} cover all networks: sampler = "bruteforce" trains each once')
    results = search.run()
    print(results.counts())
    print(results.best_markdown())
    print(f"{folder}/: pareto.html, trials.csv, best.md, best.json, log.json, best/")
    return _ended(results)


def _replicate(arguments: argparse.Namespace) -> int:
    from labkit import names
    from labkit.study import open_study

    if arguments.storage is None:
        open_study(arguments.folder)  # or else an empty one would be made
    with names.opening(trust=arguments.trust):
        search = labkit.Search(
            arguments.folder / "config.toml", folder=arguments.folder, storage=arguments.storage,
            executor=arguments.executor,
        )  # fmt: skip
        results = search.replicate(arguments.seeds)
    print(results.best_markdown())
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
