from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from afmol.simulation.artefacts import (
    background_tilt,
    blurred,
    compressed,
    cut_outs,
    fewer_slices,
    height_errors,
    line_noise,
    pink_noise,
    resample_slices,
    scan_drift,
    slice_drift,
    white_noise,
    wider_oscillation,
)

SEEDED: dict[str, Callable] = {
    "white_noise": lambda s, rng: white_noise(s, 0.1, rng),
    "line_noise": lambda s, rng: line_noise(s, 0.1, rng),
    "background_tilt": lambda s, rng: background_tilt(s, 0.1, rng),
    "slice_drift": lambda s, rng: slice_drift(s, 0.7, rng),
    "cut_outs": lambda s, rng: cut_outs(s, 50, rng),
    "pink_noise": lambda s, rng: pink_noise(s, 0.1, rng),
    "scan_drift": lambda s, rng: scan_drift(s, 2.0, rng),
    "height_errors": lambda s, rng: height_errors(s, 0.3, rng),
}
FIXED: dict[str, Callable] = {
    "compressed": lambda s, _: compressed(s, 0.3),
    "fewer_slices": lambda s, _: fewer_slices(s, 3),
    "blurred": lambda s, _: blurred(s, 0.8),
    "wider_oscillation": lambda s, _: wider_oscillation(s, 3),
}
ALL = SEEDED | FIXED


def stack(shape=(24, 18, 7), dtype=np.float32, seed: int = 9) -> np.ndarray:
    """Slices whose ranges and offsets differ widely."""
    nz = shape[2]
    data = np.random.default_rng(seed).random(shape) * np.geomspace(0.5, 50, nz) + np.linspace(-20, 3, nz)
    return data.astype(dtype)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


# What holds for each of them


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(24, 18, 7), (64, 48, 10), (16, 33, 4)])
def test_shape_and_type_are_kept_and_the_input_is_left_alone(name, dtype, shape):
    data = stack(shape, dtype)
    before = data.copy()
    out = ALL[name](data, rng())
    assert out.shape == shape
    assert out.dtype == dtype
    assert np.isfinite(out).all()
    assert not np.array_equal(out, before)
    assert not np.shares_memory(out, data)
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("name", ALL)
def test_a_slice_without_contrast_is_no_trouble(name):
    out = ALL[name](np.full((16, 16, 5), -3.0, np.float32), rng())
    np.testing.assert_allclose(out, -3.0, atol=1e-5)


@pytest.mark.parametrize("name", SEEDED)
def test_the_generator_alone_decides(name):
    data = stack()
    np.testing.assert_array_equal(SEEDED[name](data, rng(4)), SEEDED[name](data, rng(4)))
    assert not np.array_equal(SEEDED[name](data, rng(4)), SEEDED[name](data, rng(5)))


@pytest.mark.parametrize("name", [name for name in SEEDED if name != "cut_outs"])
def test_scale_and_offset_of_the_detector_do_not_matter(name):
    data = stack(dtype=np.float64)
    out = SEEDED[name](data, rng())
    np.testing.assert_allclose(SEEDED[name](7 * data - 40, rng()), 7 * out - 40, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "artefact",
    [white_noise, pink_noise, line_noise, background_tilt, slice_drift, scan_drift, height_errors, cut_outs],
)
def test_none_of_it_is_the_identity(artefact):
    data = stack()
    np.testing.assert_array_equal(artefact(data, 0, rng()), data)


# What each of them does


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_white_noise_is_white_with_the_stated_deviation(share):
    data = stack((200, 150, 5), np.float64)
    noise = (white_noise(data, share, rng()) - data) / np.ptp(data, axis=(0, 1))
    np.testing.assert_allclose(noise.std((0, 1)), share, rtol=0.03)
    np.testing.assert_allclose(noise.mean((0, 1)), 0, atol=0.03 * share)
    flat = noise.reshape(-1, 5) / share
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(5), atol=0.04)  # slices are independent
    for axis in (0, 1):  # and so are neighbours
        assert abs((noise * np.roll(noise, 1, axis)).mean()) < 0.02 * share**2


def test_line_noise_is_one_offset_a_scan_line():
    data = stack((8, 4000, 3), np.float64)
    offset = (line_noise(data, 0.05, rng()) - data) / np.ptp(data, axis=(0, 1))
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:1], offset.shape), atol=1e-6)
    np.testing.assert_allclose(offset[0].std(0), 0.05, rtol=0.06)
    assert abs((offset[0] * np.roll(offset[0], 1, 0)).mean()) < 0.1 * 0.05**2


def test_the_background_is_one_plane_a_stack():
    data = stack((21, 31, 4), np.float64)
    plane = (background_tilt(data, 0.1, rng()) - data) / np.ptp(data, axis=(0, 1))
    np.testing.assert_allclose(plane, np.broadcast_to(plane[..., :1], plane.shape), atol=1e-6)
    for axis in (0, 1):
        np.testing.assert_allclose(np.diff(plane, 2, axis), 0, atol=1e-6)
    np.testing.assert_allclose(plane.mean((0, 1)), 0, atol=1e-6)
    zero = np.zeros((5, 5, 1))
    zero[0, 0] = 1  # a range of one
    rises = np.array([(background_tilt(zero, 0.1, rng(s)) - zero)[[-1, 0], [0, -1], 0] for s in range(2000)])
    corner = np.array([(background_tilt(zero, 0.1, rng(s)) - zero)[0, 0, 0] for s in range(2000)])
    np.testing.assert_allclose((rises - corner[:, None]).std(0), 0.1, rtol=0.06)


def test_drift_of_a_slope_is_exact_between_pixels_and_repeats_the_edges():
    x, y = np.meshgrid(np.arange(40.0), np.arange(30.0), indexing="ij")
    data = np.repeat((2 * x - 3 * y)[..., None], 6, axis=2)
    walk = np.cumsum(1.4 * rng(8).standard_normal((6, 2)), axis=0)
    sx, sy = (walk - walk[-1]).T
    expected = 2 * np.clip(x[..., None] - sx, 0, 39) - 3 * np.clip(y[..., None] - sy, 0, 29)
    assert np.abs([sx, sy]).max() > 2
    np.testing.assert_allclose(slice_drift(data, 1.4, rng(8)), expected, atol=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 8), st.tuples(st.integers(12, 60), st.integers(12, 60), st.integers(1, 9)))
def test_cut_outs_are_at_most_so_many_rectangles_of_the_slices_mean(seed, most, shape):
    data = stack(shape, np.float64)
    out = cut_outs(data, most, rng(seed))
    changed = out != data
    k = np.nonzero(changed)[2]
    np.testing.assert_allclose(out[changed], data.mean((0, 1))[k], rtol=1e-12)
    assert len(set(k)) <= most
    assert changed.sum() <= most * (shape[0] // 4) * (shape[1] // 4)
    if most == 1 and changed.any():
        ix, iy, _ = np.nonzero(changed)
        assert changed.sum() == (np.ptp(ix) + 1) * (np.ptp(iy) + 1)
        assert np.ptp(ix) + 1 <= shape[0] / 4
        assert np.ptp(iy) + 1 <= shape[1] / 4


def test_cut_outs_occur_in_every_number_and_every_slice():
    data = stack((40, 40, 4))
    slices = [np.nonzero((cut_outs(data, 1, rng(s)) != data).any((0, 1)))[0] for s in range(200)]
    assert 60 < sum(len(k) for k in slices) < 140  # 0 or 1 with equal chance
    assert set(np.concatenate(slices)) == {0, 1, 2, 3}


@given(
    hnp.arrays(np.float32, (4, 5, 3), elements=st.floats(-100, 100, width=32)),
    st.floats(0, 0.9),
)
def test_compression_keeps_the_range_and_the_order(data, strength):
    out = compressed(data, strength)
    size = np.abs(data).max() + 1
    np.testing.assert_allclose(out.min((0, 1)), data.min((0, 1)), atol=1e-5 * size)
    np.testing.assert_allclose(out.max((0, 1)), data.max((0, 1)), atol=1e-5 * size)
    for k in range(3):
        order = np.argsort(data[..., k], axis=None)
        assert (np.diff(out[..., k].ravel()[order]) >= -1e-5 * size).all()
    assert (out >= data - 1e-4 * size).all()  # values are lifted, the low ones most


def test_compression_is_a_power_of_the_height_above_the_minimum():
    data = np.array([2.0, 3.0, 4.0, 6.0]).reshape(2, 2, 1)
    np.testing.assert_allclose(compressed(data, 0.5).ravel(), [2, 4, 2 + np.sqrt(8), 6], rtol=1e-6)
    np.testing.assert_allclose(compressed(data, 0.0), data, rtol=1e-6)


@pytest.mark.parametrize("kept", [2, 3, 4, 6, 7])
def test_fewer_slices_keep_the_end_slices_and_lines(kept):
    data = stack(dtype=np.float64)
    out = fewer_slices(data, kept)
    np.testing.assert_allclose(out[..., [0, -1]], data[..., [0, -1]], atol=1e-12)
    # between the slices that were kept, nothing but straight lines
    at = np.linspace(0, 6, kept)
    lines = [np.interp(np.arange(7), at, np.interp(at, np.arange(7), column)) for column in data[:5, 0]]
    np.testing.assert_allclose(out[:5, 0], lines, atol=1e-12)
    if kept == 7:
        np.testing.assert_allclose(out, data, atol=1e-12)


@given(st.integers(1, 12), st.data())
def test_resampling_is_exact_for_stacks_linear_in_height(nz, data):
    at = np.array(data.draw(st.lists(st.floats(0, nz - 1), min_size=1, max_size=8)))
    slope, offset = np.random.default_rng(nz).normal(size=(2, 3, 4))
    linear = offset[..., None] + slope[..., None] * np.arange(nz)
    np.testing.assert_allclose(resample_slices(linear, at), offset[..., None] + slope[..., None] * at, atol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_pink_noise_falls_with_frequency_along_the_scan(share):
    """Power spectra of many slices, in time (x first, then y): slope -1 between decades, and the stated deviation."""
    nx, ny, nz = 64, 50, 60
    noise = pink_noise(np.eye(nx, ny)[..., None] * np.ones(nz), share, rng()) - np.eye(nx, ny)[..., None]
    np.testing.assert_allclose(noise.std((0, 1)), share, rtol=1e-6)
    power = (np.abs(np.fft.rfft(noise.transpose(1, 0, 2).reshape(-1, nz), axis=0)) ** 2).mean(1)
    f = np.arange(1, len(power))
    slope = np.polyfit(np.log(f), np.log(power[1:]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)


def test_drift_during_a_scan_shears_a_slope_by_the_stated_amount():
    """An image that rises with x by one a pixel then also falls along y by the drift; the middle line stays."""
    nx, ny = 40, 21
    slope = np.broadcast_to(np.arange(nx, dtype=float)[:, None, None], (nx, ny, 3))
    change = (scan_drift(slope, 2.0, rng(3)) - slope)[5:-5]
    np.testing.assert_allclose(change, np.broadcast_to(change[:1, :, :1], change.shape), atol=1e-9)
    np.testing.assert_allclose(change[:, ny // 2], 0, atol=1e-9)
    drifts = [np.ptp((scan_drift(slope, 2.0, rng(k)) - slope)[20, :, 0]) for k in range(400)]
    assert np.sqrt(np.mean(np.square(drifts))) == pytest.approx(2.0, rel=0.1)


def test_drift_during_a_scan_stretches_along_y():
    slope = np.broadcast_to(np.arange(30, dtype=float)[None, :, None], (20, 30, 2))
    step = np.diff(scan_drift(slope, 2.0, rng(3))[5, 5:-5, 0])
    np.testing.assert_allclose(step, step[0], atol=1e-9)
    assert 0.02 < abs(step[0] - 1) < 0.3


def test_blur_spreads_a_point_by_the_stated_width_and_keeps_its_sum():
    point = np.zeros((41, 41, 2))
    point[20, 20] = 1
    out = blurred(point, 2.0)
    x = np.arange(41) - 20
    np.testing.assert_allclose(out.sum((0, 1)), 1, atol=1e-4)
    np.testing.assert_allclose((out.sum(1)[:, 0] * x**2).sum(), 4.0, rtol=0.02)


def test_errors_of_heights_are_as_large_as_stated():
    """In a stack that is its own slice number."""
    nz = 2000
    slices = np.broadcast_to(np.arange(nz, dtype=float), (2, 2, nz))
    error = (height_errors(slices, 0.2, rng()) - slices)[0, 0, 5:-5]
    assert error.std() == pytest.approx(0.2, rel=0.06)
    assert abs(error.mean()) < 0.02


def test_a_wider_oscillation_averages_over_heights_above():
    slices = np.broadcast_to(np.arange(8.0), (2, 2, 8))
    out = wider_oscillation(slices, 3)[0, 0]
    np.testing.assert_allclose(out[2:], np.arange(2, 8) - 1)  # weights are symmetric about the slice above
    assert out[0] == 0
    np.testing.assert_array_equal(wider_oscillation(slices, 1), slices)
