"""A sheet of samples: each image bare, and beside it with its labels."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..structures import Sample
from .figure import INK, heading, panel, save
from .molecule import draw_overlay
from .stack import best_slice, draw_scale_bar, draw_slice, fitted

COLUMNS = 4
SIDE = 1.9
"""Of an image, inches."""


def contact_sheet(samples: Sequence[Sample], path: str | Path, title: str, rest: str) -> None:
    """Samples in rows, each as its clearest slice, bare and with the labelled atoms and bonds drawn over it.

    Raises ConfigError: a file that cannot be written.
    """
    columns = min(COLUMNS, len(samples))
    rows = math.ceil(len(samples) / columns)
    wide, high = 2 * SIDE + 0.3, SIDE + 0.32
    figure = Figure((max(columns * wide, 5.0) + 0.4, rows * high + 0.75), facecolor="white")
    for place, (scan, molecule) in enumerate(samples):
        row, column = divmod(place, columns)
        x, y = 0.25 + column * wide, 0.15 + (rows - 1 - row) * high
        width, height = fitted(scan.size, SIDE, SIDE)
        k = best_slice(scan)
        for offset in (0.0, width + 0.06):
            axes = panel(figure, x + offset, y, width, height)
            draw_slice(axes, scan, k)
            axes.set(xticks=[], yticks=[])
            if offset:
                draw_overlay(axes, molecule)
            else:
                draw_scale_bar(axes, scan)
                axes.set_title(scan.source, fontsize=8.5, color=INK, pad=3, loc="left")
    heading(figure, title, rest)
    save(figure, path)
