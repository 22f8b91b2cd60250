"""Evaluation on molecules that the network has never seen, simulated in a stated way. CONVENTIONS.md, "Standard noise".

Sample i is a function of (seed, i): molecule, orientation, height, force parameters and noise.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from .checkpoint import DEFAULT_MODEL, load_model
from .data.molecules import MoleculeSet, load_molecules
from .data.samples import DataConfig, image, lay_down, nominal_conditions, random_conditions
from .errors import ConfigError
from .files import make_folder
from .metrics import Comparison, compare, summary, table, total
from .model import OnePass
from .plots import confusion_picture
from .prediction import predict
from .simulation.artefacts import white_noise
from .structures import Molecule, Scan

STANDARD_NOISE = 0.05
"""Standard deviation of the white noise in each pixel of 0.125 A, as a share of the slice's range."""
PIXEL = 0.125
MARGIN = 3.0
"""A around the molecule."""

Shapes = Literal["flat", "all"]
Conditions = Literal["nominal", "random"]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated."""

    molecules: int = 500
    """Molecules of each kind."""
    shapes: tuple[Shapes, ...] = ("flat", "all")
    """flat: thinner than 1.6 A."""
    conditions: tuple[Conditions, ...] = ("nominal", "random")
    """Force parameters and tip: the simulator's own, or drawn at random as in training."""
    noise: float = STANDARD_NOISE
    tolerance: float = 0.5
    """A: how close a predicted atom must be."""
    seed: int = 0


def simulated_sample(
    molecules: MoleculeSet, i: int, conditions: Conditions, noise: float, rng: np.random.Generator
) -> tuple[Scan, Molecule]:
    """Molecule i laid down, simulated at 0.125 A a pixel with 3 A around it, with noise; the truth in its frame."""
    config = DataConfig()
    nominal = conditions == "nominal"
    molecule = lay_down(molecules[i], rng, config.tilt, 0.0 if nominal else config.bend * rng.random())
    how = nominal_conditions(rng) if nominal else random_conditions(rng, config.distance)
    low = molecule.positions[:, :2].min(0) - MARGIN
    shape = np.ceil((np.ptp(molecule.positions[:, :2], axis=0) + 2 * MARGIN) / PIXEL).astype(int)
    scan = image(molecule, how, (low[0], low[1]), (int(shape[0]), int(shape[1])), PIXEL)
    truth = replace(molecule, positions=molecule.positions - [*low, 0.0])
    return replace(scan, data=white_noise(scan.data, noise, rng)), truth


def evaluate_set(
    model: OnePass, molecules: MoleculeSet, shapes: Shapes, conditions: Conditions, config: EvaluationConfig
) -> Comparison:
    """Counts over the chosen molecules of a set."""
    fits = molecules.flatness < DataConfig().flat_limit if shapes == "flat" else np.ones(len(molecules), bool)
    chosen = np.random.default_rng((config.seed, 0)).permutation(np.flatnonzero(fits))[: config.molecules]
    counted = []
    for i in tqdm(chosen, desc=f"{shapes} molecules, {conditions} force parameters", mininterval=1):
        rng = np.random.default_rng((config.seed, 1, int(i)))
        scan, truth = simulated_sample(molecules, int(i), conditions, config.noise, rng)
        seen = truth.positions[:, 2] >= -model.config.depth
        counted.append(compare(predict(scan, model), truth, seen, config.tolerance))
    return total(counted)


def evaluate(
    data: str | Path, out: str | Path, model: str = DEFAULT_MODEL, config: EvaluationConfig | None = None
) -> str:
    """Evaluate a model on a packed molecule set; writes evaluation.json, evaluation.txt and confusion pictures.

    Returns the tables as text. Raises MoleculeError, WeightsError or ConfigError for input that cannot be used.
    """
    config = config or EvaluationConfig()
    if config.molecules < 1:
        raise ConfigError("Evaluate at least one molecule.")
    network, name = load_model(model)
    molecules = load_molecules(data, "test")
    out = Path(out)
    make_folder(out)
    record: dict[str, object] = {"model": name, "data": Path(data).name, "noise": config.noise, "seed": config.seed}
    texts = []
    for shapes in config.shapes:
        for conditions in config.conditions:
            counts = evaluate_set(network, molecules, shapes, conditions, config)
            figures = summary(counts)
            key = f"{shapes} molecules, {conditions} force parameters"
            record[key] = figures
            texts.append(f"{key} ({counts.molecules} molecules)\n\n{table(figures)}")
            confusion_picture(counts.classes, out / f"classes_{shapes}_{conditions}.png")
            (out / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
            (out / "evaluation.txt").write_text("\n\n".join(texts) + "\n")
    return "\n\n".join(texts)
