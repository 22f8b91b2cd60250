"""From a molecule to a stack of images: forces -> scene -> probe -> frequency shift -> artefacts.

One molecule, numpy: `simulate`. Many, torch, with a gradient: `stacks`, `snaps`; imported when first used, since torch
takes its time and `simulate` can do without. Both assemble what is to be simulated in scene.py, for any force model.
"""

from typing import TYPE_CHECKING, Any

from .flattening import force_centres
from .forces import FORCES, ForceModel
from .image import simulate
from .tip import STANDARD_DISTANCE, TIPS, Grid, Tip, TipParameters, grid_around, standard_heights

if TYPE_CHECKING:
    from .batch import force_snaps, force_stacks, snaps, stacks

_BATCH = ("force_snaps", "force_stacks", "snaps", "stacks")
__all__ = [
    "FORCES",
    "STANDARD_DISTANCE",
    "TIPS",
    "ForceModel",
    "Grid",
    "Tip",
    "TipParameters",
    "force_centres",
    "force_snaps",
    "force_stacks",
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
