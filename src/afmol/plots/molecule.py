"""Molecules over an image, and as balls and sticks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke

from ..elements import BY_NUMBER, table
from ..structures import Molecule, Scan
from .figure import INK, QUIET, heading, panel, save
from .stack import best_slice, draw_scale_bar, draw_slice, evenly, fitted

RIM, REFERENCE, ALARM = "#1a1a1a", "#ffd400", "#b00020"
TILT, TURN = math.radians(55), math.radians(-22)
"""How far the view in 3D is tilted away from the microscope's, from above, and turned about z before that."""
SQUARE, STICK = 0.62, 0.13
"""Side of a reference atom's square and half the width of a stick, A."""
LIGHT = np.array([-0.38, 0.42])
"""Where a ball shines, in its radii from its middle."""
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 40)) for f in (np.cos, np.sin)], axis=1)


def prediction_picture(scan: Scan, molecule: Molecule, path: str | Path, reference: Molecule | None = None) -> None:
    """A stack and what was found in it: bare slices, atoms and bonds over the image, the molecule in 3D.

    Atoms of the reference, in the scan's frame as the molecule is, are open squares: an empty one is a miss.
    Raises ConfigError: a file that cannot be written.
    """
    width, height = fitted(scan.size, 6.6, 5.0)
    body, bottom = max(height, 3.5), 0.52 + 0.2 * len(molecule.warnings)
    small = fitted(scan.size, 2.5, (body - 0.16) / 3)
    x_centre = 0.25 + small[0] + 0.62
    x_right = x_centre + width + 0.25
    figure = Figure((x_right + 4.4, bottom + body + 0.72), facecolor="white")
    for place, k in enumerate(evenly(scan.data.shape[2], 3)):
        axes = panel(figure, 0.25, bottom + body - small[1] - place * (body - small[1]) / 2, *small)
        draw_slice(axes, scan, k, corner=True)
        axes.set(xticks=[], yticks=[])
    draw_scale_bar(axes, scan)  # in the closest slice

    axes = panel(figure, x_centre, bottom + (body - height) / 2, width, height)
    draw_slice(axes, scan, best_slice(scan), corner=True)
    draw_overlay(axes, molecule)
    if reference is not None:
        draw_reference(axes, reference)
    axes.set_xlabel("x (Å)", fontsize=9, color=INK, labelpad=2)
    axes.set_ylabel("y (Å)", fontsize=9, color=INK, labelpad=2)

    draw_molecule(panel(figure, x_right, bottom + 0.6, 4.2, body - 0.6), molecule, TILT, TURN)
    _legend(figure, (x_right + 2.1, 0.75), molecule, reference)
    heading(figure, scan.source or "prediction", _numbers(molecule))
    for line, warning in enumerate(molecule.warnings):
        x, y = np.divide((0.25, 0.12 + 0.2 * line), figure.get_size_inches())
        figure.text(x, y, f"WARNING: {warning}", fontsize=9, color=ALARM)
    save(figure, path)


def molecule_picture(molecule: Molecule, path: str | Path) -> None:
    """A molecule as balls and sticks, from above as the microscope sees it, and tilted.

    Raises ConfigError: a file that cannot be written.
    """
    figure = Figure((9.0, 5.2), facecolor="white")
    draw_molecule(panel(figure, 0.2, 0.7, 4.2, 3.7), molecule, 0.0, 0.0)
    draw_molecule(panel(figure, 4.6, 0.7, 4.2, 3.7), molecule, TILT, TURN)
    _legend(figure, (4.5, 0.5), molecule)
    heading(figure, molecule.name or "molecule", _numbers(molecule))
    save(figure, path)


def draw_overlay(axes: Axes, molecule: Molecule) -> None:
    """Atoms and bonds over an image: circles in the elements' colours, opacity by probability, the topmost in front.

    The Axes' limits must be set: widths of bonds and sizes of letters follow from them.
    """
    points = 72 * axes.get_window_extent().width / axes.figure.dpi / float(np.ptp(axes.get_xlim()))  # an A
    radii, xy = 0.14 + 0.24 * table("covalent_radius")[molecule.numbers], molecule.positions[:, :2]
    sure = _opacity(molecule.confidence, len(molecule))
    likely = _opacity(molecule.bond_probabilities, len(molecule.bonds))
    # bonds run from rim to rim, so that the image shows through the circles
    start, end = xy[molecule.bonds[:, 0]], xy[molecule.bonds[:, 1]]
    along = (end - start) / np.maximum(np.linalg.norm(end - start, axis=1, keepdims=True), 1e-9)
    rims = [radii[molecule.bonds[:, k], None] * along for k in (0, 1)]
    lines = list(np.stack([start + rims[0], end - rims[1]], axis=1))
    for extra, colour in ((0.06, RIM), (0.0, "#f4f4f4")):
        widths, colours = points * (0.13 * (0.4 + 0.6 * likely) + extra), [(*to_rgb(colour), p) for p in likely]
        axes.add_collection(LineCollection(lines, linewidths=widths, colors=colours, zorder=3))
    for i in np.argsort(molecule.positions[:, 2], kind="stable"):
        element, alpha, (x, y) = BY_NUMBER[int(molecule.numbers[i])], float(sure[i]), xy[i]
        face, halo, rim = ((*to_rgb(c), a * alpha) for c, a in ((element.colour, 1.0), ("white", 0.7), (RIM, 1.0)))
        axes.add_patch(Circle((x, y), radii[i], facecolor="none", edgecolor=halo, linewidth=2.6, zorder=4))
        axes.add_patch(Circle((x, y), radii[i], facecolor=face, edgecolor=rim, linewidth=0.9, zorder=4))
        if element.symbol not in ("C", "H"):
            ink = "black" if np.dot(to_rgb(element.colour), (0.3, 0.59, 0.11)) > 0.5 else "white"
            font = {"fontsize": 1.35 * radii[i] * points / (1.5 if element.symbol[1:] else 1), "fontweight": "bold"}
            middle = {"ha": "center", "va": "center_baseline", "clip_on": True}
            axes.text(x, y, element.symbol, color=ink, zorder=4, **font, **middle)


def draw_reference(axes: Axes, reference: Molecule) -> None:
    """Atoms of the true molecule as open squares over an image, under the circles: an empty square is a miss."""
    for x, y in reference.positions[:, :2] - SQUARE / 2:
        style = {"facecolor": "none", "edgecolor": REFERENCE, "linewidth": 1.2, "zorder": 2.5}
        halo = [withStroke(linewidth=2.2, foreground="#00000090")]
        axes.add_patch(Rectangle((x, y), SQUARE, SQUARE, path_effects=halo, **style))


def draw_molecule(axes: Axes, molecule: Molecule, tilt: float, turn: float) -> None:
    """Balls and sticks in parallel projection, the farther the paler; bonds more likely than not are drawn.

    The line of sight is `tilt` off -z (0 looks from above) after a `turn` about z, rad.
    """
    axes.set_axis_off()
    if not len(molecule):
        axes.text(0.5, 0.5, "no atom found", transform=axes.transAxes, ha="center", fontsize=14, color=QUIET)
        return
    seen = view(molecule.positions, tilt, turn)
    polygons, colours = [], []
    for depth, layers in sorted(_balls_and_sticks(molecule, seen), key=lambda shape: shape[0]):
        fog = np.clip(0.055 * (seen[:, 2].max() - depth), 0.0, 0.4)
        for polygon, colour in layers:
            polygons.append(polygon)
            colours.append(colour + (1 - colour) * fog)
    axes.add_collection(PolyCollection(polygons, facecolors=colours, linewidths=0))
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    (x, y), (w, h) = (low + high) / 2, np.maximum((high - low) / 2 + 0.8, 2.0)
    axes.set(xlim=(x - w, x + w), ylim=(y - h, y + h))
    axes.set_aspect("equal", adjustable="box")


def view(positions: Float[np.ndarray, "n 3"], tilt: float, turn: float) -> Float[np.ndarray, "n 3"]:
    """Right, up and toward the viewer."""
    c, s, ct, st = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
    return positions @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])


def _balls_and_sticks(molecule: Molecule, seen: Float[np.ndarray, "n 3"]) -> Iterator[tuple[float, list[Any]]]:
    """Depth (larger is nearer) and layers (polygon, colour), from the lowest, of each ball and each half of a stick."""
    colours = [np.array(to_rgb(BY_NUMBER[int(z)].colour)) for z in molecule.numbers]
    radii = 0.2 + 0.27 * table("covalent_radius")[molecule.numbers]
    for centre, radius, colour in zip(seen, radii, colours, strict=True):
        yield float(centre[2]), _ball(centre[:2], float(radius), colour)
    for i, j in molecule.bonds[molecule.likely]:
        for a, b in ((i, j), (j, i)):
            along = seen[b] - seen[a]
            start = 0.9 * radii[a] / max(float(np.linalg.norm(along)), 1e-9)  # within the ball
            if start < 0.5:
                ends = seen[a] + along * np.array([[start], [0.51]])
                yield float(ends[:, 2].mean()), _stick(ends[:, :2], colours[a])


def _ball(centre: Float[np.ndarray, "2"], radius: float, colour: Float[np.ndarray, "3"]) -> list[Any]:
    """A dark rim, then ever smaller and lighter circles toward the light."""
    layers = [(centre + radius * CIRCLE, 0.35 * colour)]
    for f in np.linspace(0, 1, 12):
        size, shade = 0.93 - 0.83 * f, 0.85 * colour + (1 - 0.85 * colour) * 0.65 * f**1.7
        layers.append((centre + radius * ((0.93 - size) * LIGHT + size * CIRCLE), shade))
    return layers


def _stick(ends: Float[np.ndarray, "2 2"], colour: Float[np.ndarray, "3"]) -> list[Any]:
    """A dark rim, then ever narrower and lighter stripes on the side of the light."""
    dx, dy = ends[1] - ends[0]
    across = STICK * np.array([-dy, dx]) / max(math.hypot(dx, dy), 1e-9)
    across = across if across @ LIGHT > 0 else -across
    layers = []
    for low, high, tone in ((-1.0, 1.0, -0.65), (-0.8, 0.8, -0.2), (-0.4, 0.7, 0.1), (0.1, 0.5, 0.45)):
        corners = np.concatenate([ends + low * across, ends[::-1] + high * across])
        layers.append((corners, colour * (1 + tone) if tone < 0 else colour + (1 - colour) * tone))
    return layers


def _opacity(probability: Float[np.ndarray, " n"] | None, n: int) -> Float[np.ndarray, " n"]:
    """From 0.15, never so faint that it cannot be seen, to 1, also where there are no probabilities."""
    return np.ones(n) if probability is None else 1 - 0.85 * (1 - probability)


def _numbers(molecule: Molecule) -> str:
    counts = ((len(molecule), "atom"), (int(molecule.likely.sum()), "bond"))
    text = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
    return text if molecule.confidence is None else f"{text}; opacity: probability"


def _legend(figure: Figure, place: tuple[float, float], molecule: Molecule, reference: Molecule | None = None) -> None:
    """Elements with their counts, and the reference, centred below a place (inches)."""
    handles = []
    for number, count in zip(*np.unique(molecule.numbers, return_counts=True), strict=True):
        element = BY_NUMBER[int(number)]
        style = {"markerfacecolor": element.colour, "markeredgecolor": RIM, "markersize": 10}
        handles.append(Line2D([], [], linestyle="", marker="o", label=f"{element.symbol} {count}", **style))
    if reference is not None:
        style = {"markerfacecolor": "none", "markeredgecolor": REFERENCE, "markersize": 9, "markeredgewidth": 1.5}
        handles.append(Line2D([], [], linestyle="", marker="s", label=f"reference {len(reference)}", **style))
    at = tuple(np.divide(place, figure.get_size_inches()))
    style = {"frameon": False, "labelcolor": INK, "fontsize": 9.5, "handletextpad": 0.0, "columnspacing": 0.7}
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=at, ncols=12, **style)
