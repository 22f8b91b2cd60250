"""Stacks as torch tensors: two engines against each other, batches, gradients, snaps, a structure from its image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afmol.elements import ELEMENTS, table
from afmol.errors import ConfigError, MoleculeError, ScanError
from afmol.simulation import TIPS, Grid, Tip, TipParameters, simulate, snaps, stacks, standard_heights
from afmol.structures import Molecule

NO_BONDS = np.zeros((0, 2), np.int64)
BACKENDS = ("torch", "numba")


def molecule(seed: int = 0, n: int = 9, thickness: float = 0.6) -> Molecule:
    """Made-up atoms of all elements, about 1.5 A apart on a square lattice, not quite flat, away from the origin."""
    rng = np.random.default_rng(seed)
    sites = np.argwhere(np.ones((4, 4)))[rng.permutation(16)[:n]] * 1.5 + rng.normal(0, 0.15, (n, 2))
    numbers = rng.choice([e.number for e in ELEMENTS], n)
    positions = np.column_stack([sites, rng.uniform(-thickness, 0, n)]) + rng.uniform(-40, 40, 3)
    return Molecule(positions, numbers, NO_BONDS, rng.normal(0, 0.15, n))


def grid(what: Molecule, shape=(8, 18), pixel=0.5, distance=3.2, slices=3, tip: Tip | None = None) -> Grid:
    """A small grid about the middle of a molecule."""
    size = (shape[0] * pixel, shape[1] * pixel)
    corner = what.positions[:, :2].mean(0) - np.array(size) / 2
    heights = standard_heights(what, tip or Tip(), distance, slices)
    return Grid((float(corner[0]), float(corner[1])), size, shape, heights)


def packed(molecules: list[Molecule], dtype=torch.float64) -> list[torch.Tensor]:
    """Positions, charges, radii, depths and molecule of each atom."""
    numbers = np.concatenate([m.numbers for m in molecules])
    values = (
        np.concatenate([m.positions for m in molecules]),
        np.concatenate([m.charges for m in molecules]),
        *(table(name)[numbers] for name in ("lj_radius", "lj_depth")),
    )
    owner = np.repeat(np.arange(len(molecules)), [len(m) for m in molecules])
    return [*(torch.tensor(v, dtype=dtype) for v in values), torch.tensor(owner)]


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


MOLECULES = [molecule(1, 3), molecule(2, 9), molecule(3, 6)]
GRIDS = [grid(m) for m in MOLECULES]
TIPS_TO_TEST = {
    "co": Tip(),
    "xe": TIPS["xe"],
    "neutral": Tip(charges=(), charge_offsets=()),
    "bent": Tip(stiffness=0.6, offset=(0.2, -0.1), amplitude=0.6, steps=5, charges=(0.05, -0.1),
                charge_offsets=(0.2, -0.3), weights="exact"),
}  # fmt: skip


FIELDS, CHARGES = TipParameters._fields, ("charges", "charge_offsets")


def stack_and_gradients(atoms, grids, tip, parameters, backend):
    """A batch of stacks and the gradients of a random sum over them, by atoms and tip."""
    atoms, parameters = [*leaves(*atoms[:4]), atoms[4]], TipParameters(*leaves(*parameters))
    out = stacks(*atoms, grids, tip, parameters, backend=backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad((weights * out).sum(), [*atoms[:4], *parameters])]


def near(actual, expected, share):
    """Each tensor equal to the other but for a share of its largest number."""
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).abs().max() <= share * b.abs().max().clamp(min=1e-12)


# Two engines, batches


@pytest.mark.parametrize("name", TIPS_TO_TEST)
def test_the_kernels_and_the_reference_agree(name):
    tip = TIPS_TO_TEST[name]
    atoms = packed(MOLECULES)
    arguments = atoms, [grid(m, tip=tip) for m in MOLECULES], tip, TipParameters.of(tip, atoms[0])
    kernels, reference = (stack_and_gradients(*arguments, backend) for backend in ("numba", "torch"))
    assert kernels[0].shape == (3, 8, 18, 3)
    near(kernels, reference, 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_under_different_tips_is_each_molecule_under_its_own(backend):
    """Tips that differ in everything, in the number of charges and of heights too; and so do the gradients, but for the
    order of their sums, which a processor chooses by their shape (1.5e-12 on one with AMX)."""
    tips = [TIPS_TO_TEST[name] for name in ("bent", "xe", "co")]
    grids = [grid(m, tip=tip) for m, tip in zip(MOLECULES, tips, strict=True)]
    atoms = packed(MOLECULES)
    together = stack_and_gradients(atoms, grids, tips, TipParameters.of(tips, atoms[0]), backend)
    weights = torch.randn(together[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near([stacks(*atoms, grids, tips, backend=backend)], together[:1], 0)
    first = np.cumsum([0] + [len(m) for m in MOLECULES])
    for k, (m, tip) in enumerate(zip(MOLECULES, tips, strict=True)):
        alone, parameters = leaves(*packed([m])[:4]), TipParameters(*leaves(*TipParameters.of(tip, atoms[0])))
        out = stacks(*alone, packed([m])[4], grids[k], tip, parameters, backend=backend)
        near([out.detach()[0]], [together[0][k]], 1e-12)
        expected = torch.autograd.grad((weights[k] * out[0]).sum(), [*alone, *parameters])
        own = slice(first[k], first[k + 1])
        near([t[own] for t in together[1:5]], expected[:4], 1e-11)
        charges = len(tip.charges)
        found = [t[k, :charges] if name in CHARGES else t[k] for name, t in zip(FIELDS, together[5:], strict=True)]
        near(found, expected[4:], 1e-11)


def test_a_tip_for_each_molecule():
    atoms = packed(MOLECULES)
    with pytest.raises(ConfigError, match="3 molecules need as many tips, not 2"):
        stacks(*atoms, GRIDS, [Tip(), Tip()])
    two = TipParameters.of([Tip(), Tip()], atoms[0])
    one = TipParameters.of(Tip(), atoms[0])
    with pytest.raises(ConfigError, match=r"3 molecules need as many tips, not 2 \(stiffness\)"):
        stacks(*atoms, GRIDS, parameters=one._replace(stiffness=two.stiffness))
    # one field of each molecule's own, the others shared
    three = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    mixed = stacks(*atoms, GRIDS, parameters=one._replace(stiffness=three))
    for k, stiffness in enumerate(three.tolist()):
        expected = stacks(*atoms, GRIDS, Tip(stiffness=stiffness))
        near([mixed[k]], [expected[k]], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_close_to_float64(backend):
    exact, rough = (packed(MOLECULES, dtype) for dtype in (torch.float64, torch.float32))
    expected = stack_and_gradients(exact, GRIDS, Tip(), TipParameters.of(Tip(), exact[0]), backend)
    actual = stack_and_gradients(rough, GRIDS, Tip(), TipParameters.of(Tip(), rough[0]), backend)
    assert {t.dtype for t in actual} == {torch.float32}
    near([t.double() for t in actual], expected, 3e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_simulate_is_a_batch_of_one(dtype):
    atoms = packed(MOLECULES, torch.float64 if dtype is np.float64 else torch.float32)
    for what, where, stack in zip(MOLECULES, GRIDS, stacks(*atoms, GRIDS), strict=True):
        alone = simulate(what, TIPS["co"], where, dtype=dtype, parallel=False).data
        np.testing.assert_allclose(stack, alone, rtol=0, atol=(1e-9 if dtype is np.float64 else 1e-3) * np.ptp(alone))


@pytest.mark.parametrize("backend", BACKENDS)
def test_atoms_have_no_order(backend):
    atoms = packed(MOLECULES)
    order = torch.randperm(len(atoms[0]), generator=torch.Generator().manual_seed(1))
    tip = TipParameters.of(Tip(), atoms[0])
    sorted_, mixed = (stack_and_gradients(a, GRIDS, Tip(), tip, backend) for a in (atoms, [a[order] for a in atoms]))
    near([mixed[0], *mixed[5:]], [sorted_[0], *sorted_[5:]], 1e-9)
    near(mixed[1:5], [g[order] for g in sorted_[1:5]], 1e-9)


def test_chunks_and_threads_change_nothing(monkeypatch):
    atoms = packed(MOLECULES)
    arguments = atoms, GRIDS, Tip(), TipParameters.of(Tip(), atoms[0])
    whole = {backend: stack_and_gradients(*arguments, backend) for backend in BACKENDS}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("afmol.simulation.batch.CHUNK", 100 * 18 * 4 * 9)  # 100 points
    near(stack_and_gradients(*arguments, "torch"), whole["torch"], 1e-10)
    for a, b in zip(stack_and_gradients(*arguments, "numba"), whole["numba"], strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    atoms = packed(MOLECULES)
    there = [t.cuda() for t in atoms]
    expected = stack_and_gradients(atoms, GRIDS, Tip(), TipParameters.of(Tip(), atoms[0]), "numba")
    actual = stack_and_gradients(there, GRIDS, Tip(), TipParameters.of(Tip(), there[0]), "auto")
    near([t.cpu() for t in actual], expected, 1e-8)


# Gradients against finite differences


def differences(function, at, step):
    """Central differences of a scalar function by every entry of `at`."""
    out = torch.zeros_like(at)
    for i in range(at.numel()):
        moved = torch.zeros_like(at)
        moved.view(-1)[i] = step
        out.view(-1)[i] = (function(at + moved) - function(at - moved)) / (2 * step)
    return out


@pytest.fixture(scope="module")
def image_loss():
    """A loss over whole images away from snaps, of two molecules of different size: of the atoms and the tip."""
    molecules = [molecule(5, 4), molecule(6, 6)]
    grids = [grid(m, (5, 7), 0.9, 3.3, 3) for m in molecules]
    tip = Tip(offset=(0.1, -0.2))
    *atoms, owner = packed(molecules)
    start = [*atoms, *TipParameters.of(tip, atoms[0])]
    target = stacks(*[a + 0.01 for a in atoms], owner, grids, tip)
    keep = ~snaps(*atoms, owner, grids, tip)
    assert keep.double().mean() > 0.9

    def loss(values, backend):
        out = stacks(*values[:4], owner, grids, tip, TipParameters(*values[4:]), backend=backend)
        return ((out - target) * keep).square().sum()

    return loss, start


NAMES = ("positions", "charges", "lj_radius", "lj_depth", *TipParameters._fields)


@pytest.fixture(scope="module")
def slopes(image_loss):
    """Finite differences of it by each of its arguments, of the faster engine: both are the same function."""
    loss, start = image_loss
    found = []
    for k, name in enumerate(NAMES):
        step = 1e-5 * float(start[k].abs().max()) if name != "positions" else 1e-5

        def of_this(value, k=k):
            return loss([*start[:k], value, *start[k + 1 :]], "numba")

        found.append(differences(of_this, start[k], step))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_an_image_is_that_of_finite_differences(image_loss, slopes, backend):
    loss, start = image_loss
    values = leaves(*start)
    gradients = torch.autograd.grad(loss(values, backend), values)
    for name, gradient, expected in zip(NAMES, gradients, slopes, strict=True):
        assert expected.abs().max() > 0, name
        near([gradient], [expected], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shift_of_all_atoms_is_one_of_the_pixels(backend):
    """Noether: the derivatives by all positions sum to those by the tip's offset and by all heights, but for signs."""
    *atoms, owner = packed(MOLECULES)
    positions, tip = atoms[0].clone().requires_grad_(), TipParameters.of(Tip(), atoms[0])
    offset = tip.offset.clone().requires_grad_()
    out = stacks(positions, *atoms[1:], owner, GRIDS, Tip(), tip._replace(offset=offset), backend=backend)
    by_positions, by_offset = torch.autograd.grad(out.square().sum(), [positions, offset])
    near([-by_positions.sum(0)[:2]], [by_offset], 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused_rather_than_wrong(backend):
    positions = ATOMS[0].clone().requires_grad_()
    out = stacks(positions, *ATOMS[1:], GRID, backend=backend)
    with pytest.raises(ConfigError, match="differentiable once"):
        torch.autograd.grad(out.sum(), positions, create_graph=True)


# Snaps


def at_a_fold() -> tuple[Molecule, Grid, Tip]:
    """Two heavy atoms between which a very soft probe must choose, and does with a jump."""
    what = Molecule(np.array([[0.0, 0, 0], [4.4, 0, 0]]), np.array([35, 35]), NO_BONDS, np.zeros(2))
    tip = Tip(stiffness=0.05)
    return what, Grid((-3.0, -3.0), (10.4, 6.0), (52, 30), standard_heights(what, tip, 2.5, 5)), tip


@pytest.mark.parametrize("backend", BACKENDS)
def test_snaps_are_found_where_finer_steps_find_a_jump(backend):
    what, where, tip = at_a_fold()
    atoms = packed([what])
    mask = snaps(*atoms, where, tip, backend=backend)
    assert mask.shape == (1, 52, 30, 5)
    fine = replace(tip, steps=200)
    again = snaps(*atoms, where, fine)
    assert again.any()
    assert (mask | ~again).double().mean() > 0.995  # nearly all true jumps are seen
    assert mask.double().mean() < 0.25


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_the_probe_snaps(backend, dtype):
    what, where, tip = at_a_fold()
    *atoms, owner = packed([what], dtype)
    values = leaves(*atoms, *TipParameters.of(tip, atoms[0]))
    out = stacks(*values[:4], owner, where, tip, TipParameters(*values[4:]), backend=backend)
    assert out.isfinite().all()
    gradients = torch.autograd.grad(out.square().sum(), values)
    assert all(g.isfinite().all() for g in gradients)


def test_far_away_nothing_snaps_and_the_engines_agree_where_it_does():
    what, where, tip = at_a_fold()
    *atoms, owner = packed([what])
    assert not snaps(*atoms, owner, replace(where, heights=where.heights + 3), tip).any()
    kernels, reference = (snaps(*atoms, owner, where, tip, backend=backend) for backend in BACKENDS)
    assert (kernels == reference).double().mean() > 0.999


# A structure from its image


@pytest.mark.parametrize("seed", [0, 3])
def test_displaced_atoms_find_back_by_the_gradient_of_their_image(seed):
    """0.2 A off in any direction (rms); all atoms lie within the 0.6 A that an image shows."""
    what = molecule(seed)
    where = grid(what, (24, 24), 0.4, 3.0, 6)
    true, *rest = packed([what])
    image = stacks(true, *rest, where, TIPS["co-quadrupole"])
    rng = np.random.default_rng(seed)
    noise = torch.tensor(rng.normal(size=(len(what), 3)))
    positions = (true + 0.2 * noise / noise.square().sum(1).mean().sqrt()).requires_grad_()
    optimizer = torch.optim.LBFGS([positions], max_iter=150, history_size=30, line_search_fn="strong_wolfe")

    def error():
        return float((positions.detach() - true).square().sum(1).mean().sqrt())

    def closure():
        optimizer.zero_grad()
        loss = ((stacks(positions, *rest, where, TIPS["co-quadrupole"]) - image) / image.std()).square().mean()
        loss.backward()
        return loss

    assert error() == pytest.approx(0.2)
    optimizer.step(closure)
    assert error() < 0.2 / 5


# Errors


ATOMS = packed([molecule(1, 3)])
GRID = grid(molecule(1, 3))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: ATOMS[0].long()}, MoleculeError, "float32 or float64"),
        ({0: ATOMS[0][:, :2]}, MoleculeError, "shape"),
        ({1: ATOMS[1][:2]}, MoleculeError, "charges"),
        ({2: ATOMS[2][:, None]}, MoleculeError, "lj_radius"),
        ({4: ATOMS[4].double()}, MoleculeError, "integer"),
        ({4: ATOMS[4] - 1}, MoleculeError, "integer"),
        ({4: ATOMS[4] + 1}, MoleculeError, "grids need"),
        ({0: torch.full_like(ATOMS[0], np.nan)}, MoleculeError, "finite"),
        ({1: torch.full_like(ATOMS[1], np.inf)}, MoleculeError, "finite"),
        ({3: -ATOMS[3]}, MoleculeError, "negative"),
        ({0: ATOMS[0][:1] + 0.1 * torch.arange(3.0)[:, None].double()}, MoleculeError, "apart"),
        ({0: ATOMS[0] + torch.tensor([0, 0, 4.0]).double()}, ScanError, "into the molecule"),
        ({5: [GRID, GRID]}, MoleculeError, "2 grids"),
        ({4: torch.tensor([0, 0, 1]), 5: [GRID, replace(GRID, heights=GRID.heights[1:])]}, ConfigError, "same number"),
    ],
)
def test_wrong_arguments_get_their_sentence(change, error, words):
    arguments = [change.get(k, value) for k, value in enumerate([*ATOMS, GRID])]
    with pytest.raises(error, match=words):
        stacks(*arguments)


def test_a_backend_that_cannot_be_used():
    with pytest.raises(ConfigError, match="backend is"):
        stacks(*ATOMS, GRID, backend="cuda")


def test_parameters_that_are_not_finite():
    tip = TipParameters.of(Tip(), ATOMS[0])
    with pytest.raises(ConfigError, match="finite"):
        stacks(*ATOMS, GRID, Tip(), tip._replace(stiffness=tip.stiffness * np.nan))
