"""The exponential force model: its energy, both engines, every derivative, and what its tables say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afmol.data.bending import lay_down
from afmol.data.chemistry import molecule_from_smiles
from afmol.elements import ELEMENTS
from afmol.simulation import FORCES, Grid, Tip, TipParameters, force_stacks, grid_around, simulate, standard_heights
from afmol.simulation.forces import EXPONENTIAL, EXPONENTIAL_10, LENNARD_JONES
from afmol.simulation.forces.coulomb import COULOMB
from afmol.simulation.forces.exponential import decayed, kernel
from afmol.simulation.probe import kernels
from test_forces import atoms_of
from test_gradients import BACKENDS, GRIDS, MOLECULES, differences, leaves, molecule, near

OWNER = torch.tensor([k for k, m in enumerate(MOLECULES) for _ in m.numbers])
CHARGED = {
    "none": Tip(charges=(), charge_offsets=()),
    "at the probe": Tip(charges=(0.05,), charge_offsets=(0.0,)),
    "one": Tip(charges=(0.05,), charge_offsets=(0.1,)),
    "three": Tip(charges=(-0.4, 0.9, -0.45), charge_offsets=(0.3, 0.0, -0.25)),
    "none of three at the probe": Tip(charges=(-0.4, 0.9, -0.45), charge_offsets=(0.3, 0.1, -0.25)),
}
tips = pytest.mark.parametrize("tip", CHARGED.values(), ids=list(CHARGED))
TABLES = Path(__file__).parents[2] / "shared" / "reference" / "force_model" / "exponentials.json"


def images(atoms, tip, parameters=None, backend="numba"):
    positions, charges, *own = atoms
    named = dict(zip(EXPONENTIAL.parameters, own, strict=True))
    return force_stacks(EXPONENTIAL, positions, charges, named, OWNER, GRIDS, tip, parameters, backend=backend)


def energy(p, atoms, tip):
    """Of the probe at p, term by term."""
    positions, charges, height, decay, c6, radius = atoms
    r = (p - positions).norm(dim=1)
    e = (height * (-decay * (r - 3)).exp() - c6 / (r**6 + radius**6)).sum()
    for charge, offset in zip(tip.charges, tip.charge_offsets, strict=True):
        away = (p + torch.tensor([0.0, 0.0, offset], dtype=torch.float64) - positions).norm(dim=1)
        e = e + (COULOMB * charges * charge / away).sum()
    return e


@tips
def test_force_and_hessian_are_derivatives_of_the_energy(tip):
    """What both engines are given, against automatic differentiation of the energy."""
    what = MOLECULES[1]
    atoms = [a[OWNER == 1] for a in atoms_of(EXPONENTIAL, MOLECULES)]
    p = (atoms[0].mean(0) + torch.tensor([0.4, -0.7, 3.1])).requires_grad_()
    force = -torch.autograd.grad(energy(p, atoms, tip), p, create_graph=True)[0]
    hessian = torch.stack([-torch.autograd.grad(f, p, retain_graph=True)[0] for f in force])
    parameters = TipParameters.of([tip] * len(what), atoms[0])
    terms = EXPONENTIAL.atom_terms(atoms[1], dict(zip(EXPONENTIAL.parameters, atoms[2:], strict=True)), parameters)
    terms = torch.column_stack(terms)
    offsets = torch.tensor([tip.charge_offsets], dtype=torch.float64)
    r, a, b = EXPONENTIAL.pairs(p[None, None] - atoms[0][None], terms[None], offsets)
    near([(a[..., None] * r).sum((0, 1, 2))], [force], 1e-9)
    outer = (b[..., None, None] * r[..., :, None] * r[..., None, :]).sum((0, 1, 2))
    near([outer - a.sum() * torch.eye(3)], [hessian], 1e-9)


@tips
def test_both_engines_agree_and_so_do_their_gradients(tip):
    found = []
    for backend in BACKENDS:
        atoms = leaves(*atoms_of(EXPONENTIAL, MOLECULES))
        parameters = TipParameters(*leaves(*TipParameters.of(tip, atoms[0])))
        out = images(atoms, tip, parameters, backend)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gradients = torch.autograd.grad((weights * out).sum(), [*atoms, *parameters], allow_unused=True)
        found.append([out.detach(), *(g for g in gradients if g is not None)])
    near(*found, 1e-9)
    assert len(found[0]) == 1 + len(atoms) + 6  # all but probe_radius and probe_depth
    for what, where, image in zip(MOLECULES, GRIDS, found[0][0].numpy(), strict=True):
        for dtype, share in ((np.float32, 1e-3), (np.float64, 1e-9)):
            alone = simulate(what, tip, where, force=EXPONENTIAL, dtype=dtype, parallel=False).data
            np.testing.assert_allclose(alone, image, rtol=0, atol=share * np.ptp(image))


def test_the_gradient_is_that_of_finite_differences():
    """By positions, charges, a, k, C6 and R."""
    start = atoms_of(EXPONENTIAL, MOLECULES)
    for k in range(len(start)):
        values = leaves(*start)
        (gradient,) = torch.autograd.grad(images(values, CHARGED["at the probe"]).square().sum(), values[k])

        def of_this(value, k=k):
            return images([*start[:k], value, *start[k + 1 :]], CHARGED["at the probe"]).square().sum()

        near([gradient], [differences(of_this, start[k], 1e-5)], 1e-6)


def test_tips_of_a_batch_have_their_charges_where_they_have_them():
    """One at the probe, one beside it: terms of different numbers, and the engines agree."""
    tips, atoms = [CHARGED[name] for name in ("at the probe", "one", "three")], atoms_of(EXPONENTIAL, MOLECULES)
    found = []
    for backend in BACKENDS:
        free = leaves(*atoms)
        own = TipParameters(*leaves(*TipParameters.of(tips, free[0])))
        out = images(free, tips, own, backend)
        found.append([out.detach(), *torch.autograd.grad(out.sum(), [*free, own.charges, own.charge_offsets])])
    near(*found, 1e-9)


def test_one_charge_is_three_of_which_two_are_none():
    """The kernel that leaves two charges out, against the one that does not."""
    atoms = atoms_of(EXPONENTIAL, MOLECULES, torch.float32)
    one, three = CHARGED["at the probe"], Tip(charges=(0.05, 0.0, 0.0), charge_offsets=(0.0, 0.4, -0.4))
    found = []
    for tip in (one, three):
        values = leaves(*atoms)
        out = images(values, tip)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), values)])
    near(*found, 2e-4)


def test_the_exponential_of_float32_is_exact_enough():
    """Force within 3.6e-5 eV/A of double precision (report of the force model, section 3); it stops at exp(-20)."""

    @kernel
    def value(x):
        return decayed(x)

    x = np.linspace(-6, 30, 5001, dtype=np.float32)
    error = np.array([value(v) for v in x]) - np.exp(-x.astype(float).clip(max=20))
    assert np.abs(error / np.exp(-x.astype(float).clip(max=20)))[x <= 12].max() < 2e-5
    assert np.abs(0.06 * 4.6 * error[x > -4]).max() < 3.6e-5
    assert value(-1.25) == np.exp(1.25)  # double precision: numpy's own


def test_far_atoms_and_atoms_without_terms_add_nothing():
    what = molecule(2, 5)
    for dtype in (np.float32, np.float64):
        grid = grid_around(what, pixel=0.5, force=EXPONENTIAL)
        image = simulate(what, CHARGED["none"], grid, force=EXPONENTIAL, dtype=dtype).data
        far = what.positions[:1] + np.array([990.0, 0.0, 0.0])
        more = _with(what, far, 35)
        both = simulate(more, CHARGED["three"], grid, force=EXPONENTIAL, dtype=dtype).data
        neutral = simulate(what, CHARGED["three"], grid, force=EXPONENTIAL, dtype=dtype).data
        np.testing.assert_allclose(both, neutral, rtol=0, atol=2e-4 * np.ptp(neutral))
        silent = _with(what, what.positions[:1] + np.array([0.0, 0.0, -1.5]), 6)
        values = {n: np.append(v, 0.0) for n, v in EXPONENTIAL.defaults(what.numbers).items()}
        same = simulate(silent, CHARGED["none"], grid, force=EXPONENTIAL, parameters=values, dtype=dtype).data
        np.testing.assert_allclose(same, image, rtol=0, atol=(5e-4 if dtype is np.float32 else 1e-9) * np.ptp(image))


def _with(what, positions, number):
    """The molecule and a neutral atom."""
    return replace(
        what,
        positions=np.concatenate([what.positions, positions]),
        numbers=np.append(what.numbers, number),
        charges=np.append(what.charges, 0.0),
    )


def test_each_element_pulls_farther_out_and_pushes_close_by():
    """Repulsion outweighs dispersion near the atom alone, and the energy's minimum is where the table's two terms
    balance: between 2.9 A (H) and 4 A (I) from the nucleus."""
    r = np.linspace(2.0, 6.0, 40001)
    for force, low, high in ((EXPONENTIAL, 2.6, 3.9), (EXPONENTIAL_10, 3.0, 4.6)):
        lowest = {}
        for e in ELEMENTS:
            a, k, c6, radius = (v[0] for v in force.defaults(np.array([e.number])).values())
            energy = a * np.exp(-k * (r - 3)) - c6 / (r**6 + radius**6)
            push, pull = a * k * np.exp(-k * (r - 3)), 6 * c6 * r**5 / (r**6 + radius**6) ** 2
            lowest[e.symbol] = r[energy.argmin()]
            assert r[np.abs(push - pull).argmin()] == pytest.approx(lowest[e.symbol], abs=2e-3), e.symbol
            assert low < lowest[e.symbol] < high, e.symbol
        assert lowest["F"] < lowest["Cl"] < lowest["Br"] < lowest["I"]


def test_heights_are_those_of_equal_repulsion():
    """Carbon at 2.62 A, 0.35 A below Lennard-Jones; above each element the repulsion has carbon's energy."""
    assert LENNARD_JONES.standard_distance - EXPONENTIAL.standard_distance == pytest.approx(0.35)
    for force in (EXPONENTIAL, EXPONENTIAL_10):
        numbers = np.array([e.number for e in ELEMENTS])
        a, k, _, _ = force.defaults(numbers).values()
        above = force.reach(numbers) - force.reach(np.array([6])) + force.standard_distance
        energies = a * np.exp(-k * (above - 3))
        np.testing.assert_allclose(energies, energies[numbers == 6][0])
    what = molecule(0, 3)
    tip = Tip()
    lowest = standard_heights(what, tip, 2.62, force=EXPONENTIAL)[-1] - tip.bond_length
    top = (what.positions[:, 2] + EXPONENTIAL.reach(what.numbers)).max() - EXPONENTIAL.reach(np.array([6]))[0]
    assert lowest == pytest.approx(top + 2.62)


def test_a_topmost_bromine_is_less_bright_than_with_lennard_jones():
    """Of bromobenzene's image one standard height up: Br's excess over a ring carbon, in standard deviations."""
    what = lay_down(molecule_from_smiles("Brc1ccccc1"), np.random.default_rng(0), tilt=0.0)
    excess = {}
    for force in (LENNARD_JONES, EXPONENTIAL):
        heights = standard_heights(what, Tip(), force.standard_distance + 0.2, 1, force=force)
        scan = simulate(what, CHARGED["none"], _one_slice(what, heights), force=force)
        image = (scan.data[..., 0] - scan.data.mean()) / scan.data.std()
        at = ((what.positions[:, :2] - what.positions[:, :2].min(0) + 3) / 0.25).astype(int)
        value = image[at[:, 0], at[:, 1]]
        excess[force.name] = value[what.numbers == 35][0] - value[what.numbers == 6].mean()
    assert 0 < excess["exponential"] < 0.85 * excess["lennard-jones"]


def _one_slice(what, heights):
    low, size = what.positions[:, :2].min(0) - 3, np.ptp(what.positions[:, :2], axis=0) + 6
    shape = np.ceil(size / 0.25).astype(int)
    return Grid(tuple(low.tolist()), tuple((shape * 0.25).tolist()), tuple(shape.tolist()), heights)


@pytest.mark.skipif(not TABLES.is_file(), reason="the tables of the force model's report are not here")
def test_the_tables_are_those_that_were_fitted():
    fitted = json.loads(TABLES.read_text())
    for force, name, scale in ((EXPONENTIAL, "S12element", 12), (EXPONENTIAL_10, "S10element", 18)):
        for e in ELEMENTS:
            if e.symbol in fitted[name]:
                height, decay = fitted[name][e.symbol]
                own = force.defaults(np.array([e.number]))
                assert own["pauli_height"][0] == pytest.approx(scale * height, rel=1e-3)
                assert own["pauli_decay"][0] == decay


def test_the_models_share_their_kernels():
    assert kernels(FORCES["exponential"]) is kernels(FORCES["exponential-1.0"])
    assert kernels(FORCES["exponential"]) is not kernels(LENNARD_JONES)
