"""Arrays in .npz and HDF5 files: what they claim is checked before it is read, and nothing outside the file is."""

import contextlib
import io
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AfmolError
from ..limits import check_claim

if TYPE_CHECKING:
    import h5py

_HEADER = 10_000
"""Bytes of an array's header, the most that numpy reads."""
_NO_PLACE = 1
"""Where the next free place of an HDF5 heap would be, after the last."""
_FREE_PLACES = 100_000
"""More of them than any heap has."""


def npz_arrays(
    file: Path | io.IOBase, wanted: Collection[str] | None, where: str, error_type: type[AfmolError]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an .npz file, and those arrays that are wanted and there; nothing is unpickled.

    Args:
        file: a path, or a file that is open.
        wanted: names; None: all.
        where: what messages begin with.
        error_type: what is raised.

    Raises:
        error_type: arrays that claim too much together, damaged ones, Python objects.
        zipfile.BadZipFile and others: no .npz file; for `reading` to tell.
    """
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        chosen = {name: info for name, info in members.items() if wanted is None or name in wanted}
        claimed, found = 0, {}
        for name, info in chosen.items():
            try:
                with archive.open(info) as member:
                    claimed += max(_claimed(member.read(_HEADER)), info.file_size)
                check_claim(claimed, f"{where}'{name}'", error_type)
                with archive.open(info) as member:
                    found[name] = np.lib.format.read_array(member, allow_pickle=False)
            except ValueError as error:
                told = f"{where}'{name}' is damaged or holds Python objects, which are never loaded"
                raise error_type(f"{told}; save plain arrays of numbers.") from error
    return [*members], found


def _claimed(start: bytes) -> int:
    """Bytes that an array takes, as the start of its file says. ValueError and others: no array."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return math.prod(shape) * dtype.itemsize


@contextlib.contextmanager
def opened_h5(file: str | Path | io.BytesIO, where: str, error_type: type[AfmolError]) -> Iterator["h5py.File"]:
    """An HDF5 file, open for reading; one with a link to another file is refused before that is followed.

    Raises:
        error_type: such a link, an endless list. OSError: no HDF5 file; for `reading` to tell.
    """
    import h5py
    from h5py import h5l  # pyrefly: ignore[missing-module-attribute]

    if _endless(file):
        raise error_type(f"{where or 'it '}is damaged: a list in it has no end; write it again.")

    def outside(name: bytes, info: Any) -> bytes | None:
        return name if info.type not in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else None

    with h5py.File(file, "r") as opened:
        name = opened.id.links.visit(outside, info=True)
        if name is not None:
            raise error_type(_outside(where, name.decode(errors="replace")))
        yield opened


def _endless(file: str | Path | io.BytesIO) -> bool:
    """Whether the free places of a local heap come back to themselves: HDF5 2.0 follows them (H5HL__fl_deserialize)
    until there is no memory left.

    The file format's section III.D: "HEAP", 4 bytes, length of the data, offset of the first free place in it, address
    of the data; each free place begins with the offset of the next, 1 at the end. Addresses count from the superblock,
    lengths and addresses take 8 bytes in what h5py writes, and others are left alone.
    """
    start = b"\x89HDF\r\n\x1a\n"
    with contextlib.ExitStack() as stack:
        if isinstance(file, io.BytesIO):
            content = stack.enter_context(file.getbuffer())
        else:
            opened = stack.enter_context(open(file, "rb"))
            content = stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        length = len(content)
        places = [0, *(512 << n for n in range(length.bit_length()))]
        base = next((place for place in places if content[place : place + len(start)] == start), length)
        for heap in re.finditer(rb"HEAP\0.{27}", content, re.DOTALL):
            _, place, data = struct.unpack_from("<3Q", heap[0], 8)
            for _ in range(_FREE_PLACES):
                if place == _NO_PLACE or base + data + place + 8 > length:
                    break
                (place,) = struct.unpack_from("<Q", content, base + data + place)
            else:
                return True
        return False


def _outside(where: str, name: str) -> str:
    return f"{where}'{name}' lies in another file, which is never followed; copy it into this one."


def check_dataset(dataset: "h5py.Dataset", where: str, error_type: type[AfmolError], stored: int | None = None) -> None:
    """Refuse a dataset that lies outside its file, or claims too much; `stored` as of `check_claim`."""
    name = (dataset.name or "").lstrip("/")
    _check_fixed(dataset.dtype, name, where, error_type)
    if dataset.external or dataset.is_virtual:
        raise error_type(_outside(where, name))
    check_claim(math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize, f"{where}'{name}'", error_type, stored)
    # A chunk is unpacked as a whole, and may be larger than the array.
    check_claim(math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize, f"{where}'{name}'", error_type)


def _check_fixed(dtype: np.dtype, name: str, where: str, error_type: type[AfmolError]) -> None:
    """Refuse numbers or text of variable length: HDF5 (2.0) never comes back from a damaged heap, where those lie."""
    if dtype.kind == "O":
        raise error_type(
            f"{where}'{name}' is of variable length, which is not read; save numbers, or text of one length."
        )


def attribute(holder: "h5py.Group", name: str, where: str, error_type: type[AfmolError]) -> Any:
    """An attribute of a file, group or dataset.

    Raises:
        error_type: one of variable length. KeyError: none of that name.
    """
    _check_fixed(holder.attrs.get_id(name).dtype, name, where, error_type)
    return holder.attrs[name]


def dataset_array(dataset: Any, where: str, error_type: type[AfmolError]) -> np.ndarray:
    """What a dataset holds; errors as of `check_dataset`."""
    check_dataset(dataset, where, error_type)
    return np.asarray(dataset[()])
