"""What a force model provides, and what its kernels are given.

A model is any sum of central forces, between each atom and the probe or charges of the tip some way above the probe.
With r from the atom to such a centre, F = a r, and the Hessian of the energy is H = -dF/dp = b r r^T - a.

The kernels work on LANES neighbouring pixels at once, so that LLVM turns each inner loop into SIMD instructions. All
their numbers lie in one flat array `w`, field by field, because LLVM must see that fields do not overlap. Literals are
avoided: a Python float or int would silently promote float32 arithmetic to float64.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

LANES = 16
"""Pixels at once: the float32 numbers in the widest SIMD register."""

# Start of each field in the flat array: probe relative to the tip's end, force, Hessian, the slice above (or v of the
# gradient), pixel
UX, UY, UZ, FX, FY, FZ, HXX, HXY, HXZ, HYY, HYZ, HZZ, VX, VY, VZ, PIXEL, END = (LANES * k for k in range(17))

kernel = njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
"""Decorates all kernels but those that are called from Python. They are inlined: else the linker may take another copy
of a callee in a process that loads from the cache than in the one that compiles, with other last digits."""


@kernel
def add_pair(w, lane, dx, dy, a, b, fz, bz, hzz):
    """Add an atom's F and H to a lane's fields: a, b and b r_z, a r_z and b r_z^2, summed over its centres."""
    w[FX + lane] += a * dx
    w[FY + lane] += a * dy
    w[FZ + lane] += fz
    w[HXX + lane] += b * dx * dx - a
    w[HXY + lane] += b * dx * dy
    w[HXZ + lane] += bz * dx
    w[HYY + lane] += b * dy * dy - a
    w[HYZ + lane] += bz * dy
    w[HZZ + lane] += hzz - a


class Scene(NamedTuple):
    """One molecule under one tip, all numbers in one precision: what the kernels work on."""

    x: np.ndarray
    """(nx,): lateral positions of the unloaded probe, A."""
    y: np.ndarray
    """(ny,)."""
    heights: np.ndarray
    """(nz,): of the tip's end, descending, A."""
    springs: np.ndarray
    """(3,): k_lateral, k_radial (eV/A^2), L (A)."""
    positions: np.ndarray
    """(3, atom), A."""
    atoms: np.ndarray
    """(row, atom): the force model's terms, and what its kernels want beside them."""
    tip: np.ndarray
    """(number,): the same of the tip."""
    limits: np.ndarray
    """(6,): force that counts as none (eV/A), longest step (A), smallest curvatures of a step and of a gradient, 3, and
    the inverse of probe.SOFT_STEP."""


class ForceModel(NamedTuple):
    """A force model, and all that is particular to it.

    It has parameters of each atom beside the charge, from which terms follow: A numbers an atom, T numbers a tip, from
    which the engines compute forces and by which they differentiate them. An atom whose terms are all 0 has no force.
    """

    name: str
    parameters: tuple[str, ...]
    """Names of the parameters of an atom."""
    defaults: Callable[[Int[np.ndarray, " atom"]], Mapping[str, Float[np.ndarray, " atom"]]]
    """The elements' own, from atomic numbers."""
    reach: Callable[[Int[np.ndarray, " atom"]], Float[np.ndarray, " atom"]]
    """Heights, A but for a constant, of the probe above each atom at which it feels the same, from atomic numbers."""
    atom_terms: Callable[[Any, Mapping[str, Any], Any], tuple[Any, ...]]
    """(charges (atom,), parameters (atom,) by name, TipParameters of each atom's tip), numpy's or torch's -> A columns,
    in arrays (atom,) or (atom, any)."""
    tip_terms: Callable[[Any], Any]
    """(TipParameters of each molecule's tip), numpy's or torch's -> (molecule, T)."""
    kernel_terms: Callable[[Float[np.ndarray, "atom a"], Float[np.ndarray, " t"]], tuple[np.ndarray, np.ndarray]]
    """Terms -> `atoms` (row, atom) and `tip` of the kernels' Scene: the terms, then what a kernel wants beside them."""
    force_and_hessian: Any
    """Kernel (w, anchor_x, anchor_z, scene): fill the fields F (eV/A) and H (eV/A^2) of `w` for the probes at its
    fields U, from the tip's end at (anchor_x, PIXEL, anchor_z)."""
    force_vjp: Any
    """Kernel (w, anchor_x, anchor_z, scene, d_atoms, d_tip): add v . dF/dtheta of these probes, v the fields V, to
    d_atoms (atom, 3 + rows), by position and terms, and to d_tip[3:], by the terms of the tip."""
    pairs: Callable[[Any, Any, Any], tuple[Any, Any, Any]]
    """In torch: (from atom to probe (point, atom, 3), A; terms (point, atom, A) and (point, T)) -> r (point, atom, c,
    3), a and b (point, atom, c) of 1 + T centres c or less."""
    signed: tuple[str, ...] = ()
    """Parameters that may be negative."""
    standard_distance: float = 2.97
    """Closest approach of the unrelaxed probe above a topmost carbon, A, at which images show atoms and bonds (2.97:
    distAbove 5.3 A of the original data set)."""
