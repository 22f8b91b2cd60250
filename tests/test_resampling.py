"""Any stack, as a network takes it, and places in it."""

import subprocess
import sys

import numpy as np
import pytest

from afmol.errors import ScanError
from afmol.resampling import resampled, usable
from afmol.structures import Scan

PIXEL, SLICES, STEP = 0.25, 10, 0.14
"""What networks take."""


def blob(size, shape, centre, slices=5):
    x = (np.arange(shape[0]) + 0.5) * size[0] / shape[0]
    y = (np.arange(shape[1]) + 0.5) * size[1] / shape[1]
    spot = np.exp(-((x[:, None] - centre[0]) ** 2 + (y[None] - centre[1]) ** 2) / 2)
    return Scan(np.stack([spot * (k + 1) for k in range(slices)], axis=-1).astype(np.float32), size, None, "blob")


@pytest.mark.parametrize("size", [(16.0, 16.0), (9.3, 14.1), (30.0, 8.0)])
@pytest.mark.parametrize("pixels_per_angstrom", [2, 5.3, 8, 20])
def test_positions_come_back_in_the_scans_frame(size, pixels_per_angstrom):
    shape = tuple(round(s * pixels_per_angstrom) for s in size)
    centre = (0.4 * size[0], 0.7 * size[1])
    stack, scale = resampled(blob(size, shape, centre), PIXEL, SLICES, STEP)
    brightest = np.unravel_index(stack[..., -1].argmax(), stack.shape[:2])
    position = (np.array(brightest) + 0.5) * PIXEL * scale
    assert np.abs(position - centre).max() < 0.13 + 0.5 / pixels_per_angstrom


@pytest.mark.parametrize("nz", [3, 4, 10, 31])
def test_any_number_of_slices(nz):
    scan = blob((12.0, 10.0), (60, 50), (6, 5), nz)
    assert resampled(scan, PIXEL, SLICES, STEP)[0].shape == (48, 40, SLICES)


def test_whole_numbers_and_lists_will_do():
    """In a process of its own, in which types are not checked, as a user has it."""
    script = (
        "import numpy as np; from afmol import Scan; from afmol.simulation import Grid\n"
        "scan = Scan(np.zeros((4, 4, 3), np.uint8), (4.0, 4.0), [0.2, 0.1, 0.0])\n"
        "grid = Grid((0.0, 0.0), (4.0, 4.0), (8, 8), [5, 4])\n"
        "print(scan.data.dtype, scan.heights.dtype, grid.heights.dtype)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["float32", "float64", "float64"]


def test_known_heights_are_resampled_from_the_closest_slice():
    heights = np.array([3.0, 2.0, 1.5, 1.0, 0.5, 0.5, 0.25, 0.0])  # uneven, with a repeat
    # a slice's value is its height in the left half and 1 less in the right one: no slice is constant
    data = heights.astype(np.float32) - np.repeat([0, 1], 24)[:, None, None] * np.ones((1, 48, 1), np.float32)
    wide, _ = resampled(Scan(data, (12.0, 12.0), heights), PIXEL, SLICES, STEP)
    assert np.allclose(wide[0, 0], STEP * np.arange(9, -1, -1), atol=1e-5)
    narrow, _ = resampled(Scan(data[..., 4:], (12.0, 12.0), heights[4:]), PIXEL, SLICES, STEP)
    assert np.allclose(narrow[0, 0], np.linspace(0.5, 0, 10), atol=1e-5)


def in_units(unit: float) -> Scan:
    """Ten slices 0.1 A apart, their heights in units of 1 / `unit` A: 1e-10 for metres, 0.1 for nm, 100 for pm."""
    return Scan(np.random.default_rng(0).random((40, 40, 10)), (10.0, 10.0), unit * np.linspace(4.5, 3.6, 10))


def test_heights_in_angstrom_pass_with_repeats_that_drift(caplog):
    heights = np.repeat(np.linspace(1.5, 0, 16), 2) - np.tile([0, 1e-4], 16)
    scan = Scan(np.random.default_rng(0).random((40, 40, 32)), (10.0, 10.0), heights)
    assert usable(scan) is scan
    assert usable(in_units(1.0)) is not None
    assert not caplog.records


@pytest.mark.parametrize("known", [True, False])
def test_a_constant_slice_is_left_out_with_a_word(known, caplog):
    data = np.random.default_rng(0).random((40, 40, 6)).astype(np.float32)
    heights = np.linspace(0.5, 0, 6) if known else None
    spoilt = data.copy()
    spoilt[:, :, [1, 4]] = 7.0
    with caplog.at_level("WARNING"):
        found = usable(Scan(spoilt, (10.0, 10.0), heights, "a.npz"))
    assert [record.getMessage() for record in caplog.records] == ["a.npz: slices 2, 5 of 6 are constant and left out."]
    assert np.array_equal(found.data, data[:, :, [0, 2, 3, 5]])
    if known:
        assert found.heights.tolist() == heights[[0, 2, 3, 5]].tolist()
        whole, _ = resampled(Scan(data, (10.0, 10.0), heights), PIXEL, SLICES, STEP)
        stack, _ = resampled(Scan(spoilt, (10.0, 10.0), heights), PIXEL, SLICES, STEP)
        assert np.allclose(stack[..., -1], whole[..., -1])  # the closest slice is where it was
    else:
        assert found.heights is None


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (Scan(np.random.default_rng(0).random((40, 40, 1)), (10.0, 10.0)), "1 slice only"),
        (Scan(np.random.default_rng(0).random((40, 40, 2)), (10.0, 10.0)), "2 slices only"),
        (Scan(np.ones((40, 40, 5)), (10.0, 10.0)), "Every slice is constant"),
        (Scan(np.stack([np.eye(40), np.ones((40, 40)), np.eye(40)], -1), (10.0, 10.0)), "Slice 2 of 3 is constant"),
        (in_units(1e-10), r"1e-11 A apart.*are the heights in Angstrom"),
        (in_units(0.1), r"0\.01 A apart.*are the heights in Angstrom"),
        (in_units(100.0), r"10 A apart.*are the heights in Angstrom"),
        (Scan(np.random.default_rng(0).random((40, 40, 5)), (3.9, 10.0)), "at least 4 A"),
        (Scan(np.random.default_rng(0).random((5000, 5, 3)), (5.0, 5.0)), "0.001"),
        (Scan(np.random.default_rng(0).random((5, 5, 5)), (50.0, 50.0)), "10 x 10 A"),
        (Scan(np.random.default_rng(0).random((500, 40, 3)), (400.0, 10.0)), "crop"),
        (Scan(np.random.default_rng(0).random((40, 40, 4)), (9.0, 9.0), np.array([1.0, 1.0, 0, 0])), "2 different"),
    ],
)
def test_stacks_that_no_model_can_read(scan, words):
    with pytest.raises(ScanError, match=words):
        resampled(scan, PIXEL, SLICES, STEP)
