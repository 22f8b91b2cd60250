"""Sets of molecules from SMILES, molfiles, geometries and packed sets: in parallel, and restartable.

    sources -> entries -> chunks of CHUNK entries -> one part a chunk, in OUT.parts -> OUT.npz and OUT_dropped.csv

A part is a function of its chunk, the settings and the versions of afmol and RDKit, is named by the hash of these,
holds a checksum, and is written whole or not at all. So it does not matter who makes it, when, or how often the work
was stopped: the parts put together in the order of the sources are the same file, bit for bit.

One thing is not a function of these: whether a molecule is done within the time limit. One that comes near it may be
dropped in one run and kept in the next; usual molecules take a hundredth of the default.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from tqdm import tqdm

from .. import __version__
from ..elements import ELEMENTS, element_index
from ..errors import ConfigError, MoleculeError
from ..files import write_arrays, write_file
from ..files.molecules import parse_xyz
from ..structures import OVERLAP, Molecule, closest_atoms
from .chemistry import graph_from_geometry, graph_from_molfile, graph_from_smiles, molecule_from_graph
from .entries import ENTRIES, Entry, read_entries, source_format
from .molecules import MAX_ATOMS, PARTS, MoleculeSet, Part, load_molecules, packed, write_molecules
from .workers import results

GRAPHS = {".sdf": graph_from_molfile, ".mol": graph_from_molfile}
"""How an entry becomes a graph, where it is not SMILES or a geometry."""
PACKED = ".npz"
CHUNK = 100
"""Entries of a part: what is lost when the work is stopped, for each worker."""
FLAT = 1.6
"""Molecules less high than this, A, are counted as flat."""
LARGEST_WEIGHT = 10.0
"""Of the heaviest molecule, in units of the lightest."""
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


class Task(NamedTuple):
    """What makes a part."""

    path: Path
    key: str
    kind: str
    entries: list[Entry]
    config: BuildConfig


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

    What may stand in a source: see `afmol.files.entries`. Of a molfile a 3D conformer is kept as it stands, and needs
    its hydrogens; a drawing is only a graph. Of .xyz the geometry is kept, bond orders are perceived, and charges are
    computed from them, whatever charges stand there. Packed sets (.npz) keep geometry and charges.

    The same call after a stop goes on where it was; it ends in the same files.

    Of molecules with the same heavy atoms, the same bonds between them and the same number of hydrogens the first is
    kept: whatever the orders of the bonds, charges, stereo centres, isotopes and places of the hydrogens. These are
    tautomers, stereoisomers, conformers, and the same molecule written twice, which look nearly alike under the tip;
    and also isomers of double bonds (1-butene, 2-butene), which look less alike. Molecules that differ in one atom or
    in the place of a substituent are not caught.

    Training, validation and test are told apart by the hash of the Murcko scaffold, of the molecule if it has no ring.
    The scaffold is taken without orders of bonds as well: benzene and cyclohexane are one. A scaffold with many
    molecules goes as a whole, so that the sizes come only near the shares that were asked for.

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
    plan = [
        (source, _key(path, chunk, config), len(chunk)) for source, path in enumerate(paths) for chunk in _chunks(path)
    ]
    for source, path in enumerate(paths):
        if all(which != source for which, _, _ in plan):
            raise MoleculeError(f"{path} holds no molecules; give a file with at least one.")
    with _parts_folder(out) as folder:
        parts = {key: folder / f"{key}.npz" for _, key, _ in plan}
        there = {key for key, path in parts.items() if _read_part(path, key) is not None}

        def tasks() -> Iterator[Task]:
            sent = set(there)  # the same chunk twice is one part
            for path in paths:
                for chunk in _chunks(path):
                    key = _key(path, chunk, config)
                    if key in parts and key not in sent:
                        sent.add(key)
                        yield Task(parts[key], key, source_format(path), chunk, config)

        total = sum({key: count for _, key, count in plan}.values())
        done = sum({key: count for _, key, count in plan if key in there}.values())
        alone = len(parts) - len(there) <= 1 and not scheduler  # other processes would take longer to start
        with tqdm(total=total, initial=done, unit="mol", mininterval=1, disable=not progress) as bar:
            for count in results(_make_part, tasks(), scheduler, 0 if alone else workers):
                bar.update(count)
        report = _assemble(paths, [(source, parts[key], key) for source, key, _ in plan], out, config)
        _remove(folder, parts.values())
    return report


# Chunks


def _chunks(path: Path) -> Iterator[list[Entry]]:
    entries = _packed_entries(path) if source_format(path) == PACKED else read_entries(path)
    while chunk := list(islice(entries, CHUNK)):
        yield chunk


def _packed_entries(path: Path) -> Iterator[Entry]:
    molecules = load_molecules(path)
    for i in range(len(molecules)):
        molecule = molecules[i]
        yield Entry(i + 1, molecule.name, molecule)


# Parts


def _key(path: Path, chunk: list[Entry], config: BuildConfig) -> str:
    """SHA-256 of everything that decides what the part of a chunk holds."""
    import rdkit

    made_by = [__version__, rdkit.__version__, source_format(path), dataclasses.asdict(config)]
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for number, name, content in chunk:
        if isinstance(content, Molecule):
            arrays = content.positions, content.numbers, content.bonds, content.charges
            text = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None)
        else:
            text = content.encode()
        digest.update(json.dumps([number, name, len(text)]).encode() + text)
    return digest.hexdigest()


def _make_part(task: Task) -> int:
    """Build the molecules of a chunk, write its part, return the number of entries."""
    from rdkit import rdBase

    kept: list[tuple[Entry, Molecule, str, str]] = []
    dropped: list[tuple[Entry, str, str]] = []
    with rdBase.BlockLogs():
        for entry in task.entries:
            try:
                molecule = _built(entry, task.kind, task.config)
                packed([molecule])  # whether it fits
                distance, _, _ = closest_atoms(molecule.positions)
                if distance < OVERLAP:
                    raise MoleculeError(f"Two atoms are {distance:.2g} A apart.", "atoms on top of each other")
                graph, scaffold = skeleton(molecule)
                if "." in graph:
                    raise MoleculeError("The bonds do not join all atoms.", "several fragments")
                kept.append((entry, molecule, graph, scaffold))
            except MoleculeError as error:
                dropped.append((entry, error.reason or "not readable", str(error)))
            except Exception as error:
                # RDKit raises nearly everything; one molecule must not stop the others.
                dropped.append((entry, "RDKit failed", f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"))
    dropped = [(entry, reason, detail[:DETAIL_LENGTH]) for entry, reason, detail in dropped]
    molecules = packed([molecule for _, molecule, _, _ in kept])
    arrays = {field.name: getattr(molecules, field.name) for field in dataclasses.fields(MoleculeSet)}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    arrays |= {
        "number": np.array([entry.number for entry, _, _, _ in kept], np.int64),
        "name": _bytes(entry.name for entry, _, _, _ in kept),
        "graph": _bytes(hashlib.sha256(graph.encode()).hexdigest()[:32] for _, _, graph, _ in kept),
        "scaffold": np.array([scaffold_place(scaffold) for _, _, _, scaffold in kept], np.float64),
        "flat": molecules.flatness < FLAT if kept else np.zeros(0, bool),
        "dropped_number": np.array([entry.number for entry, _, _ in dropped], np.int64),
        "dropped_name": _bytes(entry.name for entry, _, _ in dropped),
        "dropped_reason": _bytes(reason for _, reason, _ in dropped),
        "dropped_detail": np.array([detail.encode() for _, _, detail in dropped], np.bytes_),
    }
    write_arrays(arrays | {"checksum": np.array(_checksum(task.key, arrays))}, task.path)
    return len(task.entries)


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
        try:
            molecule = parse_xyz(content, entry.name)
        except ValueError as error:
            raise MoleculeError(f"The frame holds what is not a number ({error}).") from error
        mol = graph_from_geometry(molecule)
    else:
        mol = GRAPHS.get(kind, graph_from_smiles)(content)
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    _check_wanted(mol.GetNumAtoms(), charge, config)
    return molecule_from_graph(mol, seed=config.seed, timeout=config.timeout)


def _check_wanted(atoms: int, charge: float, config: BuildConfig) -> None:
    if atoms < config.min_atoms:
        raise MoleculeError(f"It has {atoms} atoms; the set takes {config.min_atoms} or more.", "too few atoms")
    if atoms > config.max_atoms:
        raise MoleculeError(f"It has {atoms} atoms; the set takes up to {config.max_atoms}.", "too many atoms")
    if charge and not config.charged:
        raise MoleculeError(f"It has the charge {charge:+g}; the set takes neutral molecules.", "charged")


def skeleton(molecule: Molecule) -> tuple[str, str]:
    """What two near-duplicates share, and what two molecules of one part share.

    Returns:
        Canonical SMILES of the heavy atoms with single bonds only, followed by the number of hydrogens; the same of its
        rings and what joins them (its Murcko scaffold), without the number, or of the molecule where it has no ring.
    """
    from rdkit import Chem

    heavy = np.flatnonzero(molecule.numbers != 1)
    heavy = heavy if len(heavy) else np.arange(len(molecule))
    place = {int(atom): i for i, atom in enumerate(heavy)}
    mol = Chem.RWMol()
    for atom in heavy:
        mol.AddAtom(Chem.Atom(int(molecule.numbers[atom])))
    for i, j in molecule.bonds:
        if int(i) in place and int(j) in place:
            mol.AddBond(place[int(i)], place[int(j)], Chem.BondType.SINGLE)
    mol.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(mol)
    graph = Chem.MolToSmiles(mol)
    return f"{graph} H{len(molecule) - len(heavy)}", Chem.MolToSmiles(Chem.MurckoDecompose(mol)) or graph


def scaffold_place(scaffold: str) -> float:
    """A number from 0 to 1 by the hash of a scaffold: the test set is below its share, validation follows."""
    return int.from_bytes(hashlib.sha256(scaffold.encode()).digest()[:8], "big") / 2**64


def _checksum(key: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _read_part(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a part; None where it is missing, damaged, changed, or that of another chunk."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored}
        return arrays if str(arrays.pop("checksum")) == _checksum(key, arrays) else None
    except Exception:
        # numpy, zipfile and zlib raise nearly everything on damaged bytes, and for us it is one case: make it again.
        return None


def _bytes(texts: Iterable[str]) -> Shaped[np.ndarray, " n"]:
    return np.array([text.encode()[:NAME_LENGTH] for text in texts], np.bytes_)


# The set


def _assemble(paths: list[Path], parts: list[tuple[int, Path, str]], out: Path, config: BuildConfig) -> Report:
    """Put the parts together in the order of the sources and write the two files."""
    import rdkit

    loaded: list[dict[str, np.ndarray]] = []
    for source, path, key in parts:
        part = _read_part(path, key)
        if part is None:
            raise MoleculeError(
                f"{paths[source]} changed while it was read, or {path} did; run the same command again."
            )
        part["source"] = np.full(len(part["number"]), source)
        part["dropped_source"] = np.full(len(part["dropped_number"]), source)
        loaded.append(part)
    whole = {name: np.concatenate([part.pop(name) for part in loaded]) for name in [*loaded[0]]}
    names = [path.name for path in paths]
    unique = names if len(set(names)) == len(set(paths)) else [str(path) for path in paths]
    labels = np.array([f"{name}:".encode(errors="replace") for name in unique])
    where = np.char.add(labels[whole["source"]], whole["number"].astype("S"))  # FILE:NUMBER

    _, first, group = np.unique(whole["graph"], return_index=True, return_inverse=True)
    first = first[group.reshape(-1)]  # the first of each entry's near-duplicates
    keep: Bool[np.ndarray, " entries"] = first == np.arange(len(first))
    dropped = {name: whole[f"dropped_{name}"] for name in ("source", "number", "name", "reason", "detail")}
    twice = {name: whole[name][~keep] for name in ("source", "number", "name")}
    twice["reason"] = np.full(len(twice["number"]), b"near-duplicate")
    twice["detail"] = np.char.add(np.array([b"of "]), where[first[~keep]])
    dropped = {name: np.concatenate([dropped[name], twice[name]]) for name in dropped}
    order = np.lexsort((dropped["number"], dropped["source"]))
    dropped = {name: array[order] for name, array in dropped.items()}
    if not keep.any():
        common = Counter(reason.decode() for reason in dropped["reason"].tolist()).most_common(1)[0]
        if out.exists():  # its table stays beside it
            text = f"{common[1]} times the reason was: {common[0]}; {out} is left as it was."
            raise MoleculeError(f"None of the {len(order)} entries can be used; {text}")
        write_file(_dropped(out), _csv(paths, dropped))
        raise MoleculeError(f"None of the {len(order)} entries can be used; {_dropped(out)} says why.")

    fields = [field.name for field in dataclasses.fields(MoleculeSet) if field.name in whole]
    molecules = MoleculeSet(**{name: whole[name] for name in fields}).where(keep)
    scaffold = whole["scaffold"][keep]
    split = np.where(scaffold < config.test, 2, np.where(scaffold < config.test + config.validation, 1, 0)).astype(
        np.uint8
    )
    molecules = dataclasses.replace(molecules, split=split, weight=balance(molecules))
    about = {"afmol": __version__, "rdkit": rdkit.__version__, "sources": [path.name for path in paths]}
    about |= dataclasses.asdict(config)
    write_molecules(molecules, out, {"source": where[keep], "about": np.array(json.dumps(about).encode())})
    write_file(_dropped(out), _csv(paths, dropped))

    reasons = Counter(reason.decode() for reason in dropped["reason"].tolist())
    held = _holds(molecules).sum(0)
    return Report(
        entries=len(where) + len(order) - int((~keep).sum()),
        kept=len(molecules),
        dropped=dict(reasons.most_common()),
        split={part: int((split == place).sum()) for place, part in enumerate(PARTS)},
        flat=int(whole["flat"][keep].sum()),
        elements={element.symbol: int(count) for element, count in zip(ELEMENTS, held, strict=True)},
    )


def balance(molecules: MoleculeSet) -> Float[np.ndarray, " molecules"]:
    """How often to draw each molecule, so that rare elements are seen more often; the mean is 1.

    One over the root of the share of molecules that hold the rarest element of this one: halfway between drawing all
    molecules alike and drawing each element alike. No molecule is drawn more than LARGEST_WEIGHT times as often as
    another.
    """
    holds = _holds(molecules)
    rarest = np.where(holds, holds.mean(0), np.inf).min(1)
    weight = np.minimum(np.sqrt(rarest.max() / rarest), LARGEST_WEIGHT)
    return (weight / weight.mean()).astype(np.float32)


def _holds(molecules: MoleculeSet) -> Bool[np.ndarray, "molecules elements"]:
    """Whether a molecule holds each of ELEMENTS."""
    holds = np.zeros((len(molecules), len(ELEMENTS)), bool)
    owner = np.repeat(np.arange(len(molecules)), molecules.n_atoms)
    holds[owner, element_index(molecules.numbers.astype(np.int64))] = True
    return holds


def _csv(paths: list[Path], dropped: dict[str, np.ndarray]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(dropped)
    for source, number, *words in zip(*(array.tolist() for array in dropped.values()), strict=True):
        writer.writerow([paths[source], number, *(word.decode(errors="replace") for word in words)])
    return text.getvalue().encode(errors="replace")


# Places


def _check_paths(paths: list[Path], out: Path) -> None:
    known = [*ENTRIES, PACKED]
    if not paths:
        raise ConfigError("Name at least one file of molecules.")
    if out.suffix.lower() != ".npz":
        raise ConfigError(f"The set is written as .npz, not as {out.name}.")
    for path in paths:
        if source_format(path) not in known or path.suffixes[-2:] == [PACKED, ".gz"]:
            raise MoleculeError(f"{path} has an unknown suffix; known are {', '.join(known)}.")
        try:
            if not path.exists():
                raise MoleculeError(f"{path} does not exist; check the path.")
            if not path.is_file():
                raise MoleculeError(f"{path} is not a plain file; save what it holds as one.")
            for result in (out, _dropped(out)):
                if result.exists() and path.samefile(result):
                    raise ConfigError(f"{path} is a source as well as {result}; write the set to another file.")
        except OSError as error:
            raise MoleculeError(
                f"{path} or {out} cannot be reached ({(error.strerror or 'error').lower()})."
            ) from error
    for path in (out, _dropped(out)):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; choose another name for the set.")


def _dropped(out: Path) -> Path:
    return out.with_name(f"{out.stem}_dropped.csv")


@contextlib.contextmanager
def _parts_folder(out: Path) -> Iterator[Path]:
    """The folder for the parts, for this run alone, and proof that files can be written beside it."""
    folder = out.with_name(f"{out.name}.parts")
    lock = folder / "lock"
    try:
        folder.mkdir(exist_ok=True)
        proof = out.with_name(f".{_dropped(out).name}.0000000.tmp")  # the longest name that will be needed
        proof.touch()
        proof.unlink()
        held = lock.open("w")
    except OSError as error:
        hint = "choose another name or folder"
        raise ConfigError(f"{out} cannot be written ({(error.strerror or 'error').lower()}); {hint}.") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another command is writing {out} just now; wait for it, or choose another name."
            ) from error
        yield folder.resolve()  # the workers of a cluster stand elsewhere


def _remove(folder: Path, parts: Iterable[Path]) -> None:
    """Remove the parts of this run and all drafts; what another run made, or somebody else, stays."""
    for path in (*parts, *folder.glob(".*.npz.*.tmp")):
        path.unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
