"""Figures worked out by hand, invariances, and the outside scorer as an oracle."""

import importlib.util
import json
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmol.elements import NUMBERS, bonds_by_distance
from afmol.errors import MoleculeError
from afmol.metrics import Comparison, compare, summary, table, total
from afmol.metrics.comparison import NONE
from afmol.metrics.confusion import (
    calibration_error,
    calibration_tally,
    class_confusion,
    class_f1,
    class_precision,
    class_recall,
)
from afmol.structures import Molecule

SCORE = Path(__file__).parents[1].parent / "shared" / "checks" / "score.py"
seeds = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings("error")


def molecule(atoms, bonds=(), probabilities=None, **rest):
    """From rows (atomic number, x, y, z)."""
    rows = np.array(atoms, float).reshape(-1, 4)
    return Molecule(
        rows[:, 1:],
        rows[:, 0].astype(int),
        np.array(bonds, int).reshape(-1, 2),
        bond_probabilities=None if probabilities is None else np.array(probabilities, float),
        **rest,
    )


def all_visible(reference):
    return np.ones(len(reference), bool)


def random_pair(seed) -> tuple[Any, Any, np.ndarray]:
    """A flat reference with distance-table bonds, and a prediction with shifts, losses, extras and wrong classes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 18))
    positions = rng.uniform(-4, 4, (n, 3)) * [1, 1, 0.2]
    positions[:, 2] -= positions[:, 2].max(initial=-0.8)
    numbers = rng.choice(NUMBERS, n)
    reference = Molecule(positions, numbers, bonds_by_distance(positions, numbers, 1.25))
    kept = rng.permutation(n)[: rng.integers(0, n + 1)]
    extra = int(rng.integers(0, 5))
    p = np.concatenate([positions[kept] + rng.normal(0, 0.2, (len(kept), 3)), rng.uniform(-4, 4, (extra, 3))])
    z = np.concatenate([numbers[kept], rng.choice(NUMBERS, extra)])
    wrong = rng.random(len(z)) < 0.3
    z[wrong] = rng.choice(NUMBERS, wrong.sum())
    pairs = np.argwhere(np.triu(rng.random((len(z), len(z))) < 0.2, 1))
    pairs = np.unique(np.concatenate([pairs, bonds_by_distance(p, z)]), axis=0).astype(int)
    prediction = Molecule(
        p,
        z,
        pairs,
        class_probabilities=rng.dirichlet(np.ones(5), len(z)),
        confidence=rng.random(len(z)),
        bond_probabilities=rng.random(len(pairs)),
    )
    return prediction, reference, positions[:, 2] >= -0.8


def permuted(m, order):
    """The same molecule with atom order[k] in place k."""
    place = np.argsort(order)
    pick = {k: getattr(m, k)[order] for k in ("confidence", "class_probabilities") if getattr(m, k) is not None}
    bonds = np.sort(place[m.bonds], axis=1)
    return Molecule(m.positions[order], m.numbers[order], bonds, bond_probabilities=m.bond_probabilities, **pick)


def moved(m, angle, shift):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    rest = {k: getattr(m, k) for k in ("confidence", "class_probabilities", "bond_probabilities")}
    return Molecule(m.positions @ turn.T + [*shift, 0], m.numbers, m.bonds, **rest)


def assert_same(a, b, **close):
    for f in fields(Comparison):
        np.testing.assert_allclose(getattr(a, f.name), getattr(b, f.name), err_msg=f.name, **close)


# Four atoms in a row and one too deep: H-C-N-O, C below.
REFERENCE = molecule(
    [(1, 0, 0, 0), (6, 1.1, 0, 0), (7, 2.5, 0, -0.1), (8, 3.8, 0, 0), (6, 1.1, 1.4, -1.2)],
    [(0, 1), (1, 2), (2, 3), (1, 4)],
)
VISIBLE = np.array([True, True, True, True, False])


def test_worked_example():
    """H exact, C 0.3 A off, N taken for C, O missed; one atom on the deep C (ignored), one in the void (spurious F)."""
    prediction = molecule(
        [(9, 9, 9, 0), (6, 2.5, 0, -0.3), (6, 1.1, 0.3, 0), (1, 0, 0, 0), (6, 1.1, 1.4, -1.0)],
        [(0, 1), (1, 2), (1, 3), (2, 3), (2, 4)],
        [0.9, 0.5, 0.8, 0.6, 0.9],
        confidence=np.array([0.7, 1.0, 1.0, 1.0, 0.2]),
        class_probabilities=np.array(
            [[0, 0, 0, 0, 1], [0, 0.4, 0.6, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
        ),
    )
    c = compare(prediction, REFERENCE, VISIBLE)
    assert (c.molecules, c.exact, c.ignored) == (1, 0, 1)
    expected = np.zeros((6, 6), int)
    expected[0, 0] = expected[1, 1] = expected[2, 1] = expected[3, NONE] = expected[NONE, 4] = 1
    np.testing.assert_array_equal(c.classes, expected)
    # True bonds among the found: H-C, C-N. Predicted with p > 0.5: H-N (wrong), H-C; C-N has 0.5 and does not count.
    np.testing.assert_array_equal(c.bonds, [[0, 1], [1, 1]])
    # The rule: H-C 1.14 A < 1.2 x 1.07, C-N 1.46 A < 1.2 x 1.52, H-N no.
    np.testing.assert_array_equal(c.rule_bonds, [[1, 0], [0, 2]])

    s = summary(c)
    assert s["precision"] == s["recall"] == s["f1"] == s["heavy_recall"] + 1 / 12 == pytest.approx(0.75)
    assert s["class_accuracy"] == pytest.approx(2 / 3)
    assert s["class_precision"] == [1, 0.5, None, None, None]
    assert s["class_recall"] == [1, 1, 0, None, None]
    assert s["class_macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert s["end_to_end_class_precision"] == [1, 0.5, None, None, 0]
    assert s["end_to_end_class_recall"] == [1, 1, 0, 0, None]
    assert s["class_count"] == [1, 1, 1, 1, 0]
    assert (s["bond_precision"], s["bond_recall"], s["bond_f1"], s["rule_bond_f1"]) == (0.5, 0.5, 0.5, 1)
    assert s["xy_error"] == pytest.approx(0.3 / 3)
    assert s["xy_rms"] == pytest.approx(np.sqrt(0.09 / 3))
    assert s["z_error"] == pytest.approx(0.2 / 3)
    assert s["exact_graph_rate"] == 0
    assert (s["element_count"][:4], s["element_recall"][:4]) == ([1, 1, 1, 0], [1, 1, 0, None])
    assert s["element_precision"][:4] == [1, 0.5, None, None]
    found = {"atoms": 4, "recall": 0.75, "class_accuracy": pytest.approx(2 / 3)}
    assert s["by_size"] == [{"atoms_from": 1, "molecules": 1, "exact_graph_rate": 0, **found}]
    assert s["by_depth"] == [{"depth_from": 0.0, **found}]
    # Sure of three and right; 0.7 of one that is not there; 0.2 of the deep one, which is there though nobody asked.
    assert s["atom_calibration_error"] == pytest.approx((0.7 + 0.8) / 5)
    assert s["class_calibration_error"] == pytest.approx(0.4 / 3)  # of the class given, even where another is likelier
    # Bonds among the found: 0.5 (true), 0.8 (false), 0.6 (true), each in its own bin.
    assert s["bond_calibration_error"] == pytest.approx((0.5 + 0.8 + 0.4) / 3)

    # The paper ignores nothing: O missing, F and the deep C extra. F is the farthest from all, O its nearest.
    p = s["paper"]
    assert (p["missing"], p["extra"]) == (1, 2)
    assert p["matching_distance"] == pytest.approx((0.3 + 0.2) / 3)
    assert p["hausdorff_distance"] == pytest.approx(np.hypot(9 - 3.8, 9))
    assert p["class_precision"] == [1, 0.5, None, None, None]
    assert p["bond_confusion"] == [[0, 1], [1, 1]]
    assert [b["atoms_from"] for b in p["by_size"]] == [1]


def test_bins_of_depth():
    """Below the topmost atom, wherever z is 0: N taken for O at 0.3 A, one missed at 0.7 A, one found at 3 A."""
    reference = molecule([(6, 0, 0, 1.0), (7, 2, 0, 0.7), (6, 4, 0, 0.3), (1, 6, 0, -2.0)])
    prediction = molecule([(6, 0, 0, 1.0), (8, 2, 0, 0.7), (1, 6, 0, -2.0)])
    s = summary(compare(prediction, reference, all_visible(reference)))
    bins = [(b["depth_from"], b["atoms"], b["recall"], b["class_accuracy"]) for b in s["by_depth"]]
    assert bins == [(0.0, 1, 1.0, 1.0), (0.2, 1, 1.0, 0.0), (0.6, 1, 0.0, None), (1.8, 1, 1.0, 1.0)]


def test_two_tolerances():
    """0.4 A off: found by ours, missing and extra by the paper's definition; 0.5 A off: found by neither."""
    reference = molecule([(6, 0, 0, 0), (7, 5, 0, 0)])
    c = compare(molecule([(6, 0.4, 0, 0), (7, 5.5, 0, 0)]), reference, all_visible(reference))
    s = summary(c)
    assert (s["precision"], s["recall"]) == (0.5, 0.5)
    assert (s["paper"]["missing"], s["paper"]["extra"]) == (2, 2)
    assert s["paper"]["matching_distance"] is None


def test_one_predicted_atom_for_two():
    """Between two atoms 0.4 A apart: ours gives it to one of them, the paper's definition to both, not bonded."""
    reference = molecule([(6, 0, 0, 0), (7, 0.4, 0, 0), (8, 1.4, 0, 0)], [(0, 1), (1, 2)])
    prediction = molecule([(7, 0.21, 0, 0), (8, 1.4, 0, 0)], [(0, 1)])
    c = compare(prediction, reference, all_visible(reference))
    np.testing.assert_array_equal(c.classes[2], [0, 0, 1, 0, 0, 0])
    assert c.classes[1, NONE] == 1
    p = summary(c)["paper"]
    assert (p["missing"], p["extra"]) == (0, 0)
    assert p["class_recall"][1:4] == [0, 1, 1]
    # 0-1 true, not predicted; 1-2 true and predicted; 0-2 predicted through the shared atom.
    assert p["bond_confusion"] == [[0, 1], [1, 1]]


def test_matching_is_one_to_one_and_best():
    """Greedy nearest pairing would strand the second atom."""
    reference = molecule([(6, 0, 0, 0), (6, 0.45, 0, 0)])
    prediction = molecule([(6, 0.4, 0, 0), (6, 0.85, 0, 0)])
    assert np.trace(compare(prediction, reference, all_visible(reference)).classes) == 2


def test_far_atoms_do_not_pull_at_near_ones():
    """Without the cap the smallest sum of distances is 1.0 + 1.5, not 0.4 + 2.9, and nothing would be found."""
    reference = molecule([(6, 0, 0, 0), (6, 1.4, 0, 0)])
    prediction = molecule([(6, 0.4, 0, 0), (6, -1.5, 0, 0)])
    assert np.trace(compare(prediction, reference, all_visible(reference)).classes) == 1


def test_nothing_predicted_and_nothing_asked_for():
    empty = molecule([])
    s = summary(compare(empty, REFERENCE, VISIBLE))
    assert (s["precision"], s["recall"], s["xy_error"], s["bond_f1"], s["class_macro_f1"]) == (
        None,
        0,
        None,
        None,
        None,
    )
    assert (s["paper"]["missing"], s["paper"]["extra"], s["paper"]["hausdorff_distance"]) == (4, 0, None)
    s = summary(compare(REFERENCE, REFERENCE, np.zeros(5, bool)))
    assert (s["ignored_atoms"], s["predicted_atoms"], s["recall"], s["exact_graph_rate"]) == (5, 0, None, 1)
    for c in (Comparison(), compare(empty, empty, np.zeros(0, bool))):
        json.dumps(summary(c), allow_nan=False)
        assert "nan" not in table(summary(c)).lower()


def test_exact_graph_needs_everything_right():
    visible = all_visible(REFERENCE)
    assert compare(REFERENCE, REFERENCE, visible).exact == 1
    assert compare(REFERENCE, REFERENCE, VISIBLE).exact == 1  # the atom that is not asked for may be predicted ...
    without = molecule(np.column_stack([REFERENCE.numbers, REFERENCE.positions])[:4], REFERENCE.bonds[:3])
    assert compare(without, REFERENCE, VISIBLE).exact == 1  # ... or not
    assert compare(without, REFERENCE, visible).exact == 0
    assert compare(REFERENCE, without, all_visible(without)).exact == 0
    rows = np.column_stack([REFERENCE.numbers, REFERENCE.positions])
    assert compare(molecule(rows, REFERENCE.bonds[:3]), REFERENCE, visible).exact == 0
    assert compare(molecule(rows, [*REFERENCE.bonds, (3, 4)]), REFERENCE, visible).exact == 0
    rows[1, 0] = 7
    assert compare(molecule(rows, REFERENCE.bonds), REFERENCE, visible).exact == 0


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_perfect_prediction(seed):
    _, reference, visible = random_pair(seed)
    s = summary(compare(reference, reference, visible))
    for key in ("precision", "recall", "f1", "class_accuracy", "class_macro_f1", "bond_f1", "exact_graph_rate"):
        assert s[key] in (1, None), key
    assert {*s["class_precision"], *s["end_to_end_class_recall"], *s["end_to_end_class_f1"]} <= {1, None}
    assert s["xy_error"] in (0, None)
    assert s["z_error"] in (0, None)
    assert s["paper"]["missing"] == 0
    assert s["paper"]["class_accuracy"] in (1, None)
    assert s["matched_atoms"] == visible.sum()


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_order_of_atoms_does_not_matter(seed):
    prediction, reference, visible = random_pair(seed)
    rng = np.random.default_rng(seed)
    p, r = rng.permutation(len(prediction)), rng.permutation(len(reference))
    shuffled = compare(permuted(prediction, p), permuted(reference, r), visible[r])
    assert_same(shuffled, compare(prediction, reference, visible), atol=1e-12)


@given(seeds, st.floats(-4, 4), st.tuples(st.floats(-20, 20), st.floats(-20, 20)))
@settings(max_examples=30, deadline=None)
def test_frame_does_not_matter(seed, angle, shift):
    prediction, reference, visible = random_pair(seed)
    there = compare(moved(prediction, angle, shift), moved(reference, angle, shift), visible)
    assert_same(there, compare(prediction, reference, visible), atol=1e-9)


@given(st.lists(seeds, max_size=5))
@settings(max_examples=25, deadline=None)
def test_parts_sum_to_total(many):
    parts = [compare(*random_pair(seed)) for seed in many]
    whole = total(parts)
    assert whole.molecules == len(many)
    assert_same(total(parts[:2]) + total(parts[2:]), whole, atol=1e-9)
    assert_same(total(reversed(parts)), whole, atol=1e-9)
    s = summary(whole)
    json.dumps(s, allow_nan=False)
    for key in ("matched_atoms", "predicted_atoms", "reference_atoms", "ignored_atoms"):
        assert s[key] == sum(summary(p)[key] for p in parts)
    assert sum(b["molecules"] for b in s["paper"]["by_size"]) == len(many)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_counts_balance(seed):
    """Each atom is counted once, and ours never finds more atoms at 0.35 A than the paper's many-to-one matching."""
    prediction, reference, visible = random_pair(seed)
    c = compare(prediction, reference, visible, tolerance=0.35)
    assert c.classes[:NONE].sum() == visible.sum()
    assert c.classes[:, :NONE].sum() + c.ignored == len(prediction)
    assert c.classes[NONE, NONE] == 0
    right = np.trace(c.classes[:NONE, :NONE])
    assert c.by_size.sum(0).tolist() == [1, c.exact, visible.sum(), c.classes[:NONE, :NONE].sum(), right]
    assert c.by_depth.sum(0).tolist() == c.by_size[:, 2:].sum(0).tolist()
    assert c.elements.sum() == c.classes[:NONE, :NONE].sum()
    n = c.classes[:NONE, :NONE].sum()
    assert c.bonds.sum() == c.rule_bonds.sum() == n * (n - 1) // 2
    assert n <= c.paper_classes.sum()
    assert c.paper_classes.sum() + c.paper_counts[:, 2].sum() == visible.sum()


@pytest.fixture(scope="module")
def score() -> ModuleType:
    if not SCORE.exists():
        pytest.skip("shared/checks/score.py is not there")
    spec = importlib.util.spec_from_file_location("score", SCORE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_agrees_with_the_outside_scorer(score, monkeypatch):
    monkeypatch.setattr(score, "read_xyz", lambda m: (m.numbers, m.positions))  # without a file it leaves open
    compared = 0
    for seed in range(80):
        prediction, reference, visible = random_pair(seed)
        if not len(reference):
            continue
        atoms = zip(prediction.positions.tolist(), prediction.classes.tolist(), strict=True)
        bonds = zip(prediction.bonds.tolist(), prediction.bond_probabilities.tolist(), strict=True)
        document = {
            "atoms": [{"position": p, "class": c} for p, c in atoms],
            "bonds": [{"atoms": a, "probability": p} for a, p in bonds],
        }
        theirs = score.score(document, reference)
        ours = summary(compare(prediction, reference, visible))
        assert ours["reference_atoms"] == theirs["reference"]
        assert ours["matched_atoms"] == theirs["matched"]
        for key in ("precision", "recall", "class_accuracy", "bond_f1"):  # it says 0 where there is nothing to divide
            assert (ours[key] or 0) == pytest.approx(theirs[key]), (seed, key)
        for key in ("xy_error", "z_error"):
            assert ours[key] == (theirs[key] if theirs[key] is None else pytest.approx(theirs[key]))
        compared += ours["ignored_atoms"] > 0
    assert compared > 3  # the cases do contain ignored atoms


def test_single_step_figures():
    confusion = class_confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]))
    assert confusion.shape == (5, 5)
    np.testing.assert_array_equal(confusion[:3, :3], [[1, 1, 0], [0, 1, 0], [1, 0, 2]])
    np.testing.assert_allclose(class_precision(confusion), [1 / 2, 1 / 2, 1, np.nan, np.nan])
    np.testing.assert_allclose(class_recall(confusion), [1 / 2, 1, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(class_f1(confusion), [1 / 2, 2 / 3, 4 / 5, np.nan, np.nan])


def test_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    honest = calibration_tally(p, rng.random(len(p)) < p)
    assert calibration_error(honest) < 0.02
    assert honest[:, 0].sum() == len(p)
    sure = calibration_tally(np.full(1000, 0.99), rng.random(1000) < 0.5)
    assert calibration_error(sure) == pytest.approx(0.49, abs=0.05)
    assert calibration_error(calibration_tally(np.array([0.0, 1.0]), np.array([False, True]))) == 0
    assert np.isnan(calibration_error(np.zeros((10, 3))))


def test_table_shows_the_figures():
    s = summary(total(compare(*random_pair(seed)) for seed in range(20)))
    lines = table(s).splitlines()
    assert max(map(len, lines)) <= 100
    halogens = next(x for x in lines if x.startswith("F, Cl"))
    assert f"{s['end_to_end_class_precision'][4]:.3f}" in halogens
    bonds = next(x for x in lines if x.startswith("bonds F1"))
    shown = (s["bond_f1"], s["rule_bond_f1"], s["paper"]["bond_f1"], s["paper"]["rule_bond_f1"])
    carbon = next(x for x in lines if x.startswith("C "))
    assert carbon.split()[1:] == [
        str(s["element_count"][1]),
        *(f"{s[f'element_{k}'][1]:.3f}" for k in ("precision", "recall")),
    ]
    assert sum(x.startswith("depth in A") for x in lines) == len(s["by_depth"])
    assert bonds.split()[2:] == [f"{x:.3f}" for x in shown]


def test_elements_that_are_not_there_are_no_rows_and_false_ones_are():
    places, bonds = np.array([[0.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.8, 0.6, 0.0]]), np.array([[0, 1], [0, 2]])
    water = Molecule(places, np.array([8, 1, 1]), bonds)
    ammonia = replace(water, numbers=np.array([7, 1, 1]))
    rows = table(summary(compare(ammonia, water, np.ones(3, bool)))).split("matched atoms of")[1].splitlines()
    assert {row.split()[0] for row in rows[1 : rows.index("")]} == {"H", "N", "O"}


def test_bad_input_is_refused():
    for mask in (np.ones(3, bool), np.ones(5, int)):
        with pytest.raises((MoleculeError, TypeError)):  # TypeError: where annotations are checked
            compare(REFERENCE, REFERENCE, mask)
    for p in (1.5, -0.1, np.nan):
        with pytest.raises(MoleculeError, match="between 0 and 1"):
            compare(molecule([(6, 0, 0, 0)], confidence=np.array([p])), REFERENCE, VISIBLE)
