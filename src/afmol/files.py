"""Reading and writing stacks and molecules: one table, suffix -> function, each.

Stacks, one file:
    .npz          arrays `data` (nx, ny, nz), `lengthX`, `lengthY` (A) and, optionally, `heights` (nz,) (A, descending)
    .h5 .hdf5     the same four names at the root: `data` and `heights` datasets, lengths scalar datasets or attributes
Slices, one image a file; a stack is several files or a folder of them:
    .sxm          Nanonis; read only
    .gsf          Gwyddion Simple Field 1.0 (gwyddion.net, user guide); written as a folder NAME.gsf/000.gsf ...
Molecules:
    .xyz          plain (element or atomic number, x, y, z, perhaps a charge) and extended; bonds by distance
    .sdf .mol     bonds as in the file

Whatever the file's order, a Scan has x to the right, y upward from the lower left corner, and the closest slice last.
"""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int

from .elements import bonds_by_distance
from .errors import AfmolError, ConfigError, MoleculeError, ScanError
from .structures import Molecule, Scan

Direction = Literal["average", "forward", "backward"]
SAME_HEIGHT = 0.01
"""Two slices closer in height than this are repeats, A: a tenth of the finest step in use."""
_ASK_SIZE = "does not say how large the image is; give its lengths in A with --size LX LY (size=(lx, ly) in Python)."
_ASK_HEIGHTS = (
    "does not say at which tip height it was taken; give one height a slice in A, larger is farther from the sample, "
    "in the order of the file names with --heights (heights= in Python)."
)
_T = TypeVar("_T")


# Scans


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
            order of `path`, and the slices are sorted by them. For one file: in the order of its slices, descending.
        channel: name of the channel, for .sxm; None: the one frequency shift.
        direction: of the fast scan axis, for .sxm; "average" takes the mean of the directions that were recorded.

    Raises:
        ScanError: nothing there, damaged, not one stack, or a size or height that nobody gave.
    """
    files = _scan_files(path)
    suffix = files[0].suffix.lower()
    source = _source(path, files)
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

    if suffix in READ_STACK:
        stack = _decode(files[0], READ_STACK[suffix], ScanError)
        if size is None:
            size = stack.size
        heights = stack.heights if heights is None else heights
        data, blame = stack.data, source
    else:
        read = READ_SLICE[suffix]
        slices = [_decode(file, lambda raw: read(raw, channel, direction), ScanError) for file in files]
        _check_same_frame(files, slices, source)
        order, heights = _order(files, slices, heights, source)
        if size is None:
            size = slices[0].size
        data = np.stack([slices[i].image for i in order], axis=-1)
        blame = next((f.name for f, s in zip(files, slices, strict=True) if not np.isfinite(s.image).all()), source)
    if size is None:
        raise ScanError(f"{source} {_ASK_SIZE}")
    # Scan says these two as well, but its annotations would come first where they are checked, as in a test run.
    if data.ndim != 3:
        raise ScanError(f"{source}: a stack has three dimensions (x, y, slice); this one has the shape {data.shape}.")
    if heights is not None and len(heights) != data.shape[2]:
        raise ScanError(f"{source} has {data.shape[2]} slices, but {len(heights)} heights were given; give one each.")
    try:
        return Scan(data, size, heights, source)
    except ScanError as error:
        raise ScanError(f"{blame}: {error}") from error


def write_scan(scan: Scan, path: str | Path) -> None:
    """Write a stack as .npz or .h5, or as a folder NAME.gsf of one Gwyddion Simple Field a slice.

    An existing file is replaced only once the new one is complete; a folder with something in it is left alone.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
        ScanError: values beyond 32 bits for .gsf.
    """
    path = Path(path)
    _write(path, _by_suffix(path, WRITE_SCAN, ConfigError)(scan))


@dataclass(frozen=True)
class _Stack:
    """What one file says about a whole stack; None: it does not say."""

    data: Float[np.ndarray, "..."]
    size: tuple[float, float] | None
    heights: Float[np.ndarray, " nz"] | None


@dataclass(frozen=True)
class _Slice:
    """What one file says about one image; None: it does not say."""

    image: Float[np.ndarray, "nx ny"]
    size: tuple[float, float] | None
    height: float | None
    """Tip height, A, larger is farther."""
    place: tuple[float, float, float] | None = None
    """Centre of the frame, A, and its angle, degrees."""
    rank: int | None = None
    """Place in the stack, farthest first, where afmol wrote a stack without heights."""


def _scan_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of one stack: one that holds it all, or its slices."""
    table = {**READ_STACK, **READ_SLICE}
    single = isinstance(path, str | Path)
    files = [Path(path)] if single else [Path(p) for p in path]
    if not files:
        raise ScanError("No file was given; give a stack, a folder, or the files of its slices.")
    folder = single and os.path.isdir(files[0])  # unlike Path.is_dir, no OSError for a name that is too long
    if folder:
        try:
            entries = [f for f in files[0].iterdir() if f.suffix.lower() in table and not f.name.startswith(".")]
        except OSError as error:
            raise ScanError(f"The folder {path} cannot be read ({error.strerror}).") from error
        if not entries:
            raise ScanError(f"The folder {path} holds no scan; known are {', '.join(table)}.")
        files = sorted(entries, key=_natural)
    for file in files:
        _by_suffix(_existing(file, ScanError), table, ScanError)
    source = _source(path, files)
    suffixes = sorted({f.suffix.lower() for f in files})
    if len(suffixes) > 1:
        raise ScanError(f"{source} mixes {' and '.join(suffixes)} files; one stack needs slices of one format.")
    if suffixes[0] in READ_STACK and (folder or len(files) > 1):
        raise ScanError(f"{source} holds {suffixes[0]} files, each a whole stack; give one of them.")
    return files


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort key that puts slice2 before slice10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name) if part]


def _source(path: str | Path | Sequence[str | Path], files: list[Path]) -> str:
    """Name of the file, of the folder, or of the first and last of several files."""
    if isinstance(path, str | Path):
        return Path(path).name or Path(path).resolve().name
    return files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"


def _numbers(values: object, source: str, what: str) -> Float[np.ndarray, " n"]:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ScanError(f"{source}: {what} must be numbers in Angstrom, not {values!r}.") from error
    if array.ndim != 1:
        raise ScanError(f"{source}: {what} must be a row of numbers in Angstrom, not {values!r}.")
    return array


def _check_same_frame(files: list[Path], slices: list[_Slice], source: str) -> None:
    """Slices of one stack show the same place with the same pixels; a small shift against drift is fine."""
    if len(slices) < 2:
        raise ScanError(
            f"{source} holds a single image, but a stack needs the same place at several tip heights: "
            "give the files of the other heights too, or their folder."
        )
    first = slices[0]
    for file, other in zip(files[1:], slices[1:], strict=True):
        pair = f"{files[0].name} and {file.name}"
        if first.image.shape != other.image.shape:
            a, b = ("x".join(map(str, s.image.shape)) for s in (first, other))
            raise ScanError(f"{pair} have different numbers of pixels ({a} and {b}); give the slices of one stack.")
        if (first.size is None) != (other.size is None) or (
            first.size is not None and other.size is not None and not np.allclose(first.size, other.size, rtol=1e-3)
        ):
            raise ScanError(f"{pair} have different sizes ({_lengths(first)} and {_lengths(other)}); give one stack.")
        if first.place is not None and other.place is not None and first.size is not None:
            shift, turn = np.subtract(first.place, other.place)[:2], first.place[2] - other.place[2]
            if (np.abs(shift) > 0.5 * np.array(first.size)).any() or abs((turn + 180) % 360 - 180) > 1:
                raise ScanError(f"{pair} show different places or are rotated; give the slices of one stack.")


def _lengths(piece: _Slice) -> str:
    return "unknown" if piece.size is None else f"{piece.size[0]:.4g} x {piece.size[1]:.4g} A"


def _order(
    files: list[Path], slices: list[_Slice], heights: Float[np.ndarray, " n"] | None, source: str
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"] | None]:
    """Slices from the farthest to the closest, and their heights in that order."""
    if heights is None:
        unknown = [file.name for file, s in zip(files, slices, strict=True) if s.height is None]
        ranks = [s.rank for s in slices if s.rank is not None]
        if len(unknown) == len(set(ranks)) == len(slices):
            return np.argsort(ranks), None
        if unknown:
            raise ScanError(f"{unknown[0]} {_ASK_HEIGHTS}")
        heights = np.array([s.height for s in slices], float)
    if len(heights) != len(slices):
        raise ScanError(f"{source} has {len(slices)} slices, but {len(heights)} heights were given; give one each.")
    order = np.argsort(-heights, kind="stable")
    repeats = np.flatnonzero(np.diff(heights[order]) > -SAME_HEIGHT)
    if len(repeats):
        # Not averaged, and none dropped: an approach and a retraction drift apart; which is good is the user's to say.
        a, b = sorted(order[repeats[0] : repeats[0] + 2])
        raise ScanError(
            f"{source} has {len(slices)} slices at only {len(slices) - len(repeats)} heights "
            f"({files[a].name} and {files[b].name} are both at {heights[a]:.3f} A); "
            "give one slice a height, such as those of the approach alone."
        )
    return order, heights[order]


# One file, one stack


def _real(values: object, what: str) -> Float[np.ndarray, "..."]:
    """As 32-bit floats, or a ScanError."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ScanError(f"'{what}' must hold real numbers, not {array.dtype}; save it as an array of floats.")
    with np.errstate(over="ignore"):
        real = np.array(array, np.float32, order="C")
    if not np.array_equal(np.isfinite(real), np.isfinite(array)):
        raise ScanError(f"'{what}' holds values beyond 3e38; scale it to Hz or to the instrument's units.")
    return real


def _stack(found: Mapping[str, Any]) -> _Stack:
    """The four names, whatever the container."""
    lengths = []
    for key in ("lengthX", "lengthY"):
        if key in found:
            value = np.asarray(found[key])
            if value.size != 1 or value.dtype.kind not in "fiu":
                raise ScanError(f"'{key}' must be one length in Angstrom; save a single number.")
            lengths.append(float(value.item()))
    heights = None
    if "heights" in found:
        heights = np.asarray(found["heights"])
        if heights.dtype.kind not in "fiu" or heights.ndim != 1:
            raise ScanError("'heights' must be one height a slice in Angstrom; save a row of numbers.")
        heights = heights.astype(float)
    return _Stack(_real(found["data"], "data"), (lengths[0], lengths[1]) if len(lengths) == 2 else None, heights)


_NAMES = ("data", "lengthX", "lengthY", "heights")


def _read_npz(raw: bytes) -> _Stack:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        _need_data(archive.files)
        found = {}
        for key in set(_NAMES) & set(archive.files):
            try:
                found[key] = archive[key]
            except ValueError as error:
                raise ScanError(
                    f"'{key}' is damaged or holds Python objects, which are never loaded; save plain arrays of numbers."
                ) from error
    return _stack(found)


def _read_h5(raw: bytes) -> _Stack:
    import h5py

    with h5py.File(io.BytesIO(raw), "r") as file:
        arrays = {key: file[key] for key in file if isinstance(file[key], h5py.Dataset)}
        _need_data([*arrays])
        found: dict[str, Any] = {key: file.attrs[key] for key in set(_NAMES) & set(file.attrs)}
        return _stack({**found, **{key: arrays[key][()] for key in set(_NAMES) & set(arrays)}})


def _need_data(names: Sequence[str]) -> None:
    if "data" not in names:
        held = ", ".join(sorted(names)[:8]) or "nothing"
        raise ScanError(f"there is no array 'data' (found: {held}); save the stack as 'data' (x, y, slice).")


def _arrays(scan: Scan) -> dict[str, Any]:
    arrays = {"data": scan.data, "lengthX": scan.size[0], "lengthY": scan.size[1]}
    return arrays if scan.heights is None else {**arrays, "heights": scan.heights}


def _npz(scan: Scan) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_arrays(scan))
    return buffer.getvalue()


def _h5(scan: Scan) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, value in _arrays(scan).items():
            file[key] = value
    return buffer.getvalue()


# One file, one image: Gwyddion Simple Field

_GSF_MAGIC = b"Gwyddion Simple Field 1.0\n"
_GSF_UNITS = {"m": 1e10, "µm": 1e4, "um": 1e4, "nm": 10.0, "Å": 1.0, "pm": 0.01}
_HEIGHT_UNITS = {**_GSF_UNITS, "A": 1.0}
_TITLE_HEIGHT = re.compile(r"(?i:\btip height|\bz)\s*[=:]\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(A|Å|pm|nm|µm|um|m)\b")


def _read_gsf(raw: bytes, _channel: str | None, _direction: Direction) -> _Slice:
    """A magic line, lines `name = value`, 1-4 NUL to a multiple of 4, then little-endian 32-bit rows from the top."""
    header, nul, _ = raw.partition(b"\0")
    if not raw.startswith(_GSF_MAGIC) or not nul:
        raise ScanError("this is no Gwyddion Simple Field, or its header is cut off; export it again.")
    lines = header[len(_GSF_MAGIC) :].decode(errors="replace").splitlines()
    field = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    nx, ny = int(field["XRes"]), int(field["YRes"])
    start = len(header) + 4 - len(header) % 4
    _check_length(len(raw) - start, 4 * nx * ny)
    rows = np.frombuffer(raw, "<f4", offset=start).reshape(ny, nx)
    unit = _GSF_UNITS.get(field.get("XYUnits", ""))
    size = None
    if unit is not None and {"XReal", "YReal"} <= set(field):
        size = (float(field["XReal"]) * unit, float(field["YReal"]) * unit)
    said = _TITLE_HEIGHT.search(field.get("Title", ""))
    height = float(said[1]) * _HEIGHT_UNITS[said[2]] if said else None
    rank = int(field["AfmolSlice"]) if "AfmolSlice" in field else None
    return _Slice(_real(rows[::-1].T, "image"), size, height, rank=rank)


def _gsf(scan: Scan) -> dict[str, bytes]:
    nx, ny, nz = scan.data.shape
    files = {}
    for k in range(nz):
        title = "Frequency shift"
        if scan.heights is not None:
            title += f", tip height = {float(scan.heights[k])!r} A"
        lx, ly = (float(length) * 1e-10 for length in scan.size)
        field = {"XRes": nx, "YRes": ny, "XReal": lx, "YReal": ly, "XYUnits": "m", "Title": title, "AfmolSlice": k}
        header = _GSF_MAGIC + "".join(f"{key} = {value}\n" for key, value in field.items()).encode()
        rows = _real(scan.data[:, ::-1, k].T, "data").astype("<f4")
        files[f"{k:03d}.gsf"] = header + bytes(4 - len(header) % 4) + rows.tobytes()
    return files


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise ScanError(
            f"it has {found} bytes of image where its header promises {expected}; it is cut off or damaged."
        )


# One file, one image: Nanonis

_SXM_TYPES = {("FLOAT", "MSBFIRST"): ">f4", ("FLOAT", "LSBFIRST"): "<f4"}


def _read_sxm(raw: bytes, channel: str | None, direction: Direction) -> _Slice:
    """A Nanonis scan: lines `:KEY:` each followed by its value, the mark 1A 04, then all images, row by row as scanned.

    The first row is the lowest when SCAN_DIR is up and the highest when it is down; rows of the backward image run from
    right to left. Z grows away from the sample, as in a topograph, where what sticks out has the larger Z; the measured
    h-BN slices of the tests agree: their current and repulsion grow as Z falls. The height is the mean of the recorded
    Z channel, which has more digits, or else the header's Z-Controller>Z.

    An own reader, since nanonispy2 1.2 ignores the byte order and which directions were recorded, refuses .SXM, and
    warns when a comment is not UTF-8; the tests compare the two.
    """
    head, _, rest = raw.partition(b":SCANIT_END:")
    _, mark, body = rest.partition(b"\x1a\x04")
    if not raw.startswith(b":NANONIS_VERSION:") or not mark:
        raise ScanError("this is no Nanonis scan, or its header is cut off; copy the file again.")
    header = _sxm_header(head.decode(errors="replace"))
    for key in ("SCANIT_TYPE", "SCAN_PIXELS", "SCAN_RANGE", "SCAN_DIR", "DATA_INFO"):
        if key not in header:
            raise ScanError(f"its header lacks {key}; save the scan again with Nanonis.")
    kind = tuple(header["SCANIT_TYPE"].split())
    scan_dir = header["SCAN_DIR"].strip()
    if kind not in _SXM_TYPES or scan_dir not in ("up", "down"):
        raise ScanError(
            f"data type {' '.join(kind)} or scan direction {scan_dir} is unknown; save it again with Nanonis."
        )
    nx, ny = map(int, header["SCAN_PIXELS"].split())
    lines = [line for line in header["DATA_INFO"].split("\n") if line.strip()]
    titles, *rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    channels = [dict(zip(titles, row, strict=False)) for row in rows]
    kept = [(c["Name"], way) for c in channels for way in ("forward", "backward") if c["Direction"] in ("both", way)]
    _check_length(len(body), 4 * len(kept) * nx * ny)
    images = np.frombuffer(body, _SXM_TYPES[kind]).reshape(len(kept), ny, nx)

    name = _sxm_channel([c["Name"] for c in channels], channel)
    views = []
    for (other, way), image in zip(kept, images, strict=True):
        if other == name and direction in ("average", way):
            image = image[:, ::-1] if way == "backward" else image
            views.append((image[::-1] if scan_dir == "down" else image).T)
    if not views:
        raise ScanError(f"the channel {name} was not recorded {direction}; choose the other direction.")
    lx, ly = (1e10 * float(length) for length in header["SCAN_RANGE"].split())
    place = None
    if {"SCAN_OFFSET", "SCAN_ANGLE"} <= set(header):
        x, y = (1e10 * float(offset) for offset in header["SCAN_OFFSET"].split())
        place = (x, y, float(header["SCAN_ANGLE"]))
    recorded = [im[np.isfinite(im)].astype(float) for (other, _), im in zip(kept, images, strict=True) if other == "Z"]
    return _Slice(_real(np.mean(views, axis=0, dtype=float), name), (lx, ly), _sxm_height(header, recorded), place)


def _sxm_header(text: str) -> dict[str, str]:
    header: dict[str, str] = {}
    key = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        if found := re.fullmatch(r":(.+):", line):
            key = found[1]
            header.setdefault(key, "")
        elif key:
            header[key] += line + "\n"
    return header


def _sxm_channel(names: list[str], wanted: str | None) -> str:
    """The channel that was asked for, or the only frequency shift; punctuation and case do not count."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    if wanted is None:
        match = [n for n in names if re.search("freq(uency)?shift", plain[n]) or plain[n] in ("df", "deltaf", "dfhz")]
        what = "frequency shift"
    else:
        match = [n for n in names if plain[n] == re.sub(r"[^a-z0-9]", "", wanted.lower())]
        what = f"channel {wanted!r}"
    if len(match) != 1:
        many = "more than one" if match else "no"
        raise ScanError(f"there is {many} {what} among the channels {', '.join(names)}; choose one by name (channel=).")
    return match[0]


def _sxm_height(header: dict[str, str], recorded: list[Float[np.ndarray, " n"]]) -> float | None:
    """Height of the tip, A; None where the file does not say; refused where feedback moved the tip."""
    z = np.concatenate([np.empty(0), *recorded]) * 1e10
    feedback = header.get("Z-Controller>Controller status", "").strip().upper() == "ON"
    if feedback and (not len(z) or z.std() > SAME_HEIGHT):
        raise ScanError("it was recorded with the Z controller on; a stack needs images at constant height.")
    if len(z):
        return float(z.mean())
    return 1e10 * float(header["Z-Controller>Z (m)"]) if "Z-Controller>Z (m)" in header else None


# Molecules


def read_molecule(path: str | Path) -> Molecule:
    """Read the first molecule of an .xyz, .sdf or .mol file; positions as they stand there, A.

    Bonds are the file's (.sdf, .mol) or come from the distance table (.xyz). Charges are read from a column or property
    that says so, and from a fifth column of .xyz that can hardly be anything else; otherwise they are unknown.

    Raises:
        MoleculeError: nothing there, damaged, no 3D coordinates, or an element afmol does not know.
    """
    path = Path(path)
    read = _by_suffix(_existing(path, MoleculeError), READ_MOLECULE, MoleculeError)
    return _decode(path, lambda raw: read(raw.decode(errors="replace").replace("\r\n", "\n"), path.stem), MoleculeError)


def write_molecule(molecule: Molecule, path: str | Path) -> None:
    """Write .xyz (extended, with class, charge and confidence as further columns), .sdf or .mol (all bonds single).

    An existing file is replaced only once the new one is complete.

    Raises:
        ConfigError: an unknown suffix, or a place that cannot be written to.
    """
    path = Path(path)
    _write(path, _by_suffix(path, WRITE_MOLECULE, ConfigError)(molecule).encode())


def _read_xyz(text: str, name: str) -> Molecule:
    lines = text.split("\n")
    if not re.fullmatch(r"\s*\d+\s*", lines[0]) or len(lines) < 2:
        raise MoleculeError("the first line must be the number of atoms and the second a comment; mend the file.")
    n = int(lines[0])
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    if len([line for line in lines[2 : 2 + n] if line.strip()]) < n:
        raise MoleculeError(f"it should hold {n} atoms but ends before; it is cut off.")
    charges = confidence = None
    if "Properties=" in lines[1]:
        import ase.io

        atoms: Any = ase.io.read(io.StringIO(text), index=0, format="extxyz")
        numbers, positions, found = atoms.numbers, atoms.positions, dict(atoms.arrays)
        # ASE moves columns that it takes for results, charges among them, into a calculator.
        found |= {} if atoms.calc is None else atoms.calc.results
        charges = next((found[key] for key in ("charges", "charge", "initial_charges", "q") if key in found), None)
        confidence = found.get("confidence")
        name = str(atoms.info.get("name", name))
    else:
        table = [line.split() for line in lines[2 : 2 + n]]
        if any(len(row) < 4 for row in table):
            raise MoleculeError("each atom needs an element and three coordinates; mend the lines that have fewer.")
        numbers = np.array([_atomic_number(row[0]) for row in table])
        positions = np.array([[float(value) for value in row[1:4]] for row in table])
        if all(len(row) == 5 for row in table):
            charges = _charges([row[4] for row in table], lines[1])
    numbers = np.asarray(numbers, int)
    positions = np.asarray(positions, float)
    if not np.isin(numbers, np.arange(119)).all():
        raise MoleculeError(f"{numbers.max()} is not an atomic number; mend the first column.")
    return Molecule(
        positions,
        numbers,
        bonds_by_distance(positions, numbers),
        charges=None if charges is None else np.asarray(charges, float).reshape(n),
        confidence=None if confidence is None else np.asarray(confidence, float).reshape(n),
        name=name,
    )


def _atomic_number(label: str) -> int:
    from ase.data import atomic_numbers

    if label.isdecimal():
        return int(label)
    if label.capitalize() not in atomic_numbers:
        raise MoleculeError(f"{label!r} is not an element; the first column must hold symbols or atomic numbers.")
    return atomic_numbers[label.capitalize()]


def _charges(column: list[str], comment: str) -> Float[np.ndarray, " n"] | None:
    """A fifth column, if it holds charges: the comment says so or the sum is whole, and they can be charges.

    A wrong guess would spoil a simulation, an unread column only leaves the charges unknown. So both signs must occur
    (radii, masses and occupancies have one), fractions (labels have none), and nothing beyond 4 e.
    """
    try:
        values = np.array([float(value) for value in column])
    except ValueError:
        return None
    said = re.search(r"\b(q|charges?)\b", comment, re.IGNORECASE) is not None
    whole = abs(values.sum() - round(values.sum())) < 0.05 if np.isfinite(values).all() else False
    fractions = (values != np.round(values)).any()
    possible = np.abs(values).max() <= 4 and values.min() < 0 < values.max() and fractions
    return values if possible and (said or whole) else None


def _xyz(molecule: Molecule) -> str:
    """Extended xyz: whoever reads plain xyz finds the element and three coordinates in front."""
    columns: list[tuple[str, list[str]]] = [
        ("species:S:1", molecule.symbols),
        ("pos:R:3", ["{:.8f} {:.8f} {:.8f}".format(*xyz) for xyz in molecule.positions]),
    ]
    for label, values in (("charge:R:1", molecule.charges), ("confidence:R:1", molecule.confidence)):
        if values is not None:
            columns.append((label, [f"{value:.8f}" for value in values]))
    if molecule.class_probabilities is not None:
        columns.append(("class:I:1", [str(c) for c in molecule.classes]))
    name = " ".join(re.sub(r'["\\]', "", molecule.name).split())
    comment = f"Properties={':'.join(label for label, _ in columns)}" + (f' name="{name}"' if name else "")
    comment += ' pbc="F F F"'
    rows = [" ".join(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join([str(len(molecule)), comment, *rows]) + "\n"


def _read_sdf(text: str, name: str) -> Molecule:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text, sanitize=False, removeHs=False)
        mol = next(supplier, None)
    if mol is None:
        raise MoleculeError("the first molecule cannot be read; the file is cut off or not an MDL molfile.")
    n = mol.GetNumAtoms()
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    positions = np.array(mol.GetConformer().GetPositions(), float) if mol.GetNumConformers() else np.zeros((n, 3))
    if not mol.GetNumConformers() or not mol.GetConformer().Is3D() or (n > 1 and not np.ptp(positions, axis=0).any()):
        raise MoleculeError("it has no 3D coordinates; give a 3D file, or the molecule's SMILES, to have it built.")
    atoms = list(mol.GetAtoms())
    bonds = {tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))) for bond in mol.GetBonds()}

    def per_atom(key: str) -> Float[np.ndarray, " n"] | None:
        return np.array([a.GetDoubleProp(key) for a in atoms]) if all(a.HasProp(key) for a in atoms) else None

    return Molecule(
        positions,
        np.array([atom.GetAtomicNum() for atom in atoms]),
        np.array(sorted(bonds), int).reshape(-1, 2),
        charges=per_atom("PartialCharge"),
        confidence=per_atom("confidence"),
        name=(mol.GetProp("_Name") if mol.HasProp("_Name") else "") or name,
    )


def _mol(molecule: Molecule) -> str:
    """An MDL molfile: V2000, or V3000 where the columns of V2000 are too narrow.

    Written here, not by RDKit: a prediction may have valences that no toolkit accepts, and its export must not fail.
    """
    name = " ".join(molecule.name.replace("$", "").split())[:80]
    head = [name, f"  {'afmol':<18}3D", ""]
    n, m = len(molecule), len(molecule.bonds)
    atoms = list(zip(molecule.positions, molecule.symbols, strict=True))
    if max(n, m) <= 999 and np.abs(molecule.positions).max(initial=0) < 9999:
        lines = [f"{n:3d}{m:3d}  0  0  0  0  0  0  0  0999 V2000"]
        lines += ["{:10.4f}{:10.4f}{:10.4f} {:<3} 0".format(*xyz, symbol) + "  0" * 11 for xyz, symbol in atoms]
        lines += [f"{i + 1:3d}{j + 1:3d}  1  0  0  0  0" for i, j in molecule.bonds]
    else:
        lines = ["  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB", f"M  V30 COUNTS {n} {m} 0 0 0"]
        lines += ["M  V30 BEGIN ATOM"]
        lines += ["M  V30 {} {} {:.4f} {:.4f} {:.4f} 0".format(k, s, *xyz) for k, (xyz, s) in enumerate(atoms, 1)]
        lines += ["M  V30 END ATOM", "M  V30 BEGIN BOND"]
        lines += [f"M  V30 {k} 1 {i + 1} {j + 1}" for k, (i, j) in enumerate(molecule.bonds, 1)]
        lines += ["M  V30 END BOND", "M  V30 END CTAB"]
    return "\n".join([*head, *lines, "M  END"]) + "\n"


def _sdf(molecule: Molecule) -> str:
    """A molfile and, under the names that RDKit gives back to the atoms, charges and confidence."""
    text = _mol(molecule)
    for key, values in (("PartialCharge", molecule.charges), ("confidence", molecule.confidence)):
        if values is not None and len(values):
            text += f">  <atom.dprop.{key}>\n{_wrapped(values)}\n\n"
    return text + "$$$$\n"


def _wrapped(values: Float[np.ndarray, " n"], row: int = 16) -> str:
    """Lines of an SDF data field hold at most 200 characters."""
    cells = [f"{value:.6f}" for value in values]
    return "\n".join(" ".join(cells[k : k + row]) for k in range(0, len(cells), row))


# Files


def _by_suffix(path: Path, table: Mapping[str, _T], error: type[AfmolError]) -> _T:
    if path.suffix.lower() not in table:
        raise error(f"{path.name or path} has an unknown suffix; known are {', '.join(table)}.")
    return table[path.suffix.lower()]


def _existing(path: Path, error: type[AfmolError]) -> Path:
    if not os.path.exists(path):
        raise error(f"{path} does not exist; check the path.")
    return path


def _decode(path: Path, read: Callable[[bytes], _T], error_type: type[AfmolError]) -> _T:
    """Contents of a file, or one sentence that names it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read ({error.strerror}).") from error
    if not raw:
        raise error_type(f"{path.name} is empty; copy or save it again.")
    try:
        return read(raw)
    except AfmolError as error:
        # One sentence on one line, whatever the piece of a damaged file that it cites.
        raise error_type(f"{path.name}: {' '.join(str(error).split())}") from error
    except Exception as error:
        # Libraries raise nearly everything on damaged bytes; for the user it is one case.
        text = f"{path.name} cannot be read as {path.suffix.lower()}; it is damaged or something else, save it again."
        raise error_type(text) from error


def _write(path: Path, content: bytes | dict[str, bytes]) -> None:
    """A file, or a folder of files, complete or not at all: written beside its place, then moved there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if isinstance(content, bytes):
            draft.write_bytes(content)
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


READ_STACK: dict[str, Callable[[bytes], _Stack]] = {".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
READ_SLICE: dict[str, Callable[[bytes, str | None, Direction], _Slice]] = {".sxm": _read_sxm, ".gsf": _read_gsf}
WRITE_SCAN: dict[str, Callable[[Scan], bytes | dict[str, bytes]]] = {
    ".npz": _npz,
    ".h5": _h5,
    ".hdf5": _h5,
    ".gsf": _gsf,
}
READ_MOLECULE: dict[str, Callable[[str, str], Molecule]] = {".xyz": _read_xyz, ".sdf": _read_sdf, ".mol": _read_sdf}
WRITE_MOLECULE: dict[str, Callable[[Molecule], str]] = {".xyz": _xyz, ".sdf": _sdf, ".mol": _mol}
