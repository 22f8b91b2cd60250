"""Kinds of training runs: what is trained, on which batches, and what it is validated on.

    TrainConfig -> train: a model that reads images, simulated or stored samples, validation -> fit
    PointsTrainConfig -> train_on_points: the SOAP predictor, random graphs -> fit
    CheckTrainConfig -> train_check: what tells good stacks from spoiled ones -> fit

`fit` is the loop (loop.py).
"""

from dataclasses import dataclass, field, replace
from functools import cache
from math import exp
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..checkpoint import fingerprint, load_model
from ..data.loader import Simulated, Source, Stored
from ..data.molecules import MoleculeSet, load_molecules
from ..data.samples import LABEL_DEPTH, DataConfig, collate, make_sample
from ..data.spoiled import SpoiledConfig, SpoiledStacks
from ..errors import ConfigError
from ..metrics import compare, summary, total
from ..model import ImageModel, ModelConfig, OnePassConfig, SoapPredictorConfig, StackCheckConfig, build
from ..model.one_pass.one_pass import SPARE_DEPTH
from ..model.soap_predictor import GrowingMolecules, PointsConfig, RandomPoints
from .loop import FitConfig, Precision, Validate, fit, named_losses, on_device

FIGURES = ("precision", "recall", "class_accuracy", "bond_f1", "xy_error", "z_error", "exact_graph_rate")
"""Of `metrics.summary`, on the validation samples."""


@dataclass(frozen=True)
class TrainConfig(FitConfig):
    """One training run of a model that reads images."""

    molecules: str = ""
    """Packed molecule set (.npz) to train on; of one that is split, its training part."""
    stored: str = ""
    """Folder of stored samples (afmol dataset make) in place of molecules: nothing is simulated."""
    validation: str = ""
    """Packed molecule set to validate on, of one that is split its validation part; none if empty."""
    validation_samples: int = 192
    """How many; the same ones each time."""
    start: str = ""
    """Weights to start from (a shipped name or a file, of the same model); random ones if empty."""
    batch_size: int = 32
    """Samples a step, on each device; divides `data.shard_size`."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=OnePassConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.batch_size, self.validation_samples) < 1:
            raise ConfigError("batch_size and validation_samples must be at least 1.")
        if (self.data.pixel, self.data.slices) != (self.model.pixel, self.model.slices):
            raise ConfigError("The data's pixel and slices must be those that the model takes.")
        most, deepest = round(LABEL_DEPTH - SPARE_DEPTH, 3), getattr(self.model, "deepest", 0.0)
        if not (0 < self.model.depth <= most and 0 <= deepest <= most):
            why = f"since atoms are labelled down to {LABEL_DEPTH} A"
            raise ConfigError(f"model.depth is above 0 and, as model.deepest, at most {most} A, {why}.")


def train(config: TrainConfig) -> Path:
    """Train; returns the weight file. Goes on from OUT/checkpoint.safetensors if there is one of the same run (FREE).

    Raises:
        ConfigError: numbers that do not fit, an output folder that cannot be written, a checkpoint of another run.
        WeightsError: weights to start from, or a checkpoint, that cannot be read.
        MoleculeError: a molecule set that cannot be read. ShardError: stored samples that cannot be.
    """
    source = _source(config)
    validate = None
    if config.validation:
        validate = validation(load_molecules(config.validation, "validation"), config)
    if not config.start and getattr(config.model, "needs_start", False):
        raise ConfigError("Part of this model stays frozen: name the weights to start from (start).")
    return _fitted(config, source, validate)


@dataclass(frozen=True)
class PointsTrainConfig(FitConfig):
    """One training run of a SOAP predictor (report, 4.1.2): a step is one addition of a node to a batch of graphs."""

    steps: int = 10000
    """Other than of models that read images, a run that goes on keeps them: its graphs depend on them."""
    precision: Precision = "32-true"
    batch_size: int = 100
    """Graphs that grow together."""
    epoch: int = 250
    """Mini-batches of an epoch, for the curve alone; each is as many steps as it has additions."""
    molecules: str = ""
    """Packed molecule set (.npz) whose partial graphs are learned from (its training part); random points if empty."""
    points: PointsConfig = field(default_factory=PointsConfig)
    model: SoapPredictorConfig = field(default_factory=SoapPredictorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.batch_size, self.epoch) < 1:
            raise ConfigError("batch_size and epoch must be at least 1.")

    @property
    def steps_of_epoch(self) -> int:
        additions = self.points.nodes - self.points.first + 1
        return self.epoch * (1 if self.molecules else additions)


def train_on_points(config: PointsTrainConfig) -> Path:
    """Train; returns the weight file. Goes on from OUT/checkpoint.safetensors if there is one.

    Graphs are new in each step, so the training losses are those of validation.

    Raises:
        ConfigError: an output folder that cannot be written. WeightsError: a checkpoint that cannot be read.
        MoleculeError: a molecule set that cannot be read.
    """
    about = config.points, config.model.soap, config.batch_size, config.steps
    if config.molecules:
        source = GrowingMolecules(load_molecules(config.molecules, "train"), *about)
    else:
        source = RandomPoints(*about)
    return fit(_random(config.model, config.seed), source, config)


@dataclass(frozen=True)
class CheckTrainConfig(FitConfig):
    """One training run of a network that tells good stacks from spoiled ones (data/spoiled.py)."""

    molecules: str = ""
    """Packed molecule set (.npz) to train on; of one that is split, its training part."""
    start: str = ""
    """Weights to start from (a shipped name or a file, of the same model); random ones if empty."""
    batch_size: int = 32
    """Stacks a step, half of them good."""
    data: DataConfig = field(default_factory=DataConfig)
    spoiled: SpoiledConfig = field(default_factory=SpoiledConfig)
    model: StackCheckConfig = field(default_factory=StackCheckConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.slices < 3:
            raise ConfigError("data.slices must be at least 3: two have no order that can be spoiled.")
        for most in (-1, 1):
            replace(self.data, pixel=self.data.pixel * exp(most * self.spoiled.scale))  # so stacks are drawn
        if self.batch_size < 2 or (self.data.pixel, self.data.slices) != (self.model.pixel, self.model.slices):
            raise ConfigError("batch_size must be at least 2, the data's pixel and slices those that the model takes.")


def train_check(config: CheckTrainConfig) -> Path:
    """Train; returns the weight file. Goes on from OUT/checkpoint.safetensors if there is one of the same run (FREE).

    Stacks are new in each step, so the training losses are those of validation.

    Raises:
        As `train`.
    """
    source = SpoiledStacks(load_molecules(config.molecules, "train"), config.data, config.spoiled, config.batch_size)
    return _fitted(config, source)


def _random(config: Any, seed: int) -> nn.Module:
    """A model of random weights; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


def _fitted(config: TrainConfig | CheckTrainConfig, source: Source, validate: Validate | None = None) -> Path:
    """Trained from random weights, or from those that the configuration names."""
    model = _random(config.model, config.seed)
    if not config.start:
        return fit(model, source, config, validate)
    own = Path(config.out) / f"{config.name}.safetensors"
    if own.exists() and Path(config.start).exists() and own.samefile(config.start):
        raise ConfigError(f"{config.start} is what this run would replace; choose another out or name.")
    other = load_model(config.start)[0]
    start = fingerprint(other)  # now: a model of the same configuration is the one that is trained
    return fit(_started(model, other, config.start), source, config, validate, start)


def _started(model: nn.Module, other: nn.Module, name: str) -> nn.Module:
    """The model with the weights of another, all of them or, if it knows how to, those that fit."""
    if other.config == model.config:
        return other
    if type(other) is not type(model) or not hasattr(model, "take"):
        raise ConfigError(f"The weights {name} are of a model of another configuration.")
    model.take(other)  # pyrefly: ignore[not-callable]
    return model


def _source(config: TrainConfig) -> Source:
    """Where the batches come from."""
    if bool(config.molecules) == bool(config.stored):
        raise ConfigError("A training run needs either molecules (a packed set) or stored (a folder of samples).")
    if config.molecules:
        return Simulated(load_molecules(config.molecules, "train"), config.data, config.batch_size)
    return Stored(config.stored, config.batch_size, config.model.pixel, config.model.slices, config.data.seed)


def validation(molecules: MoleculeSet, config: TrainConfig) -> Validate:
    """Losses and figures on samples drawn as for training from other molecules, the same ones each time."""
    size = config.batch_size
    data = replace(config.data, seed=config.data.seed + 1000, shard_size=size)

    @cache  # made once, when they are first needed: by one process alone
    def batches() -> list[tuple[Any, list[Any]]]:
        firsts = range(0, config.validation_samples, size)
        made = [[make_sample(molecules, data, i) for i in range(first, first + size)] for first in firsts]
        return [(collate(samples), samples) for samples in made]

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float | None]:
        model.eval()
        device, sums, compared = next(model.parameters()).device, {}, []
        for k, (batch, samples) in enumerate(batches()):
            batch = on_device(batch, device)
            for name, loss in model(batch, torch.Generator().manual_seed(k)).items():
                sums[name] = sums.get(name, 0.0) + float(loss) / len(batches())
            reads = cast(ImageModel, model)
            for found, (_, truth) in zip(reads.predict(batch.images), samples, strict=True):
                compared.append(compare(found, truth, truth.within(reads.config.depth)))
        figures = summary(total(compared))
        return named_losses(sums) | {k: figures[k] for k in FIGURES}

    return validate
