"""Any stack in, the molecule in the stack's own frame out."""

import json

import numpy as np
import pytest

from afmol.errors import ConfigError, ScanError
from afmol.files import read_molecule
from afmol.model import ModelConfig, Ours
from afmol.prediction import _slices_for, predict, prepare, write_prediction
from afmol.structures import Molecule, Scan

CONFIG = ModelConfig(channels=(16, 24, 32), blocks=1, width=16, rounds=1)


class Echo:
    """Stands in for the network: an atom at the brightest pixel of the last slice."""

    config = CONFIG

    def predict(self, images, threshold):
        ny = images.shape[3]
        place = int(images[0, -1].argmax())
        position = (np.array([place // ny, place % ny]) + 0.5) * CONFIG.pixel
        return [Molecule(np.array([[*position, 0.0]]), np.array([8]), np.zeros((0, 2), int))]


def blob(size, shape, centre, slices=5):
    x = (np.arange(shape[0]) + 0.5) * size[0] / shape[0]
    y = (np.arange(shape[1]) + 0.5) * size[1] / shape[1]
    spot = np.exp(-((x[:, None] - centre[0]) ** 2 + (y[None] - centre[1]) ** 2) / 2)
    return Scan(np.stack([spot * (k + 1) for k in range(slices)], axis=-1).astype(np.float32), size, None, "blob")


@pytest.mark.parametrize("size", [(16.0, 16.0), (9.3, 14.1), (30.0, 8.0)])
@pytest.mark.parametrize("pixels_per_angstrom", [2, 5.3, 8, 20])
def test_positions_come_back_in_the_scans_frame(monkeypatch, size, pixels_per_angstrom):
    shape = tuple(round(s * pixels_per_angstrom) for s in size)
    centre = (0.4 * size[0], 0.7 * size[1])
    images, scale = prepare(blob(size, shape, centre), CONFIG)
    (found,) = Echo().predict(images, 0.5)
    position = found.positions[0] * [*scale, 1]
    assert np.abs(position[:2] - centre).max() < 0.13 + 0.5 / pixels_per_angstrom


@pytest.mark.parametrize("nz", [3, 4, 10, 31])
def test_any_number_of_slices(nz):
    scan = blob((12.0, 10.0), (60, 50), (6, 5), nz)
    assert prepare(scan, CONFIG)[0].shape == (1, CONFIG.slices, 48, 40)


def test_known_heights_are_resampled_from_the_closest_slice():
    heights = np.array([3.0, 2.0, 1.5, 1.0, 0.5, 0.5, 0.25, 0.0])  # uneven, with a repeat
    data = np.broadcast_to(heights.astype(np.float32), (4, 4, 8))
    wide = _slices_for(Scan(data, (1.0, 1.0), heights), CONFIG)
    step = CONFIG.step[1]
    assert np.allclose(wide[0, 0], step * np.arange(9, -1, -1), atol=1e-5)
    narrow = _slices_for(Scan(data[..., 4:], (1.0, 1.0), heights[4:]), CONFIG)
    assert np.allclose(narrow[0, 0], np.linspace(0.5, 0, 10), atol=1e-5)


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (Scan(np.random.default_rng(0).random((40, 40, 1)), (10.0, 10.0)), "1 slice only"),
        (Scan(np.random.default_rng(0).random((40, 40, 2)), (10.0, 10.0)), "2 slices only"),
        (Scan(np.ones((40, 40, 5)), (10.0, 10.0)), "Every slice is constant"),
        (Scan(np.stack([np.eye(40), np.ones((40, 40)), np.eye(40)], -1), (10.0, 10.0)), "Slice 2 of 3 is constant"),
        (Scan(np.random.default_rng(0).random((40, 40, 5)), (3.9, 10.0)), "at least 4 A"),
        (Scan(np.random.default_rng(0).random((5000, 5, 3)), (5.0, 5.0)), "0.001"),
        (Scan(np.random.default_rng(0).random((5, 5, 5)), (50.0, 50.0)), "10 x 10 A"),
        (Scan(np.random.default_rng(0).random((500, 40, 3)), (400.0, 10.0)), "crop"),
        (Scan(np.random.default_rng(0).random((40, 40, 4)), (9.0, 9.0), np.array([1.0, 1.0, 0, 0])), "2 different"),
    ],
)
def test_stacks_that_no_model_can_read(scan, words):
    with pytest.raises(ScanError, match=words):
        prepare(scan, CONFIG)


def test_nothing_found_is_a_valid_result(tmp_path):
    """A network that has learned nothing finds nothing; all four files are written all the same."""
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    molecule = predict(scan, Ours(CONFIG).eval())
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
    )
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    json_path, xyz_path, sdf_path, _ = write_prediction(scan, molecule, tmp_path, "m", "tiny", 0.8)
    record = json.loads(json_path.read_text())
    assert record["format"] == "afmol-prediction/1"
    assert record["scan"] == {"source": "blob", "shape": [80, 80, 5], "size": [10.0, 10.0]}
    assert record["model"] == {"name": "tiny", "depth": 0.8}
    assert [a["element"] for a in record["atoms"]] == ["C", "O", "H"]
    assert [a["class"] for a in record["atoms"]] == [1, 3, 0]
    assert [b["probability"] for b in record["bonds"]] == [0.95, 0.2]
    sdf = read_molecule(sdf_path)
    assert np.allclose(sdf.positions, molecule.positions, atol=1e-3)
    assert sdf.bonds.tolist() == [[0, 1]], "only bonds that are more probable than not"
    assert read_molecule(xyz_path).symbols == ["C", "O", "H"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    scan = blob((10.0, 10.0), (80, 80), (5, 5))
    empty = Molecule(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int))
    with pytest.raises(ConfigError, match="file"):
        write_prediction(scan, empty, tmp_path / "file" / "out", "m", "tiny", 0.8)
