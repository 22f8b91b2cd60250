"""The product as a user has it: shipped weights find molecules in simulated stacks, in the stack's own frame."""

import dataclasses

import numpy as np
import pytest

import afmol
from afmol.cli import main
from afmol.data.bending import lay_down
from afmol.metrics import Comparison, compare, summary
from afmol.simulation import TIPS, Grid, grid_around
from afmol.simulation.artefacts import white_noise

SMILES = ("Nc1ccc(Cl)cc1O", "c1ccc2ncccc2c1", "O=C1C=CC(=O)C=C1F", "c1csc(-c2ccncn2)c1", "N#Cc1cc(Br)ccc1C#C")
"""Flat ones, with all five classes."""


def test_half_precision_says_the_same(monkeypatch):
    """Convolutions in bfloat16, as on processors that are quick with it, and in float32."""
    molecule = lay_down(afmol.molecule_from_smiles(SMILES[0], seed=0), np.random.default_rng(0), tilt=0.0)
    grid = grid_around(molecule, TIPS["co-quadrupole"], margin=3.0, pixel=0.2)
    scan = afmol.simulate(molecule, TIPS["co-quadrupole"], grid)
    found = []
    for precision in ("bf16-mixed", "32-true"):
        monkeypatch.setattr("afmol.precision.fast_precision", lambda _, said=precision: said)
        found.append(afmol.predict(scan))
    half, full = (m.taken(np.lexsort(m.positions[:, :2].round(1).T)) for m in found)
    assert half.symbols == full.symbols
    # an atom between two pixels of the same heat may be read from the other one: 0.033 A, all others 0.01 A
    np.testing.assert_allclose(half.positions, full.positions, atol=0.05)
    assert np.quantile(np.abs(half.positions - full.positions), 0.95) < 0.01
    np.testing.assert_allclose(half.class_probabilities, full.class_probabilities, atol=0.05)
    assert not np.array_equal(half.positions, full.positions)


@pytest.mark.parametrize(("pixel", "far"), [(0.125, 0.0), (0.2, 40.0)])
def test_five_molecules_are_found_in_the_frame_of_their_stacks(pixel, far):
    """An image larger than the molecule, which lies off its middle; the scan's origin is its lower left corner,
    wherever the molecule's own was. With `base`, when this was written: recall 1.00 and 0.97, precision 0.99 and 0.96,
    classes and bonds 1.00; with `measured` of now within 0.5 A
    all, and all but two: an ethynyl that is read as a thiol."""
    counts, within = Comparison(), Comparison()
    for seed, smiles in enumerate(SMILES):
        rng = np.random.default_rng(seed)
        molecule = lay_down(afmol.molecule_from_smiles(smiles, seed=seed), rng, tilt=0.0)
        molecule = dataclasses.replace(molecule, positions=molecule.positions + np.array([far, -far, 0]))
        around = grid_around(molecule, TIPS["co-quadrupole"], margin=3.0, pixel=pixel)
        (x, y), (nx, ny) = around.origin, around.shape
        grid = Grid((x - 8 * pixel, y), ((nx + 8) * pixel, ny * pixel), (nx + 8, ny), around.heights)
        scan = afmol.simulate(molecule, TIPS["co-quadrupole"], grid)
        scan = dataclasses.replace(scan, data=white_noise(scan.data, 0.03, rng))
        truth = dataclasses.replace(molecule, positions=molecule.positions - [*grid.origin, 0])
        found = afmol.predict(scan)
        counts += compare(found, truth, truth.within(0.8), tolerance=0.3)
        within += compare(found, truth, truth.within(0.8), tolerance=0.5)
    figures = summary(counts)
    assert figures["recall"] >= 0.9
    assert summary(within)["recall"] >= 0.97
    assert figures["precision"] >= 0.9
    assert figures["class_accuracy"] >= 0.92
    assert figures["bond_f1"] >= 0.97


def test_a_molecule_alone_in_a_large_image_is_read_as_in_a_small_one():
    """40 x 40 A: standardised over all of it, 0.43 and 0.71 of the classes were right."""
    counts = Comparison()
    for seed, smiles in enumerate(SMILES[:2]):
        rng = np.random.default_rng(seed)
        molecule = lay_down(afmol.molecule_from_smiles(smiles, seed=seed), rng, tilt=0.0)
        heights = grid_around(molecule, TIPS["co-quadrupole"], margin=3.0, pixel=0.2).heights
        x, y = (molecule.positions[:, :2].mean(0) - [12.0, 25.0]).tolist()
        scan = afmol.simulate(molecule, TIPS["co-quadrupole"], Grid((x, y), (40.0, 40.0), (200, 200), heights))
        scan = dataclasses.replace(scan, data=white_noise(scan.data, 0.03, rng))
        truth = dataclasses.replace(molecule, positions=molecule.positions - [x, y, 0])
        counts += compare(afmol.predict(scan), truth, truth.within(0.8))
    figures = summary(counts)
    assert figures["recall"] >= 0.95
    assert figures["class_accuracy"] >= 0.95


def test_a_size_that_bonds_contradict_is_mended():
    """The stack is said to be 8 % smaller than it is. With `measured`, when this was written: sizes found to 3.4 %
    (one of five; the others to 2.2 %), which is what bonds say of these molecules at any stated size."""
    counts, stated, sizes = Comparison(), 0.92, []
    for seed, smiles in enumerate(SMILES):
        molecule = lay_down(afmol.molecule_from_smiles(smiles, seed=seed), np.random.default_rng(seed), tilt=0.0)
        grid = grid_around(molecule, TIPS["co-quadrupole"], margin=3.0, pixel=0.125)
        scan = afmol.simulate(molecule, TIPS["co-quadrupole"], grid)
        found = afmol.predict(dataclasses.replace(scan, size=(stated * scan.size[0], stated * scan.size[1])))
        assert "too short" in found.warnings[0]
        sizes.append(found.stretch / stated)
        found = dataclasses.replace(found, positions=found.positions / [stated, stated, 1])
        truth = dataclasses.replace(molecule, positions=molecule.positions - [*grid.origin, 0])
        counts += compare(found, truth, truth.within(0.8))
    assert sizes == pytest.approx([1.0] * len(SMILES), abs=0.04)
    assert summary(counts)["class_accuracy"] >= 0.97
    assert summary(counts)["xy_error"] <= 0.08


def test_the_demo_finds_its_molecule(tmp_path, capsys):
    main(["demo", "-o", str(tmp_path)])
    table = capsys.readouterr().out
    found, truth = (afmol.read_molecule(tmp_path / f"chloroindirubin{end}.xyz") for end in ("", "_truth"))
    figures = summary(compare(found, truth, truth.within(0.8)))
    assert figures["recall"] >= 0.96
    assert figures["class_accuracy"] >= 0.96
    assert f"{figures['recall']:.3f}" in table
    assert "bonds F1" in table
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".json", ".xyz", ".sdf", ".png"}
