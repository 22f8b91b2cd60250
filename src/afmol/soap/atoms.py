"""Packed atoms from what the user has: tensors, arrays, Molecules or ASE's Atoms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..elements import CATEGORIES, CLASS_NAMES, element_index
from ..errors import ConfigError, MoleculeError
from .basis import SoapConfig


@dataclass(frozen=True, eq=False)
class PackedAtoms:
    """Atoms of several molecules, those of a molecule in a row; which belong together is known on the CPU."""

    positions: Float[Tensor, "n 3"]
    """A."""
    probabilities: Float[Tensor, "n z"]
    """Probability of each species; 0 and 1 where labels were given."""
    first: Int[np.ndarray, " n"]
    """The first atom of the molecule to which an atom belongs."""
    count: Int[np.ndarray, " n"]
    """The number of atoms of that molecule."""
    place: Int[np.ndarray, " n"] | None
    """Where the atoms that were given stand here; None: in the order given."""


def pack(positions: Any, species: Any, molecule: Any, config: SoapConfig) -> PackedAtoms:
    """Check atoms and sort them by molecule; see `power_spectrum` for what is accepted.

    What lies on the CPU is handled with numpy: after an operation on all cores torch's threads spin for some
    milliseconds, in the way of the kernel.

    Raises:
        MoleculeError: arrays that do not fit together, positions that are not finite, labels out of range.
        ConfigError: Molecules or Atoms with a number of species other than that of the classes.
    """
    if not isinstance(positions, np.ndarray | Tensor):
        if species is not None or molecule is not None:
            raise MoleculeError("Species and molecule are given with an array of positions, not with molecules.")
        positions, species, molecule = _from_structures(positions, config)
    positions = _tensor(positions)
    if positions.dtype not in (torch.float32, torch.float64) or positions.ndim != 2 or positions.shape[1] != 3:
        raise MoleculeError(
            f"Positions must be float32 or float64 of shape (atoms, 3), not {positions.dtype} of shape "
            f"{tuple(positions.shape)}."
        )
    if not _finite(positions):
        raise MoleculeError("Positions must be finite numbers; leave out atoms whose place is not known.")
    if species is None:
        raise MoleculeError("The species of each atom is missing: a label, or a probability for each species.")
    probabilities = _probabilities(_tensor(species), positions, config)
    n = len(positions)
    molecule = np.zeros(n, int) if molecule is None else _tensor(molecule).cpu().numpy()
    if molecule.shape != (n,) or molecule.dtype.kind not in "iu":
        raise MoleculeError(
            f"The molecule of each of {n} atoms must be an integer, shape ({n},), not {molecule.dtype} of shape "
            f"{molecule.shape}."
        )
    place = None
    if (molecule[1:] < molecule[:-1]).any():
        order = np.argsort(molecule, kind="stable")
        place = np.argsort(order)
        molecule, index = molecule[order], torch.from_numpy(order).to(positions.device)
        positions, probabilities = positions[index], probabilities[index]
    starts = np.flatnonzero(np.diff(molecule, prepend=molecule[:1] - 1))
    sizes = np.diff(starts, append=n)
    return PackedAtoms(positions, probabilities, np.repeat(starts, sizes), np.repeat(sizes, sizes), place)


def _tensor(values: Any) -> Tensor:
    """Arrays of any byte order and strides, tensors as they are."""
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return torch.as_tensor(values)


def _finite(numbers: Float[Tensor, "..."]) -> bool:
    """Whether no number is NaN or infinite."""
    if numbers.device.type == "cpu":
        return bool(np.isfinite(numbers.detach().numpy()).all())
    return bool(numbers.isfinite().all())


def _probabilities(species: Tensor, positions: Float[Tensor, "n 3"], config: SoapConfig) -> Float[Tensor, "n z"]:
    """Labels as zeros and ones, probabilities as they are; like `positions` in type and place."""
    n, n_species = len(positions), config.n_species
    if species.is_floating_point():
        if species.shape != (n, n_species):
            raise MoleculeError(
                f"Probabilities of {n} atoms and {n_species} species have the shape ({n}, {n_species}), not "
                f"{tuple(species.shape)}."
            )
        if not _finite(species):
            raise MoleculeError("Probabilities of species must be finite numbers.")
        return species.to(positions)
    if species.shape != (n,):
        raise MoleculeError(f"{n} atoms need {n} labels of species, shape ({n},), not {tuple(species.shape)}.")
    labels = species.cpu().numpy()
    wrong = labels[(labels < 0) | (labels >= n_species)]
    if wrong.size:
        raise MoleculeError(
            f"Species {wrong[0]} is out of range: with n_species = {n_species} labels are 0 to {n_species - 1}."
        )
    one_hot = torch.eye(n_species, dtype=positions.dtype)
    if positions.device.type == "cpu":
        return torch.from_numpy(one_hot.numpy()[labels])
    return one_hot.to(positions.device)[species.to(positions.device).long()]


def _from_structures(structures: Any, config: SoapConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, classes or their probabilities, and molecule of a Molecule, an ase.Atoms or several of them.

    Cells and periodic boundaries are left out of account. Both kinds are known by their positions and atomic numbers.
    """
    several = (
        list(structures) if isinstance(structures, Sequence) and not hasattr(structures, "numbers") else [structures]
    )
    if not all(hasattr(s, "positions") and hasattr(s, "numbers") for s in several) or not several:
        raise MoleculeError("SOAP takes an array of positions, a Molecule, ase.Atoms, or a list of such molecules.")
    if config.n_species != len(CLASS_NAMES):
        raise ConfigError(
            f"Molecules are described by the {len(CLASS_NAMES)} classes of elements, not by {config.n_species}: use "
            f"n_species = {len(CLASS_NAMES)}, or give positions and species as arrays."
        )
    numbers = np.concatenate([np.asarray(s.numbers) for s in several])
    index = element_index(numbers)
    if (index < 0).any():
        raise MoleculeError(f"Atomic number {numbers[index < 0][0]} is not an element that afmol knows.")
    known = [getattr(s, "class_probabilities", None) for s in several]
    species = CATEGORIES[index]
    if any(p is not None for p in known):
        one_hot = np.split(np.eye(len(CLASS_NAMES))[species], np.cumsum([len(s.numbers) for s in several])[:-1])
        species = np.concatenate([o if p is None else p for p, o in zip(known, one_hot, strict=True)])
    positions = np.concatenate([np.asarray(s.positions, float) for s in several])
    return positions, species, np.repeat(np.arange(len(several)), [len(s.numbers) for s in several])
