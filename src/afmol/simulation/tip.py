"""What the microscope is: the tip, the scanned grid, and the frequency shift from the forces."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import ConfigError
from ..limits import check_claim
from ..structures import Molecule
from .forces import LENNARD_JONES, ForceModel
from .forces.coulomb import TIP_CHARGES

STANDARD_DISTANCE = LENNARD_JONES.standard_distance
"""Closest approach of the unrelaxed probe above a topmost carbon, A, for Lennard-Jones."""
CARBON = np.array([6])
EV_PER_SQUARE_ANGSTROM = 16.0217662
"""1 eV/A^2 in N/m."""
LEAST_AMPLITUDE = 0.01
"""A: of a smaller one the differences of forces are those of rounding."""
SPRING_UNITS = (EV_PER_SQUARE_ANGSTROM, EV_PER_SQUARE_ANGSTROM, 1.0)
"""What a tip's stiffness, radial stiffness (N/m) and bond length (A) are divided by to give springs."""


def alike(values: Any, like: Any) -> Any:
    """Numbers as an array of the kind, numpy's or torch's, the precision and the device of another."""
    return np.asarray(values, like.dtype) if isinstance(like, np.ndarray) else like.new_tensor(values)


@dataclass(frozen=True)
class Tip:
    """A tip that ends in one flexible atom, the probe. The defaults are the CO tip of the original data set, the preset
    "co-quadrupole", with which earlier figures can be had; what measured images say of a CO tip is the preset "co"."""

    probe_radius: float = 1.6612
    """Lennard-Jones radius of the probe, A (oxygen)."""
    probe_depth: float = 0.009106
    """Lennard-Jones depth of the probe, eV (oxygen)."""
    charges: tuple[float, ...] = (-10.0, 20.0, -10.0)
    """Point charges of the tip, e: a quadrupole by default."""
    charge_offsets: tuple[float, ...] = (0.1, 0.0, -0.1)
    """Their heights relative to the probe, A."""
    stiffness: float = 0.25
    """Lateral stiffness, N/m. Real CO tips: 0.2-1.0."""
    radial_stiffness: float = 30.0
    """Stiffness of the bond between the tip's end and the probe, N/m."""
    bond_length: float = 4.0
    """Distance of the probe from the tip's end, A."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Lateral position of the unloaded probe relative to the tip's end, A (a bent tip)."""
    amplitude: float = 1.0
    """Oscillation amplitude, peak to peak, A."""
    steps: int = 10
    """Heights at which the force is sampled over one oscillation, from the closest, `amplitude / steps` apart."""
    frequency: float = 30300.0
    """Resonance frequency of the cantilever, Hz."""
    cantilever_stiffness: float = 1800.0
    """N/m."""
    weights: Literal["ppafm", "exact"] = "ppafm"
    """How forces become a frequency shift: ppafm's sum, comparable with its images, or Giessibl's integral."""

    def __post_init__(self) -> None:
        if len(self.charges) != len(self.charge_offsets) or len(self.charges) > TIP_CHARGES:
            raise ConfigError(f"A tip has at most {TIP_CHARGES} charges and one offset for each.")
        if self.steps < 2:
            raise ConfigError("An oscillation needs at least 2 steps.")
        positive = (self.amplitude, self.stiffness, self.radial_stiffness, self.bond_length, self.cantilever_stiffness)
        if not all(value > 0 for value in positive):
            raise ConfigError("Amplitude, stiffnesses and bond length of a tip must be positive.")
        if self.amplitude < LEAST_AMPLITUDE:
            text = f"The amplitude of a tip is in A, peak to peak, {LEAST_AMPLITUDE:g} or more, not {self.amplitude:g}."
            raise ConfigError(text)
        if self.weights not in ("ppafm", "exact"):
            raise ConfigError(f"The weights of a tip are 'ppafm' or 'exact', not {self.weights!r}.")


CHARGED = Tip(charges=(0.05,), charge_offsets=(0.0,))
TIPS = {
    "co": CHARGED,
    "co-charge": CHARGED,
    "co-quadrupole": Tip(),
    "co-neutral": Tip(charges=(), charge_offsets=()),
    "xe": Tip(probe_radius=2.1815, probe_depth=0.024344, charges=(0.3,), charge_offsets=(0.0,), stiffness=0.2),
}
"""Presets.

co, co-charge: what measured images say, a small positive charge at the probe. `afmol fit` on stacks measured with a CO
tip finds +0.03 to +0.07 e for PTCDA and +0.03 to +0.05 e for BCB, with either force model (docs/simulator.md).
co-quadrupole: the original data set (Oinonen et al., MRS Bulletin 2022). It darkens the ends of PTCDA; measured they
are bright, and the fit switches it off.
co-neutral: no electrostatics.
xe: what Hapala et al., Nature Communications 7, 11560 (2016), fitted to PTCDA on Ag(111) measured with a Xe tip (figure
3: +0.3 e, 0.20 N/m). SINGROUP/ED-AFM (generate_data.py) has a quadrupole instead: 30, -60, 30 e at 0.1, 0, -0.1 A.
All Lennard-Jones parameters: atomtypes.ini of ppafm.
"""


class TipParameters(NamedTuple):
    """The parameters of tips that stacks can be differentiated by; units and meaning as in `Tip`.

    One tip for all molecules, or, each field alone, one a molecule.
    """

    probe_radius: Float[Any, "*molecule"]
    probe_depth: Float[Any, "*molecule"]
    charges: Float[Any, "*molecule t"]
    charge_offsets: Float[Any, "*molecule t"]
    stiffness: Float[Any, "*molecule"]
    radial_stiffness: Float[Any, "*molecule"]
    bond_length: Float[Any, "*molecule"]
    offset: Float[Any, "*molecule 2"]

    @classmethod
    def of(cls, tip: Tip | Sequence[Tip], like: Any = None) -> "TipParameters":
        """Those of one tip or of several, arrays of the kind, precision and device of `like`; None: torch, float32."""
        if like is None:
            import torch

            like = torch.zeros(0)
        if isinstance(tip, Tip):
            values = [getattr(tip, name) for name in cls._fields]
        else:  # tips with fewer charges than others get charges of 0
            most = max((len(t.charges) for t in tip), default=0)
            rows = [[getattr(t, name) for t in tip] for name in cls._fields]
            values = [
                [(*row, *[0.0] * (most - len(row))) for row in column]
                if name in ("charges", "charge_offsets")
                else column
                for name, column in zip(cls._fields, rows, strict=True)
            ]
        return cls(*(alike(value, like) for value in values))

    def of_each(self, molecules: int) -> "TipParameters":
        """One tip a molecule.

        Raises:
            ConfigError: fields that are neither of one tip nor of as many as there are molecules.
        """
        found = []
        for name, field in zip(self._fields, self, strict=True):
            width = field.ndim - (name in ("charges", "charge_offsets", "offset"))
            if width == 1 and len(field) != molecules:
                raise ConfigError(f"{molecules} molecules need as many tips, not {len(field)} ({name}).")
            found.append(field if width == 1 else field.expand(molecules, *field.shape))
        return TipParameters(*found)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the tip is scanned, in the molecule's frame."""

    origin: tuple[float, float]
    """Lower left corner of the image, A."""
    size: tuple[float, float]
    """Lengths of the image, A."""
    shape: tuple[int, int]
    """Pixels in x and y."""
    heights: Float[np.ndarray, " nz"]
    """Height of the tip's end (the probe hangs `bond_length` below) at the closest point of each slice's oscillation,
    A, descending: one slice a height."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heights", np.asarray(self.heights, float))  # a list will do
        check_size(*self.shape, len(self.heights))
        if min(self.shape) < 1 or not all(side > 0 for side in self.size) or len(self.heights) == 0:
            raise ConfigError("A grid needs at least one pixel a side, a positive size and one height.")
        if not np.isfinite(self.heights).all() or not (np.diff(self.heights) < 0).all():
            raise ConfigError("The heights of a grid must descend.")

    @property
    def centres(self) -> tuple[Float[np.ndarray, " nx"], Float[np.ndarray, " ny"]]:
        """x and y of the pixels' centres, A."""
        sides = zip(self.origin, self.size, self.shape, strict=True)
        x, y = (start + (np.arange(n) + 0.5) * length / n for start, length, n in sides)
        return x, y


def check_size(nx: float, ny: float, slices: int) -> None:
    """Refuse, with a ConfigError, a grid whose images take too much memory, before anything of its size is made."""
    claimed = max(4 * nx * ny * slices, 8.0 * slices * slices)  # images; weights of heights for slices
    what = f"A stack of {nx:.6g} x {ny:.6g} pixels and {slices:.6g} slices"
    check_claim(int(claimed if claimed < 1e30 else 1e30), what, ConfigError)


def standard_heights(
    molecule: Molecule,
    tip: Tip,
    distance: float,
    slices: int = 10,
    step: float = 0.1,
    force: ForceModel = LENNARD_JONES,
) -> Float[np.ndarray, " slices"]:
    """Heights, A, that end with the probe `distance` A above the molecule, counted as above a topmost carbon.

    The atom that reaches highest, as the force model has it, sets the zero: Lennard-Jones by z + radius.
    """
    top = (molecule.positions[:, 2] + force.reach(molecule.numbers)).max() - force.reach(CARBON)[0]
    return top + distance + tip.bond_length + step * np.arange(slices - 1, -1, -1)


def grid_around(
    molecule: Molecule,
    tip: Tip = TIPS["co"],
    *,
    margin: float = 3.0,
    pixel: float = 0.125,
    distance: float | None = None,
    slices: int = 10,
    step: float = 0.1,
    force: ForceModel = LENNARD_JONES,
) -> Grid:
    """The grid that covers a molecule with a margin (A) at a pixel size (A).

    `distance`: of the closest slice, see `standard_heights`; the force model's own if None.
    """
    distance = force.standard_distance if distance is None else distance
    low, high = molecule.positions[:, :2].min(0) - margin, molecule.positions[:, :2].max(0) + margin
    sides = np.ceil((high - low) / pixel)
    check_size(float(sides[0]), float(sides[1]), slices)
    shape = sides.astype(int)
    size, centre = shape * pixel, (low + high) / 2
    origin = centre - size / 2
    return Grid(
        (float(origin[0]), float(origin[1])),
        (float(size[0]), float(size[1])),
        (int(shape[0]), int(shape[1])),
        standard_heights(molecule, tip, distance, slices, step, force),
    )


@lru_cache(maxsize=16)
def frequency_shift_weights(steps: int, step: float) -> Float[np.ndarray, " steps"]:
    """Weights w (1/A) with df = (f0 / k) sum_j w_j F(z_j), z_j = `steps` heights, far to close, `step` apart.

    The oscillation spans `steps * step` peak to peak. The integral of Giessibl, Phys. Rev. B 56, 16010 (1997), as
    ppafm discretises it. It converges to that integral slowly: a constant force gradient gives
    -(1 - 1 / steps) f0 / (2 k) dF/dz, so 10 steps are a tenth short. Kept for comparability with ppafm's images.
    """
    t = np.linspace(-1 + 0.5 / steps, 1 - 0.5 / steps, steps - 1)
    slope = np.sqrt(1 - t**2)
    w = np.zeros(steps)
    w[:-1] += slope
    w[1:] -= slope
    return w / (np.sum(np.linspace(-1, 1, steps) * w) * steps * step)


@lru_cache(maxsize=16)
def giessibl_weights(steps: int, step: float) -> Float[np.ndarray, " steps_and_one"]:
    """Weights w (1/A) with df = (f0 / k) sum_j w_j F(z_j), z_j = `steps + 1` heights, far to close, `step` apart.

    The heights span the oscillation, of amplitude A = steps step / 2 about the middle z, and w is exact for the cubic
    spline through the forces:

        df = -f0 / (pi k A) int_-1^1 F(z + A t) t / sqrt(1 - t^2) dt       Giessibl, Phys. Rev. B 56, 16010 (1997)

    by Gauss-Chebyshev quadrature of the spline, at as many points as double precision needs.
    """
    from scipy.interpolate import CubicSpline

    amplitude, points = steps * step / 2, 4000
    t = np.cos(np.pi * (np.arange(points) + 0.5) / points)
    forces = CubicSpline(np.linspace(-1, 1, steps + 1), np.eye(steps + 1))(t)  # of each height alone
    return (-(t @ forces) / (points * amplitude))[::-1].copy()


def force_heights(grid: Grid, tip: Tip) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m nz"]]:
    """Tip heights at which the force is needed, descending, A, and the weights that make slices of it, Hz A/eV."""
    check_claim(64 * tip.steps * (len(grid.heights) + tip.steps), f"An oscillation of {tip.steps} steps", ConfigError)
    step = tip.amplitude / tip.steps
    w = frequency_shift_weights(tip.steps, step) if tip.weights == "ppafm" else giessibl_weights(tip.steps, step)
    wanted = grid.heights[:, None] + step * np.arange(len(w) - 1, -1, -1)
    keys, place = np.unique(np.round(-wanted / 1e-6).astype(np.int64), return_inverse=True)
    check_size(grid.shape[0], grid.shape[1] * len(keys) / len(grid.heights), len(grid.heights))
    weights = np.zeros((len(keys), len(grid.heights)))
    w = w * EV_PER_SQUARE_ANGSTROM * tip.frequency / tip.cantilever_stiffness
    np.add.at(weights, (place.reshape(wanted.shape), np.arange(len(grid.heights))[:, None]), w[None])
    return -keys * 1e-6, weights
