"""Sets of molecules from SMILES, molfiles, geometries and packed sets: in parallel, and restartable.

    sources -> entries -> chunks of CHUNK entries -> one part a chunk, in OUT.parts -> OUT.npz and OUT_dropped.csv

A part is a function of its chunk, the settings and the versions of afmol and RDKit, is named by the hash of these,
holds it, and is written whole or not at all. So it does not matter who makes it, when, or how often the work was
stopped: the parts put together in the order of the sources are the same file, bit for bit.

One thing is not a function of these: whether a molecule is done within the time limit. One that comes near it may be
dropped in one run and kept in the next; usual molecules take a hundredth of the default.
"""

import contextlib
import csv
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..elements import ELEMENTS
from ..errors import ConfigError, MoleculeError
from ..files import draft_of, locked, npz_arrays, npz_bytes, write_file
from ..files.molecules import parse_xyz
from ..structures import Molecule, check_atoms
from . import chemistry
from .entries import Entry, check_source, read_entries, source_format
from .molecules import FLAT, MAX_ATOMS, PARTS, MoleculeSet, Part, balance, joined, molecule_set, write_molecules
from .workers import FileTask, make_file, results

CHUNK = 100
"""Entries of a part: what is lost when the work is stopped, for each worker."""
NAME_LENGTH = 80
"""Bytes of a name that are kept, for the table of what was dropped."""
DETAIL_LENGTH = 300
"""Characters of a sentence that are kept there: a damaged file may put megabytes into one."""


@dataclass(frozen=True)
class BuildConfig:
    """Which molecules are taken, and how they are built. The elements are those that afmol knows."""

    min_atoms: int = 5
    """Hydrogens included, as in `max_atoms`."""
    max_atoms: int = 100
    """Up to 255, the most that a packed set can hold."""
    charged: bool = False
    """Whether ions are taken."""
    timeout: float = 10.0
    """For one molecule, s."""
    seed: int = 0
    """Of the conformers."""
    validation: float = 0.05
    """Share of scaffolds whose molecules are the part for validation."""
    test: float = 0.05
    """The same for the test; the rest is for training."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_atoms <= self.max_atoms <= MAX_ATOMS:
            raise ConfigError(f"The numbers of atoms must satisfy 1 <= smallest <= largest <= {MAX_ATOMS}.")
        if not self.timeout > 0:
            raise ConfigError("The time limit must be longer than 0 s.")
        if min(self.validation, self.test) < 0 or not self.validation + self.test < 1:
            raise ConfigError("The shares for validation and test must not be negative, and leave some for training.")


@dataclass(frozen=True)
class Report:
    """What became of the entries."""

    entries: int
    kept: int
    dropped: dict[str, int]
    """Reason: entries."""
    split: dict[Part, int]
    flat: int
    elements: dict[str, int]
    """Symbol: molecules that hold the element."""

    def __str__(self) -> str:
        rows = [("entries", self.entries), ("kept", self.kept)]
        rows += [(f"  {part}", count) for part, count in self.split.items()]
        rows += [(f"  flatter than {FLAT} A", self.flat)]
        rows += [(f"  with {symbol}", count) for symbol, count in self.elements.items() if count]
        rows += [("dropped", self.entries - self.kept)]
        rows += [(f"  {reason}", count) for reason, count in self.dropped.items()]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:{width}s} {n:9,d} {100 * n / max(1, self.entries):6.2f} %" for label, n in rows)


def build_molecules(
    sources: Sequence[str | Path],
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    scheduler: str = "",
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Build a packed set: OUT.npz, and OUT_dropped.csv with every entry that was left out and why.

    What may stand in a source: see data/entries.py. Of a molfile a 3D conformer is kept as it stands, and needs
    its hydrogens; a drawing is only a graph. Of .xyz the geometry is kept, bond orders are perceived, and charges are
    computed from them, whatever charges stand there. Packed sets (.npz) keep geometry and charges.

    The same call after a stop goes on where it was; it ends in the same files.

    Of near-duplicates, molecules with one graph (`chemistry.skeleton`), the first is kept: tautomers, stereoisomers,
    repeats. Training, validation and test are told apart by the hash of the scaffold. See docs/molecules.md.

    Args:
        sources: files. Their order decides which near-duplicate is kept, and the order of the molecules.
        out: .npz file to write; OUT.parts beside it holds what is done until the end.
        config: settings; the defaults if None.
        scheduler: address of a Dask scheduler, whose workers see the same files at the same paths.
        workers: processes on this machine where there is no scheduler, its cores if None; 0: this process alone.
        progress: show a bar.

    Raises:
        MoleculeError: a source that is missing, empty or something else; no molecule left.
        ConfigError: a file that cannot be written, a scheduler that does not answer.
    """
    config = config or BuildConfig()
    paths, out = [Path(source) for source in sources], Path(out)
    _check_paths(paths, out)
    plan = [(chunk.source, chunk.key, len(chunk.entries)) for chunk in _chunks(paths, config)]
    for source, path in enumerate(paths):
        if all(which != source for which, _, _ in plan):
            raise MoleculeError(f"{path} holds no molecules; give a file with at least one.")
    counts = {key: count for _, key, count in plan}  # the same chunk twice is one part
    alone = len(counts) == 1 and not scheduler  # other processes would take longer to start
    with (
        _parts_folder(out) as folder,
        tqdm(total=sum(counts.values()), unit="mol", mininterval=1, disable=not progress) as bar,
    ):
        files = {key: folder / f"{key}.npz" for key in counts}
        tasks = _part_tasks(_chunks(paths, config), files, config)
        for path, _ in results(make_file, tasks, scheduler, 0 if alone else workers):
            bar.update(counts[path.stem])
        report = _assemble(paths, [(source, files[key], key) for source, key, _ in plan], out, config)
        for file in files.values():
            file.unlink(missing_ok=True)
    return report


# Parts


class Chunk(NamedTuple):
    """What a part is made from."""

    source: int
    """Place of the file among the sources."""
    kind: str
    """Its format, as a suffix."""
    entries: list[Entry]
    key: str
    """SHA-256 of everything that decides what the part holds."""


def _chunks(paths: list[Path], config: BuildConfig) -> Iterator[Chunk]:
    for source, path in enumerate(paths):
        kind, entries = source_format(path), read_entries(path)
        while chunk := list(islice(entries, CHUNK)):
            yield Chunk(source, kind, chunk, _key(kind, chunk, config))


def _key(kind: str, entries: list[Entry], config: BuildConfig) -> str:
    import rdkit

    made_by = [__version__, rdkit.__version__, kind, asdict(config)]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for number, name, content in entries:
        if isinstance(content, Molecule):
            arrays = content.positions, content.numbers, content.bonds, content.charges
            text = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None)
        else:
            text = content.encode()
        digest.update(json.dumps([number, name, len(text)]).encode() + text)
    return digest.hexdigest()


def _part_tasks(chunks: Iterator[Chunk], files: dict[str, Path], config: BuildConfig) -> Iterator[FileTask]:
    """How to make the parts of these keys, each once."""
    left = dict(files)
    for chunk in chunks:
        if path := left.pop(chunk.key, None):
            yield FileTask(path, partial(_part_bytes, chunk, config), partial(_read_part, path, chunk.key))


def _part_bytes(chunk: Chunk, config: BuildConfig) -> bytes:
    """Build the molecules of a chunk: a packed set of them, and in `about` what became of each entry."""
    from rdkit import rdBase

    molecules, kept, dropped = [], [], []
    with rdBase.BlockLogs():
        for entry in chunk.entries:
            place = entry.number, entry.name.encode()[:NAME_LENGTH].decode(errors="replace")
            try:
                molecule, graph, scaffold = _accepted(entry, chunk.kind, config)
            except MoleculeError as error:
                dropped.append((*place, error.reason or "not readable", str(error)[:DETAIL_LENGTH]))
            else:
                molecules.append(molecule)
                kept.append((*place, graph, chemistry.scaffold_place(scaffold)))
    about = {"key": chunk.key, "kept": kept, "dropped": dropped}
    return npz_bytes(molecule_set(molecules).arrays | {"about": np.array(json.dumps(about).encode())})


def _read_part(path: Path, key: str) -> tuple[MoleculeSet, dict[str, Any]] | None:
    """The molecules of a part, and what is said about its entries; None: missing, damaged, or another chunk's."""
    try:
        with zipfile.ZipFile(path) as stored:
            # numpy compares the checksum of what it reads, and reads less where the length of an array is damaged
            if stored.testzip() is not None:
                return None
        _, arrays = npz_arrays(path, None, f"{path}: ", MoleculeError)
        about = json.loads(arrays.pop("about").item())
        return (MoleculeSet(**arrays), about) if about["key"] == key else None
    except Exception:
        # numpy, zipfile and zlib raise nearly everything on damaged bytes, and for us it is one case: make it again.
        return None


def _accepted(entry: Entry, kind: str, config: BuildConfig) -> tuple[Molecule, str, str]:
    """The molecule of an entry and its `chemistry.skeleton`; a MoleculeError says why it does not go into the set."""
    try:
        molecule = _built(entry, kind, config)
        molecule_set([molecule])  # whether it fits
        check_atoms(molecule.positions, molecule.charges)
        graph, scaffold = chemistry.skeleton(molecule)
    except MoleculeError:
        raise
    except Exception as error:
        # RDKit raises nearly everything; one molecule must not stop the others.
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        raise MoleculeError(text, "RDKit failed") from error
    if "." in graph:
        raise MoleculeError("The bonds do not join all atoms.", "several fragments")
    return molecule, graph, scaffold


def _built(entry: Entry, kind: str, config: BuildConfig) -> Molecule:
    content = entry.content
    if isinstance(content, Molecule):
        charges = np.zeros(1) if content.charges is None else content.charges
        _check_wanted(len(content), round(float(charges.sum()), 1), config)
        return content
    if kind == ".xyz":
        first = content.split("\n", 1)[0].strip()
        count = int(first) if first.isdecimal() and len(first) < 10 else config.min_atoms
        _check_wanted(count, 0, config)  # before n x n distances
        mol = chemistry.graph_from_geometry(parse_xyz(content, entry.name))
    else:
        graph_from = chemistry.graph_from_molfile if kind in (".sdf", ".mol") else chemistry.graph_from_smiles
        mol = graph_from(content)
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    _check_wanted(mol.GetNumAtoms(), charge, config)
    return chemistry.molecule_from_graph(mol, seed=config.seed, timeout=config.timeout)


def _check_wanted(atoms: int, charge: float, config: BuildConfig) -> None:
    if atoms < config.min_atoms:
        raise MoleculeError(f"It has {atoms} atoms; the set takes {config.min_atoms} or more.", "too few atoms")
    if atoms > config.max_atoms:
        raise MoleculeError(f"It has {atoms} atoms; the set takes up to {config.max_atoms}.", "too many atoms")
    if charge and not config.charged:
        raise MoleculeError(f"It has the charge {charge:+g}; the set takes neutral molecules.", "charged")


# The set


def _assemble(paths: list[Path], parts: list[tuple[int, Path, str]], out: Path, config: BuildConfig) -> Report:
    """Put the parts together in the order of the sources and write the two files."""
    import rdkit

    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(set(paths)) else [str(path) for path in paths]
    packed, keep, origins, places = [], [], [], []
    dropped: list[tuple[int, int, str, str, str]] = []
    first: dict[str, str] = {}  # of near-duplicates: where each graph was found
    for source, path, key in parts:
        part = _read_part(path, key)
        if part is None:
            text = f"{paths[source]} changed while it was read, or {path} did; run the same command again."
            raise MoleculeError(text)
        molecules, about = part
        packed.append(molecules)
        dropped += [(source, *row) for row in about["dropped"]]
        for number, name, graph, place in about["kept"]:
            keep.append(graph not in first)
            if keep[-1]:
                first[graph] = f"{labels[source]}:{number}"
                origins.append(first[graph].encode(errors="replace"))
                places.append(place)
            else:
                dropped.append((source, number, name, "near-duplicate", f"of {first[graph]}"))
    dropped.sort(key=lambda row: row[:2])
    if not origins:
        raise _nothing_left(paths, dropped, out)

    molecules, place = joined(packed).where(np.array(keep)), np.array(places)
    split = np.where(place < config.test, 2, place < config.test + config.validation).astype(np.uint8)
    molecules = replace(molecules, split=split, weight=balance(molecules))
    made_by = {"afmol": __version__, "rdkit": rdkit.__version__, "sources": names} | asdict(config)
    width = max(len(label.encode(errors="replace")) for label in labels) + 22  # of any 64 bit number after it
    further = {"source": np.array(origins, f"S{width}"), "about": np.array(json.dumps(made_by).encode())}
    write_molecules(molecules, out, further)
    write_file(_dropped(out), _csv(paths, dropped))
    return Report(
        entries=len(molecules) + len(dropped),
        kept=len(molecules),
        dropped=dict(Counter(reason for _, _, _, reason, _ in dropped).most_common()),
        split={part: int((split == number).sum()) for number, part in enumerate(PARTS)},
        flat=int((molecules.flatness < FLAT).sum()),
        elements={e.symbol: int(count) for e, count in zip(ELEMENTS, molecules.holds.sum(0), strict=True)},
    )


def _nothing_left(paths: list[Path], dropped: list[tuple[int, int, str, str, str]], out: Path) -> MoleculeError:
    """What to raise, once the table is written; beside a set that is there its own table stays."""
    start = f"None of the {len(dropped)} entries can be used;"
    if out.exists():
        ((reason, times),) = Counter(row[3] for row in dropped).most_common(1)
        return MoleculeError(f"{start} {times} times the reason was: {reason}; {out} is left as it was.")
    write_file(_dropped(out), _csv(paths, dropped))
    return MoleculeError(f"{start} {_dropped(out)} says why.")


def _csv(paths: list[Path], dropped: list[tuple[int, int, str, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("source", "number", "name", "reason", "detail"))
    writer.writerows((paths[source], *row) for source, *row in dropped)
    return text.getvalue().encode(errors="replace")


def _check_paths(paths: list[Path], out: Path) -> None:
    if not paths:
        raise ConfigError("Name at least one file of molecules.")
    if out.suffix.lower() != ".npz":
        raise ConfigError(f"The set is written as .npz, not as {out.name}.")
    for path in paths:
        try:
            check_source(path)
            for result in (out, _dropped(out)):
                if result.exists() and path.samefile(result):
                    raise ConfigError(f"{path} is a source as well as {result}; write the set to another file.")
        except OSError as error:
            text = f"{path} or {out} cannot be reached ({(error.strerror or 'error').lower()})."
            raise MoleculeError(text) from error
    for path in (out, _dropped(out)):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; choose another name for the set.")


def _dropped(out: Path) -> Path:
    return out.with_name(f"{out.stem}_dropped.csv")


@contextlib.contextmanager
def _parts_folder(out: Path) -> Iterator[Path]:
    """The folder for the parts, for this run alone, and proof that files can be written beside it."""
    folder = out.with_name(f"{out.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
        proof = draft_of(_dropped(out))  # the longest name that will be needed
        proof.touch()
        proof.unlink()
    except OSError as error:
        hint = "choose another name or folder"
        raise ConfigError(f"{out} cannot be written ({(error.strerror or 'error').lower()}); {hint}.") from error
    with locked(folder / "lock", str(out)):
        yield folder.resolve()  # the workers of a cluster stand elsewhere
        for path in folder.glob(".*.npz.*.tmp"):  # drafts; what another run made, or somebody else, stays
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
