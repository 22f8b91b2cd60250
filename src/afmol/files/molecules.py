"""Molecules in .xyz, plain and extended, in .sdf and .mol, and in RDKit, which reads and writes these two."""

import io
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from ..elements import bonds_by_distance
from ..errors import MoleculeError
from ..limits import TEXT, bounded_lines, check_atoms_claim, check_claim, most_text
from ..structures import Molecule, check_atoms

if TYPE_CHECKING:
    import rdkit.Chem

# xyz


def read_xyz(path: Path) -> Molecule:
    """The first frame of a file; the others are not looked at."""
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = bounded_lines(file, path.name, MoleculeError)
        first = next(lines, "")
        text = "".join([first, *islice(lines, 1 + _count(first))])
    return parse_xyz(text, path.stem)


def parse_xyz(text: str, name: str) -> Molecule:
    """Plain xyz, or extended where the comment line says so; bonds by distance; a name in the text goes before `name`.

    A fifth column of plain xyz is read as charges if there are five columns in every row and the fifth holds numbers
    of both signs whose sum is whole to 0.05; radii, masses and labels have one sign.

    Raises:
        MoleculeError: as of `xyz_rows`, `xyz_atoms` and `check_atoms`, and of ASE for an extended one.
    """
    comment, rows = xyz_rows(text)
    if "Properties=" in comment:
        _check_columns(comment, rows)
        molecule = _extended(text, name)
    else:
        numbers, positions = xyz_atoms(rows)
        charges = _charges([row[4] for row in rows]) if all(len(row) == 5 for row in rows) else None
        molecule = Molecule(positions, numbers, np.zeros((0, 2), int), charges, name=name)
    check_atoms(molecule.positions, molecule.charges)
    return replace(molecule, bonds=bonds_by_distance(molecule.positions, molecule.numbers))


def xyz_rows(text: str) -> tuple[str, list[list[str]]]:
    """The comment and the cells of each atom of the first frame.

    Raises:
        MoleculeError: no number of atoms, too many, or fewer of them.
    """
    lines = text.split("\n")
    n = _count(lines[0])
    if len(lines) < 2:
        raise MoleculeError(_NO_COUNT)
    rows = [line.split() for line in lines[2 : 2 + n] if line.strip()]
    if len(rows) < n:
        raise MoleculeError(f"it should hold {n} atoms but ends before; it is cut off.")
    return lines[1], rows


_NO_COUNT = "the first line must be the number of atoms and the second a comment; mend the file."


def _count(line: str) -> int:
    """The number of atoms that the first line of a frame says."""
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", line):
        raise MoleculeError(_NO_COUNT)
    n = int(line)
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    check_atoms_claim(n, MoleculeError)
    return n


def _check_columns(comment: str, rows: list[list[str]]) -> None:
    """Refuse columns that no row has, before ASE makes room for them."""
    from ase.io.extxyz import key_val_str_to_dict

    try:
        columns = str(key_val_str_to_dict(comment.strip()).get("Properties", "")).split(":")[2::3]
        claimed = sum(map(int, columns))
    except Exception as error:
        # As for the atoms below, ASE raises nearly everything.
        raise MoleculeError("the comment of the extended xyz cannot be read; it is damaged.") from error
    if claimed > max(map(len, rows)):
        raise MoleculeError("its comment promises more columns than any atom has; it is damaged.")


def xyz_atoms(rows: list[list[str]]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Atomic numbers and positions of the cells of atoms: element or atomic number, x, y, z.

    Raises:
        MoleculeError: fewer cells, no such element, no numbers.
    """
    if any(len(row) < 4 for row in rows):
        raise MoleculeError("each atom needs an element and three coordinates; mend the lines that have fewer.")
    numbers = np.array([atomic_number(row[0]) for row in rows])
    try:
        return numbers, np.array([[float(value) for value in row[1:4]] for row in rows])
    except ValueError as error:
        raise MoleculeError(f"the coordinates must be numbers ({error}); it is damaged.") from error


def atomic_number(label: str) -> int:
    """Of a symbol or a number, as text. Raises MoleculeError: neither."""
    from ase.data import atomic_numbers

    if label.isdecimal() and len(label) < 4:
        return int(label)
    if label.capitalize() not in atomic_numbers:
        raise MoleculeError(f"{label[:20]!r} is not an element; the first column must hold symbols or atomic numbers.")
    return atomic_numbers[label.capitalize()]


def _extended(text: str, name: str) -> Molecule:
    """By ASE, without bonds."""
    import ase.io

    try:
        atoms: Any = ase.io.read(io.StringIO(text), index=0, format="extxyz")
        # ASE moves columns that it takes for results, charges among them, into a calculator.
        found = dict(atoms.arrays) | ({} if atoms.calc is None else atoms.calc.results)
        charges = next((found[key] for key in ("charges", "charge", "initial_charges", "q") if key in found), None)
        charges, confidence = (
            None if values is None else np.asarray(values, float).reshape(len(atoms))
            for values in (charges, found.get("confidence"))
        )
    except Exception as error:
        # ASE raises nearly everything on damaged text; for the user it is one case.
        text = f"the extended xyz cannot be read ({' '.join(str(error).split())[:80]}); it is damaged."
        raise MoleculeError(text) from error
    name, bonds = str(atoms.info.get("name", name)), np.zeros((0, 2), int)
    numbers, positions = np.asarray(atoms.numbers, int), np.asarray(atoms.positions, float)
    return Molecule(positions, numbers, bonds, charges, confidence=confidence, name=name)


def _charges(column: list[str]) -> Float[np.ndarray, " n"] | None:
    try:
        values = np.array([float(value) for value in column])
    except ValueError:
        return None
    if not np.isfinite(values).all() or not values.min() < 0 < values.max():
        return None
    return values if abs(values.sum() - round(values.sum())) <= 0.05 else None


def _text(name: str) -> str:
    """A name that can be written as UTF-8, which those of files need not be."""
    return name.encode(errors="replace").decode()


def xyz(molecule: Molecule) -> bytes:
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
    name = " ".join(re.sub(r'["\\]', "", _text(molecule.name)).split())
    comment = f"Properties={':'.join(label for label, _ in columns)}" + (f' name="{name}"' if name else "")
    comment += ' pbc="F F F"'
    rows = [" ".join(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return ("\n".join([str(len(molecule)), comment, *rows]) + "\n").encode()


# RDKit; never sanitized here: a prediction may have valences that no chemistry accepts


def rdkit_graph(numbers: Int[np.ndarray, " n"], bonds: Int[np.ndarray, "m 2"]) -> "rdkit.Chem.RWMol":
    """Atoms and single bonds in RDKit, without a conformer."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in numbers:
        mol.AddAtom(Chem.Atom(int(number)))
    for i, j in bonds:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    return mol


def to_rdkit(molecule: Molecule) -> "rdkit.Chem.Mol":
    """The molecule in RDKit, one conformer; every bond is single, for a Molecule holds no bond orders."""
    from rdkit import Chem

    mol = rdkit_graph(molecule.numbers, molecule.bonds)
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(True)
    conformer = Chem.Conformer(len(molecule))
    conformer.Set3D(True)
    if len(molecule):
        conformer.SetPositions(np.asarray(molecule.positions, float))
    mol.AddConformer(conformer)
    mol.SetProp("_Name", _text(molecule.name))
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


# MDL molfiles


def claims_too_much(molfile: str) -> bool:
    """Whether a V3000 molfile counts more atoms, bonds or others than it has lines: RDKit makes room for them all."""
    joined = re.sub(r"-[ \t]*\r?\n(M  V30)?", "", molfile)
    counts = re.findall(r"M  V30[ \t]+COUNTS([ \t\d]*)", joined)
    return any(int(count[:18]) > molfile.count("\n") for line in counts for count in line.split())


def read_sdf(path: Path) -> Molecule:
    """The first molecule, bonds as they stand there."""
    from rdkit import Chem, rdBase

    record = _first_record(path)
    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData("" if claims_too_much(record) else record, sanitize=False, removeHs=False)
        mol = next(supplier, None)
    if mol is None:
        raise MoleculeError("the first molecule cannot be read; the file is cut off or not an MDL molfile.")
    n = mol.GetNumAtoms()
    if n == 0:
        raise MoleculeError("it holds no atoms; give a file with at least one.")
    conformer = mol.GetConformer() if mol.GetNumConformers() else None
    if conformer is None or not conformer.Is3D() or (n > 1 and not np.ptp(conformer.GetPositions(), axis=0).any()):
        raise MoleculeError("it has no 3D coordinates; give a 3D file, or the molecule's SMILES, to have it built.")
    atoms = list(mol.GetAtoms())

    def per_atom(key: str) -> Float[np.ndarray, " n"] | None:
        return np.array([a.GetDoubleProp(key) for a in atoms]) if all(a.HasProp(key) for a in atoms) else None

    check_atoms_claim(n, MoleculeError)
    molecule, charges = from_rdkit(mol), per_atom("PartialCharge")
    check_atoms(molecule.positions, charges)
    return replace(
        molecule,
        bonds=np.array(sorted(molecule.bonds.tolist()), int).reshape(-1, 2),
        charges=charges,
        confidence=per_atom("confidence"),
        name=molecule.name or path.stem,
    )


def _first_record(path: Path) -> str:
    """The text of a file up to the line $$$$ that ends its first molecule; the others are not looked at."""
    record, length, most = [], 0, most_text()
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in bounded_lines(file, path.name, MoleculeError):
            record.append(line)
            length += len(line)
            if length > most:
                check_claim(TEXT * length, f"The first molecule of {path.name}", MoleculeError)
            if line.startswith("$$$$"):
                break
    return "".join(record)


def mol(molecule: Molecule) -> bytes:
    """A molfile: V2000, or V3000 where there are more atoms or bonds than V2000 can count."""
    from rdkit import Chem

    return Chem.MolToMolBlock(_for_molfile(molecule), includeStereo=False, kekulize=False).encode()


def sdf(molecule: Molecule) -> bytes:
    """A molfile and, under the names that RDKit gives back to the atoms, charges and confidence."""
    from rdkit import Chem

    mol = _for_molfile(molecule)
    for key, values in (("PartialCharge", molecule.charges), ("confidence", molecule.confidence)):
        if values is not None and len(values):
            for atom, value in zip(mol.GetAtoms(), values, strict=True):
                atom.SetDoubleProp(key, float(value))
            Chem.CreateAtomDoublePropertyList(mol, key)
    buffer = io.StringIO()
    with Chem.SDWriter(buffer) as writer:
        writer.SetKekulize(False)
        writer.write(mol)
    return buffer.getvalue().encode()


def _for_molfile(molecule: Molecule) -> "rdkit.Chem.Mol":
    mol = to_rdkit(molecule)
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)  # else RDKit writes the valences, which single bonds do not have right
    mol.SetProp("_Name", " ".join(_text(molecule.name).replace("$", "").split())[:80])
    return mol
