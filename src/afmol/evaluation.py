"""Evaluation on molecules that the network has never seen, simulated as the yardstick says (CONVENTIONS.md).

Sample i is a function of (seed, i): molecule, orientation, height, force parameters and noise.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from .checkpoint import DEFAULT_MODEL, load_image_model
from .composition import ANY, formula_of
from .data.bending import lay_down, with_bent_groups
from .data.conditions import (
    MEASURED,
    ImagingConditions,
    Measured,
    nominal_conditions,
    random_conditions,
    simulate_sample,
)
from .data.molecules import FLAT, MoleculeSet, load_molecules
from .data.samples import Batch, collate
from .elements import BOND_TOLERANCE
from .elements import table as element_table
from .errors import ConfigError
from .files import make_folder, write_file
from .metrics import Comparison, Steps, compare, count_steps, step_summary, step_table, summary, table, total
from .model import Asd
from .model.asd.asd import COMMONEST
from .plots import confusion_picture
from .prediction import check_depth, check_formulas, check_refinement, predict_many, refined_reading
from .resampling import resampled
from .simulation.artefacts import white_noise
from .structures import Molecule, Sample, Scan

Shapes = Literal["flat", "all"]
ForceParameters = Literal["nominal", "charged", "random", "measured"]
Told = Literal["nothing", "elements", "formula"]
AT_ONCE = 64
"""Samples that are simulated before the network reads them."""


@dataclass(frozen=True)
class Yardstick:
    """What figures are measured on, whatever a model was trained with: CONVENTIONS.md, "Standard noise"."""

    pixel: float = 0.125
    """A."""
    margin: float = 3.0
    """Around the molecule, A."""
    noise: float = 0.05
    """Standard deviation of the white noise in each pixel, as a share of the slice's range."""
    tilt: float = 5.0
    """Standard deviation, degrees."""
    bend: float = 0.3
    """Largest standard deviation of the bending at 6 A from the centre, A (random force parameters only)."""
    distance: tuple[float, float] = (2.75, 3.6)
    """Closest approach above a topmost carbon, A (random force parameters only)."""
    radius_error: float = 0.08
    """Largest relative error of a Lennard-Jones radius (random force parameters only)."""


YARDSTICK = Yardstick()


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated."""

    molecules: int = 500
    """Molecules of each kind."""
    shapes: tuple[Shapes, ...] = ("flat", "all")
    """flat: thinner than 1.6 A."""
    conditions: tuple[ForceParameters, ...] = ("nominal", "random")
    """Force parameters and tip: the simulator's own, with the quadrupole of the original data set or a charge at the
    probe (`co-charge`); drawn at random; or as measured stacks show them (MEASURED; size, drift and rounding of the
    image apart)."""
    noise: float = YARDSTICK.noise
    seed: int = 0
    device: str = "cpu"
    """For the network, such as cuda; simulated is on the CPU."""
    depth: float | None = None
    """Atoms are asked for down to this far below the topmost one, A; None: as is usual for the model."""
    told: Told = "nothing"
    """What is told of each molecule: its formula, or its elements alone, as of `predict`."""
    refine: bool = False
    """Test what is read by simulation, as of `predict`: a minute a molecule, and more for large ones."""

    def __post_init__(self) -> None:
        if self.molecules < 1:
            raise ConfigError("Evaluate at least one molecule.")
        if not ({*self.shapes} <= {*get_args(Shapes)} and {*self.conditions} <= {*get_args(ForceParameters)}):
            shapes, conditions = (", ".join(get_args(kinds)) for kinds in (Shapes, ForceParameters))
            raise ConfigError(f"Shapes are {shapes}, conditions {conditions}.")
        if not 0 <= self.noise < np.inf or self.seed < 0:
            raise ConfigError("The noise and the seed must not be negative.")


@dataclass(frozen=True)
class Evaluation:
    """What a model did: counts of each kind of sample, from which `summary` makes figures."""

    model: str
    data: str
    config: EvaluationConfig
    counts: dict[tuple[Shapes, ForceParameters], Comparison]
    """By kind of sample."""
    steps: dict[tuple[Shapes, ForceParameters], Steps]
    """The same, of single steps, for a model that builds graphs atom by atom."""

    def record(self) -> dict[str, Any]:
        """Figures as plain values, for JSON."""
        about = {"model": self.model, "data": self.data, "noise": self.config.noise, "seed": self.config.seed}
        about |= {} if self.config.depth is None else {"depth": self.config.depth}
        about |= {} if self.config.told == "nothing" else {"told": self.config.told}
        about |= {"refined": True} if self.config.refine else {}
        figures = {_title(*kind): summary(counts) for kind, counts in self.counts.items()}
        for kind, steps in self.steps.items():
            figures[_title(*kind)]["single_steps"] = step_summary(steps)
        return about | figures

    def __str__(self) -> str:
        """Tables for a terminal."""
        parts = []
        for kind, c in self.counts.items():
            parts.append(f"{_title(*kind)} ({c.molecules} molecules)\n\n{table(summary(c))}")
            if kind in self.steps:
                parts.append(step_table(step_summary(self.steps[kind])))
        return "\n\n".join(parts)


def _title(shapes: Shapes, conditions: ForceParameters) -> str:
    """A kind of sample, for people."""
    return f"{shapes} molecules, {conditions} force parameters"


def drawn(
    molecule: Molecule, conditions: ForceParameters, rng: np.random.Generator, as_measured: Measured = MEASURED
) -> tuple[Molecule, ImagingConditions]:
    """A molecule laid down by the yardstick, and how it is imaged. ConfigError: conditions that there are not."""
    if conditions not in get_args(ForceParameters):
        raise ConfigError(f"Conditions are {', '.join(get_args(ForceParameters))}; not {conditions}.")
    y, nominal = YARDSTICK, conditions in ("nominal", "charged")
    molecule = lay_down(molecule, rng, y.tilt, 0.0 if nominal else y.bend * rng.random())
    measured = as_measured if conditions == "measured" else Measured()
    if nominal:
        how = nominal_conditions(rng, charged_share=float(conditions == "charged"))
    else:
        how = random_conditions(rng, y.distance, y.radius_error, measured)
    if measured.group_bend:
        molecule = with_bent_groups(molecule, rng, measured.group_bend)
    return molecule, how


def simulated_sample(
    molecules: MoleculeSet,
    i: int,
    conditions: ForceParameters,
    noise: float,
    rng: np.random.Generator,
    as_measured: Measured = MEASURED,
) -> Sample:
    """Molecule i laid down and simulated with noise by the yardstick; the truth in the image's frame."""
    y = YARDSTICK
    molecule, how = drawn(molecules[i], conditions, rng, as_measured)
    low = molecule.positions[:, :2].min(0) - y.margin
    shape = np.ceil((np.ptp(molecule.positions[:, :2], axis=0) + 2 * y.margin) / y.pixel).astype(int)
    scan = simulate_sample(molecule, how, (low[0], low[1]), (int(shape[0]), int(shape[1])), y.pixel)
    truth = replace(molecule, positions=molecule.positions - [*low, 0.0])
    return Sample(replace(scan, data=white_noise(scan.data, noise, rng)), truth)


def evaluation_samples(
    molecules: MoleculeSet,
    shapes: Shapes,
    conditions: ForceParameters,
    config: EvaluationConfig,
    as_measured: Measured = MEASURED,
) -> Iterator[Sample]:
    """The samples of one kind, one after another; `as_measured`: what "measured" means."""
    fits = molecules.flatness < FLAT if shapes == "flat" else np.ones(len(molecules), bool)
    chosen = np.random.default_rng((config.seed, 0)).permutation(np.flatnonzero(fits))[: config.molecules]
    for i in tqdm(chosen.tolist(), desc=_title(shapes, conditions), mininterval=1):
        rng = np.random.default_rng((config.seed, 1, i))
        yield simulated_sample(molecules, i, conditions, config.noise, rng, as_measured)


def evaluate(data: str | Path, model: str | Path = DEFAULT_MODEL, config: EvaluationConfig | None = None) -> Evaluation:
    """Evaluate a model on the test part of a packed molecule set.

    Raises:
        MoleculeError, WeightsError, ConfigError: input that cannot be used.
    """
    config = config or EvaluationConfig()
    network, name = load_image_model(model)
    check_depth(network, config.depth)
    if config.told != "nothing":
        check_formulas(network)
    if config.refine:
        check_refinement(network, 0.5)
    try:
        network.to(torch.device(config.device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"The device {config.device!r} cannot be used; choose cpu or cuda.") from error
    molecules = load_molecules(data, "test")
    counts, steps = {}, {}
    for shapes in config.shapes:
        for conditions in config.conditions:
            samples = evaluation_samples(molecules, shapes, conditions, config)
            if isinstance(network, Asd):
                samples = [*samples]
                steps[shapes, conditions] = _steps(network, samples)
            counts[shapes, conditions] = compared(network, samples, config.depth, config.told, config.refine)
    return Evaluation(name, Path(data).name, config, counts, steps)


def _steps(network: Asd, samples: Sequence[Sample]) -> Steps:
    """One step a sample, of the size that the network takes."""
    c, count, device = network.config, Steps(), next(network.parameters()).device
    for k, (scan, truth) in enumerate(samples):
        stack, scale = resampled(scan, c.pixel, c.slices, c.widest_step)
        size = stack.shape[0] * c.pixel, stack.shape[1] * c.pixel
        there = replace(truth, positions=truth.positions / [*scale, 1.0])
        batch = collate([Sample(Scan(stack, size), there)])
        count += single_steps(network, Batch(*(t.to(device) for t in batch)), k)
    return count


def single_steps(model: Asd, batch: Batch, seed: int) -> Steps:
    """Of the atom that a step adds, its position given: its class, and its bonds to the partial graph."""
    s = model.single_steps(batch, torch.Generator().manual_seed(seed))
    radius = element_table("covalent_radius")[COMMONEST]  # of the element that each class is given
    new = s.class_logits.argmax(1)[s.graph].numpy(force=True)
    reach = BOND_TOLERANCE * (radius[new] + radius[s.old_classes.numpy(force=True)])
    return count_steps(
        s.classes.numpy(force=True),
        s.class_logits.numpy(force=True).astype(float),
        s.bonded.numpy(force=True),
        s.bonds.numpy(force=True).astype(float),
        s.lengths.numpy(force=True) < reach,
    )


def compared(
    network: Any, samples: Iterable[Sample], depth: float | None = None, told: Told = "nothing", refine: bool = False
) -> Comparison:
    """Counts over samples, of atoms down to a depth (A), which is the model's if None."""
    asked = network.config.depth if depth is None else depth
    pairs = predicted(network, samples, depth=depth, told=told, refine=refine)
    return total(compare(found, truth, truth.within(asked)) for found, truth in pairs)


def predicted(
    network: Any,
    samples: Iterable[Sample],
    threshold: float = 0.5,
    depth: float | None = None,
    told: Told = "nothing",
    refine: bool = False,
) -> Iterator[tuple[Molecule, Molecule]]:
    """What a network finds in each sample, and the truth; read in batches."""
    rest = iter(samples)
    while chunk := list(islice(rest, AT_ONCE)):
        known = None if told == "nothing" else [formula_of(truth) for _, truth in chunk]
        if known is not None and told == "elements":
            known = [np.where(formula > 0, ANY, 0) for formula in known]
        scans = [scan for scan, _ in chunk]
        found = predict_many(scans, network, threshold, depth, known)
        if refine:
            told_of = known or [None] * len(chunk)
            each = zip(found, scans, told_of, strict=True)
            found = [refined_reading(m, scan, network, threshold, depth, formula) for m, scan, formula in each]
        yield from zip(found, (truth for _, truth in chunk), strict=True)


def write_evaluation(evaluation: Evaluation, out: str | Path) -> None:
    """evaluation.json, evaluation.txt and a confusion picture of each kind, each whole or not at all.

    Raises:
        ConfigError: a folder or file that cannot be written.
    """
    out = make_folder(out)
    write_file(out / "evaluation.json", f"{json.dumps(evaluation.record(), indent=1)}\n".encode())
    write_file(out / "evaluation.txt", f"{evaluation}\n".encode())
    for (shapes, conditions), counts in evaluation.counts.items():
        confusion_picture(counts.classes, out / f"classes_{shapes}_{conditions}.png")
