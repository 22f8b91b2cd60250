"""Force of a molecule on the probe and its Hessian: Lennard-Jones plus point charges, evaluated directly, no grid.

    equation                                             variable           shape
    E(p) = sum_i C12_i / r_i^12 - C6_i / r_i^6           lj                 4 atom
         + sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|   q (k q_i Q_t)      3 atom; z_t: charge_z (3,)
    F = -dE/dp                                           FX, FY, FZ         lane
    H = d2E/dp2                                          HXX, HXY, ...      lane

LANES neighbouring pixels are worked on at once, so that LLVM turns each inner loop into SIMD instructions. All their
numbers lie in one flat array, field by field, because LLVM must see that fields do not overlap. Literals are
avoided: a Python float or int would silently promote float32 arithmetic to float64.

Source: Hapala et al., Phys. Rev. B 90, 085421 (2014); mixing rules and constants of ppafm.
"""

import numpy as np
from jaxtyping import Float
from numba import njit

COULOMB = 14.399644
"""e^2 / (4 pi epsilon_0) in eV A."""
EV_PER_SQUARE_ANGSTROM = 16.0217662
"""1 eV/A^2 in N/m."""
LANES = 16
"""Pixels at once: the float32 numbers in the widest SIMD register."""
TIP_CHARGES = 3
"""Charges that a tip has in the kernel; a tip with fewer is filled up with zeros."""

# Start of each field in the flat array: probe relative to the tip's end, force, Hessian, the slice above, pixel
UX, UY, UZ, FX, FY, FZ, HXX, HXY, HXZ, HYY, HYZ, HZZ, VX, VY, VZ, PIXEL, END = (LANES * k for k in range(17))


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


@njit(nogil=True, fastmath=True, error_model="numpy")
def force_and_hessian(w, anchor_x, anchor_z, x, y, z, lj, q, charge_z, three):
    """Fill the fields F (eV/A) and H (eV/A^2) of `w` for the probes at its fields U.

    One division serves the four inverse squares of a pair, since division is the slowest thing here.
    """
    one = three / three
    for lane in range(LANES):
        zero = one - one
        w[FX + lane] = zero
        w[FY + lane] = zero
        w[FZ + lane] = zero
        w[HXX + lane] = zero
        w[HXY + lane] = zero
        w[HXZ + lane] = zero
        w[HYY + lane] = zero
        w[HYZ + lane] = zero
        w[HZZ + lane] = zero
    z0, z1, z2 = charge_z[0], charge_z[1], charge_z[2]
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        c12, c6, h12, h6 = lj[0, i], lj[1, i], lj[2, i], lj[3, i]
        q0, q1, q2 = q[0, i], q[1, i], q[2, i]
        for lane in range(LANES):
            dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
            e0, e1, e2 = dz + z0, dz + z1, dz + z2
            r2 = dx * dx + dy * dy
            s, s0, s1, s2 = r2 + dz * dz, r2 + e0 * e0, r2 + e1 * e1, r2 + e2 * e2
            pair, pair12 = s * s0, s1 * s2
            inverse = one / (pair * pair12)
            inverse_pair, inverse_pair12 = inverse * pair12, inverse * pair
            i2, j0, j1, j2 = inverse_pair * s0, inverse_pair * s, inverse_pair12 * s2, inverse_pair12 * s1
            # F = a d, H = b d d^T - a, summed over the four centres, which differ in z alone
            i6 = i2 * i2 * i2
            i8 = i6 * i2
            a = (c12 * i6 - c6) * i8
            b = (h12 * i6 - h6) * i8 * i2
            fz, bz = a * dz, b * dz
            hzz = bz * dz
            t = q0 * j0 * np.sqrt(j0)
            u = three * t * j0
            a, b, fz, u = a + t, b + u, fz + t * e0, u * e0
            bz, hzz = bz + u, hzz + u * e0
            t = q1 * j1 * np.sqrt(j1)
            u = three * t * j1
            a, b, fz, u = a + t, b + u, fz + t * e1, u * e1
            bz, hzz = bz + u, hzz + u * e1
            t = q2 * j2 * np.sqrt(j2)
            u = three * t * j2
            a, b, fz, u = a + t, b + u, fz + t * e2, u * e2
            bz, hzz = bz + u, hzz + u * e2
            w[FX + lane] += a * dx
            w[FY + lane] += a * dy
            w[FZ + lane] += fz
            w[HXX + lane] += b * dx * dx - a
            w[HXY + lane] += b * dx * dy
            w[HXZ + lane] += bz * dx
            w[HYY + lane] += b * dy * dy - a
            w[HYZ + lane] += bz * dy
            w[HZZ + lane] += hzz - a
