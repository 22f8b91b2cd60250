"""How far apart atoms are: those that are bonded, and those that are bonded to the same atom.

An atom's kind is its element and how many neighbours it shows, so that single and double bonds, rings and chains tell
themselves apart; what is across an angle knows the size of its ring besides. The tables are made by tools/lengths.py.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .elements import BY_SYMBOL
from .structures import Molecule

MOST_NEIGHBOURS = 4
LARGEST_RING = 6
Kind = tuple[int, int]
"""Atomic number and visible neighbours."""
Angle = tuple[Kind, Kind, Kind, int]
"""The atom in the middle, the two at the ends, and the size of the smallest ring through all three; 0: none of up to
LARGEST_RING."""


class Length(NamedTuple):
    """Of the distances between two kinds of atoms."""

    mean: float
    """A."""
    spread: float
    """Standard deviation of the distance's logarithm."""


class Lengths(NamedTuple):
    """Pairs of atoms of a molecule, and the distances that such pairs have."""

    pairs: Int[np.ndarray, "k 2"]
    mean: Float[np.ndarray, " k"]
    """A."""
    spread: Float[np.ndarray, " k"]
    """Standard deviation of the logarithm."""


def known_bonds(molecule: Molecule) -> Lengths:
    """The likely bonds of a molecule that are in the table."""
    bonds = molecule.bonds[molecule.likely]
    of, table = kinds(molecule.numbers, bonds), bond_lengths()
    return _listed([(i, j, table.get(ordered(of[i], of[j]))) for i, j in bonds.tolist()])


def known_angles(molecule: Molecule) -> Lengths:
    """The pairs of atoms likely bonded to the same one, and not to each other, that are in the table."""
    bonds = molecule.bonds[molecule.likely]
    of, table = kinds(molecule.numbers, bonds), angle_lengths()
    return _listed([(i, j, table.get(angle(of, i, c, j, ring))) for i, c, j, ring in angles(bonds)])


def _listed(found: Sequence[tuple[int, int, Length | None]]) -> Lengths:
    known = [(i, j, *length) for i, j, length in found if length]
    i, j, mean, spread = np.array(known, float).reshape(-1, 4).T
    return Lengths(np.stack([i, j], 1).astype(int), mean, spread)


def kinds(numbers: Int[np.ndarray, " n"], bonds: Int[np.ndarray, "m 2"]) -> list[Kind]:
    """The kind of each atom."""
    neighbours = np.minimum(np.bincount(bonds.ravel(), minlength=len(numbers)), MOST_NEIGHBOURS)
    return list(zip(numbers.tolist(), neighbours.tolist(), strict=True))


def ordered(a: Kind, b: Kind) -> tuple[Kind, Kind]:
    """Two kinds in the tables' order."""
    return (a, b) if a <= b else (b, a)


def angle(of: Sequence[Kind], i: int, middle: int, j: int, ring: int) -> Angle:
    """The kind of an angle between atoms of these kinds."""
    return of[middle], *ordered(of[i], of[j]), ring


def angles(bonds: Int[np.ndarray, "m 2"]) -> Iterator[tuple[int, int, int, int]]:
    """Atoms i < j bonded to the same one, but not to each other, that one between them, and the size of the ring."""
    around: dict[int, set[int]] = defaultdict(set)
    for i, j in bonds.tolist():
        around[i].add(j)
        around[j].add(i)
    for middle, ends in around.items():
        for i, j in combinations(sorted(ends), 2):
            if j not in around[i]:
                yield i, middle, j, _ring(around, i, middle, j)


def _ring(around: Mapping[int, set[int]], i: int, middle: int, j: int) -> int:
    """The size of the smallest ring through three atoms, 0 if there is none of up to LARGEST_RING."""
    front, seen = {i}, {i, middle}
    for size in range(3, LARGEST_RING + 1):
        front = {b for a in front for b in around[a]} - seen
        if j in front:
            return size
        seen |= front
    return 0


def rings(atoms: int, bonds: Int[np.ndarray, "m 2"]) -> list[int]:
    """The size of the smallest ring that each atom is in, 0: none of up to LARGEST_RING."""
    found = [0] * atoms
    for _, middle, _, size in angles(bonds):
        found[middle] = min(found[middle] or size, size or found[middle])
    return found


@cache
def bond_lengths() -> dict[tuple[Kind, Kind], Length]:
    """Of bonds."""
    return {ordered(a, b): length for (a, b), _, length in _table("bond_lengths.csv", "ab")}


@cache
def angle_lengths() -> dict[Angle, Length]:
    """Of what is across an angle."""
    return {(c, *ordered(a, b), ring): length for (a, c, b), ring, length in _table("angle_lengths.csv", "acb")}


def _table(name: str, atoms: str) -> Iterator[tuple[list[Kind], int, Length]]:
    for row in csv.DictReader((resources.files("afmol") / name).read_text().splitlines()):
        of = [(BY_SYMBOL[row[f"element {k}"]].number, int(row[f"neighbours {k}"])) for k in atoms]
        yield of, int(row.get("ring", 0)), Length(float(row["mean"]), float(row["spread"]))
