"""From one molecule to its stack, in numpy."""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ..errors import MoleculeError
from ..structures import Molecule, Scan
from .forces import LENNARD_JONES, ForceModel
from .probe import relaxed_forces
from .scene import assemble, check_parameters, kernel_scenes
from .tip import TIPS, Grid, Tip, TipParameters, grid_around


def simulate(
    molecule: Molecule,
    tip: Tip = TIPS["co"],
    grid: Grid | None = None,
    *,
    force: ForceModel = LENNARD_JONES,
    parameters: Mapping[str, Float[np.ndarray, " n"]] | None = None,
    lj_radius: Float[np.ndarray, " n"] | None = None,
    lj_depth: Float[np.ndarray, " n"] | None = None,
    dtype: type = np.float32,
    parallel: bool = True,
    progress: bool = False,
) -> Scan:
    """Frequency-shift stack (Hz) of a molecule: the probe-particle model.

    Args:
        molecule: atoms in A; missing charges count as zero.
        grid: where to scan; `grid_around(molecule, tip, force=force)` if None.
        force: the force model.
        parameters: the force model's parameters of each atom, by name, in place of the elements' own.
        lj_radius, lj_depth: two of them (A, eV), those of Lennard-Jones.
        dtype: np.float32 or np.float64.
        parallel: use all cores; False where several threads or processes call `simulate`.
        progress: show a bar once it has taken a second.

    Raises:
        MoleculeError: no atoms, atoms on top of each other, numbers that are not finite, not one an atom, or of another
        force model.
        ScanError: the tip would go into the molecule.
    """
    n = len(molecule)
    if n == 0:
        raise MoleculeError("A molecule without atoms cannot be simulated.")
    grid = grid or grid_around(molecule, tip, force=force)
    named = {"lj_radius": lj_radius, "lj_depth": lj_depth}
    given = {**(parameters or {}), **{name: values for name, values in named.items() if values is not None}}
    parameters = {**force.defaults(molecule.numbers), **given}
    check_parameters(force, parameters, n)
    charges = np.zeros(n) if molecule.charges is None else molecule.charges
    # Without a gradient a bent tip moves the pixels, not the atoms: whole pixels of it are then exact.
    numbers = TipParameters.of([tip], np.zeros(0))._replace(offset=np.zeros((1, 2)))
    owner = np.zeros(n, np.int64)
    positions = molecule.positions.astype(float)
    scenes = assemble(force, positions, charges, parameters, owner, [grid], [tip], numbers, tip.offset)
    threads = (os.cpu_count() or 1) if parallel else 1
    (vertical,), _ = relaxed_forces(force, kernel_scenes(scenes, dtype), threads, progress=progress)
    # einsum, not @: the threads of a BLAS would go on spinning on the cores that the next image needs
    df = np.einsum("xyk,kz->xyz", vertical, scenes.weights[0].astype(dtype))
    return Scan(df, grid.size, grid.heights, molecule.name or "simulated")
