"""Whether a stack has the size that it is said to have: bonds have the lengths that they have, networks learn it.

    equation                                        variable   shape
    x_b = ln(|r_i - r_j| / L_ij)                    x          bonds     L: mean length of such bonds (bond_lengths.csv)
    w_b = 1 / (s_ij^2 + e^2)                        weight     bonds     s: spread of ln L, e: error of ln |r_i - r_j|
    ln ratio = weighted median of x                                  or the mean of that and ln stretch

An atom's kind is its element and how many neighbours it shows, so that single and double bonds, rings and chains tell
themselves apart. Bonds with hydrogen are left out: where an image shows none, networks put it where it should be. From
true positions of molecules not used for the table the ratio is right to 0.4 % (standard deviation, with hydrogen,
LOG.md, 2026-11-25). Some networks say a ratio of their own (`Molecule.stretch`, by `model.sizes`). The mean of the
two is taken: of nominal stacks it is nearer than either, of those as measured about as near (LOG.md, 2026-11-30).
"""

import csv
from functools import cache
from importlib import resources
from math import exp, log
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .elements import BY_SYMBOL
from .structures import Molecule

LENGTH_ERROR = 0.06
"""Error of a predicted bond's length, A (models' cards: 0.05 A in the plane, 0.06 in height)."""
MOST_NEIGHBOURS = 4
LEAST_BONDS = 5
"""Fewer bonds say nothing of the scale."""
Kind = tuple[int, int]
"""Atomic number and visible neighbours."""


class Length(NamedTuple):
    """Of the bonds between two kinds of atoms."""

    mean: float
    """A."""
    spread: float
    """Standard deviation of the length's logarithm."""


class ScaleRatio(NamedTuple):
    """How much larger the image is stated to be than it is."""

    ratio: float
    error: float
    """Standard error of its logarithm, if the lengths' errors are independent."""
    bonds: int


def scale_ratio(molecule: Molecule) -> ScaleRatio | None:
    """The ratio of a molecule's bond lengths, of probable bonds, to what such bonds are, and what the network says of
    the size, if it does; None where fewer than `LEAST_BONDS` bonds of known kinds are there."""
    bonds = molecule.bonds[molecule.likely]
    neighbours = np.minimum(np.bincount(bonds.ravel(), minlength=len(molecule)), MOST_NEIGHBOURS)
    kinds = [(int(z), int(n)) for z, n in zip(molecule.numbers, neighbours, strict=True)]
    known = [(i, j, length) for i, j in bonds.tolist() if (length := bond_lengths().get(pair(kinds[i], kinds[j])))]
    if len(known) < LEAST_BONDS:
        return None
    i, j = np.array([k[:2] for k in known]).T
    mean, spread = np.array([k[2] for k in known]).T
    x = np.log(np.linalg.norm(molecule.positions[i] - molecule.positions[j], axis=1) / mean)
    weight = 1 / (spread**2 + (LENGTH_ERROR / mean) ** 2)
    ratio = _weighted_median(x, weight)
    if molecule.stretch is not None:
        ratio = (ratio + log(molecule.stretch)) / 2
    return ScaleRatio(exp(ratio), float(weight.sum() ** -0.5), len(known))


def pair(a: Kind, b: Kind) -> tuple[Kind, Kind]:
    """Two kinds in the table's order."""
    return (a, b) if a <= b else (b, a)


@cache
def bond_lengths() -> dict[tuple[Kind, Kind], Length]:
    """The table, made by tools/bond_lengths.py, of bonds between heavy atoms."""
    text = (resources.files("afmol") / "bond_lengths.csv").read_text()
    table = {}
    for row in csv.DictReader(text.splitlines()):
        a, b = ((BY_SYMBOL[row[f"element {k}"]].number, int(row[f"neighbours {k}"])) for k in "ab")
        table[pair(a, b)] = Length(float(row["mean"]), float(row["spread"]))
    return table


def _weighted_median(x: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> float:
    """Where half of the weight lies below, between two values of the sorted x."""
    order = np.argsort(x)
    middle = np.cumsum(weight[order]) - weight[order] / 2
    return float(np.interp(weight.sum() / 2, middle, x[order]))
