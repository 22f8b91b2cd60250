"""Stacks of many molecules at once, as torch tensors with a gradient: what a fit of a structure to an image needs.

Two engines for one model: kernels for the CPU (probe.py), plain torch for any device (reference.py). Both find the
relaxed probe first and take the gradient from the implicit function theorem.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ConfigError, MoleculeError
from .forces.lennard_jones import SPRING_UNITS, coulomb_terms, lennard_jones_terms
from .probe import SOFTEST_GRADIENT, Scene, relaxed_forces, relaxed_forces_product, scene
from .reference import CHUNK, Model, Where, product, relaxed
from .tip import TIPS, Grid, Tip, check_scene, force_heights

JUMP = 0.1
"""A probe that moves this far, A, off the mean of the tangents of its path at two heights has jumped between them."""


class TipParameters(NamedTuple):
    """The parameters of tips that stacks can be differentiated by; units and meaning as in `Tip`.

    One tip for all molecules, or, each field alone, one a molecule.
    """

    probe_radius: Float[Tensor, "*molecule"]
    probe_depth: Float[Tensor, "*molecule"]
    charges: Float[Tensor, "*molecule t"]
    charge_offsets: Float[Tensor, "*molecule t"]
    stiffness: Float[Tensor, "*molecule"]
    radial_stiffness: Float[Tensor, "*molecule"]
    bond_length: Float[Tensor, "*molecule"]
    offset: Float[Tensor, "*molecule 2"]

    @classmethod
    def of(cls, tip: Tip | Sequence[Tip], like: Tensor | None = None) -> "TipParameters":
        """Those of one tip or of several, in the precision and on the device of `like`."""
        like = torch.zeros(0) if like is None else like
        if isinstance(tip, Tip):
            values = [getattr(tip, name) for name in cls._fields]
        else:  # tips with fewer charges than others get charges of 0
            most = max((len(t.charges) for t in tip), default=0)
            rows = [[getattr(t, name) for t in tip] for name in cls._fields]
            values = [
                [(*row, *[0.0] * (most - len(row))) for row in column]
                if name in ("charges", "charge_offsets")
                else column
                for name, column in zip(cls._fields, rows, strict=True)
            ]
        return cls(*(torch.tensor(value, dtype=like.dtype, device=like.device) for value in values))

    def of_each(self, molecules: int) -> "TipParameters":
        """One tip a molecule.

        Raises:
            ConfigError: fields that are neither of one tip nor of as many as there are molecules.
        """
        found = []
        for name, field in zip(self._fields, self, strict=True):
            width = field.ndim - (name in ("charges", "charge_offsets", "offset"))
            if width == 1 and len(field) != molecules:
                raise ConfigError(f"{molecules} molecules need as many tips, not {len(field)} ({name}).")
            found.append(field if width == 1 else field.expand(molecules, *field.shape))
        return TipParameters(*found)


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
    """Frequency-shift stacks (Hz) of packed molecules, differentiable (once) in all tensors.

    Args:
        positions: (atoms, 3), A, float32 or float64, in which everything is computed.
        charges, lj_radius, lj_depth: (atoms,), e, A, eV.
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
    setup = _setup(positions, charges, lj_radius, lj_depth, molecule, grids, tip, parameters)
    force = _VerticalForce.apply(*setup.model, setup, _with_kernel(backend, positions))
    return torch.einsum("mxyk,mkz->mxyz", force, setup.weights)


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
    """Where the probe jumps, or is about to, at a height that counts in a slice: images are discontinuous there.

    A probe has jumped when it moved from one height to the next by JUMP more than the implicit function theorem has it
    move at either; it is about to when the smallest lateral curvature of the energy is below `probe.SOFTEST_GRADIENT`,
    so that gradients are not exact. Arguments and errors are those of `stacks`.
    """
    setup = _setup(positions, charges, lj_radius, lj_depth, molecule, grids, tip, parameters)
    with torch.no_grad():
        _, probe = _relaxed(setup, _with_kernel(backend, positions), True)
        u, response, curvature = probe.split((3, 3, 1), dim=-1)
        down = -setup.where.heights.diff()[:, None, None, :, None]
        expected = (response[..., 1:, :] + response[..., :-1, :]) / 2 * down
        snapped = curvature[..., 0] < SOFTEST_GRADIENT
        snapped[..., 1:] |= (u.diff(dim=-2) - expected).norm(dim=-1) > JUMP
        return torch.einsum("mxyk,mkz->mxyz", snapped.to(setup.weights), (setup.weights != 0).to(setup.weights)) > 0


class Setup(NamedTuple):
    """Checked arguments: what is differentiated by, and what is not."""

    model: Any
    """Model; None where a graph must not be kept alive."""
    first: Int[np.ndarray, " molecule"]
    """The first atom of each molecule."""
    count: Int[np.ndarray, " molecule"]
    """The number of atoms of each molecule."""
    where: Where
    """In coordinates from the mean of each molecule's atoms, which keeps float32 accurate, as do those of the model."""
    weights: Float[Tensor, "molecule height nz"]
    """From forces to frequency shifts, Hz A/eV; 0 at heights that only fill up."""


def _setup(
    positions: Tensor,
    charges: Tensor,
    lj_radius: Tensor,
    lj_depth: Tensor,
    molecule: Tensor,
    grids: Grid | Sequence[Grid],
    tip: Tip | Sequence[Tip],
    parameters: TipParameters | None,
) -> Setup:
    """Check the arguments of `stacks`, sort the atoms by molecule, and find the coefficients of the forces."""
    if positions.dtype not in (torch.float32, torch.float64) or positions.ndim != 2 or positions.shape[1] != 3:
        raise MoleculeError(
            f"Positions must be float32 or float64 of shape (atoms, 3), not {positions.dtype} of shape "
            f"{tuple(positions.shape)}."
        )
    n = len(positions)
    names = ("charges", "lj_radius", "lj_depth", "molecule")
    for name, tensor in zip(names, (charges, lj_radius, lj_depth, molecule), strict=True):
        if tensor.shape != (n,):
            raise MoleculeError(f"{n} atoms need {name} of shape ({n},), not {tuple(tensor.shape)}.")
    owner = molecule.cpu().numpy()
    if not n or owner.dtype.kind not in "iu" or owner.min() < 0:
        raise MoleculeError("Each atom, and there must be one, needs the integer, from 0 on, of its molecule.")
    grids = [grids] * int(owner.max() + 1) if isinstance(grids, Grid) else list(grids)
    count = np.bincount(owner, minlength=len(grids))
    if len(count) != len(grids) or not count.all():
        raise MoleculeError(
            f"{len(grids)} grids need {len(grids)} molecules, 0 to {len(grids) - 1}, of one atom or more."
        )
    if len({(grid.shape, len(grid.heights)) for grid in grids}) > 1:
        raise ConfigError("The grids of a batch must have the same number of pixels and slices.")
    order = np.argsort(owner, kind="stable")
    first = np.cumsum(count) - count
    sort = torch.from_numpy(order).to(positions.device)
    positions, charges, lj_radius, lj_depth = (t.to(positions)[sort] for t in (positions, charges, lj_radius, lj_depth))
    parameters = TipParameters.of(tip, positions) if parameters is None else parameters
    parameters = TipParameters(*(t.to(positions) for t in parameters)).of_each(len(grids))
    tips = [tip] * len(grids) if isinstance(tip, Tip) else tip
    if len(tips) != len(grids):
        raise ConfigError(f"{len(grids)} molecules need as many tips, not {len(tips)}.")
    if not all(bool(t.isfinite().all()) for t in parameters):
        raise ConfigError("The parameters of the tip must be finite numbers.")

    known = positions.detach().cpu().double().numpy()
    numbers = torch.stack([charges, lj_radius, lj_depth], 1).detach().cpu().double().numpy()
    lengths = parameters.bond_length.tolist()
    centres = np.empty((len(grids), 3))
    for k, grid in enumerate(grids):
        own = slice(first[k], first[k] + count[k])
        check_scene(known[own], numbers[own], grid, lengths[k])
        centres[k] = known[own].mean(0)
    centre = torch.from_numpy(centres).to(positions)
    centres = centre.cpu().double().numpy()  # as rounded, since positions and pixels are to be moved by the same
    springs = torch.stack([parameters.stiffness, parameters.radial_stiffness, parameters.bond_length], 1)
    owners = torch.from_numpy(owner[order]).to(positions.device)
    model = Model(
        positions - centre[owners] - pad(parameters.offset, (0, 1))[owners],
        *lennard_jones_terms(lj_radius, lj_depth, parameters.probe_radius[owners], parameters.probe_depth[owners]),
        coulomb_terms(charges, parameters.charges[owners]),
        parameters.charge_offsets,
        springs / springs.new_tensor(SPRING_UNITS),
    )
    x, y = (np.stack([grid.centres[axis] for grid in grids]) - centres[:, axis, None] for axis in (0, 1))
    heights, weights = zip(*(force_heights(grid, t) for grid, t in zip(grids, tips, strict=True)), strict=True)
    most = max(len(h) for h in heights)
    z = np.stack([np.pad(h, (0, most - len(h)), "edge") for h in heights]) - centres[:, 2:]
    w = np.stack([np.pad(w, ((0, most - len(w)), (0, 0))) for w in weights])
    x, y, z, w = (torch.from_numpy(t).to(positions) for t in (x, y, z, w))
    return Setup(model, first, count, Where(x, y, z), w)


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
        *model, setup, kernel = arguments
        force, probe = _relaxed(setup, kernel, any(ctx.needs_input_grad))
        ctx.setup, ctx.kernel = setup._replace(model=None), kernel
        ctx.save_for_backward(probe, *model)
        return force

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise ConfigError("Stacks are differentiable once: take their gradient without create_graph.")
        probe, *model = ctx.saved_tensors
        setup = ctx.setup._replace(model=Model(*model))
        if not ctx.kernel:
            arguments = (setup.model, setup.first, setup.count, setup.where, probe, grad_outputs[0], CHUNK)
            return *product(*arguments), None, None
        d_force = grad_outputs[0].contiguous().numpy()
        atoms, tip = relaxed_forces_product(_scenes(setup), probe.numpy(), d_force, torch.get_num_threads())
        a, t = (torch.from_numpy(sums).to(probe) for sums in (np.concatenate(atoms), tip))
        n = setup.model.charge_z.shape[1]
        return a[:, :3], a[:, 3], a[:, 4], a[:, 5 : 5 + n], t[:, 3 : 3 + n], t[:, :3], None, None


def _relaxed(setup: Setup, kernel: bool, keep_probe: bool) -> tuple[Tensor, Tensor]:
    """Vertical forces and probes by either engine; the kernels leave out probes that are not to be kept."""
    if not kernel:
        return relaxed(setup.model, setup.first, setup.count, setup.where, CHUNK)
    force, probe = relaxed_forces(_scenes(setup), torch.get_num_threads(), keep_probe)
    return torch.from_numpy(force), torch.from_numpy(probe)


def _scenes(setup: Setup) -> list[Scene]:
    """What the kernels work on, one a molecule."""
    positions, repulsion, attraction, charge, charge_z, springs = (t.detach().numpy() for t in setup.model)
    x, y, heights = (t.numpy() for t in setup.where)
    scenes = []
    for k, (first, count) in enumerate(zip(setup.first, setup.count, strict=True)):
        own = slice(first, first + count)
        scenes.append(
            scene(
                x[k],
                y[k],
                heights[k],
                positions[own],
                repulsion[own],
                attraction[own],
                charge[own],
                charge_z[k],
                springs[k],
                x.dtype.type,
            )
        )
    return scenes
