"""The relaxed probe in plain torch: the reference, on any device, differentiable.

    equation                                                      variable                  shape
    r_ic: from atom i to the probe (c = 0) or the tip's charge c  r                         point atom c 3
    F = sum_ic a_ic r_ic                                          a                         point atom c
    H = -dF/dp = sum_ic b_ic r_ic r_ic^T - a_ic 1                 b                         point atom c
    u: the probe relative to the tip's end                        u                         point 3
    S = k_lateral (u_x, u_y, 0) + k_radial (1 - L / |u|) u        springs: both k, L        molecule 3
    G = F - S, which is 0 at the relaxed probe                    pull                      point 3
    K = H + dS/du                                                 hessian                   point 3 3
    lambda = K^-1 H e_z                                           response                  point 3

u is found by Newton as in probe.py, for all points of a height at once and without a gradient. The gradient is that of
the implicit function theorem: G(u, theta) = 0 gives du/dtheta = K^-1 dG/dtheta, and with dF/du = -H
dF_z/dtheta = dF_z/dtheta|u - lambda . dG/dtheta|u. One evaluation of the force gives all of it; nothing is unrolled.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from .probe import LONGEST_STEP, MAX_STEPS, PROBE, SOFT_STEP, SOFTEST, SOFTEST_GRADIENT, tolerance

CHUNK = 2**23
"""Numbers that the intermediate results of one evaluation of the force may hold, about."""


class Model(NamedTuple):
    """What the force depends on and is differentiated by: atoms, packed or as (molecule, slot), and the tip."""

    positions: Float[Tensor, "*atoms 3"]
    """A."""
    repulsion: Float[Tensor, "*atoms"]
    """12 C12, eV A^12."""
    attraction: Float[Tensor, "*atoms"]
    """6 C6, eV A^6."""
    charge: Float[Tensor, "*atoms t"]
    """k q_i Q_t, eV A."""
    charge_z: Float[Tensor, "molecule t"]
    """Heights of the tip's charges above the probe, A."""
    springs: Float[Tensor, "molecule 3"]
    """k_lateral, k_radial (eV/A^2), L (A)."""


class Where(NamedTuple):
    """The points at which the probe is relaxed; the lateral ones are those of its unloaded position."""

    x: Float[Tensor, "molecule nx"]
    y: Float[Tensor, "molecule ny"]
    heights: Float[Tensor, "molecule height"]
    """Of the tip's end, descending, A."""


@torch.no_grad()
def relaxed(
    model: Model,
    first: Int[np.ndarray, " molecule"],
    count: Int[np.ndarray, " molecule"],
    where: Where,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "molecule nx ny height"], Float[Tensor, "molecule nx ny height 7"]]:
    """Vertical force (eV/A) on the relaxed probe at each pixel and height, and the probe (see `probe.PROBE`).

    Molecule k owns the `count[k]` atoms from `first[k]` on. Chunks of points bound the memory.
    """
    padded = _padded(model, first, count)
    shape = (len(where.x), where.x.shape[1], where.y.shape[1], where.heights.shape[1])
    force, probe = where.x.new_empty(shape), where.x.new_empty((*shape, PROBE))
    flat_force, flat_probe = force.flatten(0, 2), probe.flatten(0, 2)  # filled in place: nothing small is kept
    for point in torch.arange(len(flat_force), device=force.device).split(_points(padded, chunk)):
        molecule, i, j = torch.unravel_index(point, shape[:3])
        lateral, heights = torch.stack([where.x[molecule, i], where.y[molecule, j]], 1), where.heights[molecule]
        u = above = pad(torch.zeros_like(lateral), (0, 1)) - pad(model.springs[molecule, 2:], (2, 0))
        for k in range(shape[3]):
            start = 2 * u - above if k > 1 else u  # where the two heights above point to
            tip = torch.cat([lateral, heights[:, k : k + 1]], 1)
            now = _relax(padded, molecule, tip, start)
            above, u = u, now[:, :3]
            flat_probe[point, k] = now
            flat_force[point, k] = force_on(padded, molecule, tip + u)[:, 2]
    return force, probe


def product(
    model: Model,
    first: Int[np.ndarray, " molecule"],
    count: Int[np.ndarray, " molecule"],
    where: Where,
    probe: Float[Tensor, "molecule nx ny height 7"],
    d_force: Float[Tensor, "molecule nx ny height"],
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:
    """Derivatives of sum d_force * force by the fields of `model`; `probe` is what `relaxed` found."""
    with torch.enable_grad():
        leaves = Model(*(t.detach().requires_grad_() for t in model))
        padded = _padded(leaves, first, count)
    inputs = Model(*(t.detach().requires_grad_() for t in padded))
    sums = [torch.zeros_like(t) for t in inputs]
    probes, weights = probe.flatten(0, 3), d_force.flatten()
    for point in torch.arange(len(probes), device=probe.device).split(_points(padded, chunk)):
        molecule, i, j, k = torch.unravel_index(point, d_force.shape)
        tip = torch.stack([where.x[molecule, i], where.y[molecule, j], where.heights[molecule, k]], 1)
        with torch.enable_grad():
            force = _balanced(inputs, molecule, tip, probes[point])
        for total, part in zip(
            sums, torch.autograd.grad(force, inputs, weights[point], materialize_grads=True), strict=True
        ):
            total += part
    return torch.autograd.grad(tuple(padded), tuple(leaves), sums, materialize_grads=True)


def _padded(model: Model, first: Int[np.ndarray, " molecule"], count: Int[np.ndarray, " molecule"]) -> Model:
    """As many atoms for each molecule: its last one again, without a force."""
    slots, like = np.arange(count.max()), model.positions
    atoms = torch.from_numpy(first[:, None] + np.minimum(slots, count[:, None] - 1)).to(like.device)
    present = torch.from_numpy(slots < count[:, None]).to(like)
    return Model(
        model.positions[atoms],
        model.repulsion[atoms] * present,
        model.attraction[atoms] * present,
        model.charge[atoms] * present[..., None],
        model.charge_z * 1,
        model.springs * 1,
    )


def _points(padded: Model, chunk: int) -> int:
    """Points for which one evaluation of the force holds `chunk` numbers."""
    return max(1, chunk // (18 * padded.positions.shape[1] * (1 + padded.charge_z.shape[1])))


def _relax(
    model: Model, molecule: Int[Tensor, " point"], tip: Float[Tensor, "point 3"], start: Float[Tensor, "point 3"]
) -> Float[Tensor, "point 7"]:
    """Relaxed probes, the numbers of `probe.PROBE`."""
    balanced = tolerance(start.dtype == torch.float32)
    probe, moving = pad(start, (0, PROBE - 3)), torch.arange(len(start), device=start.device)
    for _ in range(MAX_STEPS):
        u = probe[moving, :3]
        force, hessian = force_and_hessian(model, molecule[moving], tip[moving] + u)
        spring, spring_hessian = spring_force(model.springs[molecule[moving]], u)
        total = hessian + spring_hessian
        response, curvature = solve(total, hessian[:, :, 2], u.new_tensor([SOFTEST_GRADIENT]))
        probe[moving, 3:] = torch.cat([response, curvature[:, None]], 1)
        pull = force - spring
        size = pull.norm(dim=1)
        unbalanced = size >= balanced
        moving = moving[unbalanced]
        if not len(moving):
            break
        softest = ((size + balanced) / SOFT_STEP).clamp(max=SOFTEST)[unbalanced]
        step, _ = solve(total[unbalanced], pull[unbalanced], softest)
        step = step * (LONGEST_STEP / (step.norm(dim=1, keepdim=True) + balanced)).clamp(max=1)
        probe[moving, :3] += step
    return probe


def _balanced(
    model: Model, molecule: Int[Tensor, " point"], tip: Float[Tensor, "point 3"], probe: Float[Tensor, "point 7"]
) -> Float[Tensor, " point"]:
    """Vertical force on relaxed probes, with the first derivatives that the implicit function theorem gives."""
    u, response = probe[:, :3], probe[:, 3:6]
    force = force_on(model, molecule, tip + u)
    pull = force - spring_force(model.springs[molecule], u)[0]
    return force[:, 2] - (response * (pull - pull.detach())).sum(1)


def force_on(model: Model, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]) -> Float[Tensor, "point 3"]:
    """F: force of the surface on probes at p, eV/A."""
    r, a, _ = _terms(model, molecule, p)
    return torch.einsum("pnc,pncx->px", a, r)


def force_and_hessian(
    model: Model, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point 3"], Float[Tensor, "point 3 3"]]:
    """F and H, eV/A^2."""
    r, a, b = _terms(model, molecule, p)
    outer = torch.einsum("pncx,pncy->pxy", b[..., None] * r, r)
    return torch.einsum("pnc,pncx->px", a, r), outer - a.sum((1, 2))[:, None, None] * torch.eye(3).to(a)


def _terms(
    model: Model, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point atom c 3"], Float[Tensor, "point atom c"], Float[Tensor, "point atom c"]]:
    """r, a and b."""
    r = p[:, None] - model.positions[molecule]
    r = r[:, :, None] + pad(pad(model.charge_z, (1, 0))[..., None], (2, 0))[molecule][:, None]
    inverse2 = 1 / r.square().sum(-1)
    near, far = inverse2[..., 0], inverse2[..., 1:]
    near6, repulsion, attraction = near**3, model.repulsion[molecule], model.attraction[molecule]
    coulomb = model.charge[molecule] * far * far.sqrt()
    a = ((repulsion * near6 - attraction) * near6 * near)[..., None]
    b = ((14 * repulsion * near6 - 8 * attraction) * near6 * near**2)[..., None]
    return r, torch.cat([a, coulomb], -1), torch.cat([b, 3 * coulomb * far], -1)


def spring_force(
    springs: Float[Tensor, "point 3"], u: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point 3"], Float[Tensor, "point 3 3"]]:
    """S and dS/du: what the springs pull a probe at u back with, eV/A, and their stiffness, eV/A^2."""
    lateral, radial, bond_length = springs.split(1, dim=1)
    length = u.norm(dim=1, keepdim=True)
    diagonal = lateral * u.new_tensor([1, 1, 0]) + radial * (1 - bond_length / length)
    outer = (radial * bond_length / length**3)[..., None] * u[:, :, None] * u[:, None]
    return diagonal * u, torch.diag_embed(diagonal) + outer


def solve(
    hessian: Float[Tensor, "point 3 3"], pull: Float[Tensor, "point 3"], softest: Float[Tensor, " #point"]
) -> tuple[Float[Tensor, "point 3"], Float[Tensor, " point"]]:
    """K^-1 pull, where K is lifted to curvatures of at least `softest`; and its smallest lateral curvature.

    z is eliminated first; lateral is what is left of K once z has followed (the Schur complement).
    """
    hzz = hessian[:, 2, 2].maximum(softest)
    follow = hessian[:, :2, 2:] / hzz[:, None, None]
    lateral = hessian[:, :2, :2] - follow * hessian[:, 2:, :2]
    a, b, c = lateral[:, 0, 0], lateral[:, 0, 1], lateral[:, 1, 1]
    curvature = (a + c) / 2 - ((a - c).square() / 4 + b * b).sqrt()
    shift = (softest - curvature).clamp(min=0)
    a, c = a + shift, c + shift
    rx, ry = (pull[:, :2] - follow[:, :, 0] * pull[:, 2:]).unbind(1)
    det = a * c - b * b
    x, y = (c * rx - b * ry) / det, (a * ry - b * rx) / det
    z = (pull[:, 2] - hessian[:, 0, 2] * x - hessian[:, 1, 2] * y) / hzz
    return torch.stack([x, y, z], 1), curvature
