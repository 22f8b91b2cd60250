"""How fast images and training samples are made, beside ppafm's OpenCL engine where that is installed.

    python benchmarks/simulate.py [MOLECULES.npz]

MOLECULES.npz is a packed set of molecules for the samples; without it they are made of the flat patches below. Run it
on a machine that does nothing else; each figure is the median of `REPEATS` runs after one that compiles.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from afmol.chemistry import MoleculeSet, load_molecules, pack_molecules
from afmol.dataset import DataConfig, make_sample
from afmol.elements import bonds_by_distance, table
from afmol.simulation import Grid, Tip, simulate
from afmol.structures import Molecule

REPEATS = 9
ATOMS = (12, 27, 38)
PIXELS = 128
SLICES = 11
"""With the ten steps of an oscillation, 20 heights at which forces are needed."""
SAMPLES = 400
TIP_HEIGHT, DISTANCE_ABOVE = 8.0, 5.3
"""A, as in the original data set: the farthest tip height, and the tip's end above the topmost atom's surface there."""


def patch(n: int, seed: int = 0) -> Molecule:
    """The innermost n sites of a honeycomb: the outer third hydrogen, among the others one nitrogen or oxygen in four.

    Placed as the original data set does, for tip heights from TIP_HEIGHT down.
    """
    rng = np.random.default_rng(seed)
    i, j, basis = np.meshgrid(np.arange(-6, 7), np.arange(-6, 7), [0, 1], indexing="ij")
    x = 2.46 * (i + 0.5 * j).ravel()
    y = (2.46 * np.sqrt(0.75) * j + 1.42 * basis).ravel() - 0.7
    inner = np.argsort(x**2 + y**2, kind="stable")[:n]
    numbers = rng.choice([6, 7, 8], n, p=[0.75, 0.15, 0.1])
    numbers[-n // 3 :] = 1
    z = TIP_HEIGHT - DISTANCE_ABOVE - Tip().probe_radius - table("lj_radius")[numbers].max()
    positions = np.column_stack([x[inner], y[inner], np.full(n, z)])
    positions[:, :2] += 10 - positions[:, :2].mean(0)
    charges = rng.normal(0, 0.1, n)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), charges - charges.mean(), name=f"{n}")


def milliseconds(run: Callable[[], object]) -> float:
    """Median duration of a call, ms, after one that is not counted."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def image_times(molecule: Molecule) -> tuple[float, float]:
    """One image, serial and parallel, ms."""
    heights = TIP_HEIGHT - 0.1 * np.arange(9, 9 + SLICES)
    grid = Grid((2.0, 2.0), (16.0, 16.0), (PIXELS, PIXELS), heights)
    serial, parallel = (
        milliseconds(lambda parallel=parallel: simulate(molecule, Tip(), grid, parallel=parallel))
        for parallel in (False, True)
    )
    return serial, parallel


def ppafm_times(molecules: list[Molecule], density: int) -> list[float]:
    """The same images by ppafm, OpenCL, `density` grid points an Angstrom, ms each."""
    # pyrefly: ignore[missing-import]
    from ppafm.ocl import oclUtils

    # pyrefly: ignore[missing-import]
    from ppafm.ocl.AFMulator import AFMulator

    oclUtils.init_env(0)
    tip = Tip()
    engine = AFMulator(
        pixPerAngstrome=density,
        lvec=np.array([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 5]]),
        scan_dim=(PIXELS, PIXELS, SLICES + tip.steps - 1),
        scan_window=((2.0, 2.0, TIP_HEIGHT - 0.1 * (SLICES + tip.steps - 1)), (18.0, 18.0, TIP_HEIGHT)),
        Qs=[*tip.charges, 0],
        QZs=[*tip.charge_offsets, 0],
        df_steps=tip.steps,
        tipR0=[0.0, 0.0, tip.bond_length],
        tipStiffness=[tip.stiffness, tip.stiffness, 0.0, tip.radial_stiffness],
        npbc=(0, 0, 0),
        f0Cantilever=tip.frequency,
        kCantilever=tip.cantilever_stiffness,
    )
    return [milliseconds(lambda m=m: engine(m.positions, m.numbers, m.charges)) for m in molecules]


def samples_a_second(molecules: MoleculeSet, threads: int = 2) -> float:
    """Spoiled samples of 64 x 64 pixels that `threads` threads make a second."""
    config = DataConfig(windows=((64, 64),))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: make_sample(molecules, config, i, 32), range(20)))
        start = time.perf_counter()
        list(pool.map(lambda i: make_sample(molecules, config, i, 32), range(SAMPLES)))
        return SAMPLES / (time.perf_counter() - start)


def made_up(folder: Path) -> MoleculeSet:
    """A packed set of 50 patches of 12 to 38 atoms."""
    patches = [patch(int(n), seed) for seed, n in enumerate(np.linspace(12, 38, 50))]
    pack_molecules(patches, folder / "patches.npz")
    return load_molecules(folder / "patches.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", nargs="?", help="packed set of molecules (.npz) for the samples")
    path = parser.parse_args().molecules
    molecules = [patch(n) for n in ATOMS]

    print(f"{PIXELS} x {PIXELS} pixels x 20 force heights, ms an image, {os.cpu_count()} cores\n")
    print(f"| engine | {' | '.join(f'{n} atoms' for n in ATOMS)} |")
    print(f"|---|{'---|' * len(ATOMS)}")
    times = np.array([image_times(m) for m in molecules])
    rows = [("afmol, one thread", times[:, 0]), ("afmol, all cores", times[:, 1])]
    missing = [name for name in ("ppafm", "pyopencl") if importlib.util.find_spec(name) is None]
    if not missing:
        rows += [(f"ppafm OpenCL, {d} points an A", np.array(ppafm_times(molecules, d))) for d in (20, 10)]
    for name, row in rows:
        print(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in row)} |")
    if missing:
        print(f"\nppafm's OpenCL engine is left out: {' and '.join(missing)} cannot be imported.")

    with tempfile.TemporaryDirectory() as folder:
        source = load_molecules(path) if path else made_up(Path(folder))
        rate = samples_a_second(source)
    print(f"\nTraining samples of 64 x 64 pixels on two threads, {path or 'made-up molecules'}: {rate:.0f} a second")


if __name__ == "__main__":
    main()
