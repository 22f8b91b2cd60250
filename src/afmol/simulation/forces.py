"""The force model: Lennard-Jones plus point charges. Evaluated directly, pixel by pixel, in probe.py; no grid.

    equation                                             variable           shape
    E(p) = sum_i C12_i / r_i^12 - C6_i / r_i^6           lj                 4 atom
         + sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|   q (k q_i Q_t)      3 atom; z_t: charge_z (3,)

Source: Hapala et al., Phys. Rev. B 90, 085421 (2014); mixing rules and constants of ppafm.
"""

import numpy as np
from jaxtyping import Float

COULOMB = 14.399644
"""e^2 / (4 pi epsilon_0) in eV A."""
EV_PER_SQUARE_ANGSTROM = 16.0217662
"""1 eV/A^2 in N/m."""
TIP_CHARGES = 3
"""Charges that a tip has in the kernel; a tip with fewer is filled up with zeros."""


def lennard_jones_terms(
    radius: Float[np.ndarray, " n"], depth: Float[np.ndarray, " n"], probe_radius: float, probe_depth: float
) -> Float[np.ndarray, "4 n"]:
    """Coefficients of F and H for each atom: 12 C12, 6 C6, 168 C12, 48 C6 (eV, A).

    C6 = 2 eps R^6, C12 = eps R^12 with R = R_probe + R_i, eps = sqrt(eps_probe eps_i).
    """
    r6 = (radius + probe_radius) ** 6
    eps = np.sqrt(depth * probe_depth)
    return np.stack([12 * eps * r6**2, 12 * eps * r6, 168 * eps * r6**2, 96 * eps * r6])


def coulomb_terms(
    charges: Float[np.ndarray, " n"], tip_charges: tuple[float, ...], offsets: tuple[float, ...]
) -> tuple[Float[np.ndarray, "3 n"], Float[np.ndarray, " 3"]]:
    """k q_i Q_t (eV A) and the offsets of the tip's charges (A), filled up to TIP_CHARGES."""
    spare = TIP_CHARGES - len(tip_charges)
    tip = np.array([*tip_charges, *[0.0] * spare])
    return COULOMB * tip[:, None] * charges[None], np.array([*offsets, *[0.0] * spare])
