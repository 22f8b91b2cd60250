"""From a molecule, as a person names it, to a stack and to the files that a person takes home."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .data.bending import lay_down
from .data.chemistry import molecule_from_smiles, with_charges
from .errors import ConfigError, MoleculeError
from .files import MOLECULES, read_molecule, write_scan
from .plots import stack_strip
from .simulation import FORCES, TIPS, Grid, grid_around, simulate, standard_heights
from .simulation.artefacts import white_noise
from .structures import Molecule, Scan


@dataclass(frozen=True)
class ImagingConfig:
    """How a molecule is imaged."""

    tip: Literal["co", "co-charge", "co-quadrupole", "co-neutral", "xe"] = "co"
    force: Literal["lennard-jones", "exponential", "exponential-1.0"] = "lennard-jones"
    size: tuple[float, float] | None = None
    """Lengths of the image, A; None: the molecule and 3 A around it."""
    pixel: float = 0.125
    """A."""
    slices: int = 10
    step: float = 0.1
    """Distance of the slices, A."""
    distance: float | None = None
    """Closest approach of the probe above the topmost carbon, A; the force model's own if None."""
    heights: tuple[float, ...] | None = None
    """This distance for each slice, descending, in place of slices, step and distance."""
    amplitude: float = 1.0
    """Oscillation, peak to peak, A."""
    noise: float = 0.0
    """Standard deviation of white noise, share of each slice's range."""
    seed: int = 0
    """Of orientation and noise."""

    def __post_init__(self) -> None:
        positive = ("pixel", "step", "amplitude", "slices", "distance", "size")
        given = {name: np.ravel(getattr(self, name)) for name in positive if getattr(self, name) is not None}
        wrong = next((name for name, values in given.items() if not ((values > 0) & (values < np.inf)).all()), None)
        if wrong or not 0 <= self.noise < np.inf:
            raise ConfigError(f"--{wrong or 'noise'} must be positive.")
        if self.seed < 0:
            raise ConfigError("--seed must not be negative.")
        if self.tip not in TIPS or self.force not in FORCES:
            raise ConfigError(f"--tip is one of {', '.join(TIPS)}, --force of {', '.join(FORCES)}.")


def is_file(molecule: str) -> bool:
    """Whether a molecule is named by a file, not by SMILES."""
    return Path(molecule).suffix.lower() in MOLECULES


def named_molecule(molecule: str) -> Molecule:
    """A molecule from a file or from SMILES.

    Raises:
        MoleculeError: as `read_molecule` and `molecule_from_smiles`.
    """
    return read_molecule(molecule) if is_file(molecule) else molecule_from_smiles(molecule)


def simulate_molecule(
    molecule: Molecule, config: ImagingConfig, *, lay: bool, progress: bool = False
) -> tuple[Molecule, Scan, str]:
    """The molecule as it was imaged, its stack, and why it was imaged without charges, if it was.

    Args:
        molecule: charges that it lacks are MMFF94's, or, where there are none, left out.
        config: tip, grid and noise.
        lay: put its largest plane on the surface; otherwise it is imaged from above (+z) as it stands.
        progress: show a bar once it has taken a second.

    Raises:
        ConfigError, MoleculeError, ScanError: as `simulation.simulate`.
    """
    rng = np.random.default_rng(config.seed)
    molecule = lay_down(molecule, rng, tilt=0.0) if lay else molecule
    tip = replace(TIPS[config.tip], amplitude=config.amplitude, steps=max(4, round(config.amplitude / 0.1)))
    force, how = FORCES[config.force], {"slices": config.slices, "step": config.step}
    grid = grid_around(molecule, tip, pixel=config.pixel, distance=config.distance, force=force, **how)
    if config.heights is not None:
        ground = standard_heights(molecule, tip, 0.0, 1, force=force)
        grid = replace(grid, heights=ground + np.array(config.heights, float))
    if config.size is not None:
        x, y = (o + (s - want) / 2 for o, s, want in zip(grid.origin, grid.size, config.size, strict=True))
        nx, ny = (max(1, round(side / config.pixel)) for side in config.size)
        grid = Grid((x, y), config.size, (nx, ny), grid.heights)
    uncharged = ""
    if molecule.charges is None:
        try:
            molecule = with_charges(molecule)
        except MoleculeError as error:
            uncharged = str(error)
    scan = simulate(molecule, tip, grid, force=force, progress=progress)
    data = white_noise(scan.data, config.noise, rng) if config.noise else scan.data
    return molecule, replace(scan, data=data), uncharged


def heights_above(molecule: Molecule, scan: Scan, tip: str) -> tuple[float, float]:
    """Closest and farthest approach of the unrelaxed probe above the topmost nucleus in a simulated stack, A."""
    assert scan.heights is not None
    top = TIPS[tip].bond_length + molecule.positions[:, 2].max()
    return float(scan.heights.min() - top), float(scan.heights.max() - top)


def write_stack(scan: Scan, out: str | Path) -> list[Path]:
    """OUT (.npz, .h5 or .gsf) and, beside it, OUT_stack.png.

    Raises:
        ConfigError: a file that cannot be written.
    """
    out = Path(out)
    picture = out.with_name(f"{out.stem}_stack.png")
    write_scan(scan, out)
    stack_strip(scan, picture)
    return [out, picture]
