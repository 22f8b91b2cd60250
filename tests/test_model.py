"""The model: peaks as a round trip, maps and molecules that move with the image, invariances, losses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afmol.data.samples import Batch
from afmol.elements import ELEMENTS
from afmol.errors import ConfigError
from afmol.model import OnePass, OnePassConfig
from afmol.model.one_pass.graph import LONGEST_BOND, BondNet, Graph, bondable, sample_features
from afmol.model.one_pass.one_pass import (
    CANDIDATE,
    MATCH,
    SPARE_DEPTH,
    _molecule,
    _patches,
    match,
    uncovered,
)
from afmol.model.one_pass.peaks import find_peaks
from afmol.model.one_pass.posnet import BUSY, CLIP, standardise
from afmol.model.one_pass.views import VIEWS, turn, turn_back, turn_points

TINY = OnePassConfig(channels=(16, 24, 32), blocks=1, width=16, rounds=1)
FEEDBACK = replace(TINY, feedback=1)
WHOLE = replace(FEEDBACK, shifts=True, sizes=True)
PIXEL = TINY.pixel
seeds = st.integers(0, 2**32 - 1)


# --- things to test with


def randomised(config: OnePassConfig = TINY, seed: int = 0) -> Any:
    """A model in eval mode with random weights, biases and batch norm statistics; offsets and z are some 0.1 A."""
    g = torch.manual_seed(seed)
    model: Any = OnePass(config)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else p.clamp(-1, 1) + 0.2 * noise)
        for name, b in model.named_buffers():
            if "mean" in name:
                b.copy_(0.3 * torch.randn(b.shape, generator=g))
            elif "var" in name:
                b.copy_(0.5 + torch.rand(b.shape, generator=g))
        model.posnet.head.weight[4:] *= 0.2
        model.posnet.head.bias[4:] *= 0.2
        for line in (model.bondnet.depth, model.bondnet.shift, model.bondnet.size):
            for p in () if line is None else line.parameters():
                p *= 0.1
    return model.eval()


def finding(images: Tensor, seed: int = 0, share: float = 0.1, config: OnePassConfig = TINY) -> Any:
    """A random model that finds candidates in these images, and believes about half of them."""
    model = randomised(config, seed)
    with torch.no_grad():
        features, maps = model.posnet(images)
        model.posnet.head.bias[:4] -= maps[:, 0].flatten().quantile(1 - share)
        positions, image, _ = find_peaks(model.posnet(images)[1], PIXEL, CANDIDATE)
        exists = model.bondnet(features, positions, image, 2 * PIXEL).exists
        model.bondnet.exists.bias -= exists.quantile(0.4)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(rng: np.random.Generator, n: int, size: tuple[float, float], distance: float) -> np.ndarray:
    """At most n random points (A), at least `distance` from each other in the plane; z in -1 ... 0."""
    points = np.zeros((0, 3))
    for p in rng.uniform(0, 1, (6 * n, 3)) * [*size, -1.0]:
        if len(points) < n and (np.linalg.norm(points[:, :2] - p[:2], axis=1) >= distance).all():
            points = np.vstack([points, p])
    return points


def rendered(points: np.ndarray, nx: int, ny: int, top: float = 0.98, nearest_is_one: bool = True) -> Tensor:
    """Maps of one image that say where the points are: Gaussian heat, and offset and z of the nearest point.

    `nearest_is_one`: the pixel nearest to a point has all of its heat, as in training.
    """
    x, y = (np.arange(nx) + 0.5) * PIXEL, (np.arange(ny) + 0.5) * PIXEL
    centre = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    maps = np.zeros((4, nx, ny), np.float32)
    distance = np.linalg.norm(centre[:, :, None] - points[:, :2], axis=-1)
    heat = np.exp(-(distance**2) / (2 * 0.25**2)).max(-1, initial=0)
    if nearest_is_one:
        for k in range(len(points)):
            heat[np.unravel_index(distance[..., k].argmin(), (nx, ny))] = 1
    p = np.clip(top * heat, 1e-6, None)
    maps[0] = np.log(p / (1 - p))
    if len(points):
        owner = points[distance.argmin(-1)]
        maps[1:3] = (owner[..., :2] - centre).transpose(2, 0, 1)
        maps[3] = owner[..., 2]
    return torch.from_numpy(maps)


def labelled(rng: np.random.Generator, counts: list[int], nx: int = 32, ny: int = 40, z: float | None = None) -> Batch:
    """A batch of noise with `counts` made-up atoms in each image, the first bonded to the second and so on."""
    molecules = [apart(rng, n, (nx * PIXEL, ny * PIXEL), 0.9) for n in counts]
    start = np.cumsum([0] + [len(m) for m in molecules])
    positions = np.concatenate([np.zeros((0, 3)), *molecules])
    if z is not None:
        positions[:, 2] = z
    molecule = np.repeat(np.arange(len(counts)), np.diff(start))
    bonds = [(i, i + 1) for i in range(len(positions) - 1) if molecule[i] == molecule[i + 1]]
    return Batch(
        torch.from_numpy(rng.normal(size=(len(counts), TINY.slices, nx, ny)).astype(np.float32)),
        torch.from_numpy(positions.astype(np.float32)),
        torch.from_numpy(rng.integers(0, len(ELEMENTS), len(positions))),
        torch.from_numpy(molecule),
        torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2),
        torch.from_numpy(rng.uniform(-0.1, 0.1, len(counts)).astype(np.float32)),
    )


def nearest_order(found: Tensor, points: np.ndarray) -> np.ndarray:
    """For each point the found one next to it, each used once."""
    distance = np.linalg.norm(points[:, None, :2] - found.numpy()[None, :, :2], axis=-1)
    order = distance.argmin(1) if len(points) else np.zeros(0, int)
    assert sorted(order) == list(range(len(points)))
    return order


# --- peaks


@settings(max_examples=40)
@given(seeds, st.integers(0, 40), st.integers(8, 64), st.integers(8, 64))
def test_peaks_return_the_atoms_that_maps_were_made_of(seed, n, nx, ny):
    points = apart(np.random.default_rng(seed), n, (nx * PIXEL, ny * PIXEL), 0.9)
    found, image, score = find_peaks(rendered(points, nx, ny)[None], PIXEL, 0.3)
    assert len(found) == len(points)
    assert (image == 0).all()
    assert torch.allclose(score, torch.tensor(0.98))
    np.testing.assert_allclose(found.numpy()[nearest_order(found, points)], points, atol=1e-3)


@settings(max_examples=20)
@given(seeds)
def test_peaks_of_plain_gaussians(seed):
    """Without the nearest pixel set to one; 1.07 A: two atoms then never compete in a window of 5 x 5 pixels."""
    points = apart(np.random.default_rng(seed), 30, (12.0, 10.0), 1.07)
    found, _, _ = find_peaks(rendered(points, 48, 40, nearest_is_one=False)[None], PIXEL, 0.3)
    np.testing.assert_allclose(found.numpy()[nearest_order(found, points)], points, atol=1e-3)


def dots(*rows: tuple[int, int, float, float, float]) -> Tensor:
    """Maps (1, 4, 24, 24) with heat at single pixels: rows of ix, iy, heat, offset x, offset y."""
    maps = torch.zeros(1, 4, 24, 24)
    maps[:, 0] = -20
    for ix, iy, heat, dx, dy in rows:
        maps[0, :3, ix, iy] = torch.tensor([np.log(heat / (1 - heat)), dx, dy])
    return maps


@pytest.mark.parametrize("stronger", [0, 1])
def test_of_two_atoms_too_close_the_weaker_goes(stronger):
    heat = [0.7, 0.7]
    heat[stronger] = 0.9
    # two maxima 3 pixels apart, which point towards each other until 0.45 A are left; a third stands alone
    rows = [(8, 8, heat[0], 0.15, 0.0), (11, 8, heat[1], -0.15, 0.0), (18, 18, 0.5, 0.0, 0.0)]
    found, _, score = find_peaks(dots(*rows), PIXEL, 0.3)
    expected = [(8.5 * PIXEL + 0.15, 8.5 * PIXEL), (11.5 * PIXEL - 0.15, 8.5 * PIXEL)][stronger]
    assert score.tolist() == pytest.approx([0.9, 0.5])
    np.testing.assert_allclose(found[0, :2], expected, atol=1e-6)


def test_of_two_equal_atoms_too_close_one_stays():
    found, _, _ = find_peaks(dots((8, 8, 0.9, 0.15, 0.0), (11, 8, 0.9, -0.15, 0.0)), PIXEL, 0.3)
    assert len(found) == 1


def test_the_threshold_of_peaks():
    maps = dots((3, 3, 0.4, 0, 0), (12, 12, 0.6, 0, 0), (20, 3, 0.8, 0, 0))
    counts = [len(find_peaks(maps, PIXEL, t)[0]) for t in (0.3, 0.5, 0.7, 0.9)]
    assert counts == [3, 2, 1, 0]


def test_no_peaks_no_atoms():
    positions, image, score = find_peaks(torch.full((3, 4, 16, 24), -9.0), PIXEL, 0.3)
    assert (positions.shape, image.shape, score.shape) == ((0, 3), (0,), (0,))


def test_peaks_at_the_rim_and_in_the_corners():
    points = np.array([[0.01, 0.01, 0.0], [3.99, 0.02, -0.1], [0.0, 5.99, -0.2], [3.99, 5.99, -0.3], [2.0, 0.0, -0.4]])
    found, _, _ = find_peaks(rendered(points, 16, 24)[None], PIXEL, 0.3)
    np.testing.assert_allclose(found.numpy()[nearest_order(found, points)], points, atol=1e-3)


@settings(max_examples=20)
@given(seeds, st.integers(0, 20), st.integers(0, 20))
def test_peaks_of_two_images_are_those_of_each(seed, n, m):
    rng = np.random.default_rng(seed)
    maps = torch.stack([rendered(apart(rng, k, (8.0, 10.0), 0.9), 32, 40) for k in (n, m)])
    positions, image, score = find_peaks(maps, PIXEL, 0.3)
    for b in range(2):
        alone = find_peaks(maps[b : b + 1], PIXEL, 0.3)
        assert torch.equal(positions[image == b], alone[0])
        assert torch.equal(score[image == b], alone[2])


# --- posnet


@settings(max_examples=40)
@given(seeds, st.floats(-100, 100), st.floats(-6, 6))
def test_offset_and_scale_of_a_slice_change_nothing(seed, offset, decades):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 20, 17, generator=g) ** 4
    # an offset of 100 in units of the contrast leaves 5 digits of float32
    moved = images.clone()
    moved[1, 2] = (images[1, 2] + offset) * 10**decades
    assert torch.allclose(standardise(moved), standardise(images), atol=2e-3)


def test_standardised_slices():
    x = standardise(noise(2, 3, 40, 30) * 7 + 3)
    assert torch.allclose(x.mean((2, 3)), torch.zeros(2, 3), atol=1e-3)
    assert torch.allclose(x.std((2, 3)), torch.ones(2, 3), atol=1e-2)
    spike = torch.zeros(1, 1, 64, 64)
    spike[0, 0, 5, 5] = 1e6
    assert standardise(spike).abs().max() == CLIP
    assert torch.equal(standardise(torch.full((1, 2, 8, 8), 3.0)), torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (56, 16), (104, 24)])
def test_bare_surroundings_change_nothing(x, y):
    """What is seen in a large bare image is standardised as in a smaller one."""
    small = noise(2, 3, BUSY, BUSY)
    small[:, :, :8], small[:, :, -8:] = 0.0, 0.0
    small[:, :, :, :8], small[:, :, :, -8:] = 0.0, 0.0
    large = torch.zeros(2, 3, 200, 120)
    large[:, :, x : x + BUSY, y : y + BUSY] = small
    part = standardise(large)[:, :, x : x + BUSY, y : y + BUSY]
    assert torch.allclose(part, standardise(small), atol=0.05)


@pytest.mark.parametrize(("nx", "ny"), [(16, 16), (17, 23), (16, 61), (40, 16), (33, 47), (31, 24), (8, 9)])
def test_any_size_gives_maps_of_that_size(nx, ny):
    images = noise(2, TINY.slices, nx, ny)
    model = finding(images)
    with torch.no_grad():
        features, maps = model.posnet(images)
    assert maps.shape == (2, 4, nx, ny)
    assert features.shape[:2] == (2, TINY.channels[0])
    assert 2 * features.shape[2] >= nx
    assert 2 * features.shape[3] >= ny
    assert maps.isfinite().all()
    for molecule in model.predict(images):
        assert np.isfinite(molecule.positions).all()


RIM = 56
"""Pixels from the border that the zero padding outside the image can reach: one block a level sees 45 pixels far, and
the strides add up to 8."""
SIDE = 192
"""Pixels."""


def blobs(shift: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """A stack of blobs in the middle of zeros, shifted by pixels, and where they are before the shift, A."""
    rng = np.random.default_rng(7)
    points = apart(rng, 9, (7.0, 7.0), 1.7)[:, :2] + (SIDE * PIXEL - 7.0) / 2
    x = (np.arange(SIDE) + 0.5) * PIXEL
    image = np.zeros((TINY.slices, SIDE, SIDE))
    for p in points:
        distance = np.hypot(*np.meshgrid(x - p[0], x - p[1], indexing="ij"))
        spot = np.exp(-(distance**2) / (2 * rng.uniform(0.4, 0.7) ** 2)) * (distance < 3)
        image += spot * np.linspace(0.3, 1, TINY.slices)[:, None, None] * rng.uniform(0.8, 1.2)
    image = np.roll(image, shift, axis=(1, 2))
    return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(points.astype(np.float32))


@pytest.mark.parametrize("shift", [(8, 0), (-8, 16)])
def test_maps_move_with_the_image(shift):
    posnet = randomised(seed=1).posnet
    with torch.no_grad():
        before, after = posnet(blobs()[0])[1], posnet(blobs(shift)[0])[1]
    back = after.roll((-shift[0], -shift[1]), (2, 3))
    inner = slice(RIM + 16, SIDE - RIM - 16)
    before, back = before[..., inner, inner], back[..., inner, inner]
    assert before.std((2, 3)).min() > 0.02, "maps without contrast show nothing"
    assert torch.allclose(before, back, atol=1e-4)


@torch.no_grad()
def blob_finder(seed: int) -> Any:
    """A random network whose heat alone is trained, by least squares, to tell blobs from the rest."""
    model = randomised(seed=seed)
    images, points = blobs()
    features, _ = model.posnet(images)
    rows = F.unfold(features, 3, padding=1)[0].T
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    heat = rendered(np.column_stack([points, 0 * points[:, 0]]), SIDE, SIDE)[:1]
    target = F.pixel_unshuffle(heat, 2).flatten(1).T.clamp(-6, 4)
    weight = 1 + 10 * (target > -4).any(1, keepdim=True)
    solved = torch.linalg.lstsq(rows * weight, target * weight).solution.T
    head = model.posnet.head
    head.weight[:4] = solved[:, :-1].reshape(4, -1, 3, 3)
    head.bias[:4] = solved[:, -1]
    head.weight[12:] *= 0.2  # no atom deeper than the model reports
    model.bondnet.exists.bias += 8
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shift_of_two_angstrom_shifts_the_molecule_and_nothing_else(seed):
    """The defect of figure 2 of the report: there, atoms changed their classes and lost their bonds."""
    model = blob_finder(seed)
    (before,) = model.predict(blobs()[0])
    assert len(before) >= 7
    assert len(before.bonds) >= 5
    for shift in ([2.0, 0.0, 0.0], [-2.0, 2.0, 0.0]):
        (after,) = model.predict(blobs((round(shift[0] / PIXEL), round(shift[1] / PIXEL)))[0])
        np.testing.assert_allclose(after.positions, before.positions + shift, atol=1e-4)
        np.testing.assert_array_equal(after.numbers, before.numbers)
        np.testing.assert_array_equal(after.bonds, before.bonds)
        np.testing.assert_allclose(after.class_probabilities, before.class_probabilities, atol=1e-4)
        np.testing.assert_allclose(after.confidence, before.confidence, atol=1e-4)
        np.testing.assert_allclose(after.bond_probabilities, before.bond_probabilities, atol=1e-4)


# --- graph network


def bondnet(channels: int = 6) -> BondNet:
    torch.manual_seed(5)
    net = BondNet(channels, 16, 2, shifts=True, sizes=True).eval()
    assert net.shift is not None
    assert net.size is not None
    torch.nn.init.normal_(net.shift.weight, std=0.1)
    torch.nn.init.normal_(net.size.weight, std=0.1)
    return net


def atoms(n: int, images: int = 2, seed: int = 0, side: float = 6.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    positions = torch.from_numpy((rng.uniform(0, 1, (n, 3)) * [side, side, -1]).astype(np.float32))
    return positions, torch.from_numpy(np.sort(rng.integers(0, images, n)))


def as_matrix(graph, n: int) -> Tensor:
    """Bond logits as a symmetric matrix, NaN where no bond is asked for."""
    out = torch.full((n, n), torch.nan)
    out[graph.pairs[:, 0], graph.pairs[:, 1]] = graph.bonds.detach()
    out[graph.pairs[:, 1], graph.pairs[:, 0]] = graph.bonds.detach()
    return out


def assert_same_graph(a, b, order: Tensor) -> None:
    """Graph b is graph a with its atoms taken in this order."""
    n = len(order)
    assert torch.allclose(b.exists, a.exists[order], atol=1e-4)
    assert torch.allclose(b.elements, a.elements[order], atol=1e-4)
    assert torch.allclose(b.z, a.z[order], atol=1e-4)
    assert torch.allclose(b.stretch, a.stretch, atol=1e-5)
    left, right = as_matrix(b, n), as_matrix(a, n)[order][:, order]
    assert left.isfinite().sum() > n, "too few bonds for a test"
    assert torch.allclose(left, right, atol=1e-4, equal_nan=True)


@settings(max_examples=20)
@given(seeds, st.randoms(use_true_random=False))
def test_the_order_of_atoms_does_not_matter(seed, random):
    """In particular a bond has one value, whichever of its atoms comes first."""
    net, features = bondnet(), noise(2, 6, 12, 14)
    positions, image = atoms(24, seed=seed)
    order = torch.tensor(random.sample(range(24), 24))
    before, after = net(features, positions, image, 0.5), net(features, positions[order], image[order], 0.5)
    assert_same_graph(before, after, order)
    assert torch.allclose(after.xy, before.xy[order], atol=1e-4)


@pytest.mark.parametrize("move", ["quarter turn", "any turn", "mirror", "shift"])
def test_moving_atoms_over_constant_features_changes_nothing(move):
    net = bondnet()
    features = noise(1, 6, 1, 1).expand(1, 6, 12, 12).contiguous()
    positions, image = atoms(14, images=1, side=5.0)
    about, (c, s) = torch.tensor([2.5, 2.5, 0.0]), (np.cos(0.7), np.sin(0.7))
    matrix, vector = {
        "quarter turn": ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], [0, 0, 0]),
        "any turn": ([[c, -s, 0], [s, c, 0], [0, 0, 1]], [0, 0, 0]),
        "mirror": ([[-1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0]),
        "shift": (np.eye(3), [3.0, -1.7, 0]),
    }[move]

    def moved(points: Tensor) -> Tensor:
        return (points - about) @ torch.tensor(matrix, dtype=torch.float32).T + about + torch.tensor(vector)

    before, after = (net(features, points, image, 0.5) for points in (positions, moved(positions)))
    assert_same_graph(before, after, torch.arange(14))
    places = torch.cat([before.xy, before.z[:, None]], dim=1)
    assert (places - positions).norm(dim=1).mean() > 0.05
    assert torch.allclose(after.xy, moved(places)[:, :2], atol=1e-4)  # corrections move with the atoms


def test_places_are_corrected_along_the_lines_to_neighbours():
    """Atoms 0 and 1 on a line, 2 too far from both to say or hear anything."""
    net, features = bondnet(), noise(1, 6, 30, 30)
    positions = torch.tensor([[1.0, 1.0, 0.0], [1.8, 1.6, -0.3], [12.0, 12.0, 0.0]])
    line = torch.tensor([0.8, 0.6])
    shift = net(features, positions, torch.zeros(3, dtype=torch.int64), 0.5).xy - positions[:, :2]
    assert shift[:2].norm(dim=1).min() > 1e-3
    assert torch.allclose(shift[:2], (shift[:2] @ line)[:, None] * line, atol=1e-6)
    assert not shift[2].any()


def test_distances_and_heights_do_matter():
    net, features = bondnet(), torch.ones(1, 6, 12, 12)
    positions, image = atoms(14, images=1)
    before = net(features, positions, image, 0.5)
    for factor in ([1.1, 1.1, 1.0], [1.0, 1.0, -1.0]):
        after = net(features, positions * torch.tensor(factor), image, 0.5)
        assert (after.exists - before.exists).abs().max() > 1e-3


def test_candidate_bonds_are_the_short_pairs_of_an_image():
    positions, image = atoms(24)
    graph = bondable(bondnet()(noise(2, 6, 12, 12), positions, image, 0.5), positions)
    expected = [
        (i, j)
        for i in range(24)
        for j in range(i + 1, 24)
        if image[i] == image[j] and np.linalg.norm(positions[i, :2] - positions[j, :2]) < LONGEST_BOND
    ]
    assert sorted(map(tuple, graph.pairs.tolist())) == expected


def test_atoms_of_other_images_do_not_matter():
    net, features = bondnet(), noise(2, 6, 12, 12)
    positions, image = atoms(24)
    both = net(features, positions, image, 0.5)
    for b in range(2):
        own = image == b
        alone = net(features[b : b + 1], positions[own], torch.zeros(int(own.sum()), dtype=torch.int64), 0.5)
        assert torch.allclose(both.exists[own], alone.exists, atol=1e-5)
        assert torch.allclose(both.elements[own], alone.elements, atol=1e-5)
        matrix = as_matrix(both, 24)[own][:, own]
        assert torch.allclose(matrix, as_matrix(alone, int(own.sum())), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("n", [0, 1])
def test_no_atoms_and_one_atom(n):
    graph = bondnet()(noise(1, 6, 8, 8), torch.ones(n, 3), torch.zeros(n, dtype=torch.int64), 0.5)
    assert graph.exists.shape == (n,)
    assert graph.elements.shape == (n, len(ELEMENTS))
    assert (graph.pairs.shape, graph.bonds.shape) == ((0, 2), (0,))
    assert graph.exists.isfinite().all()


@settings(max_examples=30)
@given(seeds, st.integers(2, 15), st.integers(2, 15), st.sampled_from([0.25, 0.5, 0.3]))
def test_interpolation_is_exact_for_ramps(seed, nx, ny, pixel):
    """Value a + b x + c y at pixel centres (i + 0.5) * pixel; beyond the outermost centres it stays."""
    rng = np.random.default_rng(seed)
    x, y = (torch.arange(nx) + 0.5) * pixel, (torch.arange(ny) + 0.5) * pixel
    a, b, c = (torch.from_numpy(rng.normal(size=(2, 3, 1, 1)).astype(np.float32)) for _ in range(3))
    ramp = a + b * x[:, None] + c * y[None]
    points = torch.from_numpy((rng.uniform(-0.1, 1.1, (20, 2)) * [nx * pixel, ny * pixel]).astype(np.float32))
    image = torch.from_numpy(rng.integers(0, 2, 20))
    px, py = points[:, 0].clamp(x[0], x[-1])[:, None], points[:, 1].clamp(y[0], y[-1])[:, None]
    expected = (a[:, :, 0, 0])[image] + b[:, :, 0, 0][image] * px + c[:, :, 0, 0][image] * py
    assert torch.allclose(sample_features(ramp, points, image, pixel), expected, atol=1e-4)


# --- predictions


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batch_of_two_is_two_batches(seed):
    images = noise(2, TINY.slices, 40, 32, seed=seed)
    model = finding(images, seed)
    together = model.predict(images)
    assert all(len(m) > 3 for m in together)
    for b in range(2):
        (alone,), packed = model.predict(images[b : b + 1]), together[b]
        np.testing.assert_allclose(packed.positions, alone.positions, atol=1e-4)
        np.testing.assert_array_equal(packed.numbers, alone.numbers)
        np.testing.assert_array_equal(packed.bonds, alone.bonds)
        for field in ("class_probabilities", "confidence", "bond_probabilities"):
            np.testing.assert_allclose(getattr(packed, field), getattr(alone, field), atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_a_prediction_says_fits_together(seed, monkeypatch):
    monkeypatch.setattr("afmol.model.one_pass.views.VIEWS", [(False, False, False)])
    monkeypatch.setattr("afmol.precision.fast_precision", lambda _: "32-true")
    images = noise(2, TINY.slices, 40, 32, seed=10 + seed)
    model = finding(images, seed)
    with torch.no_grad():
        features, maps = model.posnet(images)
        positions, image, _ = find_peaks(maps, PIXEL, CANDIDATE)
        graph = model.bondnet(features, positions, image, 2 * PIXEL)
    everything = model.predict(images, 0.0)
    for b, molecule in enumerate(model.predict(images)):
        assert 0 < len(molecule) <= len(everything[b])
        assert (molecule.confidence >= 0.5).all()
        assert molecule.positions[:, 2].max() == 0
        assert (molecule.positions[:, 2] >= -(TINY.depth + SPARE_DEPTH)).all()
        np.testing.assert_allclose(molecule.class_probabilities.sum(1), 1, atol=1e-6)
        np.testing.assert_array_equal(molecule.classes, molecule.class_probabilities.argmax(1))
        # the classes by a loop over elements, for the candidate that the atom came from
        for k in range(len(molecule)):
            near = (positions[:, :2].double() - torch.from_numpy(molecule.positions[k, :2])).norm(dim=1)
            candidate = int(near.masked_fill(image != b, torch.inf).argmin())
            softmax = graph.elements[candidate].double().softmax(0).tolist()
            classes = [0.0] * 5
            for element, p in zip(ELEMENTS, softmax, strict=True):
                classes[element.category] += p
            np.testing.assert_allclose(molecule.class_probabilities[k], classes, atol=1e-6)


def test_a_prediction_by_hand():
    """Six candidates: one that is not believed though it is the topmost, one too deep; carbon 0.3, silicon 0.25 make
    class 1, though oxygen is the likeliest element."""
    positions = torch.tensor([[1, 1, 0.9], [2, 1, 0.3], [3, 1, -0.2], [4, 1, -1.1], [5, 1, 0.0], [6, 1, -0.1]])
    elements = torch.full((6, len(ELEMENTS)), 1e-9)
    symbols = [e.symbol for e in ELEMENTS]
    elements[:, symbols.index("H")] = 1
    elements[2] = 1e-9
    elements[2, [symbols.index(s) for s in ("O", "C", "Si")]] = torch.tensor([0.45, 0.3, 0.25])
    pairs = torch.tensor([[1, 2], [2, 3], [2, 4], [4, 5], [1, 4]])
    confidence, bonds = torch.linspace(0.4, 0.9, 6), torch.tensor([0.9, 0.8, 0.7, 0.1, 0.001])
    graph = Graph(
        confidence.logit(), elements.log(), positions[:, :2] + 0.0, positions[:, 2] + 0.02, pairs, bonds.logit()
    )
    got: Any = _molecule(graph, torch.ones(6, dtype=torch.bool), 0.5 - 1e-6, 0.8)
    np.testing.assert_allclose(got.positions, [[2, 1, 0], [3, 1, -0.18], [5, 1, 0], [6, 1, -0.08]], atol=1e-6)
    np.testing.assert_array_equal(got.numbers, [1, 6, 1, 1])
    np.testing.assert_allclose(got.class_probabilities[1], [0, 0.55, 0, 0.45, 0], atol=1e-6)
    assert [symbol for symbol, _ in got.alternatives()[1]] == ["O", "C", "Si"]
    np.testing.assert_array_equal(got.bonds, [[0, 1], [1, 2], [2, 3]])
    np.testing.assert_allclose(got.bond_probabilities, [0.9, 0.7, 0.1], atol=1e-6)
    np.testing.assert_allclose(got.confidence, [0.5, 0.6, 0.8, 0.9], atol=1e-6)


def test_atoms_all_below_the_asked_plane_are_raised_to_it():
    positions = torch.tensor([[1, 1, -0.4], [3, 1, -0.9]])
    no_pairs = torch.zeros(0, 2, dtype=torch.int64)
    graph = Graph(
        torch.ones(2), torch.zeros(2, len(ELEMENTS)), positions[:, :2], positions[:, 2], no_pairs, torch.zeros(0)
    )
    got = _molecule(graph, torch.ones(2, dtype=torch.bool), 0.5, 0.8)
    np.testing.assert_allclose(got.positions[:, 2], [0, -0.5], atol=1e-6)


def test_a_faint_candidate_is_not_the_topmost_atom():
    """Where candidates are asked for that are hardly there, depths count from the same atom as without them."""
    positions = torch.tensor([[1, 1, 0.0], [3, 1, -0.4], [5, 1, -0.9]])
    no_pairs, mine = torch.zeros(0, 2, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    confidence = torch.tensor([0.3, 0.9, 0.9]).logit()
    graph = Graph(
        confidence, torch.zeros(3, len(ELEMENTS)), positions[:, :2], positions[:, 2], no_pairs, torch.zeros(0)
    )
    np.testing.assert_allclose(_molecule(graph, mine, 0.1, 0.8).positions[:, 2], [0, 0, -0.5], atol=1e-6)
    np.testing.assert_allclose(_molecule(graph, mine, 0.5, 0.8).positions[:, 2], [0, -0.5], atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_turning_and_mirroring_the_image_turns_and_mirrors_the_molecule(view):
    """Sides that are multiples of the stride: elsewhere the rim differs, since the image is filled up on one side."""
    images = noise(1, TINY.slices, 48, 32, seed=4)
    model = finding(images, 4, config=WHOLE)
    (plain,), (turned,) = model.predict(images), model.predict(turn(images, view))
    assert len(plain) > 2
    size = torch.tensor([48, 32]) * PIXEL
    expected = turn_points(torch.from_numpy(plain.positions).float(), size, view).numpy()
    there = np.linalg.norm(expected[:, None] - turned.positions[None], axis=-1).argmin(1)
    assert sorted(there) == list(range(len(plain)))
    np.testing.assert_allclose(turned.positions[there], expected, atol=1e-4)
    np.testing.assert_array_equal(turned.numbers[there], plain.numbers)
    assert abs(plain.stretch - 1) > 1e-3
    assert turned.stretch == pytest.approx(plain.stretch, abs=1e-5)
    np.testing.assert_allclose(turned.confidence[there], plain.confidence, atol=1e-4)


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_maps_and_points_go_together(view):
    """A map that says where its pixels are: turned there and back, and read at turned points."""
    x, y = np.meshgrid((np.arange(10) + 0.5) * PIXEL, (np.arange(6) + 0.5) * PIXEL, indexing="ij")
    maps = torch.from_numpy(np.stack([x + 100 * y, x, y, x * y])[None]).float()
    there = turn(maps, view)
    points = torch.tensor([[1.1, 0.3, 0.0], [0.1, 1.3, -0.2]])
    size = torch.tensor([10, 6]) * PIXEL
    at = (turn_points(points, size, view)[:, :2] / PIXEL).floor().long()
    before = (points[:, :2] / PIXEL).floor().long()
    torch.testing.assert_close(there[0, 0, at[:, 0], at[:, 1]], maps[0, 0, before[:, 0], before[:, 1]])
    back = turn_back(there, view)
    torch.testing.assert_close(back[:, [0, 3]], maps[:, [0, 3]])


def test_nothing_found_is_an_empty_molecule():
    model = randomised()
    model.posnet.head.bias.data[:4] = -100
    for molecule in model.predict(noise(2, TINY.slices, 32, 24)):
        assert len(molecule) == 0
        assert molecule.class_probabilities.shape == (0, 5)
        assert molecule.bonds.shape == (0, 2)


# --- losses


def perfect(batch: Batch) -> Tensor:
    nx, ny = batch.images.shape[2:]
    return torch.stack(
        [rendered(batch.positions[batch.molecule == b].double().numpy(), nx, ny) for b in range(len(batch.images))]
    )


def test_perfect_maps_have_no_loss_of_place():
    batch = labelled(np.random.default_rng(1), [9, 0, 12])
    model, maps = OnePass(TINY), perfect(batch)
    losses = model._map_losses(batch, maps)
    assert losses["offset"] < 1e-5
    assert losses["z"] < 1e-5
    wrong = maps.clone()
    wrong[:, 1] += 0.1
    wrong[:, 3] -= 0.2
    losses = model._map_losses(batch, wrong)
    assert float(losses["offset"]) == pytest.approx(0.1, abs=1e-4)
    assert float(losses["z"]) == pytest.approx(0.2, abs=1e-4)


def test_heat_is_lost_where_atoms_are_missing_displaced_or_made_up():
    batch = labelled(np.random.default_rng(2), [9, 12])
    model = OnePass(TINY)

    def loss(maps: Tensor) -> float:
        return float(model._map_losses(batch, maps)["heat"])

    maps = perfect(batch)
    best = loss(maps)
    assert best < 0.1
    missing = maps.clone()
    missing[0, 0] = -10
    assert loss(missing) > best + 1
    assert loss(maps.roll(3, 2)) > best + 1
    extra = maps.clone()
    extra[:, 0, ::4, ::4] = 5
    assert loss(extra) > best + 1


def test_deep_atoms_are_neither_right_nor_wrong():
    rng = np.random.default_rng(3)
    batch = labelled(rng, [8, 8])
    deep = batch.molecule == 1
    batch.positions[deep, 2] = -1.5
    model = OnePass(TINY)
    with_them = perfect(batch)
    without = with_them.clone()
    without[1, 0] = -13
    for name in ("heat", "offset", "z"):
        a, b = (float(model._map_losses(batch, m)[name]) for m in (with_them, without))
        assert a == pytest.approx(b, abs=0.02), name


def test_match_by_hand():
    atoms = torch.tensor([[1.0, 1.0, 0.0], [3.0, 1.0, -0.5], [5.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    molecule = torch.tensor([0, 0, 0, 1])
    found = torch.tensor(
        [
            [1.1, 1.0, -0.8],  # atom 0: z does not matter
            [3.3, 1.0, 0.0],  # atom 1 has a nearer one
            [2.9, 1.0, 0.0],  # atom 1
            [5.0, 1.0 + MATCH + 0.01, 0.0],  # too far from atom 2
            [3.0, 1.0, 0.0],  # nothing there in image 1
            [1.0, 1.0 + MATCH - 0.01, 0.0],  # atom 3, the one of image 1
        ]
    )
    image = torch.tensor([0, 0, 0, 0, 1, 1])
    assert match(found, image, atoms, molecule).tolist() == [0, -1, 1, -1, -1, 3]
    assert match(found[:0], image[:0], atoms, molecule).shape == (0,)
    assert match(found, image, atoms[:0], molecule[:0]).tolist() == [-1] * 6


def test_match_takes_nobody_twice():
    found = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    got = match(found, torch.zeros(2, dtype=torch.int64), found[:1], torch.zeros(1, dtype=torch.int64)).tolist()
    assert sorted(got) == [-1, 0]


BATCHES: dict[str, dict[str, Any]] = {
    "usual": {"counts": [6, 9]},
    "an empty sample": {"counts": [0, 9, 0]},
    "no atoms at all": {"counts": [0, 0]},
    "one atom": {"counts": [1]},
    "only deep atoms": {"counts": [6, 3], "z": -1.5},
}


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["once", "asked again, shifts, sizes"])
@pytest.mark.parametrize(("candidates", "step"), [("none", 0), ("many", 0), ("many", 1)])
@pytest.mark.parametrize("kind", BATCHES)
def test_losses_and_gradients_are_finite(kind, candidates, step, config):
    batch = labelled(np.random.default_rng(4), **BATCHES[kind])
    model = randomised(config).train()
    model.posnet.head.bias.data[:4] += -50 if candidates == "none" else 1
    losses = model(batch, torch.Generator().manual_seed(step))
    graph = {"exists", "elements", "depth", "bonds"} | ({"xy", "size"} if config.shifts else set())
    again = {f"{name}_again" for name in graph if config.feedback}
    assert set(losses) == {"heat", "offset", "z"} | graph | again
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if kind == "usual" and candidates == "many":
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_what_the_graph_network_is_told():
    """Of every node what it said itself and all asked for, or true elements of some atoms and the others asked for."""
    batch = labelled(np.random.default_rng(4), [9, 9, 9, 9, 9, 9])
    n = len(batch.elements)
    image = torch.cat([batch.molecule, torch.zeros(1, dtype=torch.int64)])
    truth = torch.cat([torch.arange(n), torch.tensor([-1])])  # and a candidate that stands for no atom
    said = torch.randn(n + 1, len(ELEMENTS))
    model, seen = OnePass(FEEDBACK), set()
    for seed in range(20):
        told, asked = model._told(batch, said, image, truth, torch.Generator().manual_seed(seed))
        for b in range(6):
            mine = image == b
            if asked[mine].all() and torch.equal(told[mine], said[mine].softmax(1)):
                seen.add("own")
                continue
            assert not told[mine & asked].any()
            true = batch.elements[truth[mine & ~asked]]
            assert torch.equal(told[mine & ~asked], F.one_hot(true, len(ELEMENTS)).float())
            seen.add(int((~asked[mine]).sum()))
        assert asked[-1], "there is no truth of a candidate that stands for no atom"
    assert seen > {"own", 0, 4, 9}


@pytest.mark.parametrize(("nx", "ny"), [(16, 24), (17, 23), (8, 9)])
def test_a_rim_is_the_image_going_on_as_it_ends(nx, ny, monkeypatch):
    """As if the image had been larger by hand; what lies where stays so."""
    monkeypatch.setattr("afmol.model.one_pass.posnet.standardise", lambda images: images)
    images, rim = noise(2, TINY.slices, nx, ny), 4
    torch.manual_seed(3)
    net = OnePass(replace(TINY, rim=rim)).eval().posnet
    torch.nn.init.normal_(net.head.weight, std=0.1)
    features, maps = net(images)
    assert maps.shape == (2, 4, nx, ny)
    net.rim = 0
    further = [rim + -(n + 2 * rim) % net.stride for n in (ny, nx)]
    larger = F.pad(images, (rim, further[0], rim, further[1]), mode="replicate")
    wide_features, wide_maps = net(larger)
    assert torch.equal(maps, wide_maps[:, :, rim : rim + nx, rim : rim + ny])
    points = torch.tensor([[0.3, 0.4, 0.0], [1.5, 1.9, 0.0]])
    here = sample_features(features, points, torch.tensor([0, 1]), 0.5)
    there = sample_features(wide_features, points + rim * 0.25, torch.tensor([0, 1]), 0.5)
    assert torch.allclose(here, there, atol=1e-5)


def test_a_model_with_a_rim_starts_from_one_without_it():
    new = OnePass(replace(TINY, rim=2))
    old = randomised(TINY)
    new.take(old)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
    with pytest.raises(ConfigError, match="even number of pixels"):
        replace(TINY, rim=3)


def test_widths_within_blocks_are_one_a_level():
    net = OnePass(replace(TINY, inner=(4, 5, 6))).posnet
    assert [level[0].conv1.out_channels for level in (*net.encoder, *net.decoder)] == [4, 5, 6, 4, 5]
    plain, same = (OnePass(replace(TINY, inner=inner)).state_dict() for inner in ((), TINY.channels))
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in same.items()}
    for wrong in ((4, 5), (4, 5, 0)):
        with pytest.raises(ConfigError, match="a width, 1 or more, for each"):
            replace(TINY, inner=wrong)


def test_told_elements_change_neighbours_and_nobody_else():
    features, image = torch.randn(2, 6, 16, 16), torch.tensor([0, 0, 0, 1])
    positions = torch.tensor([[1.0, 1, 0], [2.4, 1, 0], [7.0, 7, 0], [1.0, 1, 0]])
    torch.manual_seed(5)
    net = BondNet(6, 16, 1, told=True).eval()
    nothing = torch.zeros(4, len(ELEMENTS))
    told = nothing.clone()
    told[0, 2] = 1.0
    before, at_first = (net(features, positions, image, 0.5, told=t).elements for t in (None, told))
    assert torch.equal(before, at_first), "it starts as the network without it"
    torch.nn.init.normal_(net.told.weight)
    assert torch.equal(net(features, positions, image, 0.5, told=nothing).elements, before)
    change = (net(features, positions, image, 0.5, told=told).elements - before).abs().amax(1)
    assert (change > 1e-3).tolist() == [True, True, False, False]


@pytest.mark.parametrize("config", [FEEDBACK, WHOLE], ids=["feedback", "and shifts, sizes"])
def test_a_model_starts_from_one_without(config):
    images = noise(1, TINY.slices, 40, 32)
    old = finding(images)
    new = OnePass(config).eval()
    new.take(old)
    (a,), (b,) = old.predict(images), new.predict(images)
    np.testing.assert_array_equal(a.element_probabilities, b.element_probabilities)
    np.testing.assert_array_equal(a.positions, b.positions)
    assert a.stretch is None
    assert b.stretch == (1.0 if config.sizes else None)
    with pytest.raises(ConfigError, match=r"only model.feedback, model.deepest"):
        OnePass(replace(TINY, width=24)).take(old)


def test_deeper_atoms_are_given_where_they_are_asked_for():
    images = noise(1, TINY.slices, 40, 32)
    deeper = OnePass(replace(TINY, deepest=1.5)).eval()
    deeper.take(finding(images))
    (usual,), (same,), (deep,) = (deeper.predict(images, 0.5, depth) for depth in (None, TINY.depth, 1.5))
    np.testing.assert_array_equal(usual.positions, same.positions)
    assert usual.positions[:, 2].min() >= -TINY.depth - SPARE_DEPTH
    assert len(deep) >= len(usual)
    shallow = deeper.predict(images, 0.5, 0.01)[0].positions
    assert shallow[:, 2].min() >= -0.01 - SPARE_DEPTH


def test_bonds_are_learned_from_the_labelled_pairs():
    """Nodes that stand for atoms 2, 0, 1: the pair of nodes (0, 2) stands for atoms (1, 2), and so on."""
    batch = labelled(np.random.default_rng(5), [3])._replace(bonds=torch.tensor([[0, 2]]))
    truth, own = torch.tensor([2, 0, -1, 1]), torch.ones(4, dtype=torch.bool)
    pairs = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 3]])
    logits = torch.tensor([8.0, -8.0, -8.0, -8.0])

    def graph(bonds: Tensor):
        exists, elements = torch.tensor([8.0, 8.0, -8.0, 8.0]), torch.zeros(4, len(ELEMENTS))
        return Graph(exists, elements, torch.zeros(4, 2), torch.zeros(4), pairs, bonds)

    model = OnePass(TINY)
    right = model._graph_losses(batch, graph(logits), truth, own)
    assert float(right["bonds"]) < 0.01
    assert float(right["exists"]) < 0.01
    assert float(right["elements"]) == pytest.approx(np.log(len(ELEMENTS)), rel=1e-5)
    assert float(model._graph_losses(batch, graph(-logits), truth, own)["bonds"]) > 5
    assert float(right["depth"]) == pytest.approx(-float(batch.positions[:, 2].mean()))


def test_places_are_learned_from_own_peaks():
    """Two nodes 0.5 and 0.1 A off, one that is given and one that stands for no atom."""
    batch = labelled(np.random.default_rng(5), [3])
    truth, own = torch.tensor([0, 1, 2, -1]), torch.tensor([True, True, False, True])
    off = torch.tensor([[0.3, -0.4], [0.0, 0.1], [9.0, 9.0], [9.0, 9.0]])
    xy = (batch.positions[truth.clamp_min(0), :2] + off).requires_grad_()
    z, no_pairs = torch.zeros(4), torch.zeros(0, 2, dtype=torch.int64)
    graph = Graph(torch.zeros(4), torch.zeros(4, len(ELEMENTS)), xy, z, no_pairs, torch.zeros(0))
    loss = OnePass(WHOLE)._graph_losses(batch, graph, truth, own)["xy"]
    assert float(loss.detach()) == pytest.approx((0.5 + 0.1) / 2, rel=1e-5)
    (way,) = torch.autograd.grad(loss, xy)
    assert torch.allclose(way, torch.tensor([[0.3, -0.4], [0, 0.5], [0, 0], [0, 0]]), atol=1e-4)


def test_sizes_are_learned_where_they_are_known_and_atoms_are_seen():
    """Images of which the third shows no peak, the fourth no true size; the first is 0.02 off, the second 0.05."""
    true, said = torch.tensor([0.1, -0.05, 0.0, torch.nan]), torch.tensor([0.08, 0.0, 9.0, 9.0], requires_grad=True)
    batch = labelled(np.random.default_rng(5), [3, 3, 3, 3])._replace(stretch=true)
    nothing = torch.zeros(0)
    pairs, rows = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, len(ELEMENTS))
    graph = Graph(nothing, rows, torch.zeros(0, 2), nothing, pairs, nothing, said)
    loss = OnePass(WHOLE)._size_loss(batch, graph, torch.tensor([0, 0, 1, 3]))["size"]
    assert float(loss.detach()) == pytest.approx(10 * (0.02 + 0.05) / 2, rel=1e-5)
    (way,) = torch.autograd.grad(loss, said)
    assert torch.allclose(way, torch.tensor([-5.0, 5.0, 0.0, 0.0]))
    assert float(OnePass(WHOLE)._size_loss(batch, graph, torch.tensor([3]))["size"].detach()) == 0
    assert OnePass(FEEDBACK)._size_loss(batch, replace(graph, stretch=None), torch.tensor([0])) == {}


def test_the_size_is_what_the_pairs_of_an_image_say_weighted():
    """Of two images, one of two atoms and one of three, of which two are no neighbours; a third shows none."""
    net, features = bondnet(), noise(3, 6, 16, 16)
    positions = torch.tensor([[1.0, 1, 0], [2.4, 1, 0], [1.0, 1, 0], [3.0, 1, -0.2], [5.0, 1, 0]])
    image = torch.tensor([0, 0, 1, 1, 1])
    assert net.size is not None
    said: list[Tensor] = []
    net.size.register_forward_hook(lambda _, __, out: said.append(out.detach()))
    stretch = net(features, positions, image, 0.5).stretch.detach()
    (rows,) = said  # pairs (0, 1), (2, 3), (3, 4), and the same the other way round
    for b, mine in ((0, [0, 3]), (1, [1, 2, 4, 5])):
        value, weight = rows[mine].double().unbind(1)
        weight = (1 + weight.exp()).log()
        assert float(stretch[b]) == pytest.approx(float((weight * value).sum() / weight.sum()), rel=1e-4)
    assert float(stretch[2]) == 0


def test_candidates_for_deep_atoms_are_to_be_dropped():
    """Four nodes: no atom, and atoms at -0.3, -1.1 and -1.7; asked for down to 0.8 + 0.2 A."""
    batch = labelled(np.random.default_rng(7), [3])
    batch.positions[:, 2] = torch.tensor([-0.3, -1.1, -1.7])
    truth, wish = torch.tensor([-1, 0, 1, 2]), torch.tensor([-8.0, 8.0, -8.0, -8.0])
    z, no_pairs = torch.tensor([0.0, -0.3, -1.1, -1.7]), torch.zeros(0, 2, dtype=torch.int64)

    def losses(exists: Tensor, config: OnePassConfig = TINY) -> dict[str, Tensor]:
        graph = Graph(exists, torch.zeros(4, len(ELEMENTS)), torch.zeros(4, 2), z, no_pairs, torch.zeros(0))
        return OnePass(config)._graph_losses(batch, graph, truth, torch.ones(4, dtype=torch.bool))

    assert float(losses(wish)["exists"]) < 0.01
    assert float(losses(wish)["depth"]) == pytest.approx(0, abs=1e-6)
    for k in range(4):
        wrong = wish.clone()
        wrong[k] *= -1
        assert float(losses(wrong)["exists"]) > 2
    deeper, wish[2] = replace(TINY, deepest=1.0), 8.0  # and down to 1.0 + 0.2 A, by a model that learns so much
    assert float(losses(wish, deeper)["exists"]) < 0.01
    assert float(losses(-wish, deeper)["exists"]) > 2


def test_existence_is_learned_from_own_peaks_alone():
    """Of positions that are given all are atoms, of those that nobody sees too: they say nothing of what is seen."""
    batch = labelled(np.random.default_rng(4), [9, 9, 9, 9, 9, 9])
    model = randomised(TINY).eval()
    model.posnet.head.bias.data[:4] += 1
    given = peaks = 0
    with torch.no_grad():
        features, maps = model.posnet(batch.images)
        for seed in range(8):
            positions, image, truth, own = model._nodes(batch, maps, torch.Generator().manual_seed(seed))
            of_peaks = {int(b) for b in image[own]}
            assert not of_peaks & {int(b) for b in image[~own]}, "of an image either the atoms or the peaks"
            assert (truth[~own] >= 0).all()
            given, peaks = given + 6 - len(of_peaks), peaks + len(of_peaks)
            graph = model.bondnet(features, positions, image, 2 * TINY.pixel)
            loss = model._graph_losses(batch, graph, truth, own)["exists"]
            graph.exists[~own] += 5.0
            assert torch.equal(model._graph_losses(batch, graph, truth, own)["exists"], loss)
            if own.any():
                graph.exists[own] += 5.0
                assert not torch.equal(model._graph_losses(batch, graph, truth, own)["exists"], loss)
    assert 0 < given < peaks


def test_an_atom_beneath_another_is_no_label():
    """A hydrogen upon a carbon, beside them a bond along the surface; another image has a carbon in the same place."""
    rows = ([2.0, 2.0, 0.0], [2.3, 2.1, -1.0], [3.7, 2.1, -0.9], [2.2, 2.1, -0.5])
    molecule, elements = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 1])
    bonds = torch.tensor([[0, 1], [1, 2]])
    batch = Batch(noise(2, TINY.slices, 24, 24), torch.tensor(rows), elements, molecule, bonds, torch.zeros(2))
    seen = uncovered(batch)
    assert seen.positions.tolist() == batch.positions[[0, 2, 3]].tolist()
    assert seen.elements.tolist() == [0, 2, 1]
    assert seen.molecule.tolist() == [0, 0, 1]
    assert seen.bonds.tolist() == []
    again = uncovered(seen)
    assert all(torch.equal(a, b) for a, b in zip(again, seen, strict=True))
    apart = batch._replace(positions=batch.positions + torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]]))
    assert all(torch.equal(a, b) for a, b in zip(uncovered(apart), apart, strict=True))
    model = randomised(TINY).eval()
    with torch.no_grad():
        lost, least = (model(b, torch.Generator().manual_seed(0)) for b in (batch, seen))
    assert {k: float(v) for k, v in lost.items()} == {k: float(v) for k, v in least.items()}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_existence_is_not_learned_from_atoms_whose_element_is_told(share, monkeypatch):
    """They are there, all of them: of what is there by the image they say nothing."""
    batch = labelled(np.random.default_rng(4), [9, 9, 9])
    model = randomised(replace(TINY, feedback=1)).eval()
    model.posnet.head.bias.data[:4] += 1

    def told(self, batch, said, image, truth, generator):
        return said.softmax(1), torch.full(image.shape, share == 0)

    monkeypatch.setattr(OnePass, "_told", told)
    monkeypatch.setattr("afmol.model.one_pass.one_pass.GIVEN", 0.0)
    with torch.no_grad():
        lost = model(batch, torch.Generator().manual_seed(0))
    assert float(lost["exists"]) > 0
    assert (float(lost["exists_again"]) > 0) == (share == 0)


@pytest.mark.parametrize("reach", [1, 3])
def test_patches_against_a_loop(reach):
    batch = labelled(np.random.default_rng(6), [7, 0, 9], nx=16, ny=24)
    nx, ny = 16, 24
    place, centre = _patches(batch, reach, PIXEL, nx, ny)
    flat = np.arange(3 * nx * ny).reshape(3, nx, ny)
    for k, (p, b) in enumerate(zip(batch.positions.numpy(), batch.molecule.tolist(), strict=True)):
        wanted = {}
        for ix in range(int(p[0] // PIXEL) - reach, int(p[0] // PIXEL) + reach + 1):
            for iy in range(int(p[1] // PIXEL) - reach, int(p[1] // PIXEL) + reach + 1):
                inside = 0 <= ix < nx and 0 <= iy < ny
                wanted[ix, iy] = flat[b, ix, iy] if inside else -1
        got = {
            (round(float(c[0]) / PIXEL - 0.5), round(float(c[1]) / PIXEL - 0.5)): int(i)
            for c, i in zip(centre[k], place[k], strict=True)
        }
        assert got == wanted
    assert (place == -1).any()
