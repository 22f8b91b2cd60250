"""Bond lengths tell the size of a stack."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import afmol
from afmol.data.bending import lay_down
from afmol.scale import LEAST_BONDS, scale_ratio, sized
from afmol.structures import Molecule

SMILES = ("c1ccc2cc3ccccc3cc2c1", "Nc1ccc(Cl)cc1O", "O=C1C=CC(=O)C=C1F", "Brc1cc(Br)cc(Br)c1", "c1csc(-c2ccncn2)c1")
ANTHRACENE = afmol.molecule_from_smiles(SMILES[0])


@pytest.mark.parametrize("smiles", SMILES)
def test_molecules_have_the_scale_they_have(smiles):
    molecule = lay_down(afmol.molecule_from_smiles(smiles), np.random.default_rng(0), 0.0)
    for true in (0.9, 1.0, 1.3):
        found = scale_ratio(replace(molecule, positions=molecule.positions * true))
        assert found is not None
        assert found.ratio == pytest.approx(true, rel=0.015)


@given(st.floats(0.7, 1.4))
def test_what_a_network_says_of_the_size_counts_more_than_the_bonds(says):
    bonds, both = (scale_ratio(replace(ANTHRACENE, stretch=stretch)) for stretch in (None, says))
    assert bonds is not None
    assert both is not None
    assert both.ratio**5 == pytest.approx(bonds.ratio * says**4)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_a_wrong_bond_or_two_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    molecule = afmol.molecule_from_smiles(SMILES[0])
    positions = molecule.positions.copy()
    positions[rng.integers(len(positions))] += rng.normal(0, 0.5, 3)
    found, before = (scale_ratio(m) for m in (replace(molecule, positions=positions), molecule))
    assert found is not None
    assert before is not None
    assert found.ratio == pytest.approx(before.ratio, rel=0.01)


def test_the_stated_error_is_that_of_noise():
    """Errors of positions that make those of bonds 0.06 A: the spread of ratios is the error stated, or less, since
    no table is as wide as its spread where the molecule is the same."""
    rng, molecule = np.random.default_rng(0), afmol.molecule_from_smiles(SMILES[0])
    noisy = [replace(molecule, positions=molecule.positions + rng.normal(0, 0.0424, (24, 3))) for _ in range(300)]
    found = [scale_ratio(m) for m in noisy]
    spread = np.std([np.log(f.ratio) for f in found if f])
    assert 0.7 < spread / found[0].error < 1.5


def test_unlikely_bonds_and_few_bonds_say_nothing():
    methane = afmol.molecule_from_smiles("C")
    assert len(methane.bonds) < LEAST_BONDS
    assert scale_ratio(methane) is None
    benzene = afmol.molecule_from_smiles("c1ccccc1")
    doubtful = replace(benzene, bond_probabilities=np.full(12, 0.4))
    assert scale_ratio(doubtful) is None
    nothing = Molecule(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int))
    assert scale_ratio(nothing) is None


@given(st.floats(0.9, 1.1), st.none() | st.floats(0.9, 1.1))
def test_what_is_said_of_the_size_is_kept_whatever_becomes_of_the_bonds(wrong, says):
    molecule = replace(ANTHRACENE, positions=ANTHRACENE.positions * wrong, stretch=says)
    found = sized(molecule)
    assert found.stretch == scale_ratio(molecule).ratio
    assert sized(replace(molecule, bonds=molecule.bonds[:1])).stretch == says
