"""afmol reads a stack of atomic force microscopy images of a molecule and returns the molecule.

The public names are spelled here once and imported when first used, so that `import afmol` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AfmolError": "errors",
    "Scan": "structures",
    "Molecule": "structures",
    "read_scan": "files",
    "write_scan": "files",
    "read_molecule": "files",
    "write_molecule": "files",
    "molecule_from_smiles": "data.chemistry",
    "Tip": "simulation",
    "Grid": "simulation",
    "simulate": "simulation",
    "predict": "prediction",
    "load_model": "checkpoint",
}
_MODULES = ("soap",)
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'afmol' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
