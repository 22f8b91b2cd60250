"""Hydrogens that the network may have missed: candidates in the plane of the heavy atoms, wherever one has room.

bonds to heavy atoms    hydrogens
1                       two, as of NH2
2                       one, between the others' backs
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ..hydrogens import arrangements, with_hydrogens
from ..structures import Molecule

CONFIDENCE = 0.01
"""How often there is one at such a place (300 flat validation molecules as measured: 1 of 100)."""
APART = 0.6
"""Closer to another candidate it is none, A, seen from above."""


def with_missed(candidates: Molecule, there: Bool[np.ndarray, " n"], numbers: Int[np.ndarray, " n"]) -> Molecule:
    """The candidates and, at their end, hydrogens that those in the reading may have besides.

    Args:
        candidates: all of them, with confidence and probabilities.
        there: which are read, as these atomic numbers.
    """
    heavy = np.flatnonzero(there & (numbers != 1))
    as_nitrogen = replace(candidates.taken(heavy), numbers=np.full(len(heavy), 7)).with_likely_bonds()
    added: dict[int, Float[np.ndarray, "_ 3"]] = {}
    for i, options in arrangements(as_nitrogen).items():
        most = max(options, key=len)
        free = [
            np.linalg.norm(candidates.positions[:, :2] - hydrogen[:2], axis=1).min() > APART
            for hydrogen in as_nitrogen.positions[i] + most
        ]
        if any(free):
            added[int(heavy[i])] = most[free]
    longer = with_hydrogens(replace(candidates, numbers=np.full(len(candidates), 7)), added)
    more = len(longer) - len(candidates)
    assert candidates.confidence is not None
    return replace(
        longer,
        numbers=np.concatenate([candidates.numbers, np.ones(more, int)]),
        confidence=np.concatenate([candidates.confidence, np.full(more, CONFIDENCE)]),
    )
