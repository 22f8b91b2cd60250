"""Pictures: stacks, predictions, molecules, training curves, confusions.

Each picture is a function that writes one file, .png, .pdf or .svg by its suffix; the `draw_*` functions draw one part of
it into the Axes given. Only matplotlib's objects are used, never pyplot, so that nothing global changes.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .elements import BY_NUMBER, CLASS_NAMES, table
from .errors import ConfigError
from .metrics import BOND_THRESHOLD, class_recall
from .structures import Molecule, Scan

DOTS_PER_INCH = 150
FORMATS = (".png", ".pdf", ".svg")
MOST_SLICES = 10
"""How many slices of a stack are shown side by side at most."""
TILT, TURN = math.radians(52), math.radians(-14)
"""How far the view in 3D is tilted away from the microscope's, from above, and turned about z before that."""
INK, QUIET, RIM, REFERENCE = "#222222", "#6b6b6b", "#1a1a1a", "#ffd400"
CURVES = ("#1f6fb4", "#e07b00", "#2a9d5c", "#c23b3b", "#7a52b8", "#8c6239", "#d6609f", "#4aa8b5")


# Whole pictures


def stack_strip(scan: Scan, path: str | Path) -> None:
    """Slices side by side, far to close, each in greys of its own.

    Raises:
        ConfigError: a file that cannot be written.
    """
    nz = scan.data.shape[2]
    shown = _evenly(nz, MOST_SLICES)
    width, height = _fitted(scan.size, 2.2, 1.9)
    gap, margin, top = 0.07, 0.12, 0.62
    wide = len(shown) * width + (len(shown) - 1) * gap
    figure = Figure((max(wide, 2.4) + 2 * margin, height + top + margin), facecolor="white")
    left = (figure.get_figwidth() - wide) / 2
    for place, k in enumerate(shown):
        axes = _panel(figure, left + place * (width + gap), margin, width, height)
        draw_slice(axes, scan, k)
        axes.set_title(_depth_label(scan, k), fontsize=8.5, color=INK, pad=3)
        _bare(axes)
        if place == 0:
            draw_scale_bar(axes, scan)
    _heading(figure, left, scan.source or "stack", f"{nz} slices, {scan.size[0]:.1f} × {scan.size[1]:.1f} Å")
    _save(figure, path)


def prediction_picture(scan: Scan, molecule: Molecule, path: str | Path, reference: Molecule | None = None) -> None:
    """A stack and what was found in it: bare slices, atoms and bonds over the image, the molecule in 3D.

    Args:
        scan: the stack.
        molecule: the prediction, in the scan's frame, A.
        path: the file to write.
        reference: the true molecule, in the same frame: its atoms are drawn as open squares, an empty one is a miss.

    Raises:
        ConfigError: a file that cannot be written.
    """
    nz = scan.data.shape[2]
    width, height = _fitted(scan.size, 6.6, 5.0)
    body = max(height, 3.5)
    bare = _evenly(nz, 3)
    gap, margin, bottom, top, side = 0.08, 0.25, 0.52, 0.72, 4.3
    small = _fitted(scan.size, 2.5, (body - (len(bare) - 1) * gap) / len(bare))
    x_centre = margin + small[0] + 0.62
    x_right = x_centre + width + 0.25
    figure = Figure((x_right + side + margin, body + bottom + top), facecolor="white")

    column = len(bare) * small[1] + (len(bare) - 1) * gap
    for place, k in enumerate(bare):
        y = bottom + (body + column) / 2 - (place + 1) * small[1] - place * gap
        axes = _panel(figure, margin, y, *small)
        draw_slice(axes, scan, k)
        _bare(axes)
        _corner(axes, _depth_label(scan, k))
        if place == len(bare) - 1:
            draw_scale_bar(axes, scan)

    axes = _panel(figure, x_centre, bottom + (body - height) / 2, width, height)
    draw_slice(axes, scan, best_slice(scan))
    draw_overlay(axes, molecule)
    if reference is not None:
        draw_reference(axes, reference)
    axes.set_xlabel("x (Å)", fontsize=9, color=INK, labelpad=2)
    axes.set_ylabel("y (Å)", fontsize=9, color=INK, labelpad=2)

    notes = []
    if molecule.confidence is not None and len(molecule):
        notes.append("opacity: probability")
    rows = _legend_rows(molecule)
    low = 0.62 + 0.24 * max(0, rows - 1)
    axes = _panel(figure, x_right, bottom + low, side, body - low)
    draw_molecule(axes, molecule, TILT, TURN)
    _legend(figure, (x_right, bottom - 0.3, side, low + 0.2), molecule, TILT, TURN, notes, reference)

    bonds = int(_is_bond(molecule).sum())
    counts = f"{_count(len(molecule), 'atom')}, {_count(bonds, 'bond')}" if len(molecule) else "no atom found"
    _heading(figure, margin, scan.source or "prediction", counts)
    _save(figure, path)


def molecule_picture(molecule: Molecule, path: str | Path) -> None:
    """A molecule as balls and sticks, from above as the microscope sees it, and tilted.

    Raises:
        ConfigError: a file that cannot be written.
    """
    side, margin = 4.2, 0.2
    low = 0.62 + 0.24 * max(0, _legend_rows(molecule) - 1)
    flat = _view(molecule.positions, 0.0, 0.0)
    span = np.ptp(flat, axis=0) + 1.5 if len(molecule) else np.ones(3)
    height = side * float(np.clip(span[1] / span[0], 0.55, 1.25))
    figure = Figure((2 * side + 3 * margin, height + low + 0.85), facecolor="white")
    for k, (title, tilt, turn) in enumerate((("from above", 0.0, 0.0), ("tilted", TILT, TURN))):
        x = margin + k * (side + margin)
        axes = _panel(figure, x, low + 0.1, side, height)
        draw_molecule(axes, molecule, tilt, turn)
        axes.set_title(title, fontsize=9, color=QUIET, pad=2)
    _legend(figure, (margin, 0.05, side, low), molecule, 0.0, 0.0, [])
    _axes_cross(figure, 2 * margin + side + 0.3, 0.1, TILT, TURN)
    bonds = int(_is_bond(molecule).sum())
    counts = f"{_count(len(molecule), 'atom')}, {_count(bonds, 'bond')}" if len(molecule) else "no atom"
    _heading(figure, margin + 0.05, molecule.name or "molecule", counts)
    _save(figure, path)


def loss_plot(metrics: str | Path, path: str | Path) -> None:
    """Training curves of a metrics.jsonl: losses, and the figures on the validation set, against the step.

    Raises:
        ConfigError: a metrics file that is missing, empty or damaged; a picture that cannot be written.
    """
    rows = read_metrics(metrics)
    others = ("step", "learning_rate", "samples_per_second")
    names = list(dict.fromkeys(k for row in rows for k in row))
    losses = [k for k in names if k not in others and not k.startswith("validation_")]
    figure = Figure((11.5, 4.4), facecolor="white")
    left = _panel(figure, 0.75, 0.6, 4.75, 3.1)
    right = _panel(figure, 6.25, 0.6, 4.6, 3.1)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5, colors=INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    for k, name in enumerate(losses):
        _loss_curve(left, *_series(rows, name), name, CURVES[k % len(CURVES)])
    if left.lines:
        left.set_yscale("log")
    left.set_title("losses", fontsize=10, color=INK, loc="left")
    _key(left, len(left.lines))

    errors = right.twinx()
    drawn = 0
    for name in names:
        steps, values = _series(rows, name)
        if not name.startswith("validation_") or not len(steps):
            continue
        label = name.removeprefix("validation_").replace("_", " ")
        length = name.endswith(("_error", "_rms", "_distance"))
        style = {"color": CURVES[drawn % len(CURVES)], "linewidth": 1.6, "marker": "o", "markersize": 3}
        (errors if length else right).plot(
            steps, values, linestyle="--" if length else "-", label=f"{label} (Å)" if length else label, **style
        )
        drawn += 1
    errors.spines[["top", "left"]].set_visible(False)
    errors.tick_params(labelsize=8.5, colors=INK)
    errors.set_ylim(bottom=0)
    right.set_ylim(0, 1)
    if errors.lines:
        errors.set_ylabel("error (Å), dashed", fontsize=9, color=INK)
    else:
        errors.set_axis_off()
    right.set_title("validation", fontsize=10, color=INK, loc="left")
    if drawn:
        handles = [*right.lines, *errors.lines]
        _key(right, len(handles), handles)
    else:
        right.text(0.5, 0.5, "no validation yet", transform=right.transAxes, ha="center", color=QUIET, fontsize=10)

    speed = _series(rows, "samples_per_second")[1]
    pace = f", {np.median(speed):.0f} samples a second" if len(speed) else ""
    _heading(figure, 0.2, _source(metrics), f"step {rows[-1]['step']:,.0f}{pace}")
    _save(figure, path)


def confusion_picture(confusion: Int[np.ndarray, "c c"], path: str | Path) -> None:
    """Class confusion [true, predicted] as counts and shares of each row; with a sixth class, missed and spurious atoms.

    Raises:
        ConfigError: not 5 x 5 or 6 x 6 counts; a file that cannot be written.
    """
    n = len(confusion)
    if n - len(CLASS_NAMES) not in (0, 1) or (confusion < 0).any():
        raise ConfigError(f"A confusion picture needs 5 x 5 or 6 x 6 counts, not an array of shape {confusion.shape}.")
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 0.92 * n
    figure = Figure((side + 1.75, side + 1.55), facecolor="white")
    axes = _panel(figure, 1.5, 0.85, side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(n, n):
        if i == j == len(CLASS_NAMES):  # neither there nor predicted: cannot be counted
            axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor="#f2f2f2", edgecolor="none"))
            continue
        colour = "white" if share[i, j] > 0.55 else INK if confusion[i, j] else "#b0b0b0"
        axes.text(j, i - 0.1, f"{confusion[i, j]:,}", ha="center", va="center", fontsize=10.5, color=colour)
        percent = f"{100 * share[i, j]:.1f} %" if confusion[i].any() else "–"
        axes.text(j, i + 0.2, percent, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(n), [*CLASS_NAMES, "missed"][:n])
    axes.set_yticks(range(n), [*CLASS_NAMES, "spurious"][:n])
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, labelsize=9.5, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", fontsize=10, color=INK, labelpad=6)
    axes.set_ylabel("true class", fontsize=10, color=INK, labelpad=6)
    classes = confusion[: len(CLASS_NAMES), : len(CLASS_NAMES)]
    whole = int(classes.sum())
    right = f", {100 * np.trace(classes) / whole:.1f} % in the right class" if whole else ""
    _heading(figure, 0.2, "classes of atoms", f"{_count(whole, 'matched atom')}{right}")
    _save(figure, path)
