"""Reading and writing scans and molecules, by one table of formats.

Whatever the file's order, a Scan has x to the right, y upward from the lower left corner, and the closest slice last.
The layouts stand in CONVENTIONS.md.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..errors import AfmolError, ConfigError, MoleculeError, ScanError, reading
from ..limits import check_claim
from ..structures import Molecule, Scan
from .molecules import mol, read_sdf, read_xyz, sdf, xyz
from .nanonis import Direction, read_sxm
from .scans import Stack, assemble, gsf, h5, natural, npz, read_gsf, read_h5, read_npz
from .storage import write_file


@dataclass(frozen=True)
class Format:
    """What files of one suffix hold, and how they are read and written."""

    holds: Literal["stack", "slice", "molecule"]
    """A stack of slices is a folder of them, or a list of files."""
    read: Callable[..., Any]
    write: Any = None
    """What makes the content of a file, bytes, or of a folder of files; None: only read."""
    choices: tuple[str, ...] = ()
    """Arguments of `read_scan` that mean something here."""


FORMATS = {
    ".npz": Format("stack", read_npz, npz),
    ".h5": Format("stack", read_h5, h5),
    ".hdf5": Format("stack", read_h5, h5),
    ".sxm": Format("slice", read_sxm, choices=("channel", "direction")),
    ".gsf": Format("slice", read_gsf, gsf),
    ".xyz": Format("molecule", read_xyz, xyz),
    ".sdf": Format("molecule", read_sdf, sdf),
    ".mol": Format("molecule", read_sdf, mol),
}
SCANS = {suffix: form for suffix, form in FORMATS.items() if form.holds != "molecule"}
MOLECULES = {suffix: form for suffix, form in FORMATS.items() if form.holds == "molecule"}


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
    files, source = scan_files(path)
    form = SCANS[files[0].suffix.lower()]
    if direction not in ("average", "forward", "backward"):
        raise ScanError(f"The direction must be average, forward or backward, not {direction!r}.")
    if not form.choices and (channel is not None or direction != "average"):
        takes = ", ".join(suffix for suffix, other in SCANS.items() if other.choices)
        raise ScanError(f"{source}: channel and direction can be chosen in {takes} files only; leave them out.")
    given = None if heights is None else _numbers(heights, source, "heights")
    lengths = None if size is None else _numbers(size, source, "size")
    if lengths is not None and len(lengths) != 2:
        raise ScanError(f"{source}: the size must be two lengths in Angstrom, in x and in y, not {len(lengths)}.")

    choices = {"channel": channel, "direction": direction}
    read = partial(form.read, **{name: choices[name] for name in form.choices})
    parts, claimed = [], 0
    for file in files:
        parts.append(_decoded(file, read, ScanError))
        if form.holds == "slice":
            claimed += parts[-1].image.nbytes
            check_claim(claimed, source, ScanError)
    if form.holds == "slice":
        stack = assemble(files, parts, given, source)
    else:
        stack = parts[0] if given is None else replace(parts[0], heights=given)
    return _scan(stack if lengths is None else replace(stack, size=(float(lengths[0]), float(lengths[1]))), source)


def write_scan(scan: Scan, path: str | Path) -> None:
    """Write a stack as .npz or .h5, or as a folder NAME.gsf of one Gwyddion Simple Field a slice.

    An existing file is replaced only once the new one is complete; a folder with something in it is left alone.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
        ScanError: values beyond 32 bits for .gsf.
    """
    write_file(path, check_scan_path(path).write(scan))


def check_scan_path(path: str | Path) -> Format:
    """The form of a stack that is to be written; ConfigError: a suffix of none."""
    return _format(Path(path), {suffix: form for suffix, form in SCANS.items() if form.write}, ConfigError)


def is_single_slice(path: str | Path) -> bool:
    """Whether a file holds one image of a stack, by its suffix; a folder, as of NAME.gsf, holds several."""
    suffix = Path(path).suffix.lower()
    return suffix in FORMATS and FORMATS[suffix].holds == "slice" and not os.path.isdir(path)


def in_order(files: Iterable[str | Path]) -> list[Path]:
    """Files in the order of their names, 2 before 10: that in which the heights of slices are given."""
    return sorted(map(Path, files), key=natural)


def read_molecule(path: str | Path) -> Molecule:
    """Read the first molecule of an .xyz, .sdf or .mol file; positions as they stand there, A.

    Bonds are the file's (.sdf, .mol) or come from the distance table (.xyz). Charges are read from a column or property
    that says so, and from a fifth column of plain .xyz with numbers of both signs and a whole sum; otherwise they are
    unknown.

    Raises:
        MoleculeError: nothing there, damaged, no 3D coordinates, an element afmol does not know, or atoms that no
            molecule has (`check_atoms`).
    """
    path = Path(path)
    return _decoded(path, _format(_existing(path, MoleculeError), MOLECULES, MoleculeError).read, MoleculeError)


def write_molecule(molecule: Molecule, path: str | Path) -> None:
    """Write .xyz (extended, with class, charge and confidence as further columns), .sdf or .mol (all bonds single).

    An existing file is replaced only once the new one is complete.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
    """
    write_file(path, _format(Path(path), MOLECULES, ConfigError).write(molecule))


def scan_files(path: str | Path | Sequence[str | Path]) -> tuple[list[Path], str]:
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
        files = in_order(entries)
    elif len(files) > 1:
        source = f"{files[0].name} to {files[-1].name}"
    forms = {file.suffix.lower(): _format(_existing(file, ScanError), SCANS, ScanError) for file in files}
    if len(forms) > 1:
        raise ScanError(f"{source} mixes {' and '.join(sorted(forms))} files; one stack needs slices of one format.")
    ((suffix, form),) = forms.items()
    if form.holds == "stack" and (folder or len(files) > 1):
        raise ScanError(f"{source} holds {suffix} files, each a whole stack; give one of them.")
    return files, source


def _scan(stack: Stack, source: str) -> Scan:
    if stack.size is None:
        raise ScanError(
            f"{source} does not say how large the image is; "
            "give its lengths in A with --size LX LY (size=(lx, ly) in Python)."
        )
    # Scan says these two as well, but its annotations would come first where they are checked, as in a test run.
    shape, heights = stack.data.shape, stack.heights
    if len(shape) != 3:
        raise ScanError(f"{source}: a stack has three dimensions (x, y, slice); this one has the shape {shape}.")
    if heights is not None and len(heights) != shape[2]:
        raise ScanError(f"{source} has {shape[2]} slices, but {len(heights)} heights were given; give one each.")
    try:
        return Scan(stack.data, stack.size, heights, source)
    except ScanError as error:
        raise ScanError(f"{source}: {error}") from error


def _numbers(values: object, source: str, what: str) -> Float[np.ndarray, " n"]:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{source}: {what} must be numbers in Angstrom, not {values!r}.") from error
    if array.ndim != 1:
        raise ScanError(f"{source}: {what} must be a row of numbers in Angstrom, not {values!r}.")
    return array


def _format(path: Path, known: dict[str, Format], error: type[AfmolError]) -> Format:
    """That of a file, by its suffix."""
    if path.suffix.lower() not in known:
        raise error(f"{path.name or path} has an unknown suffix; known are {', '.join(known)}.")
    return known[path.suffix.lower()]


def _existing(path: Path, error: type[AfmolError]) -> Path:
    if not os.path.exists(path):
        raise error(f"{path} does not exist; check the path.")
    return path


def _decoded(path: Path, read: Callable[[Path], Any], error_type: type[AfmolError]) -> Any:
    """Contents of a file, or one sentence that names it."""
    with reading(path, path.suffix.lower(), error_type, path.name):
        if path.stat().st_size == 0:
            raise error_type(f"{path.name} is empty; copy or save it again.")
        try:
            return read(path)
        except AfmolError as error:
            # One sentence on one line, whatever the piece of a damaged file that it cites.
            raise error_type(f"{path.name}: {' '.join(str(error).split())}") from error
