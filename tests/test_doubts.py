"""Stacks that are none, or not in order, are doubted; good ones are not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import afmol
from afmol.data.bending import lay_down
from afmol.data.spoiled import KINDS
from afmol.doubts import SENTENCES, doubted, image_doubts, kinds, size_doubt
from afmol.scale import sized
from afmol.simulation import TIPS, grid_around
from afmol.simulation.artefacts import background_tilt, slice_drift, white_noise
from afmol.structures import Molecule, Scan

SMILES = ("c1ccc2cc3ccccc3cc2c1", "Nc1ccc(Cl)cc1O", "O=C1C=CC(=O)C=C1F", "Brc1cc(Br)cc(Br)c1", "CC(C)(C)c1ccncc1")
SHAPE, SIZE = (64, 64, 10), (16.0, 16.0)


@cache
def stack(smiles: str) -> tuple[Scan, Molecule]:
    """With noise, a tilted background and drift."""
    rng = np.random.default_rng(len(smiles))
    molecule = lay_down(afmol.molecule_from_smiles(smiles), rng, 3.0)
    grid = grid_around(molecule, TIPS["co"], margin=3.0, pixel=0.2)
    scan = afmol.simulate(molecule, TIPS["co"], grid)
    data = background_tilt(slice_drift(scan.data, 0.2, rng), 0.1, rng)
    truth = replace(molecule, positions=molecule.positions - [*grid.origin, molecule.positions[:, 2].max()])
    return replace(scan, data=white_noise(data, 0.05, rng)), truth


def spoiled(scan: Scan, how: str) -> Scan:
    d = scan.data
    match how:
        case "reversed":
            d = d[..., ::-1]
        case "in no order":
            d = d[..., [5, 0, 8, 3, 9, 1, 6, 2, 7, 4]]
        case "exchanged":
            d = -d
        case "same image":
            d = d[..., [0, 1, 2, 3, 4, 5, 6, 6, 8, 9]]
    return Scan(d, scan.size)


@pytest.mark.parametrize("smiles", SMILES)
def test_good_stacks_are_not_doubted(smiles):
    scan, truth = stack(smiles)
    assert doubted(scan, truth).warnings == ()


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("reversed", "toward the first slice"),
        ("in no order", "do not follow one another"),
        ("exchanged", "look exchanged"),
        ("same image", "slices 7 and 8 are the same image"),
    ],
)
def test_spoiled_stacks_are_doubted_with_the_reason(smiles, how, says):
    assert any(says in doubt for doubt in image_doubts(spoiled(stack(smiles)[0], how)))


def lattice(rng: np.random.Generator) -> np.ndarray:
    """Hexagonal, 2.5 A, brighter from slice to slice and ever more pointed, as graphene's is."""
    x, y = np.meshgrid(*[(np.arange(64) + 0.5) / 4] * 2, indexing="ij")
    angles = np.pi / 3 * np.arange(3) + 0.2
    waves = sum(np.cos(2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / 2.5) for a in angles)
    slices = [(1 + k) * np.exp(0.1 * k * waves) for k in range(1, 11)]
    return np.stack(slices, -1) + 0.05 * rng.standard_normal(SHAPE)


@pytest.mark.parametrize("seed", range(3))
def test_no_molecule_at_all_is_doubted(seed):
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(SHAPE)
    smooth = gaussian_filter(white, (2, 2, 0))
    frozen = smooth[..., :1] * np.linspace(1, 2, 10) + 0.1 * white
    for data in (white, smooth, frozen, lattice(rng)):
        scan = Scan(data, SIZE)
        assert set(image_doubts(scan)) & {SENTENCES[kind] for kind in ("nothing", "lattice", "order")}, kinds(scan)


def test_every_kind_has_its_sentence():
    assert ("good", *SENTENCES) == KINDS


@pytest.mark.parametrize("smiles", SMILES)
def test_a_xe_tip_is_told_from_a_co_tip(smiles):
    molecule = lay_down(afmol.molecule_from_smiles(smiles), np.random.default_rng(len(smiles)), 3.0)
    likely = {}
    for tip in ("xe", "co", "co-quadrupole", "co-neutral"):
        scan = afmol.simulate(molecule, TIPS[tip], grid_around(molecule, TIPS[tip], margin=3.0, pixel=0.2))
        noisy = replace(scan, data=white_noise(scan.data, 0.03, np.random.default_rng(0)))
        likely[tip] = kinds(noisy)["tip"]
    assert likely.pop("xe") > max(0.3, 3 * max(likely.values()))


def test_scale_and_offset_change_nothing():
    scan, _ = stack(SMILES[0])
    other = replace(scan, data=1e3 * (scan.data.astype(float) + 7))
    assert kinds(other) == pytest.approx(kinds(scan), abs=1e-3)


def test_of_a_large_scan_the_part_with_contrast_is_judged():
    scan, _ = stack(SMILES[0])
    rng = np.random.default_rng(0)
    nx, ny, n = scan.data.shape
    wide = 1e-3 * np.ptp(scan.data) * rng.standard_normal((700, ny, n))
    wide[20 : 20 + nx] += scan.data
    there = Scan(wide, (700 * scan.pixel[0], scan.size[1]))
    assert image_doubts(there) == []
    assert image_doubts(replace(there, data=-there.data)) == [SENTENCES["negated"]]


@pytest.mark.parametrize(
    ("factor", "says"), [(1.0, []), (1.04, []), (1.3, ["30 % too long"]), (0.8, ["20 % too short"])]
)
def test_a_size_that_bonds_contradict_is_asked_about(factor, says):
    scan, truth = stack(SMILES[0])
    scaled = sized(replace(truth, positions=truth.positions * factor))
    doubts = size_doubt(replace(scan, size=(scan.size[0] * factor, scan.size[1] * factor)), scaled)
    assert [s in d for s, d in zip(says, doubts, strict=True)] == [True] * len(says)


def test_where_classes_are_unsure_bonds_say_less_of_the_size():
    scan, truth = stack(SMILES[0])
    sure = np.eye(5)[truth.classes]
    for factor, p, doubted_ in ((1.1, 1.0, True), (1.1, 0.8, False), (1.3, 0.8, True), (1.0, 0.5, False)):
        said = p * sure + (1 - p) * np.roll(sure, 1, axis=1)
        molecule = replace(truth, positions=truth.positions * factor, class_probabilities=said)
        assert bool(size_doubt(scan, sized(molecule))) == doubted_


def test_atoms_of_a_doubted_stack_are_less_sure():
    scan, truth = stack(SMILES[0])
    sure = replace(truth, confidence=np.ones(len(truth)), warnings=("before",))
    found = doubted(spoiled(scan, "reversed"), sure)
    assert found.warnings[0] == "before"
    assert len(found.warnings) > 1
    np.testing.assert_array_equal(found.confidence, 0.5)
    np.testing.assert_array_equal(doubted(scan, sure).confidence, sure.confidence)


def test_a_doubted_size_alone_leaves_atoms_as_sure():
    scan, truth = stack(SMILES[0])
    longer = replace(truth, positions=1.3 * truth.positions, confidence=np.ones(len(truth)))
    found = doubted(scan, sized(longer))
    assert "too long" in found.warnings[0]
    np.testing.assert_array_equal(found.confidence, 1.0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        *[("reversed", "first slice"), ("negated", "exchanged"), ("order", "follow one another")],
        *[("tip", "CO tip"), ("nothing", "noise"), ("lattice", "like a lattice")],
    ],
)
def test_the_likeliest_kind_is_said(kind, words, monkeypatch):
    monkeypatch.setattr("afmol.doubts.kinds", lambda scan: {k: 0.7 * (k == kind) + 0.3 * (k == "good") for k in KINDS})
    (doubt,) = image_doubts(stack(SMILES[0])[0])
    assert words in doubt
