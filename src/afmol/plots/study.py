"""Pictures of a study: losses part by part, confusions of single steps, molecules before and after a shift."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..elements import CLASS_NAMES
from ..structures import Sample
from .figure import INK, heading, panel, save
from .molecule import draw_overlay
from .stack import best_slice, draw_slice, fitted
from .training import CURVES

TITLES = {
    "loss": "total",
    "loss_position": "positions",
    "loss_soap": "SOAP",
    "loss_class": "classes",
    "loss_bond": "bonds",
}
"""Losses in the order of their panels, as in the report's figures 16, 19, 20 and 26."""


def part_curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: str | Path, title: str) -> None:
    """Losses against the step, a panel a part: thin in training, thick on validation samples.

    Args:
        runs: by name, the rows of `read_metrics` of one run or of several seeds; a colour each name.
        path: picture to write.
        title: above it.

    Raises ConfigError: a file that cannot be written.
    """
    names = {name for seeds in runs.values() for rows in seeds for row in rows for name in row}
    parts = [part for part in TITLES if part in names]
    lines = -(-len(parts) // 2)
    figure = Figure((11.5, 0.9 + 3.85 * lines), facecolor="white")
    for place, part in enumerate(parts):
        line, column = divmod(place, 2)
        axes = panel(figure, 0.85 + 5.6 * column, 0.55 + 3.85 * (lines - 1 - line), 4.7, 3.1)
        for k, (name, seeds) in enumerate(runs.items()):
            for n, rows in enumerate(seeds):
                for key, width in ((part, 0.5), (f"validation_{part}", 1.7)):
                    points = [(row["step"], row[key]) for row in rows if key in row]
                    label = name if width > 1 and n == 0 else "_"
                    style = {"color": CURVES[k % len(CURVES)], "linestyle": "-" if k < len(CURVES) else "--"}
                    if points:
                        axes.plot(*np.transpose(points), linewidth=width, label=label, **style)
        axes.set_title(TITLES[part], fontsize=10, color=INK, loc="left")
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.set_yscale("log")
        axes.grid(True, which="both", color="#ececec", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK, which="both")
        if part == parts[0] and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7.5, frameon=False, ncols=2)
    heading(figure, title, "thin: training, thick: validation; a line a seed")
    save(figure, path)


def step_confusions(
    classes: Int[np.ndarray, "5 5"], bonds: Int[np.ndarray, "2 2"], path: str | Path, title: str
) -> None:
    """Classes above, bonds below, [true, predicted]: as counts, as precision (columns add up to 1), as recall
    (rows do).

    As the report's figures 17, 18, 21-24, 27 and 28. Raises ConfigError: a file that cannot be written.
    """
    figure = Figure((12.4, 7.6), facecolor="white")
    kinds = ((classes, CLASS_NAMES, 3.55, 3.1), (bonds, ("no bond", "bond"), 0.6, 2.1))
    for counts, names, y, side in kinds:
        of_predicted = counts / np.maximum(counts.sum(0, keepdims=True), 1)
        of_true = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        of_all = counts / max(counts.max(), 1)
        rows = (("counts", of_all, counts), ("precision", of_predicted, None), ("recall", of_true, None))
        for k, (kind, share, text) in enumerate(rows):
            _matrix(panel(figure, 0.95 + 4.0 * k, y, side, side), kind, share, names, text)
    heading(figure, title, f"{int(classes.sum()):,} single steps, positions given")
    save(figure, path)


def _matrix(
    axes: Axes, kind: str, share: np.ndarray, names: Sequence[str], counts: Int[np.ndarray, "n n"] | None
) -> None:
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*share.shape):
        text = f"{share[i, j]:.3f}" if counts is None else f"{counts[i, j]:,}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.55 else INK)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=7.5, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(kind, fontsize=9.5, color=INK, loc="left", pad=4)
    axes.set_xlabel("predicted", fontsize=8, color=INK, labelpad=1)
    axes.set_ylabel("true", fontsize=8, color=INK, labelpad=1)


def shift_picture(rows: Sequence[tuple[Sample, Sample]], path: str | Path, title: str) -> None:
    """What was found in some images (left) and in the same ones shifted (right), as the report's figures 1 and 2.

    Raises ConfigError: a file that cannot be written.
    """
    side, high = 3.4, 3.75
    figure = Figure((2 * side + 0.9, high * len(rows) + 0.8), facecolor="white")
    for place, pair in enumerate(rows):
        for column, (scan, molecule) in enumerate(pair):
            width, height = fitted(scan.size, side, side)
            x, y = 0.3 + column * (side + 0.25), 0.15 + (len(rows) - 1 - place) * high
            axes = panel(figure, x, y, width, height)
            draw_slice(axes, scan, best_slice(scan))
            draw_overlay(axes, molecule)
            axes.set(xticks=[], yticks=[])
            axes.set_title(scan.source, fontsize=8.5, color=INK, pad=3, loc="left")
    heading(figure, title, "left: as it is; right: shifted")
    save(figure, path)
