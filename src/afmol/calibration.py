"""Probabilities that are what they say: the network's logits stretched and moved until they fit what comes true.

    equation                                    variable       of
    logit P(atom) = a x + b                     atoms: a, b    a candidate; x: as the network says it
    P(element e) ~ exp(s x_e + t_class(e))      elements: s    an atom; a class is the sum of its elements
                                                classes: t     mean 0; training shows some classes more often than they
                                                               are (halogens), and validation molecules tell how much
    logit P(bond) = a x + b                     bonds: a, b    a pair of atoms

Ten numbers, by maximum likelihood on simulated samples of validation molecules (Platt, Advances in Large Margin
Classifiers (1999) 61; Guo et al., ICML 2017; M. Saerens et al., Neural Computation 14 (2002) 21, for t). All comes
out of linear layers, and the mean over views of what is linear is linear, so the numbers go into the weights: a
calibrated model is a model like any other. A network that is told its own elements back (`model.feedback`) hears the
calibrated ones then, for which the numbers were not fitted; the figures after are of the network as it is.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import logit, logsumexp

from .checkpoint import DEFAULT_MODEL, load_model
from .data.molecules import load_molecules
from .elements import CATEGORIES
from .errors import ConfigError
from .evaluation import EvaluationConfig, compared, evaluation_samples, predicted
from .metrics import Comparison, matching
from .metrics.confusion import N_CLASSES
from .model import OnePass
from .structures import Sample

FAINTEST = 0.02
"""Candidates from this confidence on are learned from."""
LEAST = 1e-12
"""Probabilities are taken as at least this far from 0 and 1, so that their logits are finite."""
SPREAD = np.array([2.0, 10.0])
"""Of a line's ln a and b before any sample was seen: without it few samples, all right, would make all sure."""
SMALL = 1e-4
"""Weight of the squares of `classes`: a class that no sample shows stays possible, and their mean is 0."""
USUAL = EvaluationConfig(150, ("flat", "all"), ("nominal", "measured"), seed=1)
"""Of each kind so many molecules, of which every second is fitted to and the others are judged by."""


class Numbers(NamedTuple):
    """See the module's text."""

    atoms: tuple[float, float] = (1.0, 0.0)
    elements: float = 1.0
    classes: tuple[float, ...] = (0.0,) * N_CLASSES
    bonds: tuple[float, float] = (1.0, 0.0)


class Outcomes(NamedTuple):
    """What a network said and what came true."""

    atoms: Float[np.ndarray, " n"]
    """Logits of candidates; those of atoms deeper than asked for are there, as `Comparison.calibration` counts them."""
    there: Bool[np.ndarray, " n"]
    elements: Float[np.ndarray, "k e"]
    """Logarithms of the elements' probabilities of atoms that were found."""
    classes: Int[np.ndarray, " k"]
    """Their true classes."""
    bonds: Float[np.ndarray, " m"]
    """Logits of listed pairs of found atoms."""
    bonded: Bool[np.ndarray, " m"]


class Calibration(NamedTuple):
    """A calibrated model and how it did on samples that it was not fitted to."""

    model: OnePass
    name: str
    numbers: Numbers
    before: Comparison
    after: Comparison


def calibrate(data: str | Path, model: str | Path = DEFAULT_MODEL, config: EvaluationConfig = USUAL) -> Calibration:
    """Calibrate a one-pass model on the validation part of a packed molecule set.

    Raises:
        MoleculeError, WeightsError, ConfigError: input that cannot be used; a model of another kind.
    """
    network, name = load_model(model)
    if not isinstance(network, OnePass):
        raise ConfigError(f"{model} is not a one-pass model; afmol calibrates no other.")
    if (config.device, config.depth, config.told) != ("cpu", None, "nothing"):
        raise ConfigError("A model is calibrated on the processor, at its usual depth, told nothing.")
    molecules = load_molecules(data, "validation")
    kinds = [
        [*evaluation_samples(molecules, shapes, conditions, config)]
        for shapes in config.shapes
        for conditions in config.conditions
    ]
    fitted, judged = ([s for kind in kinds for s in kind[part::2]] for part in (0, 1))
    if not fitted or not judged:
        raise ConfigError(f"{data} has too few such molecules to calibrate by; at least two are needed.")
    numbers = fit(outcomes(network, fitted))
    calibrated = scaled(network, numbers)
    return Calibration(calibrated, name, numbers, compared(network, judged), compared(calibrated, judged))


def outcomes(network: OnePass, samples: list[Sample]) -> Outcomes:
    """What the network says of all that might be an atom or a bond, and what is true of it."""
    rows: list[Outcomes] = []
    for molecule, truth in predicted(network, samples, FAINTEST):
        pairs = matching(molecule, truth, truth.within(network.config.depth))
        partner = np.full(len(molecule), -1)
        partner[pairs.found] = pairs.partner
        ends = partner[molecule.bonds]
        both = (ends >= 0).all(1)
        true_bonds = {frozenset(bond) for bond in truth.bonds.tolist()}
        confidence, elements, bonds = molecule.confidence, molecule.element_probabilities, molecule.bond_probabilities
        assert confidence is not None
        assert elements is not None
        assert bonds is not None
        rows.append(
            Outcomes(
                _logit(confidence),
                np.isin(np.arange(len(molecule)), pairs.extra, invert=True),
                np.log(np.maximum(elements[pairs.found], LEAST)),
                truth.classes[pairs.partner],
                _logit(bonds[both]),
                np.array([frozenset(pair) in true_bonds for pair in ends[both].tolist()], bool),
            )
        )
    return Outcomes(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def fit(seen: Outcomes) -> Numbers:
    """The numbers under which what came true was likeliest. ConfigError: samples in which nothing was found."""
    if not (len(seen.atoms) and len(seen.classes) and len(seen.bonds)):
        raise ConfigError("The model finds nothing in these samples, so there is nothing to calibrate.")

    def lost(numbers: Float[np.ndarray, " k"]) -> float:
        logits = numbers[0] * seen.elements
        of_class = [logsumexp(logits[:, c == CATEGORIES], axis=1) + numbers[1 + c] for c in range(N_CLASSES)]
        right = np.choose(seen.classes, of_class)
        return float((logsumexp(of_class, axis=0) - right).mean() + SMALL * np.square(numbers[1:]).sum())

    stretch, *classes = minimize(lost, [1.0] + [0.0] * N_CLASSES, method="BFGS").x.tolist()
    return Numbers(_line(seen.atoms, seen.there), stretch, tuple(classes), _line(seen.bonds, seen.bonded))


def _line(logits: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """a and b of logistic regression, a > 0, the likeliest after these samples."""

    def loss(line: Float[np.ndarray, " 2"]) -> float:
        x = np.exp(line[0]) * logits + line[1]
        before = 0.5 * np.square(line / SPREAD).sum() / len(logits)
        return float(np.logaddexp(0, np.where(true, -x, x)).mean() + before)

    a, b = minimize(loss, [0.0, 0.0], method="Nelder-Mead").x
    return float(np.exp(a)), float(b)


def _logit(probability: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return logit(np.clip(probability, LEAST, 1 - LEAST))


def scaled(network: OnePass, numbers: Numbers) -> OnePass:
    """A copy of the network that says what is calibrated."""
    out = copy.deepcopy(network)
    net = out.bondnet
    classes = torch.tensor(numbers.classes)[CATEGORIES.tolist()]
    lines = ((net.exists, numbers.atoms), (net.elements, (numbers.elements, classes)), (net.bonds, numbers.bonds))
    with torch.no_grad():
        for layer, (a, b) in lines:
            layer.weight.mul_(a)
            layer.bias.mul_(a).add_(b)
    return out
