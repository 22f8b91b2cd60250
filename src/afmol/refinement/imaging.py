"""A hypothesis and its stack: which atoms there are, where, and what tip and forces image them.

parameters (vector) -> molecule, tip, force parameters -> simulate -> slices
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..elements import ELEMENTS, element_index
from ..errors import ScanError
from ..simulation import FORCES, Grid, Tip, TipParameters
from ..simulation.forces.coulomb import COULOMB
from ..simulation.forces.force import Scene
from ..simulation.probe import relaxed_forces
from ..simulation.scene import assemble, kernel_scenes
from ..structures import Molecule, Scan
from .charges import expected_charges
from .slopes import column_slopes, smoothed

PIXEL = 0.25
"""About how wide pixels are that are explained, A."""
QUADRUPOLE = (-10.0, 20.0, -10.0)
"""e, at 0.1, 0 and -0.1 A (Tip): the tip of the original data set, of which a share is fitted beside a charge."""
HEIGHT = 3.0
"""Closest approach above the topmost nucleus that parameters start from, A."""

OF_ATOM = 4
"""x, y, z (A) and charge (e): changes of each atom."""
OF_ELEMENT = 2
"""Logarithms of factors on each element's radius, or decay, and on its depth, or height."""
STIFFNESS, CHARGE, SHARE, DISTANCE, DRIFT_X, DRIFT_Y, SPACING, DISPERSION = range(8)
"""Of the tip and the scan: ln of the lateral stiffness over 0.4 N/m, charge (e), share of the quadrupole, closest
approach less HEIGHT (A), drift from the first slice to the last (A), ln of a factor on the slices' distance (if that is
not known), ln of a factor on the dispersion (exponentials)."""
OF_TIP = 8
FACTORS = {"lennard-jones": ("lj_radius", "lj_depth"), "exponential": ("pauli_decay", "pauli_height")}
"""What the factors on an element are on."""


class Target(NamedTuple):
    """What is to be explained."""

    images: Float[np.ndarray, "nx ny nz"]
    """Each slice of zero mean and unit norm."""
    size: tuple[float, float]
    """A."""
    above: Float[np.ndarray, " nz"]
    """Height of each slice above the closest one, A."""
    spacing: float
    """Mean distance of slices, A."""
    known: bool
    """Whether heights are."""
    spreads: tuple[float, float] = (0.0, 0.0)
    """How far apart what a pixel is the mean of is along x and y, standard deviations, pixels."""


def target(scan: Scan, step: float = 0.1) -> Target:
    """The slices at pixels of about PIXEL, those at one height averaged; `step`, A, where their heights are not known.

    Raises:
        ScanError: fewer than three heights.
    """
    if scan.heights is not None:
        heights, place = np.unique(-scan.heights, return_inverse=True)
        if len(heights) < 3:
            raise ScanError("A reading can be refined where there are slices at three heights or more.")
        means = [scan.data[..., place == k].mean(-1) for k in range(len(heights))]
        scan = replace(scan, data=np.stack(means, -1), heights=-heights)
    images, size, spreads = binned(scan.data, scan.size)
    nz = images.shape[2]
    above = step * np.arange(nz - 1, -1, -1) if scan.heights is None else scan.heights - scan.heights.min()
    return Target(normalised(images), size, above, float(above[0]) / (nz - 1), scan.heights is not None, spreads)


def binned(
    data: Float[np.ndarray, "mx my nz"], size: tuple[float, float]
) -> tuple[Float[np.ndarray, "nx ny nz"], tuple[float, float], tuple[float, float]]:
    """Means over as many whole pixels as make about one of PIXEL, the size of what they cover (rows left at an end
    are left out), and the spread of each mean. Means of unequal numbers of pixels would shift the image."""
    means, sides, spreads = data.astype(np.float32), [], []
    for axis, side in enumerate(size):
        n = data.shape[axis]
        k = max(1, min(round(PIXEL * n / side), n // 8))
        means = means.take(np.arange(n // k * k), axis)
        shape = [*means.shape[:axis], n // k, k, *means.shape[axis + 1 :]]
        means = means.reshape(shape).mean(axis + 1)
        sides.append(side * (n // k * k) / n)
        spreads.append(float(np.sqrt((1 - k**-2) / 12)))
    return means, (sides[0], sides[1]), (spreads[0], spreads[1])


def normalised(images: Float[np.ndarray, "nx ny nz"]) -> Float[np.ndarray, "nx ny nz"]:
    """Each slice of zero mean and unit norm."""
    centred = images - images.mean((0, 1))
    return centred / np.maximum(np.sqrt(np.square(centred).sum((0, 1))), 1e-12)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What may be in a stack: some of the candidates, each an element."""

    candidates: Molecule
    """As the network saw them."""
    there: Bool[np.ndarray, " n"]
    numbers: Int[np.ndarray, " n"]
    force: str
    steps: int
    """Of the oscillation, each as long as the slices' distance."""
    known: bool
    """Whether the slices' distance is."""
    values: Float[np.ndarray, " p"]
    """OF_ATOM for each candidate, OF_ELEMENT for each of ELEMENTS, OF_TIP; of what is not there they mean nothing."""

    @property
    def active(self) -> Int[np.ndarray, " a"]:
        """Places of the values that count."""
        n = len(self.there)
        there = np.flatnonzero(self.there)
        elements = np.unique(element_index(self.numbers[there]))
        off = {SPACING} if self.known else set()
        off |= {DISPERSION} if self.force == "lennard-jones" else set()
        tip = np.array([k for k in range(OF_TIP) if k not in off])
        return np.concatenate(
            [
                (OF_ATOM * there[:, None] + np.arange(OF_ATOM)).ravel(),
                OF_ATOM * n + (OF_ELEMENT * elements[:, None] + np.arange(OF_ELEMENT)).ravel(),
                OF_ATOM * n + OF_ELEMENT * len(ELEMENTS) + tip,
            ]
        )

    def tip_value(self, which: int) -> float:
        """One of the tip's values."""
        return float(self.values[len(self.values) - OF_TIP + which])

    def molecule(self) -> Molecule:
        """The atoms where they are, with the bonds that are likely and charges; z as of the candidates."""
        shifts = self.values[: OF_ATOM * len(self.there)].reshape(-1, OF_ATOM)
        moved = replace(self.candidates, positions=self.candidates.positions + shifts[:, :3], numbers=self.numbers)
        there = np.flatnonzero(self.there)
        molecule = moved.taken(there).with_likely_bonds()
        return replace(molecule, charges=expected_charges(molecule).mean + shifts[there, 3])


def start(
    candidates: Molecule, there: Bool[np.ndarray, " n"], numbers: Int[np.ndarray, " n"], known: bool
) -> Hypothesis:
    """A hypothesis whose values are all zero but for what tips commonly have."""
    values = np.zeros(OF_ATOM * len(there) + OF_ELEMENT * len(ELEMENTS) + OF_TIP)
    tip = len(values) - OF_TIP
    values[[tip + CHARGE, tip + SHARE]] = 0.03, 0.1
    return Hypothesis(candidates, there, numbers, "lennard-jones", 9, known, values)


class Picture(NamedTuple):
    """The slices of a hypothesis, and the probe that made them."""

    slices: Float[np.ndarray, "nx ny nz"]
    probe: Float[np.ndarray, "nx ny height 7"]
    scene: Scene
    weights: Float[np.ndarray, "height nz"]
    """From forces to slices."""
    tip: Tip
    molecule: Molecule
    parameters: dict[str, Float[np.ndarray, " n"]]
    """The force model's."""
    top: float


def pictured(hypothesis: Hypothesis, goal: Target, top: float) -> Picture:
    """The slices of a hypothesis; `top`: height that closest approaches are counted from, A.

    Raises:
        ScanError, MoleculeError: it cannot be simulated.
    """
    h, molecule, force = hypothesis, hypothesis.molecule(), FORCES[hypothesis.force]
    charge, share, stretch = h.tip_value(CHARGE), h.tip_value(SHARE), float(np.exp(h.tip_value(SPACING)))
    tip = Tip(
        charges=tuple(share * q + (charge if k == 1 else 0.0) for k, q in enumerate(QUADRUPOLE)),
        stiffness=float(0.4 * np.exp(h.tip_value(STIFFNESS))),
        amplitude=h.steps * goal.spacing * stretch,
        steps=h.steps,
    )
    heights = top + HEIGHT + h.tip_value(DISTANCE) + tip.bond_length + goal.above * stretch
    nx, ny, _ = goal.images.shape
    grid = Grid((0.0, 0.0), goal.size, (nx, ny), heights)
    factors = h.values[OF_ATOM * len(h.there) :][: OF_ELEMENT * len(ELEMENTS)].reshape(-1, OF_ELEMENT)
    of_each = np.exp(factors[element_index(molecule.numbers)])
    parameters = dict(force.defaults(molecule.numbers))
    for k, name in enumerate(FACTORS[h.force]):
        parameters[name] = parameters[name] * of_each[:, k]
    if h.force != "lennard-jones":
        parameters["c6"] = parameters["c6"] * np.exp(h.tip_value(DISPERSION))
    owner, numbers = np.zeros(len(molecule), np.int64), TipParameters.of([tip], np.zeros(0))
    positions = molecule.positions.astype(float)
    scenes = assemble(force, positions, molecule.charges, parameters, owner, [grid], [tip], numbers)
    (scene,) = kernel_scenes(scenes, np.float32)
    (vertical,), (probe,) = relaxed_forces(force, [scene], 1, keep_probe=True)
    weights = scenes.weights[0].astype(np.float32)
    slices = seen_as(np.tensordot(vertical, weights, 1), goal, h.tip_value(DRIFT_X), h.tip_value(DRIFT_Y))
    return Picture(slices, probe, scene, weights, tip, molecule, parameters, top)


def seen_as(
    slices: Float[np.ndarray, "*rows nx ny nz"], goal: Target, x: float, y: float
) -> Float[np.ndarray, "*rows nx ny nz"]:
    """Slices as they are measured: each pixel a mean, to the second order, and moved evenly by x and y (A) from the
    first slice to the last, the middle where it was."""
    nx, ny, nz = slices.shape[-3:]
    along_x = _weights(x * nx / goal.size[0], goal.spreads[0], nz).astype(slices.dtype)
    along_y = _weights(y * ny / goal.size[1], goal.spreads[1], nz).astype(slices.dtype)
    out, lines = np.empty_like(slices), (-1, nx, ny * nz)
    smoothed(slices.reshape(lines), along_x, along_y, out.reshape(lines))
    return out


def _weights(drift: float, spread: float, nz: int) -> Float[np.ndarray, "k nz"]:
    """Of the pixels around each along an axis: means of pixels that lie `spread` apart, interpolated linearly between
    them where `drift` pixels from the first slice to the last have taken the slice."""
    shift = drift * np.linspace(0.5, -0.5, nz)
    m = int(np.ceil(np.abs(shift).max(initial=0.0))) + (spread > 0)
    taps = np.arange(-m, m + 1)[:, None]
    weights = np.maximum(1 - np.abs(taps - shift), 0.0)
    around = np.pad(weights, ((1, 1), (0, 0)))
    return weights + spread**2 / 2 * (around[:-2] + around[2:] - 2 * weights)


def picture_slopes(hypothesis: Hypothesis, picture: Picture, goal: Target) -> Float[np.ndarray, "a nx ny nz"]:
    """How the slices change with each of the active values."""
    h, (_, probe, scene, weights, tip, molecule, parameters, _) = hypothesis, picture
    n, single = len(molecule), np.float32
    terms, by_factor = np.zeros((n, 4), single), np.zeros((n, OF_ELEMENT, 3), single)
    if h.force == "lennard-jones":
        terms[:, :2] = scene.atoms[:2].T
        radius = parameters["lj_radius"]
        share = radius / (radius + tip.probe_radius)
        by_factor[:, 0, :2] = terms[:, :2] * share[:, None] * [12.0, 6.0]
        by_factor[:, 1, :2] = terms[:, :2] / 2
    else:
        terms[:] = scene.atoms[:4].T
        by_factor[:, 0, 1], by_factor[:, 1, 0] = terms[:, 1], terms[:, 0]
    elements, group = np.unique(element_index(molecule.numbers), return_inverse=True)
    rows = OF_ATOM * n + OF_ELEMENT * len(elements) + OF_TIP
    nx, ny, nk, _ = probe.shape
    found = np.empty((rows, nx, ny, weights.shape[1]), single)
    of_tip = np.array([tip.charges, tip.charge_offsets], single).T
    assert molecule.charges is not None
    fixed = (scene.positions, terms, molecule.charges.astype(single), of_tip, by_factor)
    electric = (single(COULOMB), np.array(QUADRUPOLE, single), OF_ATOM * n + OF_ELEMENT * group)
    out = np.empty((rows, nk, ny), single)
    for i, x in enumerate(scene.x):
        out[:] = 0.0
        column_slopes(
            h.force != "lennard-jones", x, scene.y, scene.heights, scene.springs[0], *fixed, *electric, probe[i], out
        )
        with np.errstate(over="ignore", invalid="ignore"):  # of a tip that runs into an atom; fit.py stops there
            found[:, i] = out.transpose(0, 2, 1) @ weights
    own = len(h.values) - OF_TIP
    tip_row, of_tip_rows = rows - OF_TIP, [int(k) - own for k in h.active if k >= own]
    for k, row in enumerate(of_tip_rows):
        found[tip_row + k] = found[tip_row + row]
    found = seen_as(found[: len(h.active)], goal, h.tip_value(DRIFT_X), h.tip_value(DRIFT_Y))
    t = np.linspace(-0.5, 0.5, found.shape[-1], dtype=single)
    found[tip_row + of_tip_rows.index(DRIFT_X)] = -t * np.gradient(picture.slices, goal.size[0] / nx, axis=0)
    found[tip_row + of_tip_rows.index(DRIFT_Y)] = -t * np.gradient(picture.slices, goal.size[1] / ny, axis=1)
    if not h.known:
        found[tip_row + of_tip_rows.index(SPACING)] -= picture.slices  # the larger an oscillation, the fainter
    return found
