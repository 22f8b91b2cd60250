"""Batches: each process its own samples, none twice, the same whoever loads them and wherever a run goes on."""

import itertools
import multiprocessing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from afmol.data.loader import Batches, Simulated, Stored, loader, varied
from afmol.data.molecules import MoleculeSet, load_molecules
from afmol.data.samples import Batch, DataConfig
from afmol.data.shards import SetConfig, make
from afmol.elements import ELEMENTS
from afmol.errors import ConfigError, ShardError
from afmol.structures import Molecule, Sample, Scan
from strategies import few_molecules

DATA = DataConfig(shard_size=4, windows=((24, 24), (24, 16)), slices=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SetConfig:
    return SetConfig(few_molecules(tmp_path_factory.mktemp("molecules") / "set.npz"), samples=20, data=DATA)


@pytest.fixture(scope="module")
def molecules(config) -> MoleculeSet:
    return load_molecules(config.molecules)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory) -> Path:
    """Five shards of four samples."""
    path = tmp_path_factory.mktemp("set")
    list(make(config, path, workers=0))
    return path


def stored(folder: Path, size: int = 2, seed: int = 0) -> Stored:
    return Stored(folder, size, DATA.pixel, DATA.slices, seed)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def kinds(batches: list[Batch]) -> list[tuple]:
    """What identifies a sample however it was turned: the sorted elements of its atoms and its brightness."""
    return [tuple(image.flatten().sort().values[::50].tolist()) for batch in batches for image in batch.images]


# --- the first epoch of a stored set is what would have been simulated


def test_stored_and_simulated_batches_are_identical(molecules, folder):
    simulated, read = Simulated(molecules, DATA, 2), stored(folder)
    assert all(equal(simulated.batch(q), read.batch(q)) for q in range(10))


def test_workers_change_nothing(molecules, folder):
    for source in (Simulated(molecules, DATA, 2), stored(folder)):
        alone = list(loader(Batches(source, 25), workers=0))
        assert len(alone) == 25
        assert all(equal(a, b) for a, b in zip(alone, loader(Batches(source, 25), workers=2), strict=True))


# --- every rank has its own, nothing is repeated, a run goes on where it was


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_what_one_would_have_seen(molecules, folder, world):
    for source in (Simulated(molecules, DATA, 2), stored(folder)):
        alone = list(loader(Batches(source, 6 * world), workers=0))
        ranks = [list(loader(Batches(source, 6, rank, world), workers=0)) for rank in range(world)]
        assert all(equal(a, b) for a, b in zip(alone, itertools.chain(*zip(*ranks, strict=True)), strict=True))


def test_a_run_goes_on_in_the_middle_of_an_epoch(folder):
    whole = list(loader(Batches(stored(folder), 15, 1, 2), workers=0))
    for start, workers in ((1, 0), (7, 1), (13, 0)):
        later = loader(Batches(stored(folder), 15, 1, 2), start, workers)
        assert all(equal(a, b) for a, b in zip(whole[start:], later, strict=True))


def test_no_sample_is_repeated_within_an_epoch(molecules, folder):
    assert len(set(kinds([Simulated(molecules, DATA, 2).batch(q) for q in range(10)]))) == 20
    assert len(set(kinds([stored(folder).batch(q) for q in range(10)]))) == 20


@pytest.fixture
def unvaried(monkeypatch):
    monkeypatch.setattr("afmol.data.loader.varied", lambda samples, rng: samples)


def test_epochs_shuffle_and_leave_none_out(folder, unvaried):
    source = stored(folder)
    first = kinds([source.batch(q) for q in range(10)])
    second = kinds([source.batch(q) for q in range(10, 20)])
    assert sorted(first) == sorted(second)
    assert first != second
    assert kinds([stored(folder, seed=1).batch(q) for q in range(10, 20)]) != second


def test_what_does_not_fill_a_batch_changes_from_epoch_to_epoch(folder, unvaried):
    source = stored(folder, 3)
    assert source.batches == [1] * 5
    seen = [set(kinds([source.batch(5 * epoch + b) for b in range(5)])) for epoch in range(8)]
    assert all(len(epoch) == 15 for epoch in seen)
    assert len(set().union(*seen)) == 20


def _rank(rank: int, world: int, folder: str, port: int, results) -> None:
    """One of several processes that train together."""
    where = {"init_method": f"tcp://127.0.0.1:{port}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **where)
    source = Stored(folder, 2, DATA.pixel, DATA.slices)
    sums = []
    for batch in loader(Batches(source, 12, rank, world), workers=0):
        total = batch.images.double().sum()
        dist.all_reduce(total)  # hangs if one of them has fewer batches
        sums.append(float(total))
    results.put((rank, sums))
    dist.destroy_process_group()


def test_processes_that_train_together_keep_step(folder):
    """This process and another, by gloo; 12 steps of two ranks through 10 batches: epochs end within a step."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = 20000 + np.random.default_rng().integers(20000)
    other = context.Process(target=_rank, args=(1, 2, str(folder), int(port), results))
    other.start()
    _rank(0, 2, str(folder), int(port), results)
    found = dict(results.get(timeout=90) for _ in range(2))
    other.join(30)
    assert found.keys() == {0, 1}
    source = stored(folder)
    expected = [float(sum(source.batch(2 * s + r).images.double().sum() for r in range(2))) for s in range(12)]
    for sums in found.values():
        np.testing.assert_allclose(sums, expected, rtol=1e-12)


# --- variations of the later epochs


def blank(positions: np.ndarray) -> Sample:
    """Carbon atoms on an image that shows nothing."""
    atoms = Molecule(positions, np.full(len(positions), 6), np.zeros((0, 2), int))
    return Sample(Scan(np.zeros((24, 16, 2), np.float32), (6.0, 4.0)), atoms)


def test_variations_keep_atoms_on_their_image():
    """A bright atom on a dark ground, followed through turns, mirrors and crops."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        i, j = rng.integers([24, 16])
        sample = blank(np.array([[(i + 0.5) * DATA.pixel, (j + 0.5) * DATA.pixel, 0.0]]))
        sample.scan.data[i, j] = 1
        ((scan, found),) = varied([sample], np.random.default_rng(seed))
        image = scan.data
        assert image.shape in {(24 - 6, 16 - 4, 2), (16 - 4, 24 - 6, 2)}  # SHIFT is more than a quarter of this one
        assert scan.pixel == pytest.approx((DATA.pixel, DATA.pixel))
        assert len(found) == int(image.max())
        if len(found):
            x, y, _ = np.unravel_index(image.argmax(), image.shape)
            np.testing.assert_allclose(found.positions[0, :2], (np.array([x, y]) + 0.5) * DATA.pixel)


def test_a_crop_keeps_every_label():
    """Labels of the crop are those of the whole molecule in the smaller window: the topmost atom stays."""
    rng = np.random.default_rng(1)
    for seed in range(40):
        n = int(rng.integers(1, 12))
        p = np.column_stack([rng.uniform(0.01, 5.99, n), rng.uniform(0.01, 3.99, n), rng.uniform(-1.8, 0, n)])
        p[0, 2] = 0
        ((_, found),) = varied([blank(p)], np.random.default_rng(seed))
        assert found.positions[:, 2].max() == 0
        assert set(found.positions[:, 2]) <= set(p[:, 2])
    for corner in ((0.0, 0.0), (6.0, 4.0), (6.0, 0.0)):  # on an edge, as rounding may have it
        for seed in range(8):
            varied([blank(np.array([[*corner, 0.0]]))], np.random.default_rng(seed))


def test_later_epochs_vary(folder):
    source = stored(folder)
    batches = [source.batch(q) for q in range(10, 60)]
    assert {tuple(b.images.shape[2:]) for b in batches} == {(18, 18), (18, 12), (12, 18)}
    assert all((b.elements < len(ELEMENTS)).all() for b in batches)
    assert all((b.positions[:, :2] >= 0).all() and b.positions[:, :2].max() < 24 * DATA.pixel for b in batches)


# --- mistakes


def test_a_batch_size_that_would_mix_image_sizes(molecules):
    with pytest.raises(ConfigError, match=r"data\.shard_size \(4\) must be a multiple of the batch size \(3\)"):
        Simulated(molecules, DATA, 3)


def test_mistakes_with_stored_samples(folder, tmp_path):
    with pytest.raises(ShardError, match="holds no train shard"):
        stored(tmp_path)
    with pytest.raises(ShardError, match=r"No shard in .* holds the 5 samples of a batch"):
        stored(folder, 5)
    with pytest.raises(ShardError, match=r"4 slices and pixels of 0\.25 x 0\.25 A, not 10 and 0\.25"):
        Stored(folder, 2, 0.25, 10).batch(0)
    content = bytearray((folder / "train_00003.h5").read_bytes())
    content[-100] ^= 1
    (tmp_path / "train_00003.h5").write_bytes(content)
    with pytest.raises(ShardError, match=r"lacks shards before train_00003\.h5"):
        stored(tmp_path)
    (tmp_path / "train_00003.h5").rename(tmp_path / "train_00000.h5")
    for workers in (0, 1):  # one sentence, from another process too
        with pytest.raises(ShardError, match=r"^\S*train_00000\.h5 is damaged[^\n]*$"):
            list(loader(Batches(stored(tmp_path), 1), workers=workers))


def test_parts_are_not_mixed(config, folder, tmp_path):
    list(make(replace(config, samples=4), tmp_path, workers=0))
    list(make(replace(config, samples=8, part="test"), tmp_path, workers=0))
    assert [file.name for file in stored(tmp_path).files] == ["train_00000.h5"]
