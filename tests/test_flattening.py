"""Halogens that are flatter along their bond than across it: where forces come from, where the probe sees them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmol.data.bending import rotation
from afmol.data.chemistry import molecule_from_smiles
from afmol.simulation import TIPS, Grid, force_centres, simulate
from afmol.structures import Molecule

FLATTER = {"F": 1.38 - 1.30, "Cl": 1.78 - 1.58, "Br": 1.84 - 1.54, "I": 2.13 - 1.76}
"""A, Nyburg and Faerman (1985): radius across the bond less radius along it."""


@pytest.mark.parametrize("halogen", FLATTER)
@pytest.mark.parametrize("flattening", [0.0, 0.5, 1.0, 1.5])
def test_a_halogen_moves_along_its_bond_and_nothing_else_does(halogen, flattening):
    molecule = molecule_from_smiles(f"{halogen}c1ccccc1")
    moved = force_centres(molecule, flattening) - molecule.positions
    (i,) = np.flatnonzero(np.array(molecule.symbols) == halogen)
    (carbon,) = molecule.bonds[(molecule.bonds == i).any(1)].sum(1) - i
    bond = molecule.positions[carbon] - molecule.positions[i]
    np.testing.assert_allclose(moved[i], flattening * FLATTER[halogen] * bond / np.linalg.norm(bond), atol=1e-12)
    assert not np.delete(moved, i, 0).any()


@pytest.mark.parametrize("bonds", [[], [[0, 1], [0, 2]]])
def test_a_halogen_without_one_neighbour_stays(bonds):
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0], [-1.0, 1.7, 0]])
    molecule = Molecule(positions, np.array([17, 6, 6]), np.array(bonds, int).reshape(-1, 2), None)
    np.testing.assert_array_equal(force_centres(molecule, 1.0), positions)


@given(st.floats(-3, 3), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_centres_turn_and_move_with_the_molecule(angle, shift):
    molecule = molecule_from_smiles("Clc1ccc(Br)c(I)c1F")
    turn = rotation(np.array([0.6, 0.0, 0.8]), angle)
    there = replace(molecule, positions=molecule.positions @ turn.T + shift)
    np.testing.assert_allclose(force_centres(there, 0.7), force_centres(molecule, 0.7) @ turn.T + shift, atol=1e-9)


def test_the_probe_sees_it_closer_to_its_carbon():
    """Under a stiff, neutral tip the brightest place of an iodine is where the forces come from: 0.37 A nearer."""
    positions = np.array([[0.0, 0, 0], [2.1, 0, 0]])
    molecule = Molecule(positions, np.array([6, 53]), np.array([[0, 1]]), None)
    tip = replace(TIPS["co-neutral"], stiffness=50.0)
    grid = Grid((1.0, -0.5), (2.0, 1.0), (80, 40), 3.0 + tip.bond_length + 0.1 * np.arange(3)[::-1])

    def brightest(flattening):
        there = replace(molecule, positions=force_centres(molecule, flattening))
        x, _ = np.unravel_index(simulate(there, tip, grid).data[..., -1].argmax(), (80, 40))
        return 1.0 + (x + 0.5) * 2.0 / 80

    assert brightest(0.0) == pytest.approx(2.1, abs=0.1)
    assert brightest(0.0) - brightest(1.0) == pytest.approx(0.37, abs=0.06)
