"""Sets of other groups: tars and HDF5 files, written here by the layouts that their programs document."""

import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from afmol.data.foreign import read_hdf5_samples, read_tar
from afmol.data.samples import labels
from afmol.errors import AfmolError, MoleculeError, ScanError
from afmol.structures import Molecule, Sample, Scan
from strategies import (
    COMMENT,
    CORNER,
    END,
    SHAPE,
    START,
    STEP,
    members,
    one_sentence,
    picture,
    same,
    theirs,
    write,
    xyz,
)

WINDOW = ((START[0], START[1], 6.0), (END[0], END[1], 7.9))


@pytest.fixture(scope="module")
def sample() -> Sample:
    return theirs()


@pytest.fixture(scope="module")
def molecule(sample) -> Molecule:
    return sample.molecule


@pytest.fixture(scope="module")
def scan(sample) -> Scan:
    """Four slices, coming closer."""
    return sample.scan


def tar_of(folder: Path, scan: Scan, text: bytes) -> Path:
    """A shard of one sample."""
    return write(folder / "a.tar", members(0, [scan.data], text))


def write_h5(path: Path, images: np.ndarray, atoms: np.ndarray, part: str = "train") -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{part}/X", data=images.astype(np.float32))
        file.create_dataset(f"{part}/xyz", data=atoms.astype(np.float32))
    return path


def rows(molecule: Molecule, most: int) -> np.ndarray:
    charges = np.zeros(len(molecule)) if molecule.charges is None else molecule.charges
    found = np.column_stack([molecule.positions, charges, molecule.numbers])
    return np.pad(found, ((0, most - len(found)), (0, 0)))


def unit(stack: np.ndarray) -> np.ndarray:
    """Each slice from 0 to 1."""
    low, high = stack.min((0, 1)), stack.max((0, 1))
    return (stack - low) / (high - low)


def check_sample(scan: Scan, expected: Scan, found: Molecule, molecule: Molecule) -> None:
    assert scan.data.dtype == np.float32
    assert scan.size == pytest.approx(expected.size, abs=1e-9)
    shift = [CORNER[0], CORNER[1], molecule.positions[:, 2].max()]
    moved = replace(molecule, positions=molecule.positions - shift, charges=found.charges, name=found.name)
    same(found, moved, 1e-5)


def brightest(scan: Scan) -> np.ndarray:
    """Place of the largest value of the closest slice by our convention of pixels, A."""
    pixel = np.unravel_index(scan.data[:, :, -1].argmax(), scan.data.shape[:2])
    return (np.array(pixel) + 0.5) * scan.pixel


def test_tar_gives_back_images_and_atoms(tmp_path, scan, molecule):
    second = replace(molecule, positions=molecule.positions + np.array([0.3, 0.1, 0.0]))
    path = write(tmp_path / "a_0.tar", members(7, [scan.data], xyz(molecule)), members(8, [scan.data], xyz(second)))
    (image, found), (_, other) = read_tar(path)
    check_sample(image, scan, found, molecule)
    np.testing.assert_allclose(found.charges, molecule.charges, atol=1e-6)
    assert np.abs(image.data / 255 - unit(scan.data)).max() <= 1 / 255 + 1e-6
    assert image.source == found.name == "a_0.tar: 7"
    assert image.heights is None
    np.testing.assert_allclose(other.positions - found.positions, np.tile([0.3, 0.1, 0.0], (6, 1)), atol=1e-6)


def test_the_brightest_spot_is_the_chlorine(tmp_path, scan, molecule):
    """Up to the bending of the probe; flipped or transposed it would be 1.1 A away at least."""
    tar = tar_of(tmp_path, scan, xyz(molecule))
    h5 = write_h5(tmp_path / "a.h5", scan.data[None, None], rows(molecule, 6)[None])
    for image, found in (*read_tar(tar), *read_hdf5_samples(h5, "train", WINDOW)):
        distance = np.linalg.norm(found.positions[:, :2] - brightest(image), axis=1)
        assert found.numbers[distance.argmin()] == 17
        assert distance.min() < 0.7
        # what `labels` makes of it is what it makes of the simulated scene
        ours = labels(molecule, np.array(CORNER), np.array(scan.size))
        back = labels(found, np.zeros(2), np.array(image.size))
        np.testing.assert_allclose(back.positions, ours.positions, atol=1e-5)


def test_atoms_sit_on_the_pixels_that_the_window_numbers(tmp_path):
    """ppafm's pixel (i, j) is at numpy.linspace(start, end, n): one atom at such a point, one bright pixel there."""
    i, j = 5, 11
    x, y = np.linspace(WINDOW[0][0], WINDOW[1][0], SHAPE[0])[i], np.linspace(WINDOW[0][1], WINDOW[1][1], SHAPE[1])[j]
    stack = np.zeros((*SHAPE, 2), np.float32)
    stack[i, j] = 1
    atom = Molecule(np.array([[x, y, 1.0]]), np.array([8]), np.zeros((0, 2), int))
    tar = write(tmp_path / "a.tar", members(0, [stack], xyz(atom)))
    h5 = write_h5(tmp_path / "a.h5", stack[None, None], rows(atom, 1)[None])
    for (image, found), accuracy in (
        *((s, 1e-6) for s in read_tar(tar)),
        *((s, 1e-5) for s in read_hdf5_samples(h5, "train", WINDOW)),
    ):
        np.testing.assert_allclose(brightest(image), found.positions[0, :2], atol=accuracy)
        np.testing.assert_allclose(found.positions[0], [(i + 0.5) * STEP, (j + 0.5) * STEP, 0], atol=accuracy)


def test_the_last_slice_is_the_closest(tmp_path, scan, molecule):
    def order(path: Path) -> list[int]:
        ((image, _),) = read_tar(path)
        distance = [
            [np.abs(image.data[:, :, k] / 255 - unit(scan.data)[:, :, j]).max() for j in range(4)] for k in range(4)
        ]
        return np.argmin(distance, axis=1).tolist()

    sample = members(0, [scan.data], xyz(molecule))
    assert order(write(tmp_path / "a.tar", sample)) == [0, 1, 2, 3]
    assert order(write(tmp_path / "b.tar", dict(reversed(sample.items())))) == [0, 1, 2, 3]
    # QUAM-AFM counts from the closest
    lattice = xyz(molecule, 'Lattice="9.6 0.0 0.0 0.0 8.0 0.0 0.0 0.0 20.0" Properties=species:S:1:pos:R:3')
    assert order(write(tmp_path / "c.tar", {**sample, "0.xyz": lattice})) == [3, 2, 1, 0]


def test_ten_slices_and_more_in_order(tmp_path, molecule):
    stack = np.random.default_rng(0).random((*SHAPE, 12)).astype(np.float32)
    sample = {f"a/0.{j}.png": picture(stack[:, :, j]) for j in range(12)} | {"a/0.xyz": xyz(molecule)}
    ((image, _),) = read_tar(write(tmp_path / "a.tar", sample))
    assert np.abs(image.data / 255 - unit(stack)).max() <= 1 / 255 + 1e-6
    assert image.source == "a.tar: a/0"


def test_two_tips(tmp_path, scan, molecule):
    path = write(tmp_path / "a.tar", members(0, [scan.data, -scan.data], xyz(molecule)))
    stacks = [next(read_tar(path, tip))[0].data for tip in (0, 1)]
    assert np.abs(stacks[0] + stacks[1] - 255).max() <= 1
    with pytest.raises(ScanError, match=r"a\.tar: 0: there is no image of tip 2 \(found: 0, 1\)"):
        next(read_tar(path, 2))


def test_symbols_jpeg_and_no_charges(tmp_path, scan, molecule):
    sample = {f"0.{j:03d}.jpg": picture(scan.data[:, :, j], "jpeg") for j in range(4)}
    sample["0.xyz"] = xyz(molecule, symbols=True, charges=False)
    ((image, found),) = read_tar(write(tmp_path / "a.tar", sample))
    check_sample(image, scan, found, molecule)
    assert found.charges is None
    assert np.abs(image.data / 255 - unit(scan.data)).mean() < 0.02
    # ppafm writes zeros where it has a Hartree potential instead
    zeros = xyz(replace(molecule, charges=np.zeros(6)))
    ((_, found),) = read_tar(write(tmp_path / "b.tar", {**sample, "0.xyz": zeros}))
    assert found.charges is None


@pytest.mark.parametrize(
    "comment",
    [
        f"Scan window: [{WINDOW[0]}, {WINDOW[1]}], Amplitude: 1.0, tip R0: [0.0, 0.0, 4.0], kxy: -0.0156",
        f"Scan window: [[{START[0]}, {START[1]}, 6], [{END[0]} {END[1]} 7.9]]`",
        f"tip CO, scan window: [({START[0]:e}, {START[1]:e}, 6.), (np.float64({END[0]}), np.float64({END[1]}), 7.9)]",
        f"Scan window: {np.array(WINDOW)!s}".replace("\n", ""),
    ],
)
def test_window_however_python_prints_it(tmp_path, scan, molecule, comment):
    path = tar_of(tmp_path, scan, xyz(molecule, comment))
    ((image, found),) = read_tar(path)
    check_sample(image, scan, found, molecule)


def test_a_lattice_is_the_whole_image(tmp_path, scan, molecule):
    comment = 'Lattice="9.6 0 0 0 8 0 0 0 2e1" Properties=species:S:1:pos:R:3:mass:R:1 pbc="T T F"'
    ((image, found),) = read_tar(tar_of(tmp_path, scan, xyz(molecule, comment)))
    assert image.size == (9.6, 8.0)
    np.testing.assert_allclose(found.positions[:, :2], molecule.positions[:, :2], atol=1e-6)
    assert found.charges is None


def test_a_surface_is_left_out_on_request_only(tmp_path, scan, molecule):
    text = xyz(molecule).replace(b"6\n", b"8\n", 1) + b"29\t1.0\t1.0\t9.0\t0.0\n79\t1.0\t1.0\t0.0\t0.0\n"
    path = tar_of(tmp_path, scan, text)
    with pytest.raises(MoleculeError, match=r"a\.tar: 0: afmol does not know the element Cu"):
        next(read_tar(path))
    with pytest.raises(MoleculeError, match="the element Au"):
        next(read_tar(path, surface=(29,)))
    ((image, found),) = read_tar(path, surface=(29, 79))
    check_sample(image, scan, found, molecule)


def test_hdf5_gives_back_images_and_atoms(tmp_path, scan, molecule):
    tips = np.stack([scan.data, 2 * scan.data])
    small = Molecule(molecule.positions[:2], molecule.numbers[:2], molecule.bonds[:1])
    unwritten = np.zeros_like(tips)
    path = write_h5(
        tmp_path / "set.hdf5",
        np.stack([tips, tips, unwritten]),
        np.stack([rows(molecule, 9), rows(small, 9), np.zeros((9, 5))]),
    )
    (image, found), (_, other) = read_hdf5_samples(path, "train", WINDOW, tip=1)
    check_sample(image, scan, found, molecule)
    np.testing.assert_array_equal(image.data, 2 * scan.data)
    np.testing.assert_allclose(found.charges, molecule.charges, atol=1e-6)
    assert image.source == "set.hdf5: train 0"
    assert other.numbers.tolist() == [17, 6]
    assert other.charges is None


def told(samples, kind: type[AfmolError], name: Path | str = "") -> tuple[int, str]:
    """Samples before the error, and its one sentence."""
    before = []
    with pytest.raises(kind) as caught:
        before.extend(samples)
    one_sentence(caught, name)
    return len(before), str(caught.value)


ONE = b"1\n" + COMMENT.encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("1.xyz", None, MoleculeError, "no .xyz"),
        ("1.01.0.png", None, ScanError, "slice 1 of tip 0 is missing"),
        ("1.02.0.png", picture(np.eye(3)), ScanError, "different numbers of pixels (24x20 and 3x3)"),
        ("1.02.0.png", b"GIF89a", ScanError, "slice 2 cannot be read as PNG or JPEG"),
        ("1.02.0.png", picture(np.random.default_rng(0).random((24, 20)))[:-200], ScanError, "slice 2 cannot be read"),
        ("1.2.png", picture(np.eye(3)), ScanError, "1: 2.png is there twice"),
        ("1.xyz", b"", MoleculeError, "number of atoms"),
        ("1.xyz", b"2\n" + COMMENT.encode() + b"\n6 1 2 3\n", MoleculeError, "should hold 2 atoms"),
        ("1.xyz", ONE + b"6 1 2 3\n6 1 2 4\n", MoleculeError, "more atoms than its first line says"),
        ("1.xyz", b"1\nwater\n8 1 2 3\n", MoleculeError, "neither 'Scan window"),
        ("1.xyz", b"1\nScan window: [[1 2] [3 4]]\n8 1 2 3\n", MoleculeError, "neither 'Scan window"),
        ("1.xyz", b"1\nScan window: [[5 0 0] [5 8 1]]\n8 1 2 3\n", ScanError, "from 5.0 to 5.0 A"),
        ("1.xyz", b'1\nLattice="9 3 0 0 9 0 0 0 9"\n8 1 2 3\n', ScanError, "right-angled"),
        ("1.xyz", ONE + b"Xx 1 2 3\n", MoleculeError, "'Xx' is not an element"),
        ("1.xyz", ONE + b"92 1 2 3\n", MoleculeError, "1: afmol does not know the element U"),
        ("1.xyz", ONE + 400 * b"9" + b" 1 2 3\n", MoleculeError, "is not an element"),
        ("1.xyz", ONE + b"6 1 2 x\n", MoleculeError, "must be numbers"),
        ("1.xyz", b"4\n" + COMMENT.encode() + 4 * b"\n6 1 2", MoleculeError, "three coordinates"),
        ("1.xyz", ONE + b"6 1 2 nan\n", MoleculeError, "finite"),
        ("1.xyz", ONE + b"6 1 2 3 x\n", MoleculeError, "must be charges"),
        ("1.xyz", b"0\n" + COMMENT.encode() + b"\n", MoleculeError, "holds no atoms"),
        ("1.xyz", b"3000\n" + COMMENT.encode() + b"\n" + 3000 * b"6 1 2 3\n", MoleculeError, "there are 3000 atoms"),
        ("1.xyz", bytes(2**21 + 1), ScanError, "too many for one sample"),
    ],
)
def test_broken_sample_is_named(tmp_path, scan, molecule, name, content, kind, text):
    first, second = (members(n, [scan.data], xyz(molecule)) for n in (0, 1))
    second = {key: value for key, value in {**second, name: content}.items() if value is not None}  # None: left out
    n, sentence = told(read_tar(write(tmp_path / "a.tar", first, second)), kind)
    assert n == 1
    assert text in sentence
    assert re.match(r"a\.tar: (the member )?1", sentence)


@pytest.mark.parametrize("name", ["../1.xyz", "/etc/1.xyz", "a/../../1.00.0.png", "1\n.xyz", f"{201 * 'a'}.xyz"])
def test_unsafe_names(tmp_path, scan, molecule, name):
    path = write(tmp_path / "a.tar", members(0, [scan.data], xyz(molecule)), {"1.xyz": b"", name: b"x"})
    assert "unsafe" in told(read_tar(path), ScanError)[1]
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_made_up_sizes(tmp_path, scan, molecule):
    sample = members(0, [scan.data], xyz(molecule))
    link = tarfile.TarInfo("1.xyz")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    assert "not a plain file" in told(read_tar(write(tmp_path / "a.tar", sample, extra=[link])), ScanError)[1]

    large = tarfile.TarInfo("1.00.0.png")
    large.size = 10**12
    (tmp_path / "b.tar").write_bytes(large.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "claims 1000000000000 bytes" in told(read_tar(tmp_path / "b.tar"), ScanError)[1]

    wide = io.BytesIO()  # 12000 x 12000 pixels in 20 kB
    Image.new("1", (12000, 12000)).save(wide, "png")
    path = write(tmp_path / "c.tar", sample, {"1.00.0.png": wide.getvalue(), "1.xyz": xyz(molecule)})
    n, text = told(read_tar(path), ScanError)
    assert (n, "slice 0" in text) == (1, True)


def test_every_cut_of_a_tar_is_told(tmp_path, scan, molecule):
    """Wherever the file ends early: whole samples before the cut, then one sentence; no traceback, no silence."""
    path = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule)) for n in range(2)))
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    counts = []
    for size in [*range(0, end, 256), end]:
        path.write_bytes(content[:size])
        counts.append(told(read_tar(path), AfmolError)[0])
    assert counts == sorted(counts)
    assert set(counts) == {0, 1}


def test_damaged_headers_are_told(tmp_path, scan, molecule):
    path = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule)) for n in range(2)))
    content = bytearray(path.read_bytes())
    start = content.index(b"1.01.0.png")
    content[start : start + 512] = b"\xff" * 512
    path.write_bytes(content)
    assert told(read_tar(path), ScanError) == (
        1,
        "a.tar is cut off or damaged after 1.00.0.png; copy or save it again.",
    )


def test_no_tar(tmp_path):
    assert "does not exist" in told(read_tar(tmp_path / "a.tar"), ScanError)[1]
    assert str(tmp_path) in told(read_tar(tmp_path), ScanError)[1]
    for content in (b"", b"hello " * 500, b"\x1f\x8b" + bytes(600)):
        (tmp_path / "a.tar").write_bytes(content)
        assert "uncompressed tar" in told(read_tar(tmp_path / "a.tar"), ScanError, tmp_path / "a.tar")[1]
    assert "holds no samples" in told(read_tar(write(tmp_path / "b.tar", {"README.md": b"hello"})), ScanError)[1]


@pytest.mark.parametrize(
    ("change", "options", "kind", "words"),
    [
        ({}, {"part": "val"}, ScanError, "no part 'val' (found: train)"),
        ({}, {"tip": 1}, ScanError, "images of 1 tips"),
        ({}, {"window": ((2, 2, 6), (2, 18, 8))}, ScanError, "does not fit"),
        ({}, {"window": ((2, 2, 6),)}, ScanError, "two corners"),
        ({"X": lambda x: x[0]}, {}, ScanError, "should hold floats"),
        ({"X": lambda x: np.where(x == x.max(), np.nan, x)}, {}, ScanError, "train 0: The stack holds NaN"),
        ({"xyz": lambda a: a[..., :4]}, {}, ScanError, "should hold floats"),
        ({"xyz": lambda a: np.zeros((1, 3000, 5))}, {}, ScanError, "too large"),
        ({"xyz": lambda a: 0 * a}, {}, MoleculeError, "train 0: there are 0 atoms"),
        (
            {"xyz": lambda a: np.where(a == 8, 6.5, a)},
            {},
            MoleculeError,
            "train 0: afmol does not know the element 6.5",
        ),
    ],
)
def test_broken_hdf5_is_told(tmp_path, scan, molecule, change, options, kind, words):
    arrays = {"X": scan.data[None, None], "xyz": rows(molecule, 8)[None]}
    arrays |= {name: alter(arrays[name]) for name, alter in change.items()}
    path = write_h5(tmp_path / "a.h5", arrays["X"], arrays["xyz"])
    assert words in told(read_hdf5_samples(path, **({"part": "train", "window": WINDOW} | options)), kind, "a.h5")[1]


def test_no_hdf5(tmp_path):
    (tmp_path / "text.h5").write_bytes(b"hello" * 100)
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["train/X"] = np.zeros((1, 1, 4, 4, 3))
    for name, words in (
        ("none.h5", "does not exist"),
        ("text.h5", "cannot be read as an HDF5 file"),
        ("half.h5", "lacks X or xyz"),
    ):
        assert words in told(read_hdf5_samples(tmp_path / name, "train", WINDOW), ScanError, name)[1]


def test_hdf5_yields_what_comes_before_the_damage(tmp_path, scan, molecule):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        stack = np.broadcast_to(scan.data, (3, 1, *scan.data.shape))
        file.create_dataset("test/X", data=stack, chunks=(1, 1, *scan.data.shape), fletcher32=True)
        file["test/xyz"] = np.broadcast_to(rows(molecule, 6), (3, 6, 5)).astype(np.float32)
        place = file["test/X"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as file:
        file.seek(place + 100)
        file.write(b"damage")
    n, text = told(read_hdf5_samples(path, "test", WINDOW), ScanError)
    assert n == 1
    assert text.startswith("a.h5: test 1 cannot be read")
