"""Slices of a stack, in greys."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter

from ..structures import Scan
from .figure import INK, heading, panel, save

MOST_SLICES = 10
"""How many slices of a stack are shown at most."""
DETAIL = (0.35, 0.9)
"""Widths of the two Gaussians between which what an atom or a bond adds to an image stands out, A."""


def stack_strip(scan: Scan, path: str | Path) -> None:
    """Slices side by side, far to close, each in greys of its own; more than five in two rows.

    Raises ConfigError: a file that cannot be written.
    """
    nz = scan.data.shape[2]
    shown = evenly(nz, MOST_SLICES)
    columns = len(shown) if len(shown) <= 5 else math.ceil(len(shown) / 2)
    rows = math.ceil(len(shown) / columns)
    width, height = fitted(scan.size, 2.6, 2.3)
    wide, high = width + 0.08, height + 0.3
    figure = Figure((max(columns * wide, 4.0) + 0.5, rows * high + 0.7), facecolor="white")
    for place, k in enumerate(shown):
        row, column = divmod(place, columns)
        axes = panel(figure, 0.25 + column * wide, 0.12 + (rows - 1 - row) * high, width, height)
        draw_slice(axes, scan, k)
        axes.set_title(depth_label(scan, k), fontsize=8.5, color=INK, pad=3)
        axes.set(xticks=[], yticks=[])
    draw_scale_bar(axes, scan)
    heading(figure, scan.source or "stack", f"{nz} slices, {scan.size[0]:.1f} × {scan.size[1]:.1f} Å")
    save(figure, path)


def draw_slice(axes: Axes, scan: Scan, index: int, corner: bool = False) -> None:
    """One slice in greys of its own, x to the right and y up, in A; `corner`: its depth is written there."""
    lx, ly = scan.size
    image = grey(scan.data[:, :, index]).T  # imshow's rows are y
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(0, lx, 0, ly), interpolation="bilinear")
    axes.set(xlim=(0, lx), ylim=(0, ly))
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.locator_params(nbins=6, steps=[1, 2, 5, 10])
    if corner:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "#000000a0", "edgecolor": "none"}
        where = {"xycoords": "axes fraction", "xytext": (5, -5), "textcoords": "offset points", "va": "top"}
        axes.annotate(depth_label(scan, index), (0, 1), **where, fontsize=8, color="white", bbox=box)


def draw_scale_bar(axes: Axes, scan: Scan) -> None:
    """A bar of a round length in the lower right corner, with the length in A."""
    lx, ly = scan.size
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= 0.35 * lx), default=lx / 4)
    x, y = lx - 0.06 * min(lx, ly), 0.06 * min(lx, ly)
    halo = [withStroke(linewidth=3.6, foreground="#000000a0")]
    axes.plot([x - length, x], [y, y], color="white", linewidth=2.2, solid_capstyle="butt", path_effects=halo)
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"{length:g} Å", (x - length / 2, y), **above, fontsize=8, color="white", path_effects=halo)


def best_slice(scan: Scan) -> int:
    """The closest slice that has nearly the most detail of the size of atoms and bonds, each in greys of its own.

    The very closest slices are often blurred by the tip's bending, or saturated.
    """
    shown = evenly(scan.data.shape[2], MOST_SLICES)
    detail = []
    for k in shown:
        fine, coarse = (gaussian_filter(grey(scan.data[:, :, k]), [s / p for p in scan.pixel]) for s in DETAIL)
        detail.append(float(np.std(fine - coarse)))
    return max(k for k, d in zip(shown, detail, strict=True) if d >= 0.85 * max(detail))


def grey(image: Shaped[np.ndarray, "nx ny"]) -> Float[np.ndarray, "nx ny"]:
    """Scaled to 0 ... 1 from the 1st to the 99th percentile, and clipped."""
    image = image.astype(float)
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-30), 0, 1)


def depth_label(scan: Scan, k: int) -> str:
    """Height over the closest slice where known, else the slice's number; far and close are named."""
    last = scan.data.shape[2] - 1
    word = ", close" if k == last else ", far" if k == 0 else ""
    if scan.heights is None:
        return f"slice {k + 1}{word}"
    return f"+{scan.heights[k] - scan.heights[last]:.2f} Å{word}"


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of 0 ... n - 1, evenly, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, n - 1, min(n, most))})


def fitted(size: tuple[float, float], width: float, height: float) -> tuple[float, float]:
    """Width and height of the largest panel of the image's shape within a box, inches."""
    scale = min(width / size[0], height / size[1])
    return size[0] * scale, size[1] * scale
