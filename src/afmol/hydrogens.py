"""Hydrogens that an image does not show, where valences ask for them: guesses, for those who want to calculate on.

    neighbours     arrangements, the likeliest first
    C with 1       CH3, CH2 in the plane, CH, none
    C with 2       CH in the plane, CH2; the other way round where bonds are single ones; in a line: none
    C with 3       none where it is flat; CH on the far side where it is not
    N with 1 / 2   NH2, NH, none / none, NH
    O, S with 1    none, OH

`lacking` tries them, those that differ least from the likeliest first, until whoever it asks says that the molecule
is whole (naming.py: RDKit finds bond orders without charges, all electrons paired). A quinone and its hydroquinone are
both whole: the one with fewer hydrogens is what it gives.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np
from jaxtyping import Float, Int

from .elements import ELEMENTS, element_index, table
from .structures import Molecule

LENGTHS = {6: 1.09, 7: 1.01, 8: 0.97, 16: 1.34}
"""Bonds to hydrogen, A (Allen et al., J. Chem. Soc. Perkin Trans. 2, S1, 1987, neutron diffraction)."""
STRAIGHT, FLAT = 150.0, 350.0
"""Degrees: a wider angle between two neighbours leaves no room, a wider sum of three angles no pyramid."""
MOST_CHANGES = 2
"""Atoms at most whose arrangement is not the likeliest."""
COSTS = {6: 5, 7: 2, 8: 3, 16: 3}
"""What it costs that an arrangement is not the likeliest: of two tautomers the one whose nitrogen has the hydrogen."""
SINGLE = 0.98
"""Bonds this long on the mean, as a share of the sum of covalent radii, are single ones: aromatic ones are 0.92."""

Arrangement = Float[np.ndarray, "_ 3"]
"""Directions of hydrogens, unit vectors."""


def lacking(molecule: Molecule, whole: Callable[[Molecule], str | None]) -> dict[int, Arrangement]:
    """The hydrogens with which a molecule is whole, by the atom that each is bonded to; none where there are no such.

    Args:
        molecule: with the bonds that count (`with_likely_bonds`).
        whole: the name of a molecule, or None.
    """
    options = arrangements(molecule)
    for chosen in _by_cost(options, molecule.numbers):
        added = {i: options[i][k] for i, k in chosen.items() if len(options[i][k])}
        if whole(with_hydrogens(molecule, added)) is not None:
            return added
    return {}


def with_hydrogens(molecule: Molecule, added: dict[int, Arrangement]) -> Molecule:
    """The molecule with hydrogens in these directions from these atoms, at its end, with confidence 0: they were not
    seen."""
    parents = np.array([i for i, directions in added.items() for _ in directions], int)
    if not len(parents):
        return molecule
    n, k = len(molecule), len(parents)
    directions = np.concatenate([*added.values()])
    lengths = np.array([LENGTHS[int(z)] for z in molecule.numbers[parents]])
    of_hydrogen = np.eye(len(ELEMENTS))[element_index(np.ones(k, int))]
    bonds = np.column_stack([parents, n + np.arange(k)])
    return replace(
        molecule,
        positions=np.concatenate([molecule.positions, molecule.positions[parents] + lengths[:, None] * directions]),
        numbers=np.concatenate([molecule.numbers, np.ones(k, int)]),
        bonds=np.concatenate([molecule.bonds, bonds]),
        charges=None,
        confidence=np.concatenate([np.ones(n) if molecule.confidence is None else molecule.confidence, np.zeros(k)]),
        class_probabilities=_longer(molecule.class_probabilities, np.eye(5)[np.zeros(k, int)]),
        element_probabilities=_longer(molecule.element_probabilities, of_hydrogen),
        bond_probabilities=_longer(molecule.bond_probabilities, np.ones(k)),
        smiles=(),
    )


def _longer(before: np.ndarray | None, more: np.ndarray) -> np.ndarray | None:
    return None if before is None else np.concatenate([before, more])


def arrangements(molecule: Molecule) -> dict[int, list[Arrangement]]:
    """What may be missing at each atom that may lack hydrogens, see the module's text."""
    neighbours: dict[int, list[int]] = {i: [] for i in range(len(molecule))}
    for i, j in molecule.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    found = {i: _at(molecule, i, near, neighbours) for i, near in neighbours.items()}
    return {i: options for i, options in found.items() if options}


def _at(molecule: Molecule, i: int, near: list[int], neighbours: dict[int, list[int]]) -> list[Arrangement]:
    z, p, none = int(molecule.numbers[i]), molecule.positions, np.zeros((0, 3))
    if z not in LENGTHS or not near:
        return []
    u = _unit(p[near] - p[i])
    match z, len(near):
        case 6, 3:
            if _sum_of_angles(u) > FLAT:
                return []
            return [-_unit(u.sum(0))[None], none]
        case ((6 | 7), 2):
            if z == 6 and angle(u[0], u[1]) > STRAIGHT:
                return []
            out = -_unit(u.sum(0))
            if z == 7:
                return [none, out[None]]
            up = _unit(np.cross(u[0], u[1])) * np.sin(np.radians(54.75))
            options = [out[None], out * np.cos(np.radians(54.75)) + [up, -up]]
            radius = table("covalent_radius")
            lengths = np.linalg.norm(p[near] - p[i], axis=1) / (radius[z] + radius[molecule.numbers[near]])
            return options[::-1] if lengths.mean() > SINGLE else options
        case _, 1:
            axis, side = -u[0], _side(molecule, i, near[0], neighbours[near[0]])
            bent = _cone(axis, side, 70.5, 3)
            flat = _cone(axis, side, 60.0, 2)
            if z == 6:
                return [bent, flat, axis[None], none]
            return [flat, flat[:1], none] if z == 7 else [none, bent[:1]]
    return []


def _side(molecule: Molecule, i: int, j: int, near: list[int]) -> Float[np.ndarray, " 3"]:
    """A direction at right angles to the bond i-j, in the plane of j's bonds, where there is more room."""
    p = molecule.positions
    axis = _unit(p[i] - p[j])
    others = [k for k in near if k != i]
    across = p[others[0]] - p[j] if others else np.array([0.0, 0.0, 1.0])
    side = across - axis * (across @ axis)
    if np.linalg.norm(side) < 0.1:
        side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side = _unit(side)
    rest = np.delete(p, [i, j], axis=0)
    room = [np.linalg.norm(rest - (p[i] + 0.5 * axis + s * side), axis=1).min(initial=np.inf) for s in (1, -1)]
    return side if room[0] >= room[1] else -side


def _cone(axis: Float[np.ndarray, " 3"], side: Float[np.ndarray, " 3"], degrees: float, n: int) -> Arrangement:
    """n directions at an angle to an axis, evenly around it, the first toward the side."""
    other, turn, tilt = np.cross(axis, side), 2 * np.pi * np.arange(n)[:, None] / n, np.radians(degrees)
    return axis * np.cos(tilt) + (side * np.cos(turn) + other * np.sin(turn)) * np.sin(tilt)


def _by_cost(options: dict[int, list[Arrangement]], numbers: Int[np.ndarray, " n"]) -> Iterator[dict[int, int]]:
    """Which arrangement each atom has: the likeliest, then with changes at ever more atoms."""
    likeliest = dict.fromkeys(options, 0)
    changes = {i: range(1, len(arranged)) for i, arranged in options.items() if len(arranged) > 1}

    some = [atoms for n in range(MOST_CHANGES + 1) for atoms in combinations(changes, n)]
    for atoms in sorted(some, key=lambda atoms: sum(COSTS[int(numbers[i])] for i in atoms)):
        for places in product(*(changes[i] for i in atoms)):
            yield likeliest | dict(zip(atoms, places, strict=True))


def _unit(v: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def angle(a: Float[np.ndarray, " 3"], b: Float[np.ndarray, " 3"]) -> float:
    """Between two vectors, degrees."""
    return float(np.degrees(np.arccos(np.clip(_unit(a) @ _unit(b), -1, 1))))


def _sum_of_angles(u: Float[np.ndarray, "3 3"]) -> float:
    return sum(angle(u[i], u[j]) for i, j in combinations(range(3), 2))
