"""Point charges of the molecule and of the tip, which the force models share.

equation                                          variable           shape
E(p) = sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|  charge: k q_i Q_t  atom t
                                                  charge_z: z_t      molecule t
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from .force import kernel

COULOMB = 14.399644
"""e^2 / (4 pi epsilon_0) in eV A."""
TIP_CHARGES = 3
"""Charges that a tip may have."""


def coulomb_terms(charges: Float[Any, " atom"], tip_charges: Float[Any, "#atom t"]) -> Float[Any, "atom t"]:
    """k q_i Q_t (eV A) of each atom and each charge of the tip, or of that atom's tip, from charges in e.

    Arrays are numpy's or torch's, and so is the result.
    """
    return COULOMB * charges[:, None] * tip_charges


def centres(d: Float[Any, "point atom 3"], charge_z: Float[Any, "point t"]) -> Float[Any, "point atom c 3"]:
    """r: from the atoms to the probe (c = 0), given, and to the charges of the tip, A; torch."""
    from torch.nn.functional import pad

    return d[:, :, None] + pad(pad(charge_z, (1, 0))[..., None], (2, 0))[:, None]


@kernel
def with_charge(q, j, e, a, b, fz, bz, hzz, three):
    """An atom's a, b, a r_z, b r_z and b r_z^2 with those of a charge: q = k q Q, j = 1 / r^2, e = r_z."""
    t = q * j * np.sqrt(j)
    u = three * t * j
    a, b, fz, u = a + t, b + u, fz + t * e, u * e
    return a, b, fz, bz + u, hzz + u * e
