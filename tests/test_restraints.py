"""Bonds and angles move atoms to where they are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import afmol
from afmol.data.bending import lay_down
from afmol.lengths import known_angles, known_bonds
from afmol.restraints import OUTLIER, PLACE, restrained
from afmol.structures import Molecule

SMILES = (
    "c1ccc2cc3ccccc3cc2c1",
    "Nc1ccc(Cl)cc1O",
    "O=C1C=CC(=O)C=C1F",
    "c1csc(-c2ccncn2)c1",
    "Cn1cnc2c1c(=O)[nH]c(=O)n2C",
)
MOLECULES = [lay_down(afmol.molecule_from_smiles(s), np.random.default_rng(0), 5.0) for s in SMILES]


def misplaced(molecule: Molecule, seed: int, error: float = PLACE) -> Molecule:
    """Each atom off by so much along each axis of the plane."""
    off = np.random.default_rng(seed).normal(0, error, (len(molecule), 3)) * [1, 1, 0]
    return replace(molecule, positions=molecule.positions + off)


def off(molecule: Molecule, truth: Molecule) -> float:
    """Mean distance in the plane, A."""
    return float(np.linalg.norm((molecule.positions - truth.positions)[:, :2], axis=1).mean())


@pytest.mark.parametrize("molecule", MOLECULES, ids=SMILES)
def test_atoms_come_nearer_to_where_they_are(molecule):
    seeds = range(20)
    before = np.mean([off(misplaced(molecule, seed), molecule) for seed in seeds])
    after = np.mean([off(restrained(misplaced(molecule, seed)), molecule) for seed in seeds])
    assert after < 0.85 * before
    assert off(restrained(molecule), molecule) < 0.03


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MOLECULES), st.integers(0, 2**31))
def test_no_other_places_are_better(molecule, seed):
    """By a minimiser that knows the cost alone, as the docstring has it."""
    start = misplaced(molecule, seed, 0.03)
    known = [np.concatenate(both) for both in zip(known_bonds(start), known_angles(start), strict=True)]
    (i, j), mean, spread = known[0].T, *known[1:]

    def cost(plane: np.ndarray) -> float:
        places = np.column_stack([plane.reshape(-1, 2), start.positions[:, 2]])
        far = np.linalg.norm(places[i] - places[j], axis=1) / mean - 1
        moved = ((places - start.positions) ** 2).sum() / PLACE**2
        return float(moved + (OUTLIER**2 * np.log1p((far / spread / OUTLIER) ** 2)).sum())

    found = restrained(start).positions[:, :2].ravel()
    best = minimize(cost, found, method="BFGS")
    assert np.abs(best.x - found).max() < 0.004
    assert cost(found) < cost(start.positions[:, :2].ravel())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MOLECULES), st.integers(0, 2**31), st.floats(0, 2 * np.pi), st.booleans())
def test_moved_turned_and_mirrored_molecules_are_the_same(molecule, seed, angle, mirror):
    start, (c, s) = misplaced(molecule, seed), (np.cos(angle), np.sin(angle))
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) * [-1 if mirror else 1, 1, 1]
    there = replace(start, positions=start.positions @ turn + [3.0, -2.0, 0.5])
    found = restrained(start).positions
    assert restrained(there).positions == pytest.approx(found @ turn + [3.0, -2.0, 0.5], abs=1e-6)
    assert found.mean(0) == pytest.approx(start.positions.mean(0), abs=1e-9), "distances pull both ways"
    (x, y), (dx, dy) = found[:, :2].T, (found - start.positions)[:, :2].T
    assert abs((x * dy - y * dx).mean()) < 1e-3, "and along the lines between atoms, so that nothing turns"
    assert (found[:, 2] == start.positions[:, 2]).all()


def test_a_bond_that_cannot_be_moves_little():
    """A hydrogen 1.5 A off: its carbon, drawn by the others, hardly follows."""
    start = MOLECULES[0]
    i, j = next((i, j) for i, j in start.bonds.tolist() if start.numbers[[i, j]].tolist() == [6, 1])
    away = start.positions[j] - start.positions[i]
    positions = start.positions.copy()
    positions[j] += 1.5 * away / np.linalg.norm(away)
    found = restrained(replace(start, positions=positions))
    others = np.arange(len(start)) != j
    assert np.abs(found.positions - positions)[others].max() < 0.06
    assert off(found, start) > 1.3 / len(start)


def test_what_is_not_known_does_not_matter():
    start = misplaced(MOLECULES[0], 0)
    unlikely = replace(start, bond_probabilities=np.full(len(start.bonds), 0.4))
    assert (restrained(unlikely).positions == start.positions).all()
    nothing = start.taken(np.zeros(0, int))
    assert len(restrained(nothing)) == 0
    one = start.taken(np.array([0]))
    assert (restrained(one).positions == one.positions).all()
