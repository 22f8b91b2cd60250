"""Time of a sample in the loader, beside the original model's preparation, and how long training waits for samples.

    python benchmarks/loader.py molecules.npz [--graph-afm FOLDER] [--train STEPS]

FOLDER is a checkout of https://github.com/SINGROUP/Graph-AFM: its own loader and preprocessing then read a shard of
ours of 128 x 128 x 10 values, the size that they were made for. Nothing of it is needed otherwise.
"""

import argparse
import copy
import json
import os
import random
import sys
import tempfile
import time
import types
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from afmol.data.loader import Batches, Simulated, Stored, loader
from afmol.data.molecules import load_molecules
from afmol.data.samples import DataConfig
from afmol.data.shards import SetConfig, Shard, make, read_shard, shard_bytes
from afmol.training import TrainConfig, train

BATCH = 32
STEPS = 24
"""Batches of which the time is taken, after one to start."""
LARGE = DataConfig(shard_size=192, windows=((128, 128),), pixel=0.125, flat_share=1.0)
"""Stacks of the original's size."""
CLASSES = [[1], [6, 14], [7, 15], [8, 16], [9, 17, 35]]


def milliseconds(batches: Iterable[object], count: int) -> float:
    """ms a sample, from the second batch on."""
    stream = iter(batches)
    next(stream)
    start = time.perf_counter()
    for _ in range(count):
        next(stream)
    return 1000 * (time.perf_counter() - start) / count / BATCH


def row(name: str, source: Simulated | Stored, first: int = 0) -> None:
    """Print the time of a sample with 0, 1 and 2 processes."""
    times = [milliseconds(loader(Batches(source, first + STEPS + 1), first, workers), STEPS) for workers in (0, 1, 2)]
    print(f"| {name} | {' | '.join(f'{t:.2f}' for t in times)} | {1000 / times[-1]:.0f} |", flush=True)


def original(folder: Path, shard: Path) -> None:
    """Print the time of a sample of the original's loader on one of our shards."""
    # Peak finding is compiled and needs a GPU; the preparation of samples uses none of it.
    for name, functions in {
        "c.bindings": ("match_template_pool",),
        "cuda.bindings": ("match_template", "ccl", "find_label_min"),
        "skimage": ("feature", "measure"),
    }.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function, None)
        sys.modules[name] = module
    sys.modules["c"], sys.modules["cuda"] = types.ModuleType("c"), types.ModuleType("cuda")
    sys.path.insert(0, str(folder / "src"))
    import data_loading
    import preprocessing
    import utils

    # It has no bond lengths of iodine.
    whole, _ = read_shard(shard)
    known = [sample for sample in whole.samples() if 53 not in sample.molecule.numbers]
    shard = shard.with_name("known.h5")
    shard.write_bytes(shard_bytes(Shard.of(known, whole.part), {}))

    box = ((0.0, 0.0, -1.5), (16.0, 16.0, 0.5))

    def prepare(batch: tuple) -> tuple:
        """What scripts/train.py does to a batch."""
        images, _, atoms = batch
        preprocessing.add_norm(images)
        preprocessing.add_noise(images, c=0.1, randomize_amplitude=True, normal_amplitude=True)
        preprocessing.rand_shift_xy_trend(images, shift_step_max=0.02, max_shift_total=0.04)
        preprocessing.add_cutout(images, n_holes=5)
        atoms = preprocessing.top_atom_to_zero(atoms)
        bonds = utils.find_bonds(atoms)
        graphs = [utils.MoleculeGraph(a, b, classes=CLASSES) for a, b in zip(atoms, bonds, strict=True)]
        graphs = utils.threshold_atoms_bonds(graphs, -0.8)
        complete = copy.deepcopy(graphs)
        graphs, removed = utils.remove_atoms(graphs, order=None)
        grid = utils.make_position_distribution([g.atoms for g in complete], box, box_res=(0.125, 0.125, 0.1), std=0.25)
        chosen = [random.choice(r)[0] if len(r) > 0 else None for r in removed]
        utils.randomize_atom_positions(chosen, std=[0.2, 0.2, 0.05], cutoff=0.5)
        return images[0], graphs, removed, atoms, complete, grid, chosen, box

    # Its `collate` compares an array with a list, which numpy 2 refuses: left out, in its favour.
    dataset, collate = data_loading.HDF5Dataset(str(shard)), data_loading._collate_wrapper(list, prepare)
    times = [
        milliseconds(DataLoader(dataset, BATCH, True, num_workers=n, collate_fn=collate), len(known) // BATCH - 1)
        for n in (0, 1, 2)
    ]
    print(f"| the original's preparation | {' | '.join(f'{t:.1f}' for t in times)} | {1000 / times[-1]:.0f} |")


def waiting(molecules: str, stored: Path, steps: int, out: Path) -> None:
    """Print the share of its time that a training run at the shipped batch size waits for samples."""
    for name, source in (("made on the fly", {"molecules": molecules}), ("stored", {"stored": str(stored)})):
        run = TrainConfig(**source, out=str(out / name), steps=steps, warm_up=1, accelerator="cpu")
        train(run)
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        print(
            f"{name}: {last['samples_per_second']} samples a second, {100 * last['waiting']:.1f} % of the time waited"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", help="packed set of molecules (.npz)")
    parser.add_argument("--graph-afm", type=Path, help="checkout of Graph-AFM")
    parser.add_argument(
        "--train", type=int, default=0, help="steps of a training run of the shipped size, for its waits"
    )
    options = parser.parse_args()
    molecules = load_molecules(options.molecules, "train")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = SetConfig(options.molecules, BATCH * (STEPS + 2), data=DataConfig(shard_size=BATCH * (STEPS + 2)))
        large = SetConfig(options.molecules, LARGE.shard_size, data=LARGE)
        for config, where in ((small, folder / "small"), (large, folder / "large")):
            list(make(config, where, workers=0))
        print(f"ms a sample, batches of {BATCH}, {os.cpu_count()} cores\n")
        print("| | 0 processes | 1 | 2 | samples a second with 2 |\n|---|---|---|---|---|")
        config = DataConfig()
        row("simulated, 48-64 pixels a side x 10 slices", Simulated(molecules, config, BATCH))
        stored = Stored(folder / "small", BATCH, config.pixel, config.slices)
        row("stored, first epoch", stored)
        row("stored, later epochs: turned, mirrored, cropped", stored, sum(stored.batches))
        row("simulated, 128 x 128 pixels x 10 slices", Simulated(molecules, LARGE, BATCH))
        row("stored, 128 x 128 x 10", Stored(folder / "large", BATCH, LARGE.pixel, LARGE.slices))
        if options.graph_afm:
            original(options.graph_afm, next((folder / "large").glob("*.h5")))
        if options.train:
            torch.set_num_threads(os.cpu_count() or 1)
            print(f"\nTraining, {options.train} steps of {BATCH}, the last 50 measured")
            waiting(options.molecules, folder / "small", options.train, folder)


if __name__ == "__main__":
    main()
