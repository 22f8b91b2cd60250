"""Stored samples: the same bytes wherever and whenever they are made, and never a damaged one taken for whole."""

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from afmol.cli import main
from afmol.data.foreign import read_hdf5_samples, read_tar
from afmol.data.loader import Stored
from afmol.data.molecules import load_molecules
from afmol.data.samples import DataConfig, labels, make_sample
from afmol.data.shards import (
    FORMAT,
    HEADER,
    SetConfig,
    Shard,
    make,
    read_shard,
    shard_bytes,
    shard_files,
    shard_length,
    some_samples,
    store,
)
from afmol.errors import ConfigError, MoleculeError, ScanError, ShardError
from afmol.simulation import Grid, Tip, simulate
from afmol.structures import Sample, Scan
from strategies import (
    CORNER,
    SIZE,
    few_molecules,
    flat_ring,
    members,
    molecules,
    refused,
    row,
    same,
    theirs,
    write,
    xyz,
)

DATA = DataConfig(shard_size=4, windows=((24, 24), (24, 16)), slices=4)
"""Small and quick."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SetConfig:
    return SetConfig(few_molecules(tmp_path_factory.mktemp("molecules") / "set.npz"), samples=15, data=DATA)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory) -> Path:
    """Four shards of four samples."""
    path = tmp_path_factory.mktemp("set")
    assert [done for _, done in make(config, path, workers=0)] == ["made"] * 4
    return path


@pytest.fixture(scope="module")
def many(config, tmp_path_factory) -> dict[str, bytes]:
    """Twenty shards of four samples."""
    path = tmp_path_factory.mktemp("many")
    list(make(replace(config, samples=80), path, workers=0))
    return contents(path)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as found:
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in shard_files(folder)}


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name, content in contents(folder).items():
        (to / name).write_bytes(content)
    return to


# What is stored is what would have been made


def test_stored_samples_are_those_made_on_the_fly(config, folder):
    packed = load_molecules(config.molecules)
    stored = [sample for file in shard_files(folder) for sample in read_shard(file)[0].samples()]
    assert len(stored) == 16
    for i, (scan, atoms) in enumerate(stored):
        expected, truth = make_sample(packed, config.data, i)
        np.testing.assert_array_equal(scan.data, expected.data)
        assert scan.size == expected.size
        np.testing.assert_array_equal(atoms.positions.astype(np.float32), truth.positions.astype(np.float32))
        same(atoms, truth, 1e-6, 1e-6)
    for source in (folder, config):
        assert [len(atoms) for _, atoms in some_samples(source, 3, 7)] == [len(atoms) for _, atoms in stored[3:10]]
    with pytest.raises(ShardError, match="holds 16 samples; there is no sample 16"):
        list(some_samples(folder, 16, 1))


@given(st.lists(molecules(charged=True) | st.just(row(0, name="")), min_size=1, max_size=5), st.integers(0, 9))
def test_packing_is_undone_by_reading(atoms, seed):
    rng = np.random.default_rng(seed)
    samples = [Sample(Scan(rng.normal(size=(3, 5, 2)).astype(np.float32), (1.5, 2.5)), one) for one in atoms]
    for (scan, molecule), (back, again) in zip(samples, Shard.of(samples, "test").samples(), strict=True):
        np.testing.assert_array_equal(scan.data, back.data)
        same(again, molecule, 2e-6, 1e-7)  # 32 bit


def test_sizes_that_are_wrong_are_kept_and_shards_of_before_do_not_say(tmp_path):
    scan, known = Scan(np.ones((4, 4, 3), np.float32), (1.0, 1.0)), row(2)
    shard = Shard.of([Sample(scan, replace(known, stretch=s)) for s in (1.07, None)], "train")
    (tmp_path / "now.h5").write_bytes(shard_bytes(shard, {}))
    again, _ = read_shard(tmp_path / "now.h5")
    assert [s.molecule.stretch for s in again.samples()] == [1.07, None]

    for wrong in ([1.07, 0.0], [1.07, np.inf], [1.07]):
        (tmp_path / "wrong.h5").write_bytes(shard_bytes(shard._replace(stretch=np.array(wrong)), {}))
        with pytest.raises(ShardError, match="do not fit together"):
            read_shard(tmp_path / "wrong.h5")

    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=HEADER) as file:
        group = file.create_group("train")
        group.attrs.update({"origin": np.bytes_("{}"), "size": shard.size})
        group["X"] = shard.images[:, None]
        for name in ("xyz", "bonds", "n_bonds"):
            group[name] = getattr(shard, name)
    rest = content.getvalue()[HEADER:]
    head = f"{FORMAT} sha256 {hashlib.sha256(rest).hexdigest()}\n".encode().ljust(HEADER, b"\0")
    (tmp_path / "before.h5").write_bytes(head + rest)
    again, _ = read_shard(tmp_path / "before.h5")
    assert [s.molecule.stretch for s in again.samples()] == [None, None]


def test_scripts_for_the_original_data_can_read_it(folder):
    """The names, shapes and padding that Graph-AFM's HDF5Dataset counts on; written out, not by our reader."""
    ours, _ = read_shard(folder / "train_00000.h5")
    with h5py.File(folder / "train_00000.h5", "r") as file:
        group = file["train"]
        assert group["X"].dtype == group["xyz"].dtype == np.float32
        assert group["X"].shape == (4, 1, *ours.images.shape[1:])
        assert group["xyz"].shape[2] == 5
        for i, (scan, atoms) in enumerate(ours.samples()):
            rows = group["xyz"][i]
            rows = rows[rows[:, -1] > 0]
            np.testing.assert_array_equal(rows[:, -1], atoms.numbers)
            np.testing.assert_array_equal(rows[:, :3], atoms.positions)
            np.testing.assert_array_equal(group["X"][i, 0], scan.data)


# The same bytes whoever makes them


def test_a_cluster_makes_the_same_bytes_and_a_worker_that_is_killed_costs_nothing(config, many, cluster, tmp_path):
    done = make(replace(config, samples=80), tmp_path, scheduler=cluster.scheduler_address)
    next(done)
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
    assert len(list(done)) == 19
    assert contents(tmp_path) == many


def test_killed_as_a_whole_it_goes_on(config, many, tmp_path, capsys):
    """The command as people run it, killed with all its processes as soon as it has written something."""
    toml, out = tmp_path / "set.toml", tmp_path / "out"
    data = "shard_size = 4\nslices = 4\nwindows = [[24, 24], [24, 16]]"
    toml.write_text(f'molecules = "{config.molecules}"\nsamples = 80\n\n[data]\n{data}\n')
    command = ["dataset", "make", str(toml), "-o", str(out), "--workers"]
    start = [sys.executable, "-c", "from afmol.cli import main; main()", *command, "1"]
    process = subprocess.Popen(start, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*.h5")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(contents(out)) < 20
    main([*command, "0"])
    assert "kept" in capsys.readouterr().out
    assert contents(out) == many


# Damage


def test_whole_shards_are_kept_and_damaged_ones_made_again(config, folder, tmp_path):
    broken = copied(folder, tmp_path / "set")
    cut, flipped, gone, whole = shard_files(broken)
    cut.write_bytes(cut.read_bytes()[:-1])
    flipped.write_bytes(flip(flipped.read_bytes(), 5000))
    gone.unlink()
    again = "made again, it was damaged"
    assert dict(make(config, broken, workers=0)) == {cut: again, flipped: again, gone: "made", whole: "kept"}
    assert contents(broken) == contents(folder)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(share=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_any_flipped_bit_and_any_cut_is_found(share, cut, folder):
    content = (folder / "train_00000.h5").read_bytes()
    path = folder / "damaged.bin"
    path.write_bytes(content[: int(len(content) * share)] if cut else flip(content, int(8 * len(content) * share)))
    with pytest.raises(ShardError, match=r"damaged\.bin is (damaged|not a shard)"):
        read_shard(path)


def test_the_start_of_a_damaged_shard_does_not_say_how_long_it_is(folder, tmp_path):
    content = (folder / "train_00000.h5").read_bytes()
    assert shard_length(folder / "train_00000.h5") == 4
    (tmp_path / "cut.h5").write_bytes(content[: HEADER + 300])
    with pytest.raises(ShardError, match=r"cut\.h5 cannot be read as a shard of samples; it is damaged"):
        shard_length(tmp_path / "cut.h5")


def test_foreign_files_are_named_and_left_alone(config, tmp_path):
    foreign = tmp_path / "train_00000.h5"
    with h5py.File(foreign, "w") as file:
        file["X"] = np.zeros(3)
    before = foreign.read_bytes()
    for use in (read_shard, shard_length, lambda _: list(make(config, tmp_path, workers=0))):
        with pytest.raises(ShardError, match=r"train_00000\.h5 is not a shard of samples"):
            use(foreign)
    assert foreign.read_bytes() == before


def test_a_set_of_another_configuration_is_not_mixed_in(config, folder, tmp_path):
    mine = copied(folder, tmp_path / "set")
    for other in (replace(config, data=replace(DATA, seed=1)), replace(config, data=replace(DATA, noise=0.1))):
        with pytest.raises(ShardError, match=r"train_00000\.h5 is a shard of another configuration"):
            list(make(other, mine, workers=0))
    assert contents(mine) == contents(folder)
    # more samples of the same are no other configuration, nor does it matter where the molecules lie
    elsewhere = tmp_path / "other.npz"
    elsewhere.write_bytes(Path(config.molecules).read_bytes())
    more = replace(config, samples=20, molecules=str(elsewhere))
    assert [done for _, done in make(more, mine, workers=0)] == ["kept"] * 4 + ["made"]


def test_two_configurations_in_a_folder_are_no_set(config, folder, tmp_path, capsys):
    """Nor does the second write what the first has not written yet."""
    mine, other = copied(folder, tmp_path / "set"), replace(config, data=replace(DATA, seed=1))
    (mine / "train_00000.h5").unlink()
    with pytest.raises(ShardError, match=r"train_00001\.h5 is a shard of another configuration"):
        list(make(other, mine, workers=0))
    assert not (mine / "train_00000.h5").exists()
    list(make(replace(other, samples=4), tmp_path / "other", workers=0))
    (tmp_path / "other" / "train_00000.h5").rename(mine / "train_00000.h5")
    with pytest.raises(ShardError, match="several configurations"):
        Stored(mine, 4, DATA.pixel, DATA.slices)
    refused(capsys, ["dataset", "check", mine], "2 configurations")


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    """The 100,001st has a digit more."""
    for k in (99_999, 100_000, 2):
        (tmp_path / f"train_{k:05d}.h5").touch()
    assert [file.stem for file in shard_files(tmp_path)] == ["train_00002", "train_99999", "train_100000"]


def test_a_full_disk_leaves_no_half_shard(config, folder, tmp_path):
    """A limit on the size of files stands for the disk: the same error in the middle of the same write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"train_00000\.h5 cannot be written \(file too large\)"):
            list(make(config, tmp_path, workers=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# Samples of other groups


def test_imported_samples_lie_where_ours_would(tmp_path):
    """Theirs at 0.4 A a pixel, resampled, beside the same scene simulated here at 0.25 A a pixel."""
    scan, molecule = theirs()
    tar = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule)) for n in range(5)))
    files = list(store(read_tar(tar), tmp_path / "set", "train", 0.25, 4, 2))
    assert [shard_length(file) for file in files] == [2, 2, 1]
    shard, origin = read_shard(files[2])
    assert origin == {"imported": ["a.tar: 4"]}
    ((stored, atoms),) = shard.samples()
    assert shard.images.shape == (1, 38, 32, 4)
    assert shard.size == (9.5, 8.0)
    truth = labels(molecule, np.array(CORNER), np.array(SIZE))
    same(atoms, replace(truth, positions=truth.positions * [9.5 / 9.6, 1, 1]), 1e-4, 1e-6)
    fine = simulate(molecule, Tip(), Grid(CORNER, SIZE, (38, 32), scan.heights[[0, -1]]), parallel=False)
    for k in (0, -1):
        assert np.corrcoef(stored.data[..., k].ravel(), fine.data[..., k].ravel())[0, 1] > 0.995


def test_a_shard_is_read_as_a_set_of_the_original_layout(folder):
    """By the reader for other people's files, which knows nothing of shards."""
    shard, _ = read_shard(folder / "train_00001.h5")
    (lx, ly), half = shard.size, DATA.pixel / 2
    window = ((half, half, 0.0), (lx - half, ly - half, 0.0))
    found = list(read_hdf5_samples(folder / "train_00001.h5", "train", window))
    assert len(found) == 4
    for (scan, atoms), (stored, molecule) in zip(found, shard.samples(), strict=True):
        np.testing.assert_array_equal(scan.data, stored.data)
        np.testing.assert_allclose(scan.size, shard.size)
        np.testing.assert_array_equal(atoms.numbers, molecule.numbers)
        np.testing.assert_allclose(atoms.positions, molecule.positions, atol=1e-6)


def test_what_was_read_before_the_damage_is_kept(tmp_path):
    scan, molecule = theirs()
    tar = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule)) for n in range(4)))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(ScanError, match=r"a\.tar"):
        list(store(read_tar(tar), tmp_path / "set", "train", 0.25, 4, 2))
    assert 1 <= sum(map(shard_length, shard_files(tmp_path / "set"))) < 4


def test_an_import_does_not_replace_simulated_shards(folder, tmp_path):
    mine = copied(folder, tmp_path / "set")
    with pytest.raises(ShardError, match="holds train shards already"):
        list(store([theirs()], mine, "train", 0.25, 4, 1))
    assert contents(mine) == contents(folder)


# Mistakes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [({"samples": 0}, ConfigError, "at least 1"), ({"molecules": "nowhere.npz"}, MoleculeError, "does not exist")],
)
def test_mistakes_are_told_before_anything_is_written(config, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        list(make(replace(config, **change), tmp_path / "set", workers=0))
    assert not (tmp_path / "set").exists()


def test_folders_without_shards(config, tmp_path):
    (tmp_path / "set").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        list(make(config, tmp_path / "set", workers=0))
    with pytest.raises(ShardError, match="holds no shard"):
        shard_files(tmp_path)
    with pytest.raises(ShardError, match=r"gone\.h5 does not exist"):
        read_shard(tmp_path / "gone.h5")


def test_the_format_is_named_in_the_first_bytes():
    sample = Sample(Scan(np.ones((8, 8, 3), np.float32), (2.0, 2.0)), flat_ring())
    content = shard_bytes(Shard.of([sample], "validation"), {"a": 1})
    assert content.startswith(f"{FORMAT} sha256 ".encode())
    assert content[HEADER:].startswith(b"\x89HDF\r\n")
