"""Batches for training, made or read by other processes while this one works.

A batch is a function of its number q. Of `world` processes that train together, step s of process `rank` gets batch
q = s world + rank: no two see the same sample, none waits for another, and a run that goes on at step s sees what it
would have seen. Map-style and counted in steps, since data sets that end unevenly hang processes that train together.
"""

import signal
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import AfmolError, ConfigError, ShardError
from ..structures import Molecule, Sample
from .molecules import MoleculeSet
from .samples import Batch, DataConfig, collate, cropped, make_sample, mirrored, stored_form, turned
from .shards import Shard, checksum, read_shard, shard_files, shard_length, shard_origin
from .workers import die_with_parent

SHIFT = 8
"""From the second epoch on stored images lose this many pixels a side, at random left or right, below or above."""
AHEAD = 4
"""Batches that each worker holds ready."""


class Simulated:
    """Samples made on the fly: batch q holds the samples q size ... (q + 1) size - 1 of the configuration.

    Raises:
        ConfigError: a batch size that does not divide `shard_size`, so that a batch would mix image sizes.
    """

    def __init__(self, molecules: MoleculeSet, data: DataConfig, size: int) -> None:
        if data.shard_size % size:
            raise ConfigError(f"data.shard_size ({data.shard_size}) must be a multiple of the batch size ({size}).")
        self.molecules, self.data, self.size = molecules, data, size
        self.origin = {"batch_size": size, "molecules": molecules.sha256, "data": stored_form(data)}

    def batch(self, q: int) -> Batch:
        """Batch q."""
        return collate([make_sample(self.molecules, self.data, i) for i in range(q * self.size, (q + 1) * self.size)])


class Stored:
    """Samples of the training shards of a folder, epoch after epoch.

    In the first epoch they come in their order, as `Simulated` would make them. In later ones shards and the samples
    in each are shuffled, and each image is turned, mirrored and cropped at random. A batch comes from one shard; the
    samples that do not fill one are left out, others in each epoch.

    Args:
        folder: of shards.
        size: samples of a batch.
        pixel, slices: what the images must have, A.
        seed: of the order and the variations of the later epochs.

    Raises:
        ShardError: no shard, none that fills a batch, shards of two configurations; a damaged one, or one of other
            images, when its turn comes.
    """

    def __init__(self, folder: str | Path, size: int, pixel: float, slices: int, seed: int = 0) -> None:
        self.files, self.size, self.seed = shard_files(folder, "train"), size, seed
        self.pixel, self.slices = pixel, slices
        self.batches = [shard_length(file) // size for file in self.files]
        if len({*map(shard_origin, self.files)}) > 1:
            raise ShardError(f"{folder} holds shards of several configurations; give each a folder of its own.")
        if not sum(self.batches):
            raise ShardError(f"No shard in {folder} holds the {size} samples of a batch.")
        self.origin = {"batch_size": size, "stored": checksum(self.files), "seed": seed}

    def batch(self, q: int) -> Batch:
        """Batch q; q may go through any number of epochs."""
        epoch, place = divmod(q, sum(self.batches))
        order = range(len(self.files))
        if epoch:
            order = np.random.default_rng((self.seed, 3, epoch)).permutation(len(self.files)).tolist()
        ends = list(accumulate(self.batches[k] for k in order))
        passed = bisect_right(ends, place)  # how many shards of this epoch are read to their end
        k, b = order[passed], place - (ends[passed - 1] if passed else 0)
        shard = self._shard(self.files[k])
        places = range(len(shard.images))
        if epoch:
            places = np.random.default_rng((self.seed, 4, epoch, k)).permutation(len(places)).tolist()
        samples = list(shard.samples(places[b * self.size : (b + 1) * self.size]))
        return collate(varied(samples, np.random.default_rng((self.seed, 5, q))) if epoch else samples)

    def _shard(self, file: Path) -> Shard:
        shard = _kept_shard(file)
        _, nx, ny, slices = shard.images.shape
        if slices != self.slices or not np.allclose(np.divide(shard.size, (nx, ny)), self.pixel, rtol=1e-3):
            pixels = f"{shard.size[0] / nx:.3g} x {shard.size[1] / ny:.3g} A"
            wanted = f"not {self.slices} and {self.pixel:g} A"
            raise ShardError(f"{file} holds images of {slices} slices and pixels of {pixels}, {wanted}.")
        return shard


@runtime_checkable
class Source(Protocol):
    """What has a batch q, a named tuple of tensors, for any q from 0 on."""

    size: int
    """Samples of a batch."""
    origin: dict[str, Any]
    """What decides which samples a batch holds: a run goes on only where it is the same."""

    def batch(self, q: int) -> Any:
        """Batch q."""
        ...


@lru_cache(maxsize=2)
def _kept_shard(file: Path) -> Shard:
    """Kept from batch to batch, in each process."""
    return read_shard(file)[0]


def varied(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """The samples of a batch turned by quarter turns, mirrored, and cropped by SHIFT pixels, labels and all.

    All by an even or all by an odd number of quarter turns: a batch has one shape.
    """
    odd = int(rng.integers(2))
    found = []
    for sample in samples:
        here = mirrored(sample) if rng.integers(2) else sample
        here = turned(here, odd + 2 * int(rng.integers(2)))
        nx, ny, _ = here.scan.data.shape
        spare = (min(SHIFT, nx // 4), min(SHIFT, ny // 4))
        x, y = (
            _crop_start(here.molecule, axis, rng, lost, n, length / n)
            for axis, (lost, n, length) in enumerate(zip(spare, (nx, ny), here.scan.size, strict=True))
        )
        found.append(cropped(here, (x, y), (nx - spare[0], ny - spare[1])))
    return found


def _crop_start(molecule: Molecule, axis: int, rng: np.random.Generator, lost: int, n: int, pixel: float) -> int:
    """Where a crop begins that keeps the topmost atom: without it atoms further down would have to be labelled."""
    low, high = 0, lost
    if len(molecule):
        place = molecule.positions[molecule.positions[:, 2].argmax(), axis] / pixel
        top = min(int(place), n - 1)  # an atom on the upper edge, by rounding
        low, high = max(0, top - (n - lost) + 1), min(lost, top)
    return int(rng.integers(low, high + 1))


class Batches(Dataset[Any]):
    """The batch of each step, as one of `world` processes that train together sees it.

    A mistake of the user is returned: torch would wrap it in the traceback of a worker.
    """

    def __init__(self, source: Source, steps: int, rank: int = 0, world: int = 1) -> None:
        self.source, self.steps, self.rank, self.world = source, steps, rank, world

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Any:
        try:
            return self.source.batch(index * self.world + self.rank)
        except AfmolError as error:
            return error


def _begin(_: int) -> None:
    """In each worker: it ends with its parent, which alone hears Ctrl-C."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(batches: Batches, start: int = 0, workers: int = 2) -> Iterator[Any]:
    """The batches of the steps from `start` on, by `workers` processes, AHEAD each; 0: between the steps.

    Raises:
        AfmolError: what the source raises, at its step.
    """
    stream = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin,
    )
    for batch in stream:
        if isinstance(batch, AfmolError):
            raise batch
        yield batch
