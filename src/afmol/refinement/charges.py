"""Partial charges from a graph: each bond moves charge from the one atom to the other, by their kinds.

The form of MMFF94's charges (Halgren, J. Comput. Chem. 17, 616 (1996)), whose atom types an image does not show: a kind
is an element and how many neighbours it shows. The table is made by tools/bond_charges.py.
"""

import csv
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float

from ..elements import BY_SYMBOL
from ..lengths import Kind, kinds, ordered
from ..structures import Molecule


def bond_charges(molecule: Molecule) -> Float[np.ndarray, " n"]:
    """Charges of all atoms, e; bonds between kinds that the table lacks move none."""
    of, moved, charges = kinds(molecule.numbers, molecule.bonds), _table(), np.zeros(len(molecule))
    for i, j in molecule.bonds.tolist():
        a, b = ordered(of[i], of[j])
        charge = moved.get((a, b), 0.0) * (1 if a == of[i] else -1)
        charges[i] += charge
        charges[j] -= charge
    return charges


@cache
def _table() -> dict[tuple[Kind, Kind], float]:
    rows = csv.DictReader((resources.files("afmol.refinement") / "bond_charges.csv").read_text().splitlines())
    kind = lambda row, k: (BY_SYMBOL[row[f"element {k}"]].number, int(row[f"neighbours {k}"]))  # noqa: E731
    return {(kind(row, "a"), kind(row, "b")): float(row["charge of a"]) for row in rows}
