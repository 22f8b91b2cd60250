"""Files and settings that claim more than there should be: refused in a sentence, at once, in little memory."""

import gzip
import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from afmol import limits
from afmol.checkpoint import FORMAT, VERSION, load_model
from afmol.config import config_from_toml, config_to_dict
from afmol.data.entries import check_source, read_entries
from afmol.data.foreign import read_hdf5_samples
from afmol.data.molecules import load_molecules
from afmol.data.shards import Shard, read_shard, shard_bytes, shard_length
from afmol.errors import AfmolError, ConfigError, MoleculeError, ScanError, ShardError, shortened
from afmol.files import read_molecule, read_scan, write_molecule, write_scan
from afmol.imaging import ImagingConfig, simulate_molecule
from afmol.model import AsdConfig, OnePassConfig
from afmol.simulation import Tip, simulate
from afmol.structures import Molecule, Sample, Scan, check_atoms
from afmol.training import TrainConfig
from fuzz import endless_h5
from strategies import few_molecules, flat_ring, one_sentence

SECONDS, MEGABYTES = 2.0, 300
"""What a refusal may cost."""
GIGANTIC = 2**30 + 2**25
"""Bytes that a bomb claims: more than the limit."""


def refused(call: Callable[[], object], error: type[AfmolError], words: str, name: str = "") -> str:
    """The message of a refusal that was quick and needed little memory."""
    process, start = psutil.Process(), time.process_time()  # of this process, whatever else the machine does
    before = _peak(process)
    with pytest.raises(error, match=words) as caught:
        call()
    assert time.process_time() - start < SECONDS
    assert (_peak(process) - before) / 2**20 < MEGABYTES
    one_sentence(caught, name)
    return str(caught.value)


def _peak(process: psutil.Process) -> int:
    """The most resident memory so far, bytes; set back to the present before each test by `fresh`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
def fresh():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of memory are known on Linux alone")
    Path("/proc/self/clear_refs").write_text("5")


def header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """The start of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def zeros_zipped(path: Path, name: str, start: bytes, length: int) -> Path:
    """A member of so many zeros, which takes a thousandth on the disk."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(length // 2**24):
            member.write(bytes(2**24))
    return path


# Claims


def test_an_npz_that_claims_what_it_does_not_hold(tmp_path):
    path = zipped(tmp_path / "a.npz", data=header((10**4, 10**4, 10**4)) + bytes(80))
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "AFMOL_MOST_BYTES", "a.npz")
    for key in ("n_atoms", "positions_milliangstrom"):
        packed = zipped(tmp_path / f"{key}.npz", **{key: header((10**12,), "|u1")})
        refused(lambda packed=packed: load_molecules(packed), MoleculeError, "AFMOL_MOST_BYTES", packed.name)
    single = tmp_path / "single.npz"
    single.write_bytes(header((10**12,)))
    refused(lambda: load_molecules(single), MoleculeError, "single array", "single.npz")


def test_an_npz_that_unpacks_to_gigabytes(tmp_path):
    length = GIGANTIC // 2**24 * 2**24
    path = zeros_zipped(tmp_path / "a.npz", "data", header((length // 80, 5, 2)), length)
    assert path.stat().st_size < GIGANTIC / 100
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "AFMOL_MOST_BYTES", "a.npz")
    endless = struct.pack("<6sBBI", b"\x93NUMPY", 2, 0, length)  # a header of gigabytes
    path = zeros_zipped(tmp_path / "b.npz", "data", endless, length)
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "damaged", "b.npz")


@pytest.mark.parametrize("start", ["{'descr': '<f8', 'shape': (3,", "{'descr': '''", "{" * 900, "\0", "(" * 9000])
def test_headers_of_arrays_that_do_not_parse(start, tmp_path):
    """Python's own tokenizer, which numpy asks, raises errors of its own kind."""
    text = start.encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    refused(lambda: load_molecules(zipped(tmp_path / "s.npz", n_atoms=content)), MoleculeError, "s.npz", "s.npz")
    refused(lambda: read_scan(zipped(tmp_path / "s.npz", data=content)), ScanError, "s.npz", "s.npz")


def test_gz_that_unpacks_to_gigabytes(tmp_path):
    for piece in (bytes(2**20), b"C\n" * 2**19, b"\n" * 2**20):
        path = tmp_path / "a.smi.gz"
        packed = gzip.compress(piece * 16)
        path.write_bytes(packed * (GIGANTIC // 2**24))
        refused(lambda path=path: sum(1 for _ in read_entries(path)), MoleculeError, "AFMOL_MOST_BYTES", "a.smi.gz")
    path.write_bytes(packed[:-4] + (900 * len(packed)).to_bytes(4, "little"))  # seen without unpacking
    refused(lambda: check_source(path), MoleculeError, "AFMOL_MOST_BYTES", "a.smi.gz")


def test_gz_of_usual_text_is_read_as_a_whole(tmp_path):
    """SMILES of sorted lists pack well; a megabyte and more of them must pass."""
    rng = np.random.default_rng(0)
    ends = map("".join, rng.choice(list("CNOF"), (100_000, 6)))
    lines = ["C" * n + "O" + end for n, end in zip(rng.integers(3, 20, 100_000), ends, strict=True)]
    (tmp_path / "a.smi.gz").write_bytes(gzip.compress("\n".join(sorted(lines)).encode()))
    assert [entry.content for entry in read_entries(tmp_path / "a.smi.gz")] == sorted(lines)


@pytest.mark.parametrize("suffix", [".sdf", ".xyz", ".csv"])
def test_records_without_an_end(suffix, tmp_path):
    """A text of which one record takes it all."""
    path = tmp_path / f"a{suffix}"
    with path.open("wb") as file:
        file.write({".sdf": b"", ".xyz": b"999999999\n", ".csv": b'smiles\n"'}[suffix])
        for _ in range(40):
            file.write(b"x 1 2 3\n" * 2**17)
    refused(lambda: list(read_entries(path)), MoleculeError, r"a\.", path.name)
    if suffix != ".csv":
        refused(lambda: read_molecule(path), MoleculeError, r"a\.", path.name)


def test_xyz_that_claims_columns_or_atoms(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3:charge:R:999999999\nC 0 0 0 0.1\n")
    refused(lambda: read_molecule(path), MoleculeError, "columns", "a.xyz")
    path.write_text("999999999\n\nC 0 0 0\n")
    refused(lambda: read_molecule(path), MoleculeError, "AFMOL_MOST_BYTES", "a.xyz")
    path.write_text("9000\n\n" + "".join(f"C {x} 0 0\n" for x in range(9000)))
    refused(lambda: read_molecule(path), MoleculeError, "AFMOL_MOST_BYTES", "a.xyz")


def test_the_first_molecule_of_a_long_file_is_read_alone(tmp_path):
    for suffix in (".xyz", ".sdf"):
        path = tmp_path / f"a{suffix}"
        write_molecule(flat_ring(), path)
        first = read_molecule(path)
        end = b"$$$$\n" if suffix == ".sdf" else b""
        one = path.read_bytes()
        assert end in one
        path.write_bytes(one * 20_000)
        start = time.perf_counter()
        again = read_molecule(path)
        assert time.perf_counter() - start < 0.3
        assert np.array_equal(again.positions, first.positions)


def test_weights_of_a_few_bytes_that_claim_a_giant(tmp_path):
    path = tmp_path / "w.safetensors"
    configs = [OnePassConfig(blocks=10**6), OnePassConfig(rounds=10**9), OnePassConfig(channels=(10**6, 10**6, 10**6))]
    for config in [*configs, OnePassConfig(width=10**7), AsdConfig(class_rounds=10**6, bond_rounds=10**7)]:
        metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(config_to_dict(config))}
        save_file({"a": torch.zeros(1)}, path, metadata)
        refused(lambda: load_model(path), AfmolError, "do not fit", "w.safetensors")


def test_an_hdf5_set_of_samples_that_nobody_wrote(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("train/X", (10**9, 1, 32, 32, 4), "f4", chunks=(1, 1, 32, 32, 4))
        file.create_dataset("train/xyz", (10**9, 9, 5), "f4", chunks=(1, 9, 5))
    window = ((0, 0, 0), (8, 8, 0))
    refused(lambda: list(read_hdf5_samples(path, "train", window)), ScanError, "AFMOL_MOST_BYTES", "a.h5")


def test_hdf5_arrays_that_claim_too_much(tmp_path):
    path = tmp_path / "a.h5"
    for chunk in (None, (10, 10, 10)):
        with h5py.File(path, "w") as file:
            file.create_dataset("data", (10**4, 10**4, 10), "f4", chunks=chunk)
        refused(lambda: read_scan(path, size=(9, 9)), ScanError, "AFMOL_MOST_BYTES", "a.h5")
    with h5py.File(path, "w") as file:  # of which one chunk is unpacked for a single value
        chunk = (2**10, 2**10, 2**8)
        file.create_dataset("data", (2, 2, 3), "f8", maxshape=(None,) * 3, chunks=chunk, compression="gzip")
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "AFMOL_MOST_BYTES", "a.h5")


# Outside the file


@pytest.fixture
def secret(tmp_path) -> Path:
    """What must not be read."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.random.default_rng(0).random((40, 40, 4)).astype("f4")
    return tmp_path / "secret.h5"


def external(file: h5py.File, name: str, secret: Path) -> None:
    file[name] = h5py.ExternalLink(str(secret), "/data")


def soft(file: h5py.File, name: str, secret: Path) -> None:
    file["deep/down"] = h5py.ExternalLink(str(secret), "/")
    file[name] = h5py.SoftLink("/deep/down/data")


def virtual(file: h5py.File, name: str, secret: Path) -> None:
    layout = h5py.VirtualLayout((40, 40, 4), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "data", (40, 40, 4))
    file.create_virtual_dataset(name, layout)


def raw(file: h5py.File, name: str, secret: Path) -> None:
    file.create_dataset(name, (4, 4, 4), "f4", external=[(str(secret), 0, 256)])


@pytest.mark.parametrize("way", [external, soft, virtual, raw])
def test_hdf5_files_that_read_outside_themselves(way, secret, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        way(file, "data", secret)
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "in another file", "a.h5")
    with h5py.File(path, "w") as file:
        way(file, "train/X", secret)
        file["train/xyz"] = np.zeros((4, 1, 5), "f4")
    with pytest.raises(ScanError, match=r"another file|should hold"):
        list(read_hdf5_samples(path, "train", ((0, 0, 0), (8, 8, 0))))
    with h5py.File(path, "w", userblock_size=512) as file:
        way(file, "train/n_bonds", secret)
    content = path.read_bytes()[512:]
    path.write_bytes(_sealed(content))
    refused(lambda: shard_length(path), ShardError, "in another file", "a.h5")


def test_a_link_within_the_file_is_followed(tmp_path):
    data = np.random.default_rng(0).random((4, 5, 3)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/images"] = data
        file["data"] = h5py.SoftLink("/entry/images")
    assert np.array_equal(read_scan(tmp_path / "a.h5", size=(9, 9)).data, data)


@pytest.mark.parametrize(("signature", "words"), [(b"HEAP", "has no end"), (b"GCOL", "variable length")])
def test_hdf5_heaps_without_an_end(signature, words, tmp_path):
    (tmp_path / "a.h5").write_bytes(endless_h5(signature))
    refused(lambda: read_scan(tmp_path / "a.h5", size=(9, 9)), ScanError, words, "a.h5")


def test_an_hdf5_file_without_a_heaps_damage_is_read(tmp_path):
    data = np.random.default_rng(0).random((4, 5, 3)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abcdefghij":
            file[name] = data
        for name in "cdg":
            del file[name]
        file["data"] = data
        file["HEAP"] = np.frombuffer(b"HEAP" + bytes(12) + b"\x08" + bytes(15), np.uint8)
    assert np.array_equal(read_scan(tmp_path / "a.h5", size=(9, 9)).data, data)


@pytest.mark.parametrize("text", ["9", b"9"])
def test_hdf5_text_of_variable_length_is_refused(text, tmp_path):
    """A heap with one wrong byte keeps HDF5 2.0 busy for ever (H5HG__cache_heap_deserialize; found by fuzz.py)."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((4, 5, 3), "f4")
        file.attrs["lengthX"] = text
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "'lengthX' is of variable length", "a.h5")
    with h5py.File(path, "w") as file:
        file["data"] = [text]
    refused(lambda: read_scan(path, size=(9, 9)), ScanError, "'data' is of variable length", "a.h5")
    with h5py.File(path, "w", userblock_size=512) as file:
        file["train/X"] = np.zeros((1, 1, 8, 8, 3), "f4")
        file["train"].attrs.update({"size": (8.0, 8.0), "origin": text})
    path.write_bytes(_sealed(path.read_bytes()[512:]))
    refused(lambda: read_shard(path), ShardError, "'origin' is of variable length", "a.h5")


# Settings


@pytest.mark.parametrize(
    "change",
    [
        {"pixel": 0.0005},
        {"pixel": 1e-300},
        {"slices": 10**6},
        {"slices": 10**12},
        {"size": (1e9, 1e9)},
        {"size": (1e300, 1.0)},
        {"amplitude": 1e8},
        {"pixel": 5.0, "slices": 50_000},
    ],
)
def test_images_too_large_to_make(change):
    config = replace(ImagingConfig(), **change)
    refused(lambda: simulate_molecule(flat_ring(), config, lay=False), ConfigError, "AFMOL_MOST_BYTES")


@pytest.mark.parametrize(
    "change", [{"pixel": np.inf}, {"size": (np.inf, 1.0)}, {"size": (8.0, -1.0)}, {"noise": np.nan}]
)
def test_settings_that_are_no_lengths(change):
    with pytest.raises(ConfigError, match="must be positive"):
        replace(ImagingConfig(), **change)


def test_the_limit_is_raised_by_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_scan(Scan(np.random.default_rng(0).random((20, 20, 4)), (5.0, 5.0)), path)
    monkeypatch.setenv("AFMOL_MOST_BYTES", "10000")
    refused(lambda: read_scan(path), ScanError, "1e-05 GB that afmol allows", "a.npz")
    monkeypatch.setenv("AFMOL_MOST_BYTES", "100000")
    assert read_scan(path).data.shape == (20, 20, 4)
    for wrong in ("much", "-1", "0", "9" * 30, "1e9"):
        monkeypatch.setenv("AFMOL_MOST_BYTES", wrong)
        refused(limits.most_bytes, ConfigError, "number of bytes")


# Text that Python's own parsers choke on


@pytest.mark.parametrize(
    "text",
    [
        "steps = " + "9" * 5000,
        "steps = 0x" + "f" * 5000,
        "steps = 9223372036854775808",
        "a = " + "[" * 3000 + "]" * 3000,
        "a = " + "{b=" * 3000 + "1" + "}" * 3000,
        ".".join("a" * 3000) + " = 1",
        "[data]\nwindows = " + "[" * 200 + "]" * 200,
        "model = {kind = " + "[" * 200 + "]" * 200 + "}",
        "x" * 10**6 + " = 1",
    ],
    ids=["digits", "hex", "64 bits", "lists", "tables", "dots", "windows", "kind", "name"],
)
def test_toml_that_is_deep_or_long(text, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(f"molecules = 'm.npz'\n{text}\n")
    refused(lambda: config_from_toml(TrainConfig, path), ConfigError, r"a\.toml", "a.toml")


@pytest.mark.parametrize("origin", ["{", "[" * 60_000, "[1]", "9" * 5000, "", "\x00"])
def test_shards_whose_origin_is_none(origin, tmp_path):
    path = tmp_path / "train_00000.h5"
    scan = Scan(np.random.default_rng(0).random((8, 8, 3)).astype("f4"), (2.0, 2.0))
    path.write_bytes(shard_bytes(Shard.of([Sample(scan, flat_ring())], "train"), {"shard": 0}))
    assert read_shard(path)[1] == {"shard": 0}
    buffer = io.BytesIO(path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        del file["train"].attrs["origin"]
        file["train"].attrs.create("origin", np.bytes_(origin.encode()) if origin and "\0" not in origin else b"\xff")
    path.write_bytes(_sealed(buffer.getvalue()[512:]))
    refused(lambda: read_shard(path), ShardError, "train_00000", "train_00000.h5")


def _sealed(content: bytes) -> bytes:
    """A shard with a checksum that is right, whatever it holds."""
    return f"afmol-shard/2 sha256 {sha256(content).hexdigest()}\n".encode().ljust(512, b"\0") + content


# Values that are none


def test_weights_that_are_not_finite(tmp_path, weights):
    with safe_open(weights, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    for value in (np.nan, np.inf):
        name = next(k for k in tensors if k.endswith("weight"))
        spoilt = tensors[name].clone()
        spoilt.view(-1)[-1] = value
        save_file({**tensors, name: spoilt}, tmp_path / "w.safetensors", metadata)
        refused(lambda: load_model(tmp_path / "w.safetensors"), AfmolError, "not finite", "w.safetensors")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("C 0 0 0", "C 0 0 0"), "0 A apart"),
        (("C 0 0 0", "O 0.3 0 0"), "0.3 A apart"),
        (("C 0 0 0", "O 1e4 0 0"), r"1e\+04 A apart"),
        (("C 0 0 0", "O 1e7 0 0"), r"1e\+07 A apart"),
        (("C 0 0 -1e308", "O 0 0 1e308"), "A apart"),
        (("C 0 0 0 nan", "O 1.2 0 0 0.1"), "finite"),
        (("C 0 0 0 1e300", "O 1.2 0 0 -1e300"), "charge"),
    ],
)
@pytest.mark.parametrize("suffix", [".xyz", ".sdf"])
def test_atoms_that_no_molecule_has(rows, words, suffix, tmp_path):
    cells = [row.split() for row in rows]
    path = tmp_path / f"m{suffix}"
    charged = len(cells[0]) == 5
    if suffix == ".xyz":
        comment = f"Properties=species:S:1:pos:R:3{':charge:R:1' * charged}"
        path.write_text(f"2\n{comment}\n" + "\n".join(rows) + "\n")
    else:
        if any(abs(float(value)) > 9e4 for cell in cells for value in cell[1:4]):
            pytest.skip("a molfile has no room for them")
        atoms = "".join("{:10.4f}{:10.4f}{:10.4f} {:<3} 0\n".format(*map(float, c[1:4]), c[0]) for c in cells)
        charges = f"> <atom.dprop.PartialCharge>\n{' '.join(c[4] for c in cells)}\n\n$$$$\n" if charged else ""
        path.write_text(
            f"m\n  test              3D\n\n  2  0  0  0  0  0  0  0  0  0999 V2000\n{atoms}M  END\n{charges}"
        )
        if "0 A" in words and "0.3" not in words and "1e" not in words:
            pytest.skip("two atoms in one place are no 3D coordinates to a molfile")
    refused(lambda: read_molecule(path), MoleculeError, words, path.name)


def test_simulation_refuses_the_same_atoms():
    far = Molecule(np.array([[0.0, 0, 0], [1e7, 0, 0]]), np.array([6, 6]), np.zeros((0, 2), int))
    refused(lambda: simulate(far), AfmolError, "A apart|AFMOL_MOST_BYTES")
    for positions, words in (([[0, 0, 0], [0.1, 0, 0]], "0.1 A apart"), ([[0, 0, 0], [0, 0, -2e3]], r"2e\+03 A")):
        molecule = Molecule(np.array(positions, float), np.array([6, 6]), np.zeros((0, 2), int))
        for call in (lambda m=molecule: simulate(m, Tip()), lambda m=molecule: check_atoms(m.positions)):
            with pytest.raises(MoleculeError, match=words):
                call()
    with pytest.raises(MoleculeError, match="Charges must be finite"):
        replace(flat_ring(), charges=np.full(len(flat_ring()), np.nan))


def test_heights_that_no_tip_has(tmp_path):
    data = np.random.default_rng(0).random((4, 4, 3)).astype("f4")
    np.savez(tmp_path / "a.npz", data=data, lengthX=5.0, lengthY=5.0, heights=[1e33, 1e32, 0])
    refused(lambda: read_scan(tmp_path / "a.npz"), ScanError, r"1e\+33 A is none", "a.npz")


# Messages


def test_messages_have_an_end():
    error = MoleculeError("start " + 10_000 * "x" + " end.", "reason")
    assert len(str(error)) == 300
    assert str(error).startswith("start xxx")
    assert str(error).endswith("xx end.")
    assert error.reason == "reason"
    assert shortened("short.") == "short."
    assert str(ScanError("no part 'a\n\x1b[2J' here, but \u03b1.")) == "no part 'a\\n\\x1b[2J' here, but \u03b1."


def test_usual_files_pass(tmp_path, weights):
    """What all the refusals are worth."""
    assert len(load_molecules(few_molecules(tmp_path / "set.npz"))) == 4
    assert load_model(weights)[1] == "tiny"
