"""From a molecule to a stack of images: forces -> probe -> frequency shift -> artefacts.

One molecule, numpy: `simulate`. Many, torch, with a gradient: `stacks`; imported when first used, since torch takes its
time and `simulate` can do without.
"""

from typing import TYPE_CHECKING, Any

from .tip import STANDARD_DISTANCE, TIPS, Grid, Tip, grid_around, simulate, standard_heights

if TYPE_CHECKING:
    from .batch import TipParameters, snaps, stacks

_BATCH = ("TipParameters", "snaps", "stacks")
__all__ = [
    "STANDARD_DISTANCE",
    "TIPS",
    "Grid",
    "Tip",
    "TipParameters",
    "grid_around",
    "simulate",
    "snaps",
    "stacks",
    "standard_heights",
]


def __getattr__(name: str) -> Any:
    if name not in _BATCH:
        raise AttributeError(f"module 'afmol.simulation' has no attribute {name!r}")
    from . import batch

    return getattr(batch, name)
