"""Hydrogens that were not seen: taken from known molecules they come back, where they were; and in the files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmol.cli import main
from afmol.data.chemistry import molecule_from_smiles
from afmol.files import read_molecule, write_scan
from afmol.hydrogens import LENGTHS, arrangements, lacking, with_hydrogens
from afmol.naming import Namer, smiles_of
from afmol.results import named
from afmol.structures import Molecule, Scan
from strategies import made

KNOWN = (
    *("c1ccccc1", "c1ccncc1", "c1cc[nH]c1", "Oc1ccccc1", "Nc1ccccc1", "Cc1ccccc1", "C=Cc1ccccc1", "N#Cc1ccccc1"),
    *("O=C1C=CC(=O)C=C1", "O=C1NC(=O)c2ccccc21", "C1CCCCC1", "c1ccc2c(c1)Cc1ccccc1-2", "O=[N+]([O-])c1ccccc1"),
    *("Clc1ccc2[nH]c3ccccc3c2c1", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "O=C(O)c1ccccc1", "COc1ccccc1", "Sc1ccccc1"),
    "O=C1OC(=O)c2ccc3c4ccc5c6c(ccc(c7ccc1c2c37)c64)C(=O)OC5=O",
)


def without(molecule: Molecule, hydrogens: np.ndarray) -> Molecule:
    return replace(molecule.taken(np.setdiff1d(np.arange(len(molecule)), hydrogens)), charges=None)


@pytest.mark.parametrize("smiles", KNOWN)
def test_all_hydrogens_taken_away_come_back(smiles):
    """Each at the same atom, those of flat parts where they were; bonds as long as neutrons see them."""
    molecule = molecule_from_smiles(smiles, seed=1)
    hydrogens = np.flatnonzero(molecule.numbers == 1)
    bare = without(molecule, hydrogens)
    found = with_hydrogens(bare, lacking(bare, smiles_of))
    assert smiles_of(found) == smiles_of(molecule)
    assert found.unseen.sum() == len(hydrogens)
    assert (np.sort(found.numbers) == np.sort(molecule.numbers)).all()
    new = found.bonds[-len(hydrogens) :]
    lengths = np.linalg.norm(found.positions[new[:, 0]] - found.positions[new[:, 1]], axis=1)
    np.testing.assert_allclose(lengths, [LENGTHS[int(z)] for z in found.numbers[new[:, 0]]])


def test_they_are_where_they_were():
    molecule = molecule_from_smiles("c1ccc2ncccc2c1", seed=1)
    hydrogens = np.flatnonzero(molecule.numbers == 1)
    bare = without(molecule, hydrogens)
    found = with_hydrogens(bare, lacking(bare, smiles_of)).positions[len(bare) :]
    distance = np.linalg.norm(found[:, None] - molecule.positions[hydrogens], axis=2)
    assert (np.sort(distance.argmin(1)) == np.arange(len(hydrogens))).all()
    assert distance.min(1).max() < 0.1


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["c1ccc2ncccc2c1", "O=C1C=CC(=O)C=C1", "Clc1ccc2[nH]c3ccccc3c2c1"]), st.data())
def test_those_that_were_seen_stay(smiles, data):
    """Whichever of them are missing, and where places are a little off (0.02 A along each axis)."""
    molecule = molecule_from_smiles(smiles, seed=1)
    hydrogens = np.flatnonzero(molecule.numbers == 1)
    gone = data.draw(st.lists(st.sampled_from(hydrogens.tolist()), unique=True, min_size=1))
    seed = data.draw(st.integers(0, 99))
    bare = without(molecule, np.array(gone))
    shaken = bare.positions + np.random.default_rng(seed).normal(0, 0.02, bare.positions.shape)
    bare = replace(bare, positions=shaken)
    found = with_hydrogens(bare, lacking(bare, smiles_of))
    assert smiles_of(found) == smiles_of(molecule)
    np.testing.assert_array_equal(found.positions[: len(bare)], bare.positions)


def test_what_may_be_missing_by_hand():
    """A lone atom, a straight carbon, a flat one with three neighbours: nothing; a pyramid: one on its far side."""
    assert arrangements(made([[0.0, 0, 0]], [6])) == {}
    line = made([[-1.2, 0, 0], [0.0, 0, 0], [1.2, 0, 0]], [8, 6, 8])
    assert set(arrangements(line)) == {0, 2}
    star = np.array([[0.0, 0, 0], [1.4, 0, 0], [-0.7, 1.21, 0], [-0.7, -1.21, 0]])
    assert 0 not in arrangements(made(star, [6, 9, 9, 9]))
    star[1:, 2] = -0.5
    (up,), none = arrangements(made(star, [6, 9, 9, 9]))[0]
    np.testing.assert_allclose(up, [0, 0, 1], atol=0.01)
    assert len(none) == 0


def test_of_a_quinone_and_its_hydroquinone_the_one_with_fewer():
    molecule = molecule_from_smiles("Oc1ccc(O)cc1", seed=1)
    bare = without(molecule, np.flatnonzero(molecule.numbers == 1))
    assert smiles_of(with_hydrogens(bare, lacking(bare, smiles_of))) == "O=C1C=CC(=O)C=C1"


def test_what_cannot_be_whole_stays_as_it_is():
    wrong = made([[0.0, 0, 0], [1.4, 0, 0], [2.1, 1.2, 0], [2.1, -1.2, 0], [2.8, 0, 0]], [9, 6, 9, 9, 9])
    wrong = replace(wrong, bonds=np.array([[0, 1], [1, 2], [1, 3], [1, 4], [0, 4]]))
    assert lacking(wrong, smiles_of) == {}
    with Namer() as namer:
        assert len(named(wrong, namer, hydrogens=True)) == len(wrong)


def test_parts_of_a_scan_are_completed_apart():
    """One that lacks hydrogens and one that does not; probabilities, where there are any, are those of hydrogen."""
    pyridine, water = (molecule_from_smiles(s, seed=1) for s in ("c1ccncc1", "O"))
    bare = without(pyridine, np.flatnonzero(pyridine.numbers == 1))
    n, k = len(bare), len(water)
    both = Molecule(
        np.concatenate([bare.positions, water.positions + np.array([20.0, 0, 0])]),
        np.concatenate([bare.numbers, water.numbers]),
        np.concatenate([bare.bonds, water.bonds + n]),
        class_probabilities=np.full((n + k, 5), 0.2),
        confidence=np.ones(n + k),
        bond_probabilities=np.ones(len(bare.bonds) + len(water.bonds)),
    )
    with Namer() as namer:
        plain, full = named(both, namer), named(both, namer, hydrogens=True)
    assert (set(plain.smiles), len(plain)) == ({None, "O"}, n + k)
    assert set(full.smiles) == {"c1ccncc1", "O"}
    assert full.unseen.tolist() == [False] * (n + k) + [True] * 5
    np.testing.assert_array_equal(full.class_probabilities[n + k :], np.eye(5)[[0] * 5])


def test_on_request_they_are_in_the_files_and_marked(tmp_path, capsys, monkeypatch):
    pyridine = molecule_from_smiles("c1ccncc1", seed=1)
    bare = without(pyridine, np.flatnonzero(pyridine.numbers == 1))
    bare = replace(bare, positions=bare.positions - [*bare.positions.min(0)[:2] - 3, 0], confidence=np.full(6, 0.9))
    monkeypatch.setattr("afmol.results.predict", lambda *_, **__: bare)
    rng = np.random.default_rng(0)
    write_scan(Scan(rng.normal(size=(40, 40, 5)), (10.0, 10.0), np.arange(5, 0, -1.0)), tmp_path / "s.npz")
    main(["predict", str(tmp_path / "s.npz"), "-o", str(tmp_path / "a")])
    main(["predict", str(tmp_path / "s.npz"), "-o", str(tmp_path / "b"), "--hydrogens"])
    first, second = capsys.readouterr().out.splitlines()
    assert "SMILES" not in first
    assert "5 unseen hydrogens added, SMILES c1ccncc1" in second
    few, all_of_them = (json.loads((tmp_path / d / "s.json").read_text())["atoms"] for d in "ab")
    assert (len(few), len(all_of_them)) == (6, 11)
    assert [atom.get("unseen", False) for atom in all_of_them] == [False] * 6 + [True] * 5
    assert [atom["confidence"] for atom in all_of_them[6:]] == [0.0] * 5
    for name in ("s.xyz", "s.sdf"):
        assert len(read_molecule(tmp_path / "b" / name)) == 11
