"""Files that are written whole or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from ..errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has none: there nothing is locked, and drafts are left by age alone
    fcntl = None

Content = bytes | dict[str, bytes]
"""Of a file, or of the files of a folder."""
DRAFT = re.compile(r"\..+\.([0-9a-f]{4})[0-9a-f]{8}\.tmp")
"""Name of a draft: .NAME.MACHINErandom.tmp."""
FORGOTTEN = 86400.0
"""Age from which another machine's draft is one that a killed process left, s: none takes so long to write."""
LONGEST_NAME = 200
"""Bytes of a name in that of its draft, so that a draft fits wherever its file does."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF)
"""What a file system answers that knows no locks, or none of this kind of file."""


def write_file(path: str | Path, content: Content) -> None:
    """A file, or a folder of files, complete or not at all: written beside its place, then moved there.

    The first one that a process writes in a folder removes the drafts that killed processes left there.

    Raises:
        ConfigError: a path that cannot be written.
    """
    path = Path(path)
    draft = draft_of(path)
    try:
        sweep(Path(os.path.abspath(path.parent)))
        if isinstance(content, bytes):
            with _held(draft) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # whole also after a power cut
                if fcntl is None:
                    file.close()  # Windows moves no open file
                os.replace(draft, path)
        else:
            draft.mkdir()
            for name, part in content.items():
                (draft / name).write_bytes(part)
            os.replace(draft, path)
    except OSError as error:
        hint = "choose another name or folder"
        raise ConfigError(f"{path} cannot be written ({(error.strerror or 'error').lower()}); {hint}.") from error
    finally:
        _remove(draft)


def draft_of(path: Path) -> Path:
    """A name beside a file, that no other process takes: to write it there first."""
    name = path.name
    while len(os.fsencode(name)) > LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}.{_machine()}{uuid4().hex[:8]}.tmp")


@cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


@contextlib.contextmanager
def _held(draft: Path) -> Iterator[IO[bytes]]:
    """A new draft, locked as long as it is written, so that nobody takes it for one that was left."""
    while True:
        with draft.open("xb") as file:
            _lock(file.fileno(), wait=True)
            if os.fstat(file.fileno()).st_nlink:  # else it was swept between the two
                yield file
                return


@cache
def sweep(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder, once a process.

    Those are this machine's that nobody holds, and others' older than FORGOTTEN: machines that share a folder need not
    see each other's locks.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name := DRAFT.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _sweep_draft(Path(entry.path), name[1] == _machine())


def _sweep_draft(draft: Path, ours: bool) -> None:
    age = _now(draft.parent) - draft.stat().st_mtime
    if age > FORGOTTEN:
        _remove(draft)
    elif ours and draft.is_file():
        with draft.open("rb+") as file:
            if _lock(file.fileno()):
                _remove(draft)


def _now(folder: Path) -> float:
    """The time by the clock that dates the files of a folder, which may be another machine's."""
    clock = draft_of(folder / "clock")
    try:
        clock.touch()
        return clock.stat().st_mtime
    finally:
        _remove(clock)


def _remove(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    with contextlib.suppress(OSError):
        draft.unlink()


def _lock(file: int, wait: bool = False) -> bool:
    """Lock an open file for this process until it is closed; whether that was done, OSError if another holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


@contextlib.contextmanager
def locked(path: str | Path, what: str) -> Iterator[None]:
    """A lock file, held by this process alone and removed at the end; also kill -9 sets it free.

    Processes that are forked meanwhile hold no part of it. On a file system without locks nobody is kept out.

    Args:
        path: the lock file; its folder must be there.
        what: what is being written, for the sentence.

    Raises:
        ConfigError: another process holds it, or the file cannot be written.
    """
    path = Path(path)
    busy = f"Another command is writing {what} just now; wait for it, or choose another name."
    try:
        held = path.open("w")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({(error.strerror or 'error').lower()}).") from error
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=held.close)  # a child that outlives this process would hold it on
    with held:
        try:
            _lock(held.fileno())
            if os.fstat(held.fileno()).st_ino != path.stat().st_ino:
                raise ConfigError(busy)  # another took the place of one that was just removed
        except OSError as error:
            raise ConfigError(busy) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """A compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def write_arrays(arrays: Mapping[str, Any], path: str | Path) -> None:
    """Write a compressed .npz, complete or not at all; errors as in `write_file`."""
    write_file(path, npz_bytes(arrays))
