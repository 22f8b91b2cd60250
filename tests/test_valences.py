"""What valences settle: against all readings tried one by one, with RDKit as the judge of which are molecules."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from scipy.special import expit

from afmol.data.chemistry import molecule_from_smiles
from afmol.elements import CATEGORIES, ELEMENTS, NUMBERS, element_index
from afmol.model import OnePass, OnePassConfig
from afmol.naming import smiles_of
from afmol.prediction import predict_many
from afmol.structures import Molecule, Scan
from afmol.valences import FAINTEST_ATOM, STRENGTH, settled

KNOWN = (
    *("c1ccccc1", "c1ccncc1", "c1cc[nH]c1", "Oc1ccccc1", "Nc1ccccc1", "c1ccsc1", "N#Cc1ccccc1", "C#Cc1ccccc1"),
    *("O=C1C=CC(=O)C=C1", "O=C1NC(=O)c2ccccc21", "O=[N+]([O-])c1ccccc1", "Clc1ccc2[nH]c3ccccc3c2c1", "O=C(O)c1ccccc1"),
    *("CS(=O)(=O)c1ccccc1", "c1ccc2c(c1)Cc1ccccc1-2", "[O-][n+]1ccccc1", "O=S1CCCC1"),
    "O=C1OC(=O)c2ccc3c4ccc5c6c(ccc(c7ccc1c2c37)c64)C(=O)OC5=O",
)
OTHER = np.array([1, 6, 7, 8, 9])
"""An element of each class."""


def said(molecule: Molecule) -> Molecule:
    """A network that is nearly sure of each atom and bond."""
    n = len(molecule)
    elements = np.full((n, len(ELEMENTS)), 0.001)
    elements[np.arange(n), element_index(molecule.numbers)] = 1 - 0.001 * (len(ELEMENTS) - 1)
    return replace(
        molecule,
        charges=None,
        confidence=np.full(n, 0.999),
        class_probabilities=np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1),
        element_probabilities=elements,
        bond_probabilities=np.full(len(molecule.bonds), 0.999),
    )


def in_doubt(molecule: Molecule, i: int, number: int, p: float) -> Molecule:
    """Atom i is of this element with probability p, else of its own; what is likelier is the answer."""
    elements, numbers = molecule.element_probabilities.copy(), molecule.numbers.copy()
    own, other = element_index(np.array([numbers[i], number]))
    elements[i] = 0.0
    elements[i, own], elements[i, other] = 1 - p, p
    numbers[i] = NUMBERS[elements[i].argmax()]
    classes = np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    return replace(molecule, numbers=numbers, element_probabilities=elements, class_probabilities=classes)


def faint(molecule: Molecule, i: int, confidence: float) -> Molecule:
    values = molecule.confidence.copy()
    values[i] = confidence
    return replace(molecule, confidence=values)


def whole(molecule: Molecule) -> bool:
    """As RDKit sees it, which allows two double bonds at an atom in a ring."""
    smiles = smiles_of(molecule)
    return smiles is not None and not Chem.MolFromSmiles(smiles).HasSubstructMatch(Chem.MolFromSmarts("*=[#6R]=*"))


def fits_together(molecule: Molecule) -> None:
    elements, classes = molecule.element_probabilities, molecule.class_probabilities
    np.testing.assert_allclose(classes, np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1))
    np.testing.assert_allclose(classes.sum(1), 1)
    assert (classes.argmax(1) == molecule.classes).all()
    assert (molecule.confidence >= 0.5).all()


@pytest.mark.parametrize("smiles", KNOWN)
def test_a_molecule_stays_as_it_is(smiles):
    """Also where another class is nearly as likely, of each atom in turn."""
    molecule = said(molecule_from_smiles(smiles, seed=1))
    assert smiles_of(settled(molecule)) == smiles_of(molecule)
    for i in range(len(molecule)):
        others = OTHER[CATEGORIES[element_index(OTHER)] != molecule.classes[i]]
        found = settled(in_doubt(molecule, i, int(others[i % len(others)]), 0.45))
        assert (found.numbers == molecule.numbers).all()
        fits_together(found)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KNOWN), st.data())
def test_one_wrong_atom_is_put_right(smiles, data):
    """An atom that is taken for its neighbour in the periodic table leaves an odd number of electrons."""
    molecule = said(molecule_from_smiles(smiles, seed=1))
    i = data.draw(st.integers(0, len(molecule) - 1))
    number = {1: 8, 6: 7, 7: 6, 8: 7, 9: 8, 16: 7, 17: 8}[int(molecule.numbers[i])]
    p = data.draw(st.floats(0.51, 0.8))
    wrong = in_doubt(molecule, i, number, p)
    assert wrong.numbers[i] == number
    found = settled(wrong)
    assert (found.numbers == molecule.numbers).all()
    fits_together(found)
    sure = 1 / (1 + np.exp(np.log(p / (1 - p)) - STRENGTH))
    assert found.class_probabilities[i, molecule.classes[i]] == pytest.approx(sure, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KNOWN[:13]), st.data())
def test_the_answer_is_the_most_probable_whole_reading(smiles, data):
    """Three atoms in doubt: all eight readings, the first that RDKit takes for a neutral molecule, if it is close."""
    molecule = said(molecule_from_smiles(smiles, seed=1))
    doubtful = data.draw(st.lists(st.integers(0, len(molecule) - 1), min_size=3, max_size=3, unique=True))
    read, costs, others = molecule, [], []
    for i in doubtful:
        p = data.draw(st.floats(0.15, 0.85))
        if molecule.numbers[i] == 1 and data.draw(st.booleans()):
            read, other = faint(read, i, p), -1
        else:
            other = int(data.draw(st.sampled_from([z for z in OTHER.tolist() if z != molecule.numbers[i]])))
            if CATEGORIES[element_index(np.array([other]))][0] == molecule.classes[i]:
                continue
            p = 1 - p
            read = in_doubt(read, i, other, 1 - p)
        costs.append(max(p, 1 - p) / np.array([p, 1 - p]))
        others.append((i, other))
    readings = []
    for chosen in product((0, 1), repeat=len(others)):
        numbers, keep = molecule.numbers.copy(), np.ones(len(molecule), bool)
        for k, (i, other) in zip(chosen, others, strict=True):
            if k and other > 0:
                numbers[i] = other
            keep[i] = not (k and other < 0)
        cost = sum(float(np.log(of[k])) for k, of in zip(chosen, costs, strict=True))
        readings.append((cost, replace(molecule, numbers=numbers).taken(np.flatnonzero(keep))))
    readings.sort(key=lambda reading: reading[0])
    close = [r for r in readings if r[0] <= STRENGTH and whole(r[1])]
    if not close:
        likely = read.taken(np.flatnonzero(read.confidence >= 0.5))
        assert (settled(read).numbers == likely.numbers).all()
        return
    if (len(close) > 1 and close[1][0] - close[0][0] < 1e-3) or abs(close[-1][0] - STRENGTH) < 1e-3:
        return
    found = settled(read)
    if smiles_of(found) is None:  # RDKit draws some cumulenes (HN=C=C beside NH) with charges
        cost = next(cost for cost, r in readings if np.array_equal(r.numbers, found.numbers))
        assert cost <= close[0][0]
    else:
        assert smiles_of(found) == smiles_of(close[0][1])


@pytest.mark.parametrize("confidence", [FAINTEST_ATOM + 0.01, 0.3, 0.49])
def test_a_faint_hydrogen_comes_in_where_it_is_needed(confidence):
    """With the probability that it has beside the reading without it; where it is not needed it stays out."""
    benzene = said(molecule_from_smiles("c1ccccc1", seed=1))
    h = int(np.flatnonzero(benzene.numbers == 1)[2])
    found = settled(faint(benzene, h, confidence))
    assert len(found) == 12
    odds = np.log((1 - confidence) / confidence)
    assert found.confidence[h] == pytest.approx(1 / (1 + np.exp(odds - STRENGTH)))
    extra = said(molecule_from_smiles("c1cc[nH+]cc1", seed=1))
    h = int(next(j if extra.numbers[i] == 7 else i for i, j in extra.bonds if {*extra.numbers[[i, j]]} == {1, 7}))
    assert (settled(faint(extra, h, confidence)).numbers != 1).sum() == 6
    assert len(settled(faint(extra, h, confidence))) == 11
    assert len(settled(faint(extra, h, 0.7))) == 11, "nor where it is likelier than not"


def test_the_answer_is_the_likeliest_class_though_three_were_likely():
    """Pyridine's N as C .5, O .4, N .1: only N makes a molecule; it is the surest then, the others share the rest."""
    molecule = said(molecule_from_smiles("c1ccncc1", seed=1))
    i = int(np.flatnonzero(molecule.numbers == 7)[0])
    elements, classes, numbers = (
        getattr(molecule, name).copy() for name in ("element_probabilities", "class_probabilities", "numbers")
    )
    elements[i] = 0.0
    elements[i, element_index(np.array([6, 8, 7]))] = classes[i, [1, 3, 2]] = 0.5, 0.4, 0.1
    classes[i, [0, 4]] = 0.0
    numbers[i] = 6
    values = {"numbers": numbers, "element_probabilities": elements, "class_probabilities": classes}
    found = settled(replace(molecule, **values))
    fits_together(found)
    assert found.numbers[i] == 7
    c = found.class_probabilities[i]
    assert c[2] == pytest.approx(expit(STRENGTH - np.log(5)))
    assert c[1] / c[3] == pytest.approx(0.5 / 0.4)
    assert next(iter(found.readings()))[0] == {}


def test_pieces_of_molecules_stay_as_they_are():
    """Half of a molecule is none, whatever its atoms are; nor are six hydrogens, or nothing at all."""
    whole = said(molecule_from_smiles(KNOWN[-1], seed=1))
    piece = whole.taken(np.flatnonzero(whole.positions[:, 0] < np.median(whole.positions[:, 0])))
    for i in range(0, len(piece), 3):
        doubtful = in_doubt(piece, i, 7, 0.45)
        found = settled(doubtful)
        assert (found.numbers == piece.numbers).all()
        np.testing.assert_array_equal(found.class_probabilities, doubtful.class_probabilities)
    assert len(settled(piece.taken(np.zeros(0, int)))) == 0
    assert len(settled(faint(piece, 0, 0.2))) == len(piece) - 1


def test_no_atoms_at_all_are_no_reading():
    """A ring whose hydrogens are not seen: a part of a molecule, however faint its atoms are."""
    ring = said(molecule_from_smiles("c1ccccc1")).taken(np.arange(6))
    for confidence in (0.52, 0.57, 0.9):
        assert len(settled(replace(ring, confidence=np.full(6, confidence)))) == 6


def test_the_order_of_atoms_does_not_matter():
    molecule = said(molecule_from_smiles("O=C1NC(=O)c2ccccc21", seed=1))
    wrong = in_doubt(molecule, 5, 7, 0.6)
    order = np.random.default_rng(0).permutation(len(molecule))
    one, other = settled(wrong).taken(order), settled(wrong.taken(order))
    assert (one.numbers == other.numbers).all()
    np.testing.assert_allclose(one.class_probabilities, other.class_probabilities)


def test_answers_are_settled_and_candidates_that_are_asked_for_are_not(monkeypatch):
    """Those of less than 0.5 are what the network says; from 0.5 on they come in first, and what stays is above it."""
    network = OnePass(OnePassConfig(channels=(8, 8, 8), blocks=1, width=8, rounds=1))
    benzene = said(molecule_from_smiles("c1ccccc1", seed=1))
    candidates = faint(in_doubt(benzene, 0, 7, 0.6), 8, 0.2)
    asked = []

    def predict(images, threshold, depth):
        asked.append(threshold)
        return [candidates] * len(images)

    monkeypatch.setattr(network, "predict", predict)
    scan = Scan(np.random.default_rng(0).standard_normal((40, 40, 10)), (10.0, 10.0))
    raw = predict_many([scan], network, 0.15)[0]
    assert (raw.numbers[0], raw.confidence[8]) == (7, 0.2)
    assert (predict_many([scan], network)[0].numbers == benzene.numbers).all()
    sure = predict_many([scan], network, 0.9)[0]
    assert len(sure) == 11
    assert (sure.confidence >= 0.9).all()
    assert asked == [0.15, FAINTEST_ATOM, FAINTEST_ATOM]
