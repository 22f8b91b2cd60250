"""Counts of what is right and wrong in predicted molecules; counts add up.

Nothing is averaged before it is summed, so a data set may be split among workers in any way. The bonds that the
distance table alone would draw through the predicted atoms (the "rule") are counted beside the predicted bonds, always.

The paper: Oinonen, Kurki, Ilin, Foster, MRS Bulletin 2022, doi 10.1557/s43577-022-00324-3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ..elements import ELEMENTS, bonds_by_distance, element_index
from ..errors import MoleculeError
from ..structures import Molecule
from .confusion import N_CALIBRATION_BINS, N_CLASSES, calibration_tally, class_confusion

NONE = N_CLASSES
"""Row (spurious atoms) and column (missed atoms) of the class confusion beside the five classes."""
PAPER_TOLERANCE = 0.35
"""A: how close a predicted atom must be by the paper's definition."""
SIZE_BIN, N_SIZE_BINS = 4, 25
"""Statistics by reference size, ours and the paper's: 1-4, 5-8, ... atoms; the last bin is open."""
DEPTH_BIN, N_DEPTH_BINS = 0.2, 10
"""A: statistics by depth below the topmost atom of the reference; the last bin is open."""


def zeros(*shape: int, dtype: type = int) -> Callable[[], np.ndarray]:
    """What makes an array of zeros, for a field."""
    return lambda: np.zeros(shape, dtype)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Counts over some molecules; `a + b` counts both, `Comparison()` none. Confusions are [true, predicted]."""

    molecules: int = 0
    exact: int = 0
    """Molecules without any error: each visible atom found, none spurious, all classes and all bonds right."""
    ignored: int = 0
    """Predicted atoms that are neither right nor wrong: they match a reference atom that is not asked for."""
    classes: Int[np.ndarray, "6 6"] = field(default_factory=zeros(6, 6))
    """Class confusion of the one-to-one matching; index 5 is "none": column 5 missed atoms, row 5 spurious atoms."""
    elements: Int[np.ndarray, "11 11"] = field(default_factory=zeros(len(ELEMENTS), len(ELEMENTS)))
    """Confusion of the elements of matched atoms, in the order of ELEMENTS."""
    by_size: Int[np.ndarray, "25 5"] = field(default_factory=zeros(N_SIZE_BINS, 5))
    """Molecules, exact ones, atoms that are asked for, those found, those found with the right class."""
    by_depth: Int[np.ndarray, "10 3"] = field(default_factory=zeros(N_DEPTH_BINS, 3))
    """Atoms that are asked for, those found, those found with the right class."""
    bonds: Int[np.ndarray, "2 2"] = field(default_factory=zeros(2, 2))
    """Bond confusion over all pairs of matched atoms."""
    rule_bonds: Int[np.ndarray, "2 2"] = field(default_factory=zeros(2, 2))
    """The same for the bonds that the distance table draws through predicted positions and elements."""
    xy_errors: Float[np.ndarray, " 2"] = field(default_factory=zeros(2, dtype=float))
    """Sums over matched atoms of the distance in the plane (A) and of its square (A^2)."""
    z_errors: Float[np.ndarray, " 2"] = field(default_factory=zeros(2, dtype=float))
    """Sums over matched atoms of |dz| (A) and of its square (A^2)."""
    calibration: Float[np.ndarray, "3 10 3"] = field(default_factory=zeros(3, N_CALIBRATION_BINS, 3, dtype=float))
    """`calibration_tally` of atoms' confidence (ignored ones are there), of the probability of the class given, of
    listed bonds' probability."""
    paper_classes: Int[np.ndarray, "25 5 5"] = field(default_factory=zeros(N_SIZE_BINS, 5, 5))
    paper_bonds: Int[np.ndarray, "25 2 2"] = field(default_factory=zeros(N_SIZE_BINS, 2, 2))
    paper_rule_bonds: Int[np.ndarray, "25 2 2"] = field(default_factory=zeros(N_SIZE_BINS, 2, 2))
    paper_counts: Int[np.ndarray, "25 5"] = field(default_factory=zeros(N_SIZE_BINS, 5))
    """Molecules, reference atoms, missing atoms, extra atoms, molecules with a Hausdorff distance."""
    paper_lengths: Float[np.ndarray, "25 2"] = field(default_factory=zeros(N_SIZE_BINS, 2, dtype=float))
    """Sums of the Hausdorff distance over molecules and of the matching distance over matched atoms, A."""

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def total(comparisons: Iterable[Comparison]) -> Comparison:
    """Sum of comparisons."""
    return sum(comparisons, Comparison())


def size_bin(atoms: int) -> Bool[np.ndarray, " 25"]:
    """Which of the bins of sizes a graph is in: one true entry."""
    return np.arange(N_SIZE_BINS) == min(max(atoms - 1, 0) // SIZE_BIN, N_SIZE_BINS - 1)


class Matching(NamedTuple):
    """Which predicted atoms stand for which reference atoms, one to one."""

    found: Int[np.ndarray, " k"]
    """Predicted atoms."""
    partner: Int[np.ndarray, " k"]
    """The reference atom of each."""
    extra: Int[np.ndarray, " e"]
    """Predicted atoms that stand for none."""
    ignored: int
    """How many stand for one that is not asked for."""


def matching(
    prediction: Molecule, reference: Molecule, visible: Bool[np.ndarray, " n_ref"], tolerance: float = 0.5
) -> Matching:
    """As `compare` matches: the reference atoms that are asked for first, then what is left over to the others."""
    asked = np.flatnonzero(visible)
    found, place = _match(prediction.positions, reference.positions[asked], tolerance)
    spare = np.setdiff1d(np.arange(len(prediction)), found)
    ignored, _ = _match(prediction.positions[spare], reference.positions[~visible], tolerance)
    return Matching(found, asked[place], np.delete(spare, ignored), len(ignored))


def compare(
    prediction: Molecule, reference: Molecule, visible: Bool[np.ndarray, " n_ref"], tolerance: float = 0.5
) -> Comparison:
    """Count what is right and wrong in one predicted molecule.

    Args:
        prediction: Atoms, and bonds of which those with probability > 0.5 count (all, when they have none).
        reference: In the same frame: A, z = 0 at the topmost nucleus.
        visible: Reference atoms that are asked for. The others are neither right nor wrong: predicted atoms left over
            that match one of them are ignored (by our definitions; the paper knows no such atoms: they are extra).
        tolerance: A, of the one-to-one matching in 3D.

    Raises:
        MoleculeError: a mask that does not fit the reference, probabilities outside 0 ... 1.
    """
    if visible.shape != (len(reference),) or visible.dtype != bool:
        raise MoleculeError(f"The mask of visible atoms must hold one bool for each of the {len(reference)} atoms.")
    for p in (prediction.confidence, prediction.class_probabilities, prediction.bond_probabilities):
        if p is not None and not ((p > -1e-5) & (p < 1 + 1e-5)).all():
            raise MoleculeError("Probabilities of a prediction must lie between 0 and 1.")

    asked = np.flatnonzero(visible)
    found, partner, extra, ignored = matching(prediction, reference, visible, tolerance)
    missed = np.setdiff1d(asked, partner)
    true, given = reference.classes, prediction.classes
    classes = class_confusion(
        np.concatenate([true[partner], true[missed], np.full(len(extra), NONE)]),
        np.concatenate([given[found], np.full(len(missed), NONE), given[extra]]),
        N_CLASSES + 1,
    )
    bonded = _adjacency(len(reference), reference.bonds)
    drawn = _adjacency(len(prediction), prediction.bonds[prediction.likely])
    ruled = _adjacency(len(prediction), bonds_by_distance(prediction.positions, prediction.numbers))
    bonds = _bond_confusion(bonded, partner, drawn, found)
    exact = bool(np.trace(classes) == classes.sum() and np.trace(bonds) == bonds.sum())
    depth = reference.positions[:, 2].max(initial=-np.inf) - reference.positions[:, 2]
    right = partner[true[partner] == given[found]]
    by_depth = np.stack([_depths(depth[atoms]) for atoms in (asked, partner, right)], axis=1)
    difference = prediction.positions[found] - reference.positions[partner]
    xy, z = np.linalg.norm(difference[:, :2], axis=1), np.abs(difference[:, 2])
    return Comparison(
        molecules=1,
        exact=int(exact),
        ignored=ignored,
        classes=classes,
        elements=class_confusion(
            element_index(reference.numbers[partner]), element_index(prediction.numbers[found]), len(ELEMENTS)
        ),
        by_size=np.multiply.outer(size_bin(len(asked)), [1, exact, *by_depth.sum(0)]),
        by_depth=by_depth,
        bonds=bonds,
        rule_bonds=_bond_confusion(bonded, partner, ruled, found),
        xy_errors=np.array([xy.sum(), (xy**2).sum()]),
        z_errors=np.array([z.sum(), (z**2).sum()]),
        calibration=_calibration(prediction, true, bonded, found, partner, extra),
        **_paper_counts(prediction, reference, asked, bonded, drawn, ruled),
    )


def _match(
    a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"], tolerance: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """One-to-one matching of points closer than the tolerance; the cap keeps far pairs from pulling at near ones."""
    distance = cdist(a, b)
    i, j = linear_sum_assignment(np.minimum(distance, 4 * tolerance))
    near = distance[i, j] < tolerance
    return i[near], j[near]


def _adjacency(n: int, bonds: Int[np.ndarray, "m 2"]) -> Bool[np.ndarray, "n n"]:
    out = np.zeros((n, n), bool)
    out[bonds[:, 0], bonds[:, 1]] = True
    return out | out.T


def _depths(depth: Float[np.ndarray, " n"]) -> Int[np.ndarray, " 10"]:
    """How many atoms are in each bin of depth."""
    place = np.clip((depth / DEPTH_BIN).astype(int), 0, N_DEPTH_BINS - 1)
    return np.bincount(place, minlength=N_DEPTH_BINS)


def _bond_confusion(
    true: Bool[np.ndarray, "n n"],
    i: Int[np.ndarray, " k"],
    predicted: Bool[np.ndarray, "m m"],
    j: Int[np.ndarray, " k"],
) -> Int[np.ndarray, "2 2"]:
    """Over all pairs of reference atoms i with their predicted atoms j."""
    a, b = np.triu_indices(len(i), 1)
    return class_confusion(true[i[a], i[b]].astype(int), predicted[j[a], j[b]].astype(int), 2)


def _calibration(
    prediction: Molecule,
    true: Int[np.ndarray, " n_ref"],
    bonded: Bool[np.ndarray, "n_ref n_ref"],
    found: Int[np.ndarray, " k"],
    partner: Int[np.ndarray, " k"],
    extra: Int[np.ndarray, " e"],
) -> Float[np.ndarray, "3 10 3"]:
    """Atoms: is one there, asked for or not. Classes: of matched atoms. Bonds: listed, between matched atoms."""
    out = np.zeros((3, N_CALIBRATION_BINS, 3))
    if prediction.confidence is not None:
        there = np.isin(np.arange(len(prediction)), extra, invert=True)
        out[0] = calibration_tally(prediction.confidence, there)
    given = prediction.classes[found]
    if prediction.class_probabilities is not None:
        out[1] = calibration_tally(prediction.class_probabilities[found, given], given == true[partner])
    if prediction.bond_probabilities is not None:
        back = np.full(len(prediction), -1)
        back[found] = partner
        ends = back[prediction.bonds]
        both = (ends >= 0).all(axis=1)
        out[2] = calibration_tally(prediction.bond_probabilities[both], bonded[ends[both, 0], ends[both, 1]])
    return out


def _paper_counts(
    prediction: Molecule,
    reference: Molecule,
    asked: Int[np.ndarray, " n_asked"],
    bonded: Bool[np.ndarray, "n_ref n_ref"],
    drawn: Bool[np.ndarray, "n n"],
    ruled: Bool[np.ndarray, "n n"],
) -> dict[str, np.ndarray]:
    """The whole-graph statistics of the paper: each reference atom takes the nearest predicted atom within 0.35 A.

    Two reference atoms may take the same predicted atom: both count as found, with its class and its bonds, and are not
    bonded to each other. The paper's code leaves empty predictions out; here all their atoms are missing (they have no
    Hausdorff distance).
    """
    distance = cdist(reference.positions[asked], prediction.positions)
    hausdorff = max(distance.min(1).max(), distance.min(0).max()) if distance.size else None
    distance = np.pad(distance, ((0, 0), (0, 1)), constant_values=np.inf)  # so that there always is a nearest one
    nearest, length = distance.argmin(1), distance.min(1)
    near = length < PAPER_TOLERANCE
    atoms, taken = asked[near], nearest[near]
    extra = len(prediction) - len(np.unique(taken))
    counts = np.array([1, len(asked), len(asked) - len(atoms), extra, hausdorff is not None])
    size = size_bin(len(asked))
    return {
        "paper_classes": np.multiply.outer(size, class_confusion(reference.classes[atoms], prediction.classes[taken])),
        "paper_bonds": np.multiply.outer(size, _bond_confusion(bonded, atoms, drawn, taken)),
        "paper_rule_bonds": np.multiply.outer(size, _bond_confusion(bonded, atoms, ruled, taken)),
        "paper_counts": np.multiply.outer(size, counts),
        "paper_lengths": np.multiply.outer(size, np.array([hausdorff or 0.0, length[near].sum()])),
    }
