"""The relaxed probe in plain torch: the reference, on any device, differentiable.

    equation                                                      variable                  shape
    r_ic: from atom i to the probe or to charge c of the tip      r                         point atom c 3
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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from .forces import ForceModel
from .probe import LONGEST_STEP, MAX_STEPS, PROBE, SOFT_STEP, SOFTEST, SOFTEST_GRADIENT, tolerance
from .scene import Interaction, Scenes

CHUNK = 2**23
"""Numbers that the intermediate results of one evaluation of the force may hold, about."""


@torch.no_grad()
def relaxed(
    scenes: Scenes, chunk: int = CHUNK
) -> tuple[Float[Tensor, "molecule nx ny height"], Float[Tensor, "molecule nx ny height 7"]]:
    """Vertical force (eV/A) on the relaxed probe at each pixel and height, and the probe (see `probe.PROBE`).

    Chunks of points bound the memory.
    """
    padded, (x, y, heights) = _padded(scenes), scenes.points
    shape = (len(x), x.shape[1], y.shape[1], heights.shape[1])
    force, probe = x.new_empty(shape), x.new_empty((*shape, PROBE))
    flat_force, flat_probe = force.flatten(0, 2), probe.flatten(0, 2)  # filled in place: nothing small is kept
    for point in torch.arange(len(flat_force), device=force.device).split(_points_at_once(padded, chunk)):
        molecule, i, j = torch.unravel_index(point, shape[:3])
        lateral, end = torch.stack([x[molecule, i], y[molecule, j]], 1), heights[molecule]
        u = above = pad(torch.zeros_like(lateral), (0, 1)) - pad(padded.springs[molecule, 2:], (2, 0))
        for k in range(shape[3]):
            start = 2 * u - above if k > 1 else u  # where the two heights above point to
            tip = torch.cat([lateral, end[:, k : k + 1]], 1)
            now = _relax(scenes.force, padded, molecule, tip, start)
            above, u = u, now[:, :3]
            flat_probe[point, k] = now
            flat_force[point, k] = force_on(scenes.force, padded, molecule, tip + u)[:, 2]
    return force, probe


def relaxed_vjp(
    scenes: Scenes,
    probe: Float[Tensor, "molecule nx ny height 7"],
    d_force: Float[Tensor, "molecule nx ny height"],
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:
    """Derivatives of sum d_force * force by the fields of the interaction; `probe` is what `relaxed` found."""
    with torch.enable_grad():
        leaves = Interaction(*(t.detach().requires_grad_() for t in scenes.interaction))
        padded = _padded(scenes._replace(interaction=leaves))
    inputs = Interaction(*(t.detach().requires_grad_() for t in padded))
    sums = [torch.zeros_like(t) for t in inputs]
    probes, weights, (x, y, heights) = probe.flatten(0, 3), d_force.flatten(), scenes.points
    for point in torch.arange(len(probes), device=probe.device).split(_points_at_once(padded, chunk)):
        molecule, i, j, k = torch.unravel_index(point, d_force.shape)
        tip = torch.stack([x[molecule, i], y[molecule, j], heights[molecule, k]], 1)
        with torch.enable_grad():
            force = _balanced(scenes.force, inputs, molecule, tip, probes[point])
        parts = torch.autograd.grad(force, inputs, weights[point], materialize_grads=True)
        for total, part in zip(sums, parts, strict=True):
            total += part
    return torch.autograd.grad(tuple(padded), tuple(leaves), sums, materialize_grads=True)


def _padded(scenes: Scenes) -> Interaction:
    """As many atoms for each molecule: its last one again, without a force."""
    positions, atoms, tip, springs = scenes.interaction
    slots, count = np.arange(scenes.count.max()), scenes.count[:, None]
    which = torch.from_numpy(scenes.first[:, None] + np.minimum(slots, count - 1)).to(positions.device)
    present = torch.from_numpy(slots < count).to(positions)
    return Interaction(positions[which], atoms[which] * present[..., None], tip * 1, springs * 1)


def _points_at_once(padded: Interaction, chunk: int) -> int:
    """Points for which one evaluation of the force holds `chunk` numbers."""
    return max(1, chunk // (18 * padded.positions.shape[1] * (1 + padded.tip.shape[1])))


def _relax(
    model: ForceModel,
    padded: Interaction,
    molecule: Int[Tensor, " point"],
    tip: Float[Tensor, "point 3"],
    start: Float[Tensor, "point 3"],
) -> Float[Tensor, "point 7"]:
    """Relaxed probes, the numbers of `probe.PROBE`."""
    balanced = tolerance(start.dtype == torch.float32)
    probe, moving = pad(start, (0, PROBE - 3)), torch.arange(len(start), device=start.device)
    for _ in range(MAX_STEPS):
        u = probe[moving, :3]
        force, hessian = force_and_hessian(model, padded, molecule[moving], tip[moving] + u)
        spring, spring_hessian = spring_force(padded.springs[molecule[moving]], u)
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
    model: ForceModel,
    padded: Interaction,
    molecule: Int[Tensor, " point"],
    tip: Float[Tensor, "point 3"],
    probe: Float[Tensor, "point 7"],
) -> Float[Tensor, " point"]:
    """Vertical force on relaxed probes, with the first derivatives that the implicit function theorem gives."""
    u, response = probe[:, :3], probe[:, 3:6]
    force = force_on(model, padded, molecule, tip + u)
    pull = force - spring_force(padded.springs[molecule], u)[0]
    return force[:, 2] - (response * (pull - pull.detach())).sum(1)


def force_on(
    model: ForceModel, padded: Interaction, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]
) -> Float[Tensor, "point 3"]:
    """F: force of the surface on probes at p, eV/A; the interaction's atoms as (molecule, slot)."""
    r, a, _ = _pairs(model, padded, molecule, p)
    return torch.einsum("pnc,pncx->px", a, r)


def force_and_hessian(
    model: ForceModel, padded: Interaction, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point 3"], Float[Tensor, "point 3 3"]]:
    """F and H, eV/A^2."""
    r, a, b = _pairs(model, padded, molecule, p)
    outer = torch.einsum("pncx,pncy->pxy", b[..., None] * r, r)
    return torch.einsum("pnc,pncx->px", a, r), outer - a.sum((1, 2))[:, None, None] * torch.eye(3).to(a)


def _pairs(
    model: ForceModel, padded: Interaction, molecule: Int[Tensor, " point"], p: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "point atom c 3"], Float[Tensor, "point atom c"], Float[Tensor, "point atom c"]]:
    """r, a and b."""
    return model.pairs(p[:, None] - padded.positions[molecule], padded.atoms[molecule], padded.tip[molecule])


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
