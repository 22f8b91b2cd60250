"""How far apart atoms are, by what they are."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

import afmol
from afmol.lengths import LARGEST_RING, angle_lengths, angles, bond_lengths, kinds, known_angles, known_bonds

SMILES = (
    "c1ccc2cc3ccccc3cc2c1",
    "C1CC1CO",
    "c1ccc2[nH]ccc2c1",
    "C1CCCCCC1",
    "O=C1C=CC(=O)C=C1F",
    "C",
    "C12C3C4C1C5C2C3C45",
)


@pytest.mark.parametrize("smiles", SMILES)
def test_angles_and_their_rings_are_those_of_the_graph(smiles):
    """By all shortest paths: two bonds apart, and around without the atom in the middle."""
    molecule = afmol.molecule_from_smiles(smiles)
    n, (i, j) = len(molecule), molecule.bonds.T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(n, n)).toarray()
    graph += graph.T
    apart = shortest_path(graph, unweighted=True)
    found = list(angles(molecule.bonds))
    expected = [
        (a, c, b)
        for c in range(n)
        for a, b in zip(*np.triu_indices(n, 1), strict=True)
        if graph[a, c] * graph[c, b] and apart[a, b] == 2
    ]
    assert sorted(found) == sorted(found, key=lambda angle: angle[:3])
    assert {angle[:3] for angle in found} == set(expected)
    assert len(found) == len(expected)
    for a, c, b, ring in found:
        without = graph.copy()
        without[c] = without[:, c] = 0
        around = shortest_path(without, unweighted=True)[a, b] + 2
        assert ring == (around if around <= LARGEST_RING else 0)


def test_bonds_hold_what_is_known():
    """Aromatic C-C 1.39, C-Cl 1.74, C-O in phenols 1.36, C=O 1.22, aromatic C-H 1.08 A (Allen et al., J. Chem. Soc.
    Perkin Trans. 2, S1, 1987)."""
    table = bond_lengths()
    assert table[(6, 3), (6, 3)].mean == pytest.approx(1.40, abs=0.02)
    assert table[(6, 3), (17, 1)].mean == pytest.approx(1.74, abs=0.02)
    assert table[(6, 3), (8, 2)].mean == pytest.approx(1.36, abs=0.02)
    assert table[(6, 3), (8, 1)].mean == pytest.approx(1.22, abs=0.02)
    assert table[(1, 1), (6, 3)].mean == pytest.approx(1.08, abs=0.02)
    assert all(0 < length.spread < 0.08 for length in table.values())


def test_angles_hold_what_is_known():
    """Across 120 degrees of a six-membered ring, and 108 of a five-membered one; thiophene's C-S-C is 92 degrees with
    bonds of 1.714 A (Bak et al., J. Mol. Spectrosc. 7, 58, 1961)."""
    table, carbon = angle_lengths(), (6, 3)
    assert table[carbon, carbon, carbon, 6].mean == pytest.approx(2 * 1.40 * np.sin(np.deg2rad(60)), abs=0.03)
    assert table[carbon, carbon, carbon, 5].mean == pytest.approx(2 * 1.40 * np.sin(np.deg2rad(54)), abs=0.05)
    assert table[(16, 2), carbon, carbon, 5].mean == pytest.approx(2 * 1.714 * np.sin(np.deg2rad(46)), abs=0.08)
    assert all(0 < length.spread < 0.15 for length in table.values())


def test_what_is_known_of_a_molecule():
    """Pyridine: 11 bonds; 6 angles in the ring and 10 with a hydrogen."""
    pyridine = afmol.molecule_from_smiles("c1ccncc1")
    bonds, across = known_bonds(pyridine), known_angles(pyridine)
    assert (len(bonds.mean), len(across.mean)) == (11, 16)
    for found in (bonds, across):
        i, j = pyridine.positions[found.pairs.T]
        assert np.linalg.norm(i - j, axis=1) == pytest.approx(found.mean, rel=0.05)
    assert kinds(pyridine.numbers, pyridine.bonds).count((6, 3)) == 5
    nothing = pyridine.taken(np.zeros(0, int))
    assert len(known_bonds(nothing).pairs) == len(known_angles(nothing).pairs) == 0
