from itertools import product
from math import pi, sqrt

import ase
import numpy as np
import pytest
import torch
from dscribe.descriptors import SOAP
from dscribe.kernels import AverageKernel, REMatchKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from afmol import soap
from afmol.errors import AfmolError, ConfigError, MoleculeError
from afmol.soap import SETTING_A, SETTING_B, SoapConfig, dscribe_vector, expansion, kernel, power_spectrum
from afmol.soap.atoms import pack
from afmol.soap.basis import radial_basis
from afmol.structures import Molecule

SYMBOLS = np.array(["H", "He", "Li", "Be", "B", "C"])
BACKENDS = ("torch", "numba")
SMALL = SoapConfig(n_species=2, max_l=2, n_radial=2, cutoff=3.0, sigma=0.7)
LIMIT = {np.float64: 1e-10, np.float32: 1e-5}
# Where the radial functions are nearly dependent rounding is amplified, by the root of the condition number in what
# follows the overlap's root, by the condition itself in that root. We take the root as DScribe does, so that only the
# former tells us apart: 1e-10 up to a condition of 5e11 (12 functions need a cut-off of about 5 A). Against exact
# arithmetic DScribe, and we, are off by 1e-16 times the condition: 1e-10 at 1e6, 1e-4 at 1e12.
WORST_CONDITION = 5e11


def dscribe(config: SoapConfig) -> SOAP:
    return SOAP(
        species=list(SYMBOLS[: config.n_species]),
        r_cut=config.cutoff,
        n_max=config.n_radial,
        l_max=config.max_l,
        sigma=config.sigma,
        periodic=False,
    )


def atoms(seed: int, n: int, n_species: int, extent: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions and labels."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-extent, extent, (n, 3)), rng.integers(0, n_species, n)


def probabilities(seed: int, n: int, n_species: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(n_species), n)


def reference(positions: np.ndarray, labels: np.ndarray, config: SoapConfig) -> np.ndarray:
    return dscribe(config).create(ase.Atoms(SYMBOLS[labels], positions))


def error(ours, theirs) -> float:
    """Relative error of the vectors as a whole."""
    return float(np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(np.asarray(theirs)))


# Against DScribe


def condition(config: SoapConfig) -> float:
    try:
        return radial_basis(config).condition
    except ConfigError:
        return float("inf")


def random_config(seed: int) -> SoapConfig:
    """A configuration of everything, the first that is conditioned well enough."""
    rng = np.random.default_rng(seed)
    while True:
        config = SoapConfig(
            n_species=int(rng.integers(1, 7)),
            max_l=int(rng.integers(0, 10)),
            n_radial=int(rng.integers(1, 13)),
            cutoff=float(rng.uniform(1.05, 8)),
            sigma=float(rng.uniform(0.15, 2)),
        )
        if condition(config) < WORST_CONDITION:
            return config


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", [SETTING_A, SETTING_B], ids="AB")
def test_the_reports_settings_equal_dscribe(config, backend):
    for seed, n in enumerate((1, 2, 17, 40)):
        positions, labels = atoms(seed, n, config.n_species)
        theirs = reference(positions, labels, config)
        for dtype, limit in LIMIT.items():
            ours = dscribe_vector(positions.astype(dtype), labels, config=config, backend=backend)
            assert ours.dtype == dtype
            assert error(ours, theirs) <= limit


@pytest.mark.parametrize("seed", range(20))
def test_random_configurations_equal_dscribe(seed):
    config = random_config(seed)
    positions, labels = atoms(seed, 20, config.n_species, extent=5)
    theirs = reference(positions, labels, config)
    for (dtype, limit), backend in product(LIMIT.items(), BACKENDS):
        if condition(config) * np.finfo(dtype).eps >= 1:
            with pytest.raises(ConfigError, match="told apart in float32"):
                dscribe_vector(positions.astype(dtype), labels, config=config, backend=backend)
        else:
            ours = dscribe_vector(positions.astype(dtype), labels, config=config, backend=backend)
            assert error(ours, theirs) <= limit


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stored_vectors_are_reproduced(shared, backend):
    cases = (("A", SETTING_A, [1, 6, 7, 8, 9]), ("B", SETTING_B, [1, 6, 8]))
    with np.load(shared / "reference" / "soap" / "dscribe_reference.npz") as stored:
        for letter, config, numbers in cases:
            names = [k.removesuffix("_soap") for k in stored if k.startswith(letter) and k.endswith("_soap")]
            assert names
            for name in names:
                labels, positions = np.searchsorted(numbers, stored[f"{name}_Z"]), stored[f"{name}_xyz"]
                for dtype, limit in LIMIT.items():
                    ours = dscribe_vector(positions.astype(dtype), labels, config=config, backend=backend)
                    assert error(ours, stored[f"{name}_soap"]) <= limit


def test_the_padded_layout_holds_dscribes_blocks():
    positions, labels = atoms(0, 12, 5)
    padded = power_spectrum(positions, labels)
    assert padded.shape == (12, 15, 3, 3, 3)
    engine = dscribe(SETTING_A)
    theirs = engine.create(ase.Atoms(SYMBOLS[labels], positions))
    pairs = [(z, w) for z in range(5) for w in range(z, 5)]
    for block, (z, w) in zip(padded.transpose(1, 0, 4, 2, 3), pairs, strict=True):  # atom, l, n, n'
        flat = theirs[:, engine.get_location((SYMBOLS[z], SYMBOLS[w]))]
        if z == w:
            n, k = np.triu_indices(3)
            np.testing.assert_array_equal(block, block.swapaxes(2, 3))
            block = block[:, :, n, k]
        np.testing.assert_allclose(block.reshape(flat.shape), flat, rtol=1e-9, atol=1e-9)


def test_arrays_of_any_layout_are_described():
    """Views with negative strides, and the byte order of another machine."""
    rng = np.random.default_rng(0)
    p, s = rng.uniform(-2, 2, (5, 3)), np.array([0, 1, 1, 2, 0])
    vectors = dscribe_vector(p, s)
    np.testing.assert_allclose(dscribe_vector(p[::-1], s[::-1])[::-1], vectors, atol=1e-12)
    np.testing.assert_array_equal(dscribe_vector(p.astype(">f8"), s.astype(">i8")), vectors)


def test_lengths_that_no_molecule_has_are_refused():
    for change in ({"sigma": 1e-200}, {"sigma": 1e10}, {"cutoff": 1e200}):
        with pytest.raises(ConfigError, match=r"SOAP"):
            SoapConfig(**change)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_count_up_to_the_padded_cutoff(backend):
    for beyond in (-1e-6, 1e-6):
        positions = np.array([[0, 0, 0], [SMALL.reach + beyond, 0, 0]])
        ours = dscribe_vector(positions, np.arange(2), None, SMALL, backend=backend)
        assert error(ours, reference(positions, np.arange(2), SMALL)) <= 1e-10
        own = dscribe_vector(positions[:1], np.zeros(1, int), None, SMALL, backend=backend)
        assert np.array_equal(ours[0], own[0]) == (beyond > 0)


def test_derivatives_equal_dscribes():
    """With attach=True, centres move with their atoms."""
    positions, labels = atoms(3, 9, 5, extent=2)
    theirs = dscribe(SETTING_A).derivatives(
        ase.Atoms(SYMBOLS[labels], positions), method="analytical", attach=True, return_descriptor=False
    )
    for backend, weights in product(BACKENDS, np.random.default_rng(0).normal(size=(3, 9, 360))):
        x = torch.from_numpy(positions).requires_grad_()
        ours = torch.autograd.grad(dscribe_vector(x, labels, backend=backend), x, torch.from_numpy(weights))[0]
        assert error(ours, np.einsum("cf,caxf->ax", weights, theirs)) <= 1e-10


# Properties


CONFIGS = st.builds(
    SoapConfig,
    n_species=st.integers(1, 3),
    max_l=st.integers(0, 4),
    n_radial=st.integers(1, 3),
    cutoff=st.floats(1.5, 4),
    sigma=st.floats(0.3, 1.5),
)
SEEDS = st.integers(0, 2**32 - 1)


@given(config=CONFIGS, seed=SEEDS, n=st.integers(1, 20), backend=st.sampled_from(BACKENDS))
@settings(max_examples=30)
def test_turned_mirrored_shifted_and_shuffled_atoms_have_the_same_spectra(config, seed, n, backend):
    positions, labels = atoms(seed, n, config.n_species)
    rng = np.random.default_rng(seed)
    before = dscribe_vector(positions, labels, None, config, backend=backend)
    turn = Rotation.random(rng=rng).as_matrix() * [1, 1, rng.choice([-1, 1])]
    order = rng.permutation(n)
    after = dscribe_vector(
        (positions @ turn + rng.normal(0, 5, 3))[order], labels[order], None, config, backend=backend
    )
    np.testing.assert_allclose(after, before[order], rtol=0, atol=1e-9 * np.abs(before).max())


@given(config=CONFIGS, seed=SEEDS, n=st.integers(1, 60), backend=st.sampled_from(BACKENDS))
@settings(max_examples=30)
def test_a_batch_is_each_of_its_molecules_in_any_order(config, seed, n, backend):
    """Atoms of a molecule need not even be neighbours, nor molecules be counted from 0."""
    positions, _ = atoms(seed, n, 1)
    labels = probabilities(seed, n, config.n_species)
    molecule = np.random.default_rng(seed).integers(-2, 3, n)
    together = power_spectrum(positions, labels, molecule, config, backend=backend)
    for m in np.unique(molecule):
        alone = power_spectrum(positions[molecule == m], labels[molecule == m], None, config, backend=backend)
        np.testing.assert_allclose(together[molecule == m], alone, rtol=0, atol=1e-12 * np.abs(alone).max())


@given(config=CONFIGS, seed=SEEDS, backend=st.sampled_from(BACKENDS))
@settings(max_examples=20)
def test_a_far_atom_changes_nothing(config, seed, backend):
    positions, labels = atoms(seed, 8, config.n_species)
    far = np.append(positions, [[3 + config.reach + 1e-3, 0, 0]], axis=0)
    with_it = dscribe_vector(far, np.append(labels, 0), None, config, backend=backend)[:-1]
    without = dscribe_vector(positions, labels, None, config, backend=backend)
    # one term more, a zero, may change the order of a sum; a neighbour at this distance would add a thousandth
    np.testing.assert_allclose(with_it, without, rtol=0, atol=1e-14 * np.abs(without).max())


@given(config=CONFIGS, seed=SEEDS, backend=st.sampled_from(BACKENDS))
@settings(max_examples=20)
def test_an_atom_alone_has_a_constant_spectrum(config, seed, backend):
    """The overlap of a Gaussian with the radial functions, l = 0 of its own species and nothing else."""
    positions, labels = atoms(seed, 1, config.n_species)
    p = power_spectrum(positions, labels, None, config, backend=backend)
    np.testing.assert_array_equal(p, power_spectrum(0 * positions, labels, None, config, backend=backend))
    r = np.linspace(0, 12, 12_001)
    exponent = -np.log(1e-3) / np.linspace(1, config.cutoff, config.n_radial) ** 2
    primitive = np.exp(-exponent[:, None] * r**2)
    overlap = np.trapezoid(primitive[:, None] * primitive * r**2, r)
    values, vectors = np.linalg.eigh(overlap)
    density = np.trapezoid(primitive * np.exp(-(r**2) / (2 * config.sigma**2)) * r**2, r)
    c = sqrt(4 * pi) * (vectors / np.sqrt(values)) @ vectors.T @ density  # Y_00 = 1 / sqrt(4 pi), over all angles
    own = [(z, w) for z in range(config.n_species) for w in range(z, config.n_species)].index((labels[0], labels[0]))
    np.testing.assert_allclose(p[0, own, :, :, 0], pi * sqrt(8) * np.outer(c, c), rtol=1e-4, atol=1e-6 * c.max() ** 2)
    p[0, own, :, :, 0] = 0
    assert not p.any()


# Gradients


@pytest.mark.parametrize(("backend", "expected"), [("torch", False), ("torch", True), ("numba", False)])
def test_gradients_are_right_once_and_twice(backend, expected):
    positions = torch.from_numpy(atoms(1, 5, 2, extent=1.5)[0])
    positions[1] = positions[0]  # atoms on top of each other are nothing special
    species, molecule = torch.from_numpy(probabilities(1, 5, 2)), torch.tensor([0, 0, 1, 0, 2])
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 30, 4)))

    def spectra(positions, species):
        p = dscribe_vector(positions, species, molecule, SMALL, expected=expected, backend=backend)
        return torch.einsum("nk,nkw->nw", p, weights)  # fewer outputs: faster, with all derivatives in them

    inputs = positions.requires_grad_(), species.requires_grad_()
    assert torch.autograd.gradcheck(spectra, inputs)
    assert torch.autograd.gradgradcheck(spectra, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coincident_and_single_atoms_have_finite_derivatives(backend):
    positions = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    species, molecule = torch.full((4, 5), 0.2, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 0, 1])
    config = SoapConfig(max_l=9)
    p = power_spectrum(positions, species, molecule, config, backend=backend)
    first = torch.autograd.grad(p.square().sum(), (positions, species), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (positions, species))
    assert all(t.isfinite().all() for t in (p, *first, *second))
    assert (first[0] == 0).all()  # of even functions, at 0
    assert (first[1] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "config",
    [SETTING_A, SoapConfig(n_species=2, max_l=9, n_radial=2, sigma=0.4), SoapConfig(n_species=3, max_l=0, n_radial=1)],
)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_kernel_equals_the_reference(dtype, config, soft, padded):
    n = 50
    positions = torch.from_numpy(atoms(0, n, 1)[0]).to(dtype).requires_grad_()
    given = probabilities(0, n, config.n_species) if soft else atoms(0, n, config.n_species)[1]
    species = torch.from_numpy(given).to(dtype).requires_grad_() if soft else torch.from_numpy(given)
    molecule = torch.from_numpy(np.random.default_rng(0).integers(0, 4, n))
    inputs = (positions, species) if soft else (positions,)
    results = []
    for backend in BACKENDS:
        p = (power_spectrum if padded else dscribe_vector)(positions, species, molecule, config, backend=backend)
        weights = torch.rand(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        results.append((p.detach(), *torch.autograd.grad((weights * p).sum(), inputs)))
    for ours, reference in zip(*results, strict=True):
        assert error(ours, reference) <= (1e-13 if dtype == torch.float64 else 2e-6)


def test_the_kernel_gives_the_same_on_several_threads(monkeypatch):
    monkeypatch.setattr(kernel, "FEWEST_PAIRS", 100)
    positions = torch.from_numpy(atoms(0, 200, 5)[0]).requires_grad_()
    molecule = torch.from_numpy(np.sort(np.random.default_rng(0).integers(0, 9, 200)))
    labels, results = torch.from_numpy(atoms(0, 200, 5)[1]), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            p = dscribe_vector(positions, labels, molecule)
            results.append((p.detach(), torch.autograd.grad(p.square().sum(), positions)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert error(results[1][1], results[0][1]) <= 1e-14


def test_inference_first_and_gradients_later():
    """Cached constants that were made in inference mode could not take part in a gradient."""
    config = SoapConfig(n_species=2, max_l=1, n_radial=2, cutoff=3.21)
    positions, labels = (torch.from_numpy(a) for a in atoms(0, 5, 2))
    with torch.inference_mode():
        first = dscribe_vector(positions, labels, config=config, backend="torch")
    later = dscribe_vector(positions.requires_grad_(), labels, config=config, backend="torch")
    assert torch.equal(first, later)
    later.sum().backward()


def test_chunks_change_nothing():
    positions = torch.from_numpy(atoms(0, 40, 2)[0]).requires_grad_()
    species = torch.from_numpy(probabilities(0, 40, 2)).requires_grad_()
    packed = pack(positions, species, np.sort(np.random.default_rng(0).integers(0, 5, 40)), SMALL)
    whole, parts = (expansion.spectrum(packed, SMALL, False, True, chunk) for chunk in (2**25, 4_000))
    assert len(list(expansion._chunks(packed, SMALL, 2**25))) == 1
    assert len(list(expansion._chunks(packed, SMALL, 4_000))) > 5
    assert error(parts.detach(), whole.detach()) <= 1e-14
    gradients = [torch.autograd.grad(p.square().sum(), (positions, species)) for p in (whole, parts)]
    for a, b in zip(*gradients, strict=True):
        assert error(b, a) <= 1e-13


# Class probabilities


@pytest.mark.parametrize(("n", "n_species"), [(6, 2), (4, 3)])
def test_the_expected_spectrum_is_the_mean_over_all_labels(n, n_species):
    config = SoapConfig(n_species=n_species, max_l=3, n_radial=2, sigma=0.6)
    positions, given = atoms(0, n, 1, extent=1.5)[0], probabilities(0, n, n_species)
    mean = 0
    for labels in product(range(n_species), repeat=n):
        weight = np.prod([p[label] for p, label in zip(given, labels, strict=True)])
        mean = mean + weight * reference(positions, np.array(labels), config)
    ours = dscribe_vector(positions, given, None, config, expected=True)
    assert error(ours, mean) <= 1e-10
    assert error(dscribe_vector(positions, given, None, config), mean) > 1e-3  # the plug-in value is another


@pytest.mark.parametrize("expected", [False, True])
def test_certain_probabilities_are_labels(expected):
    positions, labels = atoms(0, 15, 5)
    ours = dscribe_vector(positions, np.eye(5)[labels], expected=expected)
    assert error(ours, reference(positions, labels, SETTING_A)) <= 1e-10


# What a user has and what he gets


def test_molecules_and_ase_atoms_are_accepted():
    rng = np.random.default_rng(0)
    numbers = np.array([1, 6, 14, 7, 16, 35])
    positions = rng.normal(0, 1.5, (6, 3))
    classes = np.array([0, 1, 1, 2, 3, 4])
    by_hand = dscribe_vector(positions, classes)
    crystal = ase.Atoms(numbers, positions, cell=[9, 9, 9], pbc=True)
    no_bonds = np.zeros((0, 2), int)
    certain = Molecule(positions, numbers, no_bonds)
    np.testing.assert_array_equal(dscribe_vector(crystal), by_hand)
    np.testing.assert_array_equal(dscribe_vector(certain), by_hand)
    np.testing.assert_array_equal(dscribe_vector([certain, crystal]), np.concatenate([by_hand, by_hand]))
    guess = probabilities(0, 6, 5)
    predicted = Molecule(positions, numbers, no_bonds, class_probabilities=guess)
    np.testing.assert_array_equal(dscribe_vector(predicted), dscribe_vector(positions, guess))
    both = np.concatenate([power_spectrum(positions, guess), power_spectrum(positions, classes)])
    np.testing.assert_array_equal(power_spectrum((predicted, certain)), both)


def test_arrays_give_arrays_and_tensors_tensors_of_the_same_precision():
    positions, labels = atoms(0, 3, 5)
    for dtype in (np.float32, np.float64):
        ours = power_spectrum(positions.astype(dtype), labels)
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == dtype
        tensor = power_spectrum(torch.from_numpy(positions.astype(dtype)), torch.from_numpy(labels).int())
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), ours)


def test_probabilities_that_are_to_be_learned_may_come_with_arrays():
    positions, _ = atoms(0, 3, 5)
    species = torch.full((3, 5), 0.2, dtype=torch.float64, requires_grad=True)
    p = dscribe_vector(positions, species)
    assert (torch.autograd.grad(p.sum(), species)[0] > 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_takes_no_digits_away(backend):
    positions, labels = (torch.from_numpy(a) for a in atoms(0, 10, 5))
    plain = dscribe_vector(positions.float(), labels, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dscribe_vector(positions.float(), labels, backend=backend), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_atoms_have_no_spectra(backend):
    positions = torch.zeros(0, 3, requires_grad=True)
    p = power_spectrum(positions, torch.zeros(0, dtype=torch.long), backend=backend)
    assert p.shape == (0, 15, 3, 3, 3)
    assert torch.autograd.grad(p.sum(), positions)[0].shape == (0, 3)


def test_float32_keeps_its_digits_where_radial_functions_are_nearly_dependent():
    config = SoapConfig(n_radial=6)
    positions, labels = atoms(0, 20, 5)
    assert condition(config) > 1e5
    ours = dscribe_vector(positions.astype(np.float32), labels, config=config)
    assert ours.dtype == np.float32
    assert error(ours, reference(positions, labels, config)) <= 1e-6


X, Z = np.zeros((3, 3)), np.zeros(3, int)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "words"),
    [
        (
            (X, np.array([0, 1, 5])),
            {},
            MoleculeError,
            "Species 5 is out of range: with n_species = 5 labels are 0 to 4",
        ),
        ((X, np.array([0, -1, 0])), {}, MoleculeError, "Species -1 is out of range"),
        ((X * np.nan, Z), {}, MoleculeError, "must be finite"),
        ((X, Z[:2]), {}, MoleculeError, "3 atoms need 3 labels"),
        ((X, np.ones((3, 4))), {}, MoleculeError, r"have the shape \(3, 5\), not \(3, 4\)"),
        ((X, np.ones((2, 5))), {}, MoleculeError, r"have the shape \(3, 5\), not \(2, 5\)"),
        ((X, np.full((3, 5), np.inf)), {}, MoleculeError, "Probabilities of species must be finite"),
        ((X, Z, np.zeros(2, int)), {}, MoleculeError, "The molecule of each of 3 atoms"),
        ((X, Z, np.zeros(3)), {}, MoleculeError, "must be an integer"),
        ((X[:, :2], Z), {}, MoleculeError, r"shape \(atoms, 3\)"),
        ((X.astype(np.float16), Z), {}, MoleculeError, "float32 or float64"),
        ((X,), {}, MoleculeError, "species of each atom is missing"),
        (("benzene.xyz",), {}, MoleculeError, "a Molecule, ase.Atoms, or a list"),
        (([],), {}, MoleculeError, "a Molecule, ase.Atoms, or a list"),
        ((ase.Atoms("CH"), Z), {}, MoleculeError, "not with molecules"),
        ((ase.Atoms("CU"),), {}, MoleculeError, "Atomic number 92"),
        ((ase.Atoms("CH"), None, None, SETTING_B), {}, ConfigError, "use n_species = 5"),
        ((X, Z), {"backend": "cuda"}, AfmolError, "'auto', 'torch' or 'numba'"),
        ((X, Z), {"backend": "numba", "expected": True}, ConfigError, "use backend 'torch'"),
        ((X, Z, None, SoapConfig(n_radial=12, cutoff=1.5)), {}, ConfigError, "cannot be told apart in float64"),
        ((X.astype(np.float32), Z, None, SoapConfig(n_radial=10)), {}, ConfigError, "cannot be told apart in float32"),
    ],
)
def test_mistakes_are_explained(arguments, options, kind, words):
    for function in (power_spectrum, dscribe_vector):
        with pytest.raises(kind, match=words):
            function(*arguments, **options)


@pytest.mark.parametrize(
    "field",
    [
        *({"n_species": 0}, {"max_l": -1}, {"max_l": 10}, {"n_radial": 0}, {"n_radial": 13}),
        *({"cutoff": 1.0}, {"cutoff": float("nan")}, {"sigma": 0.0}, {"sigma": float("inf")}),
    ],
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ConfigError, match=str(next(iter(field.values())))):
        SoapConfig(**field)


# Similarity


def molecules(sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and molecule numbers, shuffled."""
    positions, labels = atoms(seed, sum(sizes), 5)
    molecule = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return dscribe_vector(positions, labels, molecule), molecule


def test_average_and_rematch_equal_dscribe():
    vectors, molecule = molecules((7, 1, 12))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    features = [unit[molecule == m] for m in range(3)]
    np.testing.assert_allclose(soap.average(vectors, molecule), AverageKernel(metric="linear").create(features), 1e-12)
    for alpha in (0.1, 0.5, 3.0):
        theirs = REMatchKernel(alpha=alpha, threshold=1e-18).create(features)
        np.testing.assert_allclose(soap.rematch(vectors, molecule, alpha), theirs, 1e-6)


def test_similarities_are_what_their_names_say():
    vectors, molecule = molecules((5, 5))
    k = soap.normalised(vectors, vectors)
    np.testing.assert_allclose(np.diag(k), 1)
    assert ((k >= 0) & (k <= 1 + 1e-12)).all()
    norm = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(soap.linear(vectors, vectors[:3]), (k * norm[:, None] * norm)[:, :3])
    # the same molecule turned is the same; the entropy's weight leads from the best match to the average
    same = np.concatenate([vectors[molecule == 0], vectors[molecule == 0][::-1]])
    halves = np.repeat([0, 1], 5)
    np.testing.assert_allclose(soap.average(same, halves), 1)
    np.testing.assert_allclose(soap.rematch(same, halves), 1)
    np.testing.assert_allclose(soap.rematch(vectors, molecule, 1e4), soap.average(vectors, molecule), 1e-4)
    np.testing.assert_allclose(soap.rematch(same.astype(np.float32), halves, 0.01), 1, 1e-4)


def test_similarities_are_differentiable():
    vectors = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (5, 6))).requires_grad_()
    molecule = torch.tensor([1, 0, 0, 1, 1])
    for kind in (soap.average, soap.rematch):
        assert torch.autograd.gradcheck(lambda v, kind=kind: kind(v, molecule), (vectors,))


def rotations(n: int) -> tuple[Rotation, np.ndarray]:
    """Of all directions and angles, with weights whose sum is 1: exact for polynomials of degree n - 1."""
    angles, (x, w) = np.arange(n) * 2 * pi / n, np.polynomial.legendre.leggauss(n)
    euler = np.stack(np.meshgrid(angles, np.arccos(x), angles, indexing="ij"), axis=-1)
    weights = np.broadcast_to(w[None, :, None] / (2 * n * n), euler.shape[:3])
    return Rotation.from_euler("zyz", euler.reshape(-1, 3)), weights.ravel()


def test_the_kernel_is_the_squared_overlap_of_densities_over_all_rotations():
    """The report's equations 2 and 5, the integral by quadrature of Gaussians that no basis holds; a basis large enough
    for atoms close by. Pairs of two species count twice: Z Z' and Z' Z."""
    config, rng = SoapConfig(n_species=2, max_l=6, n_radial=8, cutoff=5.0), np.random.default_rng(0)
    species, eta = np.array([0, 0, 1, 1]), 1 / (2 * SoapConfig().sigma ** 2)
    a, b = (np.vstack([np.zeros(3), 0.5 * rng.normal(size=(3, 3))]) for _ in range(2))
    turned, weights = rotations(16)
    overlap = np.zeros(len(weights))
    for z in (0, 1):
        other = np.stack([turned.apply(x) for x in b[species == z]], axis=1)
        squares = np.square(a[None, species == z, None] - other[:, None]).sum(-1)
        overlap += (pi / (2 * eta)) ** 1.5 * np.exp(-eta * squares / 2).sum((1, 2))
    integral = 8 * pi**2 * (weights * overlap**2).sum()
    p, q = (power_spectrum(x, species, config=config)[0].reshape(3, -1) for x in (a, b))
    assert (np.array([1, 2, 1]) * (p * q).sum(1)).sum() == pytest.approx(integral, rel=1e-7)


def test_mistaken_similarities_are_explained():
    vectors, molecule = molecules((3, 2))
    with pytest.raises(MoleculeError, match="5 vectors need 5 molecule numbers"):
        soap.average(vectors, molecule[:4])
    with pytest.raises(ConfigError, match="positive alpha"):
        soap.rematch(vectors, molecule, 0.0)
