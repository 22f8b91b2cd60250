"""Makes src/afmol/refinement/charges.csv: MMFF94's charges of visible atoms by what lies around them.

usage: python tools/charges.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms to 1.5 A count, as deep as models look, and bonds between them.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from visible import visible

from afmol.refinement.charges import surroundings

DEPTH = 1.5
LEAST = 20
"""Atoms in the same surroundings, for an entry."""
OUT = Path(__file__).parent.parent / "src" / "afmol" / "refinement" / "charges.csv"


def main(source: str, count: int = 40000) -> None:
    """The table, half of it of flat molecules."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for m in visible(source, count, DEPTH):
        assert m.charges is not None
        for charge, around in zip(m.charges.tolist(), surroundings(m.numbers, m.bonds), strict=True):
            for told in set(around):  # of an atom without neighbours two are alike
                found[told].append(charge)
    with OUT.open("w", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerow(["surroundings", "mean", "spread", "atoms"])
        for told, charges in sorted(found.items()):
            if len(charges) >= LEAST:
                written.writerow([told, f"{np.mean(charges):.3f}", f"{np.std(charges):.3f}", len(charges)])
    print(f"{OUT}: {sum(len(c) >= LEAST for c in found.values())} surroundings")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
