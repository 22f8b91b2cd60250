"""Scan, Molecule and Sample: what crosses from stage to stage (Batch holds tensors and stands in data/samples.py).

Angstrom throughout; arrays are indexed (x, y, z). See CONVENTIONS.md.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from .elements import BY_NUMBER, CATEGORIES, ELEMENTS, element_index
from .errors import MoleculeError, ScanError
from .limits import check_atoms_claim

OVERLAP = 0.5
"""Atoms closer than this, A, are a mistake: no bond is shorter than 0.7 A."""
WIDEST = 1000.0
"""Atoms further apart than this along an axis, A, are a mistake: no image is larger (prediction.py)."""
LARGEST_CHARGE = 20.0
"""Partial charges beyond this, e, are a mistake: no nucleus carries as much in a molecule."""
HIGHEST = 1e6
"""Tip heights beyond this, A, are a mistake: a tenth of a millimetre, more than any piezo moves."""
TOUCHING = 2.0
"""Atoms closer than this, A, are of one molecule, bonded or not: the hydrogens of two stay 2.2 A apart. But a hydrogen
bond, between a hydrogen and an atom that have bonds of their own, may be as short as 1.5 A."""
LIKELY = 0.5
"""A listed bond with more than this probability is predicted."""
LEAST = 0.01
"""An element less probable than this is no alternative."""


def closest_atoms(positions: Float[np.ndarray, "n 3"]) -> tuple[float, int, int]:
    """The smallest distance between two atoms, A, and which two; infinite where there is one atom."""
    squares = np.square(positions[:, None] - positions).sum(-1)
    squares.flat[:: len(positions) + 1] = np.inf
    i, j = np.unravel_index(squares.argmin(), squares.shape)
    return float(squares[i, j] ** 0.5), int(i), int(j)


def check_atoms(positions: Float[np.ndarray, "n 3"], charges: Float[np.ndarray, " n"] | None = None) -> None:
    """Refuse, with a MoleculeError, atoms that no molecule has: on top of each other, far apart, with charges that are
    not finite or too large, more than a table of their distances has room for."""
    check_atoms_claim(len(positions), MoleculeError)
    if not np.isfinite(positions).all() or not (charges is None or np.isfinite(charges).all()):
        raise MoleculeError("Positions and charges of atoms must be finite numbers.")
    if charges is not None and (np.abs(charges) > LARGEST_CHARGE).any():
        most = charges[np.abs(charges).argmax()]
        text = f"A charge of {most:.3g} e is none of an atom in a molecule; give partial charges in e."
        raise MoleculeError(text, "charges too large")
    with np.errstate(over="ignore"):
        width = float(np.ptp(positions, axis=0).max(initial=0.0)) if len(positions) else 0.0
    if width > WIDEST:
        text = f"Atoms are {width:.3g} A apart, more than {WIDEST:g} A; remove those far away, or give positions in A."
        raise MoleculeError(text, "atoms far apart")
    distance, i, j = closest_atoms(positions)
    if distance < OVERLAP:
        text = f"Atoms {i} and {j} (from 0) are {distance:.2g} A apart; remove one, or give positions in A."
        raise MoleculeError(text, "atoms on top of each other")


@dataclass(frozen=True, eq=False)
class Scan:
    """A stack of constant-height images of the frequency shift; the last slice is the closest to the molecule.

    Raises:
        ScanError: not three-dimensional, not finite, a size that is not positive, or heights that do not fit.
    """

    data: Float[np.ndarray, "nx ny nz"]
    """Frequency shift, in Hz when simulated, in the instrument's units when measured."""
    size: tuple[float, float]
    """Length of the imaged area in x and y, A; pixel (ix, iy) lies at ((ix + 0.5) lx / nx, (iy + 0.5) ly / ny)."""
    heights: Float[np.ndarray, " nz"] | None = None
    """Tip height of each slice, A, descending (equal: a repeat); only differences matter. None: unknown."""
    source: str = ""
    """Where the scan came from, for people."""

    def __post_init__(self) -> None:
        if not np.issubdtype(self.data.dtype, np.floating):  # between whole numbers nothing can be interpolated
            object.__setattr__(self, "data", self.data.astype(np.float32))
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise ScanError(f"A stack has three dimensions (x, y, slice); this one has the shape {self.data.shape}.")
        if not np.isfinite(self.data).all():
            raise ScanError("The stack holds NaN or infinite values; crop or fill the unfinished part of the image.")
        if len(self.size) != 2 or not all(np.isfinite(s) and s > 0 for s in self.size):
            raise ScanError(f"The size of the image must be two positive lengths in Angstrom, not {self.size}.")
        if self.heights is not None:
            object.__setattr__(self, "heights", np.asarray(self.heights, float))  # a list will do
            if len(self.heights) != self.data.shape[2]:
                raise ScanError(f"{self.data.shape[2]} slices but {len(self.heights)} heights; one each is needed.")
            if not np.isfinite(self.heights).all() or not (np.diff(self.heights) <= 0).all():
                raise ScanError("Heights must not ascend from slice to slice: the last slice is the closest.")
            if np.abs(self.heights).max() > HIGHEST:
                far = self.heights[np.abs(self.heights).argmax()]
                raise ScanError(f"A height of {far:g} A is none of a tip, more than {HIGHEST:g} A; give heights in A.")

    @property
    def pixel(self) -> tuple[float, float]:
        """Pixel size in x and y, A."""
        return self.size[0] / self.data.shape[0], self.size[1] / self.data.shape[1]


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms and bonds; a prediction also carries probabilities.

    Raises:
        MoleculeError: arrays that do not fit together, positions or charges that are not finite, an element afmol does
            not know.
    """

    positions: Float[np.ndarray, "n 3"]
    """A."""
    numbers: Int[np.ndarray, " n"]
    """Atomic numbers."""
    bonds: Int[np.ndarray, "m 2"]
    """Pairs of atoms i < j."""
    charges: Float[np.ndarray, " n"] | None = None
    """Partial charges, e. None: unknown."""
    class_probabilities: Float[np.ndarray, "n 5"] | None = None
    confidence: Float[np.ndarray, " n"] | None = None
    """Probability that there is an atom."""
    bond_probabilities: Float[np.ndarray, " m"] | None = None
    name: str = ""
    element_probabilities: Float[np.ndarray, "n 11"] | None = None
    """In the order of ELEMENTS; None: the model knows classes only."""
    warnings: tuple[str, ...] = ()
    """Why a prediction may be wrong as a whole, a sentence each."""
    smiles: tuple[str | None, ...] = ()
    """Of each of `parts`, None where it is no whole molecule; empty where nobody asked (naming.py)."""
    stretch: float | None = None
    """Of atoms in an image, its stated size over the true one: lengths in the plane are so many times too long, as a
    network says, and, once it is predicted, as it and the bonds do together (scale.py). None: unknown."""
    explained: float | None = None
    """Correlation of the stack with a simulation of the molecule, where it was refined (refinement/), mean over
    slices."""

    def __post_init__(self) -> None:
        n, m = len(self.numbers), len(self.bonds)
        if self.positions.shape != (n, 3) or self.bonds.shape != (m, 2):
            raise MoleculeError(f"{n} atoms need positions ({n}, 3) and bonds (m, 2).")
        of_atoms = (self.charges, self.class_probabilities, self.confidence, self.element_probabilities)
        if any(a is not None and len(a) != n for a in of_atoms):
            raise MoleculeError("Charges and probabilities must be given for each atom or not at all.")
        if self.bond_probabilities is not None and len(self.bond_probabilities) != m:
            raise MoleculeError("Bond probabilities must be given for each bond or not at all.")
        if not np.isfinite(self.positions).all():
            raise MoleculeError("Positions must be finite numbers.")
        if self.charges is not None and not np.isfinite(self.charges).all():
            raise MoleculeError("Charges must be finite numbers.")
        unknown = sorted({int(z) for z in self.numbers if int(z) not in BY_NUMBER})
        if unknown:
            known = ", ".join(e.symbol for e in BY_NUMBER.values())
            text = f"Atomic number {unknown[0]} is not an element that afmol knows ({known})."
            raise MoleculeError(text, "element not known")
        if m and (self.bonds.min() < 0 or self.bonds.max() >= n or (self.bonds[:, 0] >= self.bonds[:, 1]).any()):
            raise MoleculeError("Bonds must be pairs i < j of atoms of the molecule.")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def classes(self) -> Int[np.ndarray, " n"]:
        """Class of each atom (0 H; 1 C, Si; 2 N, P; 3 O, S; 4 halogens)."""
        return CATEGORIES[element_index(self.numbers)]

    @property
    def symbols(self) -> list[str]:
        """Element symbol of each atom."""
        return [BY_NUMBER[int(z)].symbol for z in self.numbers]

    @property
    def likely(self) -> Bool[np.ndarray, " m"]:
        """Mask of the listed bonds that are more probable than not; all where there are no probabilities."""
        p = self.bond_probabilities
        return np.ones(len(self.bonds), bool) if p is None else p > LIKELY

    @property
    def unseen(self) -> Bool[np.ndarray, " n"]:
        """Mask of the atoms that no image showed: hydrogens that were added (hydrogens.py), of confidence 0."""
        return np.zeros(len(self), bool) if self.confidence is None else self.confidence == 0

    def alternatives(self, most: int = 3) -> list[list[tuple[str, float]]]:
        """For each atom the elements that it may be and their probabilities, the most probable first; at most so many,
        those of 1 % and more. Empty lists where the model knows classes only."""
        if self.element_probabilities is None:
            return [[] for _ in self.numbers]
        ranked = np.argsort(-self.element_probabilities, axis=1, kind="stable")[:, :most]
        return [
            [(ELEMENTS[k].symbol, float(p[k])) for k in places if p[k] >= LEAST]
            for places, p in zip(ranked.tolist(), self.element_probabilities, strict=True)
        ]

    def readings(self, most: int = 3) -> list[tuple[dict[int, str], float]]:
        """The most probable readings of the whole molecule, the answer first: which atoms are of another class than in
        it, as which element, and the probability of all classes together, as if atoms knew nothing of each other.

        At most so many, each at least LEAST times as probable as the answer. The `most - 1` changes that cost least
        are enough: a reading with any other change comes after the answer and each of these alone.
        """
        p, e = self.class_probabilities, self.element_probabilities
        if p is None:
            return [({}, 1.0)]
        rows, logs = np.arange(len(self)), np.log(np.maximum(p, 1e-300))
        cost = logs[rows, self.classes][:, None] - logs
        cost[rows, self.classes] = np.inf
        cheapest = np.argsort(cost, axis=None, kind="stable")[: most - 1]
        changes = [divmod(int(k), p.shape[1]) for k in cheapest if cost.flat[k] < -np.log(LEAST)]
        found = []
        for chosen in (some for n in range(most) for some in combinations(changes, n)):
            if len({atom for atom, _ in chosen}) == len(chosen):
                of_class = {i: np.where(c == CATEGORIES, 1.0 if e is None else e[i], -1.0) for i, c in chosen}
                symbols = {i: ELEMENTS[int(share.argmax())].symbol for i, share in of_class.items()}
                found.append((symbols, sum(cost[change] for change in chosen)))
        found = sorted(found, key=lambda reading: reading[1])[:most]
        whole = logs[rows, self.classes].sum()
        return [(symbols, float(np.exp(whole - more))) for symbols, more in found]

    def with_likely_bonds(self) -> "Molecule":
        """The molecule with the bonds that are more probable than not."""
        p = self.bond_probabilities
        return self if p is None else replace(self, bonds=self.bonds[self.likely], bond_probabilities=p[self.likely])

    def parts(self, touching: float = TOUCHING) -> list[Int[np.ndarray, " k"]]:
        """The atoms of each molecule, the largest first: those that likely bonds join, or closer than `touching`, A,
        but for hydrogens by atoms to which they are not bonded, where both have bonds."""
        close = KDTree(self.positions).query_pairs(touching, output_type="ndarray") if len(self) else self.bonds
        bonds = self.bonds[self.likely]
        bonded, hydrogen = np.isin(np.arange(len(self)), bonds), self.numbers == 1
        joined = ~(bonded[close].all(1) & hydrogen[close].any(1))
        n, (i, j) = len(self), np.concatenate([bonds, close[joined]]).T
        count, part = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)
        return sorted((np.flatnonzero(part == k) for k in range(count)), key=lambda atoms: (-len(atoms), atoms[0]))

    def taken(self, atoms: Int[np.ndarray, " k"]) -> "Molecule":
        """These atoms alone, in this order, and the bonds between them."""
        place = np.full(len(self), -1)
        place[atoms] = np.arange(len(atoms))
        kept = (place[self.bonds] >= 0).all(1)
        of_atoms = ("positions", "numbers", "charges", "class_probabilities", "confidence", "element_probabilities")
        values = {name: getattr(self, name) for name in of_atoms}
        return replace(
            self,
            bonds=np.sort(place[self.bonds[kept]], axis=1),
            bond_probabilities=None if self.bond_probabilities is None else self.bond_probabilities[kept],
            smiles=(),
            **{name: None if value is None else value[atoms] for name, value in values.items()},
        )

    def within(self, depth: float) -> Bool[np.ndarray, " n"]:
        """Mask of the atoms at most `depth` (A) below the topmost one, where that lies at z = 0."""
        return self.positions[:, 2] >= -depth


class Sample(NamedTuple):
    """A labelled stack: the scan, and the atoms in its frame."""

    scan: Scan
    molecule: Molecule
