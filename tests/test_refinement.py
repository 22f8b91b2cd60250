"""Readings tested by simulation: slopes, likelihood, and what is found of a molecule that is known."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from afmol import predict
from afmol.checkpoint import load_model
from afmol.elements import ELEMENTS, NUMBERS, bonds_by_distance, by_class, element_index
from afmol.errors import ConfigError, ScanError
from afmol.prediction import REFINED_DEPTH_ERROR, asked_for, refined_reading
from afmol.refinement import combinations, environments, search
from afmol.refinement.charges import LEAST_SPREAD, expected_charges, surroundings
from afmol.refinement.combinations import Combinations, Option, effect, searched
from afmol.refinement.environments import felt, neighbours, unlikelihood
from afmol.refinement.fit import (
    BOUNDS,
    FARTHEST,
    MOST_CHARGE,
    MOST_FACTOR,
    Fitted,
    Problem,
    cost_of,
    evaluated,
    fitted,
    independent,
    known_beforehand,
    residuals,
    slopes,
    steps,
    within,
)
from afmol.refinement.imaging import (
    DISPERSION,
    DISTANCE,
    DRIFT_X,
    DRIFT_Y,
    OF_ATOM,
    OF_TIP,
    PIXEL,
    SPACING,
    Picture,
    Target,
    binned,
    normalised,
    picture_slopes,
    pictured,
    seen_as,
    start,
    target,
)
from afmol.refinement.missed import CONFIDENCE, with_missed
from afmol.refinement.planes import heights, known_planes, quadruples
from afmol.refinement.search import refined
from afmol.refinement.slopes import unexplained
from afmol.simulation import FORCES, TIPS, Grid, simulate, standard_heights
from afmol.simulation.artefacts import white_noise
from afmol.structures import Molecule, Scan
from strategies import flat_ring, hand, made, molecules, refused

SIDE = 9.0
FEW = (("PATIENCE", 1), ("PROPOSED", 3), ("TOGETHER", 2), ("MOST_OPTIONS", 25), ("WIDTH", 5))
"""Enough for small molecules."""


def pyridine() -> Molecule:
    """In the middle of an image of SIDE, the nitrogen to the right, a little tilted."""
    ring = flat_ring()
    ring = replace(ring, charges=expected_charges(ring).mean)
    lifted = ring.positions + np.array([0, 0, 0.06]) * ring.positions[:, :1]
    return replace(ring, positions=lifted - [0, 0, lifted[:, 2].max()] + [SIDE / 2, SIDE / 2, 0.0])


def stack_of(molecule: Molecule, noise: float = 0.05, pixel: float = 0.125, force: str = "exponential") -> Scan:
    tip, n, model = TIPS["co"], round(SIDE / pixel), FORCES[force]
    heights = standard_heights(molecule, tip, model.standard_distance, force=model)
    scan = simulate(molecule, tip, Grid((0, 0), (SIDE, SIDE), (n, n), heights), force=model, parallel=False)
    return replace(scan, data=white_noise(scan.data, noise, np.random.default_rng(0)))


def candidates(
    molecule: Molecule, elements: np.ndarray | None = None, confidence: np.ndarray | None = None
) -> Molecule:
    """As a network may hold them possible, its places 0.05 A off; `elements`: probabilities, sure ones if None."""
    n = len(molecule)
    off = np.random.default_rng(1).normal(0, 0.05, (n, 3))
    if elements is None:
        elements = np.full((n, len(ELEMENTS)), 1e-4)
        elements[np.arange(n), element_index(molecule.numbers)] = 1 - 1e-3
    return replace(
        molecule,
        positions=molecule.positions + off,
        charges=None,
        confidence=np.full(n, 0.999) if confidence is None else confidence,
        element_probabilities=elements,
        class_probabilities=by_class(elements),
        bond_probabilities=np.ones(len(molecule.bonds)),
    )


def begin(molecule: Molecule, force: str = "exponential", known: bool = True):
    c = candidates(molecule)
    h = start(c, np.ones(len(c), bool), c.numbers.copy(), known)
    values = h.values.copy()
    values[len(values) - OF_TIP + DISTANCE] = 0.1
    values[len(values) - OF_TIP + DRIFT_X] = 0.3
    return replace(h, force=force, values=values)


@pytest.mark.parametrize("force", ["lennard-jones", "exponential"])
def test_slopes_are_those_of_finite_differences(force):
    molecule, goal = pyridine(), target(stack_of(pyridine(), pixel=0.25))
    h = begin(molecule, force, known=False)
    by_value = picture_slopes(h, pictured(h, goal, 0.0), goal)
    assert len(by_value) == len(h.active)
    tip = len(h.values) - OF_TIP
    for place, slope in zip(h.active.tolist(), by_value, strict=True):
        if tip > place > 2 * OF_ATOM and place % 7:  # some of the atoms are enough
            continue
        step = 0.02 if place - tip == SPACING else 4e-3
        ends = []
        for sign in (1, -1):
            values = h.values.copy()
            values[place] += sign * step
            ends.append(pictured(replace(h, values=values), goal, 0.0).slices.astype(float))
        difference = (ends[0] - ends[1]) / (2 * step)
        rounding = 2e-5 * np.linalg.norm(ends[0]) / (2 * step)
        interpolated = 0.15 if place - tip in (DRIFT_X, DRIFT_Y) else 0.05  # linearly, and nothing beyond the rim
        assert np.linalg.norm(difference - slope) < interpolated * np.linalg.norm(difference) + rounding, place - tip


@pytest.mark.parametrize("shape", [(3, 7, 6, 5), (2, 12, 9, 1)])
def test_what_offset_and_factor_of_a_slice_make_up_for_is_taken_out(shape):
    rng = np.random.default_rng(0)
    slices, image = rng.normal(1, 1, shape).astype(np.float32), rng.normal(size=shape[1:])
    along, scale = normalised(image).astype(np.float32), rng.uniform(0.5, 2, shape[-1]).astype(np.float32)
    lines = (shape[1], shape[2] * shape[3])
    out = np.empty((shape[0], *lines), np.float32)
    unexplained(slices.reshape(out.shape), along.reshape(lines), scale, out)
    for row, found in zip(slices, out.reshape(shape), strict=True):
        for k in range(shape[-1]):
            known = np.column_stack([np.ones(row[..., k].size), image[..., k].ravel()])
            best, *_ = np.linalg.lstsq(known, row[..., k].ravel(), rcond=None)
            left = (row[..., k].ravel() - known @ best) * scale[k]
            np.testing.assert_allclose(found[..., k].ravel(), left, atol=1e-5)


def test_least_squares_know_what_a_step_gains():
    """Close to the best fit."""
    goal = target(stack_of(pyridine(), pixel=0.25))
    h = begin(pyridine())
    problem = Problem(goal, 0.0, 1.0)
    at, _ = fitted(evaluated(h, problem), problem, 20)
    values = at.hypothesis.values.copy()
    values[: OF_ATOM * 2 : OF_ATOM] += 0.01
    off = evaluated(replace(at.hypothesis, values=values), problem)
    for step in list(steps(off, slopes(off, problem), problem, 0.1))[:3]:
        assert step.hoped > 1
        assert off.cost - evaluated(step.to, problem).cost == pytest.approx(step.hoped, rel=0.1)


def picture(slices: np.ndarray) -> Picture:
    return Picture(slices, *[None] * (len(Picture._fields) - 1))


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=10)
def test_scale_and_offset_of_slices_do_not_count(seed, scale, offset):
    rng = np.random.default_rng(seed)
    images, slices = rng.normal(size=(12, 10, 4)), rng.normal(size=(12, 10, 4))
    goal = Target(normalised(images), (3.0, 2.5), np.arange(3, -1, -1.0), 1.0, True)
    factors = scale * rng.uniform(0.5, 2, 4)
    plain, _ = residuals(slices, goal)
    moved, _ = residuals(slices * factors + offset * rng.normal(size=4), goal)
    np.testing.assert_allclose(moved, plain, atol=1e-9)


def test_an_inverted_image_explains_nothing():
    images = np.random.default_rng(0).normal(size=(12, 10, 4))
    goal = Target(normalised(images), (3.0, 2.5), np.arange(3, -1, -1.0), 1.0, True)
    left, _ = residuals(-goal.images, goal)
    np.testing.assert_allclose(np.square(left).sum((0, 1)), 1.0)


def test_pixels_that_are_wrong_together_count_for_fewer():
    noise = np.random.default_rng(0).normal(size=(48, 40, 10))
    smooth = gaussian_filter(noise, (2, 2, 0))
    shares = []
    for images in (noise, smooth):
        goal = Target(normalised(images), (12.0, 10.0), np.arange(9, -1, -1.0), 0.1, True)
        flat = np.zeros_like(images)
        flat[0, 0] = 1.0
        shares.append(independent(Fitted(None, 0.0, picture(flat)), goal))
    assert shares[0] > 0.8
    assert shares[1] == pytest.approx(1 / (4 * np.pi * 2**2), rel=0.3)  # the area of a Gaussian's autocorrelation


def test_slices_that_drift_move_evenly_about_the_middle_one():
    goal = Target(np.zeros((40, 40, 5)), (10.0, 10.0), np.arange(4, -1, -1.0), 1.0, True)
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    spot = np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 30)[..., None].repeat(5, -1)
    moved = seen_as(spot, goal, 2.0, -1.0)
    centres = [((x * s).sum() / s.sum(), (y * s).sum() / s.sum()) for s in np.moveaxis(moved, -1, 0)]
    np.testing.assert_allclose(centres, [[20 + 8 * t, 20 - 4 * t] for t in np.linspace(-0.5, 0.5, 5)], atol=0.05)
    np.testing.assert_array_equal(seen_as(spot, goal, 0.0, 0.0), spot)
    even = np.ones((9, 11, 5))
    np.testing.assert_allclose(seen_as(even, goal._replace(spreads=(0.4, 0.3)), 7.0, -30.0), even)  # to the borders


@given(molecules())
def test_charges_are_the_atoms_own(molecule):
    """They do not depend on the order of atoms."""
    order = np.random.default_rng(0).permutation(len(molecule))
    for one, two in zip(expected_charges(molecule), expected_charges(molecule.taken(order)), strict=True):
        np.testing.assert_array_equal(two, one[order])


def test_charges_are_those_of_the_surroundings():
    ring = flat_ring()
    charges, spreads = expected_charges(ring)
    assert charges[0] == pytest.approx(-0.62, abs=0.05)  # MMFF94: the nitrogen of pyridine, +0.15 for hydrogens
    np.testing.assert_allclose(charges[ring.numbers == 1], 0.15, atol=0.03)
    assert (spreads >= LEAST_SPREAD).all()
    assert surroundings(ring.numbers, ring.bonds)[0] == ("N2", "N2/6 C3 C3", "N2/6 C3/6-CH C3/6-CH")
    angle = 2 * np.pi * np.arange(5) / 5
    corners = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    pyrrole = made(np.concatenate([1.17 * corners, 2.24 * corners]), [7, 6, 6, 6, 6, *[1] * 5], "pyrrole")
    assert expected_charges(pyrrole).mean[0] == pytest.approx(0.03, abs=0.1)  # MMFF94


@given(arrays(float, (6, 3), elements=st.floats(-3, 3)))
def test_heights_over_planes_change_as_finite_differences_do(positions):
    atoms = np.array([[0, 1, 2, 3], [4, 2, 5, 0], [1, 3, 0, 5]])
    corners = positions[atoms]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assume((areas > 0.5).all())
    _, by_place = heights(positions, atoms)
    for k, four in enumerate(atoms):
        for end, axis in product(range(4), range(3)):
            step = np.zeros_like(positions)
            step[four[end], axis] = 1e-6
            difference = (heights(positions + step, atoms)[0] - heights(positions - step, atoms)[0])[k] / 2e-6
            assert by_place[k, end, axis] == pytest.approx(difference, abs=1e-4)


@given(st.integers(0, 100), st.integers(0, 5))
@settings(max_examples=10)
def test_aromatic_rings_are_flat_however_they_lie(seed, atom):
    ring, rng = flat_ring(), np.random.default_rng(seed)
    planes = known_planes(ring)
    assert len(planes.atoms) == 5 + 6  # around each carbon, and along each bond of the ring
    frame = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    turned = ring.positions @ frame.T + rng.normal(size=3)
    np.testing.assert_allclose(heights(turned, planes.atoms)[0], 0.0, atol=1e-9)
    turned[atom] += 0.2 * frame[:, 2]
    far = np.abs(heights(turned, planes.atoms)[0])
    assert far.max() > 0.15
    assert (far[~(planes.atoms == atom).any(1)] < 1e-9).all()


def test_an_atom_of_four_neighbours_is_held_in_no_plane():
    methane = hand()
    assert not list(quadruples(methane.numbers, methane.bonds))
    assert not len(known_planes(methane).atoms)


def test_atoms_and_tip_go_no_farther_than_they_may():
    h = begin(pyridine())
    n, tip = OF_ATOM * len(h.there), len(h.values) - OF_TIP
    for sign in (1, -1):
        values = within(np.full(len(h.values), 9.0 * sign))
        np.testing.assert_array_equal(values[:n].reshape(-1, OF_ATOM)[:, :3], sign * FARTHEST)
        np.testing.assert_array_equal(values[3:n:OF_ATOM], sign * MOST_CHARGE)
        np.testing.assert_array_equal(
            values[n:tip].reshape(-1, 2), np.tile(sign * np.array(MOST_FACTOR), (len(ELEMENTS), 1))
        )
        assert values[tip + DISTANCE] == BOUNDS[DISTANCE][sign > 0]
        assert np.isfinite(
            pictured(replace(h, values=values), target(stack_of(pyridine(), pixel=0.5)), 0.0).slices
        ).all()
    np.testing.assert_array_equal(within(h.values), h.values)


def test_what_is_known_beforehand_pulls_as_its_cost_falls():
    """Gradients of priors, bonds, angles and planes against finite differences of the cost, the image left out."""
    molecule, goal = pyridine(), target(stack_of(pyridine(), pixel=0.5))
    h = begin(molecule)
    values, n = h.values.copy(), OF_ATOM * len(h.there)
    values[:n] += np.random.default_rng(0).normal(0, 0.05, n)
    h, problem = replace(h, values=values), Problem(goal, 0.0, 0.0)
    image = np.random.default_rng(0).normal(size=goal.images.shape)
    _, pull = known_beforehand(h, h.active)
    for row, place in enumerate(h.active.tolist()):
        step = np.zeros_like(values)
        step[place] = 1e-5
        ends = [cost_of(replace(h, values=values + sign * step), image, problem) for sign in (1, -1)]
        assert pull[row] == pytest.approx(-(ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-3), place


@given(molecules(), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_how_plausible_a_graph_is_does_not_depend_on_the_order_of_its_atoms(molecule, random):
    order = list(range(len(molecule)))
    random.shuffle(order)
    of = [
        unlikelihood(m.numbers.tolist(), neighbours(len(m), m.bonds))
        for m in (molecule, molecule.taken(np.array(order)))
    ]
    assert of[0] == pytest.approx(of[1])


@given(molecules(), st.randoms())
def test_what_changes_are_less_plausible_by_is_found_where_they_are_felt(molecule, random):
    near, before = neighbours(len(molecule), molecule.bonds), molecule.numbers.tolist()
    places = random.sample(range(len(molecule)), random.randint(1, min(3, len(molecule))))
    after = [random.choice([0, 1, 6, 8]) if i in places else z for i, z in enumerate(before)]
    parts = felt(places, near)
    difference = unlikelihood(after, near, parts) - unlikelihood(before, near, parts)
    assert difference == pytest.approx(unlikelihood(after, near) - unlikelihood(before, near))


def test_atoms_with_surroundings_that_molecules_have_are_more_plausible():
    ring = pyridine()
    near = neighbours(len(ring), ring.bonds)
    as_it_is = unlikelihood(ring.numbers.tolist(), near)
    assert unlikelihood([0] * len(ring), near) == 0.0
    bonded_to_hydrogen = int(ring.bonds[(ring.numbers[ring.bonds] == 1).any(1)][0].min())
    for atom, number in ((0, 9), (bonded_to_hydrogen, 8), (bonded_to_hydrogen, 17)):
        numbers = ring.numbers.tolist()
        numbers[atom] = number  # a halogen in the ring, an oxygen with three neighbours
        assert unlikelihood(numbers, near) > as_it_is + 5


def test_a_tree_is_as_unlikely_as_its_conditional_probabilities_say():
    """Water as the table has it: the oxygen's surroundings, times those of each hydrogen given the bond."""
    atoms = {("O", "H1 H1"): 3, ("H", "O2"): 6, ("H", "C4"): 10, ("C", "H1 H1 H1 H1"): 4}
    rows = "".join(f"{z},{around},{n}\n" for (z, around), n in atoms.items())
    table = environments._read(f"element,neighbours,atoms\n{rows}".splitlines())
    found = environments._unlikelihood(table, [8, 1, 1], [[1, 2], [0], [0]])
    bonds_of_water = 2 * 6 / (2 * 6 + 10 + 16)
    expected = np.log(3 / 23) + 2 * np.log((6 / 23) / bonds_of_water)
    assert found == pytest.approx(-expected)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_combinations_are_worth_what_a_minimiser_finds(seed):
    """Two options, of which one removes an atom and one brings its own values."""
    rng = np.random.default_rng(seed)
    pixels, free, own = 60, 6, 2
    rows, left = rng.normal(size=(free + own + 2, pixels)), rng.normal(size=pixels)
    left *= np.sqrt(pixels) / np.linalg.norm(left)  # the sum of squares is the number of pixels
    root = rng.normal(0, 5, (free + own, free + own))
    curvature, known, moved = root @ root.T, rng.normal(size=free + own), rng.normal(0, 0.1, (2, free + own))
    options = [Option(((0, 0),), 1.0), Option(((1, 7),), 2.0)]
    sums = Combinations(
        options,
        rows @ rows.T,
        rows @ left,
        curvature,
        known,
        moved,
        float(pixels),
        {0: np.arange(2), 1: np.arange(2, 4)},
        [np.arange(0), np.arange(free, free + own)],
        np.arange(free + own),
        free,
        np.zeros(2),
    )
    counts = np.arange(2, free + own)  # not the removed atom's
    u = moved.sum(0)[counts]

    def cost(x: np.ndarray, log: bool) -> float:
        square = np.square(left - x @ rows[counts] - rows[-2] - rows[-1]).sum()
        image = pixels / 2 * np.log(square / pixels) if log else square / 2
        y = x + u
        return image + y @ curvature[np.ix_(counts, counts)] @ y / 2 - known[counts] @ y

    best = minimize(lambda x: cost(x, False), np.zeros(len(counts)), method="BFGS", options={"gtol": 1e-8}).x
    assert sums.gained(frozenset({0, 1})) == pytest.approx(cost(best, True), rel=1e-4, abs=1e-3)
    h = begin(pyridine())  # its first values are taken for those of the problem
    expected = h.values.copy()
    expected[counts] += best + u
    values = sums.values(frozenset({0, 1}), h)
    assert not (values - h.values)[:2].any()
    np.testing.assert_allclose(values, within(expected), atol=1e-4)
    assert (np.abs(best + u) < FARTHEST).any()  # which are not cut


def test_an_element_changes_with_the_hydrogen_at_it():
    """What is a carbon with its hydrogen may be a nitrogen without; the price is that of both."""
    truth = pyridine()
    (carbon, hydrogen), every = truth.bonds[truth.numbers[truth.bonds[:, 1]] == 1][0], np.ones(len(truth), bool)
    elements = candidates(truth).element_probabilities.copy()
    elements[carbon, element_index(np.array([7]))] = 0.3
    c = candidates(truth, elements, np.where(np.arange(len(truth)) == hydrogen, 0.9, 0.999))
    prices = {o.made: o.price for o in search.options(start(c, every, truth.numbers.copy(), True))}
    together = prices[(int(carbon), 7), (int(hydrogen), 0)]
    assert together == pytest.approx(prices[((int(carbon), 7),)] + prices[((int(hydrogen), 0),)])
    assert prices[((int(hydrogen), 0),)] == pytest.approx(np.log(0.9 * (1 - 1e-3) / 0.1))


def test_what_costs_more_is_less_probable():
    truth = pyridine()
    h, more = begin(truth), 3 * search.TOO_SURE
    without = combinations.changed(h, [(len(truth) - 1, 0)])
    confidence = search.likely(h, [(without, more)]).confidence
    assert confidence[-1] == pytest.approx(1 / (1 + np.exp(-3)), rel=0.01)
    np.testing.assert_array_equal(confidence[:-1], search.SUREST)


def test_deep_atoms_are_not_answered_however_much_they_explain():
    truth = pyridine()
    deep = replace(truth, positions=truth.positions - np.array([0, 0, 0.8 + 0.25]) * (np.arange(11) == 10)[:, None])
    h = begin(deep)
    without = combinations.changed(h, [(10, 0)])
    found = search.likely(h, [(without, 1e4)])
    assert len(asked_for(found, 0.5, 0.8, REFINED_DEPTH_ERROR)) == 10
    assert len(asked_for(found, 0.5, 1.2, REFINED_DEPTH_ERROR)) == 11


@given(st.sets(st.integers(0, 4)))
def test_hydrogens_that_were_missed_are_candidates(gone):
    """Each of pyridine's that are gone, and one at the nitrogen, which has room too."""
    truth = pyridine()
    hydrogens = np.flatnonzero(truth.numbers == 1)
    c = candidates(truth).taken(np.delete(np.arange(len(truth)), hydrogens[sorted(gone)]))
    found = with_missed(c, np.ones(len(c), bool), c.numbers)
    np.testing.assert_array_equal(found.positions[: len(c)], c.positions)
    assert (found.symbols[len(c) :], len(found)) == (["H"] * (len(gone) + 1), len(c) + len(gone) + 1)
    apart = np.linalg.norm(found.positions[len(c) :, None] - truth.positions[hydrogens[sorted(gone)]], axis=-1)
    assert (apart.min(0, initial=9.0) < 0.35).all()
    assert (found.confidence[len(c) :] == CONFIDENCE).all()
    assert set(found.bonds[len(c.bonds) :, 1].tolist()) == set(range(len(c), len(found)))


def test_what_is_taken_for_a_halogen_may_be_an_amine():
    truth = pyridine()
    (carbon, hydrogen) = truth.bonds[truth.numbers[truth.bonds[:, 1]] == 1][0]
    positions = truth.positions.copy()
    positions[hydrogen] = positions[carbon] + 1.35 / 1.09 * (positions[hydrogen] - positions[carbon])
    c = candidates(replace(truth, positions=positions, numbers=np.where(np.arange(11) == hydrogen, 9, truth.numbers)))
    found = with_missed(c, np.ones(len(c), bool), c.numbers)
    at_it = [j for i, j in found.bonds.tolist() if i == hydrogen and j >= len(c)]
    a, b = found.positions[at_it] - found.positions[hydrogen]
    assert np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) == pytest.approx(120)
    assert found.numbers[hydrogen] == 9


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_wide_search_finds_the_best_combination_of_all(seed):
    rng = np.random.default_rng(seed)
    options = [Option(((k // 2, 6 + k % 2),), 0.0) for k in range(8)]
    linear, quadratic = rng.normal(size=8), rng.normal(size=(8, 8))

    def score(chosen: frozenset[int]) -> float:
        some = np.array(sorted(chosen), int)
        return float(linear[some].sum() + quadratic[np.ix_(some, some)].sum())

    found = searched(options, score, width=1000, depth=4)
    of_each_atom = product(*[(None, 2 * i, 2 * i + 1) for i in range(4)])
    every = [frozenset(k for k in some if k is not None) for some in of_each_atom]
    assert set(found) == {some for some in every if some}
    assert min(found.values()) == min(score(some) for some in every if some)


def test_an_option_does_the_same_in_its_surroundings_as_in_the_whole_image(monkeypatch):
    h = begin(pyridine())
    problem = Problem(target(stack_of(pyridine(), noise=0.01)), 0.0, 1.0)
    f, _ = fitted(evaluated(h, problem), problem, 6)
    (hydrogen,) = np.flatnonzero(pyridine().numbers == 1)[:1]
    for option in (Option(((int(hydrogen), 0),), 1.0), Option(((0, 8),), 1.0)):  # one goes, one is a new element
        after = combinations.changed(f.hypothesis, option.made)
        own = np.setdiff1d(after.active, f.hypothesis.active)
        held = np.setdiff1d(np.arange(OF_ATOM * len(h.there), len(h.values)), own)  # tip and forces, as in surroundings
        whole = effect(f, problem._replace(fixed=held), option)
        with monkeypatch.context() as patched:
            patched.setattr(combinations, "SMALL", 0)
            near = effect(f, problem, option)
        assert whole.gained > 0
        assert near.gained is None
        np.testing.assert_array_equal(whole.places, near.places)
        assert len(near.columns) == len(near.places) == (2 if option.made[0][1] else 0)
        assert np.corrcoef(whole.image.ravel(), near.image.ravel())[0, 1] > 0.8  # places follow what they see


def test_what_an_option_does_is_kept_while_nothing_near_it_changes(monkeypatch):
    h = begin(pyridine())
    problem = Problem(target(stack_of(pyridine(), noise=0.01)), 0.0, 1.0)
    hydrogen = int(np.flatnonzero(pyridine().numbers == 1)[0])
    f, asked, kept = evaluated(h, problem), [Option(((hydrogen, 0),), 1.0), Option(((0, 8),), 1.0)], {}
    made = []
    monkeypatch.setattr(combinations, "SMALL", 0)
    monkeypatch.setattr(combinations, "effect", lambda *which: made.append(which) or effect(*which))
    first = combinations.combinations(f, problem, asked, 1, kept)
    again = combinations.combinations(f, problem, asked, 1, kept)
    assert len(made) == 2
    np.testing.assert_array_equal(first.products, again.products)
    other = evaluated(combinations.changed(h, [(0, 6)]), problem)
    combinations.combinations(other, problem, asked, 1, kept)
    assert len(made) == 4  # of both, from which the nitrogen is not far


def test_an_option_that_changes_all_is_none(monkeypatch):
    """What float32 cannot hold is not simulated; what changes so much that sums say nothing is not looked at."""
    h = begin(pyridine(), "lennard-jones")
    values, factors = h.values.copy(), OF_ATOM * len(h.there)
    values[factors] = 3.0  # hydrogen's radius times exp(3), to the twelfth power
    problem = Problem(target(stack_of(pyridine(), pixel=0.25, noise=0.01)), 0.0, 1.0)
    assert evaluated(replace(h, values=values), problem) is None
    f, to_oxygen = evaluated(h, problem), Option(((0, 8),), 1.0)
    as_it_is = effect(f, problem, to_oxygen)
    assert len(as_it_is.columns)
    steep, huge = as_it_is.columns * np.float32(1e18), as_it_is.image * np.float32(1e6)
    for of_option, possible in (
        (as_it_is, True),
        (as_it_is._replace(columns=steep), False),
        (as_it_is._replace(image=huge), False),
    ):
        monkeypatch.setattr(combinations, "effect", lambda *_, found=of_option: found)
        sums = combinations.combinations(f, problem, [to_oxygen], 1, {})
        assert (sums.options[0] is not None) == possible
        assert np.isfinite(sums.gained(frozenset()))
        assert np.isfinite(sums.products).all()
    known = slopes(f, problem)
    assert not list(steps(f, known._replace(columns=known.columns * np.float32(1e24)), problem, 1.0))


def test_a_wrong_element_and_a_missing_atom_are_found(monkeypatch):
    """A carbon and its hydrogen taken for a nitrogen; the true nitrogen, of which the network is not sure, stays."""
    for name, few in (*FEW, ("FORCE_MODELS", ("exponential",)), ("OSCILLATIONS", (10,)), ("STAGES", 4)):
        monkeypatch.setattr(search, name, few)
    truth = pyridine()
    n = len(truth)
    elements = np.full((n, len(ELEMENTS)), 1e-4)
    elements[np.arange(n), element_index(truth.numbers)] = 1 - 1e-3
    carbon, nitrogen = element_index(np.array([6, 7]))
    hydrogen = int(np.flatnonzero(truth.numbers == 1)[1])
    (bare,) = set(truth.bonds[(truth.bonds == hydrogen).any(1)].ravel()) - {hydrogen}
    elements[[0, bare]] = 1e-4
    elements[0, [carbon, nitrogen]] = 0.4, 0.6
    elements[bare, [carbon, nitrogen]] = 0.3, 0.7
    confidence = np.full(n, 0.999)
    confidence[hydrogen] = 0.2
    c = candidates(replace(truth, numbers=NUMBERS[elements.argmax(1)]), elements, confidence)
    reading = c.taken(np.flatnonzero(confidence > 0.5))
    found = refined(c, reading, stack_of(truth), threads=2)
    assert found.correlation > 0.95
    found = found.candidates.taken(np.flatnonzero(found.candidates.confidence > 0.5))
    np.testing.assert_array_equal(found.numbers, truth.numbers)  # and no hydrogen at the nitrogen
    assert found.class_probabilities[0, 2] > 0.9
    before, after = (np.linalg.norm((m.positions - truth.positions)[:, :2], axis=1).mean() for m in (c, found))
    assert after < before / 2


def test_a_stack_without_heights_has_its_slices_distance_fitted():
    truth = pyridine()
    scan = stack_of(truth, noise=0.01)
    coarser = replace(scan, heights=None)
    h = start(candidates(truth), np.ones(len(truth), bool), truth.numbers.copy(), known=False)
    tip = len(h.values) - OF_TIP
    assert tip + SPACING in h.active
    assert tip + SPACING not in replace(h, known=True).active
    assert tip + DISPERSION not in h.active  # Lennard-Jones has none of its own
    assert not target(coarser).known
    problem = Problem(target(coarser), 0.0, 1.0)
    at = evaluated(replace(h, force="exponential"), problem)
    assert at.cost == pytest.approx(cost_of(at.hypothesis, at.image, problem))


@given(st.integers(48, 90), st.integers(48, 90), st.floats(0.05, 0.16), st.floats(0, 6))
@settings(max_examples=30)
def test_pixels_are_whole_means_and_images_are_averaged_as_they_are(nx, ny, pixel, phase):
    """Waves of eight pixels: of what their means are off the middle, averaging leaves less than 0.15."""
    wave = lambda x, y: np.cos(np.pi / 4 * (x + y) / PIXEL + phase)[..., None] + np.zeros(3)  # noqa: E731
    x, y = (np.arange(nx)[:, None] + 0.5) * pixel, (np.arange(ny) + 0.5) * pixel
    means, size, spreads = binned(wave(x, y).astype(np.float32), (nx * pixel, ny * pixel))
    mx, my = means.shape[:2]
    assert size[0] / mx == pytest.approx(size[1] / my)  # square as before
    assert size == pytest.approx((nx // (nx // mx) * (nx // mx) * pixel, ny // (ny // my) * (ny // my) * pixel))
    middle = wave((np.arange(mx)[:, None] + 0.5) * size[0] / mx, (np.arange(my) + 0.5) * size[1] / my)
    treated = seen_as(middle, Target(middle, size, np.arange(3.0), 0.1, True, spreads), 0.0, 0.0)
    left = np.abs(means - treated)[1:-1, 1:-1].max()
    assert np.abs(means - middle)[1:-1, 1:-1].max() > 0.005
    assert left < 0.15 * np.abs(means - middle)[1:-1, 1:-1].max()


def test_slices_at_one_height_count_as_one():
    scan = stack_of(pyridine(), pixel=0.25)
    places = [0, 1, 1, *range(2, 10)]
    twice = replace(scan, data=scan.data[..., places], heights=scan.heights[places])
    np.testing.assert_array_equal(target(twice).images, target(scan).images)
    np.testing.assert_array_equal(target(twice).above, target(scan).above)
    with pytest.raises(ScanError, match="three heights"):
        target(replace(scan, data=scan.data[..., :3], heights=np.array([5.0, 5.0, 4.0])))


def test_a_prediction_says_how_much_it_explains(monkeypatch):
    for name, few in (*FEW, ("FORCE_MODELS", ("lennard-jones",)), ("OSCILLATIONS", (10,)), ("STAGES", 4)):
        monkeypatch.setattr(search, name, few)
    truth = pyridine()
    scan = stack_of(truth, force="lennard-jones")
    plain, found = predict(scan), predict(scan, refine=True)
    assert plain.explained is None
    assert found.explained > 0.95
    assert sorted(found.symbols) == sorted(truth.symbols)
    nitrogen = found.positions[found.numbers == 7][0]
    assert np.linalg.norm(nitrogen - truth.positions[0]) < 0.15
    assert len(found.bonds[found.likely]) == len(bonds_by_distance(truth.positions, truth.numbers))


def test_what_cannot_be_refined_is_said(weights, tmp_path, capsys):
    scan = stack_of(pyridine(), pixel=0.25)
    with pytest.raises(ConfigError, match=r"threshold of 0\.5"):
        predict(scan, weights, 0.3, refine=True)
    wide = Scan(np.random.default_rng(0).normal(size=(260, 30, 4)).astype(np.float32), (130.0, 15.0))
    with pytest.raises(ScanError, match="at most 120 A"):
        refined_reading(pyridine(), wide, load_model(weights)[0])
    np.savez(tmp_path / "stack.npz", images=scan.data, size=scan.size)
    refused(capsys, ["predict", tmp_path / "stack.npz", "-o", tmp_path, "--refine", "--model", "asd"], "one-pass")
