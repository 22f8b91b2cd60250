"""Atoms that lie in one plane: three around the one in the middle, and those on either side of a bond.

In the plane an image shows places to a few hundredths of an A, heights three times worse, and worst of all of what lies
deep. But rings are flat: what is known of one atom's height tells those of the others. Kinds of atoms that are not flat
in at least FLAT of the training molecules are free. The table is made by tools/planes.py.
"""

import csv
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..elements import BY_SYMBOL
from ..lengths import Kind, kinds, rings
from ..structures import Molecule

FLAT, CLOSE = 0.93, 0.1
"""Share of all that are no farther from the plane, A."""
SPREADS = {1: 0.05, 2: 0.07}
"""Around one atom, and along a bond of two, A: molecules on a surface bend."""
NAMED = re.compile(r"([A-Z][a-z]?)(\d)/(\d)")
"""How the table writes an atom."""
Ringed = tuple[Kind, int]
"""The kind of an atom, and its smallest ring."""


class Planes(NamedTuple):
    """Four atoms each."""

    atoms: Int[np.ndarray, "k 4"]
    spread: Float[np.ndarray, " k"]
    """How far the last is from the plane of the others, A."""


def known_planes(molecule: Molecule) -> Planes:
    """By the likely bonds of a molecule."""
    bonds = molecule.bonds[molecule.likely]
    atoms, spread = _known(tuple(molecule.numbers.tolist()), tuple(map(tuple, bonds.tolist())))
    return Planes(np.array(atoms, int).reshape(-1, 4), np.array(spread, float))


@lru_cache(4096)
def _known(numbers: tuple[int, ...], bonds: tuple[tuple[int, ...], ...]) -> tuple[list[tuple[int, ...]], list[float]]:
    found = quadruples(np.array(numbers), np.array(bonds, int).reshape(-1, 2))
    flat = [(atoms, SPREADS[len(of)]) for of, atoms in found if of in _table()]
    return [atoms for atoms, _ in flat], [spread for _, spread in flat]


def quadruples(
    numbers: Int[np.ndarray, " n"], bonds: Int[np.ndarray, "m 2"]
) -> Iterator[tuple[tuple[Ringed, ...], tuple[int, int, int, int]]]:
    """An atom that three are bonded to, the last; two that are bonded, in the middle, with one at either end (what else
    is there follows from the plane of each); and of which kinds the one, the two are."""
    near: list[list[int]] = [[] for _ in numbers]
    for i, j in bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    of = list(zip(kinds(numbers, bonds), rings(len(numbers), bonds), strict=True))
    for i, around in enumerate(near):
        if len(around) == 3:
            yield (of[i],), (around[0], around[1], around[2], i)
    for i, j in bonds.tolist():
        ends = next(((a, b) for a in near[i] for b in near[j] if len({a, b, i, j}) == 4), None)
        if ends:
            yield tuple(sorted((of[i], of[j]))), (ends[0], i, j, ends[1])


def heights(
    positions: Float[np.ndarray, "n 3"], atoms: Int[np.ndarray, "k 4"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k 4 3"]]:
    """Of the last of four atoms over the plane of the others, and how it changes with each of the four."""
    a, b, c, d = (positions[atoms[:, k]] for k in range(4))
    normal = np.cross(b - a, c - a)
    square = np.maximum(np.square(normal).sum(1, keepdims=True), 1e-6)
    unit = normal / np.sqrt(square)
    # the place in the plane that is closest to d, by its shares of a, b and c: as much of it as these lift it
    share_b = (np.cross(d - a, c - a) * normal).sum(1, keepdims=True) / square
    share_c = (np.cross(b - a, d - a) * normal).sum(1, keepdims=True) / square
    shares = np.stack([share_b + share_c - 1, -share_b, -share_c, np.ones_like(share_b)], 1)
    return ((d - a) * unit).sum(1), shares * unit[:, None]


@cache
def _table() -> frozenset[tuple[Ringed, ...]]:
    rows = csv.DictReader((resources.files("afmol.refinement") / "planes.csv").read_text().splitlines())
    return frozenset(
        tuple(((BY_SYMBOL[symbol].number, int(n)), int(ring)) for symbol, n, ring in NAMED.findall(row["atoms"]))
        for row in rows
    )
