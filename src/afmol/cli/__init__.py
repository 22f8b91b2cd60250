"""The command line: each command is one function of the package, wrapped in file names.

Heavy modules are imported inside the commands, so that `afmol --help` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from .. import __version__
from ..errors import AfmolError
from .train import dataset_check, dataset_import, dataset_make, dataset_show, molecules, study, train
from .use import demo, evaluate, fit, info, predict, sentence, serve, simulate, soap

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "predict": predict,
    "serve": serve,
    "simulate": simulate,
    "fit": fit,
    "soap": soap,
    "molecules": molecules,
    "evaluate": evaluate,
    "study": study,
    "info": info,
}
DATASET: dict[str, Callable[..., None]] = {"check": dataset_check, "show": dataset_show, "import": dataset_import}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. User mistakes: one sentence on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
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
    except AfmolError as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = arguments[:1] in (["train"], ["molecules"], ["study"]) or arguments[:2] == ["dataset", "make"]
        print(f"\nafmol: stopped{'; the same command goes on where it was' if goes_on else ''}.", file=sys.stderr)
        sys.exit(130)


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

    Example: afmol dataset make configs/dataset.toml -o samples
    """
    raise AssertionError
