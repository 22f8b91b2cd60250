"""Makes src/afmol/refinement/environments.csv: how many visible atoms have which neighbours.

usage: python tools/environments.py molecules/train.npz [MOLECULES]

Molecules are laid down as they are for training; atoms to 1.5 A count, as deep as models look, and bonds between them.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from visible import visible

from afmol.elements import BY_NUMBER
from afmol.lengths import kinds
from afmol.refinement.environments import Environment, neighbours

DEPTH = 1.5
OUT = Path(__file__).parent.parent / "src" / "afmol" / "refinement" / "environments.csv"


def main(source: str, count: int = 60000) -> None:
    """The table, half of it flat molecules."""
    found: Counter[Environment] = Counter()
    for m in visible(source, count, DEPTH):
        of, near = kinds(m.numbers, m.bonds), neighbours(len(m), m.bonds)
        found.update((z, tuple(sorted(of[j] for j in near[i]))) for i, (z, _) in enumerate(of))
    with OUT.open("w", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerow(["element", "neighbours", "atoms"])
        for (z, around), atoms in sorted(found.items()):
            told = " ".join(f"{BY_NUMBER[other].symbol}{n}" for other, n in around)
            written.writerow([BY_NUMBER[z].symbol, told, atoms])
    print(f"{OUT}: {len(found)} environments of {found.total()} atoms")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
