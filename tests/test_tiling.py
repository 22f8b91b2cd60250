"""Tiles of a large scan: they cover it once, and what is found in them is what is found in the whole."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afmol.elements import CATEGORIES, ELEMENTS, element_index
from afmol.errors import ScanError
from afmol.model import OnePass, OnePassConfig
from afmol.prediction import predict
from afmol.structures import Molecule, Scan
from afmol.tiling import FAINTEST, LONGEST, MARGIN, NOTHING, SAME, contrast, cut, merged, tiled


def scan(nx: int, ny: int, size: tuple[float, float]) -> Scan:
    data = np.random.default_rng(0).random((nx, ny, 3)).astype(np.float32)
    return Scan(data, size, None, "large")


@given(st.integers(30, 900), st.integers(30, 900), st.floats(10, 1000), st.floats(10, 1000))
def test_inner_parts_cover_each_pixel_once_and_tiles_reach_beyond_them(nx, ny, lx, ly):
    whole = Scan(np.zeros((nx, ny, 1), np.float32), (lx, ly))
    times = np.zeros((nx, ny), int)
    tiles = tiled(whole)
    for tile in tiles:
        for axis, (n, length) in enumerate(((nx, lx), (ny, ly))):
            a, b = tile.inner_start[axis], tile.inner_stop[axis]
            low, high, pixel = tile.start[axis], tile.stop[axis], length / n
            assert 0 <= low <= a < b <= high <= n
            assert low == 0 or (a - low) * pixel >= MARGIN
            assert high == n or (high - b) * pixel >= MARGIN
            assert (high - low) * pixel <= LONGEST + 4 * pixel
        times[slice(*_inner(tile, 0)), slice(*_inner(tile, 1))] += 1
    assert (times == 1).all()
    assert (len(tiles) == 1) == (max(lx, ly) <= LONGEST * (1 + 1e-12))


def _inner(tile, axis):
    return tile.inner_start[axis], tile.inner_stop[axis]


def lattice(rng: np.random.Generator, size: float) -> Molecule:
    """Atoms about 3 A apart all over, bonds between neighbours, with probabilities."""
    n = int(size / 3)
    place = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    positions = np.column_stack([3.0 * place + 1.5 + rng.uniform(-0.2, 0.2, place.shape), rng.uniform(-1, 0, n * n)])
    index = np.arange(n * n).reshape(n, n)
    along = [
        np.stack([index[:-1].ravel(), index[1:].ravel()], 1),
        np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1),
    ]
    bonds = np.concatenate(along)
    return Molecule(
        positions,
        rng.choice([1, 6, 7, 8], n * n),
        bonds,
        None,
        rng.dirichlet(np.ones(5), n * n),
        rng.random(n * n),
        rng.random(len(bonds)),
    )


def seen(whole: Molecule, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, error: float) -> Molecule:
    """What a tile from `low` to `high` (A) shows, in its own frame: atoms off by up to `error`, rubbish at the rim."""
    mine = ((whole.positions[:, :2] > low) & (whole.positions[:, :2] < high)).all(1)
    place = np.cumsum(mine) - 1
    use = mine[whole.bonds].all(1)
    positions = whole.positions[mine] - [*low, 0]
    positions[:, :2] += rng.uniform(-error, error, (len(positions), 2))
    rim = np.minimum(positions[:, :2], high - low - positions[:, :2]).min(1) < MARGIN / 2
    numbers = np.where(rim, 9, whole.numbers[mine])
    return Molecule(
        positions,
        numbers,
        place[whole.bonds[use]],
        None,
        whole.class_probabilities[mine],
        whole.confidence[mine],
        whole.bond_probabilities[use],
    )


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_what_tiles_show_is_put_together(error):
    """Also where an atom lies on a border, so that two tiles find it, or each on the other's side."""
    rng = np.random.default_rng(1)
    whole, image = lattice(rng, 200.0), scan(400, 300, (200.0, 200.0))
    tiles, found = tiled(image), []
    for tile in tiles:
        low, high = (np.multiply(edge, tile.pixel) for edge in (tile.start, tile.stop))
        low, high = np.where(low == 0, -10.0, low), np.where(high >= 199.9, 210.0, high)  # no rubbish at the scan's rim
        part = seen(whole, low, high, rng, error)
        shift = np.array([*(low - np.multiply(tile.start, tile.pixel)), 0.0])
        found.append(Molecule(part.positions + shift, *(getattr(part, n) for n in ("numbers", "bonds", "charges")),
                              part.class_probabilities, part.confidence, part.bond_probabilities, "",
                              np.eye(11)[part.numbers % 11], ("of a tile",)))  # fmt: skip
    assert len(tiles) == 9
    result = merged(tiles, found)
    assert len(result) == len(whole)
    distance = np.linalg.norm(whole.positions[:, None, :2] - result.positions[None, :, :2], axis=2)
    match = distance.argmin(1)
    assert sorted(match) == list(range(len(whole)))
    assert distance.min(1).max() <= error * 2**0.5 + 1e-9
    np.testing.assert_array_equal(result.numbers[match], whole.numbers)
    np.testing.assert_array_equal(result.class_probabilities[match], whole.class_probabilities)
    np.testing.assert_array_equal(result.confidence[match], whole.confidence)
    np.testing.assert_array_equal(result.element_probabilities, np.eye(11)[result.numbers % 11])
    assert result.warnings == ("of a tile",)
    expected = {
        (*sorted(match[pair].tolist()),): p for pair, p in zip(whole.bonds, whole.bond_probabilities, strict=True)
    }
    assert {(int(i), int(j)): p for (i, j), p in zip(result.bonds, result.bond_probabilities, strict=True)} == expected


def test_atoms_of_two_tiles_have_one_zero():
    """A sheet with a step, of which each tile has its own topmost atom; and a piece that shares no atom with it."""
    image = scan(500, 30, (250.0, 30.0))
    tiles = tiled(image)
    x = np.concatenate([np.arange(60.0, 110.0, 1.4), np.arange(190.0, 240.0, 1.4)])
    z = np.where(x < 100, -0.5, np.where(x < 150, -0.2, -0.7))
    found = []
    for tile in tiles:
        low, high = tile.start[0] * tile.pixel[0], tile.stop[0] * tile.pixel[0]
        mine = (x > low) & (x < high)
        n = int(mine.sum())
        positions = np.column_stack([x[mine] - low, np.full(n, 15.0), z[mine] - z[mine].max(initial=-9)])
        none = np.zeros((0, 2), int)
        found.append(Molecule(positions, np.full(n, 6), none, None, np.full((n, 5), 0.2), np.ones(n), np.zeros(0)))
    assert [float(m.positions[:, 2].min()) for m in found] == pytest.approx([0.0, -0.3, 0.0])
    result = merged(tiles, found)
    order = result.positions[:, 0].argsort()
    assert len(order) == len(x)
    np.testing.assert_allclose(result.positions[order, 2], np.where(x < 100, -0.3, 0.0), atol=1e-9)


def test_atoms_of_one_tile_are_never_taken_for_one():
    image = scan(300, 30, (300.0, 30.0))
    tiles = tiled(image)
    close = np.array([[20.0, 5.0, 0.0], [20.0 + 0.8 * SAME, 5.0, 0.0]])
    two = Molecule(close, np.array([6, 6]), np.array([[0, 1]]), None, np.full((2, 5), 0.2), np.ones(2), np.ones(1))
    result = merged(tiles, [two] + [NOTHING] * (len(tiles) - 1))
    assert len(result) == 2
    assert result.bonds.tolist() == [[0, 1]]
    assert len(merged(tiles, [NOTHING] * len(tiles))) == 0


def test_bare_tiles_are_left_out():
    rng = np.random.default_rng(0)
    data = rng.normal(0, 0.02, (600, 100, 3)).astype(np.float32)
    data[40:60, 40:60] += 1.0
    data[500:, :, 1] = 0.0  # where the scan was stopped
    image = Scan(data, (300.0, 50.0))
    parts = [cut(image, tile, FAINTEST * contrast(image)) for tile in tiled(image)]
    assert [part is None for part in parts] == [False, True, True, True]
    assert parts[0].data.shape[0] * 0.5 == pytest.approx(parts[0].size[0])


class Spots:
    """A network that finds an atom at each bright pixel."""

    class config:
        pixel, slices, widest_step, depth = 0.5, 3, 0.14, 0.8

    def __init__(self):
        self.shapes, self.counts = [], []

    def parameters(self):
        import torch

        yield torch.zeros(1)

    def forward(self, batch, generator):
        raise AssertionError

    def predict(self, images, threshold=0.5, depth=None):
        self.shapes.append(images.shape[2:])
        found = []
        for image in images:
            place = np.argwhere(image[-1].numpy() > 0.5)
            n = len(place)
            self.counts.append(n)
            positions = np.column_stack([(place + 0.5) * self.config.pixel, np.zeros(n)])
            classes, none = np.full((n, 5), 0.2), np.zeros((0, 2), int)
            spots = Molecule(positions, np.full(n, 6), none, None, classes, np.ones(n), np.zeros(0))
            found.append(replace(spots, stretch=1 + 0.001 * n))
        return found


def test_a_large_scan_is_read_in_tiles_at_its_places():
    rng = np.random.default_rng(2)
    spots = np.unique(rng.integers(0, (500, 700), (300, 2)), axis=0)
    data = rng.normal(0, 0.01, (500, 700, 3)).astype(np.float32)
    data[spots[:, 0], spots[:, 1]] = 1.0
    network = Spots()
    found = predict(Scan(data, (250.0, 350.0), source="wide"), network)
    assert len(network.shapes) == 12
    assert max(max(shape) for shape in network.shapes) * 0.5 <= LONGEST + 1
    assert found.name == "wide"
    order = np.lexsort(found.positions[:, 1::-1].T)
    np.testing.assert_allclose(found.positions[order, :2], (spots + 0.5) * 0.5, atol=1e-6)
    seen = np.array(network.counts)
    assert found.stretch == pytest.approx(np.exp(np.average(np.log(1 + 0.001 * seen), weights=seen)))
    with pytest.raises(ScanError, match="at most 1000 A"):
        predict(Scan(np.tile(data, (1, 2, 1)), (250.0, 1001.0)), network)


def test_a_molecule_in_two_tiles_has_one_formula():
    """A chain of carbons with what may be nitrogen at both ends, which no tile sees both: the surer one is it."""
    x = np.arange(50.0, 110.0, 1.4)
    nitrogen = np.where(np.isin(x, x[[0, -1]]), np.where(x < 75, 0.8, 0.9), 0.0)
    places = np.round(x / 0.25).astype(int)
    data = np.random.default_rng(0).normal(0, 0.01, (640, 64, 10)).astype(np.float32)
    data[places, 32] = np.where(nitrogen > 0, 2 + nitrogen, 1.0)[:, None]

    class Chain(OnePass):
        def predict(self, images, threshold=0.5, depth=None, elements=None):
            (image,) = images[:, -1].numpy()
            i = np.flatnonzero(image[:, 32] > 0.5)
            n = len(i)
            p = np.maximum(image[i, 32] - 2, 0.0)
            likely = np.zeros((n, len(ELEMENTS)))
            likely[:, element_index(np.array([6]))[0]], likely[:, element_index(np.array([7]))[0]] = 1 - p, p
            classes = np.stack([likely[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
            bonds = np.column_stack([np.arange(n - 1), np.arange(1, n)])[: max(n - 1, 0)]
            atoms = np.column_stack([(i + 0.5) * 0.25, np.full(n, 8.1), np.zeros(n)])
            numbers = np.where(p > 0.5, 7, 6)
            whole = Molecule(atoms, numbers, bonds, None, classes, np.full(n, 0.99), np.ones(len(bonds)))
            return [replace(whole, element_probabilities=likely)]

    network = Chain(OnePassConfig(channels=(8, 8, 8), blocks=1, width=8, rounds=1)).eval()
    wide = Scan(data, (160.0, 16.0))
    assert len(tiled(wide)) == 2
    assert (predict(wide, network).numbers == 7).sum() == 2
    found = predict(wide, network, formula="C?N")
    assert len(found) == len(x)
    assert len(found.parts()) == 1
    assert found.positions[found.numbers == 7, 0] == pytest.approx(x[-1:], abs=0.3)
    nothing = predict(replace(wide, data=np.where(data > 0.5, 0, data)), network, formula="C?N")
    assert len(nothing) == 0


@pytest.mark.parametrize("empty", [0, 5])
def test_a_tile_is_read_though_one_of_its_slices_shows_nothing(empty):
    """As one of a scan that was not finished, filled up; the closest one too, by which contrast is judged."""
    whole = scan(300, 300, (150.0, 150.0))
    whole = replace(whole, data=np.concatenate([whole.data, whole.data[..., ::-1]], axis=-1))
    whole.data[:200, :, empty] = 0.0
    assert all(cut(whole, tile, FAINTEST * contrast(whole)) is not None for tile in tiled(whole))
    whole.data[:200] = 0.0
    assert any(cut(whole, tile, 0.0) is None for tile in tiled(whole))
