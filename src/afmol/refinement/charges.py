"""Partial charges from a graph: those that MMFF94 gives atoms of the same surroundings, and how they spread.

MMFF94 (Halgren, J. Comput. Chem. 17, 616 (1996)) has a charge for each pair of atom types, and types are told by
surroundings: a nitrogen of three neighbours has 0.0 e in a ring of five and -0.9 e outside. So charges are looked up by
what lies around an atom, as far as training molecules have it often enough. The table is made by tools/charges.py.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..elements import BY_NUMBER
from ..lengths import kinds, rings
from ..structures import Molecule

LEAST_SPREAD = 0.05
"""e, in quadrature: no charges are known better, since those of other methods differ (docs/simulator.md)."""


class Charges(NamedTuple):
    """Of atoms whose surroundings are known."""

    mean: Float[np.ndarray, " n"]
    """e."""
    spread: Float[np.ndarray, " n"]
    """Standard deviation, e."""


def expected_charges(molecule: Molecule) -> Charges:
    """Of all atoms of a molecule, by its likely bonds."""
    bonds = molecule.bonds[molecule.likely]
    mean, spread = _expected(tuple(molecule.numbers.tolist()), tuple(map(tuple, bonds.tolist())))
    return Charges(mean.copy(), spread.copy())


@lru_cache(4096)
def _expected(numbers: tuple[int, ...], bonds: tuple[tuple[int, ...], ...]) -> Charges:
    table, found = _table(), []
    for around in surroundings(np.array(numbers), np.array(bonds, int).reshape(-1, 2)):
        found.append(next((table[s] for s in reversed(around) if s in table), (0.0, 0.0)))
    mean, spread = np.array(found, float).reshape(-1, 2).T
    return Charges(mean, np.hypot(spread, LEAST_SPREAD))


def surroundings(numbers: Int[np.ndarray, " n"], bonds: Int[np.ndarray, "m 2"]) -> list[Sequence[str]]:
    """What lies around each atom, told more and more exactly: its element and how many neighbours it has; with its
    smallest ring (0: none of up to six) and its neighbours; with their rings and their own neighbours too."""
    near: dict[int, list[int]] = defaultdict(list)
    for i, j in bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    symbols = [BY_NUMBER[z].symbol for z in numbers.tolist()]
    kind = [f"{symbol}{n}" for symbol, (_, n) in zip(symbols, kinds(numbers, bonds), strict=True)]
    own = [f"{k}/{ring}" for k, ring in zip(kind, rings(len(numbers), bonds), strict=True)]
    found: list[Sequence[str]] = []
    for i in range(len(symbols)):
        close = sorted(kind[j] for j in near[i])
        wide = sorted(f"{own[j]}-{''.join(sorted(symbols[k] for k in near[j] if k != i))}" for j in near[i])
        found.append((kind[i], " ".join([own[i], *close]), " ".join([own[i], *wide])))
    return found


@cache
def _table() -> dict[str, tuple[float, float]]:
    rows = csv.DictReader((resources.files("afmol.refinement") / "charges.csv").read_text().splitlines())
    return {row["surroundings"]: (float(row["mean"]), float(row["spread"])) for row in rows}
