"""Training: samples made on the fly or stored, our own loop on Lightning Fabric, checkpoints with exact resume.

Step s sees the batch s of the loader (loader.py) and a generator seeded by s, so that a run that was stopped goes on as
if it had not been.
"""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from .checkpoint import load_model, load_training, save_model, save_training
from .data.loader import Batches, Simulated, Source, Stored, loader
from .data.molecules import MoleculeSet, load_molecules
from .data.samples import Batch, DataConfig, collate, make_sample
from .errors import ConfigError
from .metrics import compare, summary, total
from .model import OnePass, OnePassConfig
from .structures import Molecule


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    molecules: str = ""
    """Packed molecule set (.npz) to train on; of one that is split, its training part."""
    stored: str = ""
    """Folder of stored samples (afmol dataset make) in place of molecules: nothing is simulated."""
    validation: str = ""
    """Packed molecule set to validate on, of one that is split its validation part; none if empty."""
    out: str = "runs/base"
    """Folder for metrics.jsonl, checkpoint.safetensors and the weights."""
    name: str = "base"
    """Name of the model: the weights are OUT/NAME.safetensors."""
    start: str = ""
    """Weights to start from (a shipped name or a file, of the same model); random ones if empty."""
    steps: int = 10000
    batch_size: int = 32
    """Samples a step, on each device; divides `data.together`."""
    learning_rate: float = 2e-3
    """At the top of the schedule: linear warm-up, then cosine to zero."""
    warm_up: int = 300
    weight_decay: float = 0.02
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    checkpoint_every: int = 250
    validate_every: int = 500
    validation_samples: int = 192
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "bf16-mixed"
    workers: int = 2
    """Processes that make or read samples, 4 batches ahead; 0: between the steps."""
    data: DataConfig = field(default_factory=DataConfig)
    model: OnePassConfig = field(default_factory=OnePassConfig)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * 0.5 * (1 + np.cos(np.pi * share))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def train(config: TrainConfig) -> Path:
    """Train; returns the weight file. Goes on from OUT/checkpoint.safetensors if there is one.

    Raises:
        ConfigError: numbers that do not fit, an output folder that cannot be written.
        WeightsError: weights to start from, or a checkpoint, that cannot be read.
        MoleculeError: a molecule set that cannot be read. ShardError: stored samples that cannot be.
    """
    if (config.data.pixel, config.data.slices) != (config.model.pixel, config.model.slices):
        raise ConfigError("The data's pixel and slices must be those that the model takes.")
    counts = (config.steps, config.batch_size, config.devices, config.checkpoint_every, config.validate_every)
    if min(*counts, config.workers + 1) < 1:
        text = "Steps, batch_size, devices, checkpoint_every and validate_every must be at least 1, workers at least 0."
        raise ConfigError(text)
    if Path(config.name).name != config.name:
        raise ConfigError(f"The name of a model is part of a file's name: not {config.name!r}.")
    samples = _samples(config)
    validation = load_molecules(config.validation, "validation") if config.validation else None
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.jsonl").open("a").close()
    except OSError as error:
        raise ConfigError(f"The folder {out} cannot be written: {error.strerror}.") from error

    try:
        fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)  # pyrefly: ignore
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"Accelerator, devices or precision cannot be used: {why}") from error
    fabric.launch()
    torch.manual_seed(config.seed)
    model = OnePass(config.model)
    if config.start:
        model = load_model(config.start)[0]
        if model.config != config.model:
            raise ConfigError(f"The weights {config.start} are of a model of another configuration.")
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98))
    wrapped, optimizer = fabric.setup(model, optimizer)
    checkpoint = out / "checkpoint.safetensors"
    wanted = dataclasses.asdict(config)
    # after the move to the device: the optimizer's state goes where its parameters are
    start = load_training(checkpoint, model, optimizer.optimizer, wanted) if checkpoint.exists() else 0
    weights = out / f"{config.name}.safetensors"

    with (
        (out / "metrics.jsonl").open("a") as log,
        tqdm(total=config.steps, initial=start, disable=fabric.global_rank > 0, mininterval=10) as bar,
    ):
        recent: list[dict[str, torch.Tensor]] = []
        clock = time.perf_counter()
        batches = Batches(samples, config.steps, fabric.global_rank, fabric.world_size)
        stream = loader(batches, start, config.workers)
        waited = 0.0
        for step in range(start, config.steps):
            asked = time.perf_counter()
            cpu_batch = next(stream)
            waited += time.perf_counter() - asked
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            model.train()
            losses = wrapped(on_device(cpu_batch, fabric.device), torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            fabric.backward(torch.stack(list(losses.values())).sum())
            fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip)
            optimizer.step()
            bar.update()

            recent.append({k: v.detach() for k, v in losses.items()})
            done = step + 1
            last = done == config.steps
            row: dict[str, Any] = {}
            if done % 50 == 0 or last:
                row = {k: round(float(torch.stack([r[k] for r in recent]).mean()), 5) for k in recent[0]}
                now = time.perf_counter()
                row["samples_per_second"] = round(
                    len(recent) * config.batch_size * fabric.world_size / (now - clock), 1
                )
                row["waiting"] = round(waited / (now - clock), 4)  # share of the time, for samples
                row["learning_rate"] = learning_rate(step, config)
                recent, clock, waited = [], now, 0.0
            if validation is not None and (done % config.validate_every == 0 or last) and fabric.global_rank == 0:
                row |= {f"validation_{k}": v for k, v in validate(model, validation, config).items()}
                clock, waited = time.perf_counter(), 0.0
            if row and fabric.global_rank == 0:
                log.write(json.dumps({"step": done} | row) + "\n")
                log.flush()
            if (done % config.checkpoint_every == 0 or last) and fabric.global_rank == 0:
                save_model(model, weights, config.name)
                save_training(checkpoint, model, optimizer.optimizer, done, wanted)
    return weights


def _samples(config: TrainConfig) -> Source:
    """Where the batches come from."""
    if bool(config.molecules) == bool(config.stored):
        raise ConfigError("A training run needs either molecules (a packed set) or stored (a folder of samples).")
    if config.molecules:
        return Simulated(load_molecules(config.molecules, "train"), config.data, config.batch_size)
    return Stored(config.stored, config.batch_size, config.model.pixel, config.model.slices, config.data.seed)


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def validate(model: OnePass, molecules: MoleculeSet, config: TrainConfig) -> dict[str, float | None]:
    """Figures on samples drawn as for training from other molecules; the same ones each time."""
    model.eval()
    size = config.batch_size
    data = dataclasses.replace(config.data, seed=config.data.seed + 1000, together=size)
    compared = []
    for first in range(0, config.validation_samples, size):
        samples = [make_sample(molecules, data, i) for i in range(first, first + size)]
        batch = on_device(collate(samples), next(model.parameters()).device)
        for found, (_, truth) in zip(model.predict(batch.images), samples, strict=True):
            compared.append(compare(found, truth, visible(truth, config.model.depth)))
    figures = summary(total(compared))
    wanted = ("precision", "recall", "class_accuracy", "bond_f1", "xy_error", "z_error", "exact_graph_rate")
    return {k: figures[k] for k in wanted}


def visible(molecule: Molecule, depth: float) -> np.ndarray:
    """Mask of the atoms at most `depth` below the topmost one (z = 0)."""
    return molecule.positions[:, 2] >= -depth
