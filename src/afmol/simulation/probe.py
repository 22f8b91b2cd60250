"""The probe on its springs, relaxed at every pixel and followed down from the slice above.

Equations and symbols as in reference.py. Balance of forces at the relaxed probe, u its position relative to the tip's
end (shifted by the lateral offset):

    G = F - S = 0,  S = k_lateral (u_x, u_y, 0) + k_radial (1 - L / |u|) u

solved by Newton with the analytic 3 x 3 Hessian K of the total energy. z is eliminated first (the radial spring keeps
it stiff); the lateral 2 x 2 block that is left is kept positive definite, so that a step never climbs towards a saddle.

The vector-Jacobian product. With g = dL/dF_z, lambda = g K^-1 H e_z and v = g e_z - lambda, a point adds to dL/dtheta
v . dF/dtheta + lambda . dS/dtheta, u held fixed. The force model's adjoint gives the first term.

The two entry points and `descend` are plain functions that call a force model's kernels by two names. `kernels`
compiles a copy of them for each model, in which those are inlined. How kernels are written: forces/force.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from hashlib import sha256
from inspect import getfile, unwrap
from pathlib import Path
from re import sub
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numba import njit
from tqdm import tqdm

from .forces.force import (
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
    VY,
    VZ,
    ForceModel,
    Scene,
    kernel,
)

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
PROBE = 7
"""Numbers kept of a relaxed probe: position relative to the tip's end (A), response lambda = K^-1 H e_z, least lateral
curvature of the energy (eV/A^2). As the tip's end goes down by dz, the probe moves by lambda dz relative to it."""


def tolerance(single: bool) -> float:
    """Force that counts as none, eV/A. In float32 forces are exact to 5e-6: the quadrupole's charges nearly cancel."""
    return 2e-5 if single else 1e-12


def limits(single: bool) -> tuple[float, ...]:
    """What the kernels keep to, in the order of `Scene.limits`."""
    return tolerance(single), LONGEST_STEP, SOFTEST, SOFTEST_GRADIENT, 3.0, 1 / SOFT_STEP


def force_and_hessian(w, anchor_x, anchor_z, scene):
    """Stands here for the force model's kernel of that name."""
    raise NotImplementedError


def force_vjp(w, anchor_x, anchor_z, scene, d_atoms, d_tip):
    """Stands here for the force model's kernel of that name."""
    raise NotImplementedError


@kernel
def total_hessian(w, lane, springs, one):
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


@kernel
def solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, softest, one):
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


@kernel
def newton_step(w, springs, limits):
    """Move the probes that are out of balance one step; returns how many there are."""
    tolerance, longest, softest = limits[0], limits[1], limits[2]
    one = limits[4] / limits[4]
    zero = one - one
    moving = zero
    for lane in range(LANES):
        gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz = total_hessian(w, lane, springs, one)
        pull = np.sqrt(gx * gx + gy * gy + gz * gz)
        soft = (pull + tolerance) * limits[5]
        soft = soft if soft < softest else softest
        dx, dy, dz, _ = solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, soft, one)
        scale = longest / np.sqrt(dx * dx + dy * dy + dz * dz + tolerance * tolerance)
        scale = scale if scale < one else one
        out_of_balance = pull >= tolerance
        scale = scale if out_of_balance else zero
        w[UX + lane] += scale * dx
        w[UY + lane] += scale * dy
        w[UZ + lane] += scale * dz
        moving += one if out_of_balance else zero
    return moving


@kernel
def keep(w, lane, scene, probe):
    """Write the PROBE numbers of a lane to `probe`."""
    one = scene.limits[4] / scene.limits[4]
    _, _, _, hxx, hxy, hxz, hyy, hyz, hzz = total_hessian(w, lane, scene.springs, one)
    gx, gy, gz = w[HXZ + lane], w[HYZ + lane], w[HZZ + lane]
    probe[0], probe[1], probe[2] = w[UX + lane], w[UY + lane], w[UZ + lane]
    probe[3], probe[4], probe[5], probe[6] = solve(gx, gy, gz, hxx, hxy, hxz, hyy, hyz, hzz, scene.limits[3], one)


def descend(w, i, first, scene, force, probe):
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
            moving = newton_step(w, scene.springs, scene.limits)
            steps += 1
        failed += moving
        for lane in range(pixels):
            force[i, first + lane, k] = w[FZ + lane]
        if probe.size:
            for lane in range(pixels):
                keep(w, lane, scene, probe[i, first + lane, k])
    return failed


def vertical_force(scene, force, probe):
    """Vertical force of the surface on the relaxed probe, eV/A, into `force` (nx, ny, nz); returns unconverged points.

    `probe` (nx, ny, nz, PROBE) is filled too unless it is empty. The interpreter's lock is released.
    """
    failed = 0.0
    w = np.empty(END, scene.x.dtype)
    for i in range(scene.x.size):
        for first in range(0, scene.y.size, LANES):
            failed += descend(w, i, first, scene, force, probe)
    return failed


def vertical_force_vjp(scene, probe, d_force, d_atoms, d_tip):
    """Add the derivatives of sum d_force * force to `d_atoms` (atom, 3 + rows) and `d_tip` (3 + numbers), both float64.

    By an atom's position and its terms; by the three springs and the tip's terms. `probe` is what `vertical_force`
    found. The interpreter's lock is released.
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
                force_vjp(w, scene.x[i], scene.heights[k], scene, d_atoms, d_tip)


class Kernels(NamedTuple):
    """The entry points, compiled for a force model."""

    vertical_force: Callable
    vertical_force_vjp: Callable


def kernels(force: ForceModel) -> Kernels:
    """Those of a force model, which numba compiles when they are first called, and keeps on disk."""
    return _compiled(force.force_and_hessian, force.force_vjp)


@cache
def _compiled(force_and_hessian: Any, force_vjp: Any) -> Kernels:
    """The entry points around a model's kernels, which several models may share.

    numba would notice changes of this file alone on disk. So the name under which each is kept holds a hash of all
    sources: of this file, of forces/, and of the file of the model's kernels.
    """
    own = {Path(getfile(f.py_func)) for f in (force_and_hessian, force_vjp)}
    sources = sorted({Path(__file__), *(Path(__file__).parent / "forces").glob("*.py"), *own})
    on_disk = all(path.is_file() for path in sources)  # and not typed into a session
    digest = sha256(b"".join(path.read_bytes() for path in sources if on_disk)).hexdigest()
    called = globals() | {"force_and_hessian": force_and_hessian, "force_vjp": force_vjp}
    model = Path(getfile(force_and_hessian.py_func)).stem

    def compiled(function: Callable, cache: bool = False, forceinline: bool = False) -> Callable:
        plain = unwrap(function)
        copy = FunctionType(plain.__code__, called, plain.__name__)
        copy.__qualname__ = sub(r"\W", "_", f"{plain.__name__}_{model}_{digest[:12]}")
        return njit(nogil=True, fastmath=True, error_model="numpy", cache=cache, forceinline=forceinline)(copy)

    called["descend"] = compiled(descend, forceinline=True)
    return Kernels(compiled(vertical_force, cache=on_disk), compiled(vertical_force_vjp, cache=on_disk))


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
    force: ForceModel, scenes: list[Scene], threads: int, keep_probe: bool = False, progress: bool = False
) -> tuple[Float[np.ndarray, "scene nx ny nz"], np.ndarray]:
    """Vertical forces of scenes of one shape, eV/A, and the probes (scene, nx, ny, nz, PROBE), empty unless kept."""
    x, y, heights, *_ = scenes[0]
    shape = (len(scenes), len(x), len(y), len(heights))
    vertical = np.empty(shape, x.dtype)
    probe = np.empty((*shape, PROBE) if keep_probe else (len(scenes), 0, 0, 0, PROBE), x.dtype)
    vertical_force = kernels(force).vertical_force

    def work(k: int, columns: slice) -> None:
        vertical_force(scenes[k]._replace(x=scenes[k].x[columns]), vertical[k, columns], probe[k, columns])

    in_threads(work, scenes, threads, progress)
    return vertical, probe


def relaxed_forces_vjp(
    force: ForceModel,
    scenes: list[Scene],
    probe: np.ndarray,
    d_force: Float[np.ndarray, "scene nx ny nz"],
    threads: int,
) -> tuple[Float[np.ndarray, "atom columns"], Float[np.ndarray, "scene numbers"]]:
    """Derivatives of sum d_force * force by what belongs to the atoms of all scenes, and to each scene's tip.

    Columns as in the kernel `vertical_force_vjp`.
    """
    vertical_force_vjp = kernels(force).vertical_force_vjp

    def zeros(k: int) -> tuple[np.ndarray, np.ndarray]:
        rows, atoms = scenes[k].atoms.shape
        return np.zeros((atoms, 3 + rows)), np.zeros(3 + max(len(scene.tip) for scene in scenes))

    def work(k: int, columns: slice) -> tuple[int, np.ndarray, np.ndarray]:
        d_atoms, d_tip = zeros(k)
        here = scenes[k]._replace(x=scenes[k].x[columns])
        vertical_force_vjp(here, probe[k, columns], d_force[k, columns], d_atoms, d_tip)
        return k, d_atoms, d_tip

    sums, tips = zip(*(zeros(k) for k in range(len(scenes))), strict=True)
    for k, d_atoms, d_tip in in_threads(work, scenes, threads):
        sums[k][:] += d_atoms
        tips[k][:] += d_tip
    return np.concatenate(sums), np.stack(tips)
