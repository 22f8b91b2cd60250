"""What a formula leaves open: against all readings tried one by one; and that telling it does what it should."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmol import molecule_from_smiles, predict
from afmol.checkpoint import load_image_model
from afmol.composition import ANY, _cheapest, _least, composed, formula_of, parsed, written
from afmol.data.bending import lay_down
from afmol.data.molecules import pack_molecules
from afmol.elements import CATEGORIES, ELEMENTS, NUMBERS, element_index
from afmol.errors import ConfigError
from afmol.evaluation import EvaluationConfig, evaluate
from afmol.files import write_scan
from afmol.naming import smiles_of
from afmol.prediction import predict_many
from afmol.results import predict_files
from afmol.simulation import TIPS, grid_around, simulate
from afmol.structures import Molecule, Scan
from afmol.valences import STRENGTH, STRENGTH_OF_FORMULA, settled
from strategies import refused
from test_valences import faint, fits_together, in_doubt, said

SYMBOLS = [e.symbol for e in ELEMENTS]
counts = st.lists(st.integers(0, 30) | st.just(ANY), min_size=len(ELEMENTS), max_size=len(ELEMENTS)).filter(any)


def row_of(probabilities, confidence, apart=1.4) -> Molecule:
    """Atoms in a row, each bonded to the next, with these probabilities of elements."""
    n, p = len(confidence), np.asarray(probabilities)
    classes = np.stack([p[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    likeliest = np.where(classes.argmax(1)[:, None] == CATEGORIES, p, -1.0).argmax(1)  # element of the likeliest class
    return Molecule(
        np.arange(n)[:, None] * [apart, 0.0, 0.0],
        NUMBERS[likeliest],
        np.column_stack([np.arange(n - 1), np.arange(1, n)]),
        class_probabilities=classes,
        confidence=np.asarray(confidence, float),
        bond_probabilities=np.ones(n - 1),
        element_probabilities=p,
    )


@st.composite
def rows(draw, most: int = 6) -> Molecule:
    n, seed = draw(st.integers(1, most)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    return row_of(rng.dirichlet(np.full(len(ELEMENTS), 0.3), n), rng.uniform(0.5, 1.0, n))


@given(counts, st.randoms(use_true_random=False))
def test_a_formula_is_read_in_any_order(numbers, random):
    how = {1: random.choice(["", "1"]), ANY: "?"}
    parts = [f"{symbol}{how.get(n, n)}" for symbol, n in zip(SYMBOLS, numbers, strict=True) if n]
    random.shuffle(parts)
    np.testing.assert_array_equal(parsed("".join(parts)), numbers)


@given(counts)
def test_what_is_written_is_read_as_it_was(numbers):
    np.testing.assert_array_equal(parsed(written(np.array(numbers))), numbers)


def test_formulas_are_written_as_chemists_do():
    texts = {"O6H8C24": "C24H8O6", "ClBrH2": "H2BrCl", "NC": "CN", "CH3CH2OH": "C2H6O", "O?H?C24": "C24H?O?"}
    assert [written(parsed(text)) for text in texts] == [*texts.values()]


def test_parts_of_a_formula_add_up():
    np.testing.assert_array_equal(parsed("CH3CH2Cl"), parsed("C2H5Cl"))
    np.testing.assert_array_equal(parsed("C24H8O6"), formula_of(molecule_from_smiles(PTCDA)))


PTCDA = "O=C1OC(=O)c2ccc3c4ccc5c6c(ccc(c7ccc1c2c37)c64)C(=O)OC5=O"


@pytest.mark.parametrize(
    "text", ["", "c6h6", "C6H6+", "C6 H6", "6C", "C0", "C1001", "C" * 1001, "C2000000H8", "(CH2)2", "C?6", "?", "C??"]
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ConfigError, match=r"formula"):
        parsed(text)


def test_an_element_that_is_not_known_is_named():
    with pytest.raises(ConfigError, match="The formula has Fe; afmol knows H, C, N"):
        parsed("C10H10Fe")


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31))
def test_each_option_costs_what_the_best_reading_with_it_costs(n, k, seed):
    """All readings that have room, one by one; the last option, no atom, has room for all."""
    rng = np.random.default_rng(seed)
    cost, room = rng.uniform(0, 5, (n, k)), np.append(rng.integers(0, 3, k - 1), n)
    best = np.full((n, k), np.inf)
    for options in product(range(k), repeat=n):
        if (np.bincount(options, minlength=k) <= room).all():
            rows = np.arange(n), np.array(options)
            best[rows] = np.minimum(best[rows], cost[rows].sum())
    chosen = _cheapest(cost, room)
    assert cost[np.arange(n), chosen].sum() == pytest.approx(best.min())
    np.testing.assert_allclose(_least(cost, chosen, room), best - best.min(), atol=1e-9)


@given(rows())
def test_where_nothing_runs_short_nothing_changes(molecule):
    found = composed(molecule, np.full(len(ELEMENTS), len(molecule)))
    np.testing.assert_array_equal(found.numbers, molecule.numbers)
    np.testing.assert_allclose(found.confidence, molecule.confidence, atol=1e-6)
    np.testing.assert_allclose(found.element_probabilities, molecule.element_probabilities, atol=1e-6)


@given(rows(12), counts)
def test_there_are_never_more_atoms_than_the_formula_has(molecule, numbers):
    formula = np.where(np.array(numbers) == ANY, ANY, np.array(numbers) // 6)
    found = composed(molecule, formula)
    assert (formula_of(found) <= formula).all()
    fits_together(found)
    best = found.element_probabilities[np.arange(len(found)), element_index(found.numbers)]
    own = found.classes[:, None] == CATEGORIES
    np.testing.assert_allclose(best, np.where(own, found.element_probabilities, 0).max(1, initial=0))
    assert (found.element_probabilities[:, formula == 0] == 0).all()


def test_of_two_nitrogens_where_there_is_one_the_surer_one_is_it():
    """By the two readings that are left, 0.9 x 0.2 and 0.1 x 0.8."""
    p = np.zeros((2, len(ELEMENTS)))
    p[:, 1:3] = [[0.1, 0.9], [0.2, 0.8]]
    found = composed(row_of(p, [1.0, 1.0]), parsed("CN"))
    assert found.symbols == ["N", "C"]
    np.testing.assert_allclose(found.element_probabilities[:, 2], [0.18 / 0.26, 0.08 / 0.26], rtol=1e-6)


def test_two_molecules_have_a_formula_each():
    p = np.zeros((4, len(ELEMENTS)))
    p[:, 1:3] = [0.2, 0.8]
    molecule = row_of(p, np.ones(4))
    apart = replace(
        molecule,
        positions=molecule.positions * [[1], [1], [9], [9]],
        bonds=molecule.bonds[[0, 2]],
        bond_probabilities=np.ones(2),
    )
    assert sorted(composed(molecule, parsed("C3N")).symbols) == ["C", "C", "C", "N"]
    assert sorted(composed(apart, parsed("C3N")).symbols) == ["C", "C", "N", "N"]


def test_what_is_not_counted_is_told_by_valences():
    """Pyridine with an N that is rather C: whole readings of C5H?N are pyridine's alone, of C?H?N? benzene's too."""
    molecule = said(molecule_from_smiles("c1ccncc1", seed=1))
    nitrogen = int(np.flatnonzero(molecule.numbers == 7)[0])
    wrong = in_doubt(molecule, nitrogen, 6, 0.75)
    for formula in (parsed("C5H?N"), parsed("C5H5N")):
        found = composed(settled(wrong, STRENGTH, formula), formula)
        fits_together(found)
        assert found.numbers[nitrogen] == 7
    assert len(settled(wrong, STRENGTH, parsed("C?H?N?"))) == 11
    assert settled(wrong, STRENGTH, parsed("C6H6")).numbers[nitrogen] == 6, "eleven atoms are not C6H6"


def test_molecules_that_touch_have_a_formula_each():
    """Two pyridines, hydrogens 1.8 A apart, each with an N that the network takes for C: a hydrogen bond is no bond."""
    one = said(molecule_from_smiles("c1ccncc1", seed=1))
    nitrogen = int(np.flatnonzero(one.numbers == 7)[0])
    one, n = in_doubt(one, nitrogen, 6, 0.9), len(one)
    far = np.array([np.ptp(one.positions[:, 0]) + 1.8, 0.0, 0.0])
    both = {
        name: np.concatenate([value, value])
        for name, value in vars(one).items()
        if isinstance(value, np.ndarray) and name not in ("positions", "bonds")
    }
    positions, bonds = np.concatenate([one.positions, one.positions + far]), np.concatenate([one.bonds, one.bonds + n])
    two = replace(one, positions=positions, bonds=bonds, **both)
    if (missing := closest(two.positions[:n], two.positions[n:]) - 1.8) > 0:
        two = replace(two, positions=np.concatenate([two.positions[:n], two.positions[n:] - [missing, 0, 0]]))
    assert closest(two.positions[:n], two.positions[n:]) < 1.9
    found = composed(settled(two, STRENGTH_OF_FORMULA, parsed("C5H5N")), parsed("C5H5N"))
    assert len(found) == 2 * n
    assert np.flatnonzero(found.numbers == 7).tolist() == [nitrogen, nitrogen + n]


def closest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a[:, None] - b, axis=2).min())


@pytest.mark.parametrize("side", [-1, 1])
def test_an_atom_by_itself_is_of_the_nearest_molecule(side):
    """Of a lone hydrogen beside two molecules, one of which has all of its own."""
    p = np.zeros((9, len(ELEMENTS)))
    p[:, 0] = 1
    molecule = row_of(p, [*np.full(8, 0.9), 0.8])
    x = np.array([-9.4, -8, -6.6, -5.2, 5.2, 6.6, 8, side * 2.0, 0])
    y = np.array([0.0, 0, 0, 0, 0, 0, 0, 30, 0])
    y[7], x[7] = (0.0, 9.4) if side < 0 else (0.0, 3.8)
    x[8] = side * 1.0
    bonds = np.array([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6]])
    apart = replace(
        molecule, positions=np.column_stack([x, y, 0 * x]), bonds=bonds, bond_probabilities=np.ones(len(bonds))
    )
    assert len(composed(apart, parsed("H4"))) == 8
    assert len(composed(apart, parsed("H5"))) == 9


def test_nothing_has_any_formula():
    assert len(composed(row_of(np.eye(len(ELEMENTS))[[1]], [0.9]).taken(np.zeros(0, int)), parsed("C6H6"))) == 0


@pytest.mark.parametrize("smiles", ["c1ccncc1", "c1cc[nH]c1", "Oc1ccccc1", "Clc1cc(Cl)cc(Br)c1", PTCDA])
def test_a_formula_tells_which_of_several_molecules_it_is(smiles):
    """Pyridine and benzene, phenol and aniline are whole molecules both: whichever the network prefers, a formula
    decides, however sure it was."""
    molecule = said(molecule_from_smiles(smiles, seed=1))
    odd = {7: 6, 8: 7, 17: 7, 35: 6}
    for i in np.flatnonzero(np.isin(molecule.numbers, [*odd])):
        wrong = in_doubt(molecule, int(i), odd[int(molecule.numbers[i])], 0.999)
        assert wrong.numbers[i] != molecule.numbers[i]
        found = composed(settled(wrong, STRENGTH_OF_FORMULA, formula_of(molecule)), formula_of(molecule))
        fits_together(found)
        assert smiles_of(found) == smiles_of(molecule)


@pytest.mark.parametrize("p", [(0.45, 0.44), (0.1, 0.09)])
def test_of_two_isomers_that_are_as_likely_neither_is_sure(p):
    """Quinoline or isoquinoline, each H beside the N in doubt: the formula is known, and where the N is is not."""
    molecule = said(molecule_from_smiles("c1ccc2ccccc2c1", seed=1))
    near = {int(a): [int(b) for pair in molecule.bonds if a in pair for b in pair if b != a] for a in range(18)}
    alpha = next(
        a
        for a in near
        if molecule.numbers[a] == 6
        and 1 in molecule.numbers[near[a]]
        and any(1 not in molecule.numbers[near[b]] and molecule.numbers[b] == 6 for b in near[a])
    )
    beta = next(b for b in near[alpha] if molecule.numbers[b] == 6 and 1 in molecule.numbers[near[b]])
    for atom, share in zip((alpha, beta), p, strict=True):
        molecule = in_doubt(molecule, atom, 7, share)
        molecule = faint(molecule, next(h for h in near[atom] if molecule.numbers[h] == 1), 0.6)
    formula = parsed("C9H7N")
    found = composed(settled(molecule, STRENGTH_OF_FORMULA, formula), formula)
    fits_together(found)
    assert (formula_of(found) == formula).all()
    nitrogen = found.element_probabilities[:, 2]
    assert found.symbols[nitrogen.argmax()] == "N"
    two = np.sort(nitrogen)[-2:]
    assert two.sum() == pytest.approx(1, abs=0.02)
    assert two[1] == pytest.approx(p[0] * (1 - p[1]) / (p[0] * (1 - p[1]) + p[1] * (1 - p[0])), abs=0.02)


def test_an_element_that_the_network_rules_out_is_there_all_the_same():
    """As sure as it was of what the formula has not."""
    benzene = said(molecule_from_smiles("c1ccncc1", seed=1))
    n = int(np.flatnonzero(benzene.numbers == 7)[0])
    wrong = in_doubt(benzene, n, 6, 1.0)
    found = composed(settled(wrong, STRENGTH_OF_FORMULA, parsed("C5H5N")), parsed("C5H5N"))
    fits_together(found)
    assert np.isfinite(found.element_probabilities).all()
    assert formula_of(found)[2] == 1


def test_of_a_molecule_that_is_not_all_there_valences_say_nothing():
    molecule = said(molecule_from_smiles("c1ccncc1", seed=1))
    wrong = in_doubt(molecule, int(np.flatnonzero(molecule.numbers == 7)[0]), 6, 0.6)
    more = formula_of(molecule) + parsed("C9H9")
    assert (settled(wrong, STRENGTH_OF_FORMULA, more).numbers == wrong.numbers).all()


def stack() -> tuple[Scan, Molecule]:
    """8-hydroxyquinoline-5-carbonitrile, flat."""
    molecule = lay_down(molecule_from_smiles("N#Cc1ccc(O)c2ncccc12", seed=1), np.random.default_rng(0), tilt=0.0)
    grid = grid_around(molecule, TIPS["co-quadrupole"], margin=5.0, pixel=0.2)
    return simulate(molecule, TIPS["co-quadrupole"], grid), molecule


def test_predicted_molecules_have_the_formula():
    """The right one changes nothing in a molecule that is read rightly; another rules out what it lacks."""
    scan, truth = stack()
    found, told = predict(scan), predict(scan, formula=written(formula_of(truth)))
    assert told.symbols == found.symbols
    np.testing.assert_allclose(told.positions, found.positions, atol=0.02)
    assert told.warnings == found.warnings == ()
    hydrocarbon = predict(scan, formula="C20H20")
    assert {*hydrocarbon.symbols} == {"C", "H"}
    assert len(hydrocarbon) > 10


def test_each_scan_that_is_read_at_once_has_its_own_formula():
    scan, _ = stack()
    network = load_image_model("measured")[0]
    [hydrocarbon, free, other] = predict_many([scan] * 3, network, formulas=[parsed("C20H20"), None, parsed("C?H?N?")])
    assert {*hydrocarbon.symbols} == {"C", "H"}
    assert {*other.symbols} == {"C", "H", "N"}
    np.testing.assert_array_equal(free.numbers, predict_many([scan], network)[0].numbers)
    assert {*free.symbols} == {"C", "H", "N", "O"}


def test_a_formula_that_cannot_be_is_doubted():
    scan, truth = stack()
    found = predict(scan, formula="C6H6")
    assert formula_of(found)[1] <= 6
    [warning] = [w for w in found.warnings if "C6H6" in w]
    assert warning == "atoms that the image shows have no place in C6H6: is that the formula?"
    assert len(found) < len(truth)


def test_the_record_says_what_was_told(tmp_path):
    scan, _ = stack()
    write_scan(scan, tmp_path / "s.npz")
    for formula in ("C30H30N9O9F9Cl9Br9S9", None):
        [(name, _)] = predict_files([str(tmp_path / "s.npz")], tmp_path / "out", formula=formula)
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["model"].get("formula") == formula


def test_a_formula_of_no_use_is_refused_before_the_work(capsys, tmp_path):
    def no(*rest):
        return refused(capsys, ["predict", "missing.npz", "-o", tmp_path, *rest], "formula")

    assert "C24H8O6" in no("--formula", "benzene")
    for rest in (["--model", "asd"], ["--threshold", "0.3"]):
        assert "say elements" in no("--formula", "C6H6", *rest)


def test_what_is_told_is_what_is_asked_for(tmp_path, monkeypatch):
    """Each molecule's own formula, or its elements, or nothing; and an evaluation says which."""
    molecules = [molecule_from_smiles(s, seed=1) for s in ("c1ccncc1", "Oc1ccccc1")]
    pack_molecules(molecules, tmp_path / "set.npz")
    seen = []

    def many(scans, network, threshold, depth, formulas):
        seen.append(formulas)
        return [replace(molecules[0], charges=None).taken(np.zeros(0, int)) for _ in scans]

    monkeypatch.setattr("afmol.evaluation.predict_many", many)
    for told in ("formula", "elements", "nothing"):
        config = EvaluationConfig(2, ("all",), ("nominal",), told=told)
        assert evaluate(tmp_path / "set.npz", "measured", config).record().get("told", "nothing") == told
    assert sorted(written(f) for f in seen[0]) == ["C5H5N", "C6H6O"]
    assert sorted(written(f) for f in seen[1]) == ["C?H?N?", "C?H?O?"]
    assert seen[2] is None
    with pytest.raises(ConfigError, match="say elements"):
        evaluate(tmp_path / "set.npz", "asd", EvaluationConfig(2, told="formula"))
