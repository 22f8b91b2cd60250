"""From a molecule to a stack: the tip, the scanned grid, and the frequency shift from the forces."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..elements import BY_SYMBOL, table
from ..errors import ConfigError, MoleculeError, ScanError
from ..structures import Molecule, Scan
from .forces import EV_PER_SQUARE_ANGSTROM, TIP_CHARGES, coulomb_terms, lennard_jones_terms
from .probe import vertical_force, vertical_force_parallel

STANDARD_DISTANCE = 2.97
"""Closest approach of the unrelaxed probe above a topmost carbon, A (distAbove 5.3 A of the original data set)."""
CLOSEST = 1.0
"""The unrelaxed probe stays this far above the topmost nucleus, A; below, the model means nothing."""
CARBON_RADIUS = BY_SYMBOL["C"].lj_radius


@dataclass(frozen=True)
class Tip:
    """A tip that ends in one flexible atom, the probe. The default is the CO tip of the original data set."""

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

    def __post_init__(self) -> None:
        if len(self.charges) != len(self.charge_offsets) or len(self.charges) > TIP_CHARGES:
            raise ConfigError(f"A tip has at most {TIP_CHARGES} charges and one offset for each.")
        if self.steps < 2:
            raise ConfigError("An oscillation needs at least 2 steps.")
        positive = (self.amplitude, self.stiffness, self.radial_stiffness, self.bond_length, self.cantilever_stiffness)
        if not all(value > 0 for value in positive):
            raise ConfigError("Amplitude, stiffnesses and bond length of a tip must be positive.")


TIPS = {"co": Tip(), "xe": Tip(probe_radius=2.1815, probe_depth=0.024344, charges=(0.3,), charge_offsets=(0.0,))}
"""Presets. Xe: Lennard-Jones parameters as above, one positive charge."""


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
        if min(self.shape) < 1 or not all(side > 0 for side in self.size) or len(self.heights) == 0:
            raise ConfigError("A grid needs at least one pixel a side, a positive size and one height.")
        if not (np.diff(self.heights) < 0).all():
            raise ConfigError("The heights of a grid must descend.")


def standard_heights(molecule: Molecule, tip: Tip, distance: float, slices: int = 10, step: float = 0.1) -> np.ndarray:
    """Heights (slices,) that end with the probe `distance` A above the molecule, counted as above a topmost carbon.

    The atom that reaches highest by z + Lennard-Jones radius sets the zero, as in the original data set, so that a
    topmost hydrogen or bromine is approached to the same repulsion.
    """
    reach = (molecule.positions[:, 2] + table("lj_radius")[molecule.numbers]).max() - CARBON_RADIUS
    return reach + distance + tip.bond_length + step * np.arange(slices - 1, -1, -1)


def grid_around(
    molecule: Molecule,
    tip: Tip = TIPS["co"],
    *,
    margin: float = 3.0,
    pixel: float = 0.125,
    distance: float = STANDARD_DISTANCE,
    slices: int = 10,
    step: float = 0.1,
) -> Grid:
    """The grid that covers a molecule with a margin (A) at a pixel size (A)."""
    low, high = molecule.positions[:, :2].min(0) - margin, molecule.positions[:, :2].max(0) + margin
    shape = np.ceil((high - low) / pixel).astype(int)
    size, centre = shape * pixel, (low + high) / 2
    origin = centre - size / 2
    return Grid(
        (float(origin[0]), float(origin[1])),
        (float(size[0]), float(size[1])),
        (int(shape[0]), int(shape[1])),
        standard_heights(molecule, tip, distance, slices, step),
    )


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


def _force_heights(grid: Grid, tip: Tip) -> tuple[np.ndarray, np.ndarray]:
    """Tip heights (m,) at which the force is needed, descending, and the weights (m, nz) that turn it into slices."""
    step = tip.amplitude / tip.steps
    wanted = grid.heights[:, None] + step * np.arange(tip.steps - 1, -1, -1)
    keys, place = np.unique(np.round(-wanted / 1e-6).astype(np.int64), return_inverse=True)
    weights = np.zeros((len(keys), len(grid.heights)))
    w = frequency_shift_weights(tip.steps, step) * EV_PER_SQUARE_ANGSTROM * tip.frequency / tip.cantilever_stiffness
    np.add.at(weights, (place.reshape(wanted.shape), np.arange(len(grid.heights))[:, None]), w[None])
    return -keys * 1e-6, weights


def simulate(
    molecule: Molecule,
    tip: Tip = TIPS["co"],
    grid: Grid | None = None,
    *,
    lj_radius: Float[np.ndarray, " n"] | None = None,
    lj_depth: Float[np.ndarray, " n"] | None = None,
    dtype: type = np.float32,
    parallel: bool = True,
) -> Scan:
    """Frequency-shift stack (Hz) of a molecule, probe-particle model with Lennard-Jones and point charges.

    Args:
        molecule: atoms in A; missing charges count as zero.
        grid: where to scan; `grid_around(molecule, tip)` if None.
        lj_radius, lj_depth: Lennard-Jones parameters of each atom (A, eV) in place of the elements' own.
        dtype: np.float32 or np.float64.
        parallel: use all cores; must be False where several threads call `simulate`.

    Raises:
        MoleculeError: no atoms. ScanError: the tip would go into the molecule.
    """
    if len(molecule) == 0:
        raise MoleculeError("A molecule without atoms cannot be simulated.")
    grid = grid or grid_around(molecule, tip)
    heights, weights = _force_heights(grid, tip)
    radius = table("lj_radius")[molecule.numbers] if lj_radius is None else lj_radius
    depth = table("lj_depth")[molecule.numbers] if lj_depth is None else lj_depth
    if grid.heights[-1] - tip.bond_length < molecule.positions[:, 2].max() + CLOSEST:
        least = tip.bond_length + CLOSEST
        raise ScanError(f"The tip would go into the molecule; its end must stay {least:g} A above the topmost atom.")

    # Coordinates relative to the molecule keep float32 accurate wherever the user's origin is.
    centre = molecule.positions.mean(0)
    atom_x, atom_y, atom_z = np.ascontiguousarray((molecule.positions - centre).T.astype(dtype))
    charges = np.zeros(len(molecule)) if molecule.charges is None else molecule.charges
    q, charge_z = coulomb_terms(charges, tip.charges, tip.charge_offsets)
    x = grid.origin[0] + (np.arange(grid.shape[0]) + 0.5) * grid.size[0] / grid.shape[0] + tip.offset[0] - centre[0]
    y = grid.origin[1] + (np.arange(grid.shape[1]) + 0.5) * grid.size[1] / grid.shape[1] + tip.offset[1] - centre[1]
    # float32 forces are exact to about 5e-6 eV/A: the quadrupole's charges nearly cancel
    tolerance = 2e-5 if dtype is np.float32 else 1e-9
    force = np.empty((*grid.shape, len(heights)), dtype)
    run = vertical_force_parallel if parallel else vertical_force
    run(
        x.astype(dtype),
        y.astype(dtype),
        (heights - centre[2]).astype(dtype),
        dtype(tip.stiffness / EV_PER_SQUARE_ANGSTROM),
        dtype(tip.radial_stiffness / EV_PER_SQUARE_ANGSTROM),
        dtype(tip.bond_length),
        atom_x,
        atom_y,
        atom_z,
        lennard_jones_terms(radius, depth, tip.probe_radius, tip.probe_depth).astype(dtype),
        q.astype(dtype),
        charge_z.astype(dtype),
        np.array([tolerance, 0.3, 2e-3, 3.0], dtype),
        force,
    )
    # einsum, not @: the threads of a BLAS would go on spinning on the cores that the next image needs
    df = np.einsum("xyk,kz->xyz", force, weights.astype(dtype))
    return Scan(df, grid.size, grid.heights, molecule.name or "simulated")
