"""Files of many molecules, entry by entry, each as it stands there.

.smi .smiles .txt   SMILES first in each line, a name may follow; blank lines and those with # in front are skipped
.csv .tsv           a column named smiles, and perhaps one named name, id or title; capitals do not matter
.sdf .mol           MDL molfiles
.xyz                frames, one after another
.npz                packed sets

All but the last also compressed (NAME.smi.gz and so on).
"""

import csv
import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MoleculeError
from ..files import reading
from ..limits import TEXT, bounded_lines, check_claim, most_text
from ..structures import Molecule
from .molecules import load_molecules

PACKED = ".npz"
MOST_PACKED = 1040
"""By how much deflate packs at most."""


class Entry(NamedTuple):
    """One molecule of a file."""

    number: int
    """Of the line for SMILES, of the record or molecule for others, from 1."""
    name: str
    content: str | Molecule
    """SMILES, the text of a record, or a molecule that needs no reading."""


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a file, one after another; what they hold is not looked at.

    Raises:
        MoleculeError: a file that is missing or damaged, a table without a column of SMILES, no packed set.
    """
    if source_format(path) == PACKED:
        molecules = load_molecules(path)
        yield from (Entry(i + 1, molecules[i].name, molecules[i]) for i in range(len(molecules)))
        return
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with (
        reading(path, source_format(path), MoleculeError),
        opened(path, "rt", encoding="utf-8-sig", errors="replace") as file,
    ):
        try:
            yield from ENTRIES[source_format(path)](_lines(file, path))
        except MoleculeError as error:
            raise MoleculeError(f"{path}: {error}") from None


def _lines(file: TextIOBase, path: Path) -> Iterator[str]:
    """The lines of a file; what unpacks to too much of it ends in a MoleculeError."""
    buffer = getattr(file, "buffer", None)
    packed: Any = buffer if isinstance(buffer, gzip.GzipFile) else None
    for number, line in enumerate(bounded_lines(file, path.name, MoleculeError)):
        if packed is not None and (number % 256 == 0 or len(line) > 2**16):
            check_claim(packed.tell(), path.name, MoleculeError, stored=packed.fileobj.tell())
        yield line


def check_source(path: Path) -> None:
    """Raise the MoleculeError that says why a file cannot be read entry by entry, if it shows from outside."""
    known = [*ENTRIES, PACKED]
    if source_format(path) not in known or path.suffixes[-2:] == [PACKED, ".gz"]:
        raise MoleculeError(f"{path} has an unknown suffix; known are {', '.join(known)}.")
    if not path.exists():
        raise MoleculeError(f"{path} does not exist; check the path.")
    if not path.is_file():
        raise MoleculeError(f"{path} is not a plain file; save what it holds as one.")
    if path.suffix.lower() == ".gz":
        with reading(path, source_format(path), MoleculeError), path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            unpacked = int.from_bytes(file.read(), "little")  # as gzip notes at the end, up to a multiple of 4 GiB
            if unpacked < MOST_PACKED * size:  # else the file is cut off, and these are no note
                check_claim(unpacked, path.name, MoleculeError, stored=size)


def source_format(path: Path) -> str:
    """The suffix, without the one that says compressed."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _smiles(lines: Iterable[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        smiles, *name = line.split(maxsplit=1) or [""]
        if smiles and not smiles.startswith("#"):
            yield Entry(number, "".join(name).strip(), smiles)


def _table(lines: Iterable[str], delimiter: str) -> Iterator[Entry]:
    # tab-separated tables quote nothing, and a stray quote would swallow all that follows
    rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
    first = next((row for row in rows if any(cell.strip() for cell in row)), [])
    header = [cell.strip().lower() for cell in first]
    if header and "smiles" not in header:
        raise MoleculeError("it has no column named smiles; name it so in the first line.")
    name = next((header.index(title) for title in ("name", "id", "title") if title in header), None)
    for row in rows:
        if any(cell.strip() for cell in row):
            cells = [cell.strip() for cell in row] + [""] * len(header)
            yield Entry(rows.line_num, "" if name is None else cells[name], cells[header.index("smiles")])


def _molfiles(lines: Iterable[str]) -> Iterator[Entry]:
    number, record, ended, length, most = 1, [], False, 0, most_text()
    for line in lines:
        length += len(line)
        if length > most:
            check_claim(TEXT * length, "one record", MoleculeError)
        counts = line.rstrip().endswith(("V2000", "V3000"))
        if line.startswith("$$$$") or (ended and counts and len(record) > 3):
            cut = len(record) if line.startswith("$$$$") else len(record) - 3  # $$$$ is missing: the next one has begun
            yield Entry(number, record[0].strip() if record else "", "".join(record[:cut]))
            number, record, ended, length = number + 1, record[cut:], False, len(line)
        if not line.startswith("$$$$"):
            record.append(line)
            ended |= line.startswith("M  END")
    if any(line.strip() for line in record):  # a .mol file, or an end that is missing
        yield Entry(number, record[0].strip(), "".join(record))


def _frames(lines: Iterable[str]) -> Iterator[Entry]:
    """A frame ends after as many rows as it says, or before a row that is a number alone: one that lacks rows, or does
    not say how many it has, takes no more than itself."""
    number, frame, full, length, most = 0, [], 0, 0, most_text()
    for line in lines:
        length += len(line)
        if length > most:
            check_claim(TEXT * length, "one frame", MoleculeError)
        if len(frame) == full > 0 or (len(frame) > 1 and line.strip().isdecimal()):
            number += 1
            yield Entry(number, frame[1].strip(), "".join(frame))
            frame, length = [], len(line)
        if not frame:
            if not line.strip():
                continue
            count = line.strip()
            full = int(count) + 2 if count.isdecimal() and len(count) < 10 else 0
        frame.append(line)
    if frame:
        yield Entry(number + 1, frame[1].strip() if len(frame) > 1 else "", "".join(frame))


ENTRIES: dict[str, Callable[[Iterable[str]], Iterator[Entry]]] = {
    ".smi": _smiles,
    ".smiles": _smiles,
    ".txt": _smiles,
    ".csv": lambda lines: _table(lines, ","),
    ".tsv": lambda lines: _table(lines, "\t"),
    ".sdf": _molfiles,
    ".mol": _molfiles,
    ".xyz": _frames,
}
