"""Packed sets of molecules (.npz): all that training reads, without RDKit or ASE."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from ..elements import BY_NUMBER, ELEMENTS, NUMBERS, element_index
from ..errors import MoleculeError
from ..files import npz_arrays, reading, write_arrays
from ..structures import Molecule

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
FLAT = 1.6
"""Molecules less high than this when laid down, A, are flat: the ones that experiments image."""
MAX_ATOMS = 255
"""Most atoms of a molecule, hydrogens included, that a packed set can hold."""
LARGEST_WEIGHT = 10.0
"""Of the heaviest molecule, in units of the lightest."""


@dataclass(frozen=True, eq=False)
class MoleculeSet:
    """Molecules packed end to end: molecule k owns the next `n_atoms[k]` rows of the arrays over atoms, and so on."""

    n_atoms: Integer[np.ndarray, " molecules"]
    n_bonds: Integer[np.ndarray, " molecules"]
    positions_milliangstrom: Integer[np.ndarray, "atoms 3"]
    numbers: Integer[np.ndarray, " atoms"]
    """Atomic numbers."""
    charges_e4: Integer[np.ndarray, " atoms"]
    """Partial charges, 1e-4 e."""
    bonds: Integer[np.ndarray, "bonds 2"]
    """Pairs i < j of atoms, counted within their molecule."""
    smiles: Shaped[np.ndarray, " molecules"]
    """UTF-8 bytes."""
    split: Integer[np.ndarray, " molecules"] | None = None
    """Place in PARTS of each molecule; None: the set is not split."""
    weight: Float[np.ndarray, " molecules"] | None = None
    """How often to draw each, relative to the others; None: all alike."""

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __getitem__(self, index: int) -> Molecule:
        """One molecule: positions in A, charges in e, named by its SMILES."""
        i = range(len(self))[index]
        atoms = slice(self.first_atom[i], self.first_atom[i] + int(self.n_atoms[i]))
        bonds = slice(self.first_bond[i], self.first_bond[i] + int(self.n_bonds[i]))
        return Molecule(
            positions=self.positions_milliangstrom[atoms] / 1000,
            numbers=self.numbers[atoms].astype(np.int64),
            bonds=self.bonds[bonds].astype(np.int64),
            charges=self.charges_e4[atoms] / 10_000,
            name=self.smiles[i].decode(errors="replace"),
        )

    def where(self, chosen: Bool[np.ndarray, " molecules"]) -> "MoleculeSet":
        """The chosen molecules, in their order."""
        atoms = np.repeat(chosen, self.n_atoms)
        rows = dict.fromkeys(("positions_milliangstrom", "numbers", "charges_e4"), atoms)
        rows["bonds"] = np.repeat(chosen, self.n_bonds)
        arrays = {name: array[rows.get(name, chosen)] for name, array in self.arrays.items()}
        return MoleculeSet(**arrays)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those that are there, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @cached_property
    def sha256(self) -> str:
        """Of what images are made from: two sets with the same value give the same samples."""
        digest = hashlib.sha256()
        for array in (self.n_atoms, self.positions_milliangstrom, self.numbers, self.charges_e4, self.weight):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @cached_property
    def first_atom(self) -> Int[np.ndarray, " molecules"]:
        """Row of each molecule's first atom."""
        return _starts(self.n_atoms)

    @cached_property
    def first_bond(self) -> Int[np.ndarray, " molecules"]:
        """Row of each molecule's first bond."""
        return _starts(self.n_bonds)

    @cached_property
    def holds(self) -> Bool[np.ndarray, "molecules elements"]:
        """Whether a molecule holds each of ELEMENTS."""
        holds = np.zeros((len(self), len(ELEMENTS)), bool)
        holds[np.repeat(np.arange(len(self)), self.n_atoms), element_index(self.numbers.astype(np.int64))] = True
        return holds

    @cached_property
    def flatness(self) -> Float[np.ndarray, " molecules"]:
        """Extent along the principal axis of least variance, A: how high each molecule stands when laid flat."""
        positions = self.positions_milliangstrom / 1000
        centre = np.add.reduceat(positions, self.first_atom) / self.n_atoms[:, None]
        positions -= np.repeat(centre, self.n_atoms, axis=0)
        covariance = np.empty((len(self), 3, 3))
        for a in range(3):
            for b in range(a + 1):  # eigh reads the lower triangle only
                covariance[:, a, b] = np.add.reduceat(positions[:, a] * positions[:, b], self.first_atom)
        normal = np.linalg.eigh(covariance).eigenvectors[:, :, 0]
        height = (positions * np.repeat(normal, self.n_atoms, axis=0)).sum(1)
        return np.maximum.reduceat(height, self.first_atom) - np.minimum.reduceat(height, self.first_atom)


MOLECULE_SET_KEYS = {
    "n_atoms": ("ui", (-1,)),
    "n_bonds": ("ui", (-1,)),
    "positions_milliangstrom": ("ui", (-1, 3)),
    "numbers": ("ui", (-1,)),
    "charges_e4": ("ui", (-1,)),
    "bonds": ("ui", (-1, 3)),
    "smiles": ("S", (-1,)),
}
"""Arrays of a packed set: kinds of dtype allowed and shape, -1 for any length."""
OPTIONAL_KEYS = {"split": ("u", (-1,)), "weight": ("f", (-1,))}
"""The same of arrays that a set may have."""


def load_molecules(path: str | Path, part: Part | None = None) -> MoleculeSet:
    """Read a packed set of molecules, laid out as CONVENTIONS.md says; other arrays in the file are ignored.

    Args:
        path: .npz file.
        part: of a set that is split, what to take; a set that is not split is taken whole, as is any if None.

    Raises:
        MoleculeError: a file that is missing, damaged, or something else; a part without molecules.
    """
    with reading(path, "a set of molecules (.npz)", MoleculeError), open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise MoleculeError(f"{path} holds a single array; a set of molecules is an .npz file of several.")
        names, arrays = npz_arrays(file, MOLECULE_SET_KEYS | OPTIONAL_KEYS, f"{path}: ", MoleculeError)
        missing = [key for key in MOLECULE_SET_KEYS if key not in names]
        if missing:
            raise MoleculeError(f"{path} is not a set of molecules: it has no array {missing[0]!r}.")
        _check_arrays(path, arrays)
    arrays["bonds"] = np.sort(arrays["bonds"][:, :2], axis=1)  # the order of the bond, column 3, is not used
    molecules = MoleculeSet(**arrays)
    if part is None or molecules.split is None:
        return molecules
    chosen = molecules.split == PARTS.index(part)
    if not chosen.any():
        raise MoleculeError(f"{path} holds no molecule of the part {part!r}; choose another part or file.")
    return molecules.where(chosen)


def pack_molecules(molecules: list[Molecule], path: str | Path) -> None:
    """Write molecules with charges as a packed set; errors as in `molecule_set` and `write_molecules`."""
    if not molecules:
        raise MoleculeError(f"There is no molecule to write to {path}.")
    write_molecules(molecule_set(molecules), path)


def molecule_set(molecules: list[Molecule]) -> MoleculeSet:
    """Molecules with charges as a set, rounded to what a file holds.

    Raises:
        MoleculeError: a molecule that does not fit (no atoms, more than 255 atoms or bonds, beyond 32.767 A from the
            origin, no charges, a charge beyond 3.2767 e).
    """
    for number, molecule in enumerate(molecules):
        wrong = None
        if not 1 <= len(molecule) <= MAX_ATOMS or len(molecule.bonds) > 255:
            wrong = f"it has {len(molecule)} atoms and {len(molecule.bonds)} bonds, not 1 to 255"
        elif np.abs(molecule.positions).max() > 32.767:
            wrong = "an atom lies more than 32.767 A from the origin; centre the molecule"
        elif molecule.charges is None or not (np.abs(molecule.charges) <= 3.2767).all():
            wrong = "it needs charges from -3.2767 to 3.2767 e"
        if wrong:
            text = f"Molecule {number} ({molecule.name!r}) cannot be packed: {wrong}."
            raise MoleculeError(text, "does not fit the file")
    nothing = np.zeros((0, 3))
    return MoleculeSet(
        n_atoms=np.array([len(m) for m in molecules], np.uint8),
        n_bonds=np.array([len(m.bonds) for m in molecules], np.uint8),
        positions_milliangstrom=_rounded([nothing, *(m.positions * 1000 for m in molecules)]),
        numbers=np.concatenate([nothing[:, 0], *(m.numbers for m in molecules)]).astype(np.uint8),
        charges_e4=_rounded([nothing[:, 0], *(m.charges * 10_000 for m in molecules if m.charges is not None)]),
        bonds=np.concatenate([nothing[:, :2], *(m.bonds for m in molecules)]).astype(np.uint8),
        smiles=np.array([m.name.encode() for m in molecules], np.bytes_),
    )


def joined(sets: Sequence[MoleculeSet]) -> MoleculeSet:
    """Several sets as one, in their order."""
    arrays = [molecules.arrays for molecules in sets]
    return MoleculeSet(**{name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})


def write_molecules(molecules: MoleculeSet, path: str | Path, further: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a packed set, laid out as CONVENTIONS.md says, with `further` arrays that are not read again.

    Raises:
        ConfigError: a file that cannot be written.
    """
    ones = np.ones((len(molecules.bonds), 1), np.uint8)
    write_arrays(molecules.arrays | {"bonds": np.hstack([molecules.bonds, ones])} | dict(further or {}), path)


def balance(molecules: MoleculeSet) -> Float[np.ndarray, " molecules"]:
    """How often to draw each molecule, so that rare elements are seen more often; the mean is 1.

    One over the root of the share of molecules that hold the rarest element of this one: halfway between drawing all
    molecules alike and drawing each element alike. No molecule is drawn more than LARGEST_WEIGHT times as often as
    another.
    """
    rarest = np.where(molecules.holds, molecules.holds.mean(0), np.inf).min(1)
    weight = np.minimum(np.sqrt(rarest.max() / rarest), LARGEST_WEIGHT)
    return (weight / weight.mean()).astype(np.float32)


def _check_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        kinds, shape = (MOLECULE_SET_KEYS | OPTIONAL_KEYS)[key]
        if array.dtype.kind not in kinds or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            raise MoleculeError(f"{path} is not a set of molecules: {key!r} is {array.dtype} {array.shape}.")
    n_atoms, n_bonds, numbers, bonds = (arrays[key] for key in ("n_atoms", "n_bonds", "numbers", "bonds"))
    if len(n_atoms) == 0 or n_atoms.min() < 1:
        raise MoleculeError(f"{path} holds no molecules, or one without atoms; write it again.")
    if {len(n_bonds), len(arrays["smiles"])} != {len(n_atoms)} or n_bonds.min() < 0:
        raise MoleculeError(f"{path} is damaged: each molecule needs its n_atoms, n_bonds and smiles.")
    if any(len(arrays[key]) != len(n_atoms) for key in OPTIONAL_KEYS if key in arrays):
        raise MoleculeError(f"{path} is damaged: split and weight need one entry a molecule.")
    if "split" in arrays and arrays["split"].max() >= len(PARTS):
        raise MoleculeError(f"{path} is damaged: split must be 0 to {len(PARTS) - 1}.")
    if "weight" in arrays and not (np.isfinite(arrays["weight"]).all() and arrays["weight"].min() > 0):
        raise MoleculeError(f"{path} is damaged: weights must be positive numbers.")
    rows = {len(arrays[key]) for key in ("numbers", "positions_milliangstrom", "charges_e4")}
    if rows != {int(n_atoms.sum())} or len(bonds) != n_bonds.sum():
        raise MoleculeError(f"{path} is damaged: n_atoms and n_bonds do not add up to the lengths of the arrays.")
    if not np.isin(numbers, NUMBERS).all():
        known = ", ".join(e.symbol for e in BY_NUMBER.values())
        raise MoleculeError(f"{path} holds an element that afmol does not know ({known}); leave those molecules out.")
    i, j, _ = bonds.T
    last = np.repeat(n_atoms, n_bonds) - 1
    if bonds.min(initial=0) < 0 or (i == j).any() or (np.maximum(i, j) > last).any():
        raise MoleculeError(f"{path} is damaged: a bond does not join two different atoms of its molecule.")


def _starts(counts: Integer[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.cumsum(counts, dtype=np.int64) - counts


def _rounded(arrays: list[np.ndarray]) -> np.ndarray:
    return np.rint(np.concatenate(arrays)).astype(np.int16)
