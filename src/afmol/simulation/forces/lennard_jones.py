"""Lennard-Jones plus point charges: the force model of the probe-particle method.

    equation                                             variable           shape
    E(p) = sum_i C12_i / r_i^12 - C6_i / r_i^6           repulsion: 12 C12  atom
                                                         attraction: 6 C6   atom
         + sum_i sum_t k q_i Q_t / |p + z_t e_z - r_i|   charge: k q_i Q_t  atom t; z_t: charge_z (t,)

Source: Hapala et al., Phys. Rev. B 90, 085421 (2014); mixing rules and constants of ppafm. Of the tip it takes
probe_radius, probe_depth, charges and charge_offsets. Its terms are 12 C12, 6 C6 and k q Q of an atom, and z of a tip.

The kernels are written for TIP_CHARGES charges; a tip with fewer is filled up with zeros. Their adjoint, u held fixed,
F = a r and H = b r r^T - a:

    theta                         v . dF/dtheta
    position of the atom          b r (r . v) - a v, the sum over the centres
    repulsion 12 C12              (r . v) / r^14
    attraction 6 C6               -(r . v) / r^8
    k q_i Q_t                     (r . v) / r^3
    z_t                           -(b r_z (r . v) - a v_z), the sum over atoms
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...elements import table
from .coulomb import TIP_CHARGES, centres, coulomb_terms, with_charge
from .force import FX, LANES, PIXEL, UX, UY, UZ, VX, VY, VZ, ForceModel, add_pair, kernel

PARAMETERS = ("lj_radius", "lj_depth")
"""Half the distance of the minimum between two such atoms, A, and its depth, eV."""


def defaults(numbers: Int[np.ndarray, " atom"]) -> dict[str, Float[np.ndarray, " atom"]]:
    """The elements' parameters, from atomic numbers."""
    return {name: table(name)[numbers] for name in PARAMETERS}


def reach(numbers: Int[np.ndarray, " atom"]) -> Float[np.ndarray, " atom"]:
    """Radii, A: a topmost hydrogen or bromine is approached to the same repulsion, as in the original data set."""
    return table("lj_radius")[numbers]


def lennard_jones_terms(
    radius: Float[Any, " atom"], depth: Float[Any, " atom"], probe_radius: Any, probe_depth: Any
) -> tuple[Float[Any, " atom"], Float[Any, " atom"]]:
    """12 C12 (eV A^12) and 6 C6 (eV A^6) between the probe and each atom, from radii (A) and depths (eV).

    C6 = 2 eps R^6, C12 = eps R^12 with R = R_probe + R_i, eps = sqrt(eps_probe eps_i). Arrays are numpy's or torch's,
    and so are the results.
    """
    r6 = (radius + probe_radius) ** 6
    eps = (depth * probe_depth) ** 0.5
    return 12 * eps * r6**2, 12 * eps * r6


def atom_terms(charges: Float[Any, " atom"], parameters: Mapping[str, Float[Any, " atom"]], tip: Any) -> tuple:
    """12 C12, 6 C6 and k q Q (atom, t); `tip` are the parameters of each atom's tip."""
    radius, depth = (parameters[name] for name in PARAMETERS)
    return (
        *lennard_jones_terms(radius, depth, tip.probe_radius, tip.probe_depth),
        coulomb_terms(charges, tip.charges),
    )


def tip_terms(tip: Any) -> Float[Any, "molecule t"]:
    """Heights of the tips' charges above the probe, A."""
    return tip.charge_offsets


def kernel_terms(
    atoms: Float[np.ndarray, "atom a"], tip: Float[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, "7 atom"], Float[np.ndarray, " 3"]]:
    """Rows 12 C12, 6 C6, three k q Q, 168 C12, 48 C6; and three z."""
    rows, z = np.zeros((4 + TIP_CHARGES, len(atoms)), atoms.dtype), np.zeros(TIP_CHARGES, tip.dtype)
    rows[: atoms.shape[1]], z[: len(tip)] = atoms.T, tip
    rows[-2], rows[-1] = 14 * rows[0], 8 * rows[1]
    return rows, z


@kernel
def inverse_squares(r2, dz, e0, e1, e2, one):
    """1 / r^2 of the probe and three charges, by one division: the slowest thing here."""
    s, s0, s1, s2 = r2 + dz * dz, r2 + e0 * e0, r2 + e1 * e1, r2 + e2 * e2
    pair, pair12 = s * s0, s1 * s2
    inverse = one / (pair * pair12)
    inverse_pair, inverse_pair12 = inverse * pair12, inverse * pair
    return inverse_pair * s0, inverse_pair * s, inverse_pair12 * s2, inverse_pair12 * s1


@kernel
def force_and_hessian(w, anchor_x, anchor_z, scene):
    """Fill the fields F (eV/A) and H (eV/A^2) of `w` for the probes at its fields U.

    F = a r and H = b r r^T - a are summed over the four centres, which differ in z alone.
    """
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    terms, three = scene.atoms, scene.limits[4]
    one = three / three
    zero = one - one
    for n in range(9 * LANES):
        w[FX + n] = zero
    z0, z1, z2 = scene.tip[0], scene.tip[1], scene.tip[2]
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        c12, c6, h12, h6 = terms[0, i], terms[1, i], terms[5, i], terms[6, i]
        q0, q1, q2 = terms[2, i], terms[3, i], terms[4, i]
        for lane in range(LANES):
            dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
            e0, e1, e2 = dz + z0, dz + z1, dz + z2
            i2, j0, j1, j2 = inverse_squares(dx * dx + dy * dy, dz, e0, e1, e2, one)
            i6 = i2 * i2 * i2
            i8 = i6 * i2
            a = (c12 * i6 - c6) * i8
            b = (h12 * i6 - h6) * i8 * i2
            fz, bz = a * dz, b * dz
            hzz = bz * dz
            a, b, fz, bz, hzz = with_charge(q0, j0, e0, a, b, fz, bz, hzz, three)
            a, b, fz, bz, hzz = with_charge(q1, j1, e1, a, b, fz, bz, hzz, three)
            a, b, fz, bz, hzz = with_charge(q2, j2, e2, a, b, fz, bz, hzz, three)
            add_pair(w, lane, dx, dy, a, b, fz, bz, hzz)


@kernel
def force_vjp(w, anchor_x, anchor_z, scene, d_atoms, d_tip):
    """Add v . dF/dtheta of the probes in `w`: d_atoms (atoms, 8: position, 12 C12, 6 C6, k q Q), d_tip[3:] (z_t)."""
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    terms, three = scene.atoms, scene.limits[4]
    one = three / three
    zero = one - one
    z0, z1, z2 = scene.tip[0], scene.tip[1], scene.tip[2]
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        c12, c6, h12, h6 = terms[0, i], terms[1, i], terms[5, i], terms[6, i]
        q0, q1, q2 = terms[2, i], terms[3, i], terms[4, i]
        px = py = pz = p12 = p6 = p0 = p1 = p2 = o0 = o1 = o2 = zero
        for lane in range(LANES):
            dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
            vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
            e0, e1, e2 = dz + z0, dz + z1, dz + z2
            i2, j0, j1, j2 = inverse_squares(dx * dx + dy * dy, dz, e0, e1, e2, one)
            # m = r . v for each of the four centres
            flat = dx * vx + dy * vy
            m, m0, m1, m2 = flat + dz * vz, flat + e0 * vz, flat + e1 * vz, flat + e2 * vz
            i6 = i2 * i2 * i2
            i8 = i6 * i2
            p12 += i6 * i8 * m
            p6 -= i8 * m
            a = (c12 * i6 - c6) * i8
            bm = (h12 * i6 - h6) * i8 * i2 * m
            along = bm * dz
            t = j0 * np.sqrt(j0)
            p0 += t * m0
            t = q0 * t
            u = three * t * j0 * m0
            a, bm, along = a + t, bm + u, along + u * e0
            o0 += t * vz - u * e0
            t = j1 * np.sqrt(j1)
            p1 += t * m1
            t = q1 * t
            u = three * t * j1 * m1
            a, bm, along = a + t, bm + u, along + u * e1
            o1 += t * vz - u * e1
            t = j2 * np.sqrt(j2)
            p2 += t * m2
            t = q2 * t
            u = three * t * j2 * m2
            a, bm, along = a + t, bm + u, along + u * e2
            o2 += t * vz - u * e2
            px += bm * dx - a * vx
            py += bm * dy - a * vy
            pz += along - a * vz
        d_atoms[i, 0] += px
        d_atoms[i, 1] += py
        d_atoms[i, 2] += pz
        d_atoms[i, 3] += p12
        d_atoms[i, 4] += p6
        d_atoms[i, 5] += p0
        d_atoms[i, 6] += p1
        d_atoms[i, 7] += p2
        d_tip[3] += o0
        d_tip[4] += o1
        d_tip[5] += o2


def pairs(
    d: Float[Any, "point atom 3"], atoms: Float[Any, "point atom a"], tip: Float[Any, "point t"]
) -> tuple[Float[Any, "point atom c 3"], Float[Any, "point atom c"], Float[Any, "point atom c"]]:
    """r, a and b; torch."""
    import torch

    r = centres(d, tip)
    inverse2 = 1 / r.square().sum(-1)
    near, far = inverse2[..., 0], inverse2[..., 1:]
    repulsion, attraction, charge = atoms.split((1, 1, atoms.shape[-1] - 2), -1)
    repulsion, attraction, near6 = repulsion[..., 0], attraction[..., 0], near**3
    coulomb = charge * far * far.sqrt()
    a = ((repulsion * near6 - attraction) * near6 * near)[..., None]
    b = ((14 * repulsion * near6 - 8 * attraction) * near6 * near**2)[..., None]
    return r, torch.cat([a, coulomb], -1), torch.cat([b, 3 * coulomb * far], -1)


LENNARD_JONES = ForceModel(
    "lennard-jones",
    PARAMETERS,
    defaults,
    reach,
    atom_terms,
    tip_terms,
    kernel_terms,
    force_and_hessian,
    force_vjp,
    pairs,
)
