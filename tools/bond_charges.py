"""Makes src/afmol/refinement/bond_charges.csv: the charge that a bond moves between kinds of visible atoms, by least
squares on MMFF94's charges.

usage: python tools/bond_charges.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms to 1.5 A count, as deep as models look, and bonds between them.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.linalg import lsqr
from visible import visible

from afmol.elements import BY_NUMBER
from afmol.lengths import Kind, kinds, ordered

DEPTH = 1.5
LEAST = 20
"""Bonds of a kind, for an entry."""
OUT = Path(__file__).parent.parent / "src" / "afmol" / "refinement" / "bond_charges.csv"


def main(source: str, count: int = 20000) -> None:
    """The table, and what it leaves of the charges."""
    place: dict[tuple[Kind, Kind], int] = {}
    seen_bonds: Counter[tuple[Kind, Kind]] = Counter()
    entries, charges = [], []
    for m in visible(source, count, DEPTH):
        assert m.charges is not None
        of = kinds(m.numbers, m.bonds)
        for i, j in m.bonds.tolist():
            if of[i] != of[j]:
                pair = ordered(of[i], of[j])
                first, second = (i, j) if pair[0] == of[i] else (j, i)
                column = place.setdefault(pair, len(place))
                entries += [(1.0, len(charges) + first, column), (-1.0, len(charges) + second, column)]
                seen_bonds[pair] += 1
        charges += np.asarray(m.charges).tolist()
    values, rows, columns = np.array(entries).T
    table = coo_array((values, (rows.astype(int), columns.astype(int))), shape=(len(charges), len(place))).tocsr()
    moved = lsqr(table, np.array(charges), damp=1.0)[0]
    print(f"charges {np.std(charges):.3f} e, less those of the table {np.std(charges - table @ moved):.3f} e")
    with OUT.open("w", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerow(["element a", "neighbours a", "element b", "neighbours b", "charge of a", "bonds"])
        for pair, column in sorted(place.items()):
            if seen_bonds[pair] >= LEAST:
                told = [x for z, n in pair for x in (BY_NUMBER[z].symbol, n)]
                written.writerow([*told, f"{moved[column]:.4f}", seen_bonds[pair]])
    print(OUT)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
