"""A second force model, in one object, through both engines; and the cache of the compiled kernels.

Outside its own file a force model takes two lines: its import and its entry in `afmol.simulation.forces.FORCES`. The
one here, which takes none, is soft spheres: E(p) = sum_i height_i exp(-decay_i (r_i - 3 A)), no charges, no tip.
"""

import os
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from afmol.errors import MoleculeError
from afmol.simulation import Tip, TipParameters, force_snaps, force_stacks, simulate, standard_heights
from afmol.simulation.forces import LENNARD_JONES, ForceModel
from afmol.simulation.forces.force import FX, LANES, PIXEL, UX, UY, UZ, VX, VY, VZ, kernel
from afmol.simulation.probe import kernels
from test_gradients import BACKENDS, differences, grid, leaves, molecule, near


@kernel
def vector_and_decayed(w, lane, anchor_x, anchor_z, scene, i):
    """From atom i to the probe, its length, and exp(-decay (r - 3)) / r."""
    x, y = w[UX + lane] + anchor_x - scene.positions[0, i], w[UY + lane] + w[PIXEL + lane] - scene.positions[1, i]
    z = w[UZ + lane] + anchor_z - scene.positions[2, i]
    r = np.sqrt(x * x + y * y + z * z)
    return x, y, z, r, np.exp(scene.atoms[1, i] * (scene.limits[4] - r)) / r


@kernel
def force_and_hessian(w, anchor_x, anchor_z, scene):
    one = scene.limits[4] / scene.limits[4]
    for n in range(9 * LANES):
        w[FX + n] = one - one
    for i in range(scene.atoms.shape[1]):
        height, decay = scene.atoms[0, i], scene.atoms[1, i]
        for lane in range(LANES):
            x, y, z, r, decayed = vector_and_decayed(w, lane, anchor_x, anchor_z, scene, i)
            a = height * decay * decayed
            b = a * (decay + one / r) / r
            hessian = (b * x * x - a, b * x * y, b * x * z, b * y * y - a, b * y * z, b * z * z - a)
            for n, value in enumerate((a * x, a * y, a * z, *hessian)):
                w[FX + n * LANES + lane] += value


@kernel
def force_vjp(w, anchor_x, anchor_z, scene, d_atoms, d_tip):
    three = scene.limits[4]
    one = three / three
    for i in range(scene.atoms.shape[1]):
        height, decay = scene.atoms[0, i], scene.atoms[1, i]
        for lane in range(LANES):
            x, y, z, r, decayed = vector_and_decayed(w, lane, anchor_x, anchor_z, scene, i)
            along = x * w[VX + lane] + y * w[VY + lane] + z * w[VZ + lane]
            a = height * decay * decayed
            b = a * (decay + one / r) / r * along
            by = (b * x - a * w[VX + lane], b * y - a * w[VY + lane], b * z - a * w[VZ + lane])
            terms = (decay * decayed * along, height * decayed * (one + decay * (three - r)) * along)
            for n, value in enumerate((*by, *terms)):
                d_atoms[i, n] += value


def pairs(d, atoms, tip):
    r, (height, decay) = d.norm(dim=-1), atoms.unbind(-1)
    a = height * decay * (-decay * (r - 3)).exp() / r
    return d[:, :, None], a[..., None], (a * (decay + 1 / r) / r)[..., None]


SOFT = ForceModel(
    name="soft spheres",
    parameters=("height", "decay"),
    defaults=lambda numbers: {"height": 0.01 * numbers**0.5, "decay": 1.5 + 0.5 / numbers},
    reach=lambda numbers: np.log(numbers) / 3,
    atom_terms=lambda charges, parameters, tip: (parameters["height"], parameters["decay"]),
    tip_terms=lambda tip: tip.charge_offsets[:, :0],
    kernel_terms=lambda atoms, tip: (atoms.T, tip),
    force_and_hessian=force_and_hessian,
    force_vjp=force_vjp,
    pairs=pairs,
    signed=("height",),
)


MOLECULES = [molecule(1, 3), molecule(2, 9)]
GRIDS = [grid(m, (4, 18)) for m in MOLECULES]
OWNER = torch.tensor([0] * 3 + [1] * 9)


def atoms_of(force, molecules=MOLECULES, dtype=torch.float64):
    """Positions, charges and the force model's own parameters of all atoms."""
    numbers = np.concatenate([m.numbers for m in molecules])
    arrays = [np.concatenate([getattr(m, name) for m in molecules]) for name in ("positions", "charges")]
    return [torch.tensor(values, dtype=dtype) for values in (*arrays, *force.defaults(numbers).values())]


def images(atoms, tip=None, backend="numba"):
    positions, charges, height, decay = atoms
    parameters = {"decay": decay, "height": height}
    return force_stacks(SOFT, positions, charges, parameters, OWNER, GRIDS, Tip(), tip, backend=backend)


def test_both_engines_agree_and_so_do_their_gradients_and_simulate():
    found = []
    for backend in BACKENDS:
        atoms = leaves(*atoms_of(SOFT))
        tip = TipParameters(*leaves(*TipParameters.of(Tip(), atoms[0])))
        out = images(atoms, tip, backend)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gradients = torch.autograd.grad((weights * out).sum(), [*atoms, *tip], allow_unused=True)
        unused = [k for k, gradient in enumerate(gradients) if gradient is None]
        assert unused == [1, 4, 5, 6]  # charges, probe_radius, probe_depth, the tip's charges
        found.append([out.detach(), *(g for g in gradients if g is not None)])
    near(*found, 1e-9)
    for what, where, image in zip(MOLECULES, GRIDS, found[0][0].numpy(), strict=True):
        for dtype, share in ((np.float32, 3e-3), (np.float64, 1e-9)):
            alone = simulate(what, Tip(), where, force=SOFT, dtype=dtype, parallel=False).data
            np.testing.assert_allclose(alone, image, rtol=0, atol=share * np.ptp(image))


def test_the_gradient_is_that_of_finite_differences():
    start = atoms_of(SOFT)
    parameters = dict(zip(SOFT.parameters, start[2:], strict=True))
    assert not force_snaps(SOFT, *start[:2], parameters, OWNER, GRIDS).any()
    for k in (0, 2, 3):
        values = leaves(*start)
        (gradient,) = torch.autograd.grad(images(values).square().sum(), values[k])

        def of_this(value, k=k):
            return images([*start[:k], value, *start[k + 1 :]]).square().sum()

        near([gradient], [differences(of_this, start[k], 1e-5)], 1e-6)


def test_heights_and_parameters_are_the_models_own():
    what = MOLECULES[0]
    top = (what.positions[:, 2] + np.log(what.numbers) / 3).max() - np.log(6) / 3
    assert standard_heights(what, Tip(), 3.0, force=SOFT)[-1] == pytest.approx(top + 3 + Tip().bond_length)
    image, other = (simulate(what, force=SOFT, parameters={"height": np.full(3, h)}).data for h in (0.05, -0.05))
    assert image.mean() > 0.1 > -0.1 > other.mean()  # the probe is pushed, or pulled: height is signed, decay is not
    with pytest.raises(MoleculeError, match="decay of an atom must not be negative"):
        simulate(what, force=SOFT, parameters={"decay": -np.ones(3)})
    with pytest.raises(MoleculeError, match="soft spheres takes height, decay of each atom, not height, decay, lj_rad"):
        simulate(what, force=SOFT, lj_radius=np.ones(3))


# The cache of compiled kernels


CACHED = (LENNARD_JONES, SOFT)
"""Two that must not be mixed up; a third would take seconds to compile and go through the same code."""


def report() -> None:
    """For each model, print which kernels came from the cache, and a hash of a float32 image and its gradient."""
    for model in CACHED:
        positions, charges, *own = leaves(*atoms_of(model, MOLECULES, torch.float32))
        parameters = dict(zip(model.parameters, own, strict=True))
        out = force_stacks(model, positions, charges, parameters, OWNER, GRIDS)
        gradients = torch.autograd.grad(out.square().sum(), [positions, *own])
        digest = sha256(b"".join(t.detach().numpy().tobytes() for t in (out, *gradients))).hexdigest()
        print(digest, *(sum(k.stats.cache_hits.values()) for k in kernels(model)))


def test_a_second_process_loads_what_the_first_compiled_and_gives_the_same_bits(tmp_path):
    command = [sys.executable, "-c", "from test_forces import report; report()"]
    options = {"cwd": Path(__file__).parent, "env": os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}}
    runs = [subprocess.run(command, **options, capture_output=True, text=True, check=True) for _ in range(2)]
    compiled, loaded = ([line.split() for line in run.stdout.splitlines()] for run in runs)
    assert [hits for _, *hits in compiled] == [["0", "0"]] * len(CACHED)
    assert loaded == [[digest, "1", "1"] for digest, *_ in compiled]


def test_an_edited_force_model_is_compiled_anew(tmp_path):
    def names(text: str) -> tuple[str, ...]:
        (tmp_path / "edited.py").write_text(f"{text}\ndef f(w, anchor_x, anchor_z, scene): pass\nf = kernel(f)")
        module = runpy.run_path(str(tmp_path / "edited.py"), {"kernel": kernel})
        edited = kernels(LENNARD_JONES._replace(force_and_hessian=module["f"]))
        return tuple(function.py_func.__qualname__ for function in edited)

    first, again, other = names("a = 1"), names("a = 1"), names("a = 2")
    assert first == again
    assert not {*first} & {*other, *(function.py_func.__qualname__ for function in kernels(LENNARD_JONES))}


def test_one_molecule_needs_no_torch():
    atom = "Molecule(np.zeros((1, 3)), np.array([6]), np.zeros((0, 2), int))"
    code = f"import sys, afmol, numpy as np; from afmol.structures import Molecule; afmol.simulate({atom}); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
