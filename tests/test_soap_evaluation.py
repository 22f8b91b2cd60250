"""Errors of SOAP vectors: counts by hand, graphs of molecules, the evaluation of a predictor."""

import json

import numpy as np
import pytest
import torch

from afmol.checkpoint import save_model
from afmol.cli import main
from afmol.data.molecules import load_molecules
from afmol.elements import CATEGORIES, element_index
from afmol.errors import ConfigError
from afmol.metrics import SpectrumErrors, count_spectra, spectrum_summary
from afmol.model.soap_predictor import GrowingMolecules, PointsConfig, RandomPoints, SoapPredictor, SoapPredictorConfig
from afmol.plots.spectra import epoch_picture
from afmol.soap import SETTING_A, SoapConfig, power_spectrum
from afmol.soap_evaluation import errors_of
from afmol.structures import Molecule
from strategies import few_molecules, refused

SMALL = SoapConfig(n_species=3, max_l=1, n_radial=2)
OURS = SoapPredictorConfig(network="invariant", soap=SETTING_A, widths=(4, 4))


def test_errors_by_hand():
    """Each degree, case and size of a graph of three classes, against loops over what they mean."""
    rng = np.random.default_rng(0)
    classes = np.array([[0, 1, 2, 1], [-1, -1, 0, 2]])
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    counts = np.zeros((2, 4, 6), bool)
    counts[0], counts[1, 2:, [0, 2, 5]] = True, True
    found, truth = rng.random((2, 2, 4, 6, 4, 2))
    summary = spectrum_summary(count_spectra(found, truth, classes, counts))
    error, by_degree = np.square(found - truth), {}
    cases: dict[str, list[np.ndarray]] = {}
    for g, n, p in zip(*np.nonzero(counts), strict=True):
        a, b = pairs[p]
        centre = classes[g, n]
        inside = "centre of one" if centre in (a, b) else "another centre"
        name = f"two classes, {inside}" if a != b else "one class" if centre == a else "one class, another centre"
        cases.setdefault(name, []).append(error[g, n, p])
        for degree in range(2):
            by_degree.setdefault(degree, []).append(error[g, n, p, :, degree])
    assert summary["entries"] == counts.sum() * 8
    assert summary["mse"] == pytest.approx(error[counts].mean())
    assert summary["relative"] == pytest.approx(np.sqrt(error[counts].sum() / np.square(truth[counts]).sum()))
    assert summary["mse_by_degree"] == pytest.approx([np.mean(by_degree[degree]) for degree in range(2)])
    assert summary["mse_by_case"] == pytest.approx({name: np.mean(each) for name, each in cases.items()})
    assert len(cases) == 4
    assert summary["sizes"] == [2, 4]
    assert summary["mse_by_size"] == pytest.approx([error[g][counts[g]].mean() for g in (1, 0)])


def test_counts_add_up_and_nothing_is_none():
    rng = np.random.default_rng(1)
    batch = (*rng.random((2, 3, 2, 6, 4, 2)), np.tile([0, 2], (3, 1)), np.ones((3, 2, 6), bool))
    halves = sum((count_spectra(*(x[part] for x in batch)) for part in (slice(1), slice(1, 3))), SpectrumErrors())
    some, both = spectrum_summary(halves), spectrum_summary(count_spectra(*batch))
    assert some.keys() == both.keys()
    assert all(some[name] == pytest.approx(both[name]) for name in both)
    nothing = spectrum_summary(SpectrumErrors())
    assert (nothing["mse"], nothing["relative"], nothing["sizes"], nothing["mse_by_degree"]) == (None, None, [], [])


@pytest.fixture
def molecule_set(tmp_path):
    return few_molecules(tmp_path / "set.npz")


def growing(molecule_set, **change) -> GrowingMolecules:
    points = PointsConfig(**({"nodes": 60, "forcing": (1.0, 1.0)} | change))
    return GrowingMolecules(load_molecules(molecule_set), points, SETTING_A, 6, 10)


def test_partial_graphs_of_molecules_have_their_soap(molecule_set):
    """Some of a molecule's atoms, filled up in front; SOAP of them, and of all but the last."""
    molecules, batch = load_molecules(molecule_set), growing(molecule_set).batch(3)
    sizes, counts = (batch.classes >= 0).sum(1), batch.counts(5)
    assert len(set(sizes.tolist())) > 2
    for g, n in enumerate(sizes.tolist()):
        mine = batch.classes[g] >= 0
        assert mine.tolist() == [False] * (len(mine) - n) + [True] * n
        positions, classes = batch.positions[g, mine].double(), batch.classes[g, mine]
        assert any(is_part(positions.numpy(), classes.numpy(), molecule) for molecule in molecules)
        now = torch.as_tensor(power_spectrum(positions, classes)).flatten(2).float()
        assert torch.allclose(batch.labels[g, mine], now, rtol=1e-4, atol=1e-3)
        assert (now.abs().sum((0, 2)) > 0).equal(counts[g, mine].all(0))
        before = torch.as_tensor(power_spectrum(positions[:-1], classes[:-1])).flatten(2).float()
        known = batch.known[g, len(mine) - n :]
        assert known.shape == before.shape
        assert (known / before)[before.abs() > 1e-2].sub(1).abs().max() < 0.35 if n > 1 else True


def is_part(positions: np.ndarray, classes: np.ndarray, molecule: Molecule) -> bool:
    """Whether a molecule has atoms of these classes at these distances from each other."""
    apart, table = (np.linalg.norm(p[:, None] - p, axis=2) for p in (positions, molecule.positions))
    kinds = CATEGORIES[element_index(molecule.numbers)]

    def search(chosen: list[int]) -> bool:
        k = len(chosen)
        others = [i for i in range(len(table)) if i not in chosen and k < len(classes) and kinds[i] == classes[k]]
        return k == len(classes) or any(
            np.allclose(table[i, chosen], apart[k, :k], atol=2e-3) and search([*chosen, i]) for i in others
        )

    return search([])


def test_a_batch_of_molecules_is_a_function_of_its_number(molecule_set):
    a, b, c = (growing(molecule_set).batch(q) for q in (4, 4, 5))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a.positions[:, -1], c.positions[:, -1])
    whole = growing(molecule_set, first=60).batch(0)
    sizes = {len(m.numbers) for m in load_molecules(molecule_set)}
    assert set((whole.classes >= 0).sum(1).tolist()) <= sizes


def test_errors_of_what_is_known_are_none(molecule_set):
    """A network that says the label itself has no error; one that says nothing, all of it."""
    predictor = SoapPredictor(OURS)
    for batch in (growing(molecule_set).batch(0), RandomPoints(PointsConfig(nodes=4), SETTING_A, 3, 10).batch(3)):
        predictor.soap = lambda graphs, batch=batch: batch.labels
        assert spectrum_summary(errors_of(predictor, batch))["mse"] == 0
        predictor.soap = lambda graphs, batch=batch: 0 * batch.labels
        assert spectrum_summary(errors_of(predictor, batch))["relative"] == pytest.approx(1)


def test_the_loss_is_the_mean_squared_error_of_the_evaluation(molecule_set):
    predictor, batch = SoapPredictor(OURS), growing(molecule_set).batch(1)
    loss = float(predictor(batch, torch.Generator())["soap"].detach())
    assert loss == pytest.approx(spectrum_summary(errors_of(predictor, batch))["mse"], rel=1e-4)


def test_evaluate_a_predictor(tmp_path, capsys, molecule_set):
    """On molecules and on random points; its training draws the curve of figure 14."""
    toml = tmp_path / "p.toml"
    toml.write_text(
        f"""
        molecules = "{molecule_set}"
        name = "p"
        steps = 2
        batch_size = 2
        warm_up = 1
        workers = 0
        epoch = 1
        accelerator = "cpu"
        [points]
        nodes = 60
        [model]
        kind = "soap-predictor"
        network = "invariant"
        widths = [4, 4]
        soap = {{ n_species = 5, max_l = 2, n_radial = 3 }}
        """
    )
    main(["train", str(toml), "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "epochs.png").stat().st_size > 5000
    weights = str(tmp_path / "run" / "p.safetensors")
    for k, data in enumerate(([], ["--data", molecule_set])):
        out = tmp_path / f"out{k}"
        main(["evaluate", "--model", weights, "-o", str(out), "--molecules", "3", *data])
        figures = json.loads((out / "soap_evaluation.json").read_text())
        assert figures["told"]["mse"] == pytest.approx(figures["own"]["mse"], rel=1e-5)  # ours asks for no past
        assert f"MSE {figures['own']['mse']:.3f}" in capsys.readouterr().out
        assert (out / "soap_evaluation.png").stat().st_size > 5000


def test_mistakes_with_predictors(tmp_path, capsys, molecule_set, weights):
    with pytest.raises(ConfigError, match="n_species"):
        GrowingMolecules(load_molecules(molecule_set), PointsConfig(), SMALL, 2, 2)
    with pytest.raises(ConfigError, match="atoms or fewer"):
        growing(molecule_set, nodes=2)
    refused(capsys, ["evaluate", "--model", weights, "-o", tmp_path / "out"], "--data")
    points = SoapPredictor(SoapPredictorConfig(network="invariant", soap=SMALL, widths=(4, 4)))
    save_model(points, tmp_path / "b.safetensors", "b")
    refused(
        capsys,
        ["evaluate", "--model", tmp_path / "b.safetensors", "--data", molecule_set, "-o", tmp_path],
        "n_species",
    )


def test_the_curve_is_a_mean_over_epochs(tmp_path, monkeypatch):
    rows = [{"step": s, "loss_soap": float(s)} for s in (5, 10, 15, 20)]
    drawn = []
    monkeypatch.setattr("afmol.plots.spectra.save", lambda figure, path: drawn.append(figure))
    epoch_picture(rows, 10, tmp_path / "e.png", "p")
    (line,) = drawn[0].axes[0].lines
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata().tolist() == [7.5, 17.5]
