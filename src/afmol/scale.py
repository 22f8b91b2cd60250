"""Whether a stack has the size that it is said to have: bonds have the lengths that they have, networks learn it.

    equation                                        variable   shape
    x_b = ln(|r_i - r_j| / L_ij)                    x          bonds     L: mean length of such bonds (bond_lengths.csv)
    w_b = 1 / (s_ij^2 + e^2)                        weight     bonds     s: spread of ln L, e: error of ln |r_i - r_j|
    ln ratio = weighted median of x                                  or, with SAID, between that and ln stretch

Bonds with hydrogen are left out: where an image shows none, networks put it where it should be. From true positions of
molecules not used for the table the ratio is right to 0.4 % (standard deviation, with hydrogen, LOG.md, 2026-11-25).
Some networks say a ratio of their own (`Molecule.stretch`, by `model.sizes`), which then counts more.
"""

from dataclasses import replace
from math import exp, log
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .lengths import known_bonds
from .structures import Molecule

LENGTH_ERROR = 0.06
"""Error of a predicted bond's length, A (models' cards: 0.05 A in the plane, 0.06 in height)."""
SAID = 0.8
"""The part of what the network says: with 0.5, 0.8 and 1 the logarithm of the size of 135 flat validation molecules is
off by 0.0110, 0.0097, 0.0095 (nominal, root mean square) and 0.0240, 0.0237, 0.0241 (as measured; LOG.md)."""
LEAST_BONDS = 5
"""Fewer bonds say nothing of the scale."""


class ScaleRatio(NamedTuple):
    """How much larger the image is stated to be than it is."""

    ratio: float
    error: float
    """Standard error of its logarithm, if the lengths' errors are independent."""


def scale_ratio(molecule: Molecule) -> ScaleRatio | None:
    """The ratio of a molecule's bond lengths, of probable bonds, to what such bonds are, and what the network says of
    the size, if it does; None where fewer than `LEAST_BONDS` bonds of known kinds are there."""
    bonds = known_bonds(molecule)
    pairs, mean, spread = (of[(molecule.numbers[bonds.pairs] > 1).all(1)] for of in bonds)
    if len(pairs) < LEAST_BONDS:
        return None
    i, j = molecule.positions[pairs.T]
    x = np.log(np.linalg.norm(i - j, axis=1) / mean)
    weight = 1 / (spread**2 + (LENGTH_ERROR / mean) ** 2)
    ratio = _weighted_median(x, weight)
    if molecule.stretch is not None:
        ratio = (1 - SAID) * ratio + SAID * log(molecule.stretch)
    return ScaleRatio(exp(ratio), float(weight.sum() ** -0.5))


def sized(molecule: Molecule) -> Molecule:
    """The molecule with that ratio, where there is one, as its `stretch`: known whatever happens to its bonds then."""
    found = scale_ratio(molecule)
    return molecule if found is None else replace(molecule, stretch=found.ratio)


def _weighted_median(x: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> float:
    """Where half of the weight lies below, between two values of the sorted x."""
    order = np.argsort(x)
    middle = np.cumsum(weight[order]) - weight[order] / 2
    return float(np.interp(weight.sum() / 2, middle, x[order]))
