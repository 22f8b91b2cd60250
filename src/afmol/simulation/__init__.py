"""From a molecule to a stack of images: forces -> probe -> frequency shift -> artefacts."""

from .afm import STANDARD_DISTANCE, TIPS, Grid, Tip, grid_around, simulate, standard_heights

__all__ = ["STANDARD_DISTANCE", "TIPS", "Grid", "Tip", "grid_around", "simulate", "standard_heights"]
