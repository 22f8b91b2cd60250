"""What a user can get wrong: one family of errors, each with a sentence that says what to do."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

LONGEST = 300
"""Characters of a message: a damaged file may put megabytes into one."""


def shortened(text: str) -> str:
    """A text of at most LONGEST characters: its middle, which is what it cites, gives way."""
    gap = " [...] "
    head = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:head]}{gap}{text[head + len(gap) - LONGEST :]}"


def _printable(text: str) -> str:
    """A text in one line: names in a damaged file may hold line ends and what a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class AfmolError(Exception):
    """Base of every error that the user can mend; the command line prints its text and exits with 2."""

    def __init__(self, text: str = "") -> None:
        super().__init__(shortened(_printable(text)))


class ScanError(AfmolError):
    """A stack that cannot be read, or that no model can use."""


class MoleculeError(AfmolError):
    """A molecule that cannot be read, built or simulated."""

    def __init__(self, text: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        """The kind of mistake in a few words, to count by; empty where nobody counts."""


class ShardError(AfmolError):
    """A file of stored samples that is missing, damaged, or something else."""


class WeightsError(AfmolError):
    """A weight file that cannot be loaded."""


class ConfigError(AfmolError):
    """A configuration, output folder or command line that cannot be used."""


@contextlib.contextmanager
def reading(path: str | Path, what: str, error_type: type[AfmolError], name: str = "") -> Iterator[None]:
    """Whatever is raised while a file is read as `what`, as one sentence about it, or about `name`, a piece of it."""
    try:
        yield
    except AfmolError:
        raise
    except FileNotFoundError as error:
        raise error_type(f"{path} does not exist; check the path.") from error
    except MemoryError as error:
        raise error_type(f"{name or path} takes more memory than there is; give a smaller file.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise error_type(f"{path} cannot be read ({os.strerror(error.errno).lower()}).") from error
        # Libraries raise nearly everything on damaged bytes; for the user it is one case.
        text = f"{name or path} cannot be read as {what}; it is damaged, cut off or something else."
        raise error_type(text) from error


def out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory. torch raises RuntimeError; its class for CUDA is imported with it alone."""
    told = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in told or "out of memory" in told
