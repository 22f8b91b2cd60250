"""Stored samples: a folder of HDF5 shards, each written whole or not at all, each saying what it was made from.

Shard k of a configuration holds its samples k * together ... (k + 1) * together - 1 and is a function of
(configuration, set of molecules, k) alone: it does not matter which machine makes it, or when. A shard:

    bytes 0-511       text: the format and the SHA-256 of the rest (HDF5 skips them as its user block)
    /GROUP            attributes `size`: lengths of the images in x and y, A; `origin`: JSON, what it was made from
    /GROUP/X          float32 (samples, 1, nx, ny, nz)   the stacks, the last slice the closest
    /GROUP/xyz        float32 (samples, most, 5)         x, y, z (A), charge (e), atomic number; rows of zeros fill up
    /GROUP/bonds      int32 (bonds, 2)                   pairs of rows of xyz, sample after sample
    /GROUP/n_bonds    int32 (samples,)

GROUP is train, val or test. These names and `X`, `xyz` are those of Graph-AFM (Oinonen et al., MRS Bulletin 2022;
scripts/generate_data.py), whose scripts read the files with box_borders = ((0, 0, -1.5), (size_x, size_y, 0.5)).
"""

import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import AfmolError, ConfigError, ScanError, ShardError
from ..files import make_folder, write_file
from ..resampling import resampled
from ..structures import Molecule, Scan
from .molecules import MoleculeSet, Part, load_molecules
from .samples import DataConfig, Sample, labels, make_sample
from .workers import results

FORMAT = "afmol-shard/1"
HEADER = 512
"""Bytes before what HDF5 writes (its user block): the format and the SHA-256 of all that follows."""
GROUPS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the groups, those of Graph-AFM."""


@dataclass(frozen=True)
class SetConfig:
    """A stored set of samples."""

    molecules: str
    """Packed molecule set (.npz)."""
    samples: int = 10240
    """Rounded up to whole shards of `data.together`."""
    part: Part = "train"
    """Which molecules of the set, if it is split."""
    data: DataConfig = field(default_factory=DataConfig)


class Shard(NamedTuple):
    """What a shard holds, packed."""

    part: str
    images: Float[np.ndarray, "n nx ny nz"]
    size: tuple[float, float]
    """Lengths of the images, A."""
    xyz: Float[np.ndarray, "n most 5"]
    bonds: Int[np.ndarray, "m 2"]
    n_bonds: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, samples: Sequence[Sample], size: tuple[float, float], part: str) -> "Shard":
        """Pack samples of one image size."""
        atoms = [molecule for _, molecule in samples]
        xyz = np.zeros((len(samples), max(1, *(len(m) for m in atoms)), 5), np.float32)
        for row, m in zip(xyz, atoms, strict=True):
            charges = np.zeros(len(m)) if m.charges is None else m.charges
            row[: len(m)] = np.column_stack([m.positions, charges, m.numbers])
        return cls(
            part,
            np.stack([stack for stack, _ in samples]).astype(np.float32),
            size,
            xyz,
            np.concatenate([m.bonds for m in atoms]).astype(np.int32),
            np.array([len(m.bonds) for m in atoms], np.int32),
        )

    def samples(self, chosen: Iterable[int] | None = None) -> Iterator[Sample]:
        """Unpack the samples at the chosen places, or all."""
        ends = np.cumsum(self.n_bonds)
        for i in range(len(self.images)) if chosen is None else chosen:
            rows = self.xyz[i][self.xyz[i, :, 4] > 0]
            bonds = self.bonds[ends[i] - self.n_bonds[i] : ends[i]].astype(np.int64)
            numbers, charges = rows[:, 4].astype(np.int64), rows[:, 3].astype(float)
            yield self.images[i], Molecule(rows[:, :3].astype(float), numbers, bonds, charges)


def packed(shard: Shard, origin: dict[str, Any]) -> bytes:
    """The file of a shard; `origin` says what it was made from."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=HEADER) as file:
        group = file.create_group(GROUPS[shard.part])
        group.attrs.update({"origin": json.dumps(origin, sort_keys=True), "size": shard.size})
        group["X"], group["xyz"] = shard.images[:, None], shard.xyz
        group["bonds"], group["n_bonds"] = shard.bonds, shard.n_bonds
    content = buffer.getvalue()[HEADER:]
    return _header(content) + content


def _header(content: bytes) -> bytes:
    """What HDF5 leaves to its users at the start of a file: the format and a checksum of the rest."""
    return f"{FORMAT} sha256 {hashlib.sha256(content).hexdigest()}\n".encode().ljust(HEADER, b"\0")


def read_shard(path: str | Path) -> tuple[Shard, dict[str, Any]]:
    """A shard, its checksum compared, and what it was made from.

    Raises:
        ShardError: missing, cut short, changed since it was written, or something else.
    """
    import h5py

    content = _bytes(path)
    if _header(content[HEADER:]) != content[:HEADER]:
        raise ShardError(f"{path} is damaged: it is cut short or was changed since it was written; make it again.")
    with h5py.File(io.BytesIO(content), "r") as file:
        (part,) = (part for part, name in GROUPS.items() if name in file)
        group = file[GROUPS[part]]
        lx, ly = map(float, group.attrs["size"])
        arrays = {name: group[name][()] for name in ("X", "xyz", "bonds", "n_bonds")}
        origin = json.loads(group.attrs["origin"])
    images = arrays.pop("X")[:, 0]
    return Shard(part, images, (lx, ly), **arrays), origin


def shard_length(path: str | Path) -> int:
    """How many samples a shard says it holds; nothing else is looked at, no checksum compared.

    Raises:
        ShardError: missing, damaged at the start, or something else.
    """
    import h5py

    _bytes(path, len(FORMAT))
    try:
        with h5py.File(path, "r") as file:
            return next(len(file[name]["n_bonds"]) for name in GROUPS.values() if name in file)
    except (OSError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({' '.join(str(error).split())}); make it again.") from error


def _bytes(path: str | Path, most: int = -1) -> bytes:
    """A file, or its start, that begins as a shard does."""
    try:
        with open(path, "rb") as file:
            content = file.read(most)
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({(error.strerror or 'error').lower()}).") from error
    if not content.startswith(FORMAT.encode()):
        raise ShardError(f"{path} is not a shard of samples of this version of afmol ({FORMAT}); move it away.")
    return content


# A set of shards


def origin_of(config: SetConfig) -> dict[str, Any]:
    """What the shards of a configuration are made from; places of files do not matter, what is in them does."""
    try:
        content = Path(config.molecules).read_bytes()
    except OSError as error:
        raise ConfigError(f"The molecules {config.molecules} cannot be read ({error.strerror}).") from error
    return {
        "molecules": hashlib.sha256(content).hexdigest(),
        "part": config.part,
        "data": dataclasses.asdict(config.data),
    }


class _Task(NamedTuple):
    config: SetConfig
    origin: dict[str, Any]
    k: int
    path: Path


def make(
    config: SetConfig, folder: str | Path, scheduler: str = "", workers: int | None = None
) -> Iterator[tuple[int, Path, str]]:
    """Make the shards of a configuration that are not there yet, in any order: (k, file, what was done).

    A shard that is there, whole and of this configuration, is kept; a damaged one is made again. See `workers.results`
    for scheduler and workers.

    Raises:
        ConfigError: no samples asked for, molecules or a folder that cannot be used, no space.
        MoleculeError: molecules that cannot be read.
        ShardError: a shard of another configuration, or another program's file, where one is to be written.
    """
    if config.samples < 1:
        raise ConfigError("samples must be at least 1.")
    load_molecules(config.molecules, config.part)  # a mistake is told before the workers start
    folder = make_folder(folder)
    origin = origin_of(config)
    tasks = (
        _Task(config, origin, k, (folder / f"{config.part}_{k:05d}.h5").resolve())
        for k in range(-(-config.samples // config.data.together))
    )
    yield from results(make_shard, tasks, scheduler, workers)


def make_shard(task: _Task) -> tuple[int, Path, str]:
    """Make one shard unless it is there."""
    config, origin, k, path = task
    done = "made"
    if path.exists() and path.stat().st_size:
        _bytes(path, len(FORMAT))  # another program's file is not ours to replace
        try:
            _, found = read_shard(path)
        except ShardError:
            done = "made again, it was damaged"
        else:
            if found != json.loads(json.dumps(origin | {"shard": k})):
                raise ShardError(f"{path} is a shard of another configuration; choose another folder.")
            return k, path, "kept"
    molecules = _molecules(config.molecules, config.part, origin["molecules"])
    first = k * config.data.together
    samples = [make_sample(molecules, config.data, i) for i in range(first, first + config.data.together)]
    nx, ny, _ = samples[0][0].shape
    size = (nx * config.data.pixel, ny * config.data.pixel)
    write_file(path, packed(Shard.of(samples, size, config.part), origin | {"shard": k}))
    return k, path, done


@lru_cache(maxsize=1)
def _molecules(path: str, part: Part, sha256: str) -> MoleculeSet:
    """Kept from shard to shard."""
    molecules = load_molecules(path, part)
    if hashlib.sha256(Path(path).read_bytes()).hexdigest() != sha256:
        raise ConfigError(f"The molecules {path} are others on this machine; copy the same file to all.")
    return molecules


def store(
    samples: Iterable[tuple[Scan, Molecule]], folder: str | Path, part: Part, pixel: float, slices: int, together: int
) -> Iterator[Path]:
    """Shards of other people's samples (`files.read_tar`, `files.read_hdf5_samples`): each file once it is written.

    Images are brought to a pixel size (A) and a number of slices; samples of one image size go together.

    Raises:
        ShardError: shards of this part in the folder.
        What reading the samples raises, after those before have been written.
    """
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    sources: dict[tuple[int, ...], list[str]] = {}
    numbers = itertools.count()

    def written(shape: tuple[int, ...]) -> Path:
        path = Path(folder) / f"{part}_{next(numbers):05d}.h5"
        size = (shape[0] * pixel, shape[1] * pixel)
        write_file(path, packed(Shard.of(waiting.pop(shape), size, part), {"imported": sources.pop(shape)}))
        return path

    if any(make_folder(folder).glob(f"{part}_*.h5")):
        raise ShardError(f"{folder} holds {part} shards already; choose an empty folder.")
    error, stream = None, iter(samples)
    while True:
        try:
            scan, molecule = next(stream)
        except StopIteration:
            break
        except AfmolError as problem:
            error = problem
            break
        try:
            stack, scale = resampled(scan, pixel, slices, np.inf)
        except ScanError as problem:
            error = ScanError(f"{scan.source}: {problem}")
            break
        shape, size = stack.shape, np.array(stack.shape[:2]) * pixel
        moved = dataclasses.replace(molecule, positions=molecule.positions / [*scale, 1.0])
        waiting.setdefault(shape, []).append((stack, labels(moved, np.zeros(2), size)))
        sources.setdefault(shape, []).append(scan.source)
        if len(waiting[shape]) == together:
            yield written(shape)
    for shape in list(waiting):
        yield written(shape)
    if error:
        raise error


def shard_files(folder: str | Path, part: Part | None = None) -> list[Path]:
    """The shards of a folder, in order; those of one part, of which none may be missing in between, or all.

    Raises:
        ShardError: none there, or one missing.
    """
    files = sorted(Path(folder).glob(f"{part or '*'}_*.h5"))
    if not files:
        what = "no shard" if part is None else f"no {part} shard"
        raise ShardError(f"{folder} holds {what} (.h5) of samples; afmol dataset make writes them.")
    if part is not None and files[-1].name != f"{part}_{len(files) - 1:05d}.h5":
        raise ShardError(f"{folder} lacks shards before {files[-1].name}; run afmol dataset make again.")
    return files


def some_samples(
    source: SetConfig | Path, first: int, count: int
) -> Iterator[tuple[Float[np.ndarray, "nx ny nz"], Molecule, tuple[float, float]]]:
    """Samples with the lengths of their images (A): of a folder of shards, in order, or made as a configuration says.

    Raises:
        ShardError: no shards, a damaged one, or no sample `first`. MoleculeError: molecules that cannot be read.
    """
    if isinstance(source, SetConfig):
        molecules = load_molecules(source.molecules, source.part)
        for i in range(first, first + count):
            stack, atoms = make_sample(molecules, source.data, i)
            yield stack, atoms, (stack.shape[0] * source.data.pixel, stack.shape[1] * source.data.pixel)
        return
    wanted = range(first, first + count)
    passed = 0
    for file in shard_files(source):
        length = shard_length(file)
        if passed < wanted.stop and passed + length > first:
            shard, _ = read_shard(file)
            for i, (stack, atoms) in enumerate(shard.samples(), passed):
                if i in wanted:
                    yield stack, atoms, shard.size
        passed += length
    if passed <= first:
        raise ShardError(f"{source} holds {passed} samples; there is no sample {first}.")
