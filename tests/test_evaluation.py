"""What figures are measured on: reproducible samples, the stated noise, the truth where the image shows it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from afmol import evaluation
from afmol.checkpoint import save_model
from afmol.data.conditions import simulate_sample
from afmol.data.molecules import load_molecules, pack_molecules, write_molecules
from afmol.errors import ConfigError, MoleculeError
from afmol.evaluation import EvaluationConfig, drawn, evaluate, simulated_sample, write_evaluation
from afmol.model import Asd, AsdConfig
from afmol.simulation import TIPS
from afmol.structures import Molecule
from strategies import flat_ring, lamp


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bent triatomics and one tall molecule."""
    triatomics = [
        Molecule(
            np.array([[0, 0, 0], [1.2, 0, 0], [1.7, 1.0 + 0.1 * k, 0]]),
            np.array([6, 8, 1]),
            np.array([[0, 1]]),
            np.zeros(3),
        )
        for k in range(3)
    ]
    corners = 1.5 * np.concatenate([np.eye(3), -np.eye(3)])
    tall = Molecule(corners, np.full(6, 6), np.array([[0, 1]]), np.zeros(6))
    path = tmp_path_factory.mktemp("molecules") / "set.npz"
    pack_molecules([*triatomics, tall], path)
    return path


def sample(data, conditions, noise, seed):
    return simulated_sample(load_molecules(data), 0, conditions, noise, np.random.default_rng(seed))


@pytest.mark.parametrize("conditions", ["nominal", "charged", "random"])
def test_samples_depend_on_the_seed_alone(data, conditions):
    (a, truth), (b, same), (c, _) = (sample(data, conditions, 0.05, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(truth.positions, same.positions)
    assert a.data.shape != c.data.shape or not np.array_equal(a.data, c.data)


def test_charged_is_nominal_but_for_the_tip(data, monkeypatch):
    """The same molecule, height and noise; one charge at the probe."""
    tips = []

    def seen(molecule, conditions, *grid):
        tips.append(conditions.tip)
        return simulate_sample(molecule, replace(conditions, tip=TIPS["co-neutral"]), *grid)

    monkeypatch.setattr("afmol.evaluation.simulate_sample", seen)
    (a, truth), (b, same) = (sample(data, conditions, 0.0, 5) for conditions in ("nominal", "charged"))
    np.testing.assert_array_equal(truth.positions, same.positions)
    np.testing.assert_array_equal(a.data, b.data)
    assert tips == [TIPS["co-quadrupole"], TIPS["co-charge"]]


def test_the_noise_is_the_stated_share_of_the_range(data):
    clean, noisy = (sample(data, "nominal", noise, 3)[0].data for noise in (0.0, 0.05))
    share = (noisy - clean).std((0, 1)) / np.ptp(clean, axis=(0, 1))
    np.testing.assert_allclose(share, 0.05, rtol=0.05)


def test_the_truth_lies_where_the_image_shows_it(data):
    """Three angstrom around the molecule, the topmost nucleus at 0, and the far image darkest above the atoms."""
    scan, truth = sample(data, "nominal", 0.0, 4)
    assert truth.positions[:, 2].max() == 0
    np.testing.assert_allclose(truth.positions[:, :2].min(0), 3.0)
    assert (np.array(scan.size) - truth.positions[:, :2].max(0) < 3.0 + 0.125).all()
    far = scan.data[..., 0]
    darkest = (np.array(np.unravel_index(far.argmin(), far.shape)) + 0.5) * scan.pixel
    assert np.linalg.norm(darkest - truth.positions[:, :2].mean(0)) < 1.0


def test_evaluation_writes_figures_tables_and_pictures(data, weights, tmp_path):
    config = EvaluationConfig(molecules=4, conditions=("nominal",))
    evaluation = evaluate(data, str(weights), config)
    write_evaluation(evaluation, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    flat = record["flat molecules, nominal force parameters"]
    everything = record["all molecules, nominal force parameters"]
    assert sum(flat["class_count"]) == 9, "the tall molecule is not flat"
    assert sum(everything["class_count"]) > 9
    assert flat["recall"] == 0, "this network has learned nothing"
    assert str(evaluation).strip() == (tmp_path / "out" / "evaluation.txt").read_text().strip()
    assert (tmp_path / "out" / "classes_flat_nominal.png").stat().st_size > 0


def test_input_that_cannot_be_evaluated(data, weights, tmp_path):
    with pytest.raises(ConfigError, match="at least one molecule"):
        EvaluationConfig(molecules=0)
    with pytest.raises(MoleculeError, match=r"none\.npz"):
        evaluate(tmp_path / "none.npz", str(weights))
    with pytest.raises(ConfigError, match="quantum"):
        evaluate(data, str(weights), EvaluationConfig(molecules=1, device="quantum"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        write_evaluation(evaluate(data, str(weights), EvaluationConfig(1, ("flat",), ("nominal",))), tmp_path / "file")


def test_conditions_that_there_are_not_are_not_taken_for_others():
    """Where types are not checked, as they are in these tests."""
    code = "from afmol.evaluation import drawn; drawn(None, 'a weight file', None)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: Conditions are nominal, charged, random, measured; not a weight file." in run.stderr


def test_a_perfect_model_is_perfect_on_the_test_part_alone(tmp_path, weights, monkeypatch):
    pack_molecules([lamp(), flat_ring(5), flat_ring(6), lamp()], tmp_path / "all.npz")
    rows = load_molecules(tmp_path / "all.npz")
    write_molecules(replace(rows, split=np.array([2, 0, 2, 1], np.uint8)), tmp_path / "split.npz")
    truths, asked, real = {}, [], evaluation.simulated_sample

    def sampled(*what, **how):
        sample = real(*what, **how)
        truths[id(sample.scan)] = sample.molecule
        return sample

    def told(scans, network, threshold, depth, formulas):
        asked.append(depth)
        return [truths[id(scan)] for scan in scans]

    monkeypatch.setattr(evaluation, "simulated_sample", sampled)
    monkeypatch.setattr(evaluation, "predict_many", told)
    config = EvaluationConfig(9, ("all",), ("measured",), depth=0.7)
    (found,) = evaluate(tmp_path / "split.npz", str(weights), config).counts.values()
    assert (found.molecules, found.exact, asked) == (2, 2, [0.7])
    wanted = sum(int(truth.within(0.7).sum()) for truth in truths.values())
    assert found.classes[:5].sum() == wanted < sum(map(len, truths.values()))


def test_measured_conditions_are_as_measured():
    """Both force models, and closest approaches in the range of MEASURED."""
    how = [drawn(flat_ring(), "measured", np.random.default_rng(seed))[1] for seed in range(30)]
    assert {h.force.name for h in how} == {"lennard-jones", "exponential"}
    assert all(h.clearance is not None and 2.4 <= h.clearance <= 3.6 for h in how)


def test_models_that_build_graphs_atom_by_atom_are_asked_single_steps_too(data, weights, tmp_path):
    """At most one a sample, of which no atom may be taken away; what is said of them is written and printed."""
    path = tmp_path / "asd.safetensors"
    save_model(Asd(AsdConfig(pixel=0.25, channels=(2, 2, 2, 2))), path, "tiny")
    config = EvaluationConfig(3, ("all",), ("nominal",))
    found = evaluate(data, path, config)
    (figures,) = (v for v in found.record().values() if isinstance(v, dict))
    steps = figures["single_steps"]
    assert 0 < steps["steps"] == np.sum(steps["class_confusion"]) <= 3
    assert steps["class_accuracy"] == np.trace(steps["class_confusion"]) / steps["steps"]
    assert f"single steps: {steps['steps']}" in str(found)
    assert evaluate(data, weights, config).steps == {}
