"""Commands for those who train: molecules, dataset, train, study."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import ConfigError
from .use import REQUIRED, Folder, Scheduler, sentence


def molecules(
    sources: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SOURCE [SOURCE ...]", help_behavior_hint=REQUIRED),
    ],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.npz")],
    min_atoms: int = 5,
    max_atoms: int = 100,
    charged: bool = False,
    timeout: float = 10.0,
    validation: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    scheduler: Scheduler = "",
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> None:
    """Build a set of molecules for training: FILE.npz, and FILE_dropped.csv with what was left out and why.

    Example: afmol molecules some.smi -o some.npz --validation 0.2 --test 0.2

    A file to try it with: printf "c1ccncc1\\nc1ccsc1\\nClc1c[nH]cc1\\n" > some.smi

    Sources: .smi, .smiles, .txt (SMILES first in each line), .csv, .tsv (a column named smiles), .sdf, .mol, .xyz, also
    compressed (.gz), and packed sets (.npz). Molecules without a geometry get one. Of near-duplicates (tautomers,
    stereoisomers) the first is kept. Molecules of one scaffold are all for training, all for validation, or all for the
    test. If it is stopped, the same command goes on where it was.

    Args:
        sources: files of molecules.
        out: file to write.
        min_atoms: molecules with fewer atoms are left out; hydrogens count.
        max_atoms: molecules with more atoms are left out, 255 at most.
        charged: take ions as well.
        timeout: most time for one molecule, in seconds.
        validation: share of scaffolds for validation.
        test: share of scaffolds for the test.
        seed: of the geometries.
        scheduler: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
        workers: processes on this machine; its cores if not given, 0 for this process alone.
    """
    from ..data.building import BuildConfig, build_molecules

    config = BuildConfig(min_atoms, max_atoms, charged, timeout, seed, validation, test)
    report = build_molecules(sources, out, config, scheduler=scheduler, workers=workers, progress=True)
    print(f"{report}\n-> {out}")


def train(config: Path, arguments: list[str]) -> None:
    """Train a model from a TOML configuration; any field can be set on the command line.

    Example: afmol train configs/pretrain.toml --molecules some.npz --validation some.npz --steps 100 --out runs/try

    some.npz is a set of molecules: afmol molecules makes one.

    A configuration with [points] is of a SOAP predictor, which learns from random points or parts of molecules; one
    with [spoiled] of the network that tells good stacks from spoiled ones.
    """
    from ..config import config_from_toml, read_toml
    from ..plots import loss_plot
    from ..plots.spectra import epoch_picture
    from ..plots.training import read_metrics
    from ..training import CheckTrainConfig, PointsTrainConfig, TrainConfig, train_check, train_on_points
    from ..training import train as on_images

    has = read_toml(config)
    kind = PointsTrainConfig if "points" in has else CheckTrainConfig if "spoiled" in has else TrainConfig
    chosen = tyro.cli(
        kind,
        prog="afmol train CONFIG",
        description=train.__doc__,
        default=config_from_toml(kind, config),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),  # the kind of model is the configuration's
    )
    match chosen:
        case PointsTrainConfig():
            weights = train_on_points(chosen)
        case CheckTrainConfig():
            weights = train_check(chosen)
        case _:
            weights = on_images(chosen)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several devices' processes; the first tells
        return
    metrics, picture = weights.parent / "metrics.jsonl", weights.parent / "losses.png"
    loss_plot(metrics, picture)
    if isinstance(chosen, PointsTrainConfig):
        epoch_picture(read_metrics(metrics), chosen.steps_of_epoch, weights.parent / "epochs.png", chosen.name)
    print(f"{weights}, {picture}")


def study(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY.toml")],
    /,
    out: Folder,
    scheduler: Scheduler = "",
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
) -> None:
    """Train several configurations, each from several seeds, on the same data, and compare them.

    Example: afmol study configs/asd/study.toml -o study

    Writes a folder for each run, table.csv, table.md, pictures, and report.html to read. If it is stopped, the same
    command goes on where it was: runs that are done are kept, one that was stopped goes on at its last checkpoint.

    Args:
        config: TOML file that lists the configurations, their data and their steps.
        out: folder for the results; made if it does not exist.
        scheduler: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
        workers: processes on this machine, each with a run of its own; 0: one run after another.
    """
    from ..config import config_from_toml
    from ..study import StudyConfig, run_study, study_tasks, write_report

    chosen = config_from_toml(StudyConfig, config)
    tasks = study_tasks(chosen, config.parent, out)
    for number, (task, done) in enumerate(run_study(chosen, config.parent, out, scheduler, workers), 1):
        print(f"{number} of {len(tasks)}: {task.name}, seed {task.seed}: {done}", flush=True)
    print(write_report(chosen, tasks, out))


def dataset_make(config: Path, arguments: list[str]) -> None:
    """Simulate samples and store them: DIR/train_00000.h5 and so on.

    Example: afmol dataset make configs/dataset.toml --molecules some.npz -o samples --samples 2048

    Run it again after a stop: shards that are there and whole are kept. CONFIG is a TOML file; each of its fields can
    be set on the command line.
    """
    from tqdm import tqdm

    from ..config import config_from_toml
    from ..data.shards import SetConfig, make

    usual = config_from_toml(SetConfig, config)

    def command(
        out: Folder,
        chosen: Annotated[SetConfig, tyro.conf.arg(name="")] = usual,
        scheduler: Scheduler = "",
        workers: int | None = None,
    ) -> None:
        """Simulate samples and store them.

        Args:
            out: folder for the shards; made if it does not exist.
            chosen: what they are made from.
            scheduler: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
            workers: processes on this machine; its cores if not given, 0 for this process alone.
        """
        shards = -(-chosen.samples // max(1, chosen.data.shard_size))
        counts: Counter[str] = Counter()
        with tqdm(total=shards * chosen.data.shard_size, unit="sample", delay=1, mininterval=1) as bar:
            for path, done in make(chosen, out, scheduler, workers):
                counts[done] += 1
                bar.update(chosen.data.shard_size)
                if "damaged" in done:
                    tqdm.write(f"{path}: {done}")
        told = (f"{n} shard{'s' * (n > 1)} {done}" for done, n in sorted(counts.items()))
        print(f"{out}: {', '.join(told)}")

    tyro.cli(command, prog="afmol dataset make CONFIG", description=dataset_make.__doc__, args=arguments)


def dataset_check(folder: tyro.conf.Positional[Path]) -> None:
    """Read every shard of a folder and compare its checksum; names the damaged ones and exits with 2.

    Example: afmol dataset check samples

    Args:
        folder: folder of shards.
    """
    from tqdm import tqdm

    from ..data.shards import read_shard, set_origin, shard_files
    from ..errors import ShardError

    files, samples, atoms, bad = shard_files(folder), 0, 0, 0
    origins: dict[str, set[str]] = {}
    for file in tqdm(files, unit="shard", delay=1, mininterval=1):
        try:
            shard, origin = read_shard(file)
        except ShardError as error:
            bad += 1
            tqdm.write(sentence(error), file=sys.stderr)
        else:
            samples += len(shard.images)
            atoms += int((shard.xyz[..., 4] > 0).sum())
            origins.setdefault(shard.part, set()).add(set_origin(origin))
    print(f"{folder}: {len(files) - bad} whole shards, {samples} samples, {atoms} labelled atoms; {bad} damaged")
    for part, found in origins.items():
        if len(found) > 1:
            raise ShardError(f"The {part} shards of {folder} are of {len(found)} configurations; make them anew.")
    if bad:
        sys.exit(2)


def dataset_show(
    source: tyro.conf.Positional[Path],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.png")],
    samples: int = 12,
    first: int = 0,
) -> None:
    """Draw samples with their labels, from stored shards or as a configuration would make them.

    Example: afmol dataset show samples -o samples.png

    Args:
        source: folder of shards, or the TOML file of a set (nothing is stored then).
        out: picture to write (.png, .pdf, .svg).
        samples: how many.
        first: the first of them.
    """
    from ..config import config_from_toml
    from ..data.shards import SetConfig, some_samples
    from ..plots import contact_sheet
    from ..structures import Sample

    if samples < 1 or first < 0:
        raise ConfigError("--samples must be at least 1, --first at least 0.")
    chosen = source if source.is_dir() else config_from_toml(SetConfig, source)
    found = list(some_samples(chosen, first, samples))
    scans = [Sample(replace(s.scan, source=f"sample {first + i}"), s.molecule) for i, s in enumerate(found)]
    numbers = f"{len(found)} samples, {sum(len(atoms) for _, atoms in scans)} labelled atoms, clearest slice of each"
    contact_sheet(scans, out, source.name, numbers)
    print(out)


def dataset_import(
    files: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint=REQUIRED)
    ],
    /,
    out: Folder,
    part: Literal["train", "validation", "test"] = "train",
    window: Annotated[
        tuple[float, float, float, float] | None, tyro.conf.arg(metavar="X_START Y_START X_END Y_END")
    ] = None,
    tip: int = 0,
    surface: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="[ELEMENT ...]", help_behavior_hint="(default: none)")
    ] = (),
    pixel: float = 0.25,
    slices: int = 10,
    shard_size: int = 256,
) -> None:
    """Turn simulated samples of other groups into shards to train on.

    Example: afmol dataset import ice_0.tar ice_1.tar -o samples --surface Cu

    Read are .tar shards of ml-spm (images as PNG, a molecule as .xyz with its scan window) and the .hdf5 sets of
    Graph-AFM, which do not say where they were scanned: give --window 2 2 18 18 for the original data set.

    Args:
        files: .tar or .hdf5 files.
        out: folder for the shards, of which it must hold none yet for the part; made if it does not exist.
        part: of an .hdf5 set, which of its groups; and what the shards are for.
        window: of an .hdf5 set, centres of its first and its last pixel, in Angstrom.
        tip: which tip's images, where there are several; counted from 0.
        surface: elements of the surface below, whose atoms are left out.
        pixel: pixel size of the stored images, in Angstrom.
        slices: of the stored stacks.
        shard_size: samples of a shard.
    """
    from tqdm import tqdm

    from ..data.foreign import read_samples
    from ..data.shards import GROUPS, shard_length, store
    from ..files import atomic_number

    if not files:
        raise ConfigError("Name at least one file; see afmol dataset import --help.")
    if not 0.01 <= pixel <= 1 or min(slices - 2, shard_size) < 1 or tip < 0:
        text = "--pixel must be 0.01 to 1 A, --slices at least 3, --shard-size at least 1, --tip at least 0."
        raise ConfigError(text)
    samples = read_samples(files, GROUPS[part], window, tip, [atomic_number(symbol) for symbol in surface])
    shown = (sample for sample in tqdm(samples, unit="sample", delay=1, mininterval=1))
    written = list(store(shown, out, part, pixel, slices, shard_size))
    print(f"{out}: {sum(map(shard_length, written))} samples in {len(written)} shards")
