"""Molecules from SMILES, to and from RDKit and ASE, and packed sets of molecules (.npz).

RDKit and ASE are imported where they are used: a packed set loads on a machine that has neither.
"""

import time
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped

from .elements import BY_NUMBER, NUMBERS, bonds_by_distance
from .errors import MoleculeError
from .files import write_arrays
from .structures import Molecule

if TYPE_CHECKING:
    import ase
    import rdkit.Chem

MAX_ATOMS = 255
"""Most atoms, hydrogens included, that are built from SMILES: what a packed set can hold. RDKit looks at its clock only
between steps whose cost grows with the cube of the size, so that far beyond this no time limit would hold."""
FORCE_FIELD_ROUNDS = 10
"""The clock is read after each round of the force field; a geometry that still moves after the last is accepted."""


def molecule_from_smiles(smiles: str, *, seed: int = 0, timeout: float = 10.0) -> Molecule:
    """One conformer of a molecule: ETKDGv3, then MMFF94 (UFF where MMFF94 has no parameters), by RDKit.

    Args:
        smiles: one connected molecule; hydrogens are added.
        seed: of the conformer; the same seed gives the same molecule (with the same release of RDKit).
        timeout: time limit, s. RDKit counts in whole seconds, so a molecule may take about a second longer to fail.

    Returns:
        The molecule, centred, with explicit hydrogens and MMFF94 partial charges (Gasteiger's where MMFF94 has none);
        its name is the SMILES.

    Raises:
        MoleculeError: not valid SMILES, no atoms or too many, an element that afmol does not know, several fragments,
            no geometry or no charges found, or the time limit reached.
    """
    from rdkit import rdBase

    deadline = time.monotonic() + timeout
    with rdBase.BlockLogs():
        mol = _parse(smiles)
        _embed(mol, smiles, seed, timeout, deadline)
        charges = _relax(mol, smiles, timeout, deadline)
    molecule = from_rdkit(mol)
    return replace(molecule, positions=molecule.positions - molecule.positions.mean(0), charges=charges, name=smiles)


def to_rdkit(molecule: Molecule) -> "rdkit.Chem.Mol":
    """The molecule in RDKit, one conformer; every bond is single, for a Molecule holds no bond orders."""
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    mol = Chem.RWMol()
    for number in molecule.numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in molecule.bonds:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(molecule))
    for i, position in enumerate(molecule.positions):
        conformer.SetAtomPosition(i, Point3D(*map(float, position)))
    mol.AddConformer(conformer)
    mol.SetProp("_Name", molecule.name)
    return mol.GetMol()


def from_rdkit(mol: "rdkit.Chem.Mol") -> Molecule:
    """The atoms, bonds and first conformer of an RDKit molecule as they stand: implicit hydrogens are not added.

    Raises:
        MoleculeError: no conformer, or an element that afmol does not know.
    """
    if mol.GetNumConformers() == 0:
        raise MoleculeError("The RDKit molecule has no conformer; embed it in 3D first, or use molecule_from_smiles.")
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return Molecule(
        positions=np.array(mol.GetConformer().GetPositions(), dtype=float).reshape(-1, 3),
        numbers=np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64),
        bonds=np.sort(np.array(bonds, dtype=np.int64).reshape(-1, 2), axis=1),
        name=mol.GetProp("_Name") if mol.HasProp("_Name") else "",
    )


def to_ase(molecule: Molecule) -> "ase.Atoms":
    """The molecule as ASE atoms; charges become initial charges, the name stands in `info`, bonds are dropped."""
    from ase import Atoms

    return Atoms(
        numbers=molecule.numbers, positions=molecule.positions, charges=molecule.charges, info={"name": molecule.name}
    )


def from_ase(atoms: "ase.Atoms") -> Molecule:
    """ASE atoms as a molecule, bonds from the distance table (the cell is ignored), charges if initial ones are set.

    Raises:
        MoleculeError: an element that afmol does not know.
    """
    positions, numbers = atoms.get_positions(), atoms.get_atomic_numbers().astype(np.int64)
    return Molecule(
        positions=positions,
        numbers=numbers,
        bonds=bonds_by_distance(positions, numbers),
        charges=atoms.get_initial_charges() if atoms.has("initial_charges") else None,
        name=str(atoms.info.get("name", "")),
    )


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

    @cached_property
    def first_atom(self) -> Int[np.ndarray, " molecules"]:
        """Row of each molecule's first atom."""
        return _starts(self.n_atoms)

    @cached_property
    def first_bond(self) -> Int[np.ndarray, " molecules"]:
        """Row of each molecule's first bond."""
        return _starts(self.n_bonds)

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


def load_molecules(path: str | Path) -> MoleculeSet:
    """Read a packed set of molecules; the layout is that of `pack_molecules`, other arrays in the file are ignored.

    Raises:
        MoleculeError: a file that is missing, damaged, or something else.
    """
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise MoleculeError(f"{path} holds a single array; a set of molecules is an .npz file of several.")
            with stored:
                missing = [key for key in MOLECULE_SET_KEYS if key not in stored]
                if missing:
                    raise MoleculeError(f"{path} is not a set of molecules: it has no array {missing[0]!r}.")
                arrays = {key: stored[key] for key in MOLECULE_SET_KEYS}
    except FileNotFoundError:
        raise MoleculeError(f"{path} does not exist; give the .npz file of a set of molecules.") from None
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError) as error:
        raise MoleculeError(f"{path} cannot be read as an .npz file ({error}); is it complete?") from None
    except (SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise MoleculeError(f"{path} is damaged ({error}); fetch or write it again.") from None
    _check_arrays(path, arrays)
    arrays["bonds"] = np.sort(arrays["bonds"][:, :2], axis=1)  # the order of the bond, column 3, is not used
    return MoleculeSet(**arrays)


def pack_molecules(molecules: list[Molecule], path: str | Path) -> None:
    """Write molecules with charges as a packed set, an .npz file of seven arrays.

    | key | type, shape | holds |
    |---|---|---|
    | `n_atoms`, `n_bonds` | uint8 (molecules,) | rows of each molecule |
    | `positions_milliangstrom` | int16 (atoms, 3) | positions, 0.001 A |
    | `numbers` | uint8 (atoms,) | atomic numbers |
    | `charges_e4` | int16 (atoms,) | partial charges, 0.0001 e |
    | `bonds` | uint8 (bonds, 3) | i, j within the molecule, 1 |
    | `smiles` | bytes (molecules,) | name of each molecule, UTF-8 |

    Raises:
        MoleculeError: a molecule that does not fit (no atoms, more than 255 atoms or bonds, beyond 32.767 A from the
            origin, no charges, a charge beyond 3.2767 e), or no molecule at all.
        ConfigError: a file that cannot be written.
    """
    for number, molecule in enumerate(molecules):
        what = f"Molecule {number} ({molecule.name!r}) cannot be packed:"
        if not 1 <= len(molecule) <= MAX_ATOMS or len(molecule.bonds) > 255:
            raise MoleculeError(f"{what} it has {len(molecule)} atoms and {len(molecule.bonds)} bonds, not 1 to 255.")
        if np.abs(molecule.positions).max() > 32.767:
            raise MoleculeError(f"{what} an atom lies more than 32.767 A from the origin; centre the molecule.")
        if molecule.charges is None or not (np.abs(molecule.charges) <= 3.2767).all():
            raise MoleculeError(f"{what} it needs charges from -3.2767 to 3.2767 e.")
    if not molecules:
        raise MoleculeError(f"There is no molecule to write to {path}.")
    pairs = np.concatenate([m.bonds for m in molecules])
    arrays = {
        "n_atoms": np.array([len(m) for m in molecules], np.uint8),
        "n_bonds": np.array([len(m.bonds) for m in molecules], np.uint8),
        "positions_milliangstrom": _rounded([m.positions * 1000 for m in molecules]),
        "numbers": np.concatenate([m.numbers for m in molecules]).astype(np.uint8),
        "charges_e4": _rounded([m.charges * 10_000 for m in molecules if m.charges is not None]),
        "bonds": np.column_stack([pairs, np.ones(len(pairs), int)]).astype(np.uint8),
        "smiles": np.array([m.name.encode() for m in molecules]),
    }
    write_arrays(arrays, path)


def _check_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    for key, (kinds, shape) in MOLECULE_SET_KEYS.items():
        array = arrays[key]
        if array.dtype.kind not in kinds or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            raise MoleculeError(f"{path} is not a set of molecules: {key!r} is {array.dtype} {array.shape}.")
    n_atoms, n_bonds, numbers, bonds = (arrays[key] for key in ("n_atoms", "n_bonds", "numbers", "bonds"))
    if len(n_atoms) == 0 or n_atoms.min() < 1:
        raise MoleculeError(f"{path} holds no molecules, or one without atoms; write it again.")
    if {len(n_bonds), len(arrays["smiles"])} != {len(n_atoms)} or n_bonds.min() < 0:
        raise MoleculeError(f"{path} is damaged: each molecule needs its n_atoms, n_bonds and smiles.")
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


def _fail(smiles: str, reason: str) -> NoReturn:
    shown = smiles if len(smiles) <= 100 else smiles[:97] + "..."
    raise MoleculeError(f"SMILES {shown!r} {reason}.")


def _parse(smiles: str) -> "rdkit.Chem.Mol":
    """Read SMILES and add hydrogens; refuse what the later stages could not use."""
    from rdkit import Chem

    # RDKit takes what follows a space for a name; a molecule of which half was ignored would be a silent guess.
    raw = None if len(smiles.split()) > 1 else Chem.MolFromSmiles(smiles, sanitize=False)
    if raw is None:
        _fail(smiles, "is not valid SMILES; check brackets, ring numbers and element symbols")
    if raw.GetNumAtoms() == 0:
        _fail(smiles, "has no atoms")
    if raw.GetNumAtoms() > MAX_ATOMS:  # before sanitisation, which takes long on huge molecules
        _fail(smiles, f"has {raw.GetNumAtoms()} atoms before hydrogens are added; at most {MAX_ATOMS} can be built")
    unknown = [atom.GetSymbol() for atom in raw.GetAtoms() if atom.GetAtomicNum() not in BY_NUMBER]
    if unknown:
        known = ", ".join(e.symbol for e in BY_NUMBER.values())
        _fail(smiles, f"holds the element {unknown[0]}, which afmol does not know ({known})")
    fragments = len(Chem.GetMolFrags(raw))
    if fragments > 1:
        _fail(smiles, f"holds {fragments} disconnected fragments; give one molecule without counter-ions or solvent")
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        problems = [problem.Message().strip() for problem in Chem.DetectChemistryProblems(raw)]
        _fail(smiles, f"is not a valid molecule ({problems[0] if problems else 'RDKit refuses it'})")
    mol = Chem.AddHs(mol)
    if mol.GetNumAtoms() > MAX_ATOMS:
        _fail(smiles, f"has {mol.GetNumAtoms()} atoms with its hydrogens; at most {MAX_ATOMS} can be built")
    return mol


def _check_clock(smiles: str, timeout: float, deadline: float) -> None:
    if time.monotonic() >= deadline:
        _fail(smiles, f"could not be built in 3D within the time limit of {timeout:g} s; allow more or simplify it")


def _embed(mol: "rdkit.Chem.Mol", smiles: str, seed: int, timeout: float, deadline: float) -> None:
    """Give the molecule a conformer, by random coordinates where the usual start fails (long chains, cages)."""
    from rdkit.Chem import rdDistGeom

    for random_start in (False, True):
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed % 2**31  # RDKit reads -1 as "no seed"
        parameters.useRandomCoords = random_start
        parameters.timeout = 1 + int(min(max(0.0, deadline - time.monotonic()), 1e6))
        found = rdDistGeom.EmbedMolecule(mol, parameters) >= 0
        _check_clock(smiles, timeout, deadline)
        if found:
            return
    _fail(smiles, "could not be embedded in 3D; its rings or stereo centres may be impossible")


def _relax(mol: "rdkit.Chem.Mol", smiles: str, timeout: float, deadline: float) -> Float[np.ndarray, " n"]:
    """Relax the conformer in place and return partial charges, e."""
    from rdkit.Chem import rdForceFieldHelpers, rdPartialCharges

    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if mmff is not None:
        force_field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, mmff)
        charges = np.array([mmff.GetMMFFPartialCharge(i) for i in range(mol.GetNumAtoms())])
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        force_field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
        rdPartialCharges.ComputeGasteigerCharges(mol)
        charges = np.array([atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()])
    else:
        _fail(smiles, "holds an atom type for which neither MMFF94 nor UFF has parameters")
    if not np.isfinite(charges).all():
        _fail(smiles, "holds an atom type for which neither MMFF94 nor Gasteiger's method has charges")
    force_field.Initialize()
    # A round takes up to about a second; shorter ones would restart BFGS too often and need more iterations in all.
    iterations = 30_000_000 // mol.GetNumAtoms() ** 2
    for _ in range(FORCE_FIELD_ROUNDS):
        converged = force_field.Minimize(maxIts=iterations) == 0
        _check_clock(smiles, timeout, deadline)
        if converged:
            break
    return charges
