"""Any stack in, the molecule in the stack's own frame out."""

import json
import os
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from afmol import molecule_from_smiles
from afmol.checkpoint import save_model
from afmol.data.bending import lay_down
from afmol.data.chemistry import graph_from_geometry
from afmol.doubts import at_true_size
from afmol.elements import CATEGORIES, ELEMENTS, element_index
from afmol.errors import AfmolError, ConfigError
from afmol.files import read_molecule, write_scan
from afmol.model import OnePass, OnePassConfig
from afmol.naming import Namer
from afmol.prediction import DEPTH_ERROR, _surest_size, asked_for, predict, predict_many
from afmol.results import predict_files, write_prediction
from afmol.scale import sized
from afmol.simulation import TIPS, grid_around, simulate
from afmol.structures import Molecule, Scan
from afmol.tiling import NOTHING

CONFIG = OnePassConfig(channels=(16, 24, 32), blocks=1, width=16, rounds=1)


def blob(size, shape, centre, slices=5):
    x = (np.arange(shape[0]) + 0.5) * size[0] / shape[0]
    y = (np.arange(shape[1]) + 0.5) * size[1] / shape[1]
    spot = np.exp(-((x[:, None] - centre[0]) ** 2 + (y[None] - centre[1]) ** 2) / 2)
    return Scan(np.stack([spot * (k + 1) for k in range(slices)], axis=-1).astype(np.float32), size, None, "blob")


def test_nothing_found_is_a_valid_result(tmp_path):
    """A network that has learned nothing finds nothing; all four files are written all the same."""
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    molecule = predict(scan, OnePass(CONFIG).eval())
    assert len(molecule) == 0
    paths = write_prediction(scan, molecule, tmp_path / "out", "empty", "tiny", 0.8)
    assert all(p.stat().st_size > 0 for p in paths)
    record = json.loads(paths[0].read_text())
    assert record["atoms"] == []
    assert record["bonds"] == []


def test_written_files_agree(tmp_path):
    rng = np.random.default_rng(3)
    molecule = Molecule(
        np.array([[4.0, 4.0, 0.0], [5.2, 4.0, -0.1], [6.0, 5.0, -0.2]]),
        np.array([6, 8, 1]),
        np.array([[0, 1], [1, 2]]),
        None,
        rng.dirichlet(np.ones(5), 3),
        np.array([0.9, 0.8, 0.7]),
        np.array([0.95, 0.2]),
        "made up",
        element_probabilities=np.eye(11)[[1, 3, 0]] * 0.7
        + np.eye(11)[[5, 7, 0]] * 0.295
        + np.eye(11)[[2, 2, 2]] * 0.005,
        warnings=("it is made up.",),
    )
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    json_path, xyz_path, sdf_path, _ = write_prediction(scan, molecule, tmp_path, "m", "tiny", 0.8)
    record = json.loads(json_path.read_text())
    assert record["format"] == "afmol-prediction/1"
    sizes = {"size": [10.0, 10.0], "stated_size": [10.0, 10.0]}
    assert record["scan"] == {"source": "blob", "shape": [80, 80, 5]} | sizes
    assert record["model"] == {"name": "tiny", "depth": 0.8}
    assert [a["element"] for a in record["atoms"]] == ["C", "O", "H"]
    assert [a["class"] for a in record["atoms"]] == [1, 3, 0]
    assert [b["probability"] for b in record["bonds"]] == [0.95, 0.2]
    likely = [["C", 0.7], ["Si", 0.295]], [["O", 0.7], ["S", 0.295]], [["H", 0.995]]
    assert [a["elements"] for a in record["atoms"]] == list(likely), "the rest is below 1 %"
    assert record["warnings"] == ["it is made up."]
    sdf = read_molecule(sdf_path)
    assert np.allclose(sdf.positions, molecule.positions, atol=1e-3)
    assert sdf.bonds.tolist() == [[0, 1]], "only bonds that are more probable than not"
    assert read_molecule(xyz_path).symbols == ["C", "O", "H"]


ANTHRACENE = lay_down(molecule_from_smiles("c1ccc2cc3ccccc3cc2c1"), np.random.default_rng(0), tilt=0.0)


class Believer:
    """A network that finds anthracene, in part of the size that it is stated to have: it knows the image is 60 A."""

    class config:
        pixel, slices, widest_step, depth = 0.25, 3, 0.14, 0.8

    def __init__(self, part, says):
        self.part, self.says, self.readings = part, says, 0

    def parameters(self):
        yield torch.zeros(1)

    def forward(self, batch, generator):
        raise AssertionError

    def predict(self, images, threshold=0.5, depth=None):
        self.readings += 1
        stated = images.shape[2] * self.config.pixel / 60
        what, n = ANTHRACENE, len(ANTHRACENE)
        p = what.positions * [stated**self.part, stated**self.part, 0] + [30 * stated, 30 * stated, 0]
        sure = {"class_probabilities": np.eye(5)[what.classes], "confidence": np.ones(n)}
        sure["bond_probabilities"] = np.ones(len(what.bonds))
        elements = np.eye(len(ELEMENTS))[element_index(what.numbers)]
        stretch = 1.001 * stated**self.part if self.says else None
        return [replace(what, positions=p, charges=None, element_probabilities=elements, stretch=stretch, **sure)]


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize(("stated", "part", "readings"), [(1.0, 0.6, 1), (1.01, 1.0, 1), (0.94, 0.5, 4), (1.2, 0.9, 4)])
def test_the_size_is_the_one_at_which_bonds_are_what_they_are(stated, part, readings, says):
    """However much of the stated size the network believes; anthracene's bonds are within 0.4 % of the table's."""
    scan = blob((60.0 * stated, 60.0 * stated), (240, 240), (30 * stated, 30 * stated))
    network = Believer(part, says)
    found = predict(scan, network)
    assert network.readings <= readings
    ratio = found.stretch
    if network.readings > 1:
        assert ratio == pytest.approx(stated, rel=0.008)
        width = np.ptp(ANTHRACENE.positions[:, 0])
        assert np.ptp(found.positions[:, 0]) == pytest.approx(stated * width, rel=0.008)
    else:
        assert abs(stated - 1) < 0.02
    assert any("bonds are" in warning for warning in found.warnings) == (abs(stated - 1) > 0.05)


@pytest.mark.parametrize("stated", [1.0, 0.8])
def test_bonds_of_what_is_found_have_their_lengths(stated, monkeypatch):
    """In the frame of the stated size, if that is right; if it is not, at the size that they speak for."""
    network, believer = OnePass(replace(CONFIG, slices=3)), Believer(0.5, says=True)
    away = np.random.default_rng(0).normal(0, 0.06, (len(ANTHRACENE), 3)) * [1, 1, 0]

    def seen(*asked):
        molecule = believer.predict(*asked)[0]
        return [replace(molecule, positions=molecule.positions + away)]

    monkeypatch.setattr(network, "predict", seen)
    scan = blob((60.0 * stated, 60.0 * stated), (240, 240), (30 * stated, 30 * stated))
    i, j = ANTHRACENE.bonds.T

    def wrong(positions):
        lengths = np.linalg.norm(positions[i] - positions[j], axis=1)
        return np.abs(
            np.log(lengths / np.linalg.norm(ANTHRACENE.positions[i] - ANTHRACENE.positions[j], axis=1))
        ).mean()

    found, raw = predict(scan, network), predict(scan, network, 0.4)
    assert found.warnings == raw.warnings
    assert found.stretch == raw.stretch
    assert any("bonds are" in warning for warning in found.warnings) == (stated < 1)
    assert found.positions.mean(0) == pytest.approx(raw.positions.mean(0), abs=0.02)
    true = found.stretch if stated < 1 else 1.0
    assert wrong(found.positions / [true, true, 1]) < 0.5 * wrong(raw.positions / [true, true, 1])
    at_once = predict_many([scan], network)[0]
    if stated == 1:
        assert at_once.positions == pytest.approx(found.positions)


@pytest.mark.parametrize("stated", [1.0, 0.9])
def test_files_are_of_the_size_that_bonds_speak_for(stated, tmp_path):
    true = molecule_from_smiles("c1ccc2cc3ccccc3cc2c1")
    positions = true.positions * [stated, stated, 1.0] - [*true.positions[:, :2].min(0) - 2, true.positions[:, 2].max()]
    size = (16.0 * stated, 12.0 * stated)
    found = sized(replace(true, positions=positions))
    write_prediction(blob(size, (32, 24), (4, 4)), found, tmp_path, "a", "tiny", 0.8)
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["scan"]["stated_size"] == pytest.approx(size)
    assert record["scan"]["size"] == pytest.approx((16, 12), rel=0.015)
    of_files = [np.array([atom["position"] for atom in record["atoms"]]), read_molecule(tmp_path / "a.xyz").positions]
    for found in of_files:
        i, j = true.bonds.T
        lengths = np.linalg.norm(true.positions[i] - true.positions[j], axis=1)
        assert np.linalg.norm(found[i] - found[j], axis=1) == pytest.approx(lengths, rel=0.03)


def test_molecules_are_told_apart_at_their_true_size(tmp_path, weights, monkeypatch):
    """A hydrogen 2.2 A beside anthracene, 1.8 A as the size is stated: two molecules, the first with its name."""
    stated, true = 0.8, ANTHRACENE
    beside = true.positions[true.positions[:, 0].argmax()] + [2.2, 0.0, 0.0]
    both = Molecule(np.vstack([true.positions, beside]), np.append(true.numbers, 1), true.bonds)
    both = replace(both, positions=both.positions * [stated, stated, 1], stretch=stated)
    assert len(both.parts()) == 1
    monkeypatch.setattr("afmol.results.predict", lambda *asked, **how: both)
    write_scan(blob((16.0 * stated, 12.0 * stated), (32, 24), (4, 4)), tmp_path / "a.npz")
    ((_, found),) = predict_files([str(tmp_path / "a.npz")], tmp_path, str(weights))
    assert isinstance(found, Molecule)
    record = json.loads((tmp_path / "a.json").read_text())
    assert [(len(m["atoms"]), m["smiles"]) for m in record["molecules"]] == [(24, "c1ccc2cc3ccccc3cc2c1"), (1, None)]
    assert record["scan"]["size"] == pytest.approx((16, 12))
    assert record["scan"]["stated_size"] == pytest.approx((16 * stated, 12 * stated))


def test_each_molecule_is_an_entry(tmp_path):
    """Two pyridines 9 A apart, their atoms mixed, one of them without a hydrogen."""
    pyridine = molecule_from_smiles("c1ccncc1")
    n = len(pyridine)
    p = pyridine.positions + np.array([5.0, 5.0, 0.0])
    mixed = np.random.default_rng(0).permutation(2 * n)
    two = Molecule(
        np.concatenate([p, p + np.array([9.0, 0, 0])]),
        np.tile(pyridine.numbers, 2),
        np.concatenate([pyridine.bonds, pyridine.bonds + n]),
    ).taken(mixed[mixed != 2 * n - 1])
    parts = two.parts()
    assert [len(part) for part in parts] == [n, n - 1]
    with Namer() as namer:
        names = tuple(namer.smiles(two.taken(part)) for part in parts)
    assert names == ("c1ccncc1", None), "what was not seen whole has no name"
    scan = blob((20.0, 10.0), (160, 80), (5, 5))
    json_path, _, sdf_path, _ = write_prediction(scan, replace(two, smiles=names), tmp_path, "m", "tiny", 0.8)
    record = json.loads(json_path.read_text())
    assert [m["smiles"] for m in record["molecules"]] == ["c1ccncc1", None]
    assert sorted(k for m in record["molecules"] for k in m["atoms"]) == list(range(2 * n - 1))
    entries = sdf_path.read_text().split("$$$$\n")
    assert len(entries) == 3
    assert not entries[2]
    assert np.allclose(read_molecule(sdf_path).positions, two.positions[parts[0]], atol=1e-3)


@given(probabilities=hnp.arrays(float, (4, 5), elements=st.floats(0.01, 1)))
def test_readings_are_the_likeliest_of_all(probabilities):
    probabilities /= probabilities.sum(1, keepdims=True)
    answer = probabilities.argmax(1)
    molecule = Molecule(
        np.arange(12.0).reshape(4, 3),
        np.array([1, 6, 7, 8, 9])[answer],
        np.zeros((0, 2), int),
        class_probabilities=probabilities,
    )
    every = sorted((np.prod(probabilities[range(4), c]) for c in product(range(5), repeat=4)), reverse=True)[:3]
    found = molecule.readings()
    assert found[0][0] == {}
    assert [p for _, p in found] == pytest.approx([p for p in every if p > 0.01 * every[0]][: len(found)])
    assert len(found) == 3 or every[len(found)] <= 0.0101 * every[0]
    for changes, p in found:
        classes = answer.copy()
        for i, symbol in changes.items():
            classes[i] = {"H": 0, "C": 1, "N": 2, "O": 3, "F": 4}[symbol]
        assert np.prod(probabilities[range(4), classes]) == pytest.approx(p)


def test_a_reading_names_the_likeliest_element_of_its_class():
    elements = np.full((2, len(ELEMENTS)), 1e-6)
    symbols = [e.symbol for e in ELEMENTS]
    elements[0, [symbols.index(s) for s in ("C", "Cl", "F")]] = 0.6, 0.3, 0.1
    elements[1, symbols.index("O")] = 1.0
    classes = np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    atoms = np.array([[0.0, 0, 0], [1.4, 0, 0]]), np.array([6, 8]), np.array([[0, 1]])
    found = Molecule(*atoms, class_probabilities=classes, element_probabilities=elements).readings()
    assert [changes for changes, _ in found] == [{}, {0: "Cl"}]
    assert [p for _, p in found] == pytest.approx([0.6, 0.4], abs=1e-4)
    assert Molecule(*atoms).readings() == [({}, 1.0)]


def test_a_missed_bond_does_not_cut_a_molecule():
    pyridine = molecule_from_smiles("c1ccncc1")
    assert [len(part) for part in replace(pyridine, bonds=pyridine.bonds[:0]).parts()] == [len(pyridine)]
    assert Molecule(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int)).parts() == []


@pytest.mark.parametrize("smiles", ["C[N+](=O)[O-]", "N#Cc1ccccc1", "O=C1OC(=O)c2ccccc21"])
def test_what_is_whole_has_a_name(smiles):
    with Namer() as namer:
        assert namer.smiles(molecule_from_smiles(smiles)) == smiles


def test_what_no_chemist_believes_has_none():
    """What RDKit finds where hydrogens are missing: a triple bond in a ring, charges on carbon."""
    benzene, methanol = molecule_from_smiles("c1ccccc1"), molecule_from_smiles("CO")
    first, second = benzene.bonds[(benzene.numbers[benzene.bonds] == 6).all(1)][0]
    beside = benzene.bonds[
        np.isin(benzene.bonds, [first, second]).any(1) & (benzene.numbers[benzene.bonds] == 1).any(1)
    ]
    gone = beside[benzene.numbers[beside] == 1]
    assert len(gone) == 2
    with Namer() as namer:
        assert namer.smiles(benzene) == "c1ccccc1"
        for part in (benzene.taken(np.setdiff1d(np.arange(len(benzene)), gone)), methanol.taken(np.array([0, 1]))):
            assert graph_from_geometry(part, bonded=True) is not None
            assert namer.smiles(part) is None


@pytest.mark.parametrize(
    ("smiles", "named"), [("O=[N+]([O-])c1ccccc1", True), ("[O-][n+]1ccccc1", True), ("[O-]c1ccc[nH+]c1", False)]
)
def test_charges_stand_side_by_side_or_speak_of_a_wrong_atom(smiles, named):
    molecule = molecule_from_smiles(smiles)
    with Namer() as namer:
        assert (namer.smiles(molecule) is not None) == named


def test_naming_that_takes_too_long_is_ended():
    pyridine = molecule_from_smiles("c1ccncc1")
    with Namer(seconds=0.01) as namer:  # less than it takes to start
        assert namer.smiles(pyridine) is None
        namer.seconds = 60.0
        assert namer.smiles(pyridine) == "c1ccncc1", "the next one gets a new process"
        assert namer.process is not None
        namer.process.kill()
        assert namer.smiles(pyridine) is None
        assert namer.smiles(pyridine) == "c1ccncc1"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    empty = Molecule(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int))
    with pytest.raises(ConfigError, match="file"):
        write_prediction(scan, empty, tmp_path / "file" / "out", "m", "tiny", 0.8)


@given(
    confidence=st.floats(0.02, 0.98),
    z=st.floats(-1.0, 0.0),
    depth=st.sampled_from([0.8, 1.5]),
    threshold=st.sampled_from([0.2, 0.5, 0.9]),
)
def test_near_the_largest_depth_an_atom_is_reported_if_one_that_is_asked_for_is_likelier(
    confidence, z, depth, threshold
):
    """By counting: atoms that are there are as deep as said but for the error of depths; deeper ones count for nothing,
    and of the others so many are asked for."""
    atom = Molecule(np.array([[3.0, 4.0, z]]), np.array([1]), np.zeros((0, 2), int), None, None, np.array([confidence]))
    rng = np.random.default_rng(0)
    n = 200_000
    there = rng.random(n) < confidence
    asked = there & (z + DEPTH_ERROR * rng.standard_normal(n) >= -depth)
    share = asked.sum() / (asked.sum() + (~there).sum())
    if abs(share - threshold) > 0.01:
        assert len(asked_for(atom, threshold, depth)) == (share > threshold)
    assert len(asked_for(atom, threshold, None)) == (confidence >= threshold)


@pytest.mark.parametrize(("deepest", "depth", "found"), [(1.5, None, 0), (1.5, 1.2, 1), (1.5, 1.5, 1), (0.0, None, 1)])
def test_depth_decides_only_where_deeper_atoms_were_learned(monkeypatch, deepest, depth, found):
    """Of a network that has not learned deeper ones than are asked for, confidence says so itself."""
    network = OnePass(replace(CONFIG, deepest=deepest)).eval()
    atom = Molecule(
        np.array([[5.0, 5.0, -0.95]]),
        np.array([6]),
        np.zeros((0, 2), int),
        None,
        np.eye(5)[[1]],
        np.array([0.6]),
        np.zeros(0),
        element_probabilities=np.eye(11)[[1]],
    )
    monkeypatch.setattr(network, "predict", lambda images, threshold, depth: [atom] * len(images))
    assert len(predict_many([blob((10.0, 10.0), (80, 80), (5, 5))], network, 0.5, depth)[0]) == found


def test_the_topmost_of_the_atoms_that_are_reported_lies_at_zero():
    """Also where a higher one is not sure enough to be."""
    atoms = Molecule(
        np.array([[1.0, 1, 0], [2, 2, -0.45], [4, 4, -0.5]]),
        np.array([1, 6, 6]),
        np.zeros((0, 2), int),
        confidence=np.array([0.7, 0.99, 0.99]),
    )
    found = asked_for(atoms, 0.9, 0.8)
    np.testing.assert_allclose(found.positions, [[2, 2, 0], [4, 4, -0.05]], atol=1e-12)
    np.testing.assert_array_equal(asked_for(atoms, 0.5, 0.8).positions, atoms.positions)
    assert len(asked_for(atoms, 0.995, 0.8)) == 0


class Doubter(Believer):
    """Sure only where the image has nearly the size that it is said to have."""

    def predict(self, images, threshold=0.5, depth=None):
        (found,) = super().predict(images, threshold, depth)
        sure = 0.97 - min(0.4, 2 * abs(np.log(images.shape[2] * self.config.pixel / 60)))
        return [replace(found, confidence=np.full(len(found), sure))]


@pytest.mark.parametrize(("stated", "best"), [(1.0, 1.0), (1.35, np.exp(0.3)), (0.86, np.exp(-0.15))])
def test_where_the_network_is_unsure_other_sizes_are_tried(stated, best):
    scan = blob((60 * stated,) * 2, (240, 240), (30 * stated,) * 2)
    assert _surest_size(scan, Doubter(1.0, False), None) == pytest.approx(best)
    found = predict(scan, Doubter(1.0, False))
    assert found.stretch == pytest.approx(stated, rel=0.01)
    assert any("bonds are" in warning for warning in found.warnings) == (stated != 1)


@pytest.mark.parametrize("length", [1.0, 60 / 69.7])
def test_a_size_that_bonds_do_not_prove_is_read_and_said(length):
    """Classes that are unsure make bonds prove little; the network is surer of its atoms at the smaller size. Where
    bonds that it reads there speak for the stated size after all, that is what is read, and nothing is said."""

    class Unsure(Doubter):
        def predict(self, images, threshold=0.5, depth=None):
            (found,) = super().predict(images, threshold, depth)
            positions = found.positions * [length, length, 1]
            return [replace(found, positions=positions, class_probabilities=np.full((len(found), 5), 0.2))]

    scan = blob((69.7, 69.7), (240, 240), (35, 35))
    assert _surest_size(scan, Unsure(1.0, False), None) == pytest.approx(np.exp(0.15))
    found = predict(scan, Unsure(1.0, False))
    if length != 1:
        assert found.stretch == pytest.approx(1.0, abs=0.01)
        assert not any("surer" in warning for warning in found.warnings)
        return
    (size,) = [warning for warning in found.warnings if "size" in warning]
    assert "surer" in size
    assert "60.0 x 60.0" in size
    assert "69.7 x 69.7" in size


def test_a_scan_that_another_size_would_make_too_large_is_read_as_it_is_stated(monkeypatch):
    monkeypatch.setattr("afmol.prediction._surest_size", lambda *asked: np.exp(-0.3))
    scan = blob((900.0, 60.0), (1800, 120), (30, 30))
    network = Doubter(1.0, False)
    monkeypatch.setattr("afmol.prediction._candidates", lambda *asked: [NOTHING])
    assert len(predict(scan, network)) == 0


def test_hydrogens_that_are_added_do_not_change_the_size(tmp_path, weights, monkeypatch):
    """Naphthalene's carbons, 6 % too far apart but not beyond doubt: with its hydrogens they would be."""
    whole = lay_down(molecule_from_smiles("c1ccc2ccccc2c1"), np.random.default_rng(0), tilt=0.0)
    carbons = whole.taken(np.flatnonzero(whole.numbers == 6))
    n = len(carbons)
    p = 1.06 * carbons.positions * [1, 1, 0] + [10, 10, 0]
    sure = 0.96 * np.eye(5)[carbons.classes] + 0.04 * np.eye(5)[np.full(n, 2)]
    seen = replace(carbons, positions=p, class_probabilities=sure, confidence=np.ones(n), stretch=1.06)
    assert at_true_size(Scan(np.zeros((2, 2, 3)), (20.0, 20.0)), seen)[0].size == (20.0, 20.0)
    monkeypatch.setattr("afmol.results.predict", lambda *asked, **how: seen)
    write_scan(blob((20.0, 20.0), (32, 32), (4, 4)), tmp_path / "a.npz")
    ((_, found),) = predict_files([str(tmp_path / "a.npz")], tmp_path, str(weights), hydrogens=True)
    assert isinstance(found, Molecule)
    assert len(found) == n + 8
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["scan"]["size"] == [20.0, 20.0]
    np.testing.assert_allclose([atom["position"] for atom in record["atoms"]][:n], p, atol=1e-3)


def test_what_the_image_may_have_cut_gets_no_hydrogens(tmp_path, weights, monkeypatch):
    """Benzene's carbons in the middle get six; with two of them at the rim none, and a warning."""
    whole = lay_down(molecule_from_smiles("c1ccccc1"), np.random.default_rng(0), tilt=0.0)
    carbons = whole.taken(np.flatnonzero(whole.numbers == 6))
    write_scan(blob((20.0, 20.0), (32, 32), (4, 4)), tmp_path / "a.npz")
    for x, hydrogens, warned in ((10.0, 6, False), (1.0 - carbons.positions[:, 0].min(), 0, True)):
        seen = replace(
            carbons,
            positions=carbons.positions * [1, 1, 0] + [x, 10, 0],
            class_probabilities=np.eye(5)[carbons.classes],
            confidence=np.ones(6),
        )
        monkeypatch.setattr("afmol.results.predict", lambda *asked, found=seen, **how: found)
        ((_, found),) = predict_files([str(tmp_path / "a.npz")], tmp_path, str(weights), hydrogens=True)
        assert isinstance(found, Molecule)
        assert len(found) == 6 + hydrogens
        assert any("rim of the image" in warning for warning in found.warnings) == warned


def test_hydrogen_bonded_molecules_are_two(tmp_path, weights, monkeypatch):
    """Formic acid's dimer, its hydrogens 1.7 A from the oxygen of the other."""
    one = lay_down(molecule_from_smiles("OC=O"), np.random.default_rng(0), tilt=0.0)
    hydrogen = next(int(j) for i, j in one.bonds if one.numbers[i] == 8 and one.numbers[j] == 1)
    acceptor = next(i for i in np.flatnonzero(one.numbers == 8) if not (one.bonds == [i, hydrogen]).all(1).any())
    middle = (one.positions[hydrogen] + one.positions[acceptor]) / 2
    out = middle - one.positions[one.numbers == 6][0]
    positions = np.vstack([one.positions, 2 * middle - one.positions]) * [1, 1, 0]
    across = out / np.linalg.norm(out)
    between = np.linalg.norm(positions[hydrogen] - positions[len(one) + acceptor])
    step = 1.7 - between if between < 1.7 else 0.0
    positions[len(one) :] += step * across * [1, 1, 0]
    two = Molecule(
        np.add(positions, [10, 10, 0]),
        np.tile(one.numbers, 2),
        np.vstack([one.bonds, one.bonds + len(one)]),
        class_probabilities=np.eye(5)[np.tile(one.classes, 2)],
        confidence=np.ones(2 * len(one)),
    )
    assert np.linalg.norm(two.positions[hydrogen] - two.positions[len(one) + acceptor]) < 2
    monkeypatch.setattr("afmol.results.predict", lambda *asked, **how: two)
    write_scan(blob((20.0, 20.0), (32, 32), (4, 4)), tmp_path / "a.npz")
    ((_, found),) = predict_files([str(tmp_path / "a.npz")], tmp_path, str(weights))
    assert isinstance(found, Molecule)
    assert found.smiles == ("O=CO", "O=CO")


def test_stacks_are_predicted_alike_elsewhere(tmp_path, monkeypatch):
    """As a cluster does it (tests/test_workers.py): function and stacks are pickled, and a worker stands in another
    folder. A file that is no stack costs itself alone."""

    def elsewhere(function, tasks, scheduler, workers):
        sent = pickle.dumps((function, list(tasks), scheduler, workers))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        function, tasks, *where = pickle.loads(sent)
        assert where == ["tcp://node1:8786", 0]
        yield from map(function, tasks)

    monkeypatch.chdir(tmp_path)
    molecule = lay_down(molecule_from_smiles("c1ccncc1"), np.random.default_rng(0), tilt=0.0)
    write_scan(simulate(molecule, TIPS["co"], grid_around(molecule, pixel=0.25)), "a.npz")
    Path("b.npz").write_text("nothing")
    here = dict(predict_files(["a.npz", "b.npz"], "here"))
    with pytest.raises(ConfigError, match="must not be negative"):
        next(predict_files(["a.npz"], "there", workers=-1))
    monkeypatch.setattr("afmol.results.results", elsewhere)
    there = dict(predict_files(["a.npz", "b.npz"], "there", scheduler="tcp://node1:8786"))
    monkeypatch.chdir(tmp_path)
    assert isinstance(here.pop("b.npz"), AfmolError)
    assert isinstance(there.pop(str(tmp_path / "b.npz")), AfmolError)
    assert here.keys() == there.keys() == {"a"}
    assert len(there["a"]) == len(molecule)
    names = sorted(path.name for path in Path("here").iterdir())
    assert names == sorted(path.name for path in Path("there").iterdir()) == ["a.json", "a.png", "a.sdf", "a.xyz"]
    one, other = (json.loads(Path(where, "a.json").read_text()) for where in ("here", "there"))
    assert one == other


def test_weights_that_were_written_anew_are_read_anew(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights.read_bytes())
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    assert len(predict(scan, path, depth=0.8)) == 0
    os.utime(path, (1, 1))
    save_model(OnePass(replace(CONFIG, depth=0.5)), path, "shallow")
    with pytest.raises(ConfigError, match=r"down to 0\.5 A"):
        predict(scan, path, depth=0.8)
    with pytest.raises(ConfigError, match="threshold"):
        predict(scan, path, 50.0)


def test_naming_takes_one_thread_whatever_the_machine_has(monkeypatch):
    """OpenBLAS starts one a core otherwise, each with its share of the address space that the process may have."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "64")
    with Namer() as namer:
        assert namer.smiles(molecule_from_smiles("c1ccncc1")) == "c1ccncc1"
        assert namer.process is not None
        environ = Path(f"/proc/{namer.process.pid}/environ")
        if not environ.exists():
            pytest.skip("this system does not show the environment of a process")
        assert b"OPENBLAS_NUM_THREADS=1" in environ.read_bytes().split(b"\0")


def test_slices_are_numbered_as_they_are_in_the_stack():
    """Constant ones among them, which are left out."""
    scan = blob((10.0, 10.0), (80, 80), (5, 5), slices=7)
    scan.data[..., 0] = 0.0
    scan.data[..., 4] = scan.data[..., 5]
    assert any("slices 5 and 6 are the same" in warning for warning in predict(scan, OnePass(CONFIG).eval()).warnings)
