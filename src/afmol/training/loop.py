"""The loop of every training: our own, on Lightning Fabric, for any model and any source of batches; exact resume.

Step s sees the batch s of the loader (data/loader.py) and a generator seeded by s, so that a run that was stopped goes
on as if it had not been.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..checkpoint import load_training, save_model, save_training
from ..data.loader import Batches, Source, loader
from ..errors import ConfigError
from ..files import locked
from ..optimizer import Muon, parameter_groups
from ..precision import fast_precision
from .resume import check_settings, rows_until, settings_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG_EVERY = 50
"""Steps over which the losses of a line of metrics.jsonl are averaged."""
CHECKPOINT = "checkpoint.safetensors"
MOST_STEPS = 1_000_000_000
Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]
Validate = Callable[[nn.Module], dict[str, float | None]]
"""Losses and figures of a model on samples that it is not trained on, by name."""


@dataclass(frozen=True)
class FitConfig:
    """The loop: what the training of any model can be told."""

    out: str = "runs/base"
    """Folder for metrics.jsonl, checkpoint.safetensors and the weights."""
    name: str = "base"
    """Name of the model: the weights are OUT/NAME.safetensors."""
    steps: int = 10000
    """More of them, or fewer, may be asked for when a run goes on; from there on the learning rate follows the schedule
    of the new number."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: matrices and convolutions learn by orthogonal steps, the rest by AdamW (optimizer.py)."""
    learning_rate: float = 2e-3
    """At the top of the schedule: linear warm-up, then cosine to zero."""
    warm_up: int = 300
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.02
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights, such as 0.999, which is then what is validated and
    written; 0: the weights themselves."""
    seed: int = 0
    """Of the weights to start from."""
    checkpoint_every: int = 250
    """Steps after which weights and what it takes to go on are written."""
    validate_every: int = 500
    """Steps after which the model is tried on validation samples."""
    accelerator: str = "auto"
    """What computes, as Lightning Fabric names it: auto, cpu, cuda."""
    devices: int = 1
    """How many of them; on the CPU, processes."""
    precision: Precision = "auto"
    """As Lightning Fabric names them. auto: bf16-mixed on a GPU and on processors that compute in bfloat16; 32-true on
    others, where bfloat16 was nine times slower."""
    workers: int = 2
    """Processes that make or read samples, 4 batches ahead, at most one a core; 0: between the steps."""

    def __post_init__(self) -> None:
        counts = (self.steps, self.devices, self.checkpoint_every, self.validate_every)
        if min(*counts, self.workers + 1) < 1:
            text = "Steps, devices, checkpoint_every and validate_every must be at least 1, workers at least 0."
            raise ConfigError(text)
        if not 0 <= self.average < 1:
            raise ConfigError("average is the decay of a moving average: 0 to below 1.")
        if not self.name or Path(self.name).name != self.name or f"{self.name}.safetensors" == CHECKPOINT:
            raise ConfigError(f"The name of a model is that of its file, beside {CHECKPOINT}: not {self.name!r}.")
        if self.steps > MOST_STEPS:
            raise ConfigError(f"At most {MOST_STEPS:,} steps can be asked for.")
        if not all(0 <= value < float("inf") for value in (self.learning_rate, self.weight_decay, self.warm_up)):
            raise ConfigError("learning_rate, weight_decay and warm_up are numbers from 0 on.")
        if not self.clip > 0:
            raise ConfigError("clip is the largest norm of a gradient: above 0.")


def fit(model: nn.Module, source: Source, config: FitConfig, validate: Validate | None = None, start: str = "") -> Path:
    """The loop: writes OUT/metrics.jsonl, OUT/checkpoint.safetensors and OUT/NAME.safetensors, which it returns.

    Ctrl-C and SIGTERM end it with KeyboardInterrupt once a checkpoint of the steps that are done is written.

    Args:
        model: see `afmol.model`; its parameters that need no gradient stay as they are.
        source: batches by number, see `afmol.data.loader`.
        config: the loop.
        validate: called every `validate_every` steps; its names get `validation_` in front.
        start: fingerprint of the weights that the model starts from, if they are not of the seed.

    Raises:
        ConfigError, WeightsError: a device, folder or checkpoint that cannot be used; a folder in which another run
        writes, or whose checkpoint is of another run. What the source raises.
    """
    out = Path(config.out)
    _check_folder(out / "metrics.jsonl")
    fabric = _fabric(config)
    # Of several devices' processes the first holds the lock, before it starts the others.
    with locked(out / ".lock", str(out)) if fabric.local_rank == 0 else contextlib.nullcontext():
        fabric.launch()
        return _fit(fabric, model, source, config, validate, start)


def _fit(
    fabric: "Fabric", model: nn.Module, source: Source, config: FitConfig, validate: Validate | None, begun: str
) -> Path:
    """`fit`, alone in its folder."""
    out = Path(config.out)
    weights, checkpoint, metrics = (out / n for n in (f"{config.name}.safetensors", CHECKPOINT, "metrics.jsonl"))
    kind, orthogonal = (Muon, True) if config.optimizer == "muon" else (torch.optim.AdamW, False)
    groups = parameter_groups(model, config.weight_decay, orthogonal=orthogonal)
    optimizer = kind(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    wrapped, optimizer = fabric.setup(model, optimizer)
    average = _average(model, config.average)
    best = model if average is None else average.module
    rank, world = fabric.global_rank, fabric.world_size
    origin = source.origin | {"devices": world}
    settings = settings_of(config) | {"start": begun}
    start = 0
    if checkpoint.exists():
        check_settings(checkpoint, settings, type(config))
        # after the move to the device: the optimizer's state goes where its parameters are
        start = load_training(checkpoint, model, optimizer.optimizer, average, origin)
    if start > config.steps:
        text = f"{checkpoint} is at step {start}, beyond the {config.steps} steps asked for; ask for more"
        raise ConfigError(f"{text}, or train in another folder.")

    def save(done: int) -> None:
        save_model(best, weights, config.name)
        save_training(checkpoint, model, optimizer.optimizer, average, done, origin, settings)

    means, workers = _Means(source.size * world), min(config.workers, os.cpu_count() or 1)
    batches = means.timed(loader(Batches(source, config.steps, rank, world), start, workers))
    bar = tqdm(total=config.steps, initial=start, disable=rank > 0, mininterval=10)
    done = saved = start
    if rank == 0:
        rows_until(metrics, start)
    with metrics.open("a") as log, bar, _stopping() as undisturbed:
        if (
            done == config.steps and rank == 0
        ):  # nothing to do, but the weights may have been removed, or have a new name
            save_model(best, weights, config.name)
        try:
            for step, batch in enumerate(batches, start):
                with undisturbed():
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(step, config)
                    model.train()
                    generator = torch.Generator().manual_seed(step * world + rank)
                    losses = wrapped(on_device(batch, fabric.device), generator)
                    optimizer.zero_grad()
                    fabric.backward(torch.stack(list(losses.values())).sum())
                    _clip(fabric, wrapped, optimizer, config.clip, step, checkpoint)
                    optimizer.step()
                    if average is not None:
                        average.update_parameters(model)
                    done = step + 1
                bar.update()

                means.add(losses)
                last = done == config.steps
                row = means.row() | {"learning_rate": group["lr"]} if done % LOG_EVERY == 0 or last else {}
                if validate is not None and (done % config.validate_every == 0 or last) and rank == 0:
                    asked = time.perf_counter()
                    row |= {f"validation_{k}": v for k, v in validate(best).items()}
                    means.clock += time.perf_counter() - asked  # no time of training
                if row and rank == 0:
                    _log(log, {"step": done} | row)
                if (done % config.checkpoint_every == 0 or last) and rank == 0:
                    save(done)
                    saved = done
        except KeyboardInterrupt:
            if done > saved and rank == 0:
                save(done)
            raise
    return weights


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, but for what is done `undisturbed`, the block that this gives: there
    they wait for its end, so that weights and optimizer are always those of whole steps."""
    state = {"busy": False, "asked": False}

    def heard(*_: object) -> None:
        again, state["asked"] = state["asked"], True
        if again or not state["busy"]:  # whoever asks twice does not want to wait
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def undisturbed() -> Iterator[None]:
        if state["asked"]:  # Python drops what is raised within a destructor
            raise KeyboardInterrupt
        state["busy"] = True
        try:
            yield
        except RuntimeError:
            if not state["asked"]:
                raise  # else: the process of another device heard it first, and left in the middle of this step
        finally:
            state["busy"] = False
        if state["asked"]:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there can signals be heard
        yield contextlib.nullcontext
        return
    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield undisturbed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * 0.5 * (1 + np.cos(np.pi * share))


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch, a named tuple of tensors, on a device."""
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _check_folder(metrics: Path) -> None:
    try:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.open("a").close()
    except OSError as error:
        raise ConfigError(f"The folder {metrics.parent} cannot be written: {error.strerror}.") from error


def _log(log: TextIO, row: dict[str, Any]) -> None:
    try:
        log.write(json.dumps(row) + "\n")
        log.flush()
    except OSError as error:
        raise ConfigError(f"{log.name} cannot be written ({str(error.strerror).lower()}).") from error


def _clip(fabric: "Fabric", model: Any, optimizer: Any, most: float, step: int, checkpoint: Path) -> None:
    try:
        fabric.clip_gradients(model, optimizer, max_norm=most)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        kept = f"{checkpoint} is kept" if checkpoint.exists() else "nothing was written"
        raise ConfigError(f"Training diverged in step {step}: try a lower learning_rate ({kept}).") from error


def _fabric(config: FitConfig) -> "Fabric":
    """Not launched yet."""
    from lightning_fabric import Fabric  # takes seconds, and with it torch's compiler
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    class Mixed(MixedPrecision):
        """Autocast alone. Fabric's own makes all inputs 16-bit numbers, labels too: positions to 0.03 A."""

        def convert_input(self, data: Any) -> Any:
            return data

    precision = fast_precision(config.accelerator) if config.precision == "auto" else config.precision
    where = {"accelerator": config.accelerator, "devices": config.devices}
    try:
        if precision == "bf16-mixed":
            device = "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
            return Fabric(**where, plugins=Mixed(precision, device))  # pyrefly: ignore
        return Fabric(**where, precision=precision)  # pyrefly: ignore
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"Accelerator, devices or precision cannot be used: {why}") from error


def _average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Weights and batch norm statistics, averaged over the steps."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class _Means:
    """Losses since the last row, samples a second, and the share of the time that went into waiting for samples."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.losses: list[dict[str, Tensor]] = []
        self.restart()

    def restart(self) -> None:
        self.clock, self.waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor]) -> None:
        self.losses.append({k: v.detach() for k, v in losses.items()})

    def row(self) -> dict[str, float]:
        """`loss`, the sum, and `loss_NAME`, each part."""
        parts = {k: float(torch.stack([row[k] for row in self.losses]).mean()) for k in self.losses[0]}
        passed = time.perf_counter() - self.clock
        speed = {
            "samples_per_second": round(len(self.losses) * self.samples / passed, 1),
            "waiting": round(self.waited / passed, 4),
        }
        self.losses = []
        self.restart()
        return named_losses(parts) | speed


def named_losses(parts: dict[str, float]) -> dict[str, float]:
    """The sum as `loss` and each part as `loss_NAME`."""
    return {"loss": round(sum(parts.values()), 5)} | {f"loss_{k}": round(v, 5) for k, v in parts.items()}
