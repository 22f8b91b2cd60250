"""What speaks against a stack: slices in no order, reversed, negated, repeated, a lattice; bonds of impossible lengths.

    quantity                                             variable   of a stack
    rank correlation of |k - l| and of how unlike        order      slices that follow each other as heights do: near 1
      slices k and l are
    ln (contrast of the last / of the first slice)       contrast   grows toward the molecule
    skewness of first, last, last - first slice          skewness   far away a dark spot, close in bright atoms
    highest autocorrelation of the last slice,           repeat     a lattice: 1; a molecule: less
      1.8 to 6 A away

Slices are freed of a plane and smoothed (0.3 A) before. The weights are those of two logistic regressions, the limits
quantiles, over 1,050 simulated stacks and the same reversed or negated (LOG.md, 2026-11-25). No network decides.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from .scale import scale_ratio
from .structures import Molecule, Scan

SMOOTHING = 0.3
"""A."""
NEAREST_REPEAT, FARTHEST_REPEAT, LEAST_OVERLAP = 1.8, 6.0, 0.3
"""Shifts that are compared, A: lattices of atoms, not of molecules; and the least share of the image to overlap."""
FEWEST = 5
"""Fewer slices have too few pairs for an order."""
LEAST_ORDER, MOST_REPEAT = 0.5, 0.99
REVERSED, NEGATED = -0.1, -0.7
"""Limits of `Contrast.closing` and `Contrast.sign`."""
MOST_STRETCH, SUREST = 0.05, 3.0
"""A ratio of bond lengths this far from 1, and this many standard errors, is doubted: without any error of the size the
ratios of `base` spread by 0.015, and those of `measured` are within 0.043 in 100 of 100 nominal stacks."""
NOT_A_STACK = 0.5
"""Factor on the confidence of atoms in a stack that is doubted for its images."""


class Contrast(NamedTuple):
    """What images say of the order and the sign of a stack."""

    order: float
    closing: float
    """Below zero: the contrast grows toward the first slice."""
    sign: float
    """Below zero: dark and bright are exchanged."""
    repeat: float


def doubted(scan: Scan, molecule: Molecule) -> Molecule:
    """The molecule with what speaks against it as warnings, and with less confidence where the images do."""
    about_images, size = image_doubts(scan), size_doubt(scan, molecule)
    confidence = molecule.confidence
    if about_images and confidence is not None:
        confidence = NOT_A_STACK * confidence
    return replace(molecule, confidence=confidence, warnings=(*molecule.warnings, *about_images, *size))


def image_doubts(scan: Scan) -> list[str]:
    """What speaks against the images of a stack of at least three slices, a sentence each."""
    data = scan.data
    same = np.flatnonzero((data[..., 1:] == data[..., :-1]).all((0, 1)))
    if len(same):
        return [f"slices {same[0] + 1} and {same[0] + 2} are the same image; leave one of them out."]
    contrast = image_contrast(scan)
    if scan.data.shape[2] >= FEWEST and contrast.order < LEAST_ORDER:
        return ["the slices do not follow one another as images at falling heights do: is it a stack, in order?"]
    said = []
    if contrast.closing < REVERSED:
        said.append("the contrast grows toward the first slice: are the slices reversed? The last must be the closest.")
    if contrast.sign < NEGATED:
        said.append("dark and bright look exchanged: is it the frequency shift, with its sign?")
    if contrast.repeat > MOST_REPEAT:
        said.append("the image repeats itself like a lattice: afmol knows single molecules, not surfaces.")
    return said


def size_doubt(scan: Scan, molecule: Molecule) -> list[str]:
    """Whether the bonds are too long or too short for the stated size."""
    ratio = stretch(molecule)
    if ratio == 1.0:
        return []
    how = "long" if ratio > 1 else "short"
    stated, true = (" x ".join(f"{side / r:.1f}" for side in scan.size) for r in (1.0, ratio))
    return [f"bonds are {100 * abs(ratio - 1):.0f} % too {how}: is the size {stated} or {true} A?"]


def stretch(molecule: Molecule) -> float:
    """By how much bonds are longer than they are in nature, where that is beyond doubt; 1 where it is not."""
    found = scale_ratio(molecule)
    if found is None or abs(np.log(found.ratio)) < max(MOST_STRETCH, SUREST * found.error):
        return 1.0
    return found.ratio


def at_true_size(scan: Scan, molecule: Molecule) -> tuple[Scan, Molecule]:
    """Scan and molecule as of the size that bonds speak for, where the stated one is doubted; else as they are."""
    ratio = stretch(molecule)
    if ratio == 1.0:
        return scan, molecule
    true = (scan.size[0] / ratio, scan.size[1] / ratio)
    return replace(scan, size=true), replace(molecule, positions=molecule.positions / [ratio, ratio, 1.0])


def image_contrast(scan: Scan) -> Contrast:
    """See the module's text; a scan of at least three slices."""
    width = SMOOTHING / np.array(scan.pixel)
    flat = gaussian_filter(_without_plane(scan.data.astype(float)), (*width, 0))
    flat -= flat.mean((0, 1))
    nx, ny, n = flat.shape
    deviation = np.maximum(flat.std((0, 1)), 1e-300)
    unit = flat / deviation
    alike = np.einsum("xyk,xyl->kl", unit, unit) / (nx * ny)
    k, other = np.triu_indices(n, 1)
    order = float(np.corrcoef(_ranks((other - k).astype(float)), _ranks(-alike[k, other]))[0, 1])
    grows = float(np.log(deviation[-1] / deviation[0]))
    first, last, change = (_skewness(image) for image in (unit[..., 0], unit[..., -1], unit[..., -1] - unit[..., 0]))
    closing = grows - 0.13 * (last - first) + 0.30 * change
    sign = -first + 0.29 * last + 0.48 * change
    return Contrast(order, closing, sign, _repeat(unit[..., -1], scan.pixel))


def _without_plane(stack: Float[np.ndarray, "nx ny n"]) -> Float[np.ndarray, "nx ny n"]:
    """Each slice minus the plane that fits it best."""
    nx, ny, n = stack.shape
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    plane = np.stack([np.ones(nx * ny), np.repeat(x, ny), np.tile(y, nx)], axis=1)
    rows = stack.reshape(-1, n)
    return (rows - plane @ np.linalg.lstsq(plane, rows, rcond=None)[0]).reshape(nx, ny, n)


def _skewness(image: Float[np.ndarray, "nx ny"]) -> float:
    centred = image - image.mean()
    return float((centred**3).mean() / max(float((centred**2).mean()), 1e-300) ** 1.5)


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


def _repeat(image: Float[np.ndarray, "nx ny"], pixel: tuple[float, float]) -> float:
    """The highest correlation of an image with itself moved as far as lattices repeat, over where both are."""
    nx, ny = image.shape
    size = (2 * nx, 2 * ny)
    product, overlap = (np.fft.irfft2(np.abs(np.fft.rfft2(a, size)) ** 2, size) for a in (image, np.ones_like(image)))
    x, y = (np.minimum(np.arange(2 * m), 2 * m - np.arange(2 * m)) * p for m, p in ((nx, pixel[0]), (ny, pixel[1])))
    shift = np.hypot(x[:, None], y[None])
    use = (shift >= NEAREST_REPEAT) & (shift <= FARTHEST_REPEAT) & (overlap >= LEAST_OVERLAP * nx * ny)
    return float((product[use] / overlap[use]).max(initial=0.0))
