"""How a molecule lies on a surface: laid down, tilted, bent, buckled, its groups at heights of their own."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..structures import Molecule


def rotation(axis: Float[np.ndarray, " 3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' rotation matrix about a unit vector, radians."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def lay_down(
    molecule: Molecule, rng: np.random.Generator, tilt: float, bend: float = 0.0, buckling: float = 0.0
) -> Molecule:
    """The molecule as on a surface: its largest plane down, either face up, any direction, tilted (degrees, standard
    deviation), bent (A at 6 A from the centre), buckled (A, atom by atom); centred in x and y, the topmost nucleus at
    z = 0."""
    centred = molecule.positions - molecule.positions.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    if np.linalg.det(axes) < 0:  # a proper rotation: chirality is kept
        axes[:, 2] *= -1
    p = centred @ axes
    if rng.random() < 0.5:
        p = p * [1, -1, -1]
    p = p @ rotation(np.array([0.0, 0.0, 1.0]), rng.uniform(0, 2 * np.pi)).T
    towards = rng.uniform(0, 2 * np.pi)
    p = p @ rotation(np.array([np.cos(towards), np.sin(towards), 0.0]), np.deg2rad(tilt) * rng.standard_normal()).T
    a, b, c = bend / 36 * rng.standard_normal(3)
    p[:, 2] += a * p[:, 0] ** 2 + b * p[:, 0] * p[:, 1] + c * p[:, 1] ** 2
    if buckling:
        p[:, 2] += buckling * rng.standard_normal(len(p))
    p[:, 2] -= p[:, 2].max()
    return replace(molecule, positions=p)


def strained(molecule: Molecule, rng: np.random.Generator, most: float) -> Molecule:
    """The molecule longer in the plane along one direction, and as much shorter across it, by up to `most`: what an
    image shows of it whose axes are not straight."""
    e, angle = most * rng.random(), rng.uniform(0, 2 * np.pi)
    c, s = e * np.cos(angle), e * np.sin(angle)
    p = molecule.positions.copy()
    p[:, :2] = p[:, :2] @ np.array([[1 + c, s], [s, 1 - c]])
    return replace(molecule, positions=p)


def with_bent_groups(molecule: Molecule, rng: np.random.Generator, most: float) -> Molecule:
    """Each group at a height of its own, by up to +-`most`, A; and one end bent by as much, more the farther out.

    Groups are what is left when single connections between heavy atoms are cut: ring systems, chains atom by atom,
    substituents, each with its hydrogens. The topmost nucleus stays at z = 0.
    """
    group = groups(molecule)
    p = molecule.positions.copy()
    p[:, 2] += rng.uniform(-most, most, int(group.max()) + 1)[group]
    angle, start, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.9), rng.uniform(-most, most)
    out = p[:, :2] @ [np.cos(angle), np.sin(angle)]
    along = (out - out.min()) / max(np.ptp(out), 1e-9)
    p[:, 2] += height * ((along - start) / (1 - start)).clip(min=0)
    p[:, 2] -= p[:, 2].max()
    return replace(molecule, positions=p)


def groups(molecule: Molecule) -> Int[np.ndarray, " n"]:
    """The group of each atom, see `with_bent_groups`."""
    heavy = (molecule.numbers[molecule.bonds] > 1).all(1)
    cut = heavy & bridges(len(molecule), molecule.bonds)
    i, j = molecule.bonds[~cut].T
    links = coo_array((np.ones(len(i)), (i, j)), shape=(len(molecule),) * 2)
    return connected_components(links, directed=False)[1]


def bridges(n: int, bonds: Int[np.ndarray, "m 2"]) -> Bool[np.ndarray, " m"]:
    """Whether each bond is the only connection between its two sides (Tarjan's low links, without recursion)."""
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for k, (i, j) in enumerate(bonds.tolist()):
        neighbours[i].append((j, k))
        neighbours[j].append((i, k))
    order, low, found = [-1] * n, [0] * n, np.zeros(len(bonds), bool)
    count = 0
    for root in range(n):
        stack = [(root, -1, iter(neighbours[root]))] if order[root] < 0 else []
        while stack:
            atom, by, rest = stack[-1]
            if order[atom] < 0:
                order[atom] = low[atom] = count
                count += 1
            step = next(rest, None)
            if step is None:
                stack.pop()
                if stack:
                    parent = stack[-1][0]
                    low[parent] = min(low[parent], low[atom])
                    found[by] = low[atom] > order[parent]
                continue
            other, bond = step
            if order[other] < 0:
                stack.append((other, bond, iter(neighbours[other])))
            elif bond != by:
                low[atom] = min(low[atom], order[other])
    return found
