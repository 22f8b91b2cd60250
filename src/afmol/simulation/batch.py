"""Stacks of many molecules at once, as torch tensors with a gradient: what a fit of a structure to an image needs.

Two engines for one model: kernels for the CPU (probe.py), plain torch for any device (reference.py). Both find the
relaxed probe first and take the gradient from the implicit function theorem. `force_stacks` and `force_snaps` are for
any force model, `stacks` and `snaps` for Lennard-Jones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ConfigError, MoleculeError
from .forces import LENNARD_JONES, ForceModel
from .probe import SOFTEST_GRADIENT, relaxed_forces, relaxed_forces_vjp
from .reference import CHUNK, relaxed, relaxed_vjp
from .scene import Interaction, Scenes, assemble, check_length, check_parameters, kernel_scenes
from .tip import TIPS, Grid, Tip, TipParameters

JUMP = 0.1
"""A probe that moves this far, A, off the mean of the tangents of its path at two heights has jumped between them."""


def stacks(
    positions: Tensor,
    charges: Tensor,
    lj_radius: Tensor,
    lj_depth: Tensor,
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip] = TIPS["co"],
    parameters: TipParameters | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "molecule nx ny nz"]:
    """`force_stacks` of Lennard-Jones with charges: lj_radius in A, lj_depth in eV."""
    atoms = {"lj_radius": lj_radius, "lj_depth": lj_depth}
    return force_stacks(LENNARD_JONES, positions, charges, atoms, molecule, grids, tip, parameters, backend=backend)


def snaps(
    positions: Tensor,
    charges: Tensor,
    lj_radius: Tensor,
    lj_depth: Tensor,
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip] = TIPS["co"],
    parameters: TipParameters | None = None,
    *,
    backend: str = "auto",
) -> Bool[Tensor, "molecule nx ny nz"]:
    """`force_snaps` of Lennard-Jones with charges: lj_radius in A, lj_depth in eV."""
    atoms = {"lj_radius": lj_radius, "lj_depth": lj_depth}
    return force_snaps(LENNARD_JONES, positions, charges, atoms, molecule, grids, tip, parameters, backend=backend)


def force_stacks(
    force: ForceModel,
    positions: Tensor,
    charges: Tensor,
    atoms: Mapping[str, Tensor],
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip] = TIPS["co"],
    parameters: TipParameters | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "molecule nx ny nz"]:
    """Frequency-shift stacks (Hz) of packed molecules, differentiable (once) in all tensors.

    Args:
        positions: (atoms, 3), A, float32 or float64, in which everything is computed.
        charges: (atoms,), e.
        atoms: the force model's parameters by name, each (atoms,).
        molecule: (atoms,), integers from 0 in any order: to which molecule each atom belongs.
        grids: where to scan each molecule, of one shape and number of slices; or one grid for all.
        tip: what images the molecules; one for all, or one for each.
        parameters: take the place of the tips' own.
        backend: "torch", the reference, on any device; "numba", kernels for the CPU; "auto", numba on the CPU.

    A gradient at a point where the probe snaps, see `snaps`, is finite and means little.

    Raises:
        MoleculeError: tensors that do not fit together, numbers that are not finite, atoms on top of each other.
        ScanError: the tip would go into a molecule. ConfigError: grids that do not fit together, or a backend that
        cannot be used.
    """
    scenes = _scenes(force, positions, charges, atoms, molecule, grids, tip, parameters)
    vertical = _VerticalForce.apply(*scenes.interaction, scenes, _with_kernel(backend, positions))
    return torch.einsum("mxyk,mkz->mxyz", vertical, scenes.weights)


def force_snaps(
    force: ForceModel,
    positions: Tensor,
    charges: Tensor,
    atoms: Mapping[str, Tensor],
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip] = TIPS["co"],
    parameters: TipParameters | None = None,
    *,
    backend: str = "auto",
) -> Bool[Tensor, "molecule nx ny nz"]:
    """Where the probe jumps, or is about to, at a height that counts in a slice: images are discontinuous there.

    A probe has jumped when it moved from one height to the next by JUMP more than the implicit function theorem has it
    move at either; it is about to when the smallest lateral curvature of the energy is below `probe.SOFTEST_GRADIENT`,
    so that gradients are not exact. Arguments and errors are those of `force_stacks`.
    """
    scenes = _scenes(force, positions, charges, atoms, molecule, grids, tip, parameters)
    with torch.no_grad():
        _, probe = _relaxed(scenes, _with_kernel(backend, positions), True)
        u, response, curvature = probe.split((3, 3, 1), dim=-1)
        down = -scenes.points.heights.diff()[:, None, None, :, None]
        expected = (response[..., 1:, :] + response[..., :-1, :]) / 2 * down
        snapped = curvature[..., 0] < SOFTEST_GRADIENT
        snapped[..., 1:] |= (u.diff(dim=-2) - expected).norm(dim=-1) > JUMP
        return torch.einsum("mxyk,mkz->mxyz", snapped.to(scenes.weights), (scenes.weights != 0).to(scenes.weights)) > 0


def _scenes(
    force: ForceModel,
    positions: Tensor,
    charges: Tensor,
    atoms: Mapping[str, Tensor],
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip],
    parameters: TipParameters | None,
) -> Scenes:
    """Check the arguments of `force_stacks`, sort the atoms by molecule, and assemble the scenes."""
    owner = _owner(force, positions, charges, atoms, molecule)
    grids = [grids] * int(owner.max() + 1) if isinstance(grids, Grid) else list(grids)
    count = np.bincount(owner, minlength=len(grids))
    if len(count) != len(grids) or not count.all():
        raise MoleculeError(
            f"{len(grids)} grids need {len(grids)} molecules, 0 to {len(grids) - 1}, of one atom or more."
        )
    if len({(grid.shape, len(grid.heights)) for grid in grids}) > 1:
        raise ConfigError("The grids of a batch must have the same number of pixels and slices.")
    own = TipParameters.of(tip, positions) if parameters is None else parameters
    own = TipParameters(*(t.to(positions) for t in own)).of_each(len(grids))
    tips = [tip] * len(grids) if isinstance(tip, Tip) else tip
    if len(tips) != len(grids):
        raise ConfigError(f"{len(grids)} molecules need as many tips, not {len(tips)}.")
    if not all(bool(t.isfinite().all()) for t in own):
        raise ConfigError("The parameters of the tip must be finite numbers.")
    order = np.argsort(owner, kind="stable")
    sort, sorted_owner = (torch.from_numpy(t).to(positions.device) for t in (order, owner[order]))
    positions, charges, *values = (t.to(positions)[sort] for t in (positions, charges, *atoms.values()))
    atoms = dict(zip(atoms, values, strict=True))
    return assemble(force, positions, charges, atoms, sorted_owner, grids, tips, own)


def _owner(
    force: ForceModel, positions: Tensor, charges: Tensor, atoms: Mapping[str, Tensor], molecule: Tensor
) -> np.ndarray:
    """Check what belongs to the atoms; returns the molecule of each."""
    if positions.dtype not in (torch.float32, torch.float64) or positions.ndim != 2 or positions.shape[1] != 3:
        raise MoleculeError(
            f"Positions must be float32 or float64 of shape (atoms, 3), not {positions.dtype} of shape "
            f"{tuple(positions.shape)}."
        )
    n = len(positions)
    check_length("charges", charges, n)
    check_parameters(force, atoms, n)
    check_length("molecule", molecule, n)
    owner = molecule.cpu().numpy()
    if not n or owner.dtype.kind not in "iu" or owner.min() < 0:
        raise MoleculeError("Each atom, and there must be one, needs the integer, from 0 on, of its molecule.")
    return owner


def _with_kernel(backend: str, positions: Tensor) -> bool:
    """Whether the kernels for the CPU do it."""
    on_cpu = positions.device.type == "cpu"
    if backend not in ("auto", "torch", "numba"):
        raise ConfigError(f"The simulator's backend is 'auto', 'torch' or 'numba', not {backend!r}.")
    if backend == "numba" and not on_cpu:
        raise ConfigError("The simulator's numba kernels work on the CPU alone; use backend 'torch'.")
    return on_cpu and backend != "torch"


class _VerticalForce(torch.autograd.Function):
    """Vertical force on the relaxed probe, eV/A, and its implicit gradient; only the probe is kept between them."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *interaction, scenes, kernel = arguments
        vertical, probe = _relaxed(scenes, kernel, any(ctx.needs_input_grad))
        ctx.scenes, ctx.kernel = scenes._replace(interaction=None), kernel
        ctx.save_for_backward(probe, *interaction)
        return vertical

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise ConfigError("Stacks are differentiable once: take their gradient without create_graph.")
        probe, *interaction = ctx.saved_tensors
        scenes = ctx.scenes._replace(interaction=Interaction(*interaction))
        if not ctx.kernel:
            return *relaxed_vjp(scenes, probe, grad_outputs[0], CHUNK), None, None
        d_force = grad_outputs[0].contiguous().numpy()
        d_atoms, d_tips = relaxed_forces_vjp(
            scenes.force, kernel_scenes(scenes), probe.numpy(), d_force, torch.get_num_threads()
        )
        a, t = (torch.from_numpy(sums).to(probe) for sums in (d_atoms, d_tips))
        columns, numbers = (3 + terms.shape[1] for terms in (scenes.interaction.atoms, scenes.interaction.tip))
        return a[:, :3], a[:, 3:columns], t[:, 3:numbers], t[:, :3], None, None


def _relaxed(scenes: Scenes, kernel: bool, keep_probe: bool) -> tuple[Tensor, Tensor]:
    """Vertical forces and probes by either engine; the kernels leave out probes that are not to be kept."""
    if not kernel:
        return relaxed(scenes, CHUNK)
    vertical, probe = relaxed_forces(scenes.force, kernel_scenes(scenes), torch.get_num_threads(), keep_probe)
    return torch.from_numpy(vertical), torch.from_numpy(probe)
