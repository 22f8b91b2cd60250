"""Calibration: known numbers are found again, and weights say them."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from afmol import calibration, load_model
from afmol.calibration import Numbers, Outcomes, fit, outcomes, scaled
from afmol.cli import main
from afmol.data.molecules import load_molecules
from afmol.elements import CATEGORIES, ELEMENTS
from afmol.errors import ConfigError
from afmol.evaluation import EvaluationConfig, evaluation_samples
from afmol.metrics import Comparison
from strategies import few_molecules, refused


def test_what_was_drawn_by_known_numbers_gives_them_back():
    rng = np.random.default_rng(0)
    n, known = 40_000, Numbers((0.7, -0.8), 0.6, (0.7, -0.4, 0.3, 0.4, -1.0), (1.8, 2.5))
    atoms, bonds = rng.normal(0, 3, (2, n))
    logits = rng.normal(0, 3, (n, len(ELEMENTS)))
    chances = softmax(known.elements * logits + np.array(known.classes)[CATEGORIES], axis=1)
    elements = np.array([rng.choice(len(ELEMENTS), p=p) for p in chances])

    def true(x, line):
        return rng.random(n) < expit(line[0] * x + line[1])

    said = np.log(softmax(logits, axis=1))
    seen = Outcomes(atoms, true(atoms, known.atoms), said, CATEGORIES[elements], bonds, true(bonds, known.bonds))
    found = fit(seen)
    for a, b in zip(found, known, strict=True):
        assert a == pytest.approx(b, abs=0.05)


def test_a_class_that_no_sample_shows_stays_possible():
    """What is not seen in a hundred molecules may be seen in the next one."""
    rng = np.random.default_rng(1)
    said = np.log(softmax(rng.normal(0, 2, (2000, len(ELEMENTS))), axis=1))
    classes = rng.integers(0, 4, 2000)
    line = rng.normal(0, 3, 2000)
    found = fit(Outcomes(line, rng.random(2000) < expit(line), said, classes, line, rng.random(2000) < expit(line)))
    assert sum(found.classes) == pytest.approx(0, abs=0.01)
    assert -10 < found.classes[4] < min(found.classes[:4])


def test_few_samples_without_a_wrong_answer_make_nothing_sure():
    """The likelihood alone has no maximum: the surer, the better."""
    rng = np.random.default_rng(1)
    said, classes = np.log(softmax(rng.normal(0, 2, (50, 11)), axis=1)), rng.integers(0, 5, 50)
    line = np.linspace(-1, 1, 50)
    for true in (line < 2, line > 2, line > 0):
        (a, b), *_ = fit(Outcomes(line, true, said, classes, line, true))
        assert 0.05 < a < 100
        assert abs(b) < 10


def test_nothing_found_is_nothing_to_fit_to():
    nothing = Outcomes(*(np.zeros(0) for _ in range(2)), np.zeros((0, 11)), *(np.zeros(0) for _ in range(3)))
    with pytest.raises(ConfigError, match="finds nothing"):
        fit(nothing)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    molecules = load_molecules(few_molecules(tmp_path_factory.mktemp("set") / "set.npz"))
    return [*evaluation_samples(molecules, "all", "nominal", EvaluationConfig(4))]


def test_weights_say_the_numbers(samples):
    """Of all candidates and pairs, the logits are those of before, stretched and moved; a feedback of none, so that
    what is told does not change."""
    network, _ = load_model("base")
    numbers = Numbers((1.2, 0.3), bonds=(0.9, -0.5))
    before, after = (outcomes(model, samples) for model in (network, scaled(network, numbers)))
    for what, (a, b) in (("atoms", numbers.atoms), ("bonds", numbers.bonds)):
        old, new = getattr(before, what), getattr(after, what)
        wanted = np.sort(a * old + b)[::-1][:10]
        assert np.sort(new)[::-1][:10] == pytest.approx(wanted, abs=0.02)
    more = (0.5, -0.3, 0.0, 0.4, -0.6)
    elements = outcomes(scaled(network, Numbers(elements=0.8, classes=more)), samples).elements  # of the same atoms
    wanted = np.log(softmax(0.8 * before.elements + np.array(more)[CATEGORIES], axis=1))
    likely = wanted > -10
    assert elements[likely] == pytest.approx(wanted[likely], abs=0.02)
    assert not torch.equal(network.bondnet.exists.weight, scaled(network, numbers).bondnet.exists.weight)


def test_the_command_writes_a_model_like_any_other(tmp_path, capsys):
    data, out = few_molecules(tmp_path / "set.npz"), tmp_path / "deeper" / "new.safetensors"
    main(["calibrate", "base", "--data", data, "-o", str(out), "--molecules", "4", "--conditions", "nominal"])
    said = capsys.readouterr().out
    assert "atom_calibration_error" in said
    assert f"-> {out}" in said
    model, name = load_model(out)
    assert name == "base"
    assert not torch.equal(model.bondnet.exists.weight, load_model("base")[0].bondnet.exists.weight)


def test_figures_that_there_are_not_are_a_dash(tmp_path, capsys, monkeypatch):
    """Of samples in which nothing was found there are none; the model is written and said all the same."""
    nothing = calibration.Calibration(load_model("base")[0], "base", Numbers(), Comparison(), Comparison())
    monkeypatch.setattr(calibration, "calibrate", lambda *asked: nothing)
    out = tmp_path / "new.safetensors"
    main(["calibrate", "base", "--data", "set.npz", "-o", str(out)])
    assert "- -> -" in capsys.readouterr().out
    assert out.exists()


def test_models_of_other_kinds_are_refused(tmp_path, capsys):
    data = few_molecules(tmp_path / "set.npz")
    for wrong, words in ((["asd", "-o", "a.safetensors"], "one-pass"), (["base", "-o", "a.txt"], ".safetensors")):
        refused(capsys, ["calibrate", *wrong, "--data", data], words)
    with pytest.raises(ConfigError, match="told nothing"):
        calibration.calibrate(data, "base", EvaluationConfig(4, depth=0.7))
    with pytest.raises(ConfigError, match="at least two"):
        calibration.calibrate(data, "base", EvaluationConfig(1, ("all",), ("nominal",)))


def test_a_model_is_judged_by_samples_that_it_was_not_fitted_to(tmp_path, monkeypatch):
    fitted, judged = [], []
    monkeypatch.setattr(calibration, "outcomes", lambda network, samples: fitted.extend(samples))
    monkeypatch.setattr(calibration, "fit", lambda seen: Numbers())
    monkeypatch.setattr(calibration, "compared", lambda network, samples: judged.extend(samples) or Comparison())
    data = few_molecules(tmp_path / "set.npz")
    calibration.calibrate(data, "base", EvaluationConfig(4, ("all",), ("nominal",)))
    assert len(fitted) == 2
    assert len(judged) == 4, "before and after"
    assert not {id(s.scan) for s in fitted} & {id(s.scan) for s in judged}
