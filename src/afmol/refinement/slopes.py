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
"""

import numpy as np
from numba import njit


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
        terms: (n, 3): 12 C12, 6 C6, nothing; or a, k, 6 C6. by_factor (n, 2, 3): their slopes by the atom's factors.
        charges: (n,), e. tip (3, 2): charges, e, and offsets, A. coulomb: eV A. quadrupole (3,): e.
        group: (n,): the place of each atom's element.
        probe: (ny, nz, 7), relaxed.
        out: (rows, nz, ny), zeros: 4 an atom, 2 an element, 8: stiffness, charge, share, distance, three that are no
            matter of forces, dispersion.
    """
    n, ny = positions.shape[1], y.size
    one = k_lateral / k_lateral
    zero, two, three, four = one - one, one + one, one + one + one, one + one + one + one
    eight = four + four
    fourteen = eight + four + two
    tip_row = out.shape[0] - 8
    r6 = terms[:, 3]
    for k in range(heights.size):
        for i in range(n):
            t0, t1, t2, damped = terms[i, 0], terms[i, 1], terms[i, 2], r6[i]
            q = coulomb * charges[i]
            own, other = 4 * i, group[i]
            for j in range(ny):
                lx, ly, lz = -probe[j, k, 3], -probe[j, k, 4], one - probe[j, k, 5]
                dx = x + probe[j, k, 0] - positions[0, i]
                dy = y[j] + probe[j, k, 1] - positions[1, i]
                dz = heights[k] + probe[j, k, 2] - positions[2, i]
                flat, along = dx * dx + dy * dy, dx * lx + dy * ly
                s, m = flat + dz * dz, along + dz * lz
                if exponential:
                    r = np.sqrt(s)
                    e = np.exp(-t1 * (r - three)) / r
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
                px, py, pz = bm * dx - a * lx, bm * dy - a * ly, bm * dz - a * lz
                pq = ps = pc = zero
                for t in range(3):
                    ez = dz + tip[t, 1]
                    w = one / (flat + ez * ez)
                    c = w * np.sqrt(w)
                    mt = along + ez * lz
                    cm = c * mt
                    pq += tip[t, 0] * cm
                    ps += quadrupole[t] * cm
                    if t == 1:
                        pc = cm
                    at = q * tip[t, 0] * c
                    bt = three * at * w * mt
                    px += bt * dx - at * lx
                    py += bt * dy - at * ly
                    pz += bt * ez - at * lz
                out[own, k, j] += px
                out[own + 1, k, j] += py
                out[own + 2, k, j] += pz
                out[own + 3, k, j] += coulomb * pq
                out[other, k, j] += by_factor[i, 0, 0] * g0 + by_factor[i, 0, 1] * g1 + by_factor[i, 0, 2] * g2
                out[other + 1, k, j] += by_factor[i, 1, 0] * g0 + by_factor[i, 1, 1] * g1 + by_factor[i, 1, 2] * g2
                out[tip_row + 1, k, j] += q * pc
                out[tip_row + 2, k, j] += q * ps
                out[tip_row + 3, k, j] -= pz
                out[tip_row + 7, k, j] += t2 * g2
        for j in range(ny):
            out[tip_row, k, j] = k_lateral * (probe[j, k, 3] * probe[j, k, 0] + probe[j, k, 4] * probe[j, k, 1])


@njit(nogil=True, fastmath=True, cache=True)
def smoothed(slices, x, y, out):
    """Sums over neighbouring pixels, into `out`; beyond the border it is as on it.

    Args:
        slices: (rows, nx, ny nz).
        x: weights of the pixels from -m to m along x, (2 m + 1, nz); y: along y.
        out: as slices.
    """
    rows, nx, of_line = slices.shape
    nz = x.shape[1]
    ny, m, n = of_line // nz, x.shape[0] // 2, y.shape[0] // 2
    along_x, along_y = np.empty((len(x), of_line), slices.dtype), np.empty((len(y), of_line), slices.dtype)
    for j in range(ny):
        along_x[:, j * nz : (j + 1) * nz], along_y[:, j * nz : (j + 1) * nz] = x, y
    line = np.empty(of_line, slices.dtype)
    for row in range(rows):
        for i in range(nx):
            line[:] = 0
            for t in range(len(x)):
                near, weight = slices[row, min(max(i + t - m, 0), nx - 1)], along_x[t]
                for p in range(of_line):
                    line[p] += weight[p] * near[p]
            made = out[row, i]
            made[:] = 0
            for t in range(len(y)):
                by, weight = (t - n) * nz, along_y[t]
                start, stop = min(max(0, -by), of_line), max(min(of_line, of_line - by), 0)
                for p in range(start, stop):
                    made[p] += weight[p] * line[p + by]
                for p in range(start):
                    made[p] += weight[p] * line[p % nz]
                for p in range(stop, of_line):
                    made[p] += weight[p] * line[of_line - nz + p % nz]
