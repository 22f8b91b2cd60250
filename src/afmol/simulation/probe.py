"""The probe on its springs, relaxed at every pixel and followed down from the slice above.

Balance of forces at the relaxed probe, u its position relative to the tip's end (shifted by the lateral offset):

    F_surface - k_lateral (u_x, u_y, 0) - k_radial (1 - L / |u|) u = 0

solved by Newton with the analytic 3 x 3 Hessian of the total energy. z is eliminated first (the radial spring keeps it
stiff); the lateral 2 x 2 block that is left is kept positive definite, so that a step never climbs towards a saddle.

LANES neighbouring pixels are worked on at once, so that LLVM turns each inner loop into SIMD instructions. All their
numbers lie in one flat array, field by field, because LLVM must see that fields do not overlap. Literals are avoided:
a Python float or int would silently promote float32 arithmetic to float64. All kernels stand in this one file, since
numba's cache on disk notices changes only in the file of the function that is called.
"""

import numpy as np
from numba import njit, prange

LANES = 16
"""Pixels at once: the float32 numbers in the widest SIMD register."""
MAX_STEPS = 60
"""Newton steps a point at most; about one is needed on average, more where the probe snaps."""


# Start of each field in the flat array: probe relative to the tip's end, force, Hessian, the slice above, pixel
UX, UY, UZ, FX, FY, FZ, HXX, HXY, HXZ, HYY, HYZ, HZZ, VX, VY, VZ, PIXEL, END = (LANES * k for k in range(17))


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


@njit(nogil=True, fastmath=True, error_model="numpy")
def _newton_step(w, lateral, radial, length, limits):
    """Move the probes that are out of balance one step; returns how many there are.

    `limits`: force tolerance (eV/A), longest step (A), smallest curvature (eV/A^2), 3.
    """
    tolerance, longest, softest, three = limits[0], limits[1], limits[2], limits[3]
    one = three / three
    zero = one - one
    half = one / (one + one)
    moving = zero
    for lane in range(LANES):
        ux, uy, uz = w[UX + lane], w[UY + lane], w[UZ + lane]
        inverse = one / (ux * ux + uy * uy + uz * uz)
        g = length * np.sqrt(inverse)
        spring = radial * (one - g)
        gx = w[FX + lane] - (lateral + spring) * ux
        gy = w[FY + lane] - (lateral + spring) * uy
        gz = w[FZ + lane] - spring * uz
        c = radial * g * inverse
        hxx = w[HXX + lane] + lateral + spring + c * ux * ux
        hxy = w[HXY + lane] + c * ux * uy
        hxz = w[HXZ + lane] + c * ux * uz
        hyy = w[HYY + lane] + lateral + spring + c * uy * uy
        hyz = w[HYZ + lane] + c * uy * uz
        hzz = w[HZZ + lane] + spring + c * uz * uz
        hzz = hzz if hzz > softest else softest
        # Schur complement: the lateral block once z has followed
        bx, by = hxz / hzz, hyz / hzz
        sxx, sxy, syy = hxx - bx * hxz, hxy - bx * hyz, hyy - by * hyz
        rx, ry = gx - bx * gz, gy - by * gz
        spread = half * (sxx - syy)
        shift = softest - half * (sxx + syy) + np.sqrt(spread * spread + sxy * sxy)
        shift = shift if shift > zero else zero
        sxx, syy = sxx + shift, syy + shift
        det = sxx * syy - sxy * sxy
        dx, dy = (syy * rx - sxy * ry) / det, (sxx * ry - sxy * rx) / det
        dz = (gz - hxz * dx - hyz * dy) / hzz
        scale = longest / np.sqrt(dx * dx + dy * dy + dz * dz + tolerance * tolerance)
        scale = scale if scale < one else one
        out_of_balance = gx * gx + gy * gy + gz * gz >= tolerance * tolerance
        scale = scale if out_of_balance else zero
        w[UX + lane] += scale * dx
        w[UY + lane] += scale * dy
        w[UZ + lane] += scale * dz
        moving += one if out_of_balance else zero
    return moving


@njit(nogil=True, fastmath=True, error_model="numpy")
def _descend(w, anchor_x, anchor_y, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out):
    """Relax the probes of at most LANES pixels in a column for each tip height, far to close; returns failures."""
    one = limits[3] / limits[3]
    zero = one - one
    w[:] = zero
    for lane in range(LANES):
        w[UZ + lane] = -length
        w[PIXEL + lane] = anchor_y[min(lane, anchor_y.size - 1)]
    failed = zero
    for k in range(tip_z.size):
        for n in range(3 * LANES):
            u = w[UX + n]
            if k > 1:  # start where the two slices above point to
                w[UX + n] = u + u - w[VX + n]
            w[VX + n] = u
        moving = one
        steps = 0
        while moving > zero and steps < MAX_STEPS:
            force_and_hessian(w, anchor_x, tip_z[k], x, y, z, lj, q, charge_z, limits[3])
            moving = _newton_step(w, lateral, radial, length, limits)
            steps += 1
        failed += moving
        for lane in range(anchor_y.size):
            out[lane, k] = w[FZ + lane]
    return failed


@njit(nogil=True, fastmath=True, error_model="numpy")
def _tile(p, anchor_x, anchor_y, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out):
    """Tile p of LANES pixels; returns its unconverged points."""
    tiles = (anchor_y.size + LANES - 1) // LANES
    i, first = p // tiles, p % tiles * LANES
    last = min(first + LANES, anchor_y.size)
    pixels, into = anchor_y[first:last], out[i, first:last]
    w = np.empty(END, x.dtype)
    return _descend(w, anchor_x[i], pixels, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, into)


# Two functions by name, since numba's cache on disk does not tell parallel from serial versions of one.


@njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
def vertical_force(ax, ay, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out):
    """Vertical force of the surface on the relaxed probe, eV/A, into `out` (nx, ny, nz); returns unconverged points.

    One thread, the interpreter's lock released: several threads may call it at once.
    """
    failed = 0.0
    for p in range(ax.size * ((ay.size + LANES - 1) // LANES)):
        failed += _tile(p, ax, ay, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out)
    return failed


@njit(nogil=True, fastmath=True, error_model="numpy", parallel=True, cache=True)
def vertical_force_parallel(ax, ay, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out):
    """`vertical_force` on all cores; not to be called from several threads at once (numba's workqueue cannot)."""
    failed = 0.0
    for p in prange(ax.size * ((ay.size + LANES - 1) // LANES)):
        failed += _tile(p, ax, ay, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out)
    return failed
