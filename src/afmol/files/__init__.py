"""Files of scans and molecules: formats.py has the table of all that are read and written."""

from ..errors import reading
from .arrays import attribute, check_dataset, dataset_array, npz_arrays, opened_h5
from .formats import (
    MOLECULES,
    SCANS,
    check_scan_path,
    in_order,
    is_single_slice,
    read_molecule,
    read_scan,
    scan_files,
    write_molecule,
    write_scan,
)
from .molecules import atomic_number
from .nanonis import Direction
from .storage import draft_of, locked, make_folder, npz_bytes, write_arrays, write_file

__all__ = [
    "MOLECULES", "SCANS", "Direction", "atomic_number", "attribute", "check_dataset",
    "check_scan_path", "dataset_array", "draft_of", "in_order", "is_single_slice", "locked", "make_folder",
    "npz_arrays", "npz_bytes", "opened_h5", "read_molecule", "read_scan", "reading", "scan_files", "write_arrays",
    "write_file", "write_molecule", "write_scan",
]  # fmt: skip
