"""How much memory a file or a setting may claim: one limit, asked before anything of that size is allocated.

A damaged or malicious file of a few bytes may say that it holds 10^9 samples. Whatever is to be made as large as
somebody says asks `check_claim` first. CONVENTIONS.md states the limit for users.
"""

import os
from collections.abc import Iterator
from io import TextIOBase
from pathlib import Path

from .errors import AfmolError, ConfigError

MOST_BYTES = 2**30
VARIABLE = "AFMOL_MOST_BYTES"
"""The environment variable that takes the place of MOST_BYTES."""
EXPANSION = 100
"""By how much what is read piece by piece may be larger than its file: text packs 3 to 20 times, images hardly at all,
a bomb 1000 times."""
SMALL_SHARE = 2**10
"""What is smaller than the limit by this may expand as it likes."""
TEXT = 256
"""Bytes that a character of text may take once it is parsed: a digit becomes a string in a list, a line an atom."""
PAIR = 48
"""Bytes that two atoms take in a table of distances, with what is needed to make it."""


def most_bytes() -> int:
    """The limit, bytes. Raises ConfigError: an environment variable that is no positive whole number."""
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return MOST_BYTES
    if not (value.isascii() and value.isdecimal() and len(value) < 19 and int(value) > 0):
        raise ConfigError(f"{VARIABLE} must be a number of bytes, such as {4 * MOST_BYTES}, not {value[:40]!r}.")
    return int(value)


def check_claim(claimed: int, what: str, error_type: type[AfmolError], stored: int | None = None) -> None:
    """Refuse what claims more memory than the limit.

    Args:
        claimed: bytes.
        what: the file, or the part of it, that claims them; for the message.
        error_type: what is raised.
        stored: bytes on the disk of what is never in memory as a whole. It may be as large as it likes, but not
            EXPANSION times as large as its file.
    """
    limit = most_bytes()
    if stored is not None:
        if claimed > max(limit // SMALL_SHARE, EXPANSION * stored):
            told = f"{what} unpacks to more than {EXPANSION} times its size"
            raise error_type(f"{told}; if that is right, unpack or copy it first, or set {VARIABLE} higher.")
    elif claimed > limit:
        told = f"{what} takes {_gigabytes(claimed)}, more than the {_gigabytes(limit)} that afmol allows"
        raise error_type(f"{told}; make it smaller or, if that is right, set {VARIABLE} to a larger number of bytes.")


def _gigabytes(n: int) -> str:
    return f"{min(int(n), 10**30) / 1e9:.3g} GB"


def most_text() -> int:
    """Characters of a text that may be parsed as a whole; to ask before `check_claim` where lines are counted."""
    return most_bytes() // TEXT


def read_whole(path: Path, error_type: type[AfmolError]) -> bytes:
    """The bytes of a file of at most the limit. OSError as of `open`."""
    check_claim(path.stat().st_size, path.name, error_type)
    return path.read_bytes()


def read_text(path: Path, error_type: type[AfmolError], errors: str = "strict") -> str:
    """The text of a file that may be parsed as a whole. OSError as of `open`; UnicodeDecodeError."""
    check_claim(TEXT * path.stat().st_size, path.name, error_type)
    return path.read_text("utf-8", errors)


def bounded_lines(file: TextIOBase, what: str, error_type: type[AfmolError]) -> Iterator[str]:
    """The lines of a text, none longer than may be parsed."""
    most = most_text()
    while line := file.readline(most + 1):
        if len(line) > most:
            check_claim(TEXT * len(line), f"A line of {what}", error_type)
        yield line


def check_atoms_claim(n: int, error_type: type[AfmolError]) -> None:
    """Refuse more atoms than a table of their distances has room for."""
    check_claim(PAIR * n * n, f"A molecule of {n} atoms", error_type)
