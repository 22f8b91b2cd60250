"""Makes src/afmol/bond_lengths.csv: mean and spread of the bonds' lengths between kinds of visible heavy atoms.

usage: python tools/bond_lengths.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms as deep as models look count, and bonds between them.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from afmol.data.bending import lay_down
from afmol.data.molecules import FLAT, load_molecules
from afmol.elements import BY_NUMBER
from afmol.scale import MOST_NEIGHBOURS, Kind, pair

DEPTH, TILT = 0.8, 5.0
LEAST = 20
"""Bonds of a kind, for an entry."""
OUT = Path(__file__).parent.parent / "src" / "afmol" / "bond_lengths.csv"


def main(source: str, count: int = 20000) -> None:
    molecules, rng = load_molecules(source, "train"), np.random.default_rng(0)
    flat = np.flatnonzero(molecules.flatness < FLAT)
    half = (rng.choice(flat, count // 2), rng.choice(len(molecules), count // 2))
    lengths: dict[tuple[Kind, Kind], list[float]] = defaultdict(list)
    for i in np.concatenate(half).tolist():
        m = lay_down(molecules[i], rng, TILT)
        seen = m.positions[:, 2] >= m.positions[:, 2].max() - DEPTH
        bonds = m.bonds[seen[m.bonds].all(1)]
        neighbours = np.minimum(np.bincount(bonds.ravel(), minlength=len(m)), MOST_NEIGHBOURS)
        for a, b in bonds[(m.numbers[bonds] > 1).all(1)].tolist():
            kinds = pair(*((int(m.numbers[k]), int(neighbours[k])) for k in (a, b)))
            lengths[kinds].append(float(np.linalg.norm(m.positions[a] - m.positions[b])))
    with OUT.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["element a", "neighbours a", "element b", "neighbours b", "mean", "spread", "bonds"])
        for (a, b), of in sorted(lengths.items()):
            if len(of) >= LEAST:
                kinds = (BY_NUMBER[a[0]].symbol, a[1], BY_NUMBER[b[0]].symbol, b[1])
                rows.writerow([*kinds, f"{np.mean(of):.4f}", f"{np.log(of).std() + 0.005:.4f}", len(of)])
    print(OUT)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
