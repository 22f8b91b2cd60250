"""A measured stack and its simulation side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..structures import Molecule, Scan
from .figure import INK, heading, panel, save
from .stack import MOST_SLICES, depth_label, draw_scale_bar, draw_slice, evenly, fitted


def fit_picture(
    measured: Scan, simulated: Scan, correlations: Sequence[float], molecule: Molecule, path: str | Path
) -> None:
    """Measured slices above, simulated ones below, far to close, with their correlation; atoms on the last pair.

    Raises ConfigError: a file that cannot be written.
    """
    shown = evenly(measured.data.shape[2], MOST_SLICES)
    width, height = fitted(measured.size, 1.9, 1.9)
    figure = Figure((0.55 + len(shown) * (width + 0.06), 2 * (height + 0.28) + 0.75), facecolor="white")
    for column, k in enumerate(shown):
        for row, scan in enumerate((simulated, measured)):
            axes = panel(figure, 0.45 + column * (width + 0.06), 0.15 + row * (height + 0.28), width, height)
            draw_slice(axes, scan, k)
            axes.set(xticks=[], yticks=[])
            title = depth_label(measured, k) if row else f"{correlations[k]:.3f}"
            axes.set_title(title, fontsize=8.5, color=INK, pad=3)
            if column == 0:
                axes.set_ylabel(("simulated", "measured")[row], fontsize=9, color=INK)
            if column == len(shown) - 1:
                for i, j in molecule.bonds:
                    axes.plot(*molecule.positions[[i, j], :2].T, color="#ffb000", linewidth=0.8, alpha=0.8)
                draw_scale_bar(axes, measured)
    heading(
        figure,
        measured.source or "fit",
        f"correlation {np.mean(correlations):.3f}, mean over {len(correlations)} slices",
    )
    save(figure, path)
