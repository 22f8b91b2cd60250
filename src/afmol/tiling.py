"""A large scan as overlapping tiles, and the molecules found in them put together.

Each atom is taken from the tile in whose inner part it lies, so that none is near the rim of what the network saw. One
near the border of two inner parts may be found in both, or by each on the other's side: of such the one farther inside
is kept, and bonds of the other are the kept one's.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, exp, log
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from .resampling import FEWEST_SLICES, constant
from .structures import Molecule, Scan

LONGEST = 120.0
"""A scan whose sides are at most so long is one tile, A: an image that a network reads in half a gigabyte."""
MARGIN = 12.0
"""What a tile sees beyond its inner part, A: the network's features reach so far."""
SAME = 0.5
"""Atoms of two tiles closer than this in the plane are one, A."""
FAINTEST = 0.1
"""A tile with less contrast, as a share of the scan's, is bare: networks see contrast of any strength, and would find
atoms in the noise."""
NOTHING = Molecule(
    np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int), None, np.zeros((0, 5)), np.zeros(0), np.zeros(0)
)


class Tile(NamedTuple):
    """A part of a scan: the pixels from `start` to before `stop`, in x and y, and the pixels of them that count."""

    start: tuple[int, int]
    stop: tuple[int, int]
    inner_start: tuple[int, int]
    inner_stop: tuple[int, int]
    pixel: tuple[float, float]
    """A."""


def tiled(scan: Scan) -> list[Tile]:
    """Tiles whose inner parts cover the scan once; one if it is not longer than LONGEST."""
    axes = []
    for n, pixel in zip(scan.data.shape[:2], scan.pixel, strict=True):
        count = 1 if n * pixel <= LONGEST else ceil(n * pixel / (LONGEST - 2 * MARGIN))
        borders = [round(k * n / count) for k in range(count + 1)]
        spare = ceil(MARGIN / pixel)
        axes.append([(max(0, a - spare), min(n, b + spare), a, b) for a, b in pairwise(borders)])
    return [Tile(*zip(x, y, strict=True), pixel=scan.pixel) for x in axes[0] for y in axes[1]]


def cut(scan: Scan, tile: Tile, least: float) -> Scan | None:
    """The scan of a tile; None: it is bare, its `contrast` below `least`."""
    (x, y), (to_x, to_y) = tile.start, tile.stop
    part = replace(scan, data=scan.data[x:to_x, y:to_y], size=((to_x - x) * tile.pixel[0], (to_y - y) * tile.pixel[1]))
    bare = (~constant(part.data)).sum() < FEWEST_SLICES or contrast(part) < least
    return None if bare else part


def fullest(scan: Scan) -> Scan:
    """The tile of a scan with the most contrast; the scan itself, if it is one tile."""
    tiles = tiled(scan)
    if len(tiles) == 1:
        return scan
    parts = [part for tile in tiles if (part := cut(scan, tile, 0.0)) is not None]
    return max(parts, key=contrast, default=scan)


def contrast(scan: Scan) -> float:
    """Range of the closest slice that shows anything over squares of about 2 A, in which noise is averaged."""
    a, b = (max(1, round(2 / pixel)) for pixel in scan.pixel)
    nx, ny, _ = scan.data.shape
    closest = np.flatnonzero(~constant(scan.data)).max(initial=0)
    image = scan.data[: nx // a * a, : ny // b * b, closest]
    return float(np.ptp(image.reshape(nx // a, a, -1, b).mean((1, 3))))


def merged(tiles: Sequence[Tile], found: Sequence[Molecule]) -> Molecule:
    """The molecules of the tiles, each in its tile's frame, as one in the scan's. All must have probabilities.

    z = 0 at the topmost likely atom of the tiles that have atoms in common, whose heights are of one zero.
    """
    corners = [np.array([*np.multiply(tile.start, tile.pixel), 0.0]) for tile in tiles]
    positions = np.concatenate([m.positions + corner for m, corner in zip(found, corners, strict=True)])
    tile_of = np.repeat(np.arange(len(tiles)), [len(m) for m in found])
    # how far each atom lies inside its tile's inner part, A, which has no border where the scan ends; negative outside
    low, high = (np.array(borders) for borders in zip(*map(_borders, tiles), strict=True))
    inside = np.minimum(positions[:, :2] - low[tile_of], high[tile_of] - positions[:, :2]).min(1, initial=np.inf)
    kept = _kept(positions[:, :2], tile_of, inside)
    # the atom that stands for each: itself, or the kept one in its place, if there is one
    stands = np.full(len(positions), -1)
    if len(kept):
        distance, nearest = KDTree(positions[kept, :2]).query(positions[:, :2])
        stands = np.where(distance < SAME, nearest, -1)
        stands[kept] = np.arange(len(kept))
    sure = np.concatenate([np.asarray(m.confidence, float) for m in found]) >= 0.5
    positions[:, 2] += _rises(tile_of, kept, stands, positions[:, 2], sure, len(tiles))[tile_of]
    positions[:, 2] = np.minimum(positions[:, 2], 0.0)  # as of one tile: what is hardly there is not the topmost atom
    bonds: dict[tuple[int, int], float] = {}
    firsts = np.cumsum([0, *(len(m) for m in found)])
    rows = [(m.bonds + first, m.bond_probabilities) for m, first in zip(found, firsts[:-1], strict=True)]
    pairs = np.concatenate([pair for pair, _ in rows])
    likely = np.concatenate([np.ones(len(pair)) if p is None else p for pair, p in rows])
    best = inside[pairs].max(1, initial=-np.inf)
    for k in np.argsort(-best, kind="stable"):  # the tile that sees it best goes first
        i, j = sorted(stands[pairs[k]].tolist())
        if 0 <= i < j and best[k] > -SAME:
            bonds.setdefault((i, j), float(likely[k]))
    order = sorted(bonds)
    numbers, classes, confidence = (
        np.concatenate([getattr(m, name) for m in found])[kept]
        for name in ("numbers", "class_probabilities", "confidence")
    )
    probabilities = np.array([bonds[pair] for pair in order], float)
    pairs = np.array(order, int).reshape(-1, 2)
    said = [m.element_probabilities for m in found if len(m) and m.element_probabilities is not None]
    elements = np.concatenate(said)[kept] if sum(map(len, said)) == len(positions) > 0 else None
    sizes = [(log(m.stretch), len(m)) for m in found if len(m) and m.stretch]
    return Molecule(
        *(positions[kept], numbers, pairs, None, classes, confidence, probabilities),
        element_probabilities=elements,
        warnings=tuple(dict.fromkeys(w for m in found for w in m.warnings)),
        stretch=exp(sum(s * n for s, n in sizes) / sum(n for _, n in sizes)) if sizes else None,
    )


def _rises(
    tile_of: np.ndarray, kept: np.ndarray, stands: np.ndarray, z: np.ndarray, sure: np.ndarray, tiles: int
) -> np.ndarray:
    """By how much the atoms of each tile have to be raised, A, so that an atom of two tiles has one height."""
    again = np.flatnonzero(stands >= 0)
    again = again[tile_of[again] != tile_of[kept[stands[again]]]]
    other = kept[stands[again]]
    pairs, group = np.unique(np.stack([tile_of[again], tile_of[other]], 1), axis=0, return_inverse=True)
    steps = np.array([np.median((z[other] - z[again])[group.ravel() == k]) for k in range(len(pairs))])
    equations = np.zeros((len(pairs), tiles))
    rows = np.arange(len(pairs))
    equations[rows, pairs[:, 0]], equations[rows, pairs[:, 1]] = 1.0, -1.0
    rises = np.linalg.lstsq(equations, steps, rcond=None)[0] if len(pairs) else np.zeros(tiles)
    joined = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(tiles, tiles))
    part = connected_components(joined, directed=False)[1]
    top = np.full(part.max(initial=0) + 1, -np.inf)
    high = kept[sure[kept]] if sure[kept].any() else kept
    np.maximum.at(top, part[tile_of[high]], (z + rises[tile_of])[high])
    return rises - np.where(np.isfinite(top), top, 0.0)[part]


def _borders(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Where the inner part begins and ends, A."""
    low, high = (np.multiply(edge, tile.pixel) for edge in (tile.inner_start, tile.inner_stop))
    return (
        np.where(np.equal(tile.start, tile.inner_start), -np.inf, low),
        np.where(np.equal(tile.stop, tile.inner_stop), np.inf, high),
    )


def _kept(xy: np.ndarray, tile_of: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Places of the atoms that are taken, ascending: those within the inner part and SAME around it, of several tiles'
    at one place the one farthest inside."""
    some = np.flatnonzero(inside > -SAME)
    if not len(some):
        return some
    near = KDTree(xy[some]).query_pairs(SAME, output_type="ndarray")
    rivals: dict[int, list[int]] = {}
    for a, b in near[tile_of[some[near[:, 0]]] != tile_of[some[near[:, 1]]]].tolist():
        rivals.setdefault(a, []).append(b)
        rivals.setdefault(b, []).append(a)
    taken = np.zeros(len(some), bool)
    for k in np.argsort(-inside[some], kind="stable").tolist():
        taken[k] = not any(taken[r] for r in rivals.get(k, ()))
    return some[taken]
