"""How a molecule is imaged: tip, height and force parameters, nominal or drawn at random; and the stack that follows.

Why force parameters are drawn at random: no force model gets the contrast between elements right (docs/simulator.md),
and MMFF94 charges are 3-4 times those fitted to densities from first principles. A network must not trust either.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..elements import ELEMENTS, element_index
from ..errors import ConfigError
from ..simulation import (
    FORCES,
    STANDARD_DISTANCE,
    TIPS,
    ForceModel,
    Grid,
    Tip,
    force_centres,
    simulate,
    standard_heights,
)
from ..structures import Molecule, Scan

LENNARD_JONES, EXPONENTIAL = FORCES["lennard-jones"], FORCES["exponential"]
Range = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """What measured stacks show beyond the original data set's conditions, for samples of random force parameters. All
    off, or as before, by default.

    Source, where none is given: afmol fit on measured PTCDA and BCB (docs/simulator.md).
    """

    plain_share: float = 0.0
    """Share of samples of random force parameters in which none of this is drawn: a network forgets what it no longer
    sees (LOG.md, 2026-11-29)."""
    nominal_charged_share: float = 0.0
    """Share of samples of nominal force parameters whose tip is `co-charge`."""
    nominal_scaled_share: float = 0.0
    """Share of samples of nominal force parameters whose size is wrong as `scale` and `aspect` say: a network that
    never sees it there believes the stated size (LOG.md, 2026-11-29)."""
    exponential_share: float = 0.0
    """Share of samples with exponential repulsion in place of Lennard-Jones."""
    pauli_scale: Range = (0.5, 2.0)
    """Factor on each element's repulsion, exponentials: the elements' spread between molecules and methods."""
    decay_scale: Range = (0.9, 1.2)
    """Factor on each element's decay, exponentials: measured Br and Cl fade faster than any model."""
    dispersion_scale: Range = (1.0, 1.0)
    """Factor on the dispersion of all atoms, exponentials: fitted with the elements' repulsion, BCB asks for 0.65 and
    PTCDA for 0.2."""
    flattening: Range = (0.0, 0.0)
    """Of halogens along their bond, in units of that of their radii (`simulation.flattening`): BCB about 1."""
    charged_share: float = 0.0
    """Share of samples whose tip has one charge at the probe; the others have the quadrupole."""
    tip_charge: Range = (-0.05, 0.12)
    """That charge, e: PTCDA +0.03 to +0.07, BCB +0.03 to +0.05."""
    quadrupole: Range = (1.0, 1.0)
    """Factor on the quadrupole: the fits, which allow 0 to 1.5 on the charges, switch it off; below 0 it acts as a
    positive charge does."""
    charge_scale: Range = (0.0, 1.2)
    """Factor on the molecule's charges."""
    stiffness: Range = (0.2, 1.0)
    """Lateral stiffness of the tip, N/m: BCB 0.46 to 0.67; PTCDA 0.16 with Lennard-Jones, else open."""
    step: Range = (0.06, 0.14)
    """Spacing of the slices, A; less where a stack has few and close slices, of which the network's ten are made."""
    clearance: Range = (0.0, 0.0)
    """Closest approach above the topmost nucleus, A, whatever its element; zeros: `distance` above a topmost carbon."""
    group_bend: float = 0.0
    """Largest shift in height of a ring, a substituent or an end, A: NIXSW of PTCDA on Ag and Cu, 0.1 to 0.25 A."""
    scale: float = 0.0
    """Largest relative error of the image's size: calibration of the scanner."""
    aspect: float = 0.0
    """Largest relative error of y against x."""
    strain: float = 0.0
    """Largest strain of the image that keeps its area, along any direction: creep, axes that are not at right angles.
    BCB shows 0.04 beside the aspect, as affine maps of its slices to those of a fit say."""
    drift: float = 0.0
    """Longest linear drift from the first slice to the last, A: up to 1 A between slices of measured stacks."""
    rounding_share: float = 0.0
    """Share of stacks that went through 8 bits: stacks that are exchanged as pictures."""

    def __post_init__(self) -> None:
        ranges = {name: value for name, value in vars(self).items() if isinstance(value, tuple)}
        if not all(np.isfinite(value).all() and value[0] <= value[1] for value in ranges.values()):
            raise ConfigError("data.measured: a range is two finite numbers, the smaller first.")
        positive, others = ("pauli_scale", "decay_scale", "stiffness", "step"), ("charge_scale", "clearance")
        others = (*others, "dispersion_scale", "flattening")
        if min(ranges[name][0] for name in positive) <= 0 or min(ranges[name][0] for name in others) < 0:
            raise ConfigError(
                f"data.measured: {', '.join(positive)} must be positive, {', '.join(others)} not negative."
            )
        shares = (self.exponential_share, self.charged_share, self.rounding_share, self.scale, self.aspect)
        shares += (self.plain_share, self.nominal_charged_share, self.nominal_scaled_share, self.strain)
        if not all(0 <= share <= 1 for share in shares) or not all(0 <= a < 100 for a in (self.group_bend, self.drift)):
            raise ConfigError("data.measured: shares and relative errors are 0 to 1, group_bend and drift 0 or more.")


MEASURED = Measured(
    exponential_share=0.5,
    charged_share=0.7,
    quadrupole=(-0.4, 1.0),
    charge_scale=(0.5, 1.2),
    stiffness=(0.15, 1.0),
    clearance=(2.4, 3.6),
    group_bend=0.2,
    scale=0.06,
    aspect=0.02,
    drift=1.5,
    rounding_share=0.2,
)
"""What a model for measurements is judged on. What came later (dispersion, flattening, strain, closer slices) is for
training alone: a yardstick stays as it is."""


@dataclass(frozen=True, eq=False)
class ImagingConditions:
    """How a molecule is imaged."""

    tip: Tip
    distance: float
    """Closest approach above a topmost carbon, A, as Lennard-Jones counts it."""
    step: float
    """Spacing of the slices, A."""
    charge_scale: float
    factors: Mapping[str, Float[np.ndarray, " e"]]
    """Of the force model's parameters, by name, on each entry of ELEMENTS."""
    force: ForceModel = LENNARD_JONES
    clearance: float | None = None
    """Closest approach above the topmost nucleus, A, in place of distance."""
    flattening: float = 0.0
    """Of halogens along their bond (simulation.force_centres)."""


def nominal_conditions(rng: np.random.Generator, charged_share: float = 0.0) -> ImagingConditions:
    """The original data set's tip (`co-charge` in its place with a probability), nominal force parameters, height 2.97
    +- 0.25 A above a topmost carbon."""
    distance = STANDARD_DISTANCE + rng.uniform(-0.25, 0.25)
    tip = "co-charge" if charged_share and rng.random() < charged_share else "co-quadrupole"
    return ImagingConditions(TIPS[tip], distance, 0.1, 1.0, {})


def random_conditions(
    rng: np.random.Generator, distance: Range, radius_error: float, measured: Measured | None = None
) -> ImagingConditions:
    """Ranges of real tips and of how wrong the force model may be.

    What is off draws nothing: a configuration from before it was there gives the samples of before.
    """
    m = measured or Measured()
    step = rng.uniform(*m.step)
    steps = int(np.clip(round(rng.uniform(0.4, 1.4) / step), 4, 14))
    stiffness = _logarithmic(rng, m.stiffness)
    tip = replace(TIPS["co-quadrupole"], stiffness=float(stiffness), amplitude=steps * step, steps=steps)
    closest, charge_scale = rng.uniform(*distance), rng.uniform(*m.charge_scale)
    factors = {
        "lj_radius": rng.uniform(1 - radius_error, 1 + radius_error, len(ELEMENTS)),
        "lj_depth": np.exp(rng.uniform(-np.log(2), np.log(2), len(ELEMENTS))),
    }
    force = LENNARD_JONES
    if m.exponential_share and rng.random() < m.exponential_share:
        force = EXPONENTIAL
        factors = {
            "pauli_height": _logarithmic(rng, m.pauli_scale, len(ELEMENTS)),
            "pauli_decay": rng.uniform(*m.decay_scale, len(ELEMENTS)),
        }
        if m.dispersion_scale != (1.0, 1.0):
            factors["c6"] = np.full(len(ELEMENTS), rng.uniform(*m.dispersion_scale))
    if m.charged_share and rng.random() < m.charged_share:
        tip = replace(tip, charges=(rng.uniform(*m.tip_charge),), charge_offsets=(0.0,))
    elif m.quadrupole != (1.0, 1.0):
        times = rng.uniform(*m.quadrupole)
        tip = replace(tip, charges=tuple(times * charge for charge in tip.charges))
    clearance = rng.uniform(*m.clearance) if m.clearance[1] else None
    flattening = rng.uniform(*m.flattening) if m.flattening[1] else 0.0
    return ImagingConditions(tip, closest, step, charge_scale, factors, force, clearance, flattening)


def _logarithmic(rng: np.random.Generator, values: Range, n: int | None = None) -> Any:
    return np.exp(rng.uniform(np.log(values[0]), np.log(values[1]), n))


def simulate_sample(
    molecule: Molecule,
    conditions: ImagingConditions,
    origin: tuple[float, float],
    shape: tuple[int, int],
    pixel: float | tuple[float, float],
    slices: int = 10,
) -> Scan:
    """The stack of a laid-down molecule under given conditions; safe to call from several threads."""
    c, index = conditions, element_index(molecule.numbers)
    charges = None if molecule.charges is None else c.charge_scale * molecule.charges
    parameters = c.force.defaults(molecule.numbers)
    parameters = {
        name: values * c.factors[name][index] if name in c.factors else values for name, values in parameters.items()
    }
    if c.clearance is None:
        distance = c.distance + c.force.standard_distance - STANDARD_DISTANCE
        heights = standard_heights(molecule, c.tip, distance, slices, c.step, force=c.force)
    else:
        above = c.clearance + c.step * np.arange(slices - 1, -1, -1)
        heights = molecule.positions[:, 2].max() + c.tip.bond_length + above
    px, py = (pixel, pixel) if isinstance(pixel, float) else pixel
    grid = Grid(origin, (shape[0] * px, shape[1] * py), shape, heights)
    what = replace(molecule, positions=force_centres(molecule, c.flattening), charges=charges)
    return simulate(what, c.tip, grid, force=c.force, parameters=parameters, parallel=False)
