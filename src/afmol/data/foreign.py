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

import io
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..elements import NUMBERS, bonds_by_distance
from ..errors import AfmolError, ConfigError, MoleculeError, ScanError
from ..files import check_dataset, opened_h5, reading
from ..files.molecules import xyz_atoms, xyz_rows
from ..structures import Molecule, Sample, Scan, check_atoms

# Damaged or malicious files must not claim all memory.
MOST_BYTES = 2**26
"""Files of one sample, together (ED-AFM, 3 tips x 10 slices x 192 x 192 pixels: 1 MB)."""
MOST_TEXT, MOST_COMMENT = 2**21, 2**12
"""Bytes of one .xyz, and characters of its comment line that are looked at."""
MOST_VALUES, MOST_ATOMS = 2**25, 2000
"""Pixels times slices of one stack; its atoms without the surface, whose table of distances grows with their square."""

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
"""A sample's name ends at the first dot, as in the webdataset format."""
_IMAGE = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?\.(?:png|jpe?g)", re.IGNORECASE)
"""SLICE.TIP.png, or SLICE.png where there is a single tip."""
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_TRIPLE = rf"[\[(]\s*({_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER}){{2}})\s*[\])]"
_WINDOW = re.compile(rf"scan window:\s*[\[(]\s*{_TRIPLE}\s*,?\s*{_TRIPLE}\s*[\])]", re.IGNORECASE)
_LATTICE = re.compile(rf'lattice="\s*({_NUMBER}(?:\s+{_NUMBER}){{8}})\s*"', re.IGNORECASE)

_Frame = tuple[tuple[float, float], tuple[float, float]]
"""Where an image lies: its outer lower left corner in the coordinates of the atoms, and its lengths, A."""


def read_tar(path: str | Path, tip: int = 0, surface: Collection[int] = ()) -> Iterator[Sample]:
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
) -> Iterator[Sample]:
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
    with reading(path, "an HDF5 file", ScanError), opened_h5(path, f"{path.name}: ", ScanError) as file:
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
        for dataset in (images, atoms):  # of samples that nobody wrote there would be no end
            check_dataset(dataset, f"{path.name}: ", ScanError, stored=path.stat().st_size)
        frame = _frame(window, (nx, ny), path.name)
        for k in range(n):
            source = f"{path.name}: {part} {k}"
            with reading(path, "an HDF5 file", ScanError, source), np.errstate(over="ignore"):
                data, rows = images[k, tip].astype(np.float32), atoms[k].astype(float)
            rows = rows[rows[:, 4] != 0]
            if len(rows) or data.any():
                yield _sample(source, data, frame, rows, surface)


def read_samples(
    paths: Sequence[str | Path],
    part: str,
    window: tuple[float, float, float, float] | None,
    tip: int = 0,
    surface: Collection[int] = (),
) -> Iterator[Sample]:
    """The samples of several files of either kind, by their suffixes.

    `part`, and `window` (x and y of the first and of the last pixel's centre, A), are those of `read_hdf5_samples`.

    Raises:
        ConfigError: another suffix, or HDF5 without a window, before any sample. What reading raises.
    """
    sets = []
    for path in map(Path, paths):
        if path.suffix == ".tar":
            sets.append(read_tar(path, tip, surface))
        elif path.suffix not in (".h5", ".hdf5"):
            raise ConfigError(f"{path} is neither a .tar nor an .hdf5 file of samples.")
        elif window is None:
            raise ConfigError(f"{path} does not say where it was scanned; give --window, 2 2 18 18 for the original.")
        else:
            sets.append(read_hdf5_samples(path, part, ((*window[:2], 0.0), (*window[2:], 0.0)), tip, surface))
    return chain.from_iterable(sets)


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Sample, ending and content of each image and .xyz, in the archive's order."""
    last = "its start"
    # Plain tar only: bytes that unpack to a thousand times as many cannot occur then.
    with (
        reading(path, "an uncompressed tar archive", ScanError),
        path.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        while True:
            with reading(path, "an uncompressed tar archive", ScanError, f"{path.name}: what follows {last}"):
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
            member = _MEMBER.fullmatch(name)
            if member is None or not (member[2] == "xyz" or _IMAGE.fullmatch(member[2])):
                continue
            if info.size > (MOST_TEXT if member[2] == "xyz" else MOST_BYTES):
                raise ScanError(f"{path.name}: the member {name} claims {info.size} bytes, too many for one sample.")
            with reading(path, "a member of a tar archive", ScanError, f"{path.name}: {name}"):
                content = tar.extractfile(info)
                assert content is not None, "None is for links and folders"
                data = content.read()
            yield member[1], member[2], data
        # tarfile takes whatever is no header for the end; a true one is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ScanError(f"{path.name} is cut off or damaged after {last}; copy or save it again.")


def _tar_sample(source: str, members: Iterator[tuple[str, str, bytes]], tip: int, surface: Collection[int]) -> Sample:
    parts: dict[tuple[int, int] | None, bytes] = {}  # by (tip, slice), the .xyz by None
    total = 0
    for _, ending, content in members:
        image = _IMAGE.fullmatch(ending)
        key = (int(image[2] or 0), int(image[1])) if image else None
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
    try:
        comment, rows = _xyz(text.decode("utf-8", "replace"))
    except MoleculeError as error:
        raise MoleculeError(f"{source}: {error}") from error
    cell = _LATTICE.search(comment)
    if cell:
        data = data[:, :, ::-1]
        frame = _cell(np.array(cell[1].split(), float).reshape(3, 3), source)
    else:
        frame = _frame(_corners(comment, source), data.shape[:2], source)
    return _sample(source, np.ascontiguousarray(data), frame, rows, surface)


def _image(content: bytes, most: int, source: str) -> Float[np.ndarray, "nx ny"]:
    """Grey levels; rows of the file run from the top down (ml-spm saves the transpose, flipped)."""
    from PIL import Image

    formats = ("PNG", "JPEG")
    with reading(source, "PNG or JPEG", ScanError), Image.open(io.BytesIO(content), formats=formats) as image:
        if image.width * image.height > most:
            raise ScanError(f"{source}: {image.width} x {image.height} pixels are too many for one sample.")
        grey = image if image.mode in ("L", "I", "I;16", "F") else image.convert("L")
        return np.asarray(grey).astype(np.float32)[::-1].T


def _xyz(text: str) -> tuple[str, Float[np.ndarray, "n 5"]]:
    """The comment, and x, y, z, charge (0 where there is none) and atomic number of each atom."""
    comment, cells = xyz_rows(text)
    if text.rstrip().count("\n") > len(cells) + 1:
        raise MoleculeError("the .xyz holds more atoms than its first line says; it is damaged.")
    numbers, positions = xyz_atoms(cells)
    comment = comment[:MOST_COMMENT]
    extended = _LATTICE.search(comment)  # its fifth column may be anything
    try:
        charges = [float(row[4]) if len(row) > 4 and not extended else 0.0 for row in cells]
    except ValueError as error:
        raise MoleculeError(f"the fifth column of the .xyz must be charges ({error}).") from error
    return comment, np.column_stack([positions, charges, numbers])


def _corners(comment: str, source: str) -> list[list[float]]:
    """The scan window of a comment line; numpy 2 writes its scalars as np.float64(1.0)."""
    window = _WINDOW.search(re.sub(r"np\.float\d+\(([^()]*)\)", r"\1", comment))
    if window is None:
        text = "the comment of the .xyz holds neither 'Scan window: [[x y z] [x y z]]' nor 'Lattice=\"...\"'"
        raise MoleculeError(f"{source}: {text}.")
    return [[float(cell) for cell in re.split(r"\s*,\s*|\s+", triple)] for triple in window.groups()]


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
    return (origin[0], origin[1]), (size[0], size[1])


def _cell(lattice: Float[np.ndarray, "3 3"], source: str) -> _Frame:
    lengths = np.diag(lattice)
    if not np.isfinite(lattice).all() or (lengths[:2] <= 0).any() or np.abs(lattice - np.diag(lengths)).max() > 1e-3:
        raise ScanError(f"{source}: the lattice is not right-angled along x, y and z; such images cannot be placed.")
    return (0.0, 0.0), (float(lengths[0]), float(lengths[1]))


def _sample(
    source: str,
    data: Float[np.ndarray, "nx ny nz"],
    frame: _Frame,
    rows: Float[np.ndarray, "n 5"],
    surface: Collection[int],
) -> Sample:
    """A sample of rows x, y, z, charge, atomic number; charges that are all zero are unknown."""
    rows = rows[~np.isin(rows[:, 4], list(surface))]
    if not 0 < len(rows) <= MOST_ATOMS:
        raise MoleculeError(f"{source}: there are {len(rows)} atoms; a sample has 1 to {MOST_ATOMS}.")
    if not np.isfinite(rows).all():
        raise MoleculeError(f"{source}: positions and charges must be finite numbers; the sample is damaged.")
    unknown = rows[~np.isin(rows[:, 4], NUMBERS), 4]
    if len(unknown):
        raise MoleculeError(
            f"{source}: afmol does not know the element {_symbol(unknown[0])}; if it is the surface, "
            "leave it out by its atomic number (surface=(29,) for copper)."
        )
    origin, size = frame
    positions, charges, numbers = rows[:, :3] - [*origin, rows[:, 2].max()], rows[:, 3], rows[:, 4].astype(int)
    try:
        check_atoms(positions, charges)
        bonds = bonds_by_distance(positions, numbers)
        scan = Scan(data, size, source=source)
        return Sample(scan, Molecule(positions, numbers, bonds, charges if charges.any() else None, name=source))
    except AfmolError as error:
        raise type(error)(f"{source}: {error}") from error


def _symbol(number: float) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[int(number)] if number in range(1, len(chemical_symbols)) else f"{number:g}"
