"""Exponential repulsion, damped dispersion and point charges: what the overlap of electron densities comes to.

    equation                                             variable           shape
    E(p) = sum_i a_i exp(-k_i (r_i - 3 A))               height: a_i (eV)   atom
                                                         decay: k_i (1/A)   atom
         - sum_i C6_i / (r_i^6 + R_i^6)                  attraction: 6 C6   atom
                                                         damping: R^6       atom
         + sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|   charge: k q_i Q_t  atom t; z_t: charge_z (t,)

Pauli repulsion as the full-density-based model has it, A int rho_tip^B rho_molecule^B (Ellner et al., ACS Nano 13, 786
(2019)), falls off exponentially around each atom; a and k are fitted to that integral of PBE densities with an oxygen
of CO as the probe, C6 and R to D3(BJ) dispersion of the CO's two atoms (tools/fit_exponentials.py). Lennard-Jones'
r^-12 is steeper close by, and makes Br and I too bright.

    theta             v . dF/dtheta, F = A r and H = B r r^T - A summed over the centres, m = r . v
    position          B r m - A v
    a                 (k e / r) m                          e = exp(-k (r - 3))
    k                 (a e / r) (1 - k (r - 3)) m
    6 C6              -(r^4 / D^2) m                       D = r^6 + R^6
    R^6               (2 6 C6 r^4 / D^3) m
    k q_i Q_t, z_t    as in lennard_jones.py

The kernels take no exponential in float32: a Taylor series of x / 32, squared five times. A single charge, at the probe
itself, costs next to nothing: its distance is that of the probe.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numba import types
from numba.extending import overload

from ...elements import BY_SYMBOL
from .coulomb import TIP_CHARGES, centres, coulomb_terms, with_charge
from .force import FX, LANES, PIXEL, UX, UY, UZ, VX, VY, VZ, ForceModel, add_pair, kernel

PARAMETERS = ("pauli_height", "pauli_decay", "c6", "c6_radius")
"""a (eV), k (1/A), C6 (eV A^6) and R (A)."""
STANDARD_DISTANCE = 2.62
"""Closest approach of the unrelaxed probe above a topmost carbon, A: 0.35 A below that of Lennard-Jones, where images
show as much."""
CUT = 20.0
"""exp(-x) is taken as exp(-20) from there on: 2e-9 of a repulsion of some meV."""

PAULI_12 = {
    "H": (0.000648, 3.915),
    "C": (0.005292, 4.588),
    "N": (0.003756, 4.289),
    "O": (0.002172, 4.799),
    "F": (0.001752, 4.277),
    "Si": (0.03531, 3.606),
    "P": (0.02580, 3.955),
    "S": (0.016620, 4.488),
    "Cl": (0.011964, 4.596),
    "Br": (0.024432, 4.373),
    "I": (0.057468, 3.866),
}
"""a (eV) and k (1/A) of each element for B = 1.2, A = 12."""
PAULI_10 = {
    "H": (0.005958, 3.267),
    "C": (0.032868, 3.805),
    "N": (0.026982, 3.424),
    "O": (0.019080, 3.656),
    "F": (0.014760, 3.403),
    "Si": (0.17056, 2.968),
    "P": (0.13427, 3.237),
    "S": (0.097434, 3.621),
    "Cl": (0.076176, 3.673),
    "Br": (0.136098, 3.558),
    "I": (0.272790, 3.186),
}
"""The same for B = 1.0, A = 18."""
DISPERSION = {
    "H": (6.89, 3.14),
    "C": (20.6, 3.27),
    "N": (17.3, 3.22),
    "O": (13.9, 3.21),
    "F": (10.3, 3.18),
    "Si": (57.4, 3.46),
    "P": (52.8, 3.40),
    "S": (47.4, 3.37),
    "Cl": (40.2, 3.33),
    "Br": (56.5, 3.43),
    "I": (84.3, 3.52),
}
"""C6 (eV A^6) and R (A) of each element with the CO of the tip."""


def by_number(table: Mapping[str, tuple[float, float]]) -> Float[np.ndarray, "119 2"]:
    """Two values of each element over atomic numbers, NaN where unknown."""
    out = np.full((119, 2), np.nan)
    for symbol, values in table.items():
        out[BY_SYMBOL[symbol].number] = values
    return out


def atom_terms(charges: Float[Any, " atom"], parameters: Mapping[str, Float[Any, " atom"]], tip: Any) -> tuple:
    """a, k, 6 C6, R^6 and k q Q (atom, t); `tip` are the parameters of each atom's tip."""
    height, decay, c6, radius = (parameters[name] for name in PARAMETERS)
    return height, decay, 6 * c6, radius**6, coulomb_terms(charges, tip.charges)


def tip_terms(tip: Any) -> Float[Any, "molecule t"]:
    """Heights of the tips' charges above the probe, A."""
    return tip.charge_offsets


def kernel_terms(
    atoms: Float[np.ndarray, "atom a"], tip: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, "7 atom"], Float[np.ndarray, " numbers"]]:
    """Rows a, k, 6 C6, R^6, three k q Q; and three z, or one alone where there is at most one charge, at the probe."""
    rows = np.zeros((4 + TIP_CHARGES, len(atoms)), atoms.dtype)
    z = np.zeros(1 if len(tip) <= 1 and not tip.any() else TIP_CHARGES, tip.dtype)
    rows[: atoms.shape[1]], z[: len(tip)] = atoms.T, tip
    return rows, z


def decayed(x):
    """exp(-x), x from about -8 on; in float32 to 2e-5 of itself where it counts."""
    raise NotImplementedError


@overload(decayed, inline="always")
def _decayed(x):
    if x == types.float32:

        def series(x):
            y = min(x, np.float32(20.0)) * np.float32(-0.03125)
            e = np.float32(1 / 720)
            e = e * y + np.float32(1 / 120)
            e = e * y + np.float32(1 / 24)
            e = e * y + np.float32(1 / 6)
            e = e * y + np.float32(0.5)
            e = e * y + np.float32(1.0)
            e = e * y + np.float32(1.0)
            e = e * e
            e = e * e
            e = e * e
            e = e * e
            return e * e

        return series
    return lambda x: np.exp(-x)


@kernel
def near(s, a, k, c6, r6, one, three):
    """Of a squared distance: A and B of repulsion and dispersion; r, exp / r, r^4 / D^2, 2 6 C6 r^4 / D^3, of which
    derivatives are made; 1 / r^3 and 1 / r^2."""
    two = one + one
    s3 = s * s * s
    d = s3 + r6
    inverse = one / (s * d)
    i, i_d = inverse * d, inverse * s
    i_r = np.sqrt(i)
    r = s * i_r
    e = decayed(k * (r - three)) * i_r  # exp / r
    repulsion = a * k * e
    p = s * s * i_d * i_d
    attraction = c6 * p
    far = two * i_d * attraction
    b = (repulsion * (k * r + one) + two * far * (r6 - s3 - s3)) * i
    return repulsion - attraction, b, r, e, p, far, i * i_r, i


@kernel
def near_charged(s, height, decay, c6, r6, charge, one, three):
    """Of a squared distance: A and B, with those of a charge at the probe: k q Q."""
    a, b, _, _, _, _, i3, i2 = near(s, height, decay, c6, r6, one, three)
    coulomb = charge * i3
    return a + coulomb, b + three * coulomb * i2


@kernel
def at_probe(tip):
    """Which of three charges is at the probe, whose distance is known; 3: none."""
    for t in range(tip.size):
        if tip[t] == 0:
            return t
    return 3


@kernel
def force_and_hessian(w, anchor_x, anchor_z, scene):
    """Fill the fields F (eV/A) and H (eV/A^2) of `w` for the probes at its fields U.

    F = A r and H = B r r^T - A are summed over the centres, which differ in z alone.
    """
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    terms, tip, three = scene.atoms, scene.tip, scene.limits[4]
    one = three / three
    zero = one - one
    for n in range(9 * LANES):
        w[FX + n] = zero
    at = at_probe(tip)
    p, q = (at + 1) % 3, (at + 2) % 3
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        height, decay, c6, r6 = terms[0, i], terms[1, i], terms[2, i], terms[3, i]
        if tip.size == 1:
            charge = terms[4, i]
            for lane in range(LANES):
                dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
                square = dx * dx + dy * dy + dz * dz
                a, b = near_charged(square, height, decay, c6, r6, charge, one, three)
                add_pair(w, lane, dx, dy, a, b, a * dz, b * dz, b * dz * dz)
        elif at < 3:
            charge, q0, q1, z0, z1 = terms[4 + at, i], terms[4 + p, i], terms[4 + q, i], tip[p], tip[q]
            for lane in range(LANES):
                dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
                flat, e0, e1 = dx * dx + dy * dy, dz + z0, dz + z1
                a, b = near_charged(flat + dz * dz, height, decay, c6, r6, charge, one, three)
                fz, bz = a * dz, b * dz
                hzz = bz * dz
                s0, s1 = flat + e0 * e0, flat + e1 * e1
                inverse = one / (s0 * s1)
                a, b, fz, bz, hzz = with_charge(q0, inverse * s1, e0, a, b, fz, bz, hzz, three)
                a, b, fz, bz, hzz = with_charge(q1, inverse * s0, e1, a, b, fz, bz, hzz, three)
                add_pair(w, lane, dx, dy, a, b, fz, bz, hzz)
        else:
            q0, q1, q2, z0, z1, z2 = terms[4, i], terms[5, i], terms[6, i], tip[0], tip[1], tip[2]
            for lane in range(LANES):
                dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
                flat, e0, e1, e2 = dx * dx + dy * dy, dz + z0, dz + z1, dz + z2
                a, b = near_charged(flat + dz * dz, height, decay, c6, r6, zero, one, three)
                fz, bz = a * dz, b * dz
                hzz = bz * dz
                j0, j1, j2 = three_inverses(flat + e0 * e0, flat + e1 * e1, flat + e2 * e2, one)
                a, b, fz, bz, hzz = with_charge(q0, j0, e0, a, b, fz, bz, hzz, three)
                a, b, fz, bz, hzz = with_charge(q1, j1, e1, a, b, fz, bz, hzz, three)
                a, b, fz, bz, hzz = with_charge(q2, j2, e2, a, b, fz, bz, hzz, three)
                add_pair(w, lane, dx, dy, a, b, fz, bz, hzz)


@kernel
def three_inverses(s0, s1, s2, one):
    """1 / s0, 1 / s1, 1 / s2 by one division."""
    pair = s0 * s1
    inverse = one / (pair * s2)
    rest = inverse * s2
    return rest * s1, rest * s0, inverse * pair


@kernel
def force_vjp(w, anchor_x, anchor_z, scene, d_atoms, d_tip):
    """Add v . dF/dtheta of the probes in `w`: d_atoms (atoms, 10: position, terms), d_tip[3:] (z_t)."""
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    terms, tip, three = scene.atoms, scene.tip, scene.limits[4]
    one = three / three
    zero = one - one
    many = tip.size > 1
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        height, decay, c6, r6 = terms[0, i], terms[1, i], terms[2, i], terms[3, i]
        px = py = pz = p_height = p_decay = p_c6 = p_r6 = zero
        for lane in range(LANES):
            dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
            vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
            m = dx * vx + dy * vy + dz * vz
            a, b, r, e, p, far, _, _ = near(dx * dx + dy * dy + dz * dz, height, decay, c6, r6, one, three)
            bm, em = b * m, e * m
            px += bm * dx - a * vx
            py += bm * dy - a * vy
            pz += bm * dz - a * vz
            p_height += decay * em
            p_decay += height * em * (one - decay * (r - three))
            p_c6 -= p * m
            p_r6 += far * m
        d_atoms[i, 0] += px
        d_atoms[i, 1] += py
        d_atoms[i, 2] += pz
        d_atoms[i, 3] += p_height
        d_atoms[i, 4] += p_decay
        d_atoms[i, 5] += p_c6
        d_atoms[i, 6] += p_r6
        for t in range(3 if many else 1):
            q, zt = terms[4 + t, i], tip[t]
            px = py = pz = p_charge = p_offset = zero
            for lane in range(LANES):
                dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi + zt
                vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
                m = dx * vx + dy * vy + dz * vz
                j = one / (dx * dx + dy * dy + dz * dz)
                c = j * np.sqrt(j)
                p_charge += c * m
                a = q * c
                bm = three * a * j * m
                along = bm * dz - a * vz
                px += bm * dx - a * vx
                py += bm * dy - a * vy
                pz += along
                p_offset -= along
            d_atoms[i, 0] += px
            d_atoms[i, 1] += py
            d_atoms[i, 2] += pz
            d_atoms[i, 7 + t] += p_charge
            d_tip[3 + t] += p_offset


def pairs(
    d: Float[Any, "point atom 3"], atoms: Float[Any, "point atom a"], tip: Float[Any, "point t"]
) -> tuple[Float[Any, "point atom c 3"], Float[Any, "point atom c"], Float[Any, "point atom c"]]:
    """r, a and b; torch."""
    import torch

    r = centres(d, tip)
    square = r.square().sum(-1)
    near, far = square[..., 0], 1 / square[..., 1:]
    height, decay, c6, r6 = atoms[..., :4].unbind(-1)
    charge = atoms[..., 4:]
    length, damped = near.sqrt(), near**3 + r6
    repulsion = height * decay * (-decay * (length - 3)).exp() / length
    attraction = c6 * near**2 / damped**2
    coulomb = charge * far * far.sqrt()
    a = (repulsion - attraction)[..., None]
    b = repulsion * (decay * length + 1) / near + 4 * c6 * near * (r6 - 2 * near**3) / damped**3
    return r, torch.cat([a, coulomb], -1), torch.cat([b[..., None], 3 * coulomb * far], -1)


def exponential(name: str, pauli: Mapping[str, tuple[float, float]]) -> ForceModel:
    """The force model with a table of repulsions."""
    table = np.hstack([by_number(pauli), by_number(DISPERSION)])

    def defaults(numbers: Int[np.ndarray, " atom"]) -> dict[str, Float[np.ndarray, " atom"]]:
        """The elements' parameters, from atomic numbers."""
        return dict(zip(PARAMETERS, table[numbers].T, strict=True))

    def reach(numbers: Int[np.ndarray, " atom"]) -> Float[np.ndarray, " atom"]:
        """Where the repulsion has the energy of a carbon's at the standard distance, A."""
        height, decay = table[numbers, :2].T
        carbon, its_decay = pauli["C"]
        there = np.log(carbon) - its_decay * (STANDARD_DISTANCE - 3)
        return 3 + (np.log(height) - there) / decay

    return ForceModel(
        name,
        PARAMETERS,
        defaults,
        reach,
        atom_terms,
        tip_terms,
        kernel_terms,
        force_and_hessian,
        force_vjp,
        pairs,
        signed=("pauli_height",),
        standard_distance=STANDARD_DISTANCE,
    )


EXPONENTIAL = exponential("exponential", PAULI_12)
EXPONENTIAL_10 = exponential("exponential-1.0", PAULI_10)
