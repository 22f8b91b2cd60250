"""The report's figures 1 and 2: three molecules as they are, and with the image moved by 2 A."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..data.bending import lay_down
from ..data.chemistry import molecule_from_smiles
from ..data.samples import labels
from ..elements import bonds_by_distance
from ..model import Asd, ImageModel
from ..plots.study import shift_picture
from ..prediction import predict_many
from ..simulation import TIPS, Grid, simulate, standard_heights
from ..structures import Molecule, Sample
from .judge import grown

SIDE = 16.0
"""Of the images, A: what the original takes."""
SMILES = {
    "1-bromo-3,5-dichlorobenzene": "Brc1cc(Cl)cc(Cl)c1",
    "PTCDA": "O=C1OC(=O)c2ccc3c4ccc5C(=O)OC(=O)c6ccc(c7ccc1c2c37)c4c56",
}


def water_ring(n: int = 4) -> Molecule:
    """A flat ring of n water molecules, each with a hydrogen towards the next oxygen 2.75 A away, the other outward.

    Bonds 0.96 A long, 104.5 degrees between them; charges of TIP3P.
    """
    angle = 2 * np.pi * np.arange(n) / n
    oxygen = 2.75 / (2 * np.sin(np.pi / n)) * np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    towards = np.roll(oxygen, -1, axis=0) - oxygen
    first = np.arctan2(towards[:, 1], towards[:, 0])
    second = first - np.deg2rad(104.5)  # the next oxygen lies to the left, so the right is outside
    hydrogen = [oxygen + 0.96 * np.column_stack([np.cos(a), np.sin(a), 0 * a]) for a in (first, second)]
    positions, numbers = np.concatenate([oxygen, *hydrogen]), np.repeat([8, 1, 1], n)
    charges = np.repeat([-0.834, 0.417, 0.417], n)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), charges, name=f"{n} waters")


@lru_cache(maxsize=1)
def shift_scenes(pixel: float, slices: int, shift: float) -> list[tuple[Sample, Sample]]:
    """The three molecules and their stacks with the CO tip, without noise, as they are and shifted to the left (A)."""
    rng = np.random.default_rng(0)
    named = {name: lay_down(molecule_from_smiles(smiles), rng, tilt=0.0) for name, smiles in SMILES.items()}
    scenes, tip, n = [], TIPS["co-quadrupole"], round(SIDE / pixel)
    for name, molecule in (named | {"water": water_ring()}).items():
        low, high = molecule.positions[:, :2].min(0), molecule.positions[:, :2].max(0)
        x, y = (low + high - SIDE) / 2
        heights = standard_heights(molecule, tip, 2.97, slices)
        pair = []
        for by, title in ((0.0, name), (shift, f"{name}, {shift:g} A to the left")):
            scan = simulate(molecule, tip, Grid((x + by, y), (SIDE, SIDE), (n, n), heights))
            atoms = labels(molecule, np.array([x + by, y]), np.array([SIDE, SIDE]))
            pair.append(Sample(replace(scan, source=title), atoms))
        scenes.append((pair[0], pair[1]))
    return scenes


def write_shift_picture(model: ImageModel, name: str, shift: float, path: str | Path, given: bool = False) -> None:
    """What a model finds in the three molecules, and in the same images shifted.

    `given`: graphs are built on the true positions, where the model can do that.

    Raises:
        ConfigError: a file that cannot be written.
    """
    rows = []
    for pair in shift_scenes(model.config.pixel, model.config.slices, shift):
        found = grown(model, pair) if given and isinstance(model, Asd) else predict_many([s.scan for s in pair], model)
        still, moved = (Sample(s.scan, m.with_likely_bonds()) for s, m in zip(pair, found, strict=True))
        rows.append((still, moved))
    shift_picture(rows, path, name)
