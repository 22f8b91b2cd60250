"""Scans of any width, pixel size and number of slices -> the ones that networks take."""

import logging
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float

from .errors import ScanError
from .simulation.artefacts import resample_slices
from .structures import Scan

FEWEST_SLICES = 3
SHORTEST_SIDE = 4.0
"""A: a smaller image holds no molecule."""
LONGEST_SIDE = 300.0
"""A: a larger image should be cropped to the molecule first, or read in tiles."""
PIXELS = (0.01, 1.0)
"""A: pixel sizes that can be right; atoms are a good 1 A apart."""
SPACINGS = (0.015, 5.0)
"""A: mean distances of different heights that can be right; those of an image stack are 0.05 to 0.5 A."""

_LOG = logging.getLogger(__name__)


def constant(data: Float[np.ndarray, "nx ny nz"]) -> Bool[np.ndarray, " nz"]:
    """Which slices show nothing."""
    return (data == data[0, 0]).all((0, 1))


def with_images(scan: Scan) -> Scan:
    """The scan without its constant slices, which are no images."""
    images = ~constant(scan.data)
    if images.all():
        return scan
    heights = None if scan.heights is None else scan.heights[images]
    return replace(scan, data=np.ascontiguousarray(scan.data[:, :, images]), heights=heights)


def usable(scan: Scan, longest: float = LONGEST_SIDE) -> Scan:
    """The scan as models can read it, sides of up to `longest` (A): without its constant slices, which a logged
    warning names.

    Raises:
        ScanError: a reason why no model can read it.
    """
    nz = scan.data.shape[2]
    if nz < FEWEST_SLICES:
        raise ScanError(f"{nz} slice{'s' if nz > 1 else ''} only; at least {FEWEST_SLICES} heights are needed.")
    flat = [str(k + 1) for k in np.flatnonzero(constant(scan.data))]
    if len(flat) == nz:
        raise ScanError("Every slice is constant: there is no image to read.")
    if flat:
        many = len(flat) > 1
        named = f"lice{'s' * many} {', '.join(flat[:8])}{', ...' * (len(flat) > 8)} of {nz} {'are' if many else 'is'}"
        if nz - len(flat) < FEWEST_SLICES:
            raise ScanError(f"S{named} constant: too few images are left; at least {FEWEST_SLICES} are needed.")
        _LOG.warning("%s: s%s constant and left out.", scan.source or "scan", named)
        scan = with_images(scan)
    _check_lengths(scan, longest)
    return scan


def _check_lengths(scan: Scan, longest: float) -> None:
    """Refuse sizes and heights that can be none in Angstrom."""
    if scan.heights is not None and (span := float(np.ptp(scan.heights))) > 0:
        # Repeats that drift tells apart are one height.
        different = len(np.unique(np.round((scan.heights - scan.heights.min()) / span, 3)))
        spacing = span / (different - 1)
        if not SPACINGS[0] <= spacing <= SPACINGS[1]:
            raise ScanError(
                f"The slices are {spacing:.3g} A apart, outside {SPACINGS[0]:g}-{SPACINGS[1]:g} A "
                "(are the heights in Angstrom?)."
            )
    if min(scan.size) < SHORTEST_SIDE:
        raise ScanError(
            f"The image measures {scan.size[0]:g} x {scan.size[1]:g} A; at least {SHORTEST_SIDE:g} A a side are needed "
            "(is the size in Angstrom?)."
        )
    if not all(PIXELS[0] <= p <= PIXELS[1] for p in scan.pixel):
        raise ScanError(
            f"The pixels measure {scan.pixel[0]:g} x {scan.pixel[1]:g} A, outside {PIXELS[0]:g}-{PIXELS[1]:g} A "
            "(is the size in Angstrom?)."
        )
    if max(scan.size) > longest:
        raise ScanError(
            f"The image measures {scan.size[0]:g} x {scan.size[1]:g} A; crop it to the molecule "
            f"(at most {longest:g} A a side)."
        )


def resampled(
    scan: Scan, pixel: float, slices: int, widest_step: float
) -> tuple[Float[np.ndarray, "_ _ {slices}"], tuple[float, float]]:
    """The stack at another pixel size (A) and number of slices, and the factors that turn its x and y into the scan's.

    They differ from 1 by less than half a pixel over the image: pixels are whole.

    Args:
        scan: any that `usable` lets pass.
        pixel: A.
        slices: how many.
        widest_step: largest spacing of the slices where heights are known, A.
    """
    scan = usable(scan)
    data = torch.from_numpy(_slices_for(scan, slices, widest_step).astype(np.float32)).permute(2, 0, 1)[None]
    shape = [max(8, round(side / pixel)) for side in scan.size]
    images = F.interpolate(data, shape, mode="bilinear", antialias=True, align_corners=False)
    scale = (scan.size[0] / (shape[0] * pixel), scan.size[1] / (shape[1] * pixel))
    return images[0].permute(1, 2, 0).numpy(), scale


def _slices_for(scan: Scan, slices: int, widest_step: float) -> Float[np.ndarray, "nx ny {slices}"]:
    """A number of slices, by interpolation.

    Unknown heights: spread over the whole stack. Known heights: from the closest slice up, over the whole stack or as
    far as the widest step reaches; repeats of a height are averaged.
    """
    nz = scan.data.shape[2]
    if scan.heights is None:
        return resample_slices(scan.data, np.linspace(0, nz - 1, slices))
    heights, place = np.unique(np.round(scan.heights, 3), return_inverse=True)
    if len(heights) < FEWEST_SLICES:
        raise ScanError(f"{len(heights)} different heights only; at least {FEWEST_SLICES} are needed.")
    data = np.stack([scan.data[..., place == k].mean(-1) for k in range(len(heights))], axis=-1)  # close to far
    step = min((heights[-1] - heights[0]) / (slices - 1), widest_step)
    at = np.interp(heights[0] + step * np.arange(slices), heights, np.arange(len(heights)))
    return resample_slices(data, at[::-1])
