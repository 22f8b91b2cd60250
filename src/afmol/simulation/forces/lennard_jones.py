"""The force model: Lennard-Jones plus point charges. Evaluated directly, pixel by pixel; no grid.

    equation                                             variable           shape
    E(p) = sum_i C12_i / r_i^12 - C6_i / r_i^6           repulsion: 12 C12  atom
                                                         attraction: 6 C6   atom
         + sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|   charge: k q_i Q_t  atom t; z_t: charge_z (t,)

Source: Hapala et al., Phys. Rev. B 90, 085421 (2014); mixing rules and constants of ppafm.
Arrays are numpy's or torch's, and so are the results.
"""

from typing import Any

from jaxtyping import Float

COULOMB = 14.399644
"""e^2 / (4 pi epsilon_0) in eV A."""
EV_PER_SQUARE_ANGSTROM = 16.0217662
"""1 eV/A^2 in N/m."""
SPRING_UNITS = (EV_PER_SQUARE_ANGSTROM, EV_PER_SQUARE_ANGSTROM, 1.0)
"""What a tip's stiffness, radial stiffness (N/m) and bond length (A) are divided by to give the springs of a model."""
TIP_CHARGES = 3
"""Charges that a tip may have."""


def lennard_jones_terms(
    radius: Float[Any, " atom"], depth: Float[Any, " atom"], probe_radius: Any, probe_depth: Any
) -> tuple[Float[Any, " atom"], Float[Any, " atom"]]:
    """12 C12 (eV A^12) and 6 C6 (eV A^6) between the probe and each atom, from radii (A) and depths (eV).

    C6 = 2 eps R^6, C12 = eps R^12 with R = R_probe + R_i, eps = sqrt(eps_probe eps_i).
    """
    r6 = (radius + probe_radius) ** 6
    eps = (depth * probe_depth) ** 0.5
    return 12 * eps * r6**2, 12 * eps * r6


def coulomb_terms(charges: Float[Any, " atom"], tip_charges: Float[Any, "#atom t"]) -> Float[Any, "atom t"]:
    """k q_i Q_t (eV A) of each atom and each charge of the tip, or of that atom's tip, from charges in e."""
    return COULOMB * charges[:, None] * tip_charges
