"""Simulated samples of other groups, an image stack with its molecule each: tar shards of ml-spm, HDF5 of Graph-AFM.

Both hold images of ppafm's OpenCL simulator, and its conventions differ from ours in the first point:

- The scan window gives the centres of the first and of the last pixel (numpy.linspace from start to end in
  ppafm/ocl/relax.py, preparePosBasis), n - 1 steps apart. Our size counts areas: the image begins half a pixel before
  the window and is n steps long.
- Arrays are (x, y, slice), as ours.
- The probe comes down from the top of the window (relaxStrokesTilted_convZ in ppafm/ocl/cl/relax.cl): the last slice is
  the closest, as ours.

ml-spm: https://github.com/SINGROUP/ml-spm (mlspm/data_generation.py, mlspm/data_loading.py). Graph-AFM:
https://github.com/SINGROUP/Graph-AFM (scripts/generate_data.py, src/data_loading.py). Neither keeps the spacing of the
slices, so that the heights are unknown.
"""

import contextlib
import io
import re
import tarfile
from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..elements import NUMBERS, bonds_by_distance
from ..errors import AfmolError, MoleculeError, ScanError
from ..files.molecules import atomic_number
from ..structures import Molecule, Scan

MOST_BYTES = 2**26
"""Files of one sample, together (ED-AFM, 3 tips x 10 slices x 192 x 192 pixels: 1 MB). This and the next four stop
damaged or malicious files from claiming all memory."""
MOST_TEXT = 2**21
"""Bytes of one .xyz."""
MOST_COMMENT = 2**12
"""Characters of its comment line that are looked at."""
MOST_VALUES = 2**25
"""Pixels times slices of one stack."""
MOST_ATOMS = 2000
"""Atoms of one sample without its surface; the table of distances grows with their square."""

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
"""A sample's name ends at the first dot, as in the webdataset format."""
_IMAGE = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?\.(?:png|jpe?g)", re.IGNORECASE)
"""SLICE.TIP.png, or SLICE.png where there is a single tip."""
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_TRIPLE = rf"[\[(]\s*({_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER}){{2}})\s*[\])]"
_WINDOW = re.compile(rf"scan window:\s*[\[(]\s*{_TRIPLE}\s*,?\s*{_TRIPLE}\s*[\])]", re.IGNORECASE)
_LATTICE = re.compile(rf'lattice="\s*({_NUMBER}(?:\s+{_NUMBER}){{8}})\s*"', re.IGNORECASE)


class _Frame(NamedTuple):
    """Where an image lies."""

    origin: tuple[float, float]
    """Its outer lower left corner in the coordinates of the atoms, A."""
    size: tuple[float, float]


class _Atoms(NamedTuple):
    """As in the file."""

    numbers: Float[np.ndarray, " n"]
    positions: Float[np.ndarray, "n 3"]
    charges: Float[np.ndarray, " n"]
    """All zero: unknown."""


def read_tar(path: str | Path, tip: int = 0, surface: Collection[int] = ()) -> Iterator[tuple[Scan, Molecule]]:
    """Samples of a tar shard of ml-spm, one after the other as the file has them; nothing is written to disk.

    Sample n consists of the images `n.SLICE.TIP.png` (or .jpg; `n.SLICE.png` is tip 0) and of `n.xyz`, whose comment
    line holds `Scan window: [[x y z] [x y z]]` or `Lattice="..."`. Other members are left alone. Values are the grey
    levels of the images, into which ml-spm scales each slice for itself.

    Positions are in the image's frame, x and y from its outer lower left corner and z = 0 at the topmost atom, inside
    the image or not. Bonds are by distance. Charges are the fifth column, unless it is all zero or there is a lattice.

    With a lattice, as in QUAM-AFM, the image is taken for the whole cell (the half pixel above may be in it or not:
    that set does not say), and its first slice for the closest: ml-spm reverses that set only (reverse=True in
    papers/ice_structure_discovery/training/fit_graphnet.py).

    Args:
        path: an uncompressed tar archive.
        tip: which of the images taken with different tips, counted from 0.
        surface: atomic numbers of the surface beneath, whose atoms are left out: (29,) for ice on Cu(111), (79,) on
            Au(111). Nobody labels them, and z = 0 must not lie on a step of the metal.

    Raises (when the iterator comes to it; the samples before have been returned by then):
        ScanError: nothing there, not a tar, cut off, members that ml-spm would not write, images missing or unequal.
        MoleculeError: no or a damaged .xyz, an element afmol does not know.
    """
    path = Path(path)
    sample = None
    for sample, members in groupby(_members(path), key=lambda member: member[0]):
        yield _tar_sample(f"{path.name}: {sample}", members, tip, surface)
    if sample is None:
        raise ScanError(f"{path.name} holds no samples; there should be images n.SLICE.TIP.png with an n.xyz.")


def read_hdf5_samples(
    path: str | Path,
    part: str,
    window: Sequence[Sequence[float]],
    tip: int = 0,
    surface: Collection[int] = (),
) -> Iterator[tuple[Scan, Molecule]]:
    """Samples of one part of an HDF5 set of Graph-AFM, as of `read_tar`; the values are the simulated ones, unscaled.

    A part is a group with `X` (sample, tip, x, y, slice) and `xyz` (sample, atom, 5): x, y, z, charge, atomic number,
    filled up with zeros. Rows that are all zero were never written and are passed over.

    Args:
        path: the file.
        part: "train", "val" or "test".
        window: lower and upper corner of ppafm's scan window, A, which the file does not hold: ((2, 2, 6), (18, 18, 8))
            in Graph-AFM's own script. z is not used.
        tip, surface: as in `read_tar`.

    Raises (when the iterator comes to it):
        ScanError: nothing there, not HDF5, damaged, no such part or tip, a window that is none.
        MoleculeError: a sample without atoms or with an element afmol does not know.
    """
    import h5py

    path = Path(path)
    with _told(path, "an HDF5 file"), h5py.File(path, "r") as file:
        group = file.get(part)
        if not isinstance(group, h5py.Group):
            raise ScanError(f"{path.name} has no part {part!r} (found: {', '.join(sorted(file)[:8]) or 'nothing'}).")
        images, atoms = group.get("X"), group.get("xyz")
        if not isinstance(images, h5py.Dataset) or not isinstance(atoms, h5py.Dataset):
            raise ScanError(f"{path.name}: {part} lacks X or xyz; it is not a set of Graph-AFM.")
        n = len(images) if images.ndim == 5 else -1
        if atoms.ndim != 3 or atoms.shape != (n, atoms.shape[1], 5) or images.dtype.kind + atoms.dtype.kind != "ff":
            raise ScanError(
                f"{path.name}: {part} should hold floats X (sample, tip, x, y, slice) and xyz (sample, atom, 5), "
                f"not {images.shape} and {atoms.shape}."
            )
        if not 0 <= tip < images.shape[1]:
            raise ScanError(f"{path.name}: {part} holds images of {images.shape[1]} tips, counted from 0, not {tip}.")
        _, _, nx, ny, nz = images.shape
        if nx * ny * nz > MOST_VALUES or atoms.shape[1] > MOST_ATOMS:
            raise ScanError(
                f"{path.name}: samples of {nx} x {ny} x {nz} values and {atoms.shape[1]} atoms are too large "
                f"(at most {MOST_VALUES} values, {MOST_ATOMS} atoms)."
            )
        frame = _frame(window, (nx, ny), path.name)
        for k in range(n):
            source = f"{path.name}: {part} {k}"
            with _told(path, "an HDF5 file", source), np.errstate(over="ignore"):
                data, rows = images[k, tip].astype(np.float32), atoms[k].astype(float)
            rows = rows[rows[:, 4] != 0]
            if len(rows) or data.any():
                yield _sample(source, data, frame, _Atoms(rows[:, 4], rows[:, :3], rows[:, 3]), surface)


@contextlib.contextmanager
def _told(path: Path, what: str, source: str | None = None) -> Generator[None, None, None]:
    """What libraries raise, as one sentence."""
    try:
        yield
    except AfmolError:
        raise
    except FileNotFoundError as error:
        raise ScanError(f"{path} does not exist; check the path.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise ScanError(f"{path} cannot be read ({error.strerror}); give a file that you may read.") from error
    except Exception as error:
        # Libraries raise nearly everything on damaged bytes; for the user it is one case.
        raise ScanError(
            f"{source or path} cannot be read as {what}; it is damaged, cut off or no such file."
        ) from error


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Sample, ending and content of each image and .xyz, in the archive's order."""
    last = "its start"
    # Plain tar only: bytes that unpack to a thousand times as many cannot occur then.
    with (
        _told(path, "an uncompressed tar archive"),
        path.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        while True:
            with _told(path, "an uncompressed tar archive", f"{path.name}: what follows {last}"):
                info = tar.next()
            if info is None:
                break
            # tarfile remembers every member otherwise, hundreds of MB in a large shard.
            tar.members.clear()  # pyrefly: ignore[missing-attribute]
            name = info.name
            if name.startswith("/") or ".." in name.split("/") or not name.isprintable() or len(name) > 200:
                raise ScanError(f"{path.name}: the member name {name[:80]!a} is unsafe; this is not a shard of ml-spm.")
            if info.isdir():
                continue
            if not info.isfile() or info.size < 0:
                raise ScanError(f"{path.name}: the member {name} is not a plain file; this is not a shard of ml-spm.")
            last = name
            said = _MEMBER.fullmatch(name)
            if said is None or not (said[2] == "xyz" or _IMAGE.fullmatch(said[2])):
                continue
            if info.size > (MOST_TEXT if said[2] == "xyz" else MOST_BYTES):
                raise ScanError(f"{path.name}: the member {name} claims {info.size} bytes, too many for one sample.")
            with _told(path, "a member of a tar archive", f"{path.name}: {name}"):
                content = tar.extractfile(info)
                assert content is not None, "None is for links and folders"
                data = content.read()
            yield said[1], said[2], data
        # tarfile takes whatever is no header for the end; a true one is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ScanError(f"{path.name} is cut off or damaged after {last}; copy or save it again.")


def _tar_sample(
    source: str, members: Iterator[tuple[str, str, bytes]], tip: int, surface: Collection[int]
) -> tuple[Scan, Molecule]:
    parts: dict[tuple[int, int] | None, bytes] = {}  # by (tip, slice), the .xyz by None
    total = 0
    for _, ending, content in members:
        said = _IMAGE.fullmatch(ending)
        key = (int(said[2] or 0), int(said[1])) if said else None
        if key in parts:
            raise ScanError(f"{source}: {ending} is there twice; write the shard again.")
        parts[key] = content
        total += len(content)
        if total > MOST_BYTES:
            raise ScanError(f"{source}: the images take more than {MOST_BYTES} bytes, too many for one sample.")
    text = parts.pop(None, None)
    if text is None:
        raise MoleculeError(f"{source}: there is no .xyz beside the images; write the shard again.")
    contents = {key[1]: content for key, content in parts.items() if key and key[0] == tip}
    if not contents:
        tips = ", ".join(str(found) for found in sorted({key[0] for key in parts if key})[:8])
        raise ScanError(f"{source}: there is no image of tip {tip} (found: {tips or 'none'}).")
    missing = sorted(set(range(max(contents) + 1)) - set(contents))
    if missing:
        raise ScanError(f"{source}: slice {missing[0]} of tip {tip} is missing; write the shard again.")

    images = [_image(contents[k], MOST_VALUES // len(contents), f"{source}: slice {k}") for k in range(len(contents))]
    odd = next((k for k, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        a, b = ("x".join(map(str, image.shape)) for image in (images[0], images[odd]))
        raise ScanError(f"{source}: slices 0 and {odd} have different numbers of pixels ({a} and {b}).")
    data = np.stack(images, axis=-1)
    comment, atoms = _xyz(text.decode("utf-8", "replace"), source)
    cell = _LATTICE.search(comment)
    if cell:
        # The fifth column of an extended .xyz may be anything.
        atoms, data = atoms._replace(charges=np.zeros(len(atoms.charges))), data[:, :, ::-1]
        frame = _cell(np.array(cell[1].split(), float).reshape(3, 3), source)
    else:
        frame = _frame(_corners(comment, source), data.shape[:2], source)
    return _sample(source, np.ascontiguousarray(data), frame, atoms, surface)


def _image(content: bytes, most: int, source: str) -> Float[np.ndarray, "nx ny"]:
    """Grey levels; rows of the file run from the top down (ml-spm saves the transpose, flipped)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > most:
                raise ScanError(f"{source}: {image.width} x {image.height} pixels are too many for one sample.")
            grey = image if image.mode in ("L", "I", "I;16", "F") else image.convert("L")
            return np.asarray(grey).astype(np.float32)[::-1].T
    except ScanError:
        raise
    except Exception as error:  # as in `_told`
        raise ScanError(f"{source} cannot be read as PNG or JPEG; it is damaged, write the shard again.") from error


def _xyz(text: str, source: str) -> tuple[str, _Atoms]:
    """The comment, and rows of element or atomic number, x, y, z, perhaps a charge."""
    lines = text.split("\n")
    rows = [line.split() for line in lines[2:] if line.strip()]
    if len(lines) < 2 or lines[0].strip() != str(len(rows)):
        raise MoleculeError(f"{source}: the .xyz does not hold as many atoms as its first line says; it is damaged.")
    if any(len(row) < 4 for row in rows):
        raise MoleculeError(f"{source}: each atom of the .xyz needs an element and three coordinates.")
    try:
        numbers = np.array([atomic_number(row[0]) for row in rows], float)
        values = np.array([[float(cell) for cell in (*row, "0")[1:5]] for row in rows]).reshape(-1, 4)
    except MoleculeError as error:
        raise MoleculeError(f"{source}: {error}") from error
    except (ValueError, OverflowError) as error:
        raise MoleculeError(f"{source}: the .xyz has coordinates or charges that are no numbers.") from error
    return lines[1][:MOST_COMMENT], _Atoms(numbers, values[:, :3], values[:, 3])


def _corners(comment: str, source: str) -> list[list[float]]:
    """The scan window of a comment line; numpy 2 writes its scalars as np.float64(1.0)."""
    said = _WINDOW.search(re.sub(r"np\.float\d+\(([^()]*)\)", r"\1", comment))
    if said is None:
        raise MoleculeError(
            f"{source}: the comment of the .xyz holds neither 'Scan window: [[x y z] [x y z]]' nor 'Lattice=\"...\"'."
        )
    return [[float(cell) for cell in re.split(r"\s*,\s*|\s+", triple)] for triple in said.groups()]


def _frame(window: Sequence[Sequence[float]], pixels: Sequence[int], source: str) -> _Frame:
    """From the centres of the first and last pixel to the area."""
    origin, size = [], []
    if len(window) != 2 or any(len(corner) < 2 for corner in window):
        raise ScanError(f"{source}: the scan window must be two corners, ((x, y, z), (x, y, z)), not {window}.")
    for start, end, n in zip(window[0][:2], window[1][:2], pixels, strict=True):
        if not np.isfinite([start, end]).all() or end <= start or n < 2:
            raise ScanError(f"{source}: a scan window from {start} to {end} A does not fit an image of {n} pixels.")
        step = (end - start) / (n - 1)
        origin.append(float(start - step / 2))
        size.append(float(n * step))
    return _Frame((origin[0], origin[1]), (size[0], size[1]))


def _cell(lattice: Float[np.ndarray, "3 3"], source: str) -> _Frame:
    lengths = np.diag(lattice)
    if not np.isfinite(lattice).all() or (lengths[:2] <= 0).any() or np.abs(lattice - np.diag(lengths)).max() > 1e-3:
        raise ScanError(f"{source}: the lattice is not right-angled along x, y and z; such images cannot be placed.")
    return _Frame((0.0, 0.0), (float(lengths[0]), float(lengths[1])))


def _sample(
    source: str, data: Float[np.ndarray, "nx ny nz"], frame: _Frame, atoms: _Atoms, surface: Collection[int]
) -> tuple[Scan, Molecule]:
    keep = ~np.isin(atoms.numbers, list(surface))
    numbers, positions, charges = (values[keep] for values in atoms)
    if not 0 < len(numbers) <= MOST_ATOMS:
        raise MoleculeError(f"{source}: there are {len(numbers)} atoms; a sample has 1 to {MOST_ATOMS}.")
    if not np.isfinite(positions).all() or not np.isfinite(charges).all():
        raise MoleculeError(f"{source}: positions and charges must be finite numbers; the sample is damaged.")
    unknown = numbers[~np.isin(numbers, NUMBERS)]
    if len(unknown):
        raise MoleculeError(
            f"{source}: afmol does not know the element {_symbol(unknown[0])}; if it is the surface, "
            "leave it out by its atomic number (surface=(29,) for copper)."
        )
    numbers = numbers.astype(int)
    positions = positions - [*frame.origin, positions[:, 2].max()]
    try:
        scan = Scan(data, frame.size, source=source)
        bonds = bonds_by_distance(positions, numbers)
        return scan, Molecule(positions, numbers, bonds, charges=charges if charges.any() else None, name=source)
    except AfmolError as error:
        raise type(error)(f"{source}: {error}") from error


def _symbol(number: float) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[int(number)] if number in range(1, len(chemical_symbols)) else f"{number:g}"
