"""Stored samples: the same bytes wherever and whenever they are made, and never a damaged one taken for whole."""

import io
import os
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

from afmol.data.foreign import read_hdf5_samples, read_tar
from afmol.data.molecules import load_molecules, pack_molecules
from afmol.data.samples import DataConfig, labels, make_sample
from afmol.data.shards import (
    FORMAT,
    HEADER,
    SetConfig,
    Shard,
    make,
    packed,
    read_shard,
    shard_files,
    shard_length,
    store,
)
from afmol.errors import ConfigError, MoleculeError, ScanError, ShardError
from afmol.simulation import Grid, Tip, simulate, standard_heights
from afmol.structures import Molecule, Scan
from test_foreign import members, write, xyz
from test_samples import chain, flat_ring, lamp

DATA = DataConfig(together=4, windows=((24, 24), (24, 16)), slices=4)
"""Small and quick."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SetConfig:
    path = tmp_path_factory.mktemp("molecules") / "set.npz"
    pack_molecules([flat_ring(), lamp(), chain(), flat_ring(5, 16)], path)
    return SetConfig(str(path), samples=15, data=DATA)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory) -> Path:
    """Four shards of four samples."""
    path = tmp_path_factory.mktemp("set")
    assert [done for _, _, done in make(config, path, workers=0)] == ["made"] * 4
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in shard_files(folder)}


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name, content in contents(folder).items():
        (to / name).write_bytes(content)
    return to


# --- what is stored is what would have been made


def test_stored_samples_are_those_made_on_the_fly(config, folder):
    molecules = load_molecules(config.molecules)
    stored = [sample for file in shard_files(folder) for sample in read_shard(file)[0].samples()]
    assert len(stored) == 16
    for i, (stack, atoms) in enumerate(stored):
        expected, truth = make_sample(molecules, config.data, i)
        np.testing.assert_array_equal(stack, expected)
        np.testing.assert_array_equal(atoms.positions.astype(np.float32), truth.positions.astype(np.float32))
        np.testing.assert_array_equal(atoms.numbers, truth.numbers)
        np.testing.assert_array_equal(atoms.bonds, truth.bonds)
        np.testing.assert_allclose(atoms.charges, truth.charges, atol=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 9))
def test_packing_is_undone_by_reading(sizes, seed):
    rng = np.random.default_rng(seed)
    samples = []
    for n in sizes:
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < 0.5]
        atoms = Molecule(
            rng.normal(size=(n, 3)).astype(np.float32).astype(float),
            rng.choice([1, 6, 7, 35], n),
            np.array(pairs, int).reshape(-1, 2),
            rng.normal(size=n).astype(np.float32).astype(float),
        )
        samples.append((rng.normal(size=(3, 5, 2)).astype(np.float32), atoms))
    back = list(Shard.of(samples, (1.5, 2.5), "test").samples())
    for (stack, atoms), (stack_b, atoms_b) in zip(samples, back, strict=True):
        np.testing.assert_array_equal(stack, stack_b)
        for name in ("positions", "numbers", "bonds", "charges"):
            np.testing.assert_array_equal(getattr(atoms, name), getattr(atoms_b, name))


def test_scripts_for_the_original_data_can_read_it(folder):
    """The names, shapes and padding that Graph-AFM's HDF5Dataset counts on; written out, not by our reader."""
    ours, _ = read_shard(folder / "train_00000.h5")
    with h5py.File(folder / "train_00000.h5", "r") as file:
        group = file["train"]
        assert group["X"].dtype == group["xyz"].dtype == np.float32
        assert group["X"].shape == (4, 1, *ours.images.shape[1:])
        assert group["xyz"].shape[2] == 5
        for i, (stack, atoms) in enumerate(ours.samples()):
            xyz = group["xyz"][i]
            xyz = xyz[xyz[:, -1] > 0]
            np.testing.assert_array_equal(xyz[:, -1], atoms.numbers)
            np.testing.assert_array_equal(xyz[:, :3], atoms.positions)
            np.testing.assert_array_equal(group["X"][i, 0], stack)


# --- the same bytes whoever makes them


def test_processes_and_machines_make_the_same_bytes(config, folder, tmp_path):
    list(make(config, tmp_path / "two", workers=2))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        list(make(config, tmp_path / "cluster", scheduler=cluster.scheduler_address))
    assert contents(tmp_path / "two") == contents(tmp_path / "cluster") == contents(folder)


def test_a_worker_that_is_killed_costs_nothing(config, tmp_path):
    larger = replace(config, samples=240)
    list(make(larger, tmp_path / "quiet", workers=0))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        done = make(larger, tmp_path / "killed", scheduler=cluster.scheduler_address)
        next(done)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        assert len(list(done)) == 59
    assert contents(tmp_path / "killed") == contents(tmp_path / "quiet")


def test_killed_as_a_whole_it_goes_on(config, tmp_path):
    """The command as people run it, killed with all its processes as soon as it has written something."""
    toml = tmp_path / "set.toml"
    data = "together = 4\nslices = 4\nwindows = [[24, 24], [24, 16]]"
    toml.write_text(f'molecules = "{config.molecules}"\nsamples = 600\n\n[data]\n{data}\n')
    out = tmp_path / "out"
    main = "from afmol.cli import main; main()"
    command = [sys.executable, "-c", main, "dataset", "make", str(toml), "-o", str(out), "--workers", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    while process.poll() is None and not list(out.glob("*.h5")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = contents(out)
    assert 0 < len(before) < 150
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "kept" in result.stdout
    list(make(replace(config, samples=600), tmp_path / "quiet", workers=0))
    assert contents(out) == contents(tmp_path / "quiet")


def test_ctrl_c_is_one_sentence_whoever_hears_it(config, tmp_path):
    """As a terminal sends it: to the command and all its processes."""
    toml = tmp_path / "set.toml"
    toml.write_text(f'molecules = "{config.molecules}"\nsamples = 4000\n\n[data]\ntogether = 4\nslices = 4\n')
    command = [sys.executable, "-c", "from afmol.cli import main; main()", "dataset", "make", str(toml)]
    command += ["-o", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "out").glob("*.h5")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "afmol: stopped; the same command goes on where it was."
    assert "Traceback" not in told


# --- damage


def test_whole_shards_are_kept_and_damaged_ones_made_again(config, folder, tmp_path):
    broken = copied(folder, tmp_path / "set")
    cut, flipped, gone = broken / "train_00000.h5", broken / "train_00001.h5", broken / "train_00002.h5"
    cut.write_bytes(cut.read_bytes()[:-1])
    flipped.write_bytes(flip(flipped.read_bytes(), 5000))
    gone.unlink()
    done = {k: what for k, _, what in make(config, broken, workers=0)}
    assert done == {0: "made again, it was damaged", 1: "made again, it was damaged", 2: "made", 3: "kept"}
    assert contents(broken) == contents(folder)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_flipped_bit_is_found(share, folder):
    content = (folder / "train_00000.h5").read_bytes()
    path = folder / "flipped.bin"
    path.write_bytes(flip(content, int(8 * len(content) * share)))
    with pytest.raises(ShardError, match=r"flipped\.bin is (damaged|not a shard)"):
        read_shard(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_found(share, folder):
    content = (folder / "train_00000.h5").read_bytes()
    path = folder / "cut.bin"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ShardError, match=r"cut\.bin is (damaged|not a shard)"):
        read_shard(path)


def test_the_start_of_a_damaged_shard_does_not_say_how_long_it_is(folder, tmp_path):
    content = (folder / "train_00000.h5").read_bytes()
    assert shard_length(folder / "train_00000.h5") == 4
    (tmp_path / "cut.h5").write_bytes(content[: HEADER + 300])
    with pytest.raises(ShardError, match=r"cut\.h5 is damaged"):
        shard_length(tmp_path / "cut.h5")


def test_foreign_files_are_named_and_left_alone(config, folder, tmp_path):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["X"] = np.zeros(3)
    foreign = tmp_path / "train_00000.h5"
    foreign.write_bytes(buffer.getvalue())
    for use in (read_shard, shard_length):
        with pytest.raises(ShardError, match=r"train_00000\.h5 is not a shard of samples"):
            use(foreign)
    with pytest.raises(ShardError, match=r"train_00000\.h5 is not a shard of samples"):
        list(make(config, tmp_path, workers=0))
    assert foreign.read_bytes() == buffer.getvalue()


def test_a_set_of_another_configuration_is_not_mixed_in(config, folder, tmp_path):
    mine = copied(folder, tmp_path / "set")
    before = contents(mine)
    for other in (replace(config, data=replace(DATA, seed=1)), replace(config, data=replace(DATA, noise=0.1))):
        with pytest.raises(ShardError, match=r"train_00000\.h5 is a shard of another configuration"):
            list(make(other, mine, workers=0))
    assert contents(mine) == before
    # more samples of the same are no other configuration
    assert [done for *_, done in make(replace(config, samples=20), mine, workers=0)] == ["kept"] * 4 + ["made"]


def test_it_does_not_matter_where_the_molecules_lie(config, folder, tmp_path):
    elsewhere = tmp_path / "other.npz"
    elsewhere.write_bytes(Path(config.molecules).read_bytes())
    mine = copied(folder, tmp_path / "set")
    assert {done for *_, done in make(replace(config, molecules=str(elsewhere)), mine, workers=0)} == {"kept"}


def test_a_full_disk_leaves_no_half_shard(config, tmp_path):
    """A limit on the size of files stands for the disk: the same error in the middle of the same write."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from afmol.errors import ConfigError
from afmol.data.samples import DataConfig
from afmol.data.shards import SetConfig, make
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
data = DataConfig(together=4, windows=((24, 24),), slices=4)
try:
    list(make(SetConfig({config.molecules!r}, 4, data=data), {str(tmp_path)!r}, workers=0))
except ConfigError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "train_00000.h5 cannot be written (file too large)" in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- samples of other groups


def theirs() -> tuple[Scan, Molecule]:
    """A ring in an image of 0.4 A a pixel that does not begin at 0, as ml-spm stores it."""
    molecule = replace(flat_ring(), positions=flat_ring().positions + np.array([7.0, 1.5, 3.0]))
    grid = Grid((2.2, -2.6), (9.6, 8.0), (24, 20), standard_heights(molecule, Tip(), 3.0, 6))
    return simulate(molecule, Tip(), grid, parallel=False), molecule


COMMENT = "Scan window: [[2.4 -2.4 6.0] [11.6 5.2 7.0]]"


def test_imported_samples_lie_where_ours_would(tmp_path):
    """Theirs at 0.4 A a pixel, resampled, beside the same scene simulated here at 0.25 A a pixel."""
    scan, molecule = theirs()
    text = xyz(molecule, COMMENT)
    tar = write(tmp_path / "a.tar", *(members(n, [scan.data], text) for n in range(5)))
    files = list(store(read_tar(tar), tmp_path / "set", "train", 0.25, 4, 2))
    assert [shard_length(file) for file in files] == [2, 2, 1]
    shard, origin = read_shard(files[2])
    assert origin == {"imported": ["a.tar: 4"]}
    ((stack, atoms),) = shard.samples()
    assert shard.images.shape == (1, 38, 32, 4)
    assert shard.size == (9.5, 8.0)
    truth = labels(molecule, np.array([2.2, -2.6]), np.array([9.6, 8.0]))
    np.testing.assert_array_equal(atoms.numbers, truth.numbers)
    np.testing.assert_array_equal(atoms.bonds, truth.bonds)
    np.testing.assert_allclose(atoms.positions, truth.positions * [9.5 / 9.6, 1, 1], atol=1e-4)
    fine = simulate(molecule, Tip(), Grid((2.2, -2.6), (9.6, 8.0), (38, 32), scan.heights[[0, -1]]), parallel=False)
    for k, ours in ((0, 0), (-1, -1)):
        assert np.corrcoef(stack[..., k].ravel(), fine.data[..., ours].ravel())[0, 1] > 0.995


def test_a_shard_is_read_as_a_set_of_the_original_layout(folder):
    """By the reader for other people's files, which knows nothing of shards."""
    shard, _ = read_shard(folder / "train_00001.h5")
    lx, ly = shard.size
    half = DATA.pixel / 2
    window = ((half, half, 0.0), (lx - half, ly - half, 0.0))
    found = list(read_hdf5_samples(folder / "train_00001.h5", "train", window))
    assert len(found) == 4
    for (scan, atoms), (stack, molecule) in zip(found, shard.samples(), strict=True):
        np.testing.assert_array_equal(scan.data, stack)
        np.testing.assert_allclose(scan.size, shard.size)
        np.testing.assert_array_equal(atoms.numbers, molecule.numbers)
        np.testing.assert_allclose(atoms.positions, molecule.positions, atol=1e-6)


def test_what_was_read_before_the_damage_is_kept(tmp_path):
    scan, molecule = theirs()
    tar = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule, COMMENT)) for n in range(4)))
    tar.write_bytes(tar.read_bytes()[:-25000])
    files = []
    with pytest.raises(ScanError, match=r"a\.tar"):
        files.extend(store(read_tar(tar), tmp_path / "set", "train", 0.25, 4, 2))
    stored = [sample for file in shard_files(tmp_path / "set") for sample in read_shard(file)[0].samples()]
    assert 1 <= len(stored) < 4


def test_an_import_does_not_replace_simulated_shards(folder, tmp_path):
    mine = copied(folder, tmp_path / "set")
    before = contents(mine)
    with pytest.raises(ShardError, match="holds train shards already"):
        list(store([theirs()], mine, "train", 0.25, 4, 1))
    assert contents(mine) == before


# --- mistakes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"samples": 0}, ConfigError, "at least 1"),
        ({"molecules": "nowhere.npz"}, MoleculeError, "does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(config, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        list(make(replace(config, **change), tmp_path / "set", workers=0))
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_a_file(config, tmp_path):
    (tmp_path / "set").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        list(make(config, tmp_path / "set", workers=0))


def test_an_empty_folder_holds_no_shard(tmp_path):
    with pytest.raises(ShardError, match="holds no shard"):
        shard_files(tmp_path)
    with pytest.raises(ShardError, match=r"gone\.h5 cannot be read \(no such file"):
        read_shard(tmp_path / "gone.h5")


def test_the_format_is_named_in_the_first_bytes():
    content = packed(Shard.of([(np.ones((8, 8, 3), np.float32), flat_ring())], (2.0, 2.0), "validation"), {"a": 1})
    assert content.startswith(f"{FORMAT} sha256 ".encode())
    assert content[HEADER:].startswith(b"\x89HDF\r\n")
