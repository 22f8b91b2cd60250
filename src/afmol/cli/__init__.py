"""The command line: each command is one function of the package, wrapped in file names.

Heavy modules are imported inside the commands, so that `afmol --help` answers at once.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from .. import __version__
from ..errors import AfmolError, out_of_memory
from .train import dataset_check, dataset_import, dataset_make, dataset_show, molecules, study, train
from .use import calibrate, demo, evaluate, fit, info, predict, sentence, serve, simulate, soap

PACKAGE = Path(__file__).parents[1]
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "predict": predict,
    "serve": serve,
    "simulate": simulate,
    "fit": fit,
    "soap": soap,
    "molecules": molecules,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "study": study,
    "info": info,
}
DATASET: dict[str, Callable[..., None]] = {"check": dataset_check, "show": dataset_show, "import": dataset_import}


DEBUG = "--debug"
NOTE = f"{DEBUG}, anywhere among the arguments: show where in the code an error comes from."


def main(arguments: list[str] | None = None) -> None:
    """Entry point.

    User mistakes: one sentence on stderr and exit code 2. Ours: one sentence and exit code 70. Tracebacks only with
    --debug.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, arguments = DEBUG in arguments, [_named(a) for a in arguments if a != DEBUG]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        _run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:
        if stop.code == 0 and {"-h", "--help"} & {*arguments}:
            print(NOTE)
        raise
    except BrokenPipeError:  # such as of `afmol info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        goes_on = arguments[:1] in (["train"], ["molecules"], ["study"]) or arguments[:2] == ["dataset", "make"]
        print(f"\nafmol: stopped{'; the same command goes on where it was' if goes_on else ''}.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        mistake = isinstance(error, AfmolError)
        print(sentence(error if mistake else AfmolError(_ours(error))), file=sys.stderr)
        sys.exit(2 if mistake else 70)


def _named(argument: str) -> str:
    """An argument, or, where it is a file whose name begins with a dash, one that does not look like an option."""
    return f"./{argument}" if argument[:1] == "-" and len(argument) > 2 and os.path.exists(argument) else argument


def _ours(error: Exception) -> str:
    """What is said of an error that nobody foresaw."""
    report = f"this is our mistake, please report it with what {DEBUG} shows"
    told = " ".join(str(error).split())
    if out_of_memory(error):
        return f"There is too little memory for this: give it less to do at once. If there should be enough, {report}."
    if isinstance(error, RecursionError):
        return f"Something in the input is nested too deeply to be read. If nothing is, {report}."
    places = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(f.filename).parents]
    place = f" ({Path(places[-1].filename).relative_to(PACKAGE)}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}{place}: {told:.120}; {report}."


def _run(arguments: list[str]) -> None:
    if arguments[:1] not in (["train"], ["study"]):
        # Read when torch is loaded. A thread that waits for another otherwise spins instead of sleeping, and beside
        # other programs two threads take three times as long as one (LOG.md, 2026-11-25).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if arguments[:1] == ["train"]:
        _with_config(train, "afmol train", arguments[1:])
    elif arguments[:2] == ["dataset", "make"]:
        _with_config(dataset_make, "afmol dataset make", arguments[2:])
    elif arguments[:1] == ["dataset"]:
        tyro.extras.subcommand_cli_from_dict(
            {"make": _help_of(dataset_make)} | DATASET,
            prog="afmol dataset",
            description="Stored samples: simulated images with labels, in shards.",
            args=arguments[1:] or ["--help"],
        )
    elif arguments[:1] == ["--version"]:
        print(__version__)
    else:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS | {"train": _help_of(train), "dataset": _dataset},
            prog="afmol",
            description="Molecules from stacks of atomic force microscopy images.",
            args=arguments,
        )


def _with_config(command: Callable[[Path, list[str]], None], name: str, arguments: list[str]) -> None:
    """CONFIG decides the defaults of all the other arguments, so it is read first."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: {name} CONFIG [--field value ...]\n\n{command.__doc__}")
        print(f"    Fields: {name} CONFIG --help")
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    command(Path(arguments[0]), arguments[1:])


def _help_of(command: Callable[[Path, list[str]], None]) -> Callable[[tyro.conf.Positional[Path]], None]:
    """For the list of commands: one with a configuration, which is never called from there."""

    def listed(config: tyro.conf.Positional[Path]) -> None:
        raise AssertionError

    listed.__doc__ = command.__doc__
    return listed


def _dataset(command: tyro.conf.Positional[Literal["make", "check", "show", "import"]]) -> None:
    """Stored samples: make, check, show, import.

    Example: afmol dataset make configs/dataset.toml --molecules some.npz -o samples
    """
    raise AssertionError
