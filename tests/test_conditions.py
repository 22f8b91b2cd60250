"""Samples as measurements show them: ranges of the conditions, groups that bend, sizes that are off, drift, 8 bits."""

from dataclasses import replace

import numpy as np
import pytest

from afmol.config import config_from_dict, config_to_dict
from afmol.data import samples
from afmol.data.bending import bridges, groups, strained, with_bent_groups
from afmol.data.chemistry import molecule_from_smiles
from afmol.data.conditions import MEASURED, Measured, nominal_conditions, random_conditions, simulate_sample
from afmol.data.molecules import molecule_set
from afmol.data.samples import DataConfig, make_sample, stored_form
from afmol.elements import ELEMENTS
from afmol.errors import ConfigError, MoleculeError
from afmol.simulation import TIPS, force_centres
from afmol.simulation.artefacts import linear_drift, rounded
from strategies import chain, flat_ring, hand, lamp, made

SMALL = DataConfig(shard_size=4, windows=((24, 24),), slices=5, nominal_share=0.0)
CLEAN = replace(SMALL, noise=0.0, line_noise=0.0, drift=0.0, background=0.0, cut_outs=0, compression=0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def molecules():
    return molecule_set([flat_ring(), lamp(), hand(), chain()])


def test_conditions_fill_their_ranges_and_stay_within():
    close = replace(MEASURED, step=(0.035, 0.14))
    drawn = [random_conditions(rng(s), (2.75, 3.6), 0.08, close) for s in range(600)]
    exponential = [c for c in drawn if c.force.name == "exponential"]
    single = [c for c in drawn if len(c.tip.charges) == 1]
    assert 0.44 < len(exponential) / 600 < 0.56
    assert 0.64 < len(single) / 600 < 0.76
    for values, low, high in (
        ([c.charge_scale for c in drawn], 0.5, 1.2),
        ([np.log(c.tip.stiffness) for c in drawn], np.log(0.15), 0),
        ([c.clearance for c in drawn], 2.4, 3.6),
        ([c.step for c in drawn], 0.035, 0.14),
        ([c.tip.charges[0] for c in single], -0.05, 0.12),
        ([c.tip.charges[1] / 20 for c in drawn if len(c.tip.charges) == 3], -0.4, 1.0),
        (np.log([c.factors["pauli_height"] for c in exponential]).ravel(), -np.log(2), np.log(2)),
        (np.ravel([c.factors["pauli_decay"] for c in exponential]), 0.9, 1.2),
    ):
        share = (np.array(values) - low) / (high - low)
        assert -1e-9 <= share.min() < share.max() <= 1 + 1e-9
        assert np.histogram(share, 5, (0, 1))[0].min() > 0.12 * share.size
    assert all(f.shape == (len(ELEMENTS),) for c in drawn for f in c.factors.values())


def test_off_it_draws_what_was_drawn_before():
    """The numbers, in the order, of before there was anything else, so that the samples are those of before."""
    n = len(ELEMENTS)
    for seed in range(20):
        a, b = rng(seed), rng(seed)
        c = random_conditions(a, (2.75, 3.6), 0.08, Measured())
        assert c.step == b.uniform(0.06, 0.14)
        assert c.tip.steps == np.clip(round(b.uniform(0.4, 1.4) / c.step), 4, 14)
        assert c.tip.stiffness == np.exp(b.uniform(np.log(0.2), np.log(1.0)))
        assert (c.distance, c.charge_scale) == (b.uniform(2.75, 3.6), b.uniform(0, 1.2))
        assert (c.factors["lj_radius"] == b.uniform(0.92, 1.08, n)).all()
        assert (c.factors["lj_depth"] == np.exp(b.uniform(-np.log(2), np.log(2), n))).all()
        assert a.random() == b.random()
        assert (c.force.name, c.tip.charges, c.clearance) == ("lennard-jones", (-10.0, 20.0, -10.0), None)
    assert not {"measured", "clean_share"} & set(stored_form(SMALL))
    assert stored_form(replace(SMALL, clean_share=0.5))["clean_share"] == 0.5
    other = replace(SMALL, measured=MEASURED)
    assert config_from_dict(DataConfig, {k: v for k, v in stored_form(other).items() if k != "flat_limit"}) == other
    assert config_to_dict(other)["measured"]["tip_charge"] == (-0.05, 0.12)


def test_some_samples_keep_conditions_that_are_not_as_measured(molecules, monkeypatch):
    seen = []

    def drawn(molecule, conditions, *grid):
        seen.append(conditions)
        return simulate_sample(molecule, conditions, *grid)

    monkeypatch.setattr(samples, "simulate_sample", drawn)
    shares = replace(MEASURED, plain_share=0.5, nominal_charged_share=0.25)
    config = replace(CLEAN, nominal_share=0.5, measured=shares)
    for i in range(160):
        make_sample(molecules, config, i)
    plain = [c for c in seen if c.factors and c.clearance is None]
    nominal = [c for c in seen if not c.factors]
    charged = [c for c in nominal if len(c.tip.charges) == 1]
    assert 60 < len(nominal) < 100
    assert 24 < len(plain) < 56
    assert 8 < len(charged) < 32
    assert {c.tip.charges for c in nominal} == {TIPS["co-charge"].charges, TIPS["co-quadrupole"].charges}
    assert {(c.force.name, c.tip.charges) for c in plain} == {("lennard-jones", TIPS["co-quadrupole"].charges)}
    all_plain = replace(config, measured=replace(shares, plain_share=1.0))
    as_before = replace(config, measured=Measured(plain_share=1.0, nominal_charged_share=0.25))
    for i in range(4):  # of none the size is off, none drifts
        (scan, atoms), (other, same) = (make_sample(molecules, c, i) for c in (all_plain, as_before))
        np.testing.assert_array_equal(scan.data, other.data)
        np.testing.assert_array_equal(atoms.positions, same.positions)


def test_some_samples_of_nominal_force_parameters_are_of_a_wrong_size(molecules, monkeypatch):
    """Half of them, by what the others are wrong by, and by nothing else; their labels say by how much."""
    pixels = []

    def drawn(molecule, conditions, origin, shape, pixel, slices):
        pixels.append(np.array(pixel) / CLEAN.pixel)
        assert not conditions.factors
        return simulate_sample(molecule, conditions, origin, shape, pixel, slices)

    monkeypatch.setattr(samples, "simulate_sample", drawn)
    for share, least, most in ((0.0, 0, 0), (0.5, 18, 42)):
        pixels.clear()
        wrong = replace(MEASURED, nominal_scaled_share=share)
        for i in range(60):
            _, atoms = make_sample(molecules, replace(CLEAN, nominal_share=1.0, measured=wrong), i)
            assert atoms.stretch == pytest.approx(pixels[-1].prod() ** -0.5)  # 1 A was so much more than is stated
        off = [p for p in pixels if not (p == 1).all()]
        assert least <= len(off) <= most
    assert 0.03 < np.ptp([p.mean() for p in off]) < 2 * MEASURED.scale + 0.01


def test_heights_are_above_the_topmost_nucleus_or_as_the_force_model_counts():
    """The same clearance over hydrogen and over iodine; 0.35 A closer with exponentials otherwise."""
    plain = nominal_conditions(rng())
    for element in (1, 53):
        what = made([[0.0, 0, 0], [2.2, 0, -0.5]], [element, 6])
        scan = simulate_sample(what, replace(plain, clearance=2.5), (-2.0, -2.0), (16, 16), 0.25, 4)
        assert scan.heights[-1] - plain.tip.bond_length == pytest.approx(2.5)
    carbon = made([[0.0, 0, 0], [1.4, 0, -0.2]], [6, 6])
    drawn = [random_conditions(rng(s), (3.0, 3.0), 0.0, Measured(exponential_share=1.0)) for s in range(2)]
    heights = simulate_sample(carbon, drawn[0], (-2.0, -2.0), (16, 16), 0.25, 4).heights
    assert heights[-1] - plain.tip.bond_length == pytest.approx(3.0 - 0.35)


def test_halogens_are_flattened_and_dispersion_is_scaled_where_it_is_asked_for():
    """In the ranges, dispersion of all elements alike and of exponentials alone; heights are those of the nuclei."""
    m = Measured(exponential_share=0.5, dispersion_scale=(0.2, 1.2), flattening=(0.5, 1.5))
    drawn = [random_conditions(rng(s), (3.0, 3.0), 0.0, m) for s in range(60)]
    assert all(0.5 <= c.flattening <= 1.5 for c in drawn)
    scales = [c.factors["c6"] for c in drawn if c.force.name == "exponential"]
    assert all(len(set(s.tolist())) == 1 and 0.2 <= s[0] <= 1.2 for s in scales)
    assert np.ptp([s[0] for s in scales]) > 0.5
    assert not any("c6" in c.factors for c in drawn if c.force.name == "lennard-jones")
    chloride = made([[0.0, 0, -0.3], [1.7, 0, 0]], [6, 17])
    assert chloride.bonds.tolist() == [[0, 1]]
    plain, grid = nominal_conditions(rng()), ((-2.0, -2.0), (24, 16), 0.25, 4)
    flat = simulate_sample(chloride, replace(plain, flattening=1.0, clearance=3.0), *grid)
    by_hand = replace(chloride, positions=force_centres(chloride, 1.0))
    assert flat.heights[-1] - plain.tip.bond_length == pytest.approx(3.0)
    moved_down = 3.0 - by_hand.positions[:, 2].max()  # the same heights above the lower centre
    np.testing.assert_array_equal(flat.data, simulate_sample(by_hand, replace(plain, clearance=moved_down), *grid).data)


def test_strain_keeps_area_and_heights_and_points_anywhere():
    """Along one direction 1 + e, across it 1 - e, e up to what is asked for; labels are strained as the image is."""
    lattice = made([[0.0, 0, 0], [3, 0, -0.4], [0, 3, -1]], [6, 6, 6])
    found = []
    for seed in range(200):
        p = strained(lattice, rng(seed), 0.08).positions
        np.testing.assert_array_equal(p[:, 2], lattice.positions[:, 2])
        sides = (p[1:, :2] - p[0, :2]) / 3
        values, vectors = np.linalg.eigh(sides)
        assert values.sum() == pytest.approx(2)
        found.append((values[1] - 1, np.arctan2(*vectors[:, 1]) % np.pi / np.pi))
    size, direction = np.array(found).T
    assert 0 <= size.min() < 0.008
    assert 0.072 < size.max() <= 0.08
    assert np.histogram(direction, 4, (0, 1))[0].min() > 25


def test_a_strained_sample_shows_what_its_labels_say(molecules, monkeypatch):
    """The molecule that is imaged is the one that is labelled, and its bonds are longer in one direction."""
    imaged = []

    def drawn(molecule, *rest):
        imaged.append(molecule)
        return simulate_sample(molecule, *rest)

    monkeypatch.setattr(samples, "simulate_sample", drawn)
    ring, spread = molecule_set([flat_ring()]), []
    wide = replace(CLEAN, windows=((44, 44),), tilt=0.0, measured=Measured(strain=0.2))
    for i in range(12):
        _, atoms = make_sample(ring, wide, i)
        apart = [np.linalg.norm(p[:, None] - p, axis=2) for p in (imaged[-1].positions[:, :2], atoms.positions[:, :2])]
        if len(apart[0]) == len(apart[1]):  # none lies beyond the image
            np.testing.assert_allclose(*apart, atol=1e-9)
            (i, j), p = atoms.bonds.T, atoms.positions
            lengths = np.linalg.norm(p[i] - p[j], axis=1)[(atoms.numbers[atoms.bonds] > 1).all(1)]
            spread.append(lengths.max() / lengths.min())
    assert len(spread) > 4
    assert 1.1 < max(spread) < 1.5


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"flattening": (-0.1, 1.0)}, "not negative"),
        ({"dispersion_scale": (-1.0, 1.0)}, "not negative"),
        ({"strain": -0.1}, "0 to 1"),
        ({"strain": 1.5}, "0 to 1"),
    ],
)
def test_what_flattening_dispersion_and_strain_cannot_be(wrong, why):
    with pytest.raises(ConfigError, match=why):
        Measured(**wrong)


def test_bridges_by_hand():
    """A triangle with a tail, a second piece, two bonds side by side in a square."""
    bonds = np.array([[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [5, 6], [7, 8], [8, 9], [9, 10], [10, 7]])
    assert bridges(11, bonds).tolist() == [False, False, False, True, True, True, False, False, False, False]
    assert bridges(3, np.zeros((0, 2), int)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_bridges_are_bonds_whose_loss_makes_a_piece_more(seed):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, g = 14, rng(seed)
    pairs = np.array([(i, j) for i in range(n) for j in range(i)])
    bonds = pairs[g.permutation(len(pairs))[:15]]

    def pieces(some):
        return connected_components(coo_array((np.ones(len(some)), some.T), shape=(n, n)), directed=False)[0]

    without = [pieces(np.delete(bonds, k, 0)) > pieces(bonds) for k in range(len(bonds))]
    assert bridges(n, bonds).tolist() == without


def test_groups_are_rings_and_substituents():
    """Biphenyl with a methoxy group: two rings, O, CH3; hydrogens go with their atom."""
    what = molecule_from_smiles("COc1ccc(cc1)-c1ccccc1")
    group = groups(what)
    assert sorted(np.bincount(group).tolist()) == [1, 4, 10, 11]
    for i, j in what.bonds:
        if 1 in what.numbers[[i, j]]:
            assert group[i] == group[j]
    assert groups(molecule_from_smiles("c1ccc2ccccc2c1")).max() == 0


def test_bending_moves_groups_up_and_down_as_wholes():
    what = molecule_from_smiles("c1ccccc1-c1ccccc1")
    group, apart = groups(what), []
    for seed in range(60):
        bent = with_bent_groups(what, rng(seed), 0.2)
        moved = bent.positions - what.positions
        assert np.abs(moved[:, :2]).max() == 0
        assert bent.positions[:, 2].max() == 0
        z = moved[:, 2] - moved[:, 2].mean()
        assert np.ptp(z) <= 0.6 + 1e-9
        apart.append(np.median(z[group == 0]) - np.median(z[group == 1]))
        if seed < 5:  # but for the bent end, a ring moves as one
            assert np.sum(np.abs(z[group == 0] - np.median(z[group == 0])) < 1e-9) >= 2
    assert 0.1 < np.std(apart) < 0.25


def test_an_image_whose_size_is_off_shows_its_labels_where_they_are_stated(molecules):
    """One atom under a stiff tip: the spot is where the label says, in the stated size."""
    one = molecule_set([made([[0.0, 0, 0]], [8], "atom")])
    off = Measured(scale=0.2, aspect=0.2)
    config = replace(CLEAN, measured=off, windows=((32, 28),), tilt=0.0, bend=0.0)
    seen, stretched = 0, []
    for i in range(120):
        scan, atoms = make_sample(one, config, i)
        plain, _ = make_sample(one, replace(config, measured=Measured()), i)
        assert scan.size == plain.size == (8.0, 7.0)
        if len(atoms) and (np.abs(atoms.positions[0, :2] - [4.0, 3.5]) < [1.8, 1.4]).all():
            closest = scan.data[..., -1]
            weight = ((closest - np.median(closest)) ** 6).astype(float)
            pixel = 0.25
            middle = [weight.sum(1 - a) @ (pixel * (np.arange(n) + 0.5)) / weight.sum() for a, n in ((0, 32), (1, 28))]
            np.testing.assert_allclose(middle, atoms.positions[0, :2], atol=0.1)
            seen += 1
        stretched.append(np.abs(scan.data - plain.data).max())
    assert seen > 3
    assert min(stretched) > 0


def test_drift_is_linear_and_ends_at_the_last_slice():
    x, y = np.meshgrid(np.arange(40), np.arange(36), indexing="ij")
    spot = np.exp(-((x - 20) ** 2 + (y - 18) ** 2) / 8.0)
    moved = linear_drift(np.stack([spot] * 5, -1), np.array([4.0, -2.0]))
    middle = np.array([[np.average(a, weights=moved[..., k]) for a in (x, y)] for k in range(5)])
    np.testing.assert_allclose(middle - [20, 18], [[k - 4, (4 - k) / 2] for k in range(5)], atol=1e-6)


def test_rounding_leaves_256_levels_and_moves_nothing_farther_than_half_of_one():
    stack = rng().normal(size=(40, 40, 3)).astype(np.float32)
    out = rounded(stack)
    assert set(np.unique(out)) <= set(range(256))
    back = stack.min((0, 1)) + np.ptp(stack, axis=(0, 1)) * out / 255
    assert (np.abs(back - stack).max((0, 1)) <= np.ptp(stack, axis=(0, 1)) / 255 * 0.501).all()


def test_a_sample_that_cannot_be_simulated_is_drawn_again(molecules, monkeypatch):
    """By a rule of its number: the same sample each time; a set of which none can be simulated says why."""
    config = replace(SMALL, buckling=0.0, measured=MEASURED)
    pushed = replace(config, halogenated_share=0.0)
    usual = [make_sample(molecules, pushed, i) for i in range(3)]
    calls, real = [], samples.simulate_sample

    def failing(*arguments):
        calls.append(1)
        if len(calls) % 2:
            raise MoleculeError("Atoms 0 and 1 (from 0) are 0.01 A apart.")
        return real(*arguments)

    monkeypatch.setattr(samples, "simulate_sample", failing)
    again = [[make_sample(molecules, pushed, i) for i in range(3)] for _ in range(2)]
    for one, two, was in zip(*again, usual, strict=True):
        assert np.array_equal(one.scan.data, two.scan.data)
        assert not np.array_equal(one.scan.data, was.scan.data)

    def never(*_):
        raise MoleculeError("no")

    monkeypatch.setattr(samples, "simulate_sample", never)
    with pytest.raises(MoleculeError, match="no"):
        make_sample(molecules, pushed, 0)


def test_all_conditions_give_finite_samples(molecules):
    config = replace(SMALL, measured=MEASURED, wider_oscillation=3, scan_drift=1.0)
    for i in range(24):
        scan, atoms = make_sample(molecules, config, i)
        assert np.isfinite(scan.data).all()
        assert scan.size == (6.0, 6.0)
        assert ((atoms.positions[:, :2] > 0) & (atoms.positions[:, :2] < 6)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"exponential_share": 1.2}, {"tip_charge": (0.1, 0.0)}, {"stiffness": (0.0, 1.0)}, {"drift": -1.0}),
        *({"clearance": (-1.0, 2.0)}, {"pauli_scale": (0.0, 1.0)}, {"step": (0.0, 0.1)}, {"group_bend": float("nan")}),
    ],
)
def test_conditions_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="measured"):
        Measured(**wrong)
