"""Molecules as a tip sees them, for the tables that the tools beside this make."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from afmol.data.bending import lay_down
from afmol.data.molecules import FLAT, load_molecules
from afmol.structures import Molecule

TILT = 5.0
"""Standard deviation, degrees, as in training."""


def visible(source: str, count: int, depth: float) -> Iterator[Molecule]:
    """Training molecules laid down, half of them flat ones: their atoms down to a depth, A, and bonds between them."""
    molecules, rng = load_molecules(source, "train"), np.random.default_rng(0)
    flat = np.flatnonzero(molecules.flatness < FLAT)
    half = (rng.choice(flat, count // 2), rng.choice(len(molecules), count // 2))
    for k in tqdm(np.concatenate(half).tolist(), mininterval=1):
        m = lay_down(molecules[k], rng, TILT)
        yield m.taken(np.flatnonzero(m.positions[:, 2] >= m.positions[:, 2].max() - depth))
