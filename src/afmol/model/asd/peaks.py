"""From the position grid to atoms: local maxima, then Gaussians fitted to all of an image's maxima together.

    f(r) = sum_i a_i g(r - c_i), g(r) = exp(-r^2 / (2 sigma^2)), grid values in units of g's

Each centre c_i and height a_i takes Gauss-Newton steps on what the others leave in its window, so that neighbours that
overlap do not pull at each other; they are less than half a grid step away to begin with. Then each is judged as by
Oinonen et al. (MRS Bulletin 2022): the squared difference between what is left for it and a whole atom's Gaussian, over
the square of the Gaussian (same window); a peak counts when that is below 0.7. They leave neighbours in, take connected
regions below 0.7, and the best voxel of each.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..neighbours import overshadowed
from .grid import PEAK, SIGMA, VOXEL_Z, voxel_centres
from .grouping import rank_within

MISFIT = 0.7
"""The published limit of the normalised squared difference."""
LEAST = 0.15
"""Height, of a whole atom's, from which a local maximum is looked at: a lower one cannot fall below the limit."""
NEAREST = 0.5
"""No two atoms are closer than this, A; the weaker peak is dropped."""
MOST = 200
"""Peaks of an image; of more, the highest."""
REACH = 3 * SIGMA
"""Half the edge of a peak's window, A (the published template's)."""
STEPS = 6
LONGEST_STEP = 0.1
"""A."""


class Window(NamedTuple):
    """The voxels around each peak, inside the grid or not; w = wx * wy * wz of them."""

    axes: list[Float[Tensor, "n _"]]
    """Coordinates along x, y, z, A."""
    inside: list[Float[Tensor, "n _"]]
    """1 inside the grid, else 0."""
    place: Int[Tensor, "n w"]
    """Index into a grid with a margin as wide as half a window."""
    values: Float[Tensor, "n wx wy wz"]
    """The grid there, in units of a whole atom's peak; 0 outside."""
    size: int
    """Voxels of the grids with their margins."""


def find_peaks(
    grid: Float[Tensor, "batch nx ny nz"], pixel: float
) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Positions (A), image and confidence of the peaks, image by image.

    Confidence is 1 - misfit / 1.4, from 0 to 1, misfit being the normalised squared difference: 1 where the grid holds
    a whole atom's Gaussian, 1/2 at the published limit. It is no probability.
    """
    heights = grid / PEAK
    voxels = local_maxima(heights)
    image = voxels[:, 0]
    window = _window(heights, voxels, pixel)
    centre = torch.stack([x[:, x.shape[1] // 2] for x in window.axes], dim=1)
    first = heights[tuple(voxels.unbind(1))]
    keep = ~overshadowed(centre, image, first, NEAREST)
    window = _some(window, keep)
    centre, image, first = centre[keep], image[keep], first[keep]
    centre, misfit = _fitted(window, centre, first)
    confidence = (1 - misfit / (2 * MISFIT)).clamp(0, 1)
    keep = ~overshadowed(centre, image, confidence, NEAREST) & (confidence > 0)
    return centre[keep], image[keep], confidence[keep]


def local_maxima(heights: Float[Tensor, "batch nx ny nz"]) -> Int[Tensor, "n 4"]:
    """Image and voxel of each value above LEAST that no neighbour of the 26 exceeds; of equal neighbours, the first."""
    device = heights.device
    padded = F.pad(heights, (1, 1, 1, 1, 1, 1), value=-torch.inf)
    strides = torch.tensor(padded.stride(), device=device)
    voxels = torch.nonzero(heights > LEAST)
    values = heights[tuple(voxels.unbind(1))]
    step = torch.arange(-1, 2, device=device)
    offset = (torch.cartesian_prod(step, step, step) * strides[1:]).sum(1)
    around = padded.flatten()[((voxels + torch.tensor([0, 1, 1, 1], device=device)) * strides).sum(1)[:, None] + offset]
    top = ((around < values[:, None]) | ((around == values[:, None]) & (offset >= 0))).all(1)
    voxels, values = voxels[top], values[top]
    return voxels[rank_within(voxels[:, 0], -values) < MOST]


def _window(heights: Float[Tensor, "batch nx ny nz"], voxels: Int[Tensor, "n 4"], pixel: float) -> Window:
    """The windows around voxels (image, x, y, z)."""
    margin = [int(REACH / step + 1e-6) for step in (pixel, pixel, VOXEL_Z)]
    padded = F.pad(heights, [m for m in reversed(margin) for _ in range(2)])
    _, nx, ny, _ = heights.shape
    axes, inside, places = [], [], []
    for k, centres in enumerate(voxel_centres((nx, ny), pixel, heights.device)):
        index = voxels[:, k + 1, None] + torch.arange(-margin[k], margin[k] + 1, device=heights.device)
        axes.append(centres[0] + index * (centres[1] - centres[0]))
        inside.append(((index >= 0) & (index < len(centres))).to(heights))
        places.append((index + margin[k]) * padded.stride(k + 1))
    x, y, z = places
    place = voxels[:, :1, None, None] * padded.stride(0) + x[:, :, None, None] + y[:, None, :, None] + z[:, None, None]
    return Window(axes, inside, place.flatten(1), padded.flatten()[place], padded.numel())


def _some(window: Window, keep: Bool[Tensor, " n"]) -> Window:
    """The windows of some peaks."""
    axes, inside = ([x[keep] for x in xs] for xs in (window.axes, window.inside))
    return Window(axes, inside, window.place[keep], window.values[keep], window.size)


def _fitted(
    window: Window, centre: Float[Tensor, "n 3"], height: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Fitted centres, A, and the misfit of each; see the module's text."""
    inside = _outer(window.inside)
    for _ in range(STEPS):
        factors, gauss, rest = _rest(window, inside, centre, height)
        step = _gauss_newton(window, centre, height, factors, rest * gauss)
        height = (height + step[:, 0]).clamp(LEAST / 2, 2.0)
        centre = centre + step[:, 1:].clamp(-LONGEST_STEP, LONGEST_STEP)
    _, gauss, rest = _rest(window, inside, centre, height)
    own = rest + (height - 1).view(-1, 1, 1, 1) * gauss
    return centre, own.square().sum((1, 2, 3)) / gauss.square().sum((1, 2, 3)).clamp_min(1e-9)


def _rest(
    window: Window, inside: Float[Tensor, "n wx wy wz"], centre: Float[Tensor, "n 3"], height: Float[Tensor, " n"]
) -> tuple[list[Float[Tensor, "n _"]], Float[Tensor, "n wx wy wz"], Float[Tensor, "n wx wy wz"]]:
    """Each peak's Gaussian (along the axes, and in its window), and what all of them leave of the grid there."""
    factors = [
        torch.exp(-0.5 * ((x - c[:, None]) / SIGMA) ** 2) * on
        for x, c, on in zip(window.axes, centre.unbind(1), window.inside, strict=True)
    ]
    gauss = _outer(factors)
    summed = (height.view(-1, 1, 1, 1) * gauss).flatten()
    model = summed.new_zeros(window.size).index_add(0, window.place.flatten(), summed)
    return factors, gauss, (window.values - model[window.place].view_as(gauss)) * inside


def _gauss_newton(
    window: Window,
    centre: Float[Tensor, "n 3"],
    height: Float[Tensor, " n"],
    factors: list[Float[Tensor, "n _"]],
    weighted: Float[Tensor, "n wx wy wz"],
) -> Float[Tensor, "n 4"]:
    """The step of height and centre, each peak alone; `weighted` is the rest times the Gaussian.

    The normal matrix is made of products of moments of the squared Gaussian along the axes.
    """
    away = [x - c[:, None] for x, c in zip(window.axes, centre.unbind(1), strict=True)]
    moments = torch.stack(
        [torch.stack([(g * g * d**k).sum(1) for k in range(3)], 1) for g, d in zip(factors, away, strict=True)], 1
    )
    orders = torch.eye(4, dtype=torch.long, device=centre.device)[:, 1:]  # of height, x, y, z along each axis
    both = orders[:, None] + orders
    scale = torch.cat([torch.ones_like(centre[:, :1]), (height / SIGMA**2)[:, None].expand(-1, 3)], 1)
    matrix = moments[:, torch.arange(3, device=centre.device), both].prod(-1) * scale[:, :, None] * scale[:, None]
    sums = [weighted.sum((1, 2, 3))]
    for k, d in enumerate(away):
        axes = [axis for axis in (1, 2, 3) if axis != k + 1]
        sums.append((weighted.sum(axes) * d).sum(1))
    diagonal = torch.diag_embed(1e-3 * matrix.diagonal(dim1=1, dim2=2) + 1e-9)
    return torch.linalg.solve(matrix + diagonal, torch.stack(sums, 1) * scale)


def _outer(factors: list[Float[Tensor, "n _"]]) -> Float[Tensor, "n wx wy wz"]:
    x, y, z = factors
    return x[:, :, None, None] * (y[:, :, None] * z[:, None])[:, None]
