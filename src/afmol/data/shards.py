"""Stored samples: a folder of HDF5 shards, each written whole or not at all, each saying what it was made from.

Shard k of a configuration holds its samples k * shard_size ... (k + 1) * shard_size - 1 and is a function of
(configuration, set of molecules, k) alone: it does not matter which machine makes it, or when. docs/samples.md lists
what is in the file, which the scripts of Graph-AFM read as well (Oinonen et al., MRS Bulletin 2022).
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import AfmolError, ConfigError, ScanError, ShardError
from ..files import attribute, check_dataset, dataset_array, in_order, make_folder, opened_h5, reading, write_file
from ..limits import check_claim
from ..resampling import resampled
from ..structures import Molecule, Sample, Scan
from .molecules import MoleculeSet, Part, load_molecules
from .samples import DataConfig, labels, make_sample, stored_form
from .workers import FileTask, make_file, results

FORMAT = "afmol-shard/2"
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
    """Rounded up to whole shards of `data.shard_size`."""
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
    stretch: Float[np.ndarray, " n"]
    """Stated size of each image over the true one; NaN: unknown."""

    @classmethod
    def of(cls, samples: Sequence[Sample], part: str) -> "Shard":
        """Pack samples of one image size."""
        atoms = [sample.molecule for sample in samples]
        xyz = np.zeros((len(samples), max(1, *(len(m) for m in atoms)), 5), np.float32)
        for row, m in zip(xyz, atoms, strict=True):
            charges = np.zeros(len(m)) if m.charges is None else m.charges
            row[: len(m)] = np.column_stack([m.positions, charges, m.numbers])
        return cls(
            part,
            np.stack([sample.scan.data for sample in samples]).astype(np.float32),
            samples[0].scan.size,
            xyz,
            np.concatenate([m.bonds for m in atoms]).astype(np.int32),
            np.array([len(m.bonds) for m in atoms], np.int32),
            np.array([m.stretch or np.nan for m in atoms]),
        )

    def samples(self, chosen: Iterable[int] | None = None) -> Iterator[Sample]:
        """Unpack the samples at the chosen places, or all."""
        ends = np.cumsum(self.n_bonds)
        for i in range(len(self.images)) if chosen is None else chosen:
            rows = self.xyz[i][self.xyz[i, :, 4] > 0]
            bonds = self.bonds[ends[i] - self.n_bonds[i] : ends[i]].astype(np.int64)
            numbers, charges = rows[:, 4].astype(np.int64), rows[:, 3].astype(float)
            stretch = None if np.isnan(self.stretch[i]) else float(self.stretch[i])
            molecule = Molecule(rows[:, :3].astype(float), numbers, bonds, charges, stretch=stretch)
            yield Sample(Scan(self.images[i], self.size), molecule)


def shard_bytes(shard: Shard, origin: dict[str, Any]) -> bytes:
    """The file of a shard; `origin` says what it was made from."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=HEADER) as file:
        group = file.create_group(GROUPS[shard.part])
        group.attrs.update({"origin": np.bytes_(json.dumps(origin, sort_keys=True)), "size": shard.size})
        group["X"], group["xyz"] = shard.images[:, None], shard.xyz
        group["bonds"], group["n_bonds"], group["stretch"] = shard.bonds, shard.n_bonds, shard.stretch
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
    content, where = _bytes(path), f"{path}: "
    if _header(content[HEADER:]) != content[:HEADER]:
        raise ShardError(f"{path} is damaged: it is cut short or was changed since it was written; make it again.")
    with (
        reading(path, "a shard of samples", ShardError),
        opened_h5(io.BytesIO(content), where, ShardError) as file,
    ):
        (part,) = (part for part, name in GROUPS.items() if name in file)
        group = file[GROUPS[part]]
        lx, ly = map(float, attribute(group, "size", where, ShardError))
        origin = json.loads(attribute(group, "origin", where, ShardError))
        arrays = {name: dataset_array(group[name], where, ShardError) for name in ("X", "xyz", "bonds", "n_bonds")}
        unknown = np.full(arrays["n_bonds"].shape, np.nan)  # of shards of before
        arrays["stretch"] = dataset_array(group["stretch"], where, ShardError) if "stretch" in group else unknown
        if not _fit_together(**arrays) or not isinstance(origin, dict):
            raise ShardError(f"{path} is damaged: its arrays do not fit together; make it again.")
    images = arrays.pop("X")[:, 0]
    return Shard(part, images, (lx, ly), **arrays), origin


def _fit_together(X: np.ndarray, xyz: np.ndarray, bonds: np.ndarray, n_bonds: np.ndarray, stretch: np.ndarray) -> bool:
    """Whether the arrays of a shard are of its layout (docs/samples.md)."""
    if (X.ndim, xyz.ndim, bonds.ndim, n_bonds.ndim, stretch.ndim) != (5, 3, 2, 1, 1):
        return False
    kinds = "".join(array.dtype.kind for array in (X, xyz, bonds, n_bonds, stretch))
    if kinds != "ffiif":
        return False
    n, m = len(n_bonds), len(bonds)
    shapes = X.shape[:2] == (n, 1) and xyz.shape == (n, xyz.shape[1], 5) and bonds.shape == (m, 2)
    sizes = len(stretch) == n and not ((stretch <= 0) | np.isinf(stretch)).any()
    return shapes and sizes and bool((n_bonds >= 0).all()) and int(n_bonds.sum()) == m


def checksum(paths: Iterable[str | Path]) -> str:
    """SHA-256 of what shards say of their contents; ShardError as of `shard_length`."""
    return hashlib.sha256(b"".join(_bytes(path, HEADER) for path in paths)).hexdigest()


def shard_length(path: str | Path) -> int:
    """How many samples a shard says it holds; no checksum is compared, and `opened_h5` alone looks at the rest.

    Raises:
        ShardError: missing, damaged at the start, or something else.
    """
    _bytes(path, len(FORMAT))
    with reading(path, "a shard of samples", ShardError), opened_h5(path, f"{path}: ", ShardError) as file:
        counts = next(file[name]["n_bonds"] for name in GROUPS.values() if name in file)
        check_dataset(counts, f"{path}: ", ShardError)
        return len(counts)


def _bytes(path: str | Path, most: int = -1) -> bytes:
    """A file, or its start, that begins as a shard does."""
    with reading(path, "a shard of samples", ShardError), open(path, "rb") as file:
        if most < 0:
            check_claim(Path(path).stat().st_size, str(path), ShardError)
        content = file.read(most)
    if not content.startswith(FORMAT.encode()):
        raise ShardError(f"{path} is not a shard of samples of this version of afmol ({FORMAT}); move it away.")
    return content


# A set of shards


def origin_of(config: SetConfig) -> dict[str, Any]:
    """What the shards of a configuration are made from; places of files do not matter, what is in them does."""
    with reading(config.molecules, "a set of molecules", ConfigError):
        sha256 = hashlib.sha256(Path(config.molecules).read_bytes()).hexdigest()
    return {"molecules": sha256, "part": config.part, "data": stored_form(config.data)}


def make(
    config: SetConfig, folder: str | Path, scheduler: str = "", workers: int | None = None
) -> Iterator[tuple[Path, str]]:
    """Make the shards of a configuration that are not there yet, in any order: which file, and what was done.

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
    mine = json.dumps(origin, sort_keys=True)
    for file in in_order(folder.glob(f"{config.part}_*.h5")):  # before one is written: two sets in a folder are none
        try:
            other = shard_origin(file) != mine
        except ShardError:  # damaged: it is made again
            continue
        if other:
            raise ShardError(f"{file} is a shard of another configuration; choose another folder.")

    def task(k: int) -> FileTask:
        path, made_from = (folder / f"{config.part}_{k:05d}.h5").resolve(), origin | {"shard": k}
        return FileTask(path, partial(_made_shard, config, made_from), partial(_is_shard_of, path, made_from))

    yield from results(make_file, map(task, range(-(-config.samples // config.data.shard_size))), scheduler, workers)


def shard_origin(path: str | Path) -> str:
    """`set_origin` of a file; ShardError as of `shard_length`."""
    _bytes(path, len(FORMAT))
    where = f"{path}: "
    with reading(path, "a shard of samples", ShardError), opened_h5(path, where, ShardError) as file:
        group = next(file[name] for name in GROUPS.values() if name in file)
        return set_origin(json.loads(attribute(group, "origin", where, ShardError)))


def set_origin(origin: dict[str, Any]) -> str:
    """What the whole set of a shard was made from, as JSON; empty: it was imported."""
    return "" if "imported" in origin else json.dumps({k: v for k, v in origin.items() if k != "shard"}, sort_keys=True)


def _made_shard(config: SetConfig, origin: dict[str, Any]) -> bytes:
    molecules = _molecules(config.molecules, config.part, origin["molecules"])
    first = origin["shard"] * config.data.shard_size
    samples = [make_sample(molecules, config.data, i) for i in range(first, first + config.data.shard_size)]
    return shard_bytes(Shard.of(samples, config.part), origin)


def _is_shard_of(path: Path, origin: dict[str, Any]) -> bool:
    """Whether a file is a whole shard; ShardError if it is another program's or of another configuration."""
    _bytes(path, len(FORMAT))
    try:
        _, found = read_shard(path)
    except ShardError:
        return False
    if found != json.loads(json.dumps(origin)):
        raise ShardError(f"{path} is a shard of another configuration; choose another folder.")
    return True


@lru_cache(maxsize=1)
def _molecules(path: str, part: Part, sha256: str) -> MoleculeSet:
    """Kept from shard to shard."""
    molecules = load_molecules(path, part)
    if hashlib.sha256(Path(path).read_bytes()).hexdigest() != sha256:
        raise ConfigError(f"The molecules {path} are others on this machine; copy the same file to all.")
    return molecules


def store(
    samples: Iterable[Sample], folder: str | Path, part: Part, pixel: float, slices: int, shard_size: int
) -> Iterator[Path]:
    """Shards of other people's samples (`foreign.read_tar`, `foreign.read_hdf5_samples`): each file once it is written.

    Images are brought to a pixel size (A) and a number of slices; samples of one image size go together.

    Raises:
        ShardError: shards of this part in the folder.
        What reading the samples raises, after those before have been written.
    """
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    numbers = itertools.count()

    def written(together: list[Sample]) -> Path:
        path = Path(folder) / f"{part}_{next(numbers):05d}.h5"
        write_file(path, shard_bytes(Shard.of(together, part), {"imported": [s.scan.source for s in together]}))
        return path

    if any(make_folder(folder).glob(f"{part}_*.h5")):
        raise ShardError(f"{folder} holds {part} shards already; choose an empty folder.")
    error, stream = None, iter(samples)
    while error is None:
        try:
            sample = _resampled(next(stream), pixel, slices)
        except StopIteration:
            break
        except AfmolError as problem:
            error = problem
            continue
        shape = sample.scan.data.shape
        waiting.setdefault(shape, []).append(sample)
        if len(waiting[shape]) == shard_size:
            yield written(waiting.pop(shape))
    yield from map(written, waiting.values())
    if error:
        raise error


def _resampled(sample: Sample, pixel: float, slices: int) -> Sample:
    """A sample as it is stored, its labels cut at the edge of the image and in depth."""
    scan, molecule = sample
    try:
        stack, scale = resampled(scan, pixel, slices, np.inf)
    except ScanError as problem:
        raise ScanError(f"{scan.source}: {problem}") from problem
    size = (stack.shape[0] * pixel, stack.shape[1] * pixel)
    moved = replace(molecule, positions=molecule.positions / [*scale, 1.0])
    return Sample(Scan(stack, size, source=scan.source), labels(moved, np.zeros(2), np.array(size)))


def shard_files(folder: str | Path, part: Part | None = None) -> list[Path]:
    """The shards of a folder, in order; those of one part, of which none may be missing in between, or all.

    Raises:
        ShardError: none there, or one missing.
    """
    files = in_order(Path(folder).glob(f"{part or '*'}_*.h5"))
    if not files:
        what = "no shard" if part is None else f"no {part} shard"
        raise ShardError(f"{folder} holds {what} (.h5) of samples; afmol dataset make writes them.")
    if part is not None and files[-1].name != f"{part}_{len(files) - 1:05d}.h5":
        raise ShardError(f"{folder} lacks shards before {files[-1].name}; run afmol dataset make again.")
    return files


def some_samples(source: SetConfig | Path, first: int, count: int) -> Iterator[Sample]:
    """Samples of a folder of shards, in order, or made as a configuration says.

    Raises:
        ShardError: no shards, a damaged one, or no sample `first`. MoleculeError: molecules that cannot be read.
    """
    if isinstance(source, SetConfig):
        molecules = load_molecules(source.molecules, source.part)
        yield from (make_sample(molecules, source.data, i) for i in range(first, first + count))
        return
    passed = 0
    for file in shard_files(source):
        length = shard_length(file)
        if first < passed + length and passed < first + count:
            here = range(max(0, first - passed), min(length, first + count - passed))
            yield from read_shard(file)[0].samples(here)
        passed += length
    if passed <= first:
        raise ShardError(f"{source} holds {passed} samples; there is no sample {first}.")
