"""Samples: how molecules lie, image and labels in one frame, what is drawn as often as stated."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afmol.data.bending import lay_down, rotation
from afmol.data.conditions import nominal_conditions, random_conditions, simulate_sample
from afmol.data.molecules import MoleculeSet, molecule_set
from afmol.data.samples import (
    HALOGENS,
    LABEL_DEPTH,
    DataConfig,
    add_artefacts,
    collate,
    cropped,
    draw_molecule,
    halogenated,
    labels,
    make_sample,
    mirrored,
    turned,
)
from afmol.elements import ELEMENTS, bonds_by_distance, element_index
from afmol.errors import ConfigError
from afmol.simulation import Tip
from afmol.structures import Molecule, Sample
from strategies import chain, flat_ring, hand, lamp, made, same

SMALL = DataConfig(shard_size=4, windows=((24, 24), (24, 16), (16, 24)), slices=5)
CLEAN = replace(SMALL, noise=0.0, line_noise=0.0, drift=0.0, background=0.0, cut_outs=0, compression=0.0)


ATOM = made([[0.0, 0, 0]], [8], "atom")


@pytest.fixture(scope="module")
def molecules() -> MoleculeSet:
    return molecule_set([flat_ring(), lamp(), hand(), chain(), flat_ring(5, 16)])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def conditions_of(kind: str, seed: int):
    return nominal_conditions(rng(seed)) if kind == "nominal" else random_conditions(rng(seed), (3.0, 3.6), 0.08)


def same_sample(a: Sample, b: Sample) -> bool:
    """Bit for bit."""
    arrays = [(s.scan.data, s.molecule.positions, s.molecule.numbers, s.molecule.bonds) for s in (a, b)]
    return all(map(np.array_equal, *arrays))


# Samples


def test_a_sample_is_a_function_of_the_configuration_and_its_number(molecules):
    def sample(i):
        return make_sample(molecules, SMALL, i)

    serial = [sample(i) for i in range(12)]
    backwards = [sample(i) for i in reversed(range(12))][::-1]
    with ThreadPoolExecutor(2) as pool:
        threads = list(pool.map(sample, range(12)))
    for a, b, c in zip(serial, backwards, threads, strict=True):
        assert same_sample(a, b)
        assert same_sample(a, c)
    assert not any(same_sample(serial[i], serial[j]) for i in range(12) for j in range(i))
    other = replace(SMALL, seed=1)
    assert not any(same_sample(serial[i], make_sample(molecules, other, i)) for i in range(4))


def test_samples_have_the_shape_of_their_batch_and_finite_values(molecules):
    config = replace(SMALL, windows=((24, 24), (24, 16), (16, 24), (20, 20)))
    shapes = []
    for i in range(40):
        scan, atoms = make_sample(molecules, config, i)
        assert scan.data.dtype == np.float32
        shapes.append(scan.data.shape)
        assert scan.pixel == (0.25, 0.25)
        assert (atoms.positions[:, :2] > 0).all()
        assert (atoms.positions[:, :2] < scan.size).all()
        assert (atoms.positions[:, 2] <= 0).all()
        assert (atoms.positions[:, 2] >= -LABEL_DEPTH).all()
        if len(atoms):
            assert atoms.positions[:, 2].max() == 0
    batches = [shapes[i : i + 4] for i in range(0, 40, 4)]
    assert all(len(set(batch)) == 1 for batch in batches)
    assert {batch[0] for batch in batches} == {(*window, 5) for window in config.windows}


def test_labels_of_samples_are_the_atoms_and_bonds_of_the_molecule(molecules):
    """Labels lie on a molecule of the set: distances between them are its distances (nothing bends: nominal only)."""
    config = replace(CLEAN, nominal_share=1.0, windows=((48, 48),))

    def distances(molecule: Molecule) -> set[float]:
        i, j = np.triu_indices(len(molecule), 1)
        return set(np.linalg.norm(molecule.positions[i] - molecule.positions[j], axis=1).round(5))

    seen = set()
    for i in range(12):
        _, atoms = make_sample(molecules, config, i)
        seen |= {m.name for m in molecules if len(atoms) > 1 and distances(atoms) <= distances(m)}
        assert len(atoms) < 2 or any(distances(atoms) <= distances(m) for m in molecules)
        expected = bonds_by_distance(atoms.positions, atoms.numbers)
        assert {*map(tuple, atoms.bonds)} == {*map(tuple, expected)}
    assert len(seen) > 1


def test_flat_molecules_are_drawn_as_often_as_stated(molecules):
    assert [bool(f < 1.6) for f in molecules.flatness] == [True, False, False, False, True]
    for share in (0.0, 0.5, 1.0):
        config, generator = DataConfig(flat_share=share), rng()
        flat = np.mean([draw_molecule(molecules, generator, config).name == "flat" for _ in range(2000)])
        assert flat == pytest.approx(share + (1 - share) * 0.4, abs=0.04)  # two of the five are flat
    none = molecules.where(molecules.flatness > 1.6)
    assert len({draw_molecule(none, generator, DataConfig(flat_share=1.0)).name for _ in range(50)}) == 3


# Images and labels


def window(conditions, what: Molecule, origin, shape=(24, 20), pixel=0.25) -> Sample:
    """Clean stack and labels of the same window."""
    scan = simulate_sample(what, conditions, origin, shape, pixel, 4)
    return Sample(scan, labels(what, np.array(origin), pixel * np.array(shape)))


@pytest.mark.parametrize(("nominal_share", "pixel"), [(0.0, 0.25), (1.0, 0.25), (0.5, 0.125), (0.5, 0.2)])
def test_atoms_of_samples_lie_where_their_image_is(nominal_share, pixel):
    """An atom alone, without charge: the image is round about it."""
    single = molecule_set([replace(ATOM, charges=np.zeros(1))])
    nx, ny = round(12 / pixel), round(10 / pixel)
    config = replace(CLEAN, windows=((nx, ny),), nominal_share=nominal_share, pixel=pixel)
    seen = 0
    for i in range(60):
        scan, atoms = make_sample(single, config, i)
        if len(atoms) == 0 or (np.minimum(atoms.positions[0, :2], [12, 10] - atoms.positions[0, :2]) < 3).any():
            continue
        seen += 1
        closest = scan.data[..., -1]
        weight = np.square(closest - np.median(closest)).astype(float)
        middle = [weight.sum(1 - a) @ (pixel * (np.arange(n) + 0.5)) / weight.sum() for a, n in ((0, nx), (1, ny))]
        np.testing.assert_allclose(middle, atoms.positions[0, :2], atol=0.05)
    assert seen > 5


def test_images_are_scaled_by_their_conditions():
    what = lay_down(lamp(), rng(), 5.0)
    plain = nominal_conditions(rng())
    ones = np.ones(len(ELEMENTS))

    def stack(**change):
        return simulate_sample(what, replace(plain, **change), (-3.0, -3.0), (16, 16), 0.375, 4).data

    neutral = simulate_sample(replace(what, charges=None), plain, (-3.0, -3.0), (16, 16), 0.375, 4).data
    np.testing.assert_allclose(stack(charge_scale=0.0), neutral, atol=1e-5 * np.ptp(neutral))
    one = element_index(np.array([53]))[0]
    for name in ("lj_radius", "lj_depth"):
        scale = ones.copy()
        scale[one] = 1.08
        assert np.abs(stack(factors={name: scale}) - stack()).max() > 0.01 * np.ptp(stack())
        scale = np.where(np.isin(np.arange(len(ELEMENTS)), element_index(what.numbers)), 1.0, 2.0)
        np.testing.assert_array_equal(stack(factors={name: scale}), stack())  # elements that are not there


# Laying down


@given(st.integers(0, 10_000), st.sampled_from(["lamp", "hand", "chain", "flat", "atom"]), st.floats(0, 30))
def test_laying_down_moves_the_molecule_as_a_whole(seed, name, tilt):
    what = {"lamp": lamp(), "hand": hand(), "chain": chain(seed=seed), "flat": flat_ring(), "atom": ATOM}[name]
    axis = rng(seed + 1).normal(size=3)
    turn = rotation(axis / np.linalg.norm(axis), rng(seed + 2).uniform(0, 6))
    what = replace(what, positions=what.positions @ turn.T + axis)
    before = what.positions.copy()
    down = lay_down(what, rng(seed), tilt)
    np.testing.assert_array_equal(what.positions, before)
    p = down.positions
    assert p[:, 2].max() == 0
    np.testing.assert_allclose(p[:, :2].mean(0), 0, atol=1e-9)
    distances = [np.linalg.norm(q[:, None] - q, axis=-1) for q in (p, before)]
    np.testing.assert_allclose(*distances, atol=1e-9)
    for field in ("numbers", "bonds", "charges", "name"):
        assert getattr(down, field) is getattr(what, field)
    if name in ("hand", "lamp"):  # neither is its own mirror image, with its elements, unless flat
        a, b, c, d = p[-4:] if name == "hand" else p[[0, 1, 2, -1]]
        before_a, before_b, before_c, before_d = before[-4:] if name == "hand" else before[[0, 1, 2, -1]]
        volume = np.linalg.det([b - a, c - a, d - a])
        expected = np.linalg.det([before_b - before_a, before_c - before_a, before_d - before_a])
        assert volume == pytest.approx(expected, abs=1e-9)
        assert abs(volume) > 0.5


def test_flat_molecules_end_flat_and_others_on_their_largest_plane():
    turn = rotation(np.array([0.6, 0.0, 0.8]), 1.1)
    for what in (flat_ring(), flat_ring(5, 16)):
        standing = replace(what, positions=what.positions @ turn.T + 4.0)
        np.testing.assert_allclose(lay_down(standing, rng(), 0.0).positions[:, 2], 0, atol=1e-9)
    what = replace(chain(), positions=chain().positions @ turn.T)
    spread = lay_down(what, rng(), 0.0).positions.std(0)
    centred = what.positions - what.positions.mean(0)
    assert spread[2] == pytest.approx(np.linalg.svd(centred)[1][2] / np.sqrt(len(what)))


def test_both_faces_and_all_directions_occur():
    down = [lay_down(lamp(), rng(s), 0.0).positions for s in range(600)]
    up = np.array([p[-1, 2] == 0 for p in down])
    assert 0.42 < up.mean() < 0.58
    direction = np.array([np.arctan2(*(p[0] - p[5])[1::-1]) for p in down])
    for face in (up, ~up):
        counts = np.histogram(direction[face], 6, (-np.pi, np.pi))[0]
        assert counts.min() > 20


@pytest.mark.parametrize("tilt", [2.0, 8.0])
def test_the_tilt_is_normal_and_points_anywhere(tilt):
    normals = []
    for s in range(1500):
        a, b, c = lay_down(flat_ring(), rng(s), tilt).positions[[0, 2, 4]]
        n = np.cross(b - a, c - a)
        normals.append(n / np.linalg.norm(n) * np.sign(n[2]))
    normals = np.array(normals)
    angle = np.rad2deg(np.arccos(np.clip(normals[:, 2], -1, 1)))
    assert np.sqrt(np.mean(angle**2)) == pytest.approx(tilt, rel=0.08)
    counts = np.histogram(np.arctan2(normals[:, 1], normals[:, 0]), 8, (-np.pi, np.pi))[0]
    assert counts.min() > 120


def test_bending_changes_heights_alone_and_by_the_stated_amount():
    line = made(np.column_stack([np.linspace(-6, 6, 5), np.zeros(5), np.zeros(5)]), [6] * 5)
    heights = []
    for s in range(800):
        straight, bent = (lay_down(line, rng(s), 0.0, bend) for bend in (0.0, 0.3))
        np.testing.assert_allclose(bent.positions[:, :2], straight.positions[:, :2], atol=1e-12)
        z = bent.positions[:, 2]
        np.testing.assert_allclose(z, z[::-1], atol=1e-9)  # quadratic about the centre
        heights.append([z[0] - z[2], z[1] - z[2]])
    ends, halfway = np.array(heights).T
    np.testing.assert_allclose(ends, 4 * halfway, atol=1e-9)
    # a cos^2 + b cos sin + c sin^2 with three unit normals: mean square 3/8 + 1/8 + 3/8
    assert ends.std() == pytest.approx(0.3 * np.sqrt(7 / 8), rel=0.1)


@given(st.integers(0, 1000), st.floats(-7, 7))
def test_rotations_are_proper_and_turn_by_their_angle(seed, angle):
    axis = rng(seed).normal(size=3)
    axis /= np.linalg.norm(axis)
    turn = rotation(axis, angle)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(turn @ axis, axis, atol=1e-12)
    assert np.trace(turn) == pytest.approx(1 + 2 * np.cos(angle), abs=1e-12)
    np.testing.assert_allclose(rotation(np.array([0.0, 0, 1]), np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


# Conditions, as CONVENTIONS.md states them


def test_nominal_conditions_are_those_of_the_original_data_set():
    drawn = [nominal_conditions(rng(seed)) for seed in range(200)]
    for c in drawn:
        assert (c.tip, c.step, c.charge_scale, c.factors, c.clearance) == (Tip(), 0.1, 1.0, {}, None)
        assert c.force.name == "lennard-jones"
    assert min(c.distance for c in drawn) == pytest.approx(2.72, abs=0.02)
    assert max(c.distance for c in drawn) == pytest.approx(3.22, abs=0.02)


def test_random_conditions_fill_their_ranges_and_stay_within():
    drawn = [random_conditions(rng(s), (2.75, 3.6), 0.2) for s in range(500)]
    for values, low, high in (
        ([c.distance for c in drawn], 2.75, 3.6),
        ([c.step for c in drawn], 0.06, 0.14),
        ([c.charge_scale for c in drawn], 0, 1.2),
        ([np.log(c.tip.stiffness) for c in drawn], np.log(0.2), 0),
        (np.array([c.factors["lj_radius"] for c in drawn]).ravel(), 0.8, 1.2),
        (np.log([c.factors["lj_depth"] for c in drawn]).ravel(), -np.log(2), np.log(2)),
    ):
        share = (np.array(values) - low) / (high - low)
        assert -1e-9 <= share.min() < share.max() <= 1 + 1e-9
        assert np.histogram(share, 5, (0, 1))[0].min() > 0.13 * share.size
    for c in drawn:
        assert c.tip.amplitude / c.tip.steps == pytest.approx(c.step)  # force heights of the slices coincide
        assert 0.4 - c.step / 2 <= c.tip.amplitude <= 1.4 + c.step / 2
        assert c.tip.offset == (0, 0)  # it would shift the image against its labels
        assert [f.shape for f in c.factors.values()] == [(len(ELEMENTS),)] * 2


# Labels


def test_labels_are_cut_at_the_window_and_in_depth():
    what = made(
        [[0.5, 0.5, 0.0], [-0.1, 1, 0], [3.9, 1, -1.0], [4.1, 1, -1], [2, 2.9, -1.79], [2, 3.1, 0], [2, 1, -1.81]],
        [6, 7, 8, 9, 16, 17, 35],
    )
    atoms = labels(what, np.array([0.0, 0.0]), np.array([4.0, 3.0]))
    np.testing.assert_array_equal(atoms.numbers, [6, 8, 16])
    np.testing.assert_allclose(atoms.positions, [[0.5, 0.5, 0], [3.9, 1, -1], [2, 2.9, -1.79]])


def test_the_depth_counts_from_the_topmost_atom_in_the_window():
    what = made([[1, 1, -1.0], [2, 1, -2.7], [9, 9, 0.0], [1, 2, -2.9]], [6, 7, 8, 9])
    atoms = labels(what, np.array([0.5, 0.25]), np.array([4.0, 4.0]))
    np.testing.assert_array_equal(atoms.numbers, [6, 7])
    np.testing.assert_allclose(atoms.positions, [[0.5, 0.75, 0], [1.5, 0.75, -1.7]])


@given(st.integers(0, 5000), st.floats(-4, 1), st.floats(-3, 1))
def test_bonds_of_labels_join_the_same_atoms_as_before(seed, x, y):
    what = lay_down(chain(12, seed), rng(seed), 30.0)
    before = what.positions.copy()
    origin, size = np.array([x, y]), np.array([5.0, 3.0])
    atoms = labels(what, origin, size)
    np.testing.assert_array_equal(what.positions, before)
    if len(atoms) == 0:
        assert not ((before[:, :2] > origin) & (before[:, :2] < origin + size)).all(1).any()
        assert atoms.bonds.shape == (0, 2)
        return
    # each label is one atom of the molecule, moved
    shift = [x, y, before[((before[:, :2] > origin) & (before[:, :2] < origin + size)).all(1), 2].max()]
    at = np.linalg.norm(atoms.positions[:, None] + shift - before, axis=-1)
    np.testing.assert_allclose(at.min(1), 0, atol=1e-9)
    source = at.argmin(1)
    np.testing.assert_array_equal(atoms.numbers, what.numbers[source])
    kept = {(int(i), int(j)) for i, j in what.bonds if i in source and j in source}
    assert {(int(i), int(j)) for i, j in source[atoms.bonds]} == kept


def test_an_empty_window_has_no_labels():
    atoms = labels(lamp(), np.array([50.0, 50.0]), np.array([4.0, 4.0]))
    assert len(atoms) == 0
    assert atoms.positions.shape == (0, 3)


# Artefacts and batches


RARE = {"pink_noise": 0.03, "scan_drift": 1.0, "blur": 1.0, "height_error": 0.2, "wider_oscillation": 2}


@pytest.mark.parametrize("further", [{}, RARE])
def test_artefacts_are_seeded_and_keep_shape_and_type(further):
    config, stack = DataConfig(**further), rng().random((24, 20, 6)).astype(np.float32)
    before = stack.copy()
    for s in range(40):
        out = add_artefacts(stack, rng(s), config)
        assert out.shape == stack.shape
        assert out.dtype == np.float32
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(out, add_artefacts(stack, rng(s), config))
    np.testing.assert_array_equal(stack, before)


@pytest.mark.parametrize("name", RARE)
def test_an_artefact_that_is_off_by_default_can_be_switched_on(name):
    stack = rng().random((24, 20, 6)).astype(np.float32)
    size = [
        np.abs(add_artefacts(stack, rng(s), replace(CLEAN, **{name: RARE[name]})) - stack).mean() for s in range(30)
    ]
    assert np.median(size) > 0.002
    assert max(size) < 0.5


def test_without_artefacts_a_stack_is_only_thinned_out():
    stack = rng().random((24, 20, 6)).astype(np.float32)
    kept = [np.allclose(add_artefacts(stack, rng(s), CLEAN), stack, atol=1e-6) for s in range(100)]
    assert 70 < sum(kept) < 92  # `fewer_slices`, one in five


def test_a_share_of_stacks_has_white_noise_alone():
    stack = rng().random((24, 20, 6)).astype(np.float32)
    dirty = replace(DataConfig(**RARE), noise=0.0)
    untouched = {
        share: sum(
            np.array_equal(add_artefacts(stack, rng(s), replace(dirty, clean_share=share)), stack) for s in range(200)
        )
        for share in (0.0, 0.4, 1.0)
    }
    assert untouched[0.0] == 0
    assert 60 < untouched[0.4] < 100
    assert untouched[1.0] == 200
    noisy = add_artefacts(stack, rng(), replace(dirty, clean_share=1.0, noise=0.05)) - stack
    width = noisy.std((0, 1)) / np.ptp(stack, axis=(0, 1))  # of each slice
    np.testing.assert_allclose(width, width[0], rtol=0.15)
    assert 0 < width[0] < 0.2


# --- image and labels move together: the moved sample is that of the moved molecule, simulated

WINDOW, PIXEL = (40, 28), 0.25
ORIGIN, SIZE = (-4.6, -3.1), (10.0, 7.0)


@pytest.fixture(params=["nominal", "random"])
def scene_of(request):
    """What makes the ideal image of a molecule as it lies, and its labels."""
    conditions = replace(conditions_of(request.param, 0), distance=3.1)

    def scene(molecule: Molecule, origin=ORIGIN, shape=WINDOW) -> Sample:
        return window(conditions, molecule, origin, shape, PIXEL)

    return scene


def lying() -> Molecule:
    """An asymmetric molecule, so large that some of its atoms lie outside the window."""
    return lay_down(chain(14, 3), rng(5), 8.0, 0.4)


def same_image(one: Sample, other: Sample) -> None:
    assert one.scan.data.shape == other.scan.data.shape
    assert one.scan.size == pytest.approx(other.scan.size)
    assert np.abs(one.scan.data - other.scan.data).max() < 2e-3 * np.ptp(other.scan.data)


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_a_turned_sample_is_that_of_the_turned_molecule(turns, scene_of):
    molecule, (x, y), (lx, ly) = lying(), ORIGIN, SIZE
    turn = np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), turns)  # on rows
    p = molecule.positions.copy()
    p[:, :2] = p[:, :2] @ turn
    corner = (np.array([[x, y], [x + lx, y + ly]]) @ turn).min(0)
    shape = WINDOW[::-1] if turns % 2 else WINDOW
    expected = scene_of(replace(molecule, positions=p), (corner[0], corner[1]), shape)
    assert 3 < len(expected.molecule) < len(molecule)
    found = turned(scene_of(molecule), turns)
    same_image(found, expected)
    same(found.molecule, expected.molecule)


def test_a_mirrored_sample_is_that_of_the_mirrored_molecule(scene_of):
    molecule, (x, y) = lying(), ORIGIN
    expected = scene_of(replace(molecule, positions=molecule.positions * [-1, 1, 1]), (-x - SIZE[0], y))
    found = mirrored(scene_of(molecule))
    same_image(found, expected)
    same(found.molecule, expected.molecule)


@pytest.mark.parametrize(("start", "shape"), [((0, 0), (40, 28)), ((6, 3), (32, 24)), ((8, 4), (24, 20))])
def test_a_cropped_sample_is_that_of_the_shifted_window(start, shape, scene_of):
    molecule, (x, y) = lying(), ORIGIN
    found = cropped(scene_of(molecule), start, shape)
    expected = scene_of(molecule, (x + start[0] * PIXEL, y + start[1] * PIXEL), shape)
    same_image(found, expected)
    # the labels of what was labelled before: no others come in
    rows = [
        {tuple(row) for row in np.column_stack([m.positions, m.numbers]).round(6)}
        for m in (found.molecule, expected.molecule)
    ]
    assert rows[0]
    assert rows[0] <= rows[1]


def test_molecules_are_drawn_by_their_weights(molecules):
    weighted = replace(molecules, weight=np.array([1, 1e-6, 5, 1e-6, 2], np.float32))
    config = replace(SMALL, flat_share=0.0)
    drawn = [draw_molecule(weighted, rng(i), config).numbers for i in range(800)]
    counts = np.array([sum(np.array_equal(n, molecule.numbers) for n in drawn) for molecule in molecules])
    np.testing.assert_allclose(counts / 800, [1 / 8, 0, 5 / 8, 0, 2 / 8], atol=0.05)


def test_batches_are_packed(molecules):
    samples = [make_sample(molecules, SMALL, i) for i in range(4)]
    samples.insert(2, Sample(samples[0].scan, labels(lamp(), np.array([50.0, 50.0]), np.array([4.0, 4.0]))))
    samples[1] = samples[1]._replace(molecule=replace(samples[1].molecule, stretch=1.1))
    batch = collate(samples)
    assert batch.stretch.tolist() == pytest.approx([0, np.log(1.1), np.nan, 0, 0], abs=1e-6, nan_ok=True)
    nx, ny, nz = samples[0].scan.data.shape
    assert batch.images.shape == (5, nz, nx, ny)
    assert batch.images.dtype == batch.positions.dtype == torch.float32
    assert batch.elements.dtype == batch.molecule.dtype == batch.bonds.dtype == torch.int64
    assert (batch.molecule == 2).sum() == 0
    used = 0
    for b, (scan, atoms) in enumerate(samples):
        for k in range(nz):
            np.testing.assert_array_equal(batch.images[b, k].numpy(), scan.data[..., k])
        own = (batch.molecule == b).numpy()
        np.testing.assert_allclose(batch.positions[own].numpy(), atoms.positions, atol=1e-6)
        np.testing.assert_array_equal(batch.elements[own].numpy(), element_index(atoms.numbers))
        first = np.flatnonzero(own)[0] if own.any() else 0
        bonds = batch.bonds.numpy()
        bonds = bonds[own[bonds].all(1)]
        np.testing.assert_array_equal(bonds - first, atoms.bonds)
        used += len(bonds)
    assert used == len(batch.bonds) > 0  # no bond between two molecules


def test_buckling_moves_atoms_up_and_down_alone_and_by_the_stated_amount():
    before, moved = chain(40), []
    for seed in range(60):
        plain, buckled = (lay_down(before, np.random.default_rng(seed), 0.0, 0.0, b).positions for b in (0.0, 0.2))
        np.testing.assert_array_equal(buckled[:, :2], plain[:, :2])
        assert buckled[:, 2].max() == 0
        moved.append(np.std((buckled - plain)[:, 2]))
    assert np.mean(moved) == pytest.approx(0.2, rel=0.05)


@given(st.integers(0, 2**32 - 1))
def test_halogens_take_the_place_of_hydrogens_on_carbon(seed):
    before = flat_ring()
    after = halogenated(before, np.random.default_rng(seed))
    new = np.flatnonzero(after.numbers != before.numbers)
    assert 1 <= len(new) <= 3
    assert (before.numbers[new] == 1).all()
    assert {int(z) for z in after.numbers[new]} <= set(HALOGENS)
    np.testing.assert_array_equal(np.delete(after.positions, new, 0), np.delete(before.positions, new, 0))
    for k in new:
        (carbon,) = after.bonds[(after.bonds == k).any(1)].sum(1) - k
        bond = after.positions[k] - after.positions[carbon]
        assert np.linalg.norm(bond) == pytest.approx(HALOGENS[int(after.numbers[k])])
        assert bond @ (before.positions[k] - before.positions[carbon]) > 0
    assert after.charges is not None
    assert before.charges is not None
    assert after.charges.sum() == pytest.approx(before.charges.sum())
    # the distance table still finds the bonds that the molecule has
    assert {tuple(b) for b in bonds_by_distance(after.positions, after.numbers)} == {tuple(b) for b in before.bonds}


def test_molecules_without_hydrogen_on_carbon_stay_as_they_are():
    water = made([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1])
    assert halogenated(water, np.random.default_rng(0)).numbers.tolist() == [8, 1, 1]


def test_the_share_of_halogenated_samples(molecules):
    def halogens(share: float) -> float:
        config = replace(CLEAN, halogenated_share=share)
        found = [make_sample(molecules, config, i).molecule.numbers for i in range(60)]
        return float(np.mean([np.isin(z, list(HALOGENS)).any() for z in found]))

    assert halogens(0.0) + 0.3 < halogens(1.0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("shard_size", 0, "1 or more"),
        ("slices", 0, "1 or more"),
        ("windows", (), "at least one window"),
        ("windows", ((0, 8),), "1 or more"),
        ("seed", -1, r"data\.seed must not be negative"),
        ("noise", float("nan"), r"data\.noise must not be"),
        ("height_error", float("inf"), r"data\.height_error must not be"),
        ("flat_share", 5.0, "is a share"),
        ("compression", 2.0, "is a share"),
        ("pixel", 1e-9, "0.01 to 1 A"),
        ("blur", 1e9, "at most 100"),
        ("distance", (3.0, 2.0), "ascend"),
    ],
)
def test_configurations_that_cannot_be(name, value, words):
    with pytest.raises(ConfigError, match=words):
        DataConfig(**{name: value})
