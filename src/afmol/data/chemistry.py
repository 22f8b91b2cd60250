"""Molecules from SMILES, molfiles and geometries by RDKit, to and from ASE, which are imported where they are used."""

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from jaxtyping import Float

from ..elements import BY_NUMBER, bonds_by_distance
from ..errors import MoleculeError
from ..files.molecules import claims_too_much, from_rdkit, rdkit_graph, to_rdkit
from ..structures import Molecule
from .molecules import MAX_ATOMS

if TYPE_CHECKING:
    import ase
    import rdkit.Chem

FORCE_FIELD_ROUNDS = 10
"""The clock is read after each round of the force field; a geometry that still moves after the last is accepted."""
PERCEPTION_ITERATIONS = 10_000
"""Of the search for bond orders: about 0.1 s. Without a bound it can take for ever."""


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
    return molecule_from_graph(graph_from_smiles(smiles), seed=seed, timeout=timeout)


def molecule_from_graph(mol: "rdkit.Chem.Mol", *, seed: int = 0, timeout: float = 10.0) -> Molecule:
    """A graph, with its conformer or a new one, as a centred molecule with charges; as `molecule_from_smiles`."""
    from rdkit import rdBase

    deadline = time.monotonic() + timeout
    what = _shown(mol.GetProp("_Name"))
    with rdBase.BlockLogs():
        charges = partial_charges(mol, what)
        if mol.GetNumConformers() == 0:
            _embed(mol, what, seed, timeout, deadline)
            _relax(mol, what, timeout, deadline)
    molecule = from_rdkit(mol)
    return replace(molecule, positions=molecule.positions - molecule.positions.mean(0), charges=charges)


def graph_from_smiles(smiles: str) -> "rdkit.Chem.Mol":
    """The atoms and bonds of SMILES in RDKit, hydrogens added; refuses what the later stages could not use.

    Raises:
        MoleculeError: as `molecule_from_smiles`.
    """
    from rdkit import Chem, rdBase

    what = _shown(smiles)
    with rdBase.BlockLogs():
        # RDKit takes what follows a space for a name; a molecule of which half was ignored would be a silent guess.
        raw = None if len(smiles.split()) > 1 else Chem.MolFromSmiles(smiles, sanitize=False)
        if raw is None:
            _fail(what, "is not valid SMILES; check brackets, ring numbers and element symbols", "invalid SMILES")
        _check(raw, what)
        mol = _sanitized(Chem.MolFromSmiles(smiles), raw, what)
    mol.SetProp("_Name", smiles)
    return mol


def graph_from_molfile(text: str) -> "rdkit.Chem.Mol":
    """The atoms and bonds of an MDL molfile in RDKit, with its conformer if that has three dimensions.

    A flat drawing is only a graph: hydrogens are added and no conformer is kept. The name is its canonical SMILES.

    Raises:
        MoleculeError: as `molecule_from_smiles`; a geometry without hydrogens.
    """
    from rdkit import Chem, rdBase

    what = "The record"
    with rdBase.BlockLogs():
        raw = None if claims_too_much(text) else Chem.MolFromMolBlock(text, sanitize=False, removeHs=False)
        if raw is None:
            _fail(what, "is cut off or not an MDL molfile", "not readable")
        _check(raw, what)
        mol = Chem.MolFromMolBlock(text, removeHs=False)
        solid = raw.GetConformer().Is3D() and (np.ptp(raw.GetConformer().GetPositions(), axis=0) > 0).any()
        if mol is not None and solid and any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
            _fail(what, "has a geometry without hydrogens; add them, or give its SMILES", "hydrogens missing")
        if mol is not None and not solid:
            mol.RemoveAllConformers()
        return _named(_sanitized(mol, raw, what))


def graph_from_geometry(molecule: Molecule, bonded: bool = False) -> "rdkit.Chem.Mol":
    """The bond orders of a neutral molecule by its positions, which are kept. The name is its canonical SMILES.

    RDKit's perception, which fails at most nitro groups; so these are made of N(O-)(O-), which it finds. `bonded`: the
    molecule says which atoms are bonded, not their distances.

    Raises:
        MoleculeError: as `molecule_from_smiles`; no bond orders found.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    what = "The geometry"
    none = np.zeros((0, 2), int)
    mol = to_rdkit(molecule if bonded else replace(molecule, bonds=none, bond_probabilities=None))
    with rdBase.BlockLogs():
        if not bonded:
            rdDetermineBonds.DetermineConnectivity(mol)
        _check(mol, what)
        ends = {
            n: [o for o in n.GetNeighbors() if o.GetAtomicNum() == 8 and o.GetDegree() == 1] for n in mol.GetAtoms()
        }
        nitro = [(n.GetIdx(), o[0].GetIdx()) for n, o in ends.items() if n.GetAtomicNum() == 7 and len(o) == 2]
        try:
            charge = -2 * len(nitro)
            rdDetermineBonds.DetermineBondOrders(mol, charge=charge, maxIterations=PERCEPTION_ITERATIONS)
            for n, o in nitro:
                for atom in (mol.GetAtomWithIdx(n), mol.GetAtomWithIdx(o)):
                    atom.SetFormalCharge(atom.GetFormalCharge() + 1)
                mol.GetBondBetweenAtoms(n, o).SetBondType(Chem.BondType.DOUBLE)
            Chem.SanitizeMol(mol)
            if any(atom.GetAtomicNum() == 16 and atom.GetFormalCharge() > 0 for atom in mol.GetAtoms()):
                # 40 of 42 such perceptions were wrong, their charges off by up to 0.8 e (777 molecules of a test set)
                raise ValueError("a sulfur with a positive charge")
        except (ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:80]
            _fail(what, f"has no bond orders that RDKit finds ({text}); give SMILES or .sdf", "no bond orders found")
        return _named(mol)


def partial_charges(mol: "rdkit.Chem.Mol", what: str = "The molecule") -> Float[np.ndarray, " n"]:
    """MMFF94 partial charges, e; Gasteiger's where MMFF94 has no parameters.

    Also where RDKit's MMFF94 charges do not add up to the charge of the molecule: it takes the nitrogen of N=P and a
    few others for an ion, and gives CN=P(C)(C)C a charge of -1.

    Raises:
        MoleculeError: neither has parameters.
    """
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers, rdPartialCharges

    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if mmff is not None:
        charges = np.array([mmff.GetMMFFPartialCharge(i) for i in range(mol.GetNumAtoms())])
        if abs(charges.sum() - Chem.GetFormalCharge(mol)) < 0.01:
            return charges
    rdPartialCharges.ComputeGasteigerCharges(mol)
    charges = np.array([atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()])
    if not np.isfinite(charges).all():
        text = "holds an atom type for which neither MMFF94 nor Gasteiger's method has charges"
        _fail(what, text, "no force field or charges")
    return charges


def with_charges(molecule: Molecule) -> Molecule:
    """A neutral molecule in its geometry, with partial charges of the bond orders that RDKit perceives.

    Raises:
        MoleculeError: no bond orders or no charges found.
    """
    return replace(molecule, charges=partial_charges(graph_from_geometry(molecule)))


def skeleton(molecule: Molecule) -> tuple[str, str]:
    """What two near-duplicates share, and what two molecules of one part share.

    Returns:
        Canonical SMILES of the heavy atoms with single bonds only, followed by the number of hydrogens; the same of its
        rings and what joins them (its Murcko scaffold), without the number, or of the molecule where it has no ring.
    """
    from rdkit import Chem

    heavy = molecule.numbers != 1
    heavy = heavy if heavy.any() else ~heavy
    place = np.cumsum(heavy) - 1
    mol = rdkit_graph(molecule.numbers[heavy], place[molecule.bonds[heavy[molecule.bonds].all(1)]])
    mol.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(mol)
    graph = Chem.MolToSmiles(mol)
    return f"{graph} H{(~heavy).sum()}", Chem.MolToSmiles(Chem.MurckoDecompose(mol)) or graph


def scaffold_place(scaffold: str) -> float:
    """A number from 0 to 1 by the hash of a scaffold: the test set is below its share, validation follows."""
    return int.from_bytes(hashlib.sha256(scaffold.encode()).digest()[:8], "big") / 2**64


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


def _shown(smiles: str) -> str:
    return f"SMILES {smiles if len(smiles) <= 100 else smiles[:97] + '...'!r}"


def _fail(what: str, text: str, reason: str) -> NoReturn:
    raise MoleculeError(f"{what} {text}.", reason)


def _check(raw: "rdkit.Chem.Mol", what: str) -> None:
    """Refuse what the later stages could not use, before RDKit works on it."""
    from rdkit import Chem

    if raw.GetNumAtoms() == 0:
        _fail(what, "has no atoms", "no atoms")
    # Before sanitisation, which takes long on huge molecules. RDKit looks at its clock only between steps whose cost
    # grows with the cube of the size, so that far beyond MAX_ATOMS no time limit would hold.
    if raw.GetNumAtoms() > MAX_ATOMS:
        text = f"has {raw.GetNumAtoms()} atoms before hydrogens are added; at most {MAX_ATOMS} can be built"
        _fail(what, text, "too many atoms")
    unknown = [atom.GetSymbol() for atom in raw.GetAtoms() if atom.GetAtomicNum() not in BY_NUMBER]
    if unknown:
        known = ", ".join(e.symbol for e in BY_NUMBER.values())
        text = f"holds the element {unknown[0]}, which afmol does not know ({known})"
        _fail(what, text, "element not known")
    fragments = len(Chem.GetMolFrags(raw))
    if fragments > 1:
        text = f"holds {fragments} disconnected fragments; give one molecule without counter-ions or solvent"
        _fail(what, text, "several fragments")


def _sanitized(mol: "rdkit.Chem.Mol | None", raw: "rdkit.Chem.Mol", what: str) -> "rdkit.Chem.Mol":
    """The sanitized molecule with hydrogens, or what is wrong with the raw one."""
    from rdkit import Chem

    if mol is None:
        problems = [problem.Message().strip() for problem in Chem.DetectChemistryProblems(raw)]
        text = f"is not a valid molecule ({problems[0] if problems else 'RDKit refuses it'})"
        _fail(what, text, "wrong valence or aromaticity")
    mol = Chem.AddHs(mol)
    if mol.GetNumAtoms() > MAX_ATOMS:
        text = f"has {mol.GetNumAtoms()} atoms with its hydrogens; at most {MAX_ATOMS} can be built"
        _fail(what, text, "too many atoms")
    return mol


def _named(mol: "rdkit.Chem.Mol") -> "rdkit.Chem.Mol":
    from rdkit import Chem

    mol.SetProp("_Name", Chem.MolToSmiles(Chem.RemoveHs(mol)))
    return mol


def _check_clock(what: str, timeout: float, deadline: float) -> None:
    if time.monotonic() >= deadline:
        text = f"could not be built in 3D within the time limit of {timeout:g} s; allow more or simplify it"
        _fail(what, text, "time limit")


def _embed(mol: "rdkit.Chem.Mol", what: str, seed: int, timeout: float, deadline: float) -> None:
    """Give the molecule a conformer, by random coordinates where the usual start fails (long chains, cages)."""
    from rdkit.Chem import rdDistGeom

    for random_start in (False, True):
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed % 2**31  # RDKit reads -1 as "no seed"
        parameters.useRandomCoords = random_start
        parameters.timeout = 1 + int(min(max(0.0, deadline - time.monotonic()), 1e6))
        found = rdDistGeom.EmbedMolecule(mol, parameters) >= 0
        _check_clock(what, timeout, deadline)
        if found:
            return
    _fail(what, "could not be embedded in 3D; its rings or stereo centres may be impossible", "no geometry found")


def _relax(mol: "rdkit.Chem.Mol", what: str, timeout: float, deadline: float) -> None:
    """Relax the conformer in place."""
    from rdkit.Chem import rdForceFieldHelpers

    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if mmff is not None:
        force_field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, mmff)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        force_field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
    else:
        text = "holds an atom type for which neither MMFF94 nor UFF has parameters"
        _fail(what, text, "no force field or charges")
    force_field.Initialize()
    # A round takes up to about a second; shorter ones would restart BFGS too often and need more iterations in all.
    iterations = 30_000_000 // mol.GetNumAtoms() ** 2
    for _ in range(FORCE_FIELD_ROUNDS):
        converged = force_field.Minimize(maxIts=iterations) == 0
        _check_clock(what, timeout, deadline)
        if converged:
            break
