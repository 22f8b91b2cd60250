"""Halogens are flatter along their bond than across it: a sphere that is moved towards the neighbour by the difference
of the two radii ends where they do along the bond, and across it is as wide as before.

Measured bromodichlorobenzene is met better so, overlaps of electron densities do not ask for it (docs/simulator.md): it
is off unless asked for.
"""

import numpy as np
from jaxtyping import Float

from ..structures import Molecule

POLAR_FLATTENING = {9: 0.08, 17: 0.20, 35: 0.30, 53: 0.37}
"""Van der Waals radius across the bond to carbon less that along it, A (S. C. Nyburg and C. H. Faerman, Acta Cryst. B41
(1985) 274: F 1.38 and 1.30, Cl 1.78 and 1.58, Br 1.84 and 1.54, I 2.13 and 1.76)."""


def force_centres(molecule: Molecule, flattening: float) -> Float[np.ndarray, "n 3"]:
    """Where the forces on a probe come from, A: the nuclei, halogens of one bond moved along it towards the neighbour
    by so many times their `POLAR_FLATTENING`."""
    p = molecule.positions
    centres = p.copy()
    for i in np.flatnonzero(np.isin(molecule.numbers, list(POLAR_FLATTENING))) if flattening else ():
        mine = molecule.bonds[(molecule.bonds == i).any(1)]
        if len(mine) == 1:
            bond = p[int(mine.sum() - i)] - p[i]
            centres[i] += flattening * POLAR_FLATTENING[int(molecule.numbers[i])] * bond / np.linalg.norm(bond)
    return centres
