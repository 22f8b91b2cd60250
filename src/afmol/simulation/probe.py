"""The probe on its springs, relaxed at every pixel and followed down from the slice above.

Balance of forces at the relaxed probe, u its position relative to the tip's end (shifted by the lateral offset):

    F_surface - k_lateral (u_x, u_y, 0) - k_radial (1 - L / |u|) u = 0

solved by Newton with the analytic 3 x 3 Hessian of the total energy. z is eliminated first (the radial spring keeps it
stiff); the lateral 2 x 2 block that is left is kept positive definite, so that a step never climbs towards a saddle.
"""

import numpy as np
from numba import njit, prange

from .forces import (
    END,
    FX,
    FY,
    FZ,
    HXX,
    HXY,
    HXZ,
    HYY,
    HYZ,
    HZZ,
    LANES,
    PIXEL,
    UX,
    UY,
    UZ,
    VX,
    force_and_hessian,
)

MAX_STEPS = 60
"""Newton steps a point at most; about one is needed on average, more where the probe snaps."""


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


def _scan(anchor_x, anchor_y, tip_z, lateral, radial, length, x, y, z, lj, q, charge_z, limits, out):
    """Vertical force of the surface on the relaxed probe, eV/A, into `out` (nx, ny, nz); returns unconverged points."""
    tiles = (anchor_y.size + LANES - 1) // LANES
    failed = 0.0
    for p in prange(anchor_x.size * tiles):
        i, first = p // tiles, p % tiles * LANES
        last = min(first + LANES, anchor_y.size)
        w = np.empty(END, x.dtype)
        failed += _descend(
            w,
            anchor_x[i],
            anchor_y[first:last],
            tip_z,
            lateral,
            radial,
            length,
            x,
            y,
            z,
            lj,
            q,
            charge_z,
            limits,
            out[i, first:last],
        )
    return failed


vertical_force = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)(_scan)
"""`_scan` on one thread, the interpreter's lock released: several threads may call it at once."""
vertical_force_parallel = njit(nogil=True, fastmath=True, error_model="numpy", parallel=True, cache=True)(_scan)
"""`_scan` on all cores; not to be called from several threads at once (numba's workqueue cannot)."""
