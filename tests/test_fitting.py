"""A known molecule fitted to its own simulated stack: where it lies and what the tip is come back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from afmol.cli import main
from afmol.data.chemistry import molecule_from_smiles
from afmol.errors import ConfigError, MoleculeError, ScanError
from afmol.files import read_molecule, write_molecule, write_scan
from afmol.fitting import (
    FINE,
    FitConfig,
    Pose,
    correlations,
    faced,
    first_poses,
    fit,
    placed,
    refined,
    simulated,
    target,
)
from afmol.simulation.artefacts import white_noise
from afmol.structures import Molecule, Scan
from strategies import refused

SIZE = (11.0, 12.0)
USUAL = FitConfig()
POSE = Pose(5.9, 5.6, 0.7, 0.06, -0.04, 2.9, np.log(0.5), 0.08)


@pytest.fixture(scope="module")
def molecule() -> Molecule:
    """2-fluoropyridine-N-oxide: flat, no symmetry but its plane, charges of both signs."""
    return molecule_from_smiles("Fc1cccc[n+]1[O-]")


def stack(molecule, config=USUAL, pose=POSE, shape=(48, 52), heights=True) -> Scan:
    """Its stack, far to close, of pixels of 0.23 A."""
    above = 0.1 * np.arange(5, -1, -1)
    empty = Scan(np.random.default_rng(0).random((*shape, 6), np.float32), SIZE, above, "made")
    goal = target(empty, max(s / n for s, n in zip(SIZE, shape, strict=True)), config)
    with torch.no_grad():
        data = simulated(faced(molecule, 1.0), goal, config, pose).numpy()
    return Scan(data, SIZE, above if heights else None, "made")


@pytest.mark.parametrize("config", [FitConfig(starts=1), FitConfig("exponential", starts=1)], ids=lambda c: c.force)
def test_pose_and_tip_come_back(molecule, config):
    """With noise, 30 degrees and 0.3 A a start away: place to 0.05 A, angle to 1 degree, stiffness, charge, height."""
    pose = POSE._replace(distance=2.6) if config.force == "exponential" else POSE
    scan = stack(molecule, config, pose)
    noisy = replace(scan, data=white_noise(scan.data, 0.02, np.random.default_rng(0)).astype(np.float32))
    goal = target(noisy, FINE, config)
    start = pose._replace(x=6.1, y=5.4, angle=0.8, tilt_x=0.0, tilt_y=0.0, distance=pose.distance + 0.15)
    start = start._replace(stiffness=np.log(0.3), charge=0.02)
    found, score = refined(faced(molecule, 1.0), goal, config, start)
    assert score > 0.985
    for name, tolerance in (("x", 0.05), ("y", 0.05), ("angle", 0.02), ("tilt_x", 0.02), ("distance", 0.05)):
        assert getattr(found, name) == pytest.approx(getattr(pose, name), abs=tolerance), name
    assert np.exp(found.stiffness) == pytest.approx(0.5, abs=0.1)
    assert found.charge == pytest.approx(0.08, abs=0.02)


def test_the_gradient_of_the_score_is_the_slope(molecule):
    scan, config, there = stack(molecule), FitConfig(), faced(molecule, 1.0)
    goal = target(scan, 0.6, config)
    start = np.array(POSE) + np.array([0.2, -0.1, 0.1, -0.03, 0.05, 0.3, 1.7, -0.05])  # stiff, so that nothing snaps

    def score(values):
        return correlations(simulated(there, goal, config, Pose(*values)), goal.images).mean()

    leaves = torch.tensor(start, requires_grad=True)
    score(leaves).backward()
    for k in range(len(start)):
        step = 1e-5 * np.eye(len(start))[k]
        slope = float(score(torch.tensor(start + step)) - score(torch.tensor(start - step))) / 2e-5
        assert float(leaves.grad[k]) == pytest.approx(slope, rel=1e-4, abs=1e-6), Pose._fields[k]


def test_flattened_halogens_are_fitted_as_such():
    """A stack of flat bromine is met by flat bromine, and less by round one."""
    bromide, flat = molecule_from_smiles("Brc1ccccc1"), FitConfig(flattening=1.0)
    goal, there = target(stack(bromide, flat), 0.5, flat), faced(bromide, 1.0)
    met, less = (float(correlations(simulated(there, goal, c, POSE), goal.images).mean()) for c in (flat, USUAL))
    assert met > 0.995
    assert less < met - 0.005
    with pytest.raises(ConfigError, match="flattening"):
        FitConfig(flattening=-0.1)


def test_starts_know_direction_and_face(molecule):
    """The first is within a step of 15 degrees and half an Angstrom of the truth, with the right face up."""
    for face in (1.0, -1.0):
        turned = replace(molecule, positions=molecule.positions * [1, face, face])
        scan, config = stack(turned), FitConfig()
        (first_face, pose), *others = first_poses(molecule, target(scan, 0.5, config), config)
        assert first_face == face
        assert abs((pose.angle - POSE.angle + np.pi) % (2 * np.pi) - np.pi) < np.radians(15)
        assert np.hypot(pose.x - POSE.x, pose.y - POSE.y) < 0.5
        assert len(others) == 4


def test_placing_is_a_rotation_and_a_shift():
    rng = np.random.default_rng(1)
    p = rng.normal(size=(6, 3))
    q = placed(p, POSE).numpy()
    np.testing.assert_allclose(np.linalg.norm(q[:, None] - q, axis=2), np.linalg.norm(p[:, None] - p, axis=2))
    assert np.linalg.det((q[1:4] - q[0]).T @ np.linalg.inv((p[1:4] - p[0]).T)) == pytest.approx(1)
    moved = placed(p, POSE._replace(x=POSE.x + 1, y=POSE.y - 2)).numpy()
    np.testing.assert_allclose(moved - q, np.broadcast_to([1, -2, 0], q.shape), atol=1e-12)


def test_scale_and_offset_of_slices_do_not_matter(molecule):
    images = torch.from_numpy(stack(molecule).data)
    other = images * torch.tensor([1.0, 2, 3, 4, 5, 6]) - torch.arange(6.0)
    assert torch.allclose(correlations(images, other), torch.ones(6, dtype=torch.float64))


def test_slices_at_one_height_are_simulated_once(molecule):
    """Approach and retraction: the fit is that of the heights, and each repeat has its own correlation."""
    scan = stack(molecule)
    twice = replace(scan, data=np.repeat(scan.data, 2, axis=2), heights=np.repeat(scan.heights, 2))
    goal, other = (target(s, FINE, USUAL) for s in (scan, twice))
    assert np.array_equal(goal.grid.heights, other.grid.heights)
    with torch.no_grad():
        once, repeated = (simulated(faced(molecule, 1.0), g, USUAL, POSE) for g in (goal, other))
    assert torch.equal(repeated, once.repeat_interleave(2, dim=2))
    assert torch.allclose(correlations(repeated, other.images), torch.ones(12, dtype=torch.float64), atol=1e-4)


def test_the_command_writes_what_it_found(molecule, tmp_path, capsys):
    write_molecule(molecule, tmp_path / "m.sdf")
    write_scan(stack(molecule), tmp_path / "stack.npz")
    main(["fit", str(tmp_path / "m.sdf"), str(tmp_path / "stack.npz"), "-o", str(tmp_path / "out"), "--starts", "1"])
    assert "correlation 1.000" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "stack_fit.json").read_text())
    assert found["correlation"] == pytest.approx(np.mean(found["per_slice"]), abs=1e-3)
    assert len(found["per_slice"]) == 6
    assert found["tip_charge"] == pytest.approx(0.08, abs=0.01)
    assert found["stiffness"] == pytest.approx(0.5, abs=0.05)
    lies = read_molecule(tmp_path / "out" / "stack_fit.xyz")
    truth = placed(faced(molecule, 1.0).positions, POSE).numpy()
    np.testing.assert_allclose(lies.positions[:, :2], truth[:, :2], atol=0.1)
    assert found["above_topmost"] == pytest.approx(POSE.distance - truth[:, 2].max(), abs=0.03)
    assert (tmp_path / "out" / "stack_fit.png").stat().st_size > 20000
    assert found["stack"] == str(tmp_path / "stack.npz")
    assert found["molecule"] == str(tmp_path / "m.sdf")
    again = ["fit", "c1ccccc1", tmp_path / "stack.npz", "-o", tmp_path / "out", "--starts", "1"]
    refused(capsys, again, "another molecule", "m.sdf", "--overwrite")
    write_scan(stack(molecule), tmp_path / "out" / "stack.npz")
    again = ["fit", tmp_path / "m.sdf", tmp_path / "out" / "stack.npz", "-o", tmp_path / "out"]
    refused(capsys, again, "another stack", "--overwrite")
    assert json.loads((tmp_path / "out" / "stack_fit.json").read_text()) == found


def test_what_cannot_be_fitted(molecule, tmp_path, capsys):
    scan = stack(molecule)
    with pytest.raises(ScanError, match="two atoms"):
        fit(Molecule(np.zeros((1, 3)), np.array([6]), np.zeros((0, 2), int)), scan)
    with pytest.raises(ScanError, match="constant"):
        fit(molecule, replace(scan, data=np.zeros_like(scan.data)))
    with pytest.raises(ConfigError, match="co-charge"):
        FitConfig(tip="gold")
    with pytest.raises(ConfigError, match="positive"):
        FitConfig(step=0.0)
    with pytest.raises(ConfigError, match="amplitude"):
        FitConfig(amplitude=float("inf"))
    with pytest.raises(MoleculeError):
        fit(Molecule(np.random.default_rng(0).random((3, 3)) * 3, np.array([1, 1, 1]), np.zeros((0, 2), int)), scan)
    stack_file = tmp_path / "stack.npz"
    write_scan(scan, stack_file)
    refused(capsys, ["fit", "nothing.xyz", stack_file, "-o", tmp_path], "nothing.xyz", "does not exist")
    refused(capsys, ["fit", "c1ccccc1", "nothing.npz", "-o", tmp_path], "nothing.npz", "does not exist")


def test_measured_ptcda_asks_for_a_positive_tip(shared):
    """The report's table: 0.85 with a charge of +0.04 e in place of the quadrupole's 0.75 (one start, for time)."""
    from afmol.files import read_scan

    folder = shared / "afm" / "experiment"
    scan, ptcda = read_scan(folder / "ptcda_co.npz"), read_molecule(folder / "ptcda.xyz")
    result, _, _ = fit(ptcda, scan, FitConfig(starts=1))
    assert result.correlation > 0.845
    assert 0.03 < result.tip_charge < 0.05
