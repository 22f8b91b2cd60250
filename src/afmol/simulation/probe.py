"""The probe on its springs, relaxed at every pixel and followed down from the slice above.

Equations and symbols as in reference.py. Balance of forces at the relaxed probe, u its position relative to the tip's
end (shifted by the lateral offset):

    G = F - S = 0,  S = k_lateral (u_x, u_y, 0) + k_radial (1 - L / |u|) u

solved by Newton with the analytic 3 x 3 Hessian K of the total energy. z is eliminated first (the radial spring keeps
it stiff); the lateral 2 x 2 block that is left is kept positive definite, so that a step never climbs towards a saddle.

The vector-Jacobian product. With g = dL/dF_z, lambda = g K^-1 H e_z and v = g e_z - lambda, a point adds to dL/dtheta
v . dF/dtheta + lambda . dS/dtheta, u held fixed. With r from an atom to the probe or to a charge of the tip there,
F = a r and H = b r r^T - a:

    theta                         v . dF/dtheta
    position of the atom          b r (r . v) - a v, the sum over the centres
    repulsion 12 C12              (r . v) / r^14
    attraction 6 C6               -(r . v) / r^8
    k q_i Q_t                     (r . v) / r^3
    z_t                           -(b r_z (r . v) - a v_z), the sum over atoms

LANES neighbouring pixels are worked on at once, so that LLVM turns each inner loop into SIMD instructions. All their
numbers lie in one flat array, field by field, because LLVM must see that fields do not overlap. Literals are avoided:
a Python float or int would silently promote float32 arithmetic to float64. All kernels stand in this one file, since
numba's cache on disk notices changes only in the file of the function that is called.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import njit
from tqdm import tqdm

from .forces.lennard_jones import TIP_CHARGES

LANES = 16
"""Pixels at once: the float32 numbers in the widest SIMD register."""
COLUMNS = 16
"""Columns of pixels that a thread works on at a time; sums over pixels are those of these shares, in order."""
MAX_STEPS = 60
"""Newton steps a point at most; about one is needed on average, more where the probe snaps."""
LONGEST_STEP = 0.3
"""A."""
SOFTEST = 2e-3
"""Curvatures of the energy below this, eV/A^2, or below |G| / SOFT_STEP if that is less, are lifted to it in a Newton
step: an eighth of the CO tip's spring."""
SOFT_STEP = 0.05
"""A. Without it the last steps would be too short where the probe is really soft."""
SOFTEST_GRADIENT = 5e-4
"""The same where a gradient is taken: it stays finite, but is too small, at softer points."""

# Start of each field in the flat array: probe relative to the tip's end, force, Hessian, the slice above (or v of the
# gradient), pixel
UX, UY, UZ, FX, FY, FZ, HXX, HXY, HXZ, HYY, HYZ, HZZ, VX, VY, VZ, PIXEL, END = (LANES * k for k in range(17))
PROBE = 7
"""Numbers kept of a relaxed probe: position relative to the tip's end (A), response lambda = K^-1 H e_z, least lateral
curvature of the energy (eV/A^2). As the tip's end goes down by dz, the probe moves by lambda dz relative to it."""


class Scene(NamedTuple):
    """One molecule under one tip, all numbers in one precision: what the kernels work on. Made by `scene`."""

    x: np.ndarray
    """(nx,): lateral positions of the unloaded probe, A."""
    y: np.ndarray
    """(ny,)."""
    heights: np.ndarray
    """(nz,): of the tip's end, descending, A."""
    springs: np.ndarray
    """(3,): k_lateral, k_radial (eV/A^2), L (A)."""
    positions: np.ndarray
    """(3, atoms), A."""
    lj: np.ndarray
    """(4, atoms): 12 C12, 6 C6, 168 C12, 48 C6."""
    q: np.ndarray
    """(3, atoms): k q_i Q_t."""
    charge_z: np.ndarray
    """(3,)."""
    limits: np.ndarray
    """(6,): force that counts as none (eV/A), longest step (A), smallest curvatures of a step and of a gradient, 3, and
    the inverse of SOFT_STEP."""


def tolerance(single: bool) -> float:
    """Force that counts as none, eV/A. In float32 forces are exact to 5e-6: the quadrupole's charges nearly cancel."""
    return 2e-5 if single else 1e-12


def scene(
    x: Float[np.ndarray, " nx"],
    y: Float[np.ndarray, " ny"],
    heights: Float[np.ndarray, " nz"],
    positions: Float[np.ndarray, "atom 3"],
    repulsion: Float[np.ndarray, " atom"],
    attraction: Float[np.ndarray, " atom"],
    charge: Float[np.ndarray, "atom t"],
    charge_z: Float[np.ndarray, " t"],
    springs: Float[np.ndarray, " 3"],
    dtype: type,
) -> Scene:
    """A scene from the terms of forces/ and the springs; a tip with fewer charges is filled up with zeros."""
    spare = TIP_CHARGES - len(charge_z)
    limits = (tolerance(dtype is np.float32), LONGEST_STEP, SOFTEST, SOFTEST_GRADIENT, 3, 1 / SOFT_STEP)
    arrays = (
        *(x, y, heights, springs, positions.T, np.stack([repulsion, attraction, 14 * repulsion, 8 * attraction])),
        *(np.pad(charge.T, ((0, spare), (0, 0))), np.pad(charge_z, (0, spare)), np.array(limits)),
    )
    return Scene(*(np.ascontiguousarray(array, dtype) for array in arrays))


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def force_and_hessian(w, anchor_x, anchor_z, scene):
    """Fill the fields F (eV/A) and H (eV/A^2) of `w` for the probes at its fields U.

    One division serves the four inverse squares of a pair, since division is the slowest thing here.
    """
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    lj, q, three = scene.lj, scene.q, scene.limits[4]
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
    z0, z1, z2 = scene.charge_z[0], scene.charge_z[1], scene.charge_z[2]
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


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _total_hessian(w, lane, springs, one):
    """G and K of a lane: three and six numbers."""
    lateral, radial, length = springs[0], springs[1], springs[2]
    ux, uy, uz = w[UX + lane], w[UY + lane], w[UZ + lane]
    inverse = one / (ux * ux + uy * uy + uz * uz)
    g = length * np.sqrt(inverse)
    spring = radial * (one - g)
    c = radial * g * inverse
    return (
        w[FX + lane] - (lateral + spring) * ux,
        w[FY + lane] - (lateral + spring) * uy,
        w[FZ + lane] - spring * uz,
        w[HXX + lane] + lateral + spring + c * ux * ux,
        w[HXY + lane] + c * ux * uy,
        w[HXZ + lane] + c * ux * uz,
        w[HYY + lane] + lateral + spring + c * uy * uy,
        w[HYZ + lane] + c * uy * uz,
        w[HZZ + lane] + spring + c * uz * uz,
    )


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, softest, one):
    """K^-1 G, where K is lifted to curvatures of at least `softest`; and its smallest lateral curvature."""
    zero = one - one
    half = one / (one + one)
    hzz = hzz if hzz > softest else softest
    # Schur complement: the lateral block once z has followed
    bx, by = hxz / hzz, hyz / hzz
    sxx, sxy, syy = hxx - bx * hxz, hxy - bx * hyz, hyy - by * hyz
    rx, ry = gx - bx * gz, gy - by * gz
    spread = half * (sxx - syy)
    curvature = half * (sxx + syy) - np.sqrt(spread * spread + sxy * sxy)
    shift = softest - curvature
    shift = shift if shift > zero else zero
    sxx, syy = sxx + shift, syy + shift
    det = sxx * syy - sxy * sxy
    dx, dy = (syy * rx - sxy * ry) / det, (sxx * ry - sxy * rx) / det
    return dx, dy, (gz - hxz * dx - hyz * dy) / hzz, curvature


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _newton_step(w, springs, limits):
    """Move the probes that are out of balance one step; returns how many there are."""
    tolerance, longest, softest = limits[0], limits[1], limits[2]
    one = limits[4] / limits[4]
    zero = one - one
    moving = zero
    for lane in range(LANES):
        gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz = _total_hessian(w, lane, springs, one)
        pull = np.sqrt(gx * gx + gy * gy + gz * gz)
        soft = (pull + tolerance) * limits[5]
        soft = soft if soft < softest else softest
        dx, dy, dz, _ = _solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, soft, one)
        scale = longest / np.sqrt(dx * dx + dy * dy + dz * dz + tolerance * tolerance)
        scale = scale if scale < one else one
        out_of_balance = pull >= tolerance
        scale = scale if out_of_balance else zero
        w[UX + lane] += scale * dx
        w[UY + lane] += scale * dy
        w[UZ + lane] += scale * dz
        moving += one if out_of_balance else zero
    return moving


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _keep(w, lane, scene, probe):
    """Write the PROBE numbers of a lane to `probe`."""
    one = scene.limits[4] / scene.limits[4]
    _, _, _, hxx, hxy, hxz, hyy, hyz, hzz = _total_hessian(w, lane, scene.springs, one)
    gx, gy, gz = w[HXZ + lane], w[HYZ + lane], w[HZZ + lane]
    probe[0], probe[1], probe[2] = w[UX + lane], w[UY + lane], w[UZ + lane]
    probe[3], probe[4], probe[5], probe[6] = _solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, scene.limits[3], one)


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _descend(w, i, first, scene, force, probe):
    """Relax the probes of the pixels from `first` on in column i at each height, far to close; returns failures."""
    one = scene.limits[4] / scene.limits[4]
    zero = one - one
    pixels = min(LANES, scene.y.size - first)
    w[:] = zero
    for lane in range(LANES):
        w[UZ + lane] = -scene.springs[2]
        w[PIXEL + lane] = scene.y[first + min(lane, pixels - 1)]
    failed = zero
    for k in range(scene.heights.size):
        for n in range(3 * LANES):
            u = w[UX + n]
            if k > 1:  # start where the two slices above point to
                w[UX + n] = u + u - w[VX + n]
            w[VX + n] = u
        moving = one
        steps = 0
        while moving > zero and steps < MAX_STEPS:
            force_and_hessian(w, scene.x[i], scene.heights[k], scene)
            moving = _newton_step(w, scene.springs, scene.limits)
            steps += 1
        failed += moving
        for lane in range(pixels):
            force[i, first + lane, k] = w[FZ + lane]
        if probe.size:
            for lane in range(pixels):
                _keep(w, lane, scene, probe[i, first + lane, k])
    return failed


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _tile(p, scene, force, probe):
    """Tile p of LANES pixels; returns its unconverged points."""
    tiles = (scene.y.size + LANES - 1) // LANES
    w = np.empty(END, scene.x.dtype)
    return _descend(w, p // tiles, p % tiles * LANES, scene, force, probe)


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def vertical_force(scene, force, probe):
    """Vertical force of the surface on the relaxed probe, eV/A, into `force` (nx, ny, nz); returns unconverged points.

    `probe` (nx, ny, nz, PROBE) is filled too unless it is empty. The interpreter's lock is released.
    """
    failed = 0.0
    for p in range(scene.x.size * ((scene.y.size + LANES - 1) // LANES)):
        failed += _tile(p, scene, force, probe)
    return failed


# The vector-Jacobian product


@njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)
def _product(w, anchor_x, anchor_z, scene, d_atoms, d_tip):
    """Add v . dF/dtheta of the probes in `w`: d_atoms (atoms, 8: position, 12 C12, 6 C6, k q Q), d_tip[3:] (z_t)."""
    x, y, z = scene.positions[0], scene.positions[1], scene.positions[2]
    lj, q, three = scene.lj, scene.q, scene.limits[4]
    one = three / three
    zero = one - one
    z0, z1, z2 = scene.charge_z[0], scene.charge_z[1], scene.charge_z[2]
    for i in range(x.size):
        xi, yi, zi = x[i] - anchor_x, y[i], z[i] - anchor_z
        c12, c6, h12, h6 = lj[0, i], lj[1, i], lj[2, i], lj[3, i]
        q0, q1, q2 = q[0, i], q[1, i], q[2, i]
        px = py = pz = p12 = p6 = p0 = p1 = p2 = o0 = o1 = o2 = zero
        for lane in range(LANES):
            dx, dy, dz = w[UX + lane] - xi, w[UY + lane] + w[PIXEL + lane] - yi, w[UZ + lane] - zi
            vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
            e0, e1, e2 = dz + z0, dz + z1, dz + z2
            r2 = dx * dx + dy * dy
            s, s0, s1, s2 = r2 + dz * dz, r2 + e0 * e0, r2 + e1 * e1, r2 + e2 * e2
            pair, pair12 = s * s0, s1 * s2
            inverse = one / (pair * pair12)
            inverse_pair, inverse_pair12 = inverse * pair12, inverse * pair
            i2, j0, j1, j2 = inverse_pair * s0, inverse_pair * s, inverse_pair12 * s2, inverse_pair12 * s1
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


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def vertical_force_product(scene, probe, d_force, d_atoms, d_tip):
    """Add the derivatives of sum d_force * force to `d_atoms` (atoms, 8) and `d_tip` (6,), both float64.

    By an atom's position, 12 C12, 6 C6 and three k q Q; by the three springs and the charges' heights. `probe` is what
    `vertical_force` found. The interpreter's lock is released.
    """
    springs, one = scene.springs, scene.limits[4] / scene.limits[4]
    zero = one - one
    w = np.zeros(END, scene.x.dtype)
    for i in range(scene.x.size):
        for first in range(0, scene.y.size, LANES):
            for k in range(scene.heights.size):
                for lane in range(LANES):
                    j = min(first + lane, scene.y.size - 1)
                    g = d_force[i, j, k] if first + lane < scene.y.size else zero
                    ux, uy, uz = probe[i, j, k, 0], probe[i, j, k, 1], probe[i, j, k, 2]
                    lx, ly, lz = g * probe[i, j, k, 3], g * probe[i, j, k, 4], g * probe[i, j, k, 5]
                    w[UX + lane], w[UY + lane], w[UZ + lane], w[PIXEL + lane] = ux, uy, uz, scene.y[j]
                    w[VX + lane], w[VY + lane], w[VZ + lane] = -lx, -ly, g - lz
                    inverse_length = one / np.sqrt(ux * ux + uy * uy + uz * uz)
                    sideways = lx * ux + ly * uy
                    along = sideways + lz * uz
                    d_tip[0] += sideways
                    d_tip[1] += along * (one - springs[2] * inverse_length)
                    d_tip[2] -= springs[1] * along * inverse_length
                _product(w, scene.x[i], scene.heights[k], scene, d_atoms, d_tip)


# In threads: ours, since numba's own may not be used by several threads at once, and change how many torch uses


def in_threads(work: Callable, scenes: list[Scene], threads: int, progress: bool = False) -> list:
    """Results of work(k, columns) for slices of COLUMNS columns of each scene k, in the order of scenes and columns.

    With `progress` a bar is shown once it has taken a second.
    """
    shares = [(k, slice(i, i + COLUMNS)) for k, s in enumerate(scenes) for i in range(0, len(s.x), COLUMNS)]
    shown = partial(tqdm, total=len(shares), desc="image", unit="strip", delay=1, disable=not progress, leave=False)
    if min(threads, len(shares)) == 1:
        return list(shown(work(*share) for share in shares))
    with ThreadPoolExecutor(threads) as pool:
        return list(shown(pool.map(lambda share: work(*share), shares)))


def relaxed_forces(
    scenes: list[Scene], threads: int, keep_probe: bool = False, progress: bool = False
) -> tuple[Float[np.ndarray, "scene nx ny nz"], np.ndarray]:
    """Vertical forces of scenes of one shape, eV/A, and the probes (scene, nx, ny, nz, PROBE), empty unless kept."""
    x, y, heights, *_ = scenes[0]
    shape = (len(scenes), len(x), len(y), len(heights))
    force = np.empty(shape, x.dtype)
    probe = np.empty((*shape, PROBE) if keep_probe else (len(scenes), 0, 0, 0, PROBE), x.dtype)

    def work(k: int, columns: slice) -> None:
        vertical_force(scenes[k]._replace(x=scenes[k].x[columns]), force[k, columns], probe[k, columns])

    in_threads(work, scenes, threads, progress)
    return force, probe


def relaxed_forces_product(
    scenes: list[Scene], probe: np.ndarray, d_force: Float[np.ndarray, "scene nx ny nz"], threads: int
) -> tuple[list[Float[np.ndarray, "atom 8"]], Float[np.ndarray, "scene 6"]]:
    """Derivatives of sum d_force * force by what belongs to each scene's atoms, and to its tip; see the kernel."""

    def work(k: int, columns: slice) -> tuple[int, np.ndarray, np.ndarray]:
        d_atoms, d_tip = np.zeros((scenes[k].positions.shape[1], 8)), np.zeros(6)
        here = scenes[k]._replace(x=scenes[k].x[columns])
        vertical_force_product(here, probe[k, columns], d_force[k, columns], d_atoms, d_tip)
        return k, d_atoms, d_tip

    sums = [np.zeros((s.positions.shape[1], 8)) for s in scenes]
    tips = np.zeros((len(scenes), 6))
    for k, d_atoms, d_tip in in_threads(work, scenes, threads):
        sums[k] += d_atoms
        tips[k] += d_tip
    return sums, tips
