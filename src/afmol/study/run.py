"""The runs of a study: several configurations, each from several seeds, on the same data and steps.

A task is a function of the study and its place in it, so that it does not matter who does it or how often the work was
stopped: what is done is kept, a run that was stopped goes on at its checkpoint.
"""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..checkpoint import load_model
from ..config import config_from_dict, config_from_toml, config_to_dict
from ..data.molecules import load_molecules
from ..data.workers import results
from ..errors import ConfigError, reading
from ..files import make_folder, write_file
from ..limits import read_text
from ..training import TrainConfig, train
from .judge import judge
from .shift import write_shift_picture


@dataclass(frozen=True)
class Variant:
    """One configuration of a study."""

    name: str
    config: str
    """TOML of a training run, from the study's own folder on; molecules, steps, seed and folder are the study's."""
    after: str = ""
    """The variant whose weights, of the same seed, it starts from; empty: it starts as all do."""
    steps: int = 0
    """Steps, where they are not the study's: for a model that does not start from what the others start from."""
    start: str | None = None
    """Weights to start from, where they are not the study's; empty: random ones."""
    about: str = ""
    """What it is about, for the report."""


@dataclass(frozen=True)
class StudyConfig:
    """What is compared, and on what."""

    molecules: str
    """Packed set to train on."""
    validation: str
    """Packed set for the validation losses."""
    test: str
    """Packed set for the figures."""
    variants: tuple[Variant, ...]
    stored: str = ""
    """Folder of stored samples (afmol dataset make) in place of simulating them for each run anew; "{seed}" in it
    stands for the seed, so that each has its own samples."""
    title: str = "study"
    seeds: tuple[int, ...] = (0, 1)
    """Of the weights to start from and of the samples: the same ones for all variants."""
    steps: int = 2000
    """Of each variant that names none of its own."""
    start: str = ""
    """Weights that all variants start from, as far as they fit (`afmol.model`); random ones if empty."""
    test_samples: int = 300
    """On which all are judged."""
    shift: float = 2.0
    """By how much images are moved for the shift test, A."""
    positions: Literal["found", "given"] = "found"
    """Whether whole graphs are built on the positions that a model finds or, where it can do that, on the true ones:
    what is compared then is the graph builders alone."""

    def __post_init__(self) -> None:
        names = [v.name for v in self.variants]
        if not names or len(set(names)) < len(names) or not self.seeds:
            raise ConfigError("A study needs variants of different names, and seeds.")
        wrong = [v.name for k, v in enumerate(self.variants) if v.after and v.after not in names[:k]]
        if wrong:
            raise ConfigError(f"{wrong[0]} starts from a variant that does not stand before it.")
        if len(set(self.seeds)) < len(self.seeds) or not np.isfinite(self.shift):
            raise ConfigError("The seeds of a study differ, and its shift is a length.")
        if min(self.steps, self.test_samples, *(v.steps + 1 for v in self.variants)) < 1:
            raise ConfigError("steps and test_samples must be at least 1.")


class Task(NamedTuple):
    """One run: a variant from one seed."""

    name: str
    seed: int
    train: TrainConfig
    test: str
    test_samples: int
    shift: float
    given: bool

    @property
    def folder(self) -> Path:
        return Path(self.train.out)


def study_tasks(study: StudyConfig, folder: str | Path, out: str | Path) -> list[Task]:
    """The runs of a study, those that others start from first; `folder` is that of the study's own file.

    Raises:
        ConfigError: a configuration that cannot be read.
    """
    tasks = []
    for variant in study.variants:
        usual = config_from_toml(TrainConfig, Path(folder) / variant.config)
        for seed in study.seeds:
            home = Path(out).resolve() / f"{variant.name}_{seed}"
            start = study.start if variant.start is None else variant.start
            if variant.after:
                start = f"{home.with_name(f'{variant.after}_{seed}')}/{variant.after}.safetensors"
            config = replace(
                usual,
                molecules="" if study.stored else study.molecules,
                stored=study.stored.replace("{seed}", str(seed)),
                validation=study.validation,
                out=str(home),
                name=variant.name,
                steps=variant.steps or study.steps,
                start=start,
                seed=seed,
                data=replace(usual.data, seed=seed),
            )
            tasks.append(
                Task(
                    variant.name, seed, config, study.test, study.test_samples, study.shift, study.positions == "given"
                )
            )
    return tasks


def run_study(
    study: StudyConfig, folder: str | Path, out: str | Path, scheduler: str = "", workers: int | None = 0
) -> Iterator[tuple[Task, str]]:
    """Do what is not done yet: each task as it is finished, and what was done ("done", "kept").

    Args:
        study: what is compared.
        folder: of the study's file.
        out: a folder a run.
        scheduler, workers: as of `workers.results`; the same paths must be there on all machines.

    Raises:
        ConfigError: a folder that holds another study. What training raises.
    """
    make_folder(out)
    tasks = study_tasks(study, folder, out)
    if not all((task.folder / "result.json").exists() for task in tasks):  # told now, not after hours
        for file, part in ((study.validation, "validation"), (study.test, "test"), (study.molecules, "train")):
            if file and not (part == "train" and study.stored):
                load_molecules(file, part)
    waves: dict[int, list[Task]] = {}
    depth: dict[str, int] = {}
    for variant in study.variants:  # those that it starts from stand before it
        depth[variant.name] = depth[variant.after] + 1 if variant.after else 0
    for task in tasks:
        waves.setdefault(depth[task.name], []).append(task)
    for _, wave in sorted(waves.items()):
        yield from results(run_task, wave, scheduler, workers)


def run_task(task: Task) -> tuple[Task, str]:
    """Train and judge one run, unless its result is there."""
    path = task.folder / "result.json"
    if path.exists():
        with reading(path, "the result of a study", ConfigError):
            same = _is_of(json.loads(read_text(path, ConfigError)), task)
        if not same:
            raise ConfigError(f"{path} is the result of another study; choose another folder.")
        return task, "kept"
    alone = multiprocessing.current_process().daemon  # a worker of Dask, which may not have processes of its own
    weights = train(replace(task.train, workers=0) if alone else task.train)
    model, _ = load_model(weights)
    result = _about(task) | {"parameters": sum(p.numel() for p in model.parameters())}
    molecules = load_molecules(task.test, "test")
    result |= judge(model, molecules, task.train.data, task.test_samples, task.shift, task.given)
    write_shift_picture(model, f"{task.name}, seed {task.seed}", task.shift, task.folder / "shift.png", task.given)
    write_file(path, f"{json.dumps(result)}\n".encode())
    return task, "done"


def _about(task: Task) -> dict[str, Any]:
    """What a result depends on; where folders and files lie does not matter, only what they are called."""
    config = config_to_dict(task.train)
    files = ("molecules", "stored", "validation", "start")
    config |= {"out": ""} | {name: Path(config[name]).name for name in files}
    judged = {"test": Path(task.test).name, "samples": task.test_samples, "shift": task.shift, "given": task.given}
    return {"name": task.name, "seed": task.seed, "config": config, "judged": judged}


def _is_of(result: dict[str, Any], task: Task) -> bool:
    """Whether a result is this task's. Fields that its configuration lacks are newer: they have their defaults."""
    mine = _about(task)
    try:
        config = config_to_dict(config_from_dict(TrainConfig, result.get("config", {})))
    except ConfigError:
        return False
    return (config, result.get("judged")) == (mine["config"], mine["judged"])
