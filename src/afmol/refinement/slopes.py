"""How the images of a hypothesis change with each of its values: all at once, where differences take an image each.

equation                                             variable    of
dF_z = v . dF_i/dtheta                               v           point: e_z - lambda, lambda as in simulation/probe.py
                                                     F_i         atom: its force on the probe, A r (force.py)
theta                             v . dF_i/dtheta    m = r . v
position of an atom               B r m - A v
12 C12, 6 C6                      r^-14 m, -r^-8 m
a, k, 6 C6                        (k e / r) m, (a e / r) (1 - k (r - 3)) m, -(r^4 / D^2) m    as in exponential.py
k q Q of a charge                 r_t^-3 m_t
ln k_lateral                      k_lateral (lambda_x u_x + lambda_y u_y)

How such loops have to be written for SIMD instructions: simulation/forces/force.py.
numba's cache on disk notices changes of this file alone: after one of `decayed`, touch it.
"""

import numpy as np
from numba import njit

from ..simulation.forces.exponential import decayed
from ..simulation.forces.force import LANES

# Start of each field: v, probe, v . dF/dtheta by an atom's place, charge and terms, sums by the tip's values
VX, VY, VZ, PX, PY, PZ, AX, AY, AZ, AQ, T0, T1, T2, CHARGE, SHARE, DISTANCE, DISPERSION, END = (
    LANES * k for k in range(18)
)


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def column_slopes(
    exponential,
    x,
    y,
    heights,
    k_lateral,
    positions,
    terms,
    charges,
    tip,
    by_factor,
    coulomb,
    quadrupole,
    group,
    probe,
    out,
):
    """Of the vertical forces at the pixels of one x.

    Args:
        exponential: which of the two kinds of forces.
        x: A; y (ny,), heights (nz,): as the probe's scene has them.
        k_lateral: eV/A^2.
        positions: (3, n), A.
        terms: (n, 4): 12 C12, 6 C6, nothing, nothing; or a, k, 6 C6, R^6. by_factor (n, 2, 3): slopes of the first
            three by the atom's factors.
        charges: (n,), e. tip (3, 2): charges, e, and offsets, A. coulomb: eV A. quadrupole (3,): e.
        group: (n,): the place of each atom's element.
        probe: (ny, nz, 7), relaxed.
        out: (rows, nz, ny), zeros: 4 an atom, 2 an element, 8: stiffness, charge, share, distance, two that are no
            matter of forces, a factor on heights above the least, dispersion.
    """
    n, ny = positions.shape[1], y.size
    one = k_lateral / k_lateral
    zero, two, three, four = one - one, one + one, one + one + one, one + one + one + one
    eight = four + four
    fourteen = eight + four + two
    of_tip = out.shape[0] - 8
    w = np.empty(END, y.dtype)
    for k in range(heights.size):
        for first in range(0, ny, LANES):
            pixels = min(LANES, ny - first)
            w[CHARGE:] = zero
            for lane in range(LANES):
                j = first + min(lane, pixels - 1)
                w[VX + lane], w[VY + lane], w[VZ + lane] = -probe[j, k, 3], -probe[j, k, 4], one - probe[j, k, 5]
                w[PX + lane], w[PY + lane] = x + probe[j, k, 0], y[j] + probe[j, k, 1]
                w[PZ + lane] = heights[k] + probe[j, k, 2]
            for i in range(n):
                t0, t1, t2, damped = terms[i, 0], terms[i, 1], terms[i, 2], terms[i, 3]
                q, ax, ay, az = coulomb * charges[i], positions[0, i], positions[1, i], positions[2, i]
                for lane in range(LANES):
                    vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
                    dx, dy, dz = w[PX + lane] - ax, w[PY + lane] - ay, w[PZ + lane] - az
                    s, m = dx * dx + dy * dy + dz * dz, dx * vx + dy * vy + dz * vz
                    if exponential:
                        r = np.sqrt(s)
                        e = decayed(t1 * (r - three)) / r
                        s3 = s * s * s
                        d = one / (s3 + damped)
                        repulsion = t0 * t1 * e
                        fade = s * s * d * d
                        a = repulsion - t2 * fade
                        b = repulsion * (t1 * r + one) / s + four * t2 * s * (damped - two * s3) * d * d * d
                        g0, g1, g2 = t1 * e * m, t0 * e * (one - t1 * (r - three)) * m, -fade * m
                    else:
                        i2 = one / s
                        i8 = i2 * i2 * i2 * i2
                        i14 = i8 * i2 * i2 * i2
                        a = t0 * i14 - t1 * i8
                        b = (fourteen * t0 * i14 - eight * t1 * i8) * i2
                        g0, g1, g2 = i14 * m, -i8 * m, zero
                    bm = b * m
                    w[AX + lane], w[AY + lane], w[AZ + lane] = bm * dx - a * vx, bm * dy - a * vy, bm * dz - a * vz
                    w[AQ + lane], w[T0 + lane], w[T1 + lane], w[T2 + lane] = zero, g0, g1, g2
                    w[DISPERSION + lane] += t2 * g2
                for t in range(3):
                    at_tip, above, of_share = tip[t, 0], tip[t, 1], quadrupole[t]
                    at_probe = one if t == 1 else zero
                    for lane in range(LANES):
                        vx, vy, vz = w[VX + lane], w[VY + lane], w[VZ + lane]
                        dx, dy, dz = w[PX + lane] - ax, w[PY + lane] - ay, w[PZ + lane] - az + above
                        i2 = one / (dx * dx + dy * dy + dz * dz)
                        i3 = i2 * np.sqrt(i2)
                        m = dx * vx + dy * vy + dz * vz
                        a = q * at_tip * i3
                        b = three * a * i2
                        w[AX + lane] += b * m * dx - a * vx
                        w[AY + lane] += b * m * dy - a * vy
                        w[AZ + lane] += b * m * dz - a * vz
                        w[AQ + lane] += coulomb * at_tip * i3 * m
                        w[CHARGE + lane] += q * at_probe * i3 * m
                        w[SHARE + lane] += q * of_share * i3 * m
                for lane in range(LANES):
                    w[DISTANCE + lane] -= w[AZ + lane]
                for row in range(4):
                    into, start = out[4 * i + row, k, first:], AX + row * LANES
                    for lane in range(pixels):
                        into[lane] = w[start + lane]
                for row in range(2):
                    into = out[group[i] + row, k, first:]
                    f0, f1, f2 = by_factor[i, row, 0], by_factor[i, row, 1], by_factor[i, row, 2]
                    for lane in range(pixels):
                        into[lane] += f0 * w[T0 + lane] + f1 * w[T1 + lane] + f2 * w[T2 + lane]
            for lane in range(pixels):
                j = first + lane
                out[of_tip, k, j] = k_lateral * (probe[j, k, 3] * probe[j, k, 0] + probe[j, k, 4] * probe[j, k, 1])
                out[of_tip + 1, k, j], out[of_tip + 2, k, j] = w[CHARGE + lane], w[SHARE + lane]
                out[of_tip + 3, k, j], out[of_tip + 7, k, j] = w[DISTANCE + lane], w[DISPERSION + lane]
                out[of_tip + 6, k, j] = (heights[k] - heights[-1]) * w[DISTANCE + lane]


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def smoothed(slices, x, y, out):
    """Sums over neighbouring pixels, into `out`; beyond the border it is as on it.

    Args:
        slices: (rows, nx, ny nz).
        x: weights of the pixels from -m to m along x, (2 m + 1, nz); y: along y.
        out: as slices.
    """
    rows, nx, of_line = slices.shape
    nz, m, n = x.shape[1], x.shape[0] // 2, y.shape[0] // 2
    along_x, along_y = np.empty((len(x), of_line), slices.dtype), np.empty((len(y), of_line), slices.dtype)
    for j in range(of_line // nz):
        along_x[:, j * nz : (j + 1) * nz], along_y[:, j * nz : (j + 1) * nz] = x, y
    before = n * nz
    after = before + of_line
    line = np.empty(after + before, slices.dtype)
    middle = line[before:after]
    for row in range(rows):
        for i in range(nx):
            middle[:] = 0
            for t in range(len(x)):
                near, weight = slices[row, min(max(i + t - m, 0), nx - 1)], along_x[t]
                for p in range(of_line):
                    middle[p] += weight[p] * near[p]
            for j in range(n):
                line[j * nz : (j + 1) * nz] = middle[:nz]
                line[after + j * nz : after + (j + 1) * nz] = middle[of_line - nz :]
            made = out[row, i]
            made[:] = 0
            for t in range(len(y)):
                near, weight = line[t * nz : t * nz + of_line], along_y[t]
                for p in range(of_line):
                    made[p] += weight[p] * near[p]


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def unexplained(slices, along, scale, out):
    """Each slice without what is constant and what is along another image, scaled, into `out`.

    Args:
        slices: (rows, nx, ny nz).
        along: (nx, ny nz), each slice of zero mean and unit norm.
        scale: (nz,).
        out: as slices.
    """
    rows, nx, of_line = slices.shape
    nz = len(scale)
    ny = of_line // nz
    whole, shared = np.empty(of_line, slices.dtype), np.empty(of_line, slices.dtype)
    factor = np.empty(of_line, slices.dtype)
    for j in range(ny):
        factor[j * nz : (j + 1) * nz] = scale
    for row in range(rows):
        whole[:] = 0
        shared[:] = 0
        for i in range(nx):
            near, other = slices[row, i], along[i]
            for p in range(of_line):
                whole[p] += near[p]
                shared[p] += near[p] * other[p]
        for j in range(1, ny):
            whole[:nz] += whole[j * nz : (j + 1) * nz]
            shared[:nz] += shared[j * nz : (j + 1) * nz]
        whole[:nz] /= nx * ny
        for j in range(1, ny):
            whole[j * nz : (j + 1) * nz], shared[j * nz : (j + 1) * nz] = whole[:nz], shared[:nz]
        for i in range(nx):
            near, other, made = slices[row, i], along[i], out[row, i]
            for p in range(of_line):
                made[p] = (near[p] - whole[p] - shared[p] * other[p]) * factor[p]
