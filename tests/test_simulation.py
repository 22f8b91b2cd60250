from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import root

from afmol.elements import BY_SYMBOL, ELEMENTS, table
from afmol.errors import ConfigError, MoleculeError, ScanError
from afmol.simulation import STANDARD_DISTANCE, TIPS, Grid, Tip, grid_around, simulate, snaps, standard_heights
from afmol.simulation.forces import LENNARD_JONES
from afmol.simulation.forces.force import END, FX, HXX, LANES, PIXEL, UX, UY, UZ
from afmol.simulation.forces.lennard_jones import coulomb_terms, force_and_hessian, lennard_jones_terms
from afmol.simulation.scene import kernel_scene
from afmol.simulation.tip import frequency_shift_weights, giessibl_weights
from afmol.structures import Molecule

NEWTON_PER_METRE = 16.0217662  # 1 eV/A^2
NO_BONDS = np.zeros((0, 2), np.int64)


def molecule(seed: int = 0, n: int = 9, thickness: float = 0.6) -> Molecule:
    """Made-up atoms of all elements, about 1.5 A apart on a square lattice, not quite flat."""
    rng = np.random.default_rng(seed)
    sites = np.argwhere(np.ones((4, 4)))[rng.permutation(16)[:n]] * 1.5 + rng.normal(0, 0.15, (n, 2))
    return Molecule(
        positions=np.column_stack([sites - sites.mean(0), rng.uniform(-thickness, 0, n)]),
        numbers=rng.choice([e.number for e in ELEMENTS], n),
        bonds=NO_BONDS,
        charges=rng.normal(0, 0.15, n),
    )


def charges(what: Molecule) -> np.ndarray:
    assert what.charges is not None
    return what.charges


def moved(what: Molecule, shift) -> Molecule:
    return replace(what, positions=what.positions + np.asarray(shift, float))


def grid(what: Molecule, shape=(12, 20), pixel=0.5, distance=3.2, slices=4, tip: Tip | None = None) -> Grid:
    """A small grid centred on the origin. Dyadic pixels: their coordinates are exact in float32."""
    size = (shape[0] * pixel, shape[1] * pixel)
    heights = standard_heights(what, tip or Tip(), distance, slices)
    return Grid((-size[0] / 2, -size[1] / 2), size, shape, heights)


# Against the reference: exact forces, relaxed to 1e-9 eV/A in float64


@pytest.mark.parametrize("name", ["bcb", "phenothiaphosphinine", "ptcda"])
@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 0.02e-2), (np.float64, 0.002e-2)])
def test_the_reference_simulations_are_reproduced(shared, name, dtype, share):
    with np.load(shared / "reference" / "ppafm" / f"{name}.npz") as stored:
        reference = stored["analytic_df_hz"].astype(float)
        case = Molecule(stored["xyz"], stored["Z"], NO_BONDS, stored["q"])
        heights, x = stored["tip_z"][9:], stored["scan_x"]
    step = x[1] - x[0]
    corner, length = float(x[0] - step / 2), float(len(x) * step)
    where = Grid((corner, corner), (length, length), (len(x), len(x)), heights)
    error = simulate(case, Tip(), where, dtype=dtype, parallel=False).data - reference
    atoms = (case.positions, charges(case), table("lj_radius")[case.numbers], table("lj_depth")[case.numbers])
    atoms = [torch.tensor(a, dtype=torch.float64) for a in atoms]
    jumps = snaps(*atoms, torch.zeros(len(case), dtype=torch.long), where)[0].numpy()
    assert jumps.any(2).mean() <= 0.02  # of the pixels: 3, 2 and 228 of 16384
    smooth = np.where(jumps, 0, error)
    assert (np.sqrt((smooth**2).mean((0, 1))) / reference.std((0, 1)) <= 0.05e-2).all()
    assert (np.percentile(np.abs(error), 99.9, axis=(0, 1)) / np.ptp(reference, axis=(0, 1)) <= share).all()


def test_the_weights_of_the_reference(shared):
    with np.load(shared / "reference" / "ppafm" / "bcb.npz") as stored:
        weights = frequency_shift_weights(10, 0.1) * NEWTON_PER_METRE * 30300 / 1800
        np.testing.assert_allclose(weights, stored["hz_dfweight"], rtol=1e-6)


# Against the equations, written once more here


def energy(p, what: Molecule, tip: Tip):
    """Energy (eV) of a molecule and a probe at p (..., 3), which may be complex."""
    d = p[..., None, :] - what.positions
    r2 = (d**2).sum(-1)
    eps, radius = np.array([(e.lj_depth, e.lj_radius) for z in what.numbers for e in ELEMENTS if e.number == z]).T
    depth = np.sqrt(eps * tip.probe_depth)
    ratio6 = ((radius + tip.probe_radius) ** 2 / r2) ** 3
    total = (depth * (ratio6**2 - 2 * ratio6)).sum(-1)
    q = np.zeros(len(what)) if what.charges is None else what.charges
    for charge, z in zip(tip.charges, tip.charge_offsets, strict=True):
        total = total + (14.399644 * charge * q / np.sqrt(((d + np.array([0, 0, z])) ** 2).sum(-1))).sum(-1)
    return total


def force(p, what: Molecule, tip: Tip):
    """-dE/dp (3,) of one probe by a complex step, exact to rounding."""
    return -energy(p + 1e-30j * np.eye(3), what, tip).imag / 1e-30


def relaxed_forces(what: Molecule, tip: Tip, x: float, y: float, heights):
    """Vertical force (eV/A) on the relaxed probe at each height, carried down from the height above."""
    rest = np.array([x + tip.offset[0], y + tip.offset[1]])
    u = np.array([0.0, 0.0, -tip.bond_length])
    out = []
    for height in heights:
        end = np.array([*rest, height])

        def balance(u, end=end):
            springs = tip.stiffness * np.array([*u[:2], 0.0])
            springs += tip.radial_stiffness * (1 - tip.bond_length / np.linalg.norm(u)) * u
            return force(end + u, what, tip) - springs / NEWTON_PER_METRE

        solution = root(balance, u, tol=1e-13)
        assert np.abs(solution.fun).max() < 1e-10
        u = solution.x
        out.append(force(end + u, what, tip)[2])
    return np.array(out)


TIPS_TO_TEST = {
    "default": Tip(),
    "xe": TIPS["xe"],
    "bent": Tip(stiffness=0.6, offset=(0.2, -0.1), amplitude=0.6, steps=6, bond_length=3.5, charges=(0.05, -0.1),
                charge_offsets=(0.2, -0.3), frequency=25000.0, cantilever_stiffness=1500.0),
}  # fmt: skip


@pytest.mark.parametrize("name", TIPS_TO_TEST)
def test_a_relaxation_written_from_the_equations_gives_the_same_stack(name):
    tip = TIPS_TO_TEST[name]
    what = molecule(1)
    where = grid(what, (3, 2), 1.5, slices=3, tip=tip)
    stack = simulate(what, tip, where, dtype=np.float64, parallel=False).data

    step = tip.amplitude / tip.steps
    count = round((where.heights[0] - where.heights[-1]) / step) + tip.steps
    heights = where.heights[-1] + step * np.arange(count - 1, -1, -1)
    expected = np.empty_like(stack)
    for i, j in np.ndindex(3, 2):
        forces = relaxed_forces(what, tip, -2.25 + 1.5 * (i + 0.5), -1.5 + 1.5 * (j + 0.5), heights)
        for k, closest in enumerate(where.heights):
            first = round((heights[0] - closest) / step) - (tip.steps - 1)
            weights = frequency_shift_weights(tip.steps, step) * tip.frequency / tip.cantilever_stiffness
            expected[i, j, k] = NEWTON_PER_METRE * weights @ forces[first : first + tip.steps]
    assert np.ptp(expected) > 1  # Hz: something is to be seen
    np.testing.assert_allclose(stack, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("name", TIPS_TO_TEST)
def test_force_and_hessian_are_derivatives_of_the_energy(name):
    what, tip = molecule(2, 5), TIPS_TO_TEST[name]
    rng = np.random.default_rng(3)
    anchor = np.array([0.4, 0.0, 7.0])
    u = rng.normal(0, 0.3, (LANES, 3)) - [0, 0, 4]
    pixel_y = np.linspace(-2, 2, LANES)
    w = np.full(END, np.nan)  # whatever was there is overwritten
    for start, values in ((UX, u[:, 0]), (UY, u[:, 1]), (UZ, u[:, 2]), (PIXEL, pixel_y)):
        w[start : start + LANES] = values
    radius, depth = np.array([(e.lj_radius, e.lj_depth) for z in what.numbers for e in ELEMENTS if e.number == z]).T
    lj = lennard_jones_terms(radius, depth, tip.probe_radius, tip.probe_depth)
    terms, charge_z = [*lj, coulomb_terms(charges(what), np.array([tip.charges]))], np.array(tip.charge_offsets)
    points, terms = [pixel_y] * 3, np.column_stack(terms)
    here = kernel_scene(LENNARD_JONES, *points, what.positions, terms, charge_z, np.ones(3), np.float64)
    force_and_hessian(w, anchor[0], anchor[2], here)

    probes = anchor + u + np.column_stack([0 * pixel_y, pixel_y, 0 * pixel_y])
    expected = np.array([force(p, what, tip) for p in probes])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(w[FX:HXX].reshape(3, LANES).T, expected, atol=1e-12 * scale)
    h = 1e-5
    hessian = np.array(
        [[(force(p - d, what, tip) - force(p + d, what, tip)) / (2 * h) for d in h * np.eye(3)] for p in probes]
    )
    upper = hessian[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(w[HXX : HXX + 6 * LANES].reshape(6, LANES).T, upper, atol=1e-7 * np.abs(upper).max())


# Frequency shift


@given(st.integers(2, 40), st.floats(0.02, 0.3), st.floats(-5, 5), st.floats(-5, 5))
def test_a_constant_force_shifts_nothing_and_a_constant_gradient_by_half(steps, step, constant, gradient):
    """As in ppafm: forces span steps - 1 intervals, an oscillation `steps`, and half becomes (1 - 1 / steps) / 2."""
    w = frequency_shift_weights(steps, step)
    forces = constant - gradient * step * np.arange(steps)  # far to close
    np.testing.assert_allclose(w @ forces, -gradient * (1 - 1 / steps) / 2, atol=1e-9 / step)
    np.testing.assert_allclose(w, -w[::-1], atol=1e-12 / step)


def giessibl(force, middle: float, amplitude: float) -> float:
    """df k / f0 = -1/(pi A) int F(middle + A t) t / sqrt(1 - t^2) dt for an oscillation of +-A about `middle`."""
    t = np.cos(np.pi * (np.arange(400) + 0.5) / 400)  # Gauss-Chebyshev
    return -np.mean(force(middle + amplitude * t) * t) / amplitude


@pytest.mark.parametrize("span", [0.5, 1.0, 2.0])
def test_many_steps_converge_to_giessibls_integral(span):
    def morse(z):
        return np.exp(-2 * (z - 3.5)) - np.exp(-(z - 3.5))

    exact = giessibl(morse, 3.0 + span / 2, span / 2)
    errors = []
    for steps in (10, 100, 1000, 10000):
        z = 3.0 + span / steps * np.arange(steps - 1, -1, -1)
        errors.append(abs(frequency_shift_weights(steps, span / steps) @ morse(z) / exact - 1))
    assert errors[0] < 0.25
    assert all(b < a / 4 for a, b in pairwise(errors))
    assert errors[-1] < 1e-3


@given(st.integers(3, 40), st.floats(0.02, 0.3), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_exact_weights_are_exact_for_cubics(steps, step, coefficients):
    """int (a + b t + c t^2 + d t^3) t / sqrt(1 - t^2) dt = pi (b / 2 + 3 d / 8)."""
    _, b, _, d = coefficients
    forces = np.polynomial.Polynomial(coefficients)(np.linspace(1, -1, steps + 1))  # far to close
    expected = -(b / 2 + 3 * d / 8) / (steps * step / 2)
    np.testing.assert_allclose(giessibl_weights(steps, step) @ forces, expected, atol=1e-9 / step)


@pytest.mark.parametrize("span", [0.4, 1.0, 1.4])
@pytest.mark.parametrize("power", [1, 2, 7, 13])
def test_exact_weights_give_giessibls_integral_of_a_power_law(power, span):
    """F = z^-n down to z = 3 A; for n = 1 the integral is pi (1 - z / sqrt(z^2 - A^2)) / A. ppafm's sum is far off."""
    amplitude, middle = span / 2, 3 + span / 2
    # quad's algebraic weight is (1 - t^2)^-1/2
    exact, _ = quad(lambda t: (middle + amplitude * t) ** -power * t, -1, 1, weight="alg", wvar=(-0.5, -0.5))
    if power == 1:
        assert exact == pytest.approx(np.pi * (1 - middle / np.sqrt(middle**2 - amplitude**2)) / amplitude)
    exact *= -1 / (np.pi * amplitude)
    errors = []
    for steps in (10, 20):
        forces = np.linspace(3 + span, 3, steps + 1) ** -power
        errors.append(abs(giessibl_weights(steps, span / steps) @ forces / exact - 1))
    assert errors[0] < 2e-3
    assert errors[1] < errors[0] / 7 + 1e-9
    theirs = frequency_shift_weights(10, span / 10) @ np.linspace(3 + span * 0.9, 3, 10) ** -power
    assert abs(theirs / exact - 1) > 5 * errors[0]


def test_exact_weights_make_steps_and_spacing_a_matter_of_accuracy_alone():
    what = molecule()
    where = grid(what, distance=3.6)  # no probe moves suddenly
    where = replace(where, heights=where.heights[-1] + np.array([0.37, 0.11, 0.0]))
    images = [run(what, where, Tip(weights="exact", steps=steps)) for steps in (10, 17, 80)]
    close(images[0], images[2], 3e-3)
    close(images[1], images[2], 1e-3)
    assert np.abs(run(what, where, Tip()).data - images[2].data).max() > 0.03 * np.ptp(images[2].data)


# Closed forms


def carbon_force(r):
    """Vertical Lennard-Jones force, eV/A, on a CO tip's probe r above a carbon."""
    carbon, tip = BY_SYMBOL["C"], Tip()
    radius, depth = carbon.lj_radius + tip.probe_radius, np.sqrt(carbon.lj_depth * tip.probe_depth)
    return 12 * depth / r * ((radius / r) ** 12 - (radius / r) ** 6)


def on_axis(tip: Tip, heights) -> np.ndarray:
    """Stack of a single pixel over a single carbon."""
    carbon = Molecule(np.zeros((1, 3)), np.array([6]), NO_BONDS)
    return simulate(carbon, tip, Grid((-0.5, -0.5), (1.0, 1.0), (1, 1), heights), dtype=np.float64).data[0, 0]


@pytest.mark.parametrize("sideways", [0.0, 0.7])
def test_one_atom_under_a_stiff_tip_is_the_closed_form(sideways):
    """Without relaxation the force is that of the pair, and the probe 4 A below the tip's end."""
    tip = Tip(stiffness=1e7, radial_stiffness=1e7, offset=(sideways, 0.0))
    heights = 4 + np.array([3.4, 3.2, 3.0])
    z = heights[:, None] - 4 + 0.1 * np.arange(9, -1, -1)
    r = np.hypot(z, sideways)
    expected = (carbon_force(r) * z / r) @ frequency_shift_weights(10, 0.1) * NEWTON_PER_METRE * 30300 / 1800
    np.testing.assert_allclose(on_axis(tip, heights), expected, rtol=1e-5)


def test_without_lateral_stiffness_the_probe_hangs_towards_the_atom():
    """A rod that swings freely about the tip's end and is pulled by one atom lies on the line between the two."""
    tip = Tip(stiffness=1e-7, radial_stiffness=1e7, offset=(1.5, 0.0))
    heights = 4 + np.array([4.6, 4.4])  # attractive
    z = heights[:, None] + 0.1 * np.arange(9, -1, -1)
    distance = np.hypot(z, 1.5)
    expected = carbon_force(distance - 4) * z / distance
    expected = expected @ frequency_shift_weights(10, 0.1) * NEWTON_PER_METRE * 30300 / 1800
    np.testing.assert_allclose(on_axis(tip, heights), expected, rtol=1e-4)


# Invariances


def close(a, b, share=1e-6):
    """Equal but for a share of each slice's range."""
    assert (np.abs(a.data - b.data).max((0, 1)) <= share * np.ptp(b.data, axis=(0, 1))).all()


def rounding(data) -> float:
    """What the sums over heights may differ by: they are a matrix product, whose order BLAS chooses by its shape."""
    return 50 * np.finfo(data.dtype).eps * np.abs(data).max()


def run(what: Molecule, where: Grid, tip: Tip | None = None, dtype=np.float64, parallel=False):
    return simulate(what, tip or Tip(), where, dtype=dtype, parallel=parallel)


@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 1e-4), (np.float64, 1e-6)])
def test_molecule_and_grid_move_together(dtype, share):
    what, shift = molecule(), np.array([6010.4, -4777.7, 825.3])
    where = grid(what)
    there = replace(where, origin=(where.origin[0] + shift[0], where.origin[1] + shift[1]))
    there = replace(there, heights=where.heights + shift[2])
    close(run(moved(what, shift), there, dtype=dtype), run(what, where, dtype=dtype), share)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_molecule_has_a_mirrored_image(axis):
    what = molecule()
    mirror = np.where(np.arange(3) == axis, -1.0, 1.0)
    image = run(replace(what, positions=what.positions * mirror), grid(what))
    expected = run(what, grid(what))
    close(image, replace(expected, data=np.flip(expected.data, axis)))


def test_a_quarter_turn_turns_the_image():
    what = molecule()
    turned = replace(what, positions=what.positions @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]))  # x -> y -> -x
    image, expected = run(turned, grid(what, (20, 12))), run(what, grid(what, (12, 20)))
    close(image, replace(expected, data=np.rot90(expected.data), size=image.size))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_shift_by_whole_pixels_shifts_the_image_exactly(dtype):
    what = molecule()
    what = moved(what, -what.positions.mean(0))
    where = grid(what, (10, 40), 0.25)
    there = replace(where, origin=(where.origin[0] + 3 * 0.25, where.origin[1] - 5 * 0.25))
    image, expected = run(what, there, dtype=dtype).data[:-3, 5:], run(what, where, dtype=dtype).data[3:, :-5]
    np.testing.assert_allclose(image, expected, rtol=0, atol=rounding(expected))


def test_every_pixel_stands_alone():
    """15, 16, 17 and 33 pixels fill the lanes differently, and a lane that is not used must not be written."""
    what = molecule()
    whole = run(what, grid(what, (3, 48), 0.25))
    for n in (1, 15, 16, 17, 33):
        part = Grid((-3 * 0.125, -48 * 0.125), (3 * 0.25, n * 0.25), (3, n), grid(what).heights)
        np.testing.assert_allclose(run(what, part).data, whole.data[:, :n], rtol=0, atol=rounding(whole.data))


def test_slices_stand_alone_away_from_snaps():
    what = molecule()
    where = grid(what)
    alone = replace(where, heights=where.heights[-1:])
    image, expected = run(what, alone), run(what, where)
    close(image, replace(expected, data=expected.data[..., -1:], heights=alone.heights))


def test_float32_is_as_good_as_float64():
    what = molecule()
    single, double = run(what, grid(what), dtype=np.float32), run(what, grid(what))
    assert single.data.dtype == np.float32
    assert double.data.dtype == np.float64
    close(single, double, 3e-4)


def test_serial_parallel_and_threads_agree():
    what = molecule()
    where = grid(what, (12, 20), 0.25)
    expected = run(what, where, dtype=np.float32).data
    with ThreadPoolExecutor(2) as pool:
        for image in pool.map(lambda _: run(what, where, dtype=np.float32).data, range(8)):
            np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(run(what, where, dtype=np.float32, parallel=True).data, expected)


def test_no_charges_are_zero_charges():
    what = molecule()
    none, zero = replace(what, charges=None), replace(what, charges=np.zeros(len(what)))
    np.testing.assert_array_equal(run(none, grid(what)).data, run(zero, grid(what)).data)
    assert not np.allclose(run(none, grid(what)).data, run(what, grid(what)).data)


def test_lennard_jones_parameters_stand_in_for_the_elements():
    what = molecule()
    nitrogen = BY_SYMBOL["N"]
    image = simulate(
        replace(what, numbers=np.full(len(what), 6)),
        Tip(),
        grid(what),
        lj_radius=np.full(len(what), nitrogen.lj_radius),
        lj_depth=np.full(len(what), nitrogen.lj_depth),
        parallel=False,
    )
    own = simulate(replace(what, numbers=np.full(len(what), 7)), Tip(), grid(what), parallel=False)
    np.testing.assert_array_equal(image.data, own.data)


def test_the_arguments_are_left_as_they_are():
    what = molecule()
    where = grid(what)
    before = what.positions.copy(), charges(what).copy(), where.heights.copy()
    run(what, where)
    for a, b in zip(before, (what.positions, charges(what), where.heights), strict=True):
        np.testing.assert_array_equal(a, b)


# Grids and errors


def test_the_standard_distance_is_that_of_the_original_data_set():
    """Tip's end 8 A, topmost z + Lennard-Jones radius at 8 - 5.3 - R_O, last height 6.1 A."""
    original = 6.1 - 4 - (8 - 5.3 - 1.6612 - 1.908)
    assert original == pytest.approx(STANDARD_DISTANCE, abs=1e-3)


@pytest.mark.parametrize("symbol", [e.symbol for e in ELEMENTS])
def test_what_reaches_highest_by_its_radius_sets_the_height(symbol):
    top = BY_SYMBOL[symbol]
    what = Molecule(np.array([[0.0, 0, 0], [3.0, 0, -2.0]]), np.array([top.number, 6]), NO_BONDS)
    tip = Tip(bond_length=3.0)
    heights = standard_heights(what, tip, 3.1, 5, 0.2)
    contact = heights[-1] - 3.0 - (top.lj_radius + tip.probe_radius)
    carbon = 3.1 - (BY_SYMBOL["C"].lj_radius + tip.probe_radius)
    assert contact == pytest.approx(carbon)
    np.testing.assert_allclose(np.diff(heights), -0.2)


@given(st.integers(0, 1000), st.floats(0, 4), st.floats(0.1, 0.5))
def test_the_grid_around_a_molecule_is_centred_and_wide_enough(seed, margin, pixel):
    what = moved(molecule(seed), (4.2, -30.1, 1))
    around = grid_around(what, margin=margin, pixel=pixel)
    np.testing.assert_allclose(np.array(around.size) / around.shape, pixel)
    low, high = what.positions[:, :2].min(0), what.positions[:, :2].max(0)
    left, right = low - around.origin, np.array(around.origin) + around.size - high
    np.testing.assert_allclose(left, right, atol=1e-9)
    assert (left >= margin - 1e-9).all()
    assert (left < margin + pixel).all()


def test_without_a_grid_the_molecule_is_covered():
    what = molecule()
    scan, around = simulate(what, dtype=np.float32, parallel=False), grid_around(what)
    assert scan.data.shape == (*around.shape, 10)
    assert scan.size == around.size
    np.testing.assert_array_equal(scan.heights, around.heights)
    assert scan.source == "simulated"
    assert simulate(replace(what, name="made up"), parallel=False).source == "made up"


def test_a_molecule_without_atoms_is_refused():
    nothing = Molecule(np.zeros((0, 3)), np.zeros(0, np.int64), NO_BONDS)
    with pytest.raises(MoleculeError, match=r"without atoms cannot be simulated\.$"):
        simulate(nothing, Tip(), grid(molecule()), parallel=False)


def test_an_oscillation_that_is_too_small_to_compute_is_refused():
    """Differences of its forces are those of rounding."""
    with pytest.raises(ConfigError, match="amplitude"):
        Tip(amplitude=1e-5)


def test_a_tip_that_starts_inside_the_molecule_is_refused():
    what = molecule()
    inside = replace(grid(what), heights=np.array([Tip().bond_length - 1.0]))
    with pytest.raises(ScanError, match="would go into the molecule"):
        simulate(what, Tip(), inside, parallel=False)


@pytest.mark.parametrize("heights", [[7.0, 7.1], [7.0, 7.0], [7.0, np.nan], [np.nan], []])
def test_heights_must_descend(heights):
    with pytest.raises(ConfigError, match=r"heights|height"):
        replace(grid(molecule()), heights=np.array(heights))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": np.array([[0.0, 0, 0], [0.3, 0, 0.3], [3, 0, 0]])}, "Atoms 0 and 1 .* 0.42 A apart"),
        ({"charges": np.array([0.0, np.nan, 0.0])}, "finite"),
        ({"lj_radius": np.ones(2)}, "3 atoms need 3"),
        ({"lj_depth": -np.ones(3)}, "negative"),
    ],
)
def test_atoms_that_make_no_sense_are_refused(change, words):
    atoms = {"positions": 1.5 * np.eye(3), "charges": np.zeros(3)}
    own = {k: change.get(k, v) for k, v in atoms.items()}

    def made() -> None:
        what = Molecule(numbers=np.array([6, 6, 8]), bonds=NO_BONDS, **own)
        simulate(what, Tip(), parallel=False, **{k: v for k, v in change.items() if k.startswith("lj")})

    with pytest.raises(MoleculeError, match=words):
        made()


def test_unknown_weights_are_refused():
    with pytest.raises(ConfigError, match="'ppafm' or 'exact'"):
        Tip.__post_init__(SimpleNamespace(**{**vars(Tip()), "weights": "simpson"}))
