"""A molecule of known structure fitted to a measured stack: where it lies, and what tip and forces image it so.

    molecule turned, tilted, shifted; tip -> simulated slices -> correlation with the measured ones -> gradient

The score is the correlation of each slice with its measured one, both of zero mean and unit norm over the window, at
pixels of 0.25 A, as networks see them, into which finer ones are averaged; and its mean over slices. Scale and offset
of the frequency shift do not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

from .data.chemistry import with_charges
from .errors import ConfigError, MoleculeError, ScanError
from .resampling import usable
from .simulation import FORCES, TIPS, Grid, Tip, TipParameters, force_centres, force_stacks, standard_heights
from .structures import Molecule, Scan

ANGLES = 24
"""Directions of the molecule that are tried, for each face up."""
COARSE, FINE = 0.5, 0.25
"""Pixel sizes of the search for starts and of the fit, A."""
SOFT_TO_STIFF = (float(np.log(0.05)), float(np.log(3.0)))
"""Lateral stiffnesses that a tip may have, as logarithms, N/m."""
UNITS = (0.1, 0.1, 0.03, 0.03, 0.03, 0.1, 0.3, 0.01)
"""By how much each number of a pose changes an image about alike: the search takes its steps in these units."""
MOST_SIDE = 160
"""Pixels a side, at most, of the stack that is returned."""
FARTHEST = 100.0
"""Largest step and amplitude, A: more is another unit."""
APART = 0.5
"""Starts closer than this to a better one, A and 15 degrees, are left out."""


@dataclass(frozen=True)
class FitConfig:
    """How a molecule is fitted."""

    force: Literal["lennard-jones", "exponential", "exponential-1.0"] = "lennard-jones"
    tip: str = "co-charge"
    """Preset of `TIPS`. The value of a single charge is fitted; of several, a factor on the molecule's charges."""
    charges: Literal["file", "mmff94"] = "mmff94"
    """The molecule's charges: MMFF94's, which fit measured stacks as well as those of density functionals
    (docs/simulator.md); or its own, where it has any."""
    step: float = 0.1
    """Distance of the slices where the stack does not say, A."""
    amplitude: float = 1.0
    """Oscillation, peak to peak, A."""
    starts: int = 5
    steps: int = 60
    """Most iterations from each start."""
    flattening: float = 0.0
    """Of halogens along their bond (simulation.force_centres); 1: as flat as their radii say."""

    def __post_init__(self) -> None:
        if self.tip not in TIPS:
            raise ConfigError(f"The tip is one of {', '.join(TIPS)}, not {self.tip!r}.")
        if not (0 < self.step <= FARTHEST and 0 < self.amplitude <= FARTHEST) or min(self.starts, self.steps) < 1:
            raise ConfigError(f"step and amplitude must be positive, to {FARTHEST:g} A, starts and steps at least 1.")
        if not 0 <= self.flattening <= 3:
            raise ConfigError("flattening is 0 to 3: 1 is what the halogens' radii say.")


class Pose(NamedTuple):
    """What is fitted."""

    x: Float[Any, ""]
    """Of the molecule's centre, A from the image's lower left corner."""
    y: Float[Any, ""]
    angle: Float[Any, ""]
    """Counter-clockwise, radians."""
    tilt_x: Float[Any, ""]
    """About the x and y axes, radians."""
    tilt_y: Float[Any, ""]
    distance: Float[Any, ""]
    """Closest approach of the unrelaxed probe above the molecule's centre, A."""
    stiffness: Float[Any, ""]
    """Natural logarithm of the lateral stiffness in N/m."""
    charge: Float[Any, ""]
    """Of the probe, e; or, of a tip of several charges, the factor on the molecule's charges."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The best fit, as it is written."""

    correlation: float
    """Mean over slices."""
    per_slice: tuple[float, ...]
    """Far to close."""
    force: str
    tip: str
    charges: str
    flattening: float
    face: Literal["up", "down"]
    """Which face of the molecule, as it was given, is towards the tip."""
    x: float
    """Of the centre, A."""
    y: float
    angle: float
    """Degrees."""
    tilt: tuple[float, float]
    """About x and y, degrees."""
    above_topmost: float
    """Closest approach of the unrelaxed probe above the topmost nucleus, A."""
    stiffness: float
    """N/m."""
    tip_charge: float | None
    """e; None for a tip of several charges or none."""
    charge_scale: float
    """Factor on the molecule's charges; 1 where the tip's charge is fitted instead, since only the product counts."""
    starts: tuple[float, ...]
    """Correlation reached from each start."""


class Target(NamedTuple):
    """The measured slices, and how the same window is simulated."""

    images: Float[Tensor, "nx ny nz"]
    """Each of zero mean and unit norm."""
    grid: Grid
    tip: Tip
    slices: Int[np.ndarray, " nz"]
    """Which of the grid's heights each slice was taken at: repeats are simulated once."""


def fit(
    molecule: Molecule, scan: Scan, config: FitConfig | None = None, progress: bool = False
) -> tuple[Fit, Molecule, Scan]:
    """The fit, the molecule as it then lies in the scan's frame (A, z = 0 at the topmost nucleus), and the simulated
    stack.

    Args:
        molecule: its structure stays as it is.
        scan: of which it fills a part; slices far to close.
        config: force model, tip, effort.
        progress: show a bar.

    Raises:
        ScanError: a stack that cannot be read. MoleculeError: a molecule that cannot be simulated, or has no charges.
    """
    config = config or FitConfig()
    scan = usable(scan)
    if len(molecule) < 2:
        raise ScanError("A molecule of two atoms or more is needed: one atom fits everywhere.")
    if config.charges == "mmff94" or molecule.charges is None:
        molecule = with_charges(replace(molecule, charges=None))
    coarse, fine = (target(scan, pixel, config) for pixel in (COARSE, FINE))
    found = []
    for face, pose in tqdm(first_poses(molecule, coarse, config), desc="fit", unit="start", disable=not progress):
        try:
            found.append((face, *refined(faced(molecule, face), fine, config, pose)))
        except ScanError:  # the tip went into the molecule: no fit from there
            continue
    if not found:
        raise ScanError("From no start did the molecule stay below the tip; is the stack one of this molecule?")
    face, pose, _ = max(found, key=lambda f: f[2])
    finest = target(scan, max(max(scan.size) / MOST_SIDE, *scan.pixel), config)
    there = faced(molecule, face)
    with torch.no_grad():
        per_slice = correlations(simulated(there, fine, config, pose), fine.images).tolist()
        image = simulated(there, finest, config, pose)
    lies = placed(there.positions, pose).numpy()
    single = len(fine.tip.charges) == 1
    result = Fit(
        float(np.mean(per_slice)),
        tuple(round(c, 4) for c in per_slice),
        *(config.force, config.tip, config.charges, config.flattening),
        "up" if face > 0 else "down",
        *(float(pose.x), float(pose.y), float(np.degrees(pose.angle)) % 360),
        (float(np.degrees(pose.tilt_x)), float(np.degrees(pose.tilt_y))),
        float(pose.distance) - float(lies[:, 2].max()),
        float(np.exp(pose.stiffness)),
        float(pose.charge) if single else None,
        1.0 if single else float(pose.charge),
        tuple(round(score, 4) for _, _, score in found),
    )
    molecule = replace(there, positions=lies - [0.0, 0.0, lies[:, 2].max()])
    return result, molecule, Scan(image.numpy(), scan.size, scan.heights, f"{scan.source}, simulated")


class Conditions(NamedTuple):
    """How a molecule that lies in a scan's frame is imaged."""

    above_topmost: float
    """Closest approach of the unrelaxed probe above the topmost nucleus, A."""
    stiffness: float
    """Lateral, N/m."""
    charge: float
    """Of the probe, e; or, of a tip of several charges, the factor on the molecule's charges."""


def imaged(molecule: Molecule, scan: Scan, config: FitConfig, conditions: Conditions, pixel: float = FINE) -> Scan:
    """The stack of a molecule as it lies in a scan's frame, in the scan's window, at pixels of about `pixel` (A).

    Args:
        molecule: charges that it lacks count as none.
        scan: its heights or, without any, `config.step`, decide the slices.
        config: force model and tip; nothing is fitted.
        conditions: height, stiffness, charge.
        pixel: A.

    Raises:
        ScanError: the tip goes into the molecule. MoleculeError: a molecule without atoms.
    """
    scan = usable(scan)
    there, pose = _as_it_lies(molecule, conditions)
    goal = target(scan, pixel, config)
    with torch.no_grad():
        image = simulated(there, goal, config, pose)
    return Scan(image.numpy(), scan.size, scan.heights, f"{scan.source}, simulated")


def fit_conditions(
    molecule: Molecule, scan: Scan, config: FitConfig, start: Conditions
) -> tuple[Conditions, tuple[float, ...]]:
    """The conditions that image a molecule, which stays where it lies, most like a scan; and the correlation of each
    slice. Arguments and errors as of `imaged`.
    """
    scan = usable(scan)
    there, pose = _as_it_lies(molecule, start)
    goal = target(scan, FINE, config)
    found, _ = refined(there, goal, config, pose, fixed=("x", "y", "angle", "tilt_x", "tilt_y"))
    with torch.no_grad():
        per_slice = tuple(correlations(simulated(there, goal, config, found), goal.images).tolist())
    top = float(there.positions[:, 2].max())
    return Conditions(float(found.distance) - top, float(np.exp(found.stiffness)), float(found.charge)), per_slice


def _as_it_lies(molecule: Molecule, conditions: Conditions) -> tuple[Molecule, Pose]:
    if not len(molecule):
        raise MoleculeError("There is no atom to image.")
    centre, there = molecule.positions.mean(0), faced(molecule, 1.0)
    if there.charges is None:
        there = replace(there, charges=np.zeros(len(there)))
    distance = conditions.above_topmost + float(there.positions[:, 2].max())
    x, y = centre[:2].tolist()
    pose = Pose(x, y, 0.0, 0.0, 0.0, distance, float(np.log(conditions.stiffness)), conditions.charge)
    return there, pose


def target(scan: Scan, pixel: float, config: FitConfig) -> Target:
    """The slices at a pixel size (A), about."""
    nx, ny = (max(8, round(side / pixel)) for side in scan.size)
    data = torch.from_numpy(scan.data.astype(np.float64)).permute(2, 0, 1)[None]
    images = F.interpolate(data, (nx, ny), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    nz = images.shape[2]
    above = config.step * np.arange(nz - 1, -1, -1) if scan.heights is None else scan.heights - scan.heights.min()
    steps = max(4, round(config.amplitude / 0.1))
    tip = replace(TIPS[config.tip], amplitude=config.amplitude, steps=steps, weights="exact", bond_length=3.0)
    heights, place = np.unique(-np.round(above, 3), return_inverse=True)
    grid = Grid((0.0, 0.0), scan.size, (nx, ny), -heights + tip.bond_length)
    return Target(normalised(images), grid, tip, place)


def normalised(images: Float[Tensor, "nx ny nz"]) -> Float[Tensor, "nx ny nz"]:
    """Each slice of zero mean and unit norm."""
    centred = images - images.mean((0, 1))
    return centred / centred.square().sum((0, 1)).sqrt().clamp_min(1e-12)


def correlations(a: Float[Tensor, "nx ny nz"], b: Float[Tensor, "nx ny nz"]) -> Float[Tensor, " nz"]:
    """Of each slice."""
    return (normalised(a) * normalised(b)).sum((0, 1))


def faced(molecule: Molecule, face: float) -> Molecule:
    """The molecule about its centre, with its one face up or (-1) the other."""
    p = molecule.positions - molecule.positions.mean(0)
    return replace(molecule, positions=p * [1, face, face])


def placed(positions: Float[np.ndarray, "n 3"], pose: Pose) -> Float[Tensor, "n 3"]:
    """Atoms turned, tilted and shifted; z from the molecule's centre."""
    p = torch.as_tensor(positions)
    turns = [torch.as_tensor(t) for t in (pose.angle, pose.tilt_x, pose.tilt_y)]
    (c, cx, cy), (s, sx, sy) = ([f(t) for t in turns] for f in (torch.cos, torch.sin))
    x, y, z = p.unbind(1)
    x, y = c * x - s * y, s * x + c * y
    y, z = cx * y - sx * z, sx * y + cx * z
    x, z = cy * x + sy * z, cy * z - sy * x
    return torch.stack([x + pose.x, y + pose.y, z], 1)


def simulated(molecule: Molecule, goal: Target, config: FitConfig, pose: Pose) -> Float[Tensor, "nx ny nz"]:
    """The stack of a molecule about its centre, differentiable in the pose; the window's heights stay, the molecule
    moves."""
    force = FORCES[config.force]
    pose = Pose(*(torch.as_tensor(t, dtype=torch.float64) for t in pose))
    positions = placed(force_centres(molecule, config.flattening), pose) - torch.stack(
        [0 * pose.x, 0 * pose.x, pose.distance]
    )
    assert molecule.charges is not None
    charges = torch.as_tensor(molecule.charges)
    own = TipParameters.of(goal.tip, positions)._replace(stiffness=pose.stiffness.exp())
    if len(goal.tip.charges) == 1:
        own = own._replace(charges=pose.charge[None])
    else:
        charges = charges * pose.charge
    atoms = {name: torch.as_tensor(v) for name, v in force.defaults(molecule.numbers).items()}
    owner = torch.zeros(len(molecule), dtype=torch.long)
    return force_stacks(force, positions, charges, atoms, owner, goal.grid, goal.tip, own)[0][..., goal.slices]


def first_poses(molecule: Molecule, goal: Target, config: FitConfig) -> list[tuple[float, Pose]]:
    """Face and pose of the most promising starts: each direction, each face, at the best shift."""
    tried = []
    middle = [side / 2 for side in goal.grid.size]
    measured = torch.fft.fftn(goal.images, dim=(0, 1))
    for face in (1.0, -1.0):
        there = faced(molecule, face)
        for angle in 2 * np.pi * np.arange(ANGLES) / ANGLES:
            pose = _pose(there, config, middle, angle)
            with torch.no_grad():
                image = normalised(simulated(there, goal, config, pose))
            fits = torch.fft.ifftn(measured * torch.fft.fftn(image, dim=(0, 1)).conj(), dim=(0, 1)).real.mean(2)
            best = int(fits.argmax())
            nx, ny = fits.shape
            i, j = ((k + n // 2) % n - n // 2 for k, n in zip(divmod(best, ny), (nx, ny), strict=True))
            shift = (i * goal.grid.size[0] / nx, j * goal.grid.size[1] / ny)
            tried.append((float(fits.max()), face, pose._replace(x=middle[0] + shift[0], y=middle[1] + shift[1])))
    chosen: list[tuple[float, Pose]] = []
    for _, face, pose in sorted(tried, key=lambda t: -t[0]):
        if len(chosen) < config.starts and all(f != face or _differ(p, pose) for f, p in chosen):
            chosen.append((face, pose))
    return chosen


def _differ(a: Pose, b: Pose) -> bool:
    turn = abs((a.angle - b.angle + np.pi) % (2 * np.pi) - np.pi)
    return bool(np.hypot(a.x - b.x, a.y - b.y) > APART or turn > np.radians(15.1))


def _pose(molecule: Molecule, config: FitConfig, middle: Sequence[float], angle: float) -> Pose:
    """A pose to start from: flat, at the force model's standard distance."""
    tip = TIPS[config.tip]
    force = FORCES[config.force]
    height = standard_heights(molecule, tip, force.standard_distance, 1, force=force)[0] - tip.bond_length
    charge = 0.02 if len(tip.charges) == 1 else 1.0
    return Pose(middle[0], middle[1], angle, 0.0, 0.0, float(height), float(np.log(0.4)), charge)


def refined(
    molecule: Molecule, goal: Target, config: FitConfig, start: Pose, fixed: Sequence[str] = ()
) -> tuple[Pose, float]:
    """The pose after a quasi-Newton search (L-BFGS-B) from a start, and its mean correlation.

    `fixed`: fields of the pose that stay as they are.
    """
    lx, ly = goal.grid.size
    top = float(np.linalg.norm(molecule.positions, axis=1).max())
    charged = (-0.3, 0.3) if len(goal.tip.charges) == 1 else (0.0, 1.5)
    lean, free = (-0.35, 0.35), (None, None)
    bounds = [(0.0, lx), (0.0, ly), free, lean, lean, (1.5, 5.0 + top), SOFT_TO_STIFF, charged]
    bounds = [(at, at) if name in fixed else b for name, at, b in zip(Pose._fields, start, bounds, strict=True)]
    units = np.array(UNITS) * ([1] * 7 + [1 if len(goal.tip.charges) == 1 else 10])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        leaves = torch.tensor(values * units, requires_grad=True)
        try:
            mean = correlations(simulated(molecule, goal, config, Pose(*leaves)), goal.images).mean()
        except ScanError:  # too close: a wall
            return 1.0, np.zeros(len(values))
        mean.backward()
        assert leaves.grad is not None
        return -mean.item(), -leaves.grad.numpy() * units

    scaled = [tuple(v if v is None else v / u for v in pair) for pair, u in zip(bounds, units, strict=True)]
    options = {"maxiter": config.steps, "ftol": 1e-7}
    found = minimize(loss, np.array(start) / units, jac=True, method="L-BFGS-B", bounds=scaled, options=options)
    return Pose(*(found.x * units).tolist()), -float(found.fun)
