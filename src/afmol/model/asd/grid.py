"""The grid of atom positions: each atom a normalised Gaussian of 0.25 A (Oinonen et al., MRS Bulletin 2022)."""

from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .grouping import rank_within

SIGMA = 0.25
"""A."""
Z_START, VOXEL_Z, N_Z = -1.5, 0.1, 20
"""The grid reaches from -1.5 to 0.5 A in z, in voxels of 0.1 A; 0 is the topmost nucleus."""
PEAK = (2 * pi * SIGMA**2) ** -1.5
"""The grid's value at the centre of an atom that stands alone, 1 / A^3."""


def voxel_centres(shape: tuple[int, int], pixel: float, device: torch.device | None = None) -> list[Tensor]:
    """Coordinates of the voxels' centres along x, y and z, A."""
    steps = ((shape[0], pixel, 0.0), (shape[1], pixel, 0.0), (N_Z, VOXEL_Z, Z_START))
    return [start + (torch.arange(n, device=device) + 0.5) * step for n, step, start in steps]


def position_grid(
    positions: Float[Tensor, "n 3"], image: Int[Tensor, " n"], n_images: int, shape: tuple[int, int], pixel: float
) -> Float[Tensor, "batch nx ny nz"]:
    """The sum of the Gaussians of each image's atoms, 1 / A^3."""
    slot = rank_within(image, torch.arange(len(image), device=image.device))
    most = int(slot.max()) + 1 if len(slot) else 0
    x, y, z = (
        positions.new_zeros(n_images, most, len(centres)).index_put(
            (image, slot), torch.exp(-0.5 * ((centres - p[:, None]) / SIGMA) ** 2) / (SIGMA * sqrt(2 * pi))
        )
        for centres, p in zip(voxel_centres(shape, pixel, positions.device), positions.unbind(1), strict=True)
    )
    plane = (y[..., None] * z[..., None, :]).flatten(2)
    return (x.mT @ plane).view(n_images, *shape, N_Z)
