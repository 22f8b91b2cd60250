"""Makes src/afmol/refinement/planes.csv: atoms whose neighbours lie in one plane with them, and bonds of which all that
is bonded to either end does.

usage: python tools/planes.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms to 1.5 A count, as deep as models look, and bonds between them.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from visible import visible

from afmol.elements import BY_NUMBER
from afmol.refinement.planes import CLOSE, FLAT, Ringed, heights, quadruples

DEPTH = 1.5
LEAST = 50
"""For an entry."""
OUT = Path(__file__).parent.parent / "src" / "afmol" / "refinement" / "planes.csv"


def main(source: str, count: int = 20000) -> None:
    """The table, half of it of flat molecules."""
    found: defaultdict[tuple[Ringed, ...], list[float]] = defaultdict(list)
    for m in visible(source, count, DEPTH):
        four = list(quadruples(m.numbers, m.bonds))
        far, _ = heights(m.positions, np.array([atoms for _, atoms in four], int).reshape(-1, 4))
        for (kinds, _), height in zip(four, far.tolist(), strict=True):
            found[kinds].append(abs(height))
    with OUT.open("w", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerow(["atoms", "flat", "all"])
        for kinds, far in sorted(found.items()):
            flat = np.mean(np.array(far) < CLOSE)
            if len(far) >= LEAST and flat >= FLAT:
                told = " ".join(f"{BY_NUMBER[z].symbol}{n}/{ring}" for (z, n), ring in kinds)
                written.writerow([told, f"{flat:.3f}", len(far)])
    print(OUT)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
