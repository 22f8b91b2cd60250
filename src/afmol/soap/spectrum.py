"""SOAP vectors of atoms: the report's padded layout and DScribe's flat one."""

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from . import expansion
from .atoms import pack
from .basis import SoapConfig, radial_basis

Array = np.ndarray | Tensor
FLOAT32_LOSS = 5e-6
"""Largest relative error that float32 arithmetic may bring in; above it float64 is used inside."""
SETTING_A = SoapConfig()
"""The report's setting for molecular graphs: 15 pairs of 27 entries (DScribe: 360 in all)."""
SETTING_B = SoapConfig(n_species=3, max_l=3, n_radial=4)
"""The report's setting for its SOAP predictor: 64 entries a pair (DScribe: 312 in all)."""


def power_spectrum(
    positions: Any,
    species: Array | None = None,
    molecule: Array | None = None,
    config: SoapConfig = SETTING_A,
    *,
    expected: bool = False,
    backend: str = "auto",
) -> Float[Array, "n pair n_radial n_radial l"]:
    """SOAP power spectrum p_nn'l^ZZ' around each atom, in the report's padded layout.

    Args:
        positions: (atoms, 3), A, float32 or float64, which is the precision of the result too. Or a Molecule, an
            ase.Atoms, or a list of such: `species` are then the five classes of elements, or the class probabilities
            of a predicted Molecule; cells are left out of account.
        species: labels from 0, (atoms,) integers, or probabilities, (atoms, n_species).
        molecule: which molecule each atom belongs to, (atoms,) integers, in any order; None: all to one.
        config: what is expanded and how far.
        expected: with probabilities, the mean over all labels drawn independently from them instead of the spectrum
            of the mean density. On the reference path alone.
        backend: "torch", the reference, on any device; "numba", a kernel for the CPU; "auto", numba where possible.

    Returns:
        (atoms, pairs, n, n', l): pairs Z <= Z' ascending, (0, 0), (0, 1) ... (1, 1) ...; blocks of one species are
        symmetric in n, n'. numpy where neither positions nor species were tensors, else torch, and differentiable
        (as often as one likes) in positions and probabilities, at coincident and single atoms too.

    Raises:
        MoleculeError: atoms that cannot be described, see `pack`.
        ConfigError: radial functions that cannot be told apart in this precision, or a backend that cannot be used.
    """
    return _entries(positions, species, molecule, config, True, expected, backend)


def dscribe_vector(
    positions: Any,
    species: Array | None = None,
    molecule: Array | None = None,
    config: SoapConfig = SETTING_A,
    *,
    expected: bool = False,
    backend: str = "auto",
) -> Float[Array, "n features"]:
    """The same in DScribe's flat order (atoms, features): no entry twice, 360 features for setting A, 312 for B.

    Pairs Z <= Z' ascending; in a pair l slowest, then n, then n'; n <= n' only where both species are one. Arguments
    and errors are those of `power_spectrum`.
    """
    return _entries(positions, species, molecule, config, False, expected, backend)


def _entries(
    positions: Any,
    species: Array | None,
    molecule: Array | None,
    config: SoapConfig,
    padded: bool,
    expected: bool,
    backend: str,
) -> Array:
    """The power spectrum in the report's layout or DScribe's."""
    atoms = pack(positions, species, molecule, config)
    dtype = atoms.positions.dtype
    condition = radial_basis(config, str(dtype).removeprefix("torch.")).condition
    # A random walk of rounding errors, amplified by the root of the condition: fits what is measured within a factor 3.
    if dtype == torch.float32 and sqrt(condition) * torch.finfo(dtype).eps > FLOAT32_LOSS:
        atoms = replace(atoms, positions=atoms.positions.double(), probabilities=atoms.probabilities.double())
    if _with_kernel(backend, expected, atoms.positions):
        from . import kernel  # numba's import takes its time and is not needed elsewhere

        p = kernel.spectrum(atoms, config, padded).to(dtype)
    else:
        p = expansion.spectrum(atoms, config, padded, expected).to(dtype)
    p = p if atoms.place is None else p[torch.from_numpy(atoms.place).to(p.device)]
    p = p.unflatten(1, config.padded_shape) if padded else p
    return p if isinstance(positions, Tensor) or isinstance(species, Tensor) else p.numpy()


def _with_kernel(backend: str, expected: bool, positions: Tensor) -> bool:
    """Whether the kernel for the CPU does it."""
    possible = positions.device.type == "cpu" and not expected
    if backend == "numba" and not possible:
        raise ConfigError(
            "SOAP's numba kernel has no expected spectra and works on the CPU alone; use backend 'torch'."
        )
    if backend not in ("auto", "torch", "numba"):
        raise ConfigError(f"SOAP's backend is 'auto', 'torch' or 'numba', not {backend!r}.")
    return possible and backend != "torch"
