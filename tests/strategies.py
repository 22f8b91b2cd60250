"""What several tests need: made-up molecules and files, and what a good message is."""

import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from afmol.cli import main
from afmol.data.molecules import pack_molecules
from afmol.elements import NUMBERS, bonds_by_distance
from afmol.simulation import Grid, Tip, simulate, standard_heights
from afmol.structures import Molecule, Sample


def one_sentence(error, path: Path | str) -> None:
    """The message names the file and is one sentence."""
    text = str(error.value)
    assert len(text) <= 300
    assert str(path) in text or (len(str(path)) > 200 and str(path)[:60] in text)
    assert text.endswith(".")
    assert not text.endswith("..")
    assert ". " not in text.replace(str(path), "")
    assert "\n" not in text
    assert len(text.replace(str(path), "")) <= 300


def refused(capsys, arguments, *words):
    """Run, expect exit code 2 and one sentence on stderr that holds the words."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert text.count("\n") == 1, text
    assert text.startswith("afmol: ")
    assert "Traceback" not in text
    for word in words:
        assert word in text
    return text


# Molecules


def made(positions, numbers, name="", seed=0) -> Molecule:
    """With bonds by distance and small random charges."""
    positions, numbers = np.array(positions, float), np.array(numbers, np.int64)
    charges = np.random.default_rng(seed).normal(0, 0.1, len(numbers)).round(4)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), charges, name=name)


def flat_ring(n: int = 6, hetero: int = 7) -> Molecule:
    angle = 2 * np.pi * np.arange(n) / n
    ring = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    return made(np.concatenate([1.39 * ring, 2.48 * ring[1:]]), [hetero, *[6] * (n - 1), *[1] * (n - 1)], "flat")


def lamp() -> Molecule:
    """A flat ring with an iodine 2 A above it: it shows which face is up."""
    ring = flat_ring()
    return made(np.concatenate([ring.positions, [[0.0, 0.0, 2.0]]]), [*ring.numbers, 53], "lamp")


def hand() -> Molecule:
    """A chiral centre with four different neighbours."""
    directions = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    neighbours = directions * [[1.1], [1.38], [1.76], [1.94]]
    return made(np.concatenate([[[0.0, 0, 0]], neighbours]), [6, 1, 9, 17, 35], "hand")


def chain(n: int = 9, seed: int = 0) -> Molecule:
    """A screw of radius 1.2 A with 0.5 A and 1.2 radians from atom to atom: not flat."""
    k = np.arange(n)
    screw = np.column_stack([0.5 * k, 1.2 * np.cos(1.2 * k), 1.2 * np.sin(1.2 * k)])
    return made(screw - screw.mean(0), np.random.default_rng(seed).choice([6, 7, 16], n), "chain")


def row(n: int = 3, **change) -> Molecule:
    """Carbon atoms in a row, each bonded to the next, which is 0.7 A away."""
    bonds = np.column_stack([np.arange(n - 1), np.arange(1, n)])
    parts = {"positions": np.arange(n)[:, None] * [0.7, 0, 0], "numbers": np.full(n, 6), "bonds": bonds}
    return Molecule(**(parts | {"charges": np.zeros(n), "name": "x"} | change))


def few_molecules(path: Path) -> str:
    """A packed set of four."""
    pack_molecules([flat_ring(), lamp(), chain(), flat_ring(5, 16)], path)
    return str(path)


@st.composite
def molecules(draw, charged: bool = False, names: st.SearchStrategy[str] | None = None) -> Molecule:
    """Any bonds between any elements, no two closer than 0.6 A; charges, up to 1 e, if they are asked for or else
    sometimes."""
    n = draw(st.integers(1, 12))
    pairs = [(i, j) for j in range(n) for i in range(j)]
    bonds = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=20)) if pairs else []
    share = hnp.arrays(np.float64, n, elements=st.floats(0, 1))
    return Molecule(
        draw(hnp.arrays(np.int64, (n, 3), elements=st.integers(-32, 32), unique=True)) * 0.9832
        + draw(hnp.arrays(np.int64, (n, 3), elements=st.integers(-100, 100))) / 1017,
        draw(hnp.arrays(np.int64, n, elements=st.sampled_from(NUMBERS.tolist()))),
        np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        charges=1 - 2 * draw(share) if charged or draw(st.booleans()) else None,
        class_probabilities=np.eye(5)[[0] * n],
        confidence=draw(st.none() | share),
        name="" if names is None else draw(names),
    )


def same(a: Molecule, b: Molecule, positions: float = 1e-9, charges: float = 1e-9) -> None:
    """Equal, up to so many A and e."""
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_array_equal(a.bonds, b.bonds)
    np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=positions)
    assert (a.charges is None) == (b.charges is None)
    if a.charges is not None:
        np.testing.assert_allclose(a.charges, b.charges, rtol=0, atol=charges)
    assert a.name == b.name


# Files of one image


def both(image: np.ndarray) -> dict[str, np.ndarray]:
    return {"forward": image, "backward": image}


def sxm(
    views: dict[str, dict[str, np.ndarray]],
    z: float | None = 1e-10,
    up: bool = True,
    size: tuple[float, float] = (8e-10, 6e-10),
    feedback: str = "OFF",
    offset: tuple[float, float] = (1e-8, -2e-8),
    kind: str = "FLOAT            MSBFIRST",
) -> bytes:
    """A Nanonis scan of images (x, y) seen from the lower left corner: {channel: {"forward": ..., "backward": ...}}."""
    nx, ny = next(iter(next(iter(views.values())).values())).shape
    table = ["\tChannel\tName\tUnit\tDirection\tCalibration\tOffset"]
    body = b""
    for number, (name, ways) in enumerate(views.items()):
        table.append(f"\t{number}\t{name}\tHz\t{'both' if len(ways) == 2 else next(iter(ways))}\t1.0\t0.0")
        for way in ("forward", "backward"):
            if way in ways:
                rows = ways[way].T if up else ways[way].T[::-1]
                rows = rows if way == "forward" else rows[:, ::-1]
                body += rows.astype(">f4" if "MSB" in kind else "<f4").tobytes()
    header = {
        "NANONIS_VERSION": "2",
        "SCANIT_TYPE": f"              {kind}",
        "SCAN_PIXELS": f"       {nx}       {ny}",
        "SCAN_RANGE": f"           {size[0]:.6E}           {size[1]:.6E}",
        "SCAN_OFFSET": f"  {offset[0]:.6E} {offset[1]:.6E}",
        "SCAN_ANGLE": "            -4.100E+1",
        "SCAN_TIME": "             1.666E+0             8.328E-1",
        "SCAN_DIR": "up" if up else "down",
        "ACQ_TIME": "       120.1",
        "BIAS": "            -1.140E-3",
        "COMMENT": "Cu(111)\n\n20 \u00b5A: a note",
        **({} if z is None else {"Z-Controller>Z (m)": f"{z:.6E}"}),
        "Z-Controller>Controller status": feedback,
        "DATA_INFO": "\n".join(table),
    }
    text = "".join(f":{key}:\n{value}\n" for key, value in header.items()) + "\n:SCANIT_END:\n\n\n"
    return text.encode() + b"\x1a\x04" + body


def gsf(image: np.ndarray, **fields: object) -> bytes:
    """Gwyddion Simple Field of an image given as Gwyddion shows it: rows from the top."""
    fields = {"XRes": image.shape[1], "YRes": image.shape[0], **fields}
    header = b"Gwyddion Simple Field 1.0\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()).encode()
    return header + b"\0" * (4 - len(header) % 4) + struct.pack(f"<{image.size}f", *image.ravel())


# Samples of other groups, written by the layouts that their programs document

START, STEP, SHAPE = np.array([5.0, -2.0]), 0.4, (24, 20)
"""Centre of the first pixel and spacing, A: what ppafm calls the start of its scan window."""
END = START + STEP * (np.array(SHAPE) - 1)
CORNER, SIZE = (4.8, -2.2), (9.6, 8.0)
"""Of the image as we count: half a pixel before the first centre."""
COMMENT = f"Scan window: [[{START[0]} {START[1]} 6.0] [{END[0]} {END[1]} 7.9]]"


def theirs() -> Sample:
    """Chlorine, on top, at one end of a bent chain, off the middle of the image: no two orientations look alike."""
    positions = [
        [7.2, -0.6, 3.2],
        [8.9, -0.6, 2.4],
        [9.6, 0.6, 2.4],
        [8.9, 1.7, 2.4],
        [10.7, 0.6, 2.3],
        [9.4, -1.5, 2.3],
    ]
    numbers, bonds = np.array([17, 6, 6, 8, 1, 1]), np.array([[0, 1], [1, 2], [1, 5], [2, 3], [2, 4]])
    molecule = Molecule(np.array(positions), numbers, bonds, charges=np.array([-0.2, 0.1, 0.3, -0.4, 0.1, 0.1]))
    heights = standard_heights(molecule, Tip(), 2.9, slices=4, step=0.2)
    return Sample(simulate(molecule, Tip(), Grid(CORNER, SIZE, SHAPE, heights), parallel=False), molecule)


def picture(values: np.ndarray, kind: str = "png") -> bytes:
    """8 bit, scaled for itself; image files run row by row from the top, so that y is flipped."""
    grey = np.floor((values - values.min()) / max(np.ptp(values), 1e-9) * 255).astype(np.uint8)
    buffer, options = io.BytesIO(), {"quality": 95} if kind == "jpeg" else {}
    Image.fromarray(np.ascontiguousarray(grey.T[::-1])).save(buffer, kind, **options)
    return buffer.getvalue()


def xyz(molecule: Molecule, comment: str = COMMENT, symbols: bool = False, charges: bool = True) -> bytes:
    lines = [str(len(molecule)), comment]
    for k, position in enumerate(molecule.positions):
        cells = [molecule.symbols[k] if symbols else str(molecule.numbers[k]), *(f"{x:10.8f}" for x in position)]
        if charges and molecule.charges is not None:
            cells.append(f"{molecule.charges[k]:10.8f}")
        lines.append("\t".join(cells) + "\t")
    return ("\n".join(lines) + "\n").encode()


def members(n: int, stacks: Sequence[np.ndarray], text: bytes) -> dict[str, bytes]:
    """One sample as ml-spm names it, with a descriptor, which must never be unpickled."""
    images = {
        f"{n}.{j:02d}.{i}.png": picture(stack[:, :, j]) for i, stack in enumerate(stacks) for j in range(stack.shape[2])
    }
    return {**images, f"{n}.xyz": text, f"{n}.desc_0.npy": b"\x80\x04 a pickle"}


def write(path: Path, *samples: dict[str, bytes], extra: Sequence[tarfile.TarInfo] = ()) -> Path:
    """A tar of the members."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for sample in samples:
            for name, content in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path
