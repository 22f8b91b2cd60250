"""A model on measured stacks of known molecules: what is found, and whether its probabilities are right.

    python benchmarks/measured.py [--model NAME] [--told WHAT] [--refine] STACK REFERENCE [STACK REFERENCE ...]

Each reference (.xyz ...) is laid on what was predicted by the turn and shift in the plane that match most atoms, its
own mirror image excluded; heights are not compared. Probabilities of all stacks together, in ten bins. With --told formula, or
--told elements, the model is told that of each (`afmol predict --formula`); with --refine readings are tested by simulation.
"""

import sys
from dataclasses import replace

import numpy as np
from scipy.spatial import KDTree

from afmol import predict, read_molecule, read_scan
from afmol.checkpoint import DEFAULT_MODEL
from afmol.composition import formula_of, written
from afmol.doubts import at_true_size
from afmol.metrics import Comparison, compare, matching, summary
from afmol.structures import Molecule

TOLERANCE = 0.5
"""A."""


def laid(reference: Molecule, found: Molecule) -> Molecule:
    """The reference turned and shifted in the plane so that as many atoms as can be lie on those found, as near as can
    be."""
    tree, all_of_it, best = KDTree(found.positions[:, :2]), np.ones(len(reference), bool), (-1, 0.0, reference)
    for angle in np.deg2rad(np.arange(0, 360, 3)):
        turned = turn(reference.positions, angle)
        shifts = (found.positions[:, None, :2] - turned[None, :, :2]).reshape(-1, 2)
        votes = KDTree(shifts).query_ball_point(shifts, TOLERANCE, return_length=True)
        w = replace(reference, positions=turned + [*shifts[votes.argmax()], 0.0])
        for _ in range(5):
            pairs = matching(found, w, all_of_it, TOLERANCE)
            if len(pairs.found) < 3:
                break
            w = replace(w, positions=fitted(w.positions, w.positions[pairs.partner], found.positions[pairs.found]))
        near = tree.query(w.positions[:, :2])[0]
        n = len(matching(found, w, all_of_it, TOLERANCE).found)
        best = max(best, (n, -float(np.minimum(near, TOLERANCE).sum()), w), key=lambda b: b[:2])
    return best[2]


def turn(positions: np.ndarray, angle: float) -> np.ndarray:
    """About z."""
    c, s = np.cos(angle), np.sin(angle)
    return positions @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def fitted(positions: np.ndarray, some: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Positions moved as takes some of them onto others best (least squares in the plane)."""
    a, b = (p[:, :2] - p[:, :2].mean(0) for p in (some, onto))
    angle = np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())
    middle = [*some[:, :2].mean(0), 0.0]
    return turn(positions - middle, angle) + [*onto[:, :2].mean(0), 0.0]


def flat(molecule: Molecule) -> Molecule:
    """All atoms at one height."""
    return replace(molecule, positions=molecule.positions * [1.0, 1.0, 0.0])


def main(*arguments: str) -> None:
    """Print a line a stack and the bins."""
    model, rest = (arguments[1], arguments[2:]) if arguments[:1] == ("--model",) else (DEFAULT_MODEL, arguments)
    told, rest = (rest[1], rest[2:]) if rest[:1] == ("--told",) else ("nothing", rest)
    refine, rest = (True, rest[1:]) if rest[:1] == ("--refine",) else (False, rest)
    counts = Comparison()
    for stack, path in zip(rest[::2], rest[1::2], strict=True):
        scan, reference = read_scan(stack), read_molecule(path)
        formula = {
            "nothing": None,
            "elements": "".join(f"{symbol}?" for symbol in dict.fromkeys(reference.symbols)),
            "formula": written(formula_of(reference)),
        }[told]
        _, found = at_true_size(scan, predict(scan, model, formula=formula, refine=refine))  # as its files give it
        visible = reference.within(0.8)
        there = laid(flat(reference), flat(found))
        one = compare(flat(found), there, visible)
        s, heavy = summary(one), one.classes[1:5]
        extra = " ".join(found.symbols[k] for k in matching(flat(found), there, visible).extra)
        print(
            f"{stack}: {s['matched_atoms']} of {s['reference_atoms']} atoms, {heavy[:, :5].sum()} of {heavy.sum()} "
            f"heavy, {np.trace(heavy[:, 1:5])} of the right class, {one.classes[5].sum()} extra ({extra}), "
            f"{s['xy_error']:.3f} A"
        )
        counts += one
    for name, tally in zip(("atoms", "classes", "bonds"), counts.calibration, strict=True):
        print(f"\n{name:10}{'how many':>10}{'mean probability':>18}{'right':>8}")
        for b, (n, probability, right) in enumerate(tally):
            if n:
                print(f"{b / 10:.1f} - {(b + 1) / 10:.1f} {n:>10.0f}{probability / n:>18.3f}{right / n:>8.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
