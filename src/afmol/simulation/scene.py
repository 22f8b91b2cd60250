"""Molecules under tips: what is to be simulated, checked, and as the engines need it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import MoleculeError, ScanError
from ..structures import check_atoms
from .forces import ForceModel
from .forces.force import Scene
from .probe import limits
from .tip import SPRING_UNITS, Grid, Tip, TipParameters, alike, force_heights

CLOSEST = 1.0
"""The unrelaxed probe stays this far above the topmost nucleus, A; below, the model means nothing."""


class Interaction(NamedTuple):
    """What the forces depend on and are differentiated by; arrays are numpy's or torch's.

    Atoms are packed, or, in the reference, in slots: (molecule, slot).
    """

    positions: Float[Any, "*atoms 3"]
    """From the mean of each molecule's atoms, which keeps float32 accurate wherever the user's origin is, A."""
    atoms: Float[Any, "*atoms a"]
    """The force model's terms of each atom under its tip."""
    tip: Float[Any, "molecule t"]
    """The force model's terms of each tip."""
    springs: Float[Any, "molecule 3"]
    """k_lateral, k_radial (eV/A^2), L (A)."""


class Points(NamedTuple):
    """The points at which the probe is relaxed, A, from the mean of each molecule's atoms."""

    x: Float[Any, "molecule nx"]
    """Of the unloaded probe."""
    y: Float[Any, "molecule ny"]
    heights: Float[Any, "molecule height"]
    """Of the tip's end, descending."""


class Scenes(NamedTuple):
    """Molecules, each under a tip."""

    force: ForceModel
    interaction: Any
    """Interaction; None where a graph must not be kept alive."""
    first: Int[np.ndarray, " molecule"]
    """The first atom of each molecule."""
    count: Int[np.ndarray, " molecule"]
    """The number of atoms of each molecule."""
    points: Points
    weights: Float[Any, "molecule height nz"]
    """From forces to frequency shifts, Hz A/eV; 0 at heights that only fill up."""


def check_parameters(force: ForceModel, parameters: Mapping[str, Any], n: int) -> None:
    """Refuse, with a MoleculeError, what is not the force model's parameters of n atoms."""
    if set(parameters) != set(force.parameters):
        wanted, given = (", ".join(names) or "nothing" for names in (force.parameters, parameters))
        raise MoleculeError(f"The force model {force.name} takes {wanted} of each atom, not {given}.")
    for name, values in parameters.items():
        check_length(name, values, n)


def check_length(name: str, values: Any, n: int) -> None:
    """Refuse, with a MoleculeError, what is not one number an atom."""
    if values.shape != (n,):
        raise MoleculeError(f"{n} atoms need {n} values of {name}, not an array of shape {tuple(values.shape)}.")


def check_scene(
    force: ForceModel,
    positions: Float[np.ndarray, "atom 3"],
    numbers: Mapping[str, Float[np.ndarray, " atom"]],
    grid: Grid,
    bond_length: float,
) -> None:
    """Refuse atoms, their charges and parameters, or a grid that cannot be simulated.

    Raises:
        MoleculeError: atoms on top of each other or far apart, numbers that are not finite, or negative where they may
            not be.
        ScanError: the tip would go into the molecule.
    """
    if not all(np.isfinite(values).all() for values in (positions, *numbers.values())):
        raise MoleculeError(f"{', '.join(('Positions', *numbers))} of atoms must be finite numbers.")
    for name in force.parameters:
        if name not in force.signed and (numbers[name] < 0).any():
            raise MoleculeError(f"{name} of an atom must not be negative.")
    check_atoms(positions)
    if grid.heights[-1] - bond_length < positions[:, 2].max() + CLOSEST:
        least = bond_length + CLOSEST
        raise ScanError(f"The tip would go into the molecule; its end must stay {least:g} A above the topmost atom.")


def assemble(
    force: ForceModel,
    positions: Float[Any, "atom 3"],
    charges: Float[Any, " atom"],
    parameters: Mapping[str, Float[Any, " atom"]],
    owner: Int[Any, " atom"],
    grids: Sequence[Grid],
    tips: Sequence[Tip],
    tip_parameters: TipParameters,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Scenes:
    """Scenes of packed molecules, atoms sorted by molecule, each with its grid and its tip; numpy's or torch's arrays.

    `tip_parameters`, of each molecule, are those of the tips or take their place. `shift`, A, moves all pixels.

    Raises:
        MoleculeError, ScanError: as `check_scene`.
    """
    count = np.bincount(_numpy(owner))
    first = np.cumsum(count) - count
    known, *numbers = (_numpy(values).astype(float) for values in (positions, charges, *parameters.values()))
    names, lengths = ("charges", *parameters), tip_parameters.bond_length.tolist()
    centres = np.empty((len(grids), 3))
    for k, grid in enumerate(grids):
        own = slice(first[k], first[k] + count[k])
        check_scene(force, known[own], {name: v[own] for name, v in zip(names, numbers, strict=True)}, grid, lengths[k])
        centres[k] = known[own].mean(0)
    centre = alike(centres, positions)
    centres = _numpy(centre).astype(float)  # as rounded, since positions and pixels are to be moved by the same
    offset = _columns((tip_parameters.offset, alike(np.zeros(len(grids)), positions)))
    stiffness = (tip_parameters.stiffness, tip_parameters.radial_stiffness, tip_parameters.bond_length)
    tip_of_each = TipParameters(*(field[owner] for field in tip_parameters))
    interaction = Interaction(
        positions - centre[owner] - offset[owner],
        _columns(force.atom_terms(charges, parameters, tip_of_each)),
        force.tip_terms(tip_parameters),
        _columns(stiffness) / alike(SPRING_UNITS, positions),
    )
    pixels = zip(*(grid.centres for grid in grids), strict=True)
    x, y = (np.stack(p) + shift[axis] - centres[:, axis, None] for axis, p in enumerate(pixels))
    heights, weights = zip(*(force_heights(grid, tip) for grid, tip in zip(grids, tips, strict=True)), strict=True)
    most = max(len(h) for h in heights)
    z, w = np.empty((len(grids), most)), np.zeros((len(grids), most, len(grids[0].heights)))
    for k, (h, of_heights) in enumerate(zip(heights, weights, strict=True)):
        z[k, : len(h)], z[k, len(h) :], w[k, : len(h)] = h, h[-1], of_heights
    x, y, z, w = (alike(values, positions) for values in (x, y, z - centres[:, 2:], w))
    return Scenes(force, interaction, first, count, Points(x, y, z), w)


def kernel_scenes(scenes: Scenes, dtype: type | None = None) -> list[Scene]:
    """What the kernels work on, one a molecule, in the precision of the scenes or in another."""
    x, y, heights, positions, atoms, tip, springs = map(_numpy, (*scenes.points, *scenes.interaction))
    dtype = dtype or x.dtype.type
    return [
        kernel_scene(scenes.force, x[k], y[k], heights[k], positions[own], atoms[own], tip[k], springs[k], dtype)
        for k, own in enumerate(map(slice, scenes.first, scenes.first + scenes.count))
    ]


def kernel_scene(
    force: ForceModel,
    x: Float[np.ndarray, " nx"],
    y: Float[np.ndarray, " ny"],
    heights: Float[np.ndarray, " nz"],
    positions: Float[np.ndarray, "atom 3"],
    atoms: Float[np.ndarray, "atom a"],
    tip: Float[np.ndarray, " t"],
    springs: Float[np.ndarray, " 3"],
    dtype: type,
) -> Scene:
    """The scene of one molecule from points and terms as in `Points` and `Interaction`."""
    arrays = (x, y, heights, springs, positions.T, *force.kernel_terms(atoms, tip), limits(dtype is np.float32))
    return Scene(*(np.ascontiguousarray(array, dtype) for array in arrays))


def _numpy(values: Any) -> np.ndarray:
    """Of either kind, in numpy, without a gradient."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _columns(parts: Sequence[Any]) -> Any:
    """Columns (n,) or (n, any) side by side."""
    if isinstance(parts[0], np.ndarray):
        return np.column_stack(parts)
    import torch

    return torch.column_stack(tuple(parts))
