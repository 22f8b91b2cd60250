"""Arrays in .npz and HDF5 files: what they claim is checked before it is read, and nothing outside the file is."""

import contextlib
import io
import math
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
def opened_h5(file: str | Path | io.IOBase, where: str, error_type: type[AfmolError]) -> Iterator["h5py.File"]:
    """An HDF5 file, open for reading; one with a link to another file is refused before that is followed.

    Raises:
        error_type: such a link. OSError: no HDF5 file; for `reading` to tell.
    """
    import h5py
    from h5py import h5l  # pyrefly: ignore[missing-module-attribute]

    def outside(name: bytes, info: Any) -> bytes | None:
        return name if info.type not in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else None

    with h5py.File(file, "r") as opened:
        name = opened.id.links.visit(outside, info=True)
        if name is not None:
            raise error_type(_outside(where, name.decode(errors="replace")))
        yield opened


def _outside(where: str, name: str) -> str:
    return f"{where}'{name}' lies in another file, which is never followed; copy it into this one."


def check_dataset(dataset: "h5py.Dataset", where: str, error_type: type[AfmolError], stored: int | None = None) -> None:
    """Refuse a dataset that lies outside its file, or claims too much; `stored` as of `check_claim`."""
    name = (dataset.name or "").lstrip("/")
    if dataset.external or dataset.is_virtual:
        raise error_type(_outside(where, name))
    check_claim(math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize, f"{where}'{name}'", error_type, stored)
    # A chunk is unpacked as a whole, and may be larger than the array.
    check_claim(math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize, f"{where}'{name}'", error_type)


def dataset_array(dataset: Any, where: str, error_type: type[AfmolError]) -> np.ndarray:
    """What a dataset holds; errors as of `check_dataset`."""
    check_dataset(dataset, where, error_type)
    return np.asarray(dataset[()])
