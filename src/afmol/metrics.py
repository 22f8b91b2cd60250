"""How good a prediction is: atoms, classes, bonds and whole graphs, by our definitions and the original paper's.

`compare` counts one molecule, counts add up (`total`), `summary` divides them, `table` makes text of them. Nothing is
averaged before it is summed, so a data set may be split among workers in any way. The bonds that the distance table
alone would draw through the predicted atoms (the "rule") are counted beside the predicted bonds, always.

The paper: Oinonen, Kurki, Ilin, Foster, MRS Bulletin 2022, doi 10.1557/s43577-022-00324-3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from .elements import CLASS_NAMES, bonds_by_distance
from .errors import MoleculeError
from .structures import Molecule

N_CLASSES = len(CLASS_NAMES)
NONE = N_CLASSES
"""Row (spurious atoms) and column (missed atoms) of the class confusion beside the five classes."""
BOND_THRESHOLD = 0.5
"""A listed bond with more than this probability is predicted."""
PAPER_TOLERANCE = 0.35
"""A: how close a predicted atom must be by the paper's definition."""
SIZE_BIN, N_SIZE_BINS = 4, 25
"""The paper's statistics by reference size: 1-4, 5-8, ... atoms; the last bin is open."""
N_CALIBRATION_BINS = 10


def _zeros(*shape: int, dtype: type = int) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, dtype)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Counts over some molecules; `a + b` counts both, `Comparison()` none. Confusions are [true, predicted]."""

    molecules: int = 0
    exact: int = 0
    """Molecules without any error: each visible atom found, none spurious, all classes and all bonds right."""
    ignored: int = 0
    """Predicted atoms that are neither right nor wrong: they match a reference atom that is not asked for."""
    classes: Int[np.ndarray, "6 6"] = field(default_factory=_zeros(6, 6))
    """Class confusion of the one-to-one matching; index 5 is "none": column 5 missed atoms, row 5 spurious atoms."""
    bonds: Int[np.ndarray, "2 2"] = field(default_factory=_zeros(2, 2))
    """Bond confusion over all pairs of matched atoms."""
    rule_bonds: Int[np.ndarray, "2 2"] = field(default_factory=_zeros(2, 2))
    """The same for the bonds that the distance table draws through predicted positions and elements."""
    xy_errors: Float[np.ndarray, " 2"] = field(default_factory=_zeros(2, dtype=float))
    """Sums over matched atoms of the distance in the plane (A) and of its square (A^2)."""
    z_errors: Float[np.ndarray, " 2"] = field(default_factory=_zeros(2, dtype=float))
    """Sums over matched atoms of |dz| (A) and of its square (A^2)."""
    calibration: Float[np.ndarray, "3 10 3"] = field(default_factory=_zeros(3, N_CALIBRATION_BINS, 3, dtype=float))
    """`calibration_tally` of atoms' confidence, of the probability of the class given, of listed bonds' probability."""
    paper_classes: Int[np.ndarray, "25 5 5"] = field(default_factory=_zeros(N_SIZE_BINS, 5, 5))
    paper_bonds: Int[np.ndarray, "25 2 2"] = field(default_factory=_zeros(N_SIZE_BINS, 2, 2))
    paper_rule_bonds: Int[np.ndarray, "25 2 2"] = field(default_factory=_zeros(N_SIZE_BINS, 2, 2))
    paper_counts: Int[np.ndarray, "25 5"] = field(default_factory=_zeros(N_SIZE_BINS, 5))
    """Molecules, reference atoms, missing atoms, extra atoms, molecules with a Hausdorff distance."""
    paper_lengths: Float[np.ndarray, "25 2"] = field(default_factory=_zeros(N_SIZE_BINS, 2, dtype=float))
    """Sums of the Hausdorff distance over molecules and of the matching distance over matched atoms, A."""

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def total(comparisons: Iterable[Comparison]) -> Comparison:
    """Sum of comparisons."""
    return sum(comparisons, Comparison())


def class_confusion(
    true: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], n_classes: int = N_CLASSES
) -> Int[np.ndarray, "c c"]:
    """Confusion matrix [true, predicted] of labels 0 ... n_classes - 1 (the paper's single step: the argmax)."""
    for labels in (true, predicted):
        assert not labels.size or (labels.min() >= 0 and labels.max() < n_classes), "labels outside the classes"
    return np.bincount(true * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def class_precision(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Diagonal / column sum; NaN for a class that was never predicted."""
    return _ratio(confusion.diagonal(), confusion.sum(0))


def class_recall(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Diagonal / row sum; NaN for a class that never occurs."""
    return _ratio(confusion.diagonal(), confusion.sum(1))


def class_f1(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Harmonic mean of precision and recall; NaN for a class that neither occurs nor was predicted."""
    return _ratio(2 * confusion.diagonal(), confusion.sum(0) + confusion.sum(1))


def calibration_tally(probability: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "10 3"]:
    """Over ten equal bins of the probability: how many, the sum of their probabilities, how many were hits."""
    place = np.clip((probability * N_CALIBRATION_BINS).astype(int), 0, N_CALIBRATION_BINS - 1)
    columns = (np.ones(len(place)), probability, hit)
    return np.stack([np.bincount(place, c, minlength=N_CALIBRATION_BINS) for c in columns], axis=1).astype(float)


def calibration_error(tally: Float[np.ndarray, "10 3"]) -> float:
    """Expected calibration error: |mean probability - fraction of hits| of each bin, weighted by its size; NaN: empty.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """
    return float(_ratio(np.abs(tally[:, 1] - tally[:, 2]).sum(), tally[:, 0].sum()))


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
    found, place = _match(prediction.positions, reference.positions[asked], tolerance)
    partner = asked[place]  # found[k] is the predicted atom of reference atom partner[k]
    missed = np.setdiff1d(asked, partner)
    spare = np.setdiff1d(np.arange(len(prediction)), found)
    ignored, _ = _match(prediction.positions[spare], reference.positions[~visible], tolerance)
    extra = np.delete(spare, ignored)

    true, given = reference.classes, prediction.classes
    classes = class_confusion(
        np.concatenate([true[partner], true[missed], np.full(len(extra), NONE)]),
        np.concatenate([given[found], np.full(len(missed), NONE), given[extra]]),
        N_CLASSES + 1,
    )
    bonded = _adjacency(len(reference), reference.bonds)
    likely = slice(None) if prediction.bond_probabilities is None else prediction.bond_probabilities > BOND_THRESHOLD
    drawn = _adjacency(len(prediction), prediction.bonds[likely])
    ruled = _adjacency(len(prediction), bonds_by_distance(prediction.positions, prediction.numbers))
    bonds = _bond_confusion(bonded, partner, drawn, found)
    difference = prediction.positions[found] - reference.positions[partner]
    xy, z = np.linalg.norm(difference[:, :2], axis=1), np.abs(difference[:, 2])
    return Comparison(
        molecules=1,
        exact=int(np.trace(classes) == classes.sum() and np.trace(bonds) == bonds.sum()),
        ignored=len(ignored),
        classes=classes,
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
    """Atoms: is one there (ignored ones left out). Classes: of matched atoms. Bonds: listed, between matched atoms."""
    out = np.zeros((3, N_CALIBRATION_BINS, 3))
    if prediction.confidence is not None:
        judged = np.concatenate([found, extra])
        out[0] = calibration_tally(prediction.confidence[judged], np.arange(len(judged)) < len(found))
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
    size = np.arange(N_SIZE_BINS) == min(max(len(asked) - 1, 0) // SIZE_BIN, N_SIZE_BINS - 1)
    return {
        "paper_classes": np.multiply.outer(size, class_confusion(reference.classes[atoms], prediction.classes[taken])),
        "paper_bonds": np.multiply.outer(size, _bond_confusion(bonded, atoms, drawn, taken)),
        "paper_rule_bonds": np.multiply.outer(size, _bond_confusion(bonded, atoms, ruled, taken)),
        "paper_counts": np.multiply.outer(size, counts),
        "paper_lengths": np.multiply.outer(size, np.array([hausdorff or 0.0, length[near].sum()])),
    }


def summary(comparison: Comparison) -> dict[str, Any]:
    """Figures of a comparison, ready for JSON: numbers, lists, dicts; None where there is nothing to divide.

    `class_*` are over matched atoms; in `end_to_end_class_*` a missed atom counts against recall and a spurious one
    against precision (its accuracy: atoms found with the right class over all that there are or were predicted). Macro
    F1 is the mean over the classes that occur or were predicted. Lengths in A. `paper`: the same by the paper's
    definitions, with `missing` and `extra` atoms a molecule, in all and `by_size` (bins of 4 reference atoms, from
    `atoms_from` on; the last one open).
    """
    c = comparison
    matched = c.classes[:NONE, :NONE]
    n_matched, n_reference, n_predicted = matched.sum(), c.classes[:NONE].sum(), c.classes[:, :NONE].sum()
    figures = {
        "molecules": c.molecules,
        "reference_atoms": n_reference,
        "predicted_atoms": n_predicted,
        "matched_atoms": n_matched,
        "ignored_atoms": c.ignored,
        "precision": _ratio(n_matched, n_predicted),
        "recall": _ratio(n_matched, n_reference),
        "f1": _ratio(2 * n_matched, n_predicted + n_reference),
        "heavy_recall": _ratio(c.classes[1:NONE, :NONE].sum(), c.classes[1:NONE].sum()),
        **_class_figures("class", matched),
        **_class_figures("end_to_end_class", c.classes),
        "class_count": c.classes[:NONE].sum(1),
        "class_confusion": c.classes,
        **_bond_figures("bond", c.bonds),
        **_bond_figures("rule_bond", c.rule_bonds),
        "exact_graph_rate": _ratio(c.exact, c.molecules),
        "xy_error": _ratio(c.xy_errors[0], n_matched),
        "xy_rms": np.sqrt(_ratio(c.xy_errors[1], n_matched)),
        "z_error": _ratio(c.z_errors[0], n_matched),
        "z_rms": np.sqrt(_ratio(c.z_errors[1], n_matched)),
        "atom_calibration_error": calibration_error(c.calibration[0]),
        "class_calibration_error": calibration_error(c.calibration[1]),
        "bond_calibration_error": calibration_error(c.calibration[2]),
    }
    by_size = [
        {"atoms_from": SIZE_BIN * b + 1, **_paper_figures(c, slice(b, b + 1))}
        for b in range(N_SIZE_BINS)
        if c.paper_counts[b, 0]
    ]
    return _plain({**figures, "paper": {**_paper_figures(c, slice(None)), "by_size": by_size}})


def _paper_figures(c: Comparison, bins: slice) -> dict[str, Any]:
    molecules, reference, missing, extra, with_hausdorff = c.paper_counts[bins].sum(0)
    hausdorff, matching = c.paper_lengths[bins].sum(0)
    classes = c.paper_classes[bins].sum(0)
    return {
        "molecules": molecules,
        "reference_atoms": reference,
        "missing": _ratio(missing, molecules),
        "extra": _ratio(extra, molecules),
        **_class_figures("class", classes),
        "class_confusion": classes,
        **_bond_figures("bond", c.paper_bonds[bins].sum(0)),
        **_bond_figures("rule_bond", c.paper_rule_bonds[bins].sum(0)),
        "hausdorff_distance": _ratio(hausdorff, with_hausdorff),
        "matching_distance": _ratio(matching, reference - missing),
    }


def _class_figures(name: str, confusion: Int[np.ndarray, "c c"]) -> dict[str, Any]:
    f1 = class_f1(confusion)[:N_CLASSES]
    return {
        f"{name}_accuracy": _ratio(np.trace(confusion), confusion.sum()),
        f"{name}_macro_f1": _ratio(np.nansum(f1), np.isfinite(f1).sum()),
        f"{name}_precision": class_precision(confusion)[:N_CLASSES],
        f"{name}_recall": class_recall(confusion)[:N_CLASSES],
        f"{name}_f1": f1,
    }


def _bond_figures(name: str, confusion: Int[np.ndarray, "2 2"]) -> dict[str, Any]:
    return {
        f"{name}_precision": class_precision(confusion)[1],
        f"{name}_recall": class_recall(confusion)[1],
        f"{name}_f1": class_f1(confusion)[1],
        f"{name}_confusion": confusion,
    }


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _plain(value: Any) -> Any:
    """Numpy to plain Python, NaN to None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if value != value else value


def table(figures: dict[str, Any]) -> str:
    """A `summary` as text for a terminal: a row a class, then each figure by our and by the paper's definition.

    "rule": bonds of the distance table.
    """
    paper = figures["paper"]
    heads = ("matched atoms", "end to end", "paper")
    lines = [" " * 20 + "".join(f"{h:^24}" for h in heads)]
    lines.append(f"{'class':<14}{'n':>6}" + f"{'precis.':>8}{'recall':>8}{'F1':>8}" * 3)
    for k, name in enumerate(CLASS_NAMES):
        sources = ((figures, "class"), (figures, "end_to_end_class"), (paper, "class"))
        cells = (s[f"{prefix}_{m}"][k] for s, prefix in sources for m in ("precision", "recall", "f1"))
        lines.append(f"{name:<14}{figures['class_count'][k]:>6}" + "".join(map(_cell, cells)))

    heads = "".join(f"{h:>8}" for h in ("ours", "rule", "paper", "rule"))
    lines += ["", f"{'molecules: ' + str(figures['molecules']):<32}{heads}"]
    for title, key in _LINES.items():
        cells = (_cell(s[k]) if k in s else " " * 8 for s in (figures, paper) for k in (key, f"rule_{key}"))
        lines.append(f"{title:<32}{''.join(cells)}".rstrip())
    return "\n".join(lines)


_LINES = {
    "atoms precision": "precision",
    "atoms recall": "recall",
    "atoms F1": "f1",
    "heavy atoms recall": "heavy_recall",
    "missing atoms a molecule": "missing",
    "extra atoms a molecule": "extra",
    "class accuracy": "class_accuracy",
    "class macro F1": "class_macro_f1",
    "class macro F1, end to end": "end_to_end_class_macro_f1",
    "bonds precision": "bond_precision",
    "bonds recall": "bond_recall",
    "bonds F1": "bond_f1",
    "exact graphs": "exact_graph_rate",
    "error in the plane, A": "xy_error",
    "error in height, A": "z_error",
    "matching distance, A": "matching_distance",
    "Hausdorff distance, A": "hausdorff_distance",
    "calibration error, atoms": "atom_calibration_error",
    "calibration error, classes": "class_calibration_error",
    "calibration error, bonds": "bond_calibration_error",
}


def _cell(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.3f}"
