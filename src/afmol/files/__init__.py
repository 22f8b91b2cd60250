"""Reading and writing scans and molecules: two tables, suffix -> functions.

Stacks, one file:
    .npz          arrays `data` (nx, ny, nz), `lengthX`, `lengthY` (A); optionally `heights` (nz,), A, not ascending
    .h5 .hdf5     the same four names at the root: `data` and `heights` datasets, lengths scalar datasets or attributes
Slices, one image a file; a stack is several files or a folder of them:
    .sxm          Nanonis; read only
    .gsf          Gwyddion Simple Field; written as a folder NAME.gsf/000.gsf ...
Molecules:
    .xyz          plain (element or atomic number, x, y, z, perhaps a charge) and extended; bonds by distance
    .sdf .mol     bonds as in the file

Whatever the file's order, a Scan has x to the right, y upward from the lower left corner, and the closest slice last.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from jaxtyping import Float

from ..errors import AfmolError, ConfigError, MoleculeError, ScanError
from ..structures import Molecule, Scan
from .molecules import atomic_number, mol, read_sdf, read_xyz, sdf, xyz
from .nanonis import Direction, read_sxm
from .scans import Slice, Stack, assemble, gsf, h5, natural, npz, packed, read_gsf, read_h5, read_npz

__all__ = [
    "MOLECULES",
    "SCANS",
    "Direction",
    "atomic_number",
    "make_folder",
    "read_molecule",
    "read_scan",
    "write_arrays",
    "write_file",
    "write_molecule",
    "write_scan",
]

_T = TypeVar("_T")
_Content = bytes | dict[str, bytes]

SCANS: dict[str, tuple[Callable[..., Stack | Slice], Callable[[Scan], _Content] | None]] = {
    ".npz": (read_npz, npz),
    ".h5": (read_h5, h5),
    ".hdf5": (read_h5, h5),
    ".sxm": (read_sxm, None),
    ".gsf": (read_gsf, gsf),
}
MOLECULES: dict[str, tuple[Callable[[Path], Molecule], Callable[[Molecule], str]]] = {
    ".xyz": (read_xyz, xyz),
    ".sdf": (read_sdf, sdf),
    ".mol": (read_sdf, mol),
}
_IMAGES = (".sxm", ".gsf")
"""Files of one slice each; the others hold a whole stack."""


def read_scan(
    path: str | Path | Sequence[str | Path],
    size: tuple[float, float] | None = None,
    heights: Sequence[float] | Float[np.ndarray, " nz"] | None = None,
    channel: str | None = None,
    direction: Direction = "average",
) -> Scan:
    """Read a stack from one file (.npz, .h5), or from the slices of a folder or of a list of files (.sxm, .gsf).

    Args:
        path: a file, a folder of slices (taken in the order of their names, 2 before 10), or the files of the slices.
        size: lengths of the image in x and y, A; overrides the file.
        heights: tip height of each slice, A, larger is farther; overrides the files. For slices: one a file, in the
            order of `path`, and the slices are sorted by them. For one file: in the order of its slices, not ascending.
        channel: name of the channel, for .sxm; None: the one frequency shift.
        direction: of the fast scan axis, for .sxm; "average" takes the mean of both.

    Slices at the same height, as of an approach and a retraction, are all kept, in the order of their names.

    Raises:
        ScanError: nothing there, damaged, not one stack, or a size or height that nobody gave.
    """
    files, source = _scan_files(path)
    suffix = files[0].suffix.lower()
    if direction not in ("average", "forward", "backward"):
        raise ScanError(f"The direction must be average, forward or backward, not {direction!r}.")
    if suffix != ".sxm" and (channel is not None or direction != "average"):
        raise ScanError(f"{source}: channel and direction can be chosen in .sxm files only; leave them out.")
    if heights is not None:
        heights = _numbers(heights, source, "heights")
    if size is not None:
        lengths = _numbers(size, source, "size")
        if len(lengths) != 2:
            raise ScanError(f"{source}: the size must be two lengths in Angstrom, in x and in y, not {len(lengths)}.")
        size = (float(lengths[0]), float(lengths[1]))

    read, _ = SCANS[suffix]
    choice = {"channel": channel, "direction": direction} if suffix == ".sxm" else {}
    parts = [_decode(file, lambda file: read(file, **choice), ScanError) for file in files]
    if isinstance(parts[0], Stack):
        stack = parts[0]
        heights = stack.heights if heights is None else heights
    else:
        stack = assemble(files, [part for part in parts if isinstance(part, Slice)], heights, source)
        heights = stack.heights
    size = stack.size if size is None else size
    if size is None:
        raise ScanError(
            f"{source} does not say how large the image is; "
            "give its lengths in A with --size LX LY (size=(lx, ly) in Python)."
        )
    # Scan says these two as well, but its annotations would come first where they are checked, as in a test run.
    shape = stack.data.shape
    if len(shape) != 3:
        raise ScanError(f"{source}: a stack has three dimensions (x, y, slice); this one has the shape {shape}.")
    if heights is not None and len(heights) != shape[2]:
        raise ScanError(f"{source} has {shape[2]} slices, but {len(heights)} heights were given; give one each.")
    try:
        return Scan(stack.data, size, heights, source)
    except ScanError as error:
        raise ScanError(f"{source}: {error}") from error


def write_scan(scan: Scan, path: str | Path) -> None:
    """Write a stack as .npz or .h5, or as a folder NAME.gsf of one Gwyddion Simple Field a slice.

    An existing file is replaced only once the new one is complete; a folder with something in it is left alone.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
        ScanError: values beyond 32 bits for .gsf.
    """
    path = Path(path)
    writers = {suffix: write for suffix, (_, write) in SCANS.items() if write is not None}
    write_file(path, _by_suffix(path, writers, ConfigError)(scan))


def read_molecule(path: str | Path) -> Molecule:
    """Read the first molecule of an .xyz, .sdf or .mol file; positions as they stand there, A.

    Bonds are the file's (.sdf, .mol) or come from the distance table (.xyz). Charges are read from a column or property
    that says so, and from a fifth column of plain .xyz with numbers of both signs and a whole sum; otherwise they are
    unknown.

    Raises:
        MoleculeError: nothing there, damaged, no 3D coordinates, or an element afmol does not know.
    """
    path = Path(path)
    read, _ = _by_suffix(_existing(path, MoleculeError), MOLECULES, MoleculeError)
    return _decode(path, read, MoleculeError)


def write_molecule(molecule: Molecule, path: str | Path) -> None:
    """Write .xyz (extended, with class, charge and confidence as further columns), .sdf or .mol (all bonds single).

    An existing file is replaced only once the new one is complete.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
    """
    path = Path(path)
    _, write = _by_suffix(path, MOLECULES, ConfigError)
    write_file(path, write(molecule).encode())


def write_file(path: str | Path, content: _Content) -> None:
    """A file, or a folder of files, complete or not at all: written beside its place, then moved there.

    Raises:
        ConfigError: a path that cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # two machines may have the same process ids
    try:
        if isinstance(content, bytes):
            draft.write_bytes(content)
            with draft.open("rb") as file:
                os.fsync(file.fileno())  # whole also after a power cut
        else:
            draft.mkdir()
            for name, part in content.items():
                (draft / name).write_bytes(part)
        os.replace(draft, path)
    except OSError as error:
        hint = "choose another name or folder"
        raise ConfigError(f"{path} cannot be written ({(error.strerror or 'error').lower()}); {hint}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            draft.unlink()


def make_folder(path: str | Path) -> Path:
    """A folder for results, made if it is not there; ConfigError if it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {path} cannot be made: {error.strerror}.") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"The folder {path} cannot be written.")
    return path


def write_arrays(arrays: Mapping[str, Any], path: str | Path) -> None:
    """Write a compressed .npz, complete or not at all; errors as in `write_file`."""
    write_file(path, packed(arrays))


def _scan_files(path: str | Path | Sequence[str | Path]) -> tuple[list[Path], str]:
    """The files of one stack, one that holds it all or its slices, and a name for it in messages."""
    single = isinstance(path, str | Path)
    files = [Path(path)] if single else [Path(p) for p in path]
    if not files:
        raise ScanError("No file was given; give a stack, a folder, or the files of its slices.")
    source = files[0].name or files[0].resolve().name
    folder = single and os.path.isdir(files[0])  # unlike Path.is_dir, no OSError for a name that is too long
    if folder:
        try:
            entries = [f for f in files[0].iterdir() if f.suffix.lower() in SCANS and not f.name.startswith(".")]
        except OSError as error:
            raise ScanError(f"The folder {path} cannot be read ({error.strerror}).") from error
        if not entries:
            raise ScanError(f"The folder {path} holds no scan; known are {', '.join(SCANS)}.")
        files = sorted(entries, key=natural)
    elif len(files) > 1:
        source = f"{files[0].name} to {files[-1].name}"
    for file in files:
        _by_suffix(_existing(file, ScanError), SCANS, ScanError)
    suffixes = sorted({f.suffix.lower() for f in files})
    if len(suffixes) > 1:
        raise ScanError(f"{source} mixes {' and '.join(suffixes)} files; one stack needs slices of one format.")
    if suffixes[0] not in _IMAGES and (folder or len(files) > 1):
        raise ScanError(f"{source} holds {suffixes[0]} files, each a whole stack; give one of them.")
    return files, source


def _numbers(values: object, source: str, what: str) -> Float[np.ndarray, " n"]:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{source}: {what} must be numbers in Angstrom, not {values!r}.") from error
    if array.ndim != 1:
        raise ScanError(f"{source}: {what} must be a row of numbers in Angstrom, not {values!r}.")
    return array


def _by_suffix(path: Path, table: Mapping[str, _T], error: type[AfmolError]) -> _T:
    if path.suffix.lower() not in table:
        raise error(f"{path.name or path} has an unknown suffix; known are {', '.join(table)}.")
    return table[path.suffix.lower()]


def _existing(path: Path, error: type[AfmolError]) -> Path:
    if not os.path.exists(path):
        raise error(f"{path} does not exist; check the path.")
    return path


def _decode(path: Path, read: Callable[[Path], _T], error_type: type[AfmolError]) -> _T:
    """Contents of a file, or one sentence that names it."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise error_type(f"{path} cannot be read ({error.strerror}).") from error
    if empty:
        raise error_type(f"{path.name} is empty; copy or save it again.")
    try:
        return read(path)
    except AfmolError as error:
        # One sentence on one line, whatever the piece of a damaged file that it cites.
        raise error_type(f"{path.name}: {' '.join(str(error).split())}") from error
    except Exception as error:
        # Libraries raise nearly everything on damaged bytes; for the user it is one case.
        text = f"{path.name} cannot be read as {path.suffix.lower()}; it is damaged or something else, save it again."
        raise error_type(text) from error
