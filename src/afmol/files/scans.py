"""Stacks in .npz and .h5, single images in .gsf, and a stack put together from the images of several files."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ScanError
from ..limits import read_whole
from ..structures import Scan
from .arrays import attribute, dataset_array, npz_arrays, opened_h5
from .storage import npz_bytes


@dataclass(frozen=True)
class Stack:
    """What one file says about a whole stack; None: it does not say."""

    data: Float[np.ndarray, "..."]
    size: tuple[float, float] | None
    heights: Float[np.ndarray, " nz"] | None


@dataclass(frozen=True)
class Slice:
    """What one file says about one image; None: it does not say."""

    image: Float[np.ndarray, "nx ny"]
    size: tuple[float, float] | None
    height: float | None
    """Tip height, A, larger is farther."""
    place: tuple[float, float, float] | None = None
    """Centre of the frame, A, and its angle, degrees."""
    rank: int | None = None
    """Place in the stack, farthest first, where afmol wrote a stack without heights."""


def real(values: object, what: str) -> Float[np.ndarray, "..."]:
    """As 32-bit floats, or a ScanError."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ScanError(f"'{what}' must hold real numbers, not {array.dtype}; save it as an array of floats.")
    with np.errstate(over="ignore"):
        found = np.array(array, np.float32, order="C")
    if not np.array_equal(np.isfinite(found), np.isfinite(array)):
        raise ScanError(f"'{what}' holds values beyond 3e38; scale it to Hz or to the instrument's units.")
    return found


# One file, one stack

_NAMES = ("data", "lengthX", "lengthY", "heights")


def read_npz(path: Path) -> Stack:
    names, found = npz_arrays(path, _NAMES, "", ScanError)
    _need_data(names)
    return _stack(found)


def read_h5(path: Path) -> Stack:
    import h5py

    with opened_h5(path, "", ScanError) as file:
        arrays = {key: file[key] for key in file if isinstance(file.get(key), h5py.Dataset)}
        _need_data([*arrays])
        found: dict[str, Any] = {key: attribute(file, key, "", ScanError) for key in set(_NAMES) & set(file.attrs)}
        own = set(_NAMES) & set(arrays)
        return _stack({**found, **{key: dataset_array(arrays[key], "", ScanError) for key in own}})


def _need_data(names: Sequence[str]) -> None:
    if "data" not in names:
        held = ", ".join(sorted(names)[:8]) or "nothing"
        raise ScanError(f"there is no array 'data' (found: {held}); save the stack as 'data' (x, y, slice).")


def _stack(found: Mapping[str, Any]) -> Stack:
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
    return Stack(real(found["data"], "data"), (lengths[0], lengths[1]) if len(lengths) == 2 else None, heights)


def npz(scan: Scan) -> bytes:
    return npz_bytes(_arrays(scan))


def h5(scan: Scan) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, value in _arrays(scan).items():
            file[key] = value
    return buffer.getvalue()


def _arrays(scan: Scan) -> dict[str, Any]:
    arrays = {"data": scan.data, "lengthX": scan.size[0], "lengthY": scan.size[1]}
    return arrays if scan.heights is None else {**arrays, "heights": scan.heights}


# One file, one image: Gwyddion Simple Field 1.0 (gwyddion.net, user guide)

_GSF_MAGIC = b"Gwyddion Simple Field 1.0\n"


def read_gsf(path: Path) -> Slice:
    """A magic line, lines `name = value`, 1-4 NUL to a multiple of 4, then little-endian 32-bit rows from the top.

    The tip height is read from a Title that ends in `tip height = NUMBER A`, as afmol writes it: Gwyddion keeps titles.
    """
    raw = read_whole(path, ScanError)
    header, nul, _ = raw.partition(b"\0")
    if not raw.startswith(_GSF_MAGIC) or not nul:
        raise ScanError("this is no Gwyddion Simple Field, or its header is cut off; export it again.")
    lines = header[len(_GSF_MAGIC) :].decode(errors="replace").splitlines()
    field = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    nx, ny = int(field["XRes"]), int(field["YRes"])
    start = len(header) + 4 - len(header) % 4
    found, promised = len(raw) - start, 4 * nx * ny
    if found != promised:
        raise ScanError(f"it has {found} bytes of image but its header promises {promised}; it is cut off or damaged.")
    rows = np.frombuffer(raw, "<f4", offset=start).reshape(ny, nx)
    size = None
    if field.get("XYUnits") == "m" and {"XReal", "YReal"} <= set(field):
        size = (float(field["XReal"]) * 1e10, float(field["YReal"]) * 1e10)
    height = re.search(r"tip height = (\S+) A$", field.get("Title", ""))
    rank = int(field["AfmolSlice"]) if "AfmolSlice" in field else None
    return Slice(real(rows[::-1].T, "image"), size, float(height[1]) if height else None, rank=rank)


def gsf(scan: Scan) -> dict[str, bytes]:
    nx, ny, nz = scan.data.shape
    lx, ly = (float(length) * 1e-10 for length in scan.size)
    files = {}
    for k in range(nz):
        title = "Frequency shift"
        if scan.heights is not None:
            title += f", tip height = {float(scan.heights[k])!r} A"
        field = {"XRes": nx, "YRes": ny, "XReal": lx, "YReal": ly, "XYUnits": "m", "Title": title, "AfmolSlice": k}
        header = _GSF_MAGIC + "".join(f"{key} = {value}\n" for key, value in field.items()).encode()
        rows = real(scan.data[:, ::-1, k].T, "data").astype("<f4")
        files[f"{k:03d}.gsf"] = header + bytes(4 - len(header) % 4) + rows.tobytes()
    return files


# Several files, one stack


def assemble(
    files: Sequence[Path], slices: Sequence[Slice], heights: Float[np.ndarray, " n"] | None, source: str
) -> Stack:
    """One stack of the images of several files, far to close; images at one height stay in the order of their names.

    `heights`, one a file, override those in the files.
    """
    _check_same_frame(files, slices, source)
    if heights is None:
        heights = _recorded_heights(files, slices)
    if heights is None:
        order = sorted(range(len(slices)), key=lambda i: slices[i].rank or 0)
    elif len(heights) != len(slices):
        raise ScanError(f"{source} has {len(slices)} slices, but {len(heights)} heights were given; give one each.")
    else:
        order = sorted(range(len(slices)), key=lambda i: (-heights[i], natural(files[i])))
    data = np.stack([slices[i].image for i in order], axis=-1)
    return Stack(data, slices[0].size, None if heights is None else heights[order])


def natural(file: Path) -> list[tuple[int, str]]:
    """Sort key that puts slice2 before slice10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name) if part]


def _recorded_heights(files: Sequence[Path], slices: Sequence[Slice]) -> Float[np.ndarray, " n"] | None:
    """The heights in the files; None for a stack that afmol wrote without any."""
    unknown = [file for file, s in zip(files, slices, strict=True) if s.height is None]
    if not unknown:
        return np.array([s.height for s in slices], float)
    if len(unknown) == len(slices) == len({s.rank for s in slices} - {None}):
        return None
    raise ScanError(
        f"{unknown[0].name} does not say at which tip height it was taken; give one height a slice in A, larger is "
        "farther from the sample, in the order of the file names with --heights (heights= in Python)."
    )


def _check_same_frame(files: Sequence[Path], slices: Sequence[Slice], source: str) -> None:
    """Slices of one stack show the same place with the same pixels; a small shift against drift is fine."""
    if len(slices) < 2:
        raise ScanError(
            f"{source} holds a single image, but a stack needs the same place at several tip heights: "
            "give the files of the other heights too, or their folder."
        )
    first = slices[0]
    for file, other in zip(files, slices, strict=True):
        pair = f"{files[0].name} and {file.name}"
        if first.image.shape != other.image.shape:
            a, b = ("x".join(map(str, s.image.shape)) for s in (first, other))
            raise ScanError(f"{pair} have different numbers of pixels ({a} and {b}); give the slices of one stack.")
        # NaN is a length that is unknown in both.
        if not np.allclose(first.size or np.nan, other.size or np.nan, rtol=1e-3, equal_nan=True):
            raise ScanError(f"{pair} have different sizes ({_lengths(first)} and {_lengths(other)}); give one stack.")
        if first.place and other.place and first.size:
            shift, turn = np.subtract(first.place, other.place)[:2], first.place[2] - other.place[2]
            if (np.abs(shift) > 0.5 * np.array(first.size)).any() or abs((turn + 180) % 360 - 180) > 1:
                raise ScanError(f"{pair} show different places or are rotated; give the slices of one stack.")
        if not np.isfinite(other.image).all():
            raise ScanError(f"{file.name} holds NaN or infinite values; crop or fill the unfinished part of the image.")


def _lengths(piece: Slice) -> str:
    return "unknown" if piece.size is None else f"{piece.size[0]:.4g} x {piece.size[1]:.4g} A"
