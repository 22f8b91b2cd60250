"""Makes src/afmol/bond_lengths.csv and angle_lengths.csv: mean and spread of the distances between kinds of visible
atoms that are bonded, or bonded to the same one.

usage: python tools/lengths.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms as deep as models look count, and bonds between them.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from visible import visible

from afmol.elements import BY_NUMBER
from afmol.lengths import Angle, Kind, angle, angles, kinds, ordered

DEPTH = 0.8
LEAST = 20
"""Distances of a kind, for an entry."""
OUT = Path(__file__).parent.parent / "src" / "afmol"


def main(source: str, count: int = 20000) -> None:
    """Both tables."""
    lengths: dict[tuple[Kind, Kind], list[float]] = defaultdict(list)
    across: dict[Angle, list[float]] = defaultdict(list)
    for m in visible(source, count, DEPTH):
        of = kinds(m.numbers, m.bonds)
        for i, j in m.bonds.tolist():
            lengths[ordered(of[i], of[j])].append(float(np.linalg.norm(m.positions[i] - m.positions[j])))
        for i, c, j, ring in angles(m.bonds):
            across[angle(of, i, c, j, ring)].append(float(np.linalg.norm(m.positions[i] - m.positions[j])))
    write(OUT / "bond_lengths.csv", "ab", [], {(a, b): of for (a, b), of in lengths.items()})
    write(OUT / "angle_lengths.csv", "cab", ["ring"], across)


def write(path: Path, atoms: str, more: list[str], lengths: Mapping[Sequence, Sequence[float]]) -> None:
    """A table: kinds of atoms, what else there is to tell, mean, spread and count."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        what = [f"{name} {k}" for k in atoms for name in ("element", "neighbours")]
        rows.writerow([*what, *more, "mean", "spread", "pairs"])
        for key, of in sorted(lengths.items()):
            if len(of) >= LEAST:
                told = [x for z, n in key[: len(atoms)] for x in (BY_NUMBER[z].symbol, n)]
                mean, spread = np.mean(of), np.log(of).std() + 0.005
                rows.writerow([*told, *key[len(atoms) :], f"{mean:.4f}", f"{spread:.4f}", len(of)])
    print(path)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
