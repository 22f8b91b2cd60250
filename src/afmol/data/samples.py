"""Training samples, made when they are needed: sample i is a function of (configuration, i).

molecule -> lay_down -> conditions (tip, height, force parameters) -> simulate_sample -> add_artefacts -> Batch
            bending.py  conditions.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log, nan
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import config_to_dict
from ..elements import element_index, table
from ..errors import ConfigError, MoleculeError, ScanError
from ..simulation import Tip
from ..simulation.artefacts import (
    background_tilt,
    blurred,
    compressed,
    cut_outs,
    fewer_slices,
    height_errors,
    line_noise,
    linear_drift,
    pink_noise,
    rounded,
    scan_drift,
    slice_drift,
    white_noise,
    wider_oscillation,
)
from ..structures import Molecule, Sample
from .bending import lay_down, strained, with_bent_groups
from .conditions import Measured, nominal_conditions, random_conditions, simulate_sample
from .molecules import FLAT, MoleculeSet

ATTEMPTS = 20
"""Draws of a sample, at most: one that cannot be simulated is drawn again, with other random numbers."""
LABEL_DEPTH = 1.8
"""Atoms further below the topmost one (A) are not labelled at all: nothing of them is seen."""


HALOGENS = {9: 1.36, 17: 1.74, 35: 1.90, 53: 2.10}
"""Length of the bond to an aromatic carbon, A (Allen et al., J. Chem. Soc. Perkin Trans. 2, S1, 1987)."""


@dataclass(frozen=True)
class DataConfig:
    """How samples are drawn. Shares are probabilities; artefacts are drawn up to the value given."""

    seed: int = 0
    shard_size: int = field(default=32, metadata={"stored_as": "together"})
    """Samples in a row that share an image size: a multiple of the batch size; in a stored set, those of a shard."""
    flat_share: float = 0.6
    """Share of samples of molecules flatter than FLAT, the ones that experiments image."""
    halogenated_share: float = 0.0
    """Share of samples in which one to three hydrogens on carbon are replaced by halogens, which are rare in flat
    molecules."""
    nominal_share: float = 0.4
    """Share of samples with the simulator's nominal force parameters and CO tip; the others have random ones."""
    pixel: float = 0.25
    """A."""
    slices: int = 10
    """Images a stack, the closest last."""
    windows: tuple[tuple[int, int], ...] = ((64, 64), (64, 48), (48, 64), (56, 56), (48, 48))
    """Image sizes in pixels; one of them for each `shard_size` samples."""
    tilt: float = 5.0
    """Standard deviation of the tilt of a molecule against the surface, degrees."""
    bend: float = 0.3
    """Standard deviation of the bending of a molecule at 6 A from its centre, A (random force parameters only)."""
    buckling: float = 0.0
    """Standard deviation of each atom's height in an adsorbed molecule, A (random force parameters only)."""
    radius_error: float = 0.08
    """Largest relative error of a Lennard-Jones radius (random force parameters only)."""
    distance: tuple[float, float] = (2.75, 3.6)
    """Closest approach above a topmost carbon, A (nominal: 2.97 +- 0.25, as in the original data set)."""
    noise: float = 0.04
    """White noise: the standard deviation is |normal(0, this)| of a slice's range."""
    clean_share: float = 0.0
    """Share of samples with white noise and none of the artefacts below: a network that sees artefacts in every stack
    believes faint contrast of deep atoms in none (LOG.md, 2026-11-30)."""
    coarser_share: float = 0.2
    """Share of the others in which slices are left out and interpolated again, as if fewer had been measured."""
    line_noise: float = 0.01
    """An offset a scan line: its standard deviation is at most this share of a slice's range."""
    drift: float = 0.15
    """Standard deviation of the shift from slice to slice, pixels."""
    background: float = 0.1
    """A tilted background: the standard deviation of its rise along each side is at most this share of the range."""
    cut_outs: int = 3
    """Rectangles set to their slice's mean, at most so many, in half of the samples."""
    compression: float = 0.4
    """In half of the samples each slice's values, from 0 to 1, are raised to the power of 1 less up to this."""
    pink_noise: float = 0.0
    """1/f noise, share of a slice's range."""
    scan_drift: float = 0.0
    """Drift during a slice, pixels."""
    blur: float = 0.0
    """Width of a Gaussian, pixels."""
    height_error: float = 0.0
    """Error of the slices' heights, as a share of their distance."""
    wider_oscillation: int = 0
    """Slices by which the oscillation may be wider than stated."""
    measured: Measured = field(default_factory=Measured)
    """What measured stacks show besides (random force parameters only)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "measured":
                continue
            numbers = np.array(value, float)
            if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
                raise ConfigError(f"data.{name} must not be negative or infinite: {value}.")
        shares = ("flat_share", "halogenated_share", "nominal_share", "clean_share", "coarser_share", "compression")
        wrong = next((name for name in shares if getattr(self, name) > 1), None)
        if wrong:
            raise ConfigError(f"data.{wrong} is a share: 0 to 1.")
        sides = [side for window in self.windows for side in window]
        if min(self.shard_size, self.slices, len(sides), *sides) < 1:
            raise ConfigError("data.shard_size, data.slices and the sides of at least one window must be 1 or more.")
        if not 0.01 <= self.pixel <= 1 or self.distance[0] > self.distance[1] or self.blur > 100:
            raise ConfigError("data.pixel must be 0.01 to 1 A, data.blur at most 100 pixels, data.distance ascend.")


def stored_form(config: DataConfig) -> dict[str, Any]:
    """The configuration as sets and checkpoints spell it, so that one set has one checksum whoever makes it.

    `measured`, `clean_share` and `coarser_share` are younger than they: left out where they are as ever.
    """
    usual = DataConfig()
    off = {name: getattr(config, name) == getattr(usual, name) for name in ("measured", "clean_share", "coarser_share")}
    stored = config_to_dict(config) | {"flat_limit": FLAT}
    return {key: value for key, value in stored.items() if not off.get(key)}


class Batch(NamedTuple):
    """Images and labels of several samples, packed: one big graph.

    A tuple, since Fabric refuses frozen dataclasses.
    """

    images: Float[Tensor, "batch slices nx ny"]
    positions: Float[Tensor, "n 3"]
    """A, from the image's lower left corner; z = 0 is the topmost nucleus in the image."""
    elements: Int[Tensor, " n"]
    """Place in ELEMENTS."""
    molecule: Int[Tensor, " n"]
    """Sample that each atom belongs to."""
    bonds: Int[Tensor, "m 2"]
    """Pairs of atoms, counted through the whole batch."""
    stretch: Float[Tensor, " batch"]
    """ln of stated over true size of each image; NaN: unknown."""


def add_artefacts(
    stack: Float[np.ndarray, "nx ny nz"], rng: np.random.Generator, config: DataConfig
) -> Float[np.ndarray, "nx ny nz"]:
    """Artefacts of a measurement, each drawn up to the configuration's value.

    What is off by default draws nothing then: a configuration from before it was there gives the samples of before.
    """
    if config.clean_share and rng.random() < config.clean_share:
        return white_noise(stack, abs(config.noise * rng.standard_normal()), rng)
    if config.height_error:
        stack = height_errors(stack, config.height_error * rng.random(), rng)
    if config.wider_oscillation:
        stack = wider_oscillation(stack, int(rng.integers(1, config.wider_oscillation + 2)))
    if rng.random() < 0.5:
        stack = compressed(stack, rng.uniform(0, config.compression))
    if rng.random() < 0.5:
        stack = slice_drift(stack, config.drift * rng.random(), rng)
    if rng.random() < config.coarser_share and stack.shape[2] > 3:
        stack = fewer_slices(stack, int(rng.integers(3, stack.shape[2])))
    if config.scan_drift:
        stack = scan_drift(stack, config.scan_drift * rng.random(), rng)
    if config.blur:
        stack = blurred(stack, config.blur * rng.random())
    stack = background_tilt(stack, config.background * rng.random(), rng)
    stack = line_noise(stack, config.line_noise * rng.random(), rng)
    if config.pink_noise:
        stack = pink_noise(stack, config.pink_noise * rng.random(), rng)
    stack = white_noise(stack, abs(config.noise * rng.standard_normal()), rng)
    return cut_outs(stack, config.cut_outs, rng) if rng.random() < 0.5 else stack


def draw_molecule(molecules: MoleculeSet, rng: np.random.Generator, config: DataConfig) -> Molecule:
    """A molecule of the set by its weights, if it has any; flat ones weighted up."""
    among = np.arange(len(molecules))
    flat = np.flatnonzero(molecules.flatness < FLAT)
    if len(flat) and rng.random() < config.flat_share:
        among = flat
    if molecules.weight is None:
        return molecules[int(among[rng.integers(len(among))])]
    sums = np.cumsum(molecules.weight[among], dtype=float)
    return molecules[int(among[np.searchsorted(sums, rng.random() * sums[-1], "right")])]


def halogenated(molecule: Molecule, rng: np.random.Generator, most: int = 3) -> Molecule:
    """The molecule with up to `most` hydrogens on carbon replaced by halogens, the total charge kept.

    At least one, unless there is no such hydrogen or its place is too narrow.
    """
    carbon, hydrogen = np.sort(molecule.bonds[(np.sort(molecule.numbers[molecule.bonds]) == [1, 6]).all(1)], axis=1).T
    swap = molecule.numbers[carbon] == 1
    carbon, hydrogen = np.where(swap, hydrogen, carbon), np.where(swap, carbon, hydrogen)
    p, numbers = molecule.positions.copy(), molecule.numbers.copy()
    charges = None if molecule.charges is None else molecule.charges.copy()
    radius = table("covalent_radius")
    for k in rng.permutation(len(hydrogen))[: rng.integers(1, most + 1)]:
        c, h, z = carbon[k], hydrogen[k], int(rng.choice(list(HALOGENS)))
        bond = p[h] - p[c]
        place = p[c] + HALOGENS[z] * bond / np.linalg.norm(bond)
        room = np.linalg.norm(p - place, axis=1) / (radius[z] + radius[numbers])
        if (np.delete(room, [c, h]) < 1.3).any():  # closer than that, neighbours would look bonded
            continue
        p[h], numbers[h] = place, z
        if charges is not None:  # MMFF94: an aromatic halogen has about -0.18 e, and its carbon what is left
            charges[c] += charges[h] + 0.18
            charges[h] = -0.18
    return replace(molecule, positions=p, numbers=numbers, charges=charges)


def make_sample(
    molecules: MoleculeSet,
    config: DataConfig,
    i: int,
    shift: tuple[float, float] = (0.0, 0.0),
    tip: Tip | None = None,
) -> Sample:
    """Sample i: the stack with artefacts and the labelled atoms (in the image, at most LABEL_DEPTH deep).

    `shift`, A: the same scene and noise, with the image moved over it, so that atoms lie that much farther to the left
    and below. `tip`: in place of the one that is drawn, whose oscillation it takes.
    """
    window = np.random.default_rng((config.seed, 2, i // config.shard_size)).choice(config.windows)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((config.seed, 1, i, *([attempt] if attempt else [])))
        try:
            return _drawn(molecules, config, rng, window, shift, tip)
        except (MoleculeError, ScanError):  # such as atoms that buckling or a halogen pushed together
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _drawn(
    molecules: MoleculeSet,
    config: DataConfig,
    rng: np.random.Generator,
    window: Int[np.ndarray, " 2"],
    shift: tuple[float, float],
    tip: Tip | None,
) -> Sample:
    """One sample, or a MoleculeError or ScanError where what was drawn cannot be simulated."""
    nominal, m = rng.random() < config.nominal_share, config.measured
    if m.plain_share and not nominal and rng.random() < m.plain_share:
        m = Measured()
    molecule = draw_molecule(molecules, rng, config)
    if config.halogenated_share and rng.random() < config.halogenated_share:
        molecule = halogenated(molecule, rng)
    if nominal:
        molecule = lay_down(molecule, rng, config.tilt)
        conditions = nominal_conditions(rng, m.nominal_charged_share)
        scaled = m.nominal_scaled_share and rng.random() < m.nominal_scaled_share
        m = Measured(scale=m.scale, aspect=m.aspect) if scaled else Measured()
    else:
        bend, buckling = config.bend * rng.random(), config.buckling * rng.random()
        molecule = lay_down(molecule, rng, config.tilt, bend, buckling)
        conditions = random_conditions(rng, config.distance, config.radius_error, m)
    if tip is not None:
        oscillation = conditions.tip
        tip = replace(tip, amplitude=oscillation.amplitude, steps=oscillation.steps)
        conditions = replace(conditions, tip=tip)
    if m.group_bend:
        molecule = with_bent_groups(molecule, rng, m.group_bend)
    if m.strain:
        molecule = strained(molecule, rng, m.strain)
    size = window * config.pixel
    spare = np.abs(np.ptp(molecule.positions[:, :2], axis=0) + 3.0 - size) / 2
    corner = -size / 2 + rng.uniform(-1, 1, 2) * (spare + 1.0) + shift
    true = np.ones(2)  # length of what is stated as 1 A
    if m.scale or m.aspect:
        true = (1 + m.scale * rng.uniform(-1, 1)) * (1 + m.aspect / 2 * rng.uniform(-1, 1) * np.array([1, -1]))
    x, y = (corner * true).tolist()
    px, py = (config.pixel * true).tolist()
    shape = (int(window[0]), int(window[1]))
    scan = simulate_sample(molecule, conditions, (x, y), shape, (px, py), config.slices)
    data = scan.data
    if m.drift:
        data = linear_drift(data, m.drift / config.pixel * rng.uniform(-1, 1, 2))
    data = add_artefacts(data, rng, config)
    if m.rounding_share and rng.random() < m.rounding_share:
        data = rounded(data)
    stretch = float(np.prod(true) ** -0.5)
    stated = replace(molecule, positions=molecule.positions / [*true, 1.0], stretch=stretch)
    sides = (float(size[0]), float(size[1]))
    return Sample(replace(scan, data=data, size=sides), labels(stated, corner, size))


def labels(molecule: Molecule, origin: Float[np.ndarray, " 2"], size: Float[np.ndarray, " 2"]) -> Molecule:
    """The atoms inside the image and at most LABEL_DEPTH below its topmost one, in the image's frame."""
    p = molecule.positions - [*origin, 0]
    inside = ((p[:, :2] > 0) & (p[:, :2] < size)).all(1)
    if not inside.any():
        none = np.zeros(0)
        return Molecule(np.zeros((0, 3)), none.astype(int), np.zeros((0, 2), int), none, stretch=molecule.stretch)
    p[:, 2] -= p[inside, 2].max()
    keep = inside & (p[:, 2] >= -LABEL_DEPTH)
    place = np.cumsum(keep) - 1
    bonds = molecule.bonds[keep[molecule.bonds].all(1)]
    charges = None if molecule.charges is None else molecule.charges[keep]
    return Molecule(p[keep], molecule.numbers[keep], place[bonds], charges, stretch=molecule.stretch)


def turned(sample: Sample, turns: int) -> Sample:
    """Image and atoms by quarter turns counter-clockwise."""
    scan, molecule = sample
    p, (lx, ly) = molecule.positions.copy(), scan.size
    for _ in range(turns % 4):
        p[:, :2] = np.stack([ly - p[:, 1], p[:, 0]], 1)
        lx, ly = ly, lx
    return Sample(replace(scan, data=np.rot90(scan.data, turns), size=(lx, ly)), replace(molecule, positions=p))


def mirrored(sample: Sample) -> Sample:
    """Image and atoms, left and right exchanged."""
    scan, molecule = sample
    p = molecule.positions * [-1, 1, 1] + [scan.size[0], 0, 0]
    return Sample(replace(scan, data=scan.data[::-1]), replace(molecule, positions=p))


def cropped(sample: Sample, start: tuple[int, int], shape: tuple[int, int]) -> Sample:
    """The part of `shape` pixels from pixel `start` on, and the atoms that are labelled in it."""
    scan, molecule = sample
    part = scan.data[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    pixel = np.array(scan.pixel)
    lx, ly = (float(side) for side in part.shape[:2] * pixel)
    atoms = labels(molecule, np.array(start) * pixel, np.array([lx, ly]))
    return Sample(replace(scan, data=part, size=(lx, ly)), atoms)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples of one image size into a Batch."""
    stacks, atoms = [s.scan.data for s in samples], [s.molecule for s in samples]
    start = np.cumsum([0] + [len(m) for m in atoms])
    return Batch(
        images=torch.from_numpy(np.stack([stack.transpose(2, 0, 1) for stack in stacks]).astype(np.float32)),
        positions=torch.from_numpy(np.concatenate([m.positions for m in atoms]).astype(np.float32)),
        elements=torch.from_numpy(np.concatenate([element_index(m.numbers) for m in atoms])),
        molecule=torch.from_numpy(np.repeat(np.arange(len(atoms)), np.diff(start))),
        bonds=torch.from_numpy(np.concatenate([m.bonds + s for m, s in zip(atoms, start, strict=False)])),
        stretch=torch.tensor([log(m.stretch) if m.stretch else nan for m in atoms]),
    )
