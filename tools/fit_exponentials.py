"""Fit the exponential force model's parameters of an element to electron densities and to dispersion.

    repulsion    A int rho_CO^B rho_molecule^B over space, valence densities of PBE / ma-def2-SVP (CO: def2-TZVPD), on a
                 grid of 0.15 A; A = 18, B = 1.0 and A = 12, B = 1.2; the CO upright, its oxygen 2.4 to 4.0 A above the
                 plane. Fitted: sum_i a_i exp(-k_i (r_i - 3 A)), relative errors, over places above the molecule.
    dispersion   D3(BJ) of PBE, pairs of an atom with the oxygen and the carbon of the CO. Fitted to
                 -C6 / (r^6 + R^6), r to the oxygen, 2.4 to 8 A above the atom.

The molecules are flat rings with the element in them. Carbon and hydrogen are fitted with it and can be compared with
the table of afmol.simulation.forces.exponential, where Si and P come from here and the others from a fit to bromo- and
other benzenes in the same way.

usage: python tools/fit_exponentials.py [SMILES ...]   (default: silabenzene, phosphinine, thiophene)
Needs pyscf, geometric and dftd3 besides afmol's own dependencies; some minutes a molecule on one core.
"""

import sys

import numpy as np
from dftd3.interface import DispersionModel, RationalDampingParam
from pyscf import dft, gto
from pyscf.geomopt.geometric_solver import optimize
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.optimize import least_squares
from scipy.signal import fftconvolve

from afmol.elements import BY_NUMBER, BY_SYMBOL
from afmol.simulation.forces.exponential import PAULI_10, PAULI_12

MOLECULES = ("[SiH]1=CC=CC=C1", "C1=CC=PC=C1", "c1ccsc1")
BOHR, HARTREE = 0.529177210903, 27.211386245988
CO_BOND = 1.128
GRID = 0.15
POWERS = ((1.2, 12.0), (1.0, 18.0))
NEAREST, FARTHEST = 2.4, 4.0


def flat(smiles):
    """Atomic numbers and positions (PBE / def2-SVP), the molecule's plane at z = 0, A."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.UFFOptimizeMolecule(molecule)
    numbers = np.array([a.GetAtomicNum() for a in molecule.GetAtoms()])
    start = molecule.GetConformer().GetPositions()
    start = (start - start.mean(0)) @ np.linalg.eigh(np.cov(start.T))[1][:, ::-1] * [1, 1, 0]  # flat: it stays so
    mol = gto.M(atom=list(zip(numbers.tolist(), start.tolist(), strict=True)), basis="def2-svp", verbose=0)
    solver = dft.RKS(mol)
    solver.xc = "pbe"
    positions = optimize(solver).atom_coords() * BOHR
    centred = positions - positions.mean(0)
    return numbers, centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1]


def valence_density(numbers, positions, basis, axes):
    """rho of the valence orbitals on the grid of axes (A), electrons / A^3."""
    mol = gto.M(atom=list(zip(numbers.tolist(), positions.tolist(), strict=True)), basis=basis, verbose=0)
    solver = dft.RKS(mol)
    solver.xc = "pbe"
    solver.grids.level = 1
    solver.kernel()
    core = sum((z > 2) + 4 * (z > 10) for z in numbers.tolist())
    orbitals = solver.mo_coeff[:, core : mol.nelectron // 2]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) / BOHR
    density = np.empty(len(points))
    for first in range(0, len(points), 20000):
        values = mol.eval_gto("GTOval_sph", points[first : first + 20000]) @ orbitals
        density[first : first + 20000] = 2 * (values**2).sum(1)
    return density.reshape([len(axis) for axis in axes]) / BOHR**3


def axis(low, high):
    return GRID * np.arange(np.floor(low / GRID), np.ceil(high / GRID) + 1)


def repulsions(numbers, positions):
    """Places of the probe's oxygen, (n, 3), and the overlap integral there for each power, eV."""
    low, high = positions[:, :2].min(0) - 3.5, positions[:, :2].max(0) + 3.5
    axes = [axis(low[0], high[0]), axis(low[1], high[1]), axis(-3.0, 7.5)]
    sample = valence_density(numbers, positions, "ma-def2-svp", axes)
    reach = [axis(-3.3, 3.3), axis(-3.3, 3.3), axis(-3.3, 3.3 + CO_BOND)]
    co = valence_density(np.array([8, 6]), np.array([[0, 0, 0], [0, 0, CO_BOND]]), "def2-tzvpd", reach)
    nearest = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    apart = np.linalg.norm(nearest[:, :, :1, None, :2] - positions[:, :2], axis=-1).min(-1)[:, :, 0]
    z = axes[2]
    chosen = (apart < 1.0)[:, :, None] & ((z > NEAREST - 1e-6) & (z < FARTHEST + 1e-6))[None, None]
    chosen[:, :, ::1] &= (np.arange(len(z)) % 2 == 0)[None, None]
    found = []
    for power, scale in POWERS:
        # correlation: the CO at p covers r where its own grid says r - p
        overlap = fftconvolve(sample**power, co[::-1, ::-1, ::-1] ** power, mode="full") * GRID**3 * scale
        origin = [len(r) - 1 - round(-r[0] / GRID) for r in reach]
        overlap = overlap[tuple(slice(o, o + n) for o, n in zip(origin, sample.shape, strict=True))]
        found.append(overlap[chosen])
    return nearest[chosen], found


def fit_repulsion(numbers, positions, places, overlap, held=None):
    """a (eV) and k (1/A) of each element, and the root mean square of the relative error.

    `held`: elements, by atomic number, that keep the values given.
    """
    held = held or {}
    kinds = sorted(set(numbers.tolist()) - set(held))
    r = np.linalg.norm(places[:, None] - positions, axis=2)
    rest = np.zeros(len(places))
    for z, (height, decay) in held.items():
        rest += (height * np.exp(-decay * (r[:, numbers == z] - 3))).sum(1)
    r, numbers = r[:, ~np.isin(numbers, list(held))], numbers[~np.isin(numbers, list(held))]
    which = np.searchsorted(kinds, numbers)

    def model(x):
        height, decay = np.exp(x[: len(kinds)])[which], x[len(kinds) :][which]
        return (height * np.exp(-decay * (r - 3))).sum(1)

    start = np.concatenate([np.full(len(kinds), np.log(5e-3)), np.full(len(kinds), 4.2)])
    fit = least_squares(lambda x: (rest + model(x)) / overlap - 1, start)
    values = {z: (np.exp(fit.x[k]), fit.x[len(kinds) + k]) for k, z in enumerate(kinds)}
    return values, np.sqrt(np.mean(fit.fun**2))


def fit_dispersion(numbers, positions, atom):
    """C6 (eV A^6) and R (A) of an atom with the CO above it, and the relative error."""
    heights = np.linspace(NEAREST, 8.0, 57)
    energies = []
    for h in heights:
        co = positions[atom] + np.array([[0, 0, h], [0, 0, h + CO_BOND]])
        model = DispersionModel(np.append(numbers, [8, 6]), np.concatenate([positions, co]) / BOHR)
        pairs = model.get_pairwise_dispersion(RationalDampingParam(method="pbe"))["additive pairwise energy"]
        energies.append((pairs[atom, -2:].sum() + pairs[-2:, atom].sum()) * HARTREE)
    energies = np.array(energies)

    def model(x):
        return -np.exp(x[0]) / (heights**6 + x[1] ** 6)

    fit = least_squares(lambda x: model(x) / energies - 1, [np.log(20.0), 3.3])
    return np.exp(fit.x[0]), fit.x[1], np.sqrt(np.mean(fit.fun**2))


def main(*molecules):
    """Print a table a molecule."""
    for smiles in molecules or MOLECULES:
        numbers, positions = flat(smiles)
        print(f"{smiles}: {len(numbers)} atoms, {np.ptp(positions[:, 2]):.3f} A thick", flush=True)
        places, overlaps = repulsions(numbers, positions)
        for (power, scale), overlap, table in zip(POWERS, overlaps, (PAULI_12, PAULI_10), strict=True):
            known = {BY_SYMBOL[symbol].number: table[symbol] for symbol in ("H", "C")}
            for held in ({}, known):
                values, error = fit_repulsion(numbers, positions, places, overlap, held)
                text = ", ".join(f"{BY_NUMBER[z].symbol} {1e3 * a:.2f} meV {k:.3f} / A" for z, (a, k) in values.items())
                how = "H and C from the table" if held else "all fitted"
                print(f"  B = {power}, A = {scale:g}, {how}: {text}; relative error {error:.3f}")
        for z in sorted(set(numbers.tolist())):
            c6, radius, error = fit_dispersion(numbers, positions, int(np.flatnonzero(numbers == z)[0]))
            print(
                f"  {BY_NUMBER[z].symbol}: C6 {c6:.1f} eV A^6, R {radius:.2f} A, relative error {error:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
