"""Pictures: stacks, predictions, molecules, training curves, confusions.

Each picture is a function that writes one file, .png, .pdf or .svg by its suffix; the `draw_*` functions draw one part
of it into the Axes given. Only matplotlib's objects are used, never pyplot, so that nothing global changes.
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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.ndimage import gaussian_filter

from .elements import BY_NUMBER, CLASS_NAMES, table
from .errors import ConfigError
from .metrics import BOND_THRESHOLD
from .structures import Molecule, Scan

DOTS_PER_INCH = 150
FORMATS = (".png", ".pdf", ".svg")
MOST_SLICES = 10
"""How many slices of a stack are shown at most."""
DETAIL = (0.35, 0.9)
"""Widths of the two Gaussians between which what an atom or a bond adds to an image stands out, A."""
TILT, TURN = math.radians(55), math.radians(-22)
"""How far the view in 3D is tilted away from the microscope's, from above, and turned about z before that."""
INK, QUIET, RIM, REFERENCE = "#222222", "#6b6b6b", "#1a1a1a", "#ffd400"
CURVES = ("#1f6fb4", "#e07b00", "#2a9d5c", "#c23b3b", "#7a52b8", "#8c6239", "#d6609f", "#4aa8b5")


# Whole pictures


def stack_strip(scan: Scan, path: str | Path) -> None:
    """Slices side by side, far to close, each in greys of its own; more than five in two rows.

    Raises:
        ConfigError: a file that cannot be written.
    """
    nz = scan.data.shape[2]
    shown = _evenly(nz, MOST_SLICES)
    columns = len(shown) if len(shown) <= 5 else math.ceil(len(shown) / 2)
    rows = math.ceil(len(shown) / columns)
    width, height = _fitted(scan.size, 2.6, 2.3)
    gap, line, margin, top = 0.08, 0.26, 0.2, 0.58
    wide = columns * width + (columns - 1) * gap
    figure = Figure((max(wide, 3.0) + 2 * margin, rows * (height + line) + top + margin - 0.05), facecolor="white")
    left = (figure.get_figwidth() - wide) / 2
    for place, k in enumerate(shown):
        row, column = divmod(place, columns)
        y = margin - 0.05 + (rows - 1 - row) * (height + line)
        axes = _panel(figure, left + column * (width + gap), y, width, height)
        draw_slice(axes, scan, k)
        axes.set_title(_depth_label(scan, k), fontsize=8.5, color=INK, pad=3)
        _bare(axes)
        if place == 0:
            draw_scale_bar(axes, scan, k)
    _heading(
        figure, min(left, margin), scan.source or "stack", f"{nz} slices, {scan.size[0]:.1f} × {scan.size[1]:.1f} Å"
    )
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
    gap, margin, bottom, top, side = 0.08, 0.25, 0.52, 0.72, 4.3 if len(molecule) else 2.2
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
            draw_scale_bar(axes, scan, k)

    axes = _panel(figure, x_centre, bottom + (body - height) / 2, width, height)
    best = best_slice(scan)
    draw_slice(axes, scan, best)
    _corner(axes, _depth_label(scan, best))
    draw_overlay(axes, molecule)
    if reference is not None:
        draw_reference(axes, reference)
    axes.set_xlabel("x (Å)", fontsize=9, color=INK, labelpad=2)
    axes.set_ylabel("y (Å)", fontsize=9, color=INK, labelpad=2)

    notes = []
    if len(molecule) and (molecule.confidence is not None or molecule.bond_probabilities is not None):
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
    figure = Figure((11.5, 4.65), facecolor="white")
    left = _panel(figure, 0.85, 0.55, 4.75, 3.1)
    right = _panel(figure, 6.35, 0.55, 4.45, 3.1)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5, colors=INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, max(1, rows[-1]["step"]) * 1.02)

    for k, name in enumerate(losses):
        _loss_curve(left, *_series(rows, name), name, CURVES[k % len(CURVES)])
    if left.lines:
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("loss", fontsize=9, color=INK)
    _key(left, len(left.lines))

    errors = right.twinx()
    drawn, top = 0, 1.0
    for name in names:
        steps, values = _series(rows, name)
        if not name.startswith("validation_") or not len(steps):
            continue
        label = name.removeprefix("validation_").replace("_", " ").replace(" f1", " F1")
        length = name.endswith(("_error", "_rms", "_distance"))
        style = {"color": CURVES[drawn % len(CURVES)], "linewidth": 1.6, "marker": "o", "markersize": 3}
        (errors if length else right).plot(
            steps, values, linestyle="--" if length else "-", label=f"{label} (Å)" if length else label, **style
        )
        drawn += 1
        top = top if length else max([top, *filter(math.isfinite, values)])
    errors.spines[["top", "left"]].set_visible(False)
    errors.tick_params(labelsize=8.5, colors=INK)
    errors.set_ylim(bottom=0)
    right.set_ylim(0, top)
    if errors.lines:
        errors.set_ylabel("error (Å), dashed", fontsize=9, color=INK)
    else:
        errors.set_axis_off()
    right.set_ylabel("validation", fontsize=9, color=INK)
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
    """Class confusion [true, predicted]: counts and shares of each row; a sixth class is missed and spurious atoms.

    Raises:
        ConfigError: not 5 x 5 or 6 x 6 counts; a file that cannot be written.
    """
    n = len(confusion)
    if n - len(CLASS_NAMES) not in (0, 1) or (confusion < 0).any():
        raise ConfigError(f"A confusion picture needs 5 x 5 or 6 x 6 counts, not an array of shape {confusion.shape}.")
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 0.92 * n
    figure = Figure((side + 1.6, side + 1.4), facecolor="white")
    axes = _panel(figure, 1.38, 0.64, side, side)
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


# Parts of pictures, drawn into Axes


def draw_slice(axes: Axes, scan: Scan, index: int) -> None:
    """One slice in greys from its 1st to its 99th percentile, x to the right and y up, in A."""
    image = _grey(scan.data[:, :, index])
    extent = (0.0, scan.size[0], 0.0, scan.size[1])
    axes.imshow(image.T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=extent, interpolation="bilinear")
    axes.set_xlim(0, scan.size[0])
    axes.set_ylim(0, scan.size[1])
    axes.tick_params(labelsize=8.5, colors=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def draw_overlay(axes: Axes, molecule: Molecule) -> None:
    """Atoms and bonds over an image: circles in the elements' colours, opacity by probability, the topmost in front.

    The Axes' limits must be set: atoms grow where the image is so large that they would be specks.
    """
    points = _points_per_angstrom(axes)
    radii = _overlay_radii(molecule.numbers) * max(1.0, 3.0 / (points * 0.3))
    xy = molecule.positions[:, :2]
    sure = _opacity(molecule.confidence, len(molecule))
    likely = _opacity(molecule.bond_probabilities, len(molecule.bonds))
    lines = _between_rims(xy, radii, molecule.bonds)
    thick = points * 0.13 * (0.4 + 0.6 * likely)
    for extra, colour in ((max(1.0, 0.06 * points), RIM), (0.0, "#f4f4f4")):
        colours = [(*to_rgb(colour), p) for p in likely]
        axes.add_collection(LineCollection(list(lines), linewidths=thick + extra, colors=colours, zorder=3))
    for i in np.argsort(molecule.positions[:, 2], kind="stable"):
        element, alpha = BY_NUMBER[int(molecule.numbers[i])], float(sure[i])
        face, place = (*to_rgb(element.colour), alpha), (float(xy[i, 0]), float(xy[i, 1]))
        rim = (*to_rgb(RIM), min(1.0, alpha + 0.15))
        axes.add_patch(
            Circle(place, radii[i], facecolor="none", edgecolor=(1, 1, 1, 0.7 * alpha), linewidth=2.6, zorder=4)
        )
        axes.add_patch(Circle(place, radii[i], facecolor=face, edgecolor=rim, linewidth=0.9, zorder=4))
        letters = 1.35 * radii[i] * points / max(1.0, 0.75 * len(element.symbol))
        if element.symbol not in ("C", "H") and letters >= 4.5:
            axes.text(
                *place,
                element.symbol,
                fontsize=letters,
                fontweight="bold",
                color=_readable_on(element.colour),
                ha="center",
                va="center_baseline",
                clip_on=True,
                zorder=4,
            )


def draw_reference(axes: Axes, reference: Molecule) -> None:
    """Atoms of the true molecule as open squares over an image, under the circles: an empty square is a miss."""
    side = 1.9 * float(_overlay_radii(np.array([6]))[0]) * max(1.0, 3.0 / (_points_per_angstrom(axes) * 0.3))
    for x, y, _ in reference.positions:
        corner = (float(x) - side / 2, float(y) - side / 2)
        axes.add_patch(Rectangle(corner, side, side, **_SQUARE, zorder=2.5))


def draw_molecule(axes: Axes, molecule: Molecule, tilt: float, turn: float) -> None:
    """Balls and sticks in parallel projection, the farther the paler; bonds more likely than not are drawn.

    Args:
        axes: where to draw; gets equal scales and limits around the molecule, and no frame.
        molecule: positions in A.
        tilt: angle between the line of sight and -z, rad: 0 looks from above.
        turn: rotation about z before that, rad.
    """
    axes.set_axis_off()
    if not len(molecule):
        axes.text(
            0.5, 0.5, "no atom found", transform=axes.transAxes, ha="center", va="center", fontsize=14, color=QUIET
        )
        return
    seen = _view(molecule.positions, tilt, turn)
    radii = _ball_radii(molecule.numbers)
    deepest, nearest = float(seen[:, 2].min()), float(seen[:, 2].max())
    shapes = sorted(_balls_and_sticks(molecule, seen, radii), key=lambda shape: shape[0])
    polygons: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    for depth, layers in shapes:
        # pale by how far behind the front: a third of the way to white where a molecule is 6 A deep
        fog = min(0.4, 0.055 * (nearest - depth)) if nearest > deepest else 0.0
        for polygon, colour in layers:
            polygons.append(polygon)
            colours.append(colour + (1 - colour) * fog)
    axes.add_collection(PolyCollection(polygons, facecolors=colours, edgecolors="none", linewidths=0))
    low = (seen[:, :2] - radii[:, None]).min(0) - 0.15
    high = (seen[:, :2] + radii[:, None]).max(0) + 0.15
    middle, half = (low + high) / 2, np.maximum(high - low, 4.0) / 2  # a lone atom does not fill the picture
    box = axes.get_window_extent()
    half = np.maximum(half, half[::-1] * [box.width / box.height, box.height / box.width])
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])


def draw_scale_bar(axes: Axes, scan: Scan, index: int) -> None:
    """A bar of a round length in the lower right corner of a slice, with the length in A; none where it cannot fit."""
    lx, ly = scan.size
    length, pad = _round_length(0.35 * lx), 0.06 * min(lx, ly)
    if length * _points_per_angstrom(axes) < 12:
        return
    nx, ny, _ = scan.data.shape
    under = _grey(scan.data[:, :, index])[-math.ceil(0.4 * nx) :, : math.ceil(0.25 * ny)]
    ink, halo = ("black", "#ffffff90") if under.mean() > 0.5 else ("white", "#00000090")
    x, y = lx - pad - length, pad
    bar = {"linewidth": 2.2, "solid_capstyle": "butt", "path_effects": [withStroke(linewidth=3.4, foreground=halo)]}
    axes.plot([x, x + length], [y, y], color=ink, **bar)
    axes.annotate(
        f"{length:g} Å",
        (x + length / 2, y),
        (0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=ink,
        path_effects=[withStroke(linewidth=1.8, foreground=halo)],
    )


def best_slice(scan: Scan) -> int:
    """The closest slice that has nearly the most detail of the size of atoms and bonds, each in greys of its own.

    The very closest slices are often blurred by the tip's bending, or saturated.
    """
    shown = _evenly(scan.data.shape[2], MOST_SLICES)
    detail = []
    for k in shown:
        image = _grey(scan.data[:, :, k])
        fine, coarse = (gaussian_filter(image, [sigma / p for p in scan.pixel]) for sigma in DETAIL)
        detail.append(float(np.std(fine - coarse)))
    return max(k for k, d in zip(shown, detail, strict=True) if d >= 0.85 * max(detail))


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl by ascending step, numbers only; a step logged twice counts once, the last time.

    A last line without an end is left out: a run that goes on is writing it.

    Raises:
        ConfigError: a file that is missing, empty or damaged.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise ConfigError(f"{path} cannot be read ({why}); give the metrics.jsonl of a training run.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text; give the metrics.jsonl of a training run.") from error
    steps: dict[float, dict[str, float]] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not _is_number(row.get("step")) or not math.isfinite(row["step"]):
            raise ConfigError(f"{path}: line {number} is damaged (not JSON with a step); remove it and try again.")
        steps.setdefault(row["step"], {}).update({k: v for k, v in row.items() if _is_number(v)})
    if not steps:
        raise ConfigError(f"{path} holds no step yet; wait until the training run has logged one.")
    return [steps[step] for step in sorted(steps)]


# Balls and sticks

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 40)), np.sin(np.linspace(0, 2 * np.pi, 40))], axis=1)
_LIGHT = np.array([-0.38, 0.42])
"""Where a ball shines, in its radii from its middle."""


def _view(positions: Float[np.ndarray, "n 3"], tilt: float, turn: float) -> Float[np.ndarray, "n 3"]:
    """Right, up and toward the viewer, for a line of sight `tilt` off -z."""
    c, s, ct, st = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
    return (
        positions @ (np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])).T
    )


def _balls_and_sticks(
    molecule: Molecule, seen: Float[np.ndarray, "n 3"], radii: Float[np.ndarray, " n"]
) -> Iterator[tuple[float, list[tuple[np.ndarray, np.ndarray]]]]:
    """Depth (larger is nearer) and layers (polygon, colour), from the lowest, of each ball and each half of a stick."""
    colours = [np.array(to_rgb(symbol)) for symbol in _colours(molecule)]
    for i, (x, y, depth) in enumerate(seen):
        yield float(depth), _ball(np.array([x, y]), float(radii[i]), colours[i])
    for i, j in molecule.bonds[_is_bond(molecule)]:
        for a, b in ((i, j), (j, i)):
            along = seen[b] - seen[a]
            length = float(np.linalg.norm(along))
            # from where the stick leaves the ball, to the middle of the bond
            start = math.sqrt(max(radii[a] ** 2 - _STICK**2, 0.0))
            if length / 2 > start:
                ends = seen[a] + along / length * np.array([[start], [length / 2 + 0.01]])
                yield float(ends[:, 2].mean()), _stick(ends[:, :2], colours[a])


_STICK = 0.13
"""Half the width of a stick, A."""


def _ball(centre: Float[np.ndarray, "2"], radius: float, colour: Float[np.ndarray, "3"]) -> list[tuple[Any, Any]]:
    """A dark rim, then ever smaller and lighter circles toward the light."""
    layers = [(centre + radius * _CIRCLE, 0.35 * colour)]
    for f in np.linspace(0, 1, 12):
        size = radius * (0.93 - 0.83 * f)
        shade = 0.85 * colour + (1 - 0.85 * colour) * 0.65 * f**1.7
        layers.append((centre + (0.93 * radius - size) * _LIGHT + size * _CIRCLE, shade))
    return layers


def _stick(ends: Float[np.ndarray, "2 2"], colour: Float[np.ndarray, "3"]) -> list[tuple[Any, Any]]:
    """A dark rim, then ever narrower and lighter stripes on the side of the light."""
    along = ends[1] - ends[0]
    across = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-9)
    across = across if across @ _LIGHT > 0 else -across
    layers = []
    for inner, outer, tone in (
        (-1.0, 1.0, -0.65),
        (-0.8, 0.8, -0.2),
        (-0.45, 0.72, 0.05),
        (-0.1, 0.6, 0.3),
        (0.15, 0.45, 0.5),
    ):
        low, high = across * _STICK * inner, across * _STICK * outer
        shade = colour * (1 + tone) if tone < 0 else colour + (1 - colour) * tone
        layers.append((np.stack([ends[0] + low, ends[1] + low, ends[1] + high, ends[0] + high]), shade))
    return layers


def _ball_radii(numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return 0.2 + 0.27 * table("covalent_radius")[numbers]


def _overlay_radii(numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return 0.14 + 0.24 * table("covalent_radius")[numbers]


def _colours(molecule: Molecule) -> list[str]:
    return [BY_NUMBER[int(z)].colour for z in molecule.numbers]


def _is_bond(molecule: Molecule) -> Shaped[np.ndarray, " m"]:
    """Mask of the listed bonds that are more likely than not."""
    p = molecule.bond_probabilities
    return np.ones(len(molecule.bonds), bool) if p is None else p > BOND_THRESHOLD


def _opacity(probability: Float[np.ndarray, " n"] | None, n: int) -> Float[np.ndarray, " n"]:
    """Never so faint that it cannot be seen; 1 where there are no probabilities."""
    return np.ones(n) if probability is None else 0.15 + 0.85 * np.clip(probability, 0.0, 1.0)


def _between_rims(
    xy: Float[np.ndarray, "n 2"], radii: Float[np.ndarray, " n"], bonds: Int[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 2 2"]:
    """Lines of bonds from rim to rim of their circles; of no length where these overlap."""
    start, end = xy[bonds[:, 0]], xy[bonds[:, 1]]
    length = np.maximum(np.linalg.norm(end - start, axis=1), 1e-9)
    first, second = radii[bonds[:, 0]] / length, radii[bonds[:, 1]] / length
    apart = first + second < 1
    first, second = np.where(apart, first, 0.5)[:, None], np.where(apart, second, 0.5)[:, None]
    return np.stack([start + first * (end - start), end - second * (end - start)], axis=1)


_SQUARE: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": REFERENCE,
    "linewidth": 1.2,
    "path_effects": [withStroke(linewidth=2.2, foreground="#00000090")],
}
"""How a reference atom is drawn."""


# Layout, all in inches


def _panel(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def _fitted(size: tuple[float, float], width: float, height: float) -> tuple[float, float]:
    """Width and height of the largest panel of the image's shape within a box; never thinner than 0.15."""
    scale = min(width / size[0], height / size[1])
    return max(0.15, size[0] * scale), max(0.15, size[1] * scale)


def _heading(figure: Figure, x: float, title: str, rest: str) -> None:
    """Two lines in the upper left corner: what it is, and its numbers."""
    w, h = figure.get_size_inches()
    room = int((w - 2 * x) / 0.115)  # of the title's letters
    for text, y, size, weight, colour in ((title, 0.14, 12.5, "bold", INK), (rest, 0.37, 9.5, "normal", QUIET)):
        figure.text(
            x / w,
            1 - y / h,
            _printable(text, max(room, 12)),
            fontsize=size,
            fontweight=weight,
            color=colour,
            va="top",
            parse_math=False,
        )


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _corner(axes: Axes, text: str) -> None:
    """A label in the upper left corner of an image; none where it cannot fit."""
    if axes.get_window_extent().width / _dpi(axes) < 0.085 * len(text):
        return
    axes.annotate(
        text,
        (0, 1),
        (5, -5),
        "axes fraction",
        "offset points",
        va="top",
        fontsize=8,
        color="white",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "#000000a0", "edgecolor": "none"},
        zorder=6,
    )


def _legend_rows(molecule: Molecule) -> int:
    return math.ceil(len(np.unique(molecule.numbers)) / 5)


def _legend(
    figure: Figure,
    box: tuple[float, float, float, float],
    molecule: Molecule,
    tilt: float,
    turn: float,
    notes: Sequence[str],
    reference: Molecule | None = None,
) -> None:
    """The directions of the axes, the elements with their counts, what else the picture shows."""
    x, y, width, height = box
    if len(molecule):
        _axes_cross(figure, x + 0.3, y + 0.05, tilt, turn)
    axes = _panel(figure, x, y, width, height)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    numbers, counts = np.unique(molecule.numbers, return_counts=True)
    top = height - 0.18
    for k, (number, count) in enumerate(zip(numbers, counts, strict=True)):
        element = BY_NUMBER[int(number)]
        left, level = 0.98 + 0.66 * (k % 5), top - 0.24 * (k // 5)
        ball = _ball(np.array([left, level]), 0.082, np.array(to_rgb(element.colour)))
        axes.add_collection(PolyCollection([p for p, _ in ball], facecolors=[c for _, c in ball], linewidths=0))
        axes.text(left + 0.13, level, f"{element.symbol} {count}", fontsize=9.5, color=INK, va="center_baseline")
    level = top - 0.26 * max(1, math.ceil(len(numbers) / 5))
    left = 0.9 if len(molecule) else (width - 1.4) / 2
    if reference is not None:
        axes.add_patch(Rectangle((left, level - 0.07), 0.14, 0.14, **_SQUARE))
        notes = [f"{_count(len(reference), 'reference atom')}", *notes]
        left += 0.21
    axes.text(left, level, "   ".join(notes), fontsize=8, color=QUIET, va="center_baseline")


def _axes_cross(figure: Figure, x: float, y: float, tilt: float, turn: float) -> None:
    """Small arrows along x, y and z as a view shows them."""
    size = 0.62
    axes = _panel(figure, x - 0.2, y, size, size)
    axes.set_axis_off()
    axes.set_xlim(-0.45, 1.45)
    axes.set_ylim(-0.45, 1.45)
    for name, (right, up, _) in zip("xyz", _view(np.eye(3), tilt, turn), strict=True):
        if math.hypot(right, up) < 0.15:  # along the line of sight
            continue
        axes.annotate("", (right, up), (0, 0), arrowprops={"arrowstyle": "->", "color": QUIET, "lw": 1, "shrinkA": 0})
        axes.text(1.27 * right, 1.27 * up, name, fontsize=8, color=QUIET, ha="center", va="center")


def _key(axes: Axes, entries: int, handles: Sequence[Any] | None = None) -> None:
    """The legend of curves, in one or two lines above the panel."""
    if entries:
        axes.legend(
            **({"handles": handles} if handles else {}),
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=min(entries, 6) if entries <= 6 else math.ceil(entries / 2),
            fontsize=8,
            frameon=False,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.3,
        )


# Small things


def _evenly(n: int, most: int) -> list[int]:
    """At most `most` of 0 ... n - 1, evenly, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, n - 1, min(n, most))})


def _grey(image: Shaped[np.ndarray, "nx ny"]) -> Float[np.ndarray, "nx ny"]:
    """Scaled to 0 ... 1 from the 1st to the 99th percentile, clipped; all 0.5 where flat."""
    image = image.astype(float)
    low, high = np.percentile(image, (1, 99))
    if low == high:  # nearly all flat: show the few pixels that are not
        low, high = image.min(), image.max()
    return np.full(image.shape, 0.5) if low == high else np.clip((image - low) / (high - low), 0, 1)


def _depth_label(scan: Scan, k: int) -> str:
    """Height over the closest slice where known, else the slice's number; far and close are named."""
    last = scan.data.shape[2] - 1
    word = ["close"] if k == last else ["far"] if k == 0 else []
    if scan.heights is None:
        return ", ".join([f"slice {k + 1}", *word])
    return "close" if k == last else ", ".join([f"+{scan.heights[k] - scan.heights[last]:.2f} Å", *word])


def _points_per_angstrom(axes: Axes) -> float:
    axes.apply_aspect()
    a, b = axes.transData.transform([(0, 0), (1, 0)])
    return float(abs(b[0] - a[0])) * 72 / _dpi(axes)


def _dpi(axes: Axes) -> float:
    figure = axes.figure
    assert figure is not None, "Axes of a figure"
    return figure.dpi


def _readable_on(colour: str) -> str:
    return "black" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) > 0.5 else "white"


def _round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... that is no longer."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(m * power for m in (5, 2, 1) if m * power <= most * (1 + 1e-9))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _printable(text: str, room: int) -> str:
    """One line of letters that the font has, the middle left out where it is too long."""
    has = get_font(findfont(FontProperties())).get_char_index
    text = "".join(c if has(ord(c)) else "?" for c in " ".join(text.split()))
    return text if len(text) <= room else f"{text[: room // 2]}…{text[-(room - room // 2 - 1) :]}"


def _source(path: str | Path) -> str:
    """A run's metrics by its folder's name."""
    path = Path(path)
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _series(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values where a figure was logged."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _loss_curve(axes: Axes, steps: Sequence[float], values: Sequence[float], name: str, colour: str) -> None:
    """What was logged, faint, and its running mean over a tenth of the run so far, at most 15 rows."""
    kept = np.array([(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v) and v > 0]).reshape(-1, 2)
    if not len(kept):
        return
    window = min(15, 1 + len(kept) // 10)
    sums = np.concatenate([[0.0], np.cumsum(kept[:, 1])])
    ends = np.arange(1, len(kept) + 1)
    starts = np.maximum(ends - window, 0)
    axes.plot(kept[:, 0], (sums[ends] - sums[starts]) / (ends - starts), color=colour, linewidth=1.7, label=name)
    axes.plot(*kept.T, color=colour, linewidth=0.8, alpha=0.35, label="_")


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} is no picture that afmol writes; choose a name that ends in {' or '.join(FORMATS)}.")
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise ConfigError(f"{path} cannot be written ({why}); choose another name or folder.") from error
