"""Molecules in .xyz, plain and extended, and in .sdf and .mol."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..elements import bonds_by_distance
from ..errors import MoleculeError
from ..structures import Molecule

# xyz


def read_xyz(path: Path) -> Molecule:
    """The first frame of a file."""
    return parse_xyz(path.read_text("utf-8", "replace"), path.stem)


def parse_xyz(text: str, name: str) -> Molecule:
    """Plain xyz, or extended where the comment line says so; bonds by distance; a name in the text goes before `name`.

    A fifth column of plain xyz is read as charges if there are five columns in every row and the fifth holds numbers
    of both signs whose sum is whole to 0.05; radii, masses and labels have one sign.
    """
    lines = text.split("\n")
    if not re.fullmatch(r"\s*\d+\s*", lines[0]) or len(lines) < 2:
        raise MoleculeError("the first line must be the number of atoms and the second a comment; mend the file.")
    n = int(lines[0])
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    if len([line for line in lines[2 : 2 + n] if line.strip()]) < n:
        raise MoleculeError(f"it should hold {n} atoms but ends before; it is cut off.")
    charges, confidence = None, None
    if "Properties=" in lines[1]:
        import ase.io

        atoms: Any = ase.io.read(io.StringIO(text), index=0, format="extxyz")
        numbers, positions, found = atoms.numbers, atoms.positions, dict(atoms.arrays)
        # ASE moves columns that it takes for results, charges among them, into a calculator.
        found |= {} if atoms.calc is None else atoms.calc.results
        charges = next((found[key] for key in ("charges", "charge", "initial_charges", "q") if key in found), None)
        confidence = found.get("confidence")
        name = str(atoms.info.get("name", name))
    else:
        table = [line.split() for line in lines[2 : 2 + n]]
        if any(len(row) < 4 for row in table):
            raise MoleculeError("each atom needs an element and three coordinates; mend the lines that have fewer.")
        numbers = np.array([atomic_number(row[0]) for row in table])
        positions = np.array([[float(value) for value in row[1:4]] for row in table])
        if all(len(row) == 5 for row in table):
            charges = _charges([row[4] for row in table])
    numbers = np.asarray(numbers, int)
    positions = np.asarray(positions, float)
    if not np.isin(numbers, np.arange(119)).all():
        raise MoleculeError(f"{numbers.max()} is not an atomic number; mend the first column.")
    return Molecule(
        positions,
        numbers,
        bonds_by_distance(positions, numbers),
        charges=None if charges is None else np.asarray(charges, float).reshape(n),
        confidence=None if confidence is None else np.asarray(confidence, float).reshape(n),
        name=name,
    )


def atomic_number(label: str) -> int:
    """Of a symbol or a number, as text. Raises MoleculeError: neither."""
    from ase.data import atomic_numbers

    if label.isdecimal():
        return int(label)
    if label.capitalize() not in atomic_numbers:
        raise MoleculeError(f"{label!r} is not an element; the first column must hold symbols or atomic numbers.")
    return atomic_numbers[label.capitalize()]


def _charges(column: list[str]) -> Float[np.ndarray, " n"] | None:
    try:
        values = np.array([float(value) for value in column])
    except ValueError:
        return None
    if not np.isfinite(values).all() or not values.min() < 0 < values.max():
        return None
    return values if abs(values.sum() - round(values.sum())) <= 0.05 else None


def xyz(molecule: Molecule) -> str:
    """Extended xyz: whoever reads plain xyz finds the element and three coordinates in front."""
    columns: list[tuple[str, list[str]]] = [
        ("species:S:1", molecule.symbols),
        ("pos:R:3", ["{:.8f} {:.8f} {:.8f}".format(*position) for position in molecule.positions]),
    ]
    for label, values in (("charge:R:1", molecule.charges), ("confidence:R:1", molecule.confidence)):
        if values is not None:
            columns.append((label, [f"{value:.8f}" for value in values]))
    if molecule.class_probabilities is not None:
        columns.append(("class:I:1", [str(c) for c in molecule.classes]))
    name = " ".join(re.sub(r'["\\]', "", molecule.name).split())
    comment = f"Properties={':'.join(label for label, _ in columns)}" + (f' name="{name}"' if name else "")
    comment += ' pbc="F F F"'
    rows = [" ".join(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join([str(len(molecule)), comment, *rows]) + "\n"


# MDL molfiles, by RDKit and never sanitized: a prediction may have valences that no chemistry accepts


def read_sdf(path: Path) -> Molecule:
    """The first molecule, bonds as they stand there."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(path.read_text("utf-8", "replace"), sanitize=False, removeHs=False)
        mol = next(supplier, None)
    if mol is None:
        raise MoleculeError("the first molecule cannot be read; the file is cut off or not an MDL molfile.")
    n = mol.GetNumAtoms()
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    positions = np.array(mol.GetConformer().GetPositions(), float) if mol.GetNumConformers() else np.zeros((n, 3))
    if not mol.GetNumConformers() or not mol.GetConformer().Is3D() or (n > 1 and not np.ptp(positions, axis=0).any()):
        raise MoleculeError("it has no 3D coordinates; give a 3D file, or the molecule's SMILES, to have it built.")
    atoms = list(mol.GetAtoms())
    bonds = {tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))) for bond in mol.GetBonds()}

    def per_atom(key: str) -> Float[np.ndarray, " n"] | None:
        return np.array([a.GetDoubleProp(key) for a in atoms]) if all(a.HasProp(key) for a in atoms) else None

    return Molecule(
        positions,
        np.array([atom.GetAtomicNum() for atom in atoms]),
        np.array(sorted(bonds), int).reshape(-1, 2),
        charges=per_atom("PartialCharge"),
        confidence=per_atom("confidence"),
        name=(mol.GetProp("_Name") if mol.HasProp("_Name") else "") or path.stem,
    )


def _rdkit(molecule: Molecule) -> Any:
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in molecule.numbers:
        mol.AddAtom(Chem.Atom(int(number)))
    for i, j in molecule.bonds:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(molecule))
    conformer.Set3D(True)
    if len(molecule):
        conformer.SetPositions(np.asarray(molecule.positions, float))
    mol.AddConformer(conformer)
    mol.SetProp("_Name", " ".join(molecule.name.replace("$", "").split())[:80])
    return mol


def mol(molecule: Molecule) -> str:
    """A molfile: V2000, or V3000 where there are more atoms or bonds than V2000 can count."""
    from rdkit import Chem

    return Chem.MolToMolBlock(_rdkit(molecule), includeStereo=False, kekulize=False)


def sdf(molecule: Molecule) -> str:
    """A molfile and, under the names that RDKit gives back to the atoms, charges and confidence."""
    from rdkit import Chem

    mol = _rdkit(molecule)
    for key, values in (("PartialCharge", molecule.charges), ("confidence", molecule.confidence)):
        if values is not None and len(values):
            for atom, value in zip(mol.GetAtoms(), values, strict=True):
                atom.SetDoubleProp(key, float(value))
            Chem.CreateAtomDoublePropertyList(mol, key)
    buffer = io.StringIO()
    with Chem.SDWriter(buffer) as writer:
        writer.SetKekulize(False)
        writer.write(mol)
    return buffer.getvalue()
