"""Molecules from SMILES, to and from RDKit and ASE, which are imported where they are used."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from jaxtyping import Float

from .elements import BY_NUMBER, bonds_by_distance
from .errors import MoleculeError
from .molecules import MAX_ATOMS
from .structures import Molecule

if TYPE_CHECKING:
    import ase
    import rdkit.Chem

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
    # Before sanitisation, which takes long on huge molecules. RDKit looks at its clock only between steps whose cost
    # grows with the cube of the size, so that far beyond MAX_ATOMS no time limit would hold.
    if raw.GetNumAtoms() > MAX_ATOMS:
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
