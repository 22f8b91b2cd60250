"""Files that are written whole or not at all."""

import contextlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..errors import ConfigError

Content = bytes | dict[str, bytes]
"""Of a file, or of the files of a folder."""


def write_file(path: str | Path, content: Content) -> None:
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


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """A compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def write_arrays(arrays: Mapping[str, Any], path: str | Path) -> None:
    """Write a compressed .npz, complete or not at all; errors as in `write_file`."""
    write_file(path, npz_bytes(arrays))
