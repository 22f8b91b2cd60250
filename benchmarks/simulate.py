"""How fast images, gradients and training samples are made, beside ppafm's OpenCL engine where that is installed.

    python benchmarks/simulate.py [MOLECULES.npz] [--reference FOLDER] [--plot FILE.png]

MOLECULES.npz is a packed set of molecules for the samples; without it they are made of the flat patches below. FOLDER
holds simulations with exact forces, against which errors are given. Run it on a machine that does nothing else; each
figure is the best of `REPEATS` runs after one that compiles: what else runs can only slow it down.
"""

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from afmol.data.molecules import MoleculeSet, load_molecules, pack_molecules
from afmol.data.samples import DataConfig, make_sample
from afmol.elements import bonds_by_distance, table
from afmol.simulation import FORCES, TIPS, Grid, Tip, simulate, stacks
from afmol.structures import Molecule

REPEATS = 9
ATOMS = (12, 27, 38)
PIXELS = 128
SLICES = 11
"""With the ten steps of an oscillation, 20 heights at which forces are needed."""
SAMPLES = 400
BATCH = 100
"""Molecules for which the memory is measured."""
DENSITIES = (20, 10)
"""Grid points an Angstrom of ppafm."""
SCALING_ATOMS = (5, 10, 20, 40, 80)
SCALING_PIXELS = (16, 32, 64, 128, 256)
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


def milliseconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Shortest duration of a call, ms, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def grid_of(pixels: int = PIXELS, slices: int = SLICES) -> Grid:
    """The 16 x 16 A in the middle of which patches lie."""
    heights = TIP_HEIGHT - 0.1 * np.arange(20 - slices, 20)
    return Grid((2.0, 2.0), (16.0, 16.0), (pixels, pixels), heights)


def packed(molecules: list[Molecule], device: str = "cpu") -> list[torch.Tensor]:
    """What `stacks` wants of some molecules, float32."""
    numbers = np.concatenate([m.numbers for m in molecules])
    values = (
        np.concatenate([m.positions for m in molecules]),
        np.concatenate([m.charges for m in molecules if m.charges is not None]),
        *(table(name)[numbers] for name in ("lj_radius", "lj_depth")),
    )
    owner = np.repeat(np.arange(len(molecules)), [len(m) for m in molecules])
    return [*(torch.tensor(v, dtype=torch.float32, device=device) for v in values), torch.tensor(owner)]


def gradient_times(molecule: Molecule) -> tuple[float, float]:
    """A stack without a gradient, and the gradient by all that belongs to the atoms, one thread, ms."""
    *atoms, owner = packed([molecule])
    atoms = [a.requires_grad_() for a in atoms]
    where, weights = grid_of(), torch.randn(1, PIXELS, PIXELS, SLICES)
    with torch.no_grad():
        forward = milliseconds(lambda: stacks(*atoms, owner, where))
    out = (stacks(*atoms, owner, where) * weights).sum()
    return forward, milliseconds(lambda: torch.autograd.grad(out, atoms, retain_graph=True))


def batch_memory(backend: str) -> None:
    """Print the seconds and the peak memory of BATCH molecules, forward and backward, by one engine."""
    molecules = [patch(int(n), seed) for seed, n in enumerate(np.linspace(12, 38, BATCH))]
    positions, *rest = packed(molecules)
    positions.requires_grad_()
    for name, n in (("compile", 1), ("measure", BATCH)):
        count = sum(len(m) for m in molecules[:n])
        start = time.perf_counter()
        out = stacks(positions[:count], *(t[:count] for t in rest), [grid_of()] * n, backend=backend)
        middle = time.perf_counter()
        out.square().mean().backward()
        end = time.perf_counter()
        if name == "measure":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"forward {middle - start:.1f} s, backward {end - middle:.1f} s, peak {peak:.2f} GiB of the process")


def scaling() -> tuple[list[float], list[float]]:
    """ms an image, one thread: by atoms at 64 x 64 pixels, by pixels a side with 27 atoms."""
    by_atoms = [patch(n) for n in SCALING_ATOMS]
    middle = patch(27)
    return (
        [milliseconds(lambda m=m: simulate(m, Tip(), grid_of(64), parallel=False)) for m in by_atoms],
        [milliseconds(lambda n=n: simulate(middle, Tip(), grid_of(n), parallel=False)) for n in SCALING_PIXELS],
    )


def plot_scaling(times: tuple[list[float], list[float]], path: str) -> None:
    """Cost against atoms and pixels as a picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    what = ((SCALING_ATOMS, "atoms, 64 x 64 pixels"), (np.square(SCALING_PIXELS), "pixels, 27 atoms"))
    for axis, (x, label), y in zip(axes, what, times, strict=True):
        axis.loglog(x, y, "o-")
        axis.loglog(x, y[-1] * np.asarray(x) / x[-1], ":", color="grey", label="proportional")
        axis.set_xticks(x, labels=[str(n) for n in x])
        axis.minorticks_off()
        axis.set(xlabel=label, ylabel="ms an image, one thread")
        axis.legend()
    figure.savefig(path, dpi=150)


def gpu_rates() -> None:
    """Print images a second of the torch engine on a GPU."""
    for pixels, n in ((64, 32), (PIXELS, 8)):
        *atoms, owner = packed([patch(27, seed) for seed in range(n)], "cuda")
        positions = atoms[0].requires_grad_()
        where = [grid_of(pixels)] * n

        def forward(atoms=atoms, owner=owner, where=where) -> torch.Tensor:
            out = stacks(*atoms, owner, where)
            torch.cuda.synchronize()
            return out

        def both(forward=forward, positions=positions) -> None:
            torch.autograd.grad(forward().sum(), positions)
            torch.cuda.synchronize()

        without, gradient = (n / milliseconds(run, 3) * 1000 for run in (forward, both))
        print(f"{pixels} x {pixels}: {without:.1f} images a second, {gradient:.1f} with their gradients")


def share_off(stack: np.ndarray, exact: np.ndarray) -> float:
    """99.9th percentile of the error over the slice's range, worst slice, %."""
    return float((100 * np.percentile(np.abs(stack - exact), 99.9, axis=(0, 1)) / np.ptp(exact, axis=(0, 1))).max())


def print_errors(folder: Path, densities: tuple[int, ...]) -> None:
    """Print a table of errors against exact simulations, of ours and of ppafm at some densities."""
    rows: dict[str, list[float]] = {"afmol, float32": [], "afmol, float64": []}
    paths = sorted(folder.glob("*.npz"))
    for path in paths:
        with np.load(path) as stored:
            exact, x = stored["analytic_df_hz"].astype(float), stored["scan_x"]
            molecule = Molecule(stored["xyz"], stored["Z"], np.zeros((0, 2), int), stored["q"].astype(float))
            heights = stored["tip_z"][9:].astype(float)
        step = (x[-1] - x[0]) / (len(x) - 1)
        corner, length = float(x[0] - step / 2), float(len(x) * step)
        where = Grid((corner, corner), (length, length), (len(x), len(x)), heights)
        rows["afmol, float32"].append(share_off(simulate(molecule, Tip(), where).data, exact))
        rows["afmol, float64"].append(share_off(simulate(molecule, Tip(), where, dtype=np.float64).data, exact))
        for density in densities:
            stack = ppafm_engine(density)(molecule.positions, molecule.numbers, molecule.charges)
            rows.setdefault(f"ppafm OpenCL, {density} points an A", []).append(share_off(stack, exact))
    print(f"\n99.9th percentile of the error, % of the range, worst slice\n\n| | {' | '.join(p.stem for p in paths)} |")
    print(f"|---|{'---|' * len(paths)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.5f}' for value in row)} |")


def image_times(molecule: Molecule, force: str = "lennard-jones", tip: str = "co-quadrupole") -> tuple[float, float]:
    """One image, serial and parallel, ms, as far away as images of that force model are taken."""
    model, grid = FORCES[force], grid_of()
    closer = FORCES["lennard-jones"].standard_distance - model.standard_distance
    grid = replace(grid, heights=grid.heights - closer)
    serial, parallel = (
        milliseconds(lambda parallel=parallel: simulate(molecule, TIPS[tip], grid, force=model, parallel=parallel))
        for parallel in (False, True)
    )
    return serial, parallel


def ppafm_engine(density: int) -> Callable:
    """ppafm's OpenCL engine for these images, `density` grid points an Angstrom."""
    # pyrefly: ignore[missing-import]
    from ppafm.ocl import oclUtils

    # pyrefly: ignore[missing-import]
    from ppafm.ocl.AFMulator import AFMulator

    oclUtils.init_env(0)
    tip = Tip()
    return AFMulator(
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


def ppafm_times(molecules: list[Molecule], density: int) -> list[float]:
    """The same images by ppafm, ms each."""
    engine = ppafm_engine(density)
    return [milliseconds(lambda m=m: engine(m.positions, m.numbers, m.charges), 2) for m in molecules]


def samples_a_second(molecules: MoleculeSet, threads: int = 2) -> float:
    """Spoiled samples of 64 x 64 pixels that `threads` threads make a second."""
    config = DataConfig(windows=((64, 64),))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: make_sample(molecules, config, i), range(20)))
        start = time.perf_counter()
        list(pool.map(lambda i: make_sample(molecules, config, i), range(SAMPLES)))
        return SAMPLES / (time.perf_counter() - start)


def made_up(folder: Path) -> MoleculeSet:
    """A packed set of 50 patches of 12 to 38 atoms."""
    patches = [patch(int(n), seed) for seed, n in enumerate(np.linspace(12, 38, 50))]
    pack_molecules(patches, folder / "patches.npz")
    return load_molecules(folder / "patches.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", nargs="?", help="packed set of molecules (.npz) for the samples")
    parser.add_argument("--reference", type=Path, help="folder of exact simulations, for the errors")
    parser.add_argument("--plot", help="picture of the cost against atoms and pixels")
    parser.add_argument("--memory", choices=("numba", "torch"), help="only the memory of an engine, in this process")
    options = parser.parse_args()
    if options.memory:
        batch_memory(options.memory)
        return
    molecules = [patch(n) for n in ATOMS]

    print(f"{PIXELS} x {PIXELS} pixels x 20 force heights, ms an image, {os.cpu_count()} cores\n")
    print(f"| engine | {' | '.join(f'{n} atoms' for n in ATOMS)} |")
    print(f"|---|{'---|' * len(ATOMS)}")
    times = np.array([image_times(m) for m in molecules])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gradients = np.array([gradient_times(m) for m in molecules])
    torch.set_num_threads(threads)
    exponentials = {
        f"afmol, exponentials, {charges}, all cores": np.array([image_times(m, "exponential", t)[1] for m in molecules])
        for charges, t in (("3 charges", "co-quadrupole"), ("1 charge", "co-charge"))
    }
    rows = [
        ("afmol, one thread", times[:, 0]),
        ("afmol, all cores", times[:, 1]),
        ("afmol, stacks, one thread", gradients[:, 0]),
        ("and the gradient by all of the atoms", gradients[:, 1]),
    ]
    missing = [name for name in ("ppafm", "pyopencl") if importlib.util.find_spec(name) is None]
    densities = () if missing else DENSITIES
    slower = [(f"ppafm OpenCL, {d} points an A", np.array(ppafm_times(molecules, d))) for d in densities]
    rows += [*exponentials.items(), *slower]
    for name, row in rows:
        print(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in row)} |")
    print(f"\nBackward over forward: {', '.join(f'{b / f:.2f}' for f, b in gradients)}")
    for name, row in slower:
        for ours, own in {"afmol, Lennard-Jones": times[:, 1], **exponentials}.items():
            print(f"{name}, over {ours}: {', '.join(f'{r:.0f}' for r in row / own)}")
    if missing:
        print(f"\nppafm's OpenCL engine is left out: {' and '.join(missing)} cannot be imported.")
    if options.reference:
        print_errors(options.reference, densities)

    print(f"\n{BATCH} molecules of 12 to 38 atoms, {PIXELS} x {PIXELS} x 20: ", end="", flush=True)
    subprocess.run([sys.executable, __file__, "--memory", "numba"], check=True)

    cost = scaling()
    print("\nms an image of 20 heights, one thread")
    for label, x, y in (
        ("atoms, 64 x 64", SCALING_ATOMS, cost[0]),
        ("pixels a side, 27 atoms", SCALING_PIXELS, cost[1]),
    ):
        print(f"{label}: {', '.join(f'{n}: {ms:.2f}' for n, ms in zip(x, y, strict=True))}")
    if options.plot:
        plot_scaling(cost, options.plot)
    if torch.cuda.is_available():
        print(f"\ntorch on {torch.cuda.get_device_name()}, 27 atoms, float32")
        gpu_rates()

    small = grid_of(64, 10)
    rate = 1000 / milliseconds(lambda: simulate(molecules[1], Tip(), small, parallel=False))
    print(f"\nImages of 64 x 64 pixels x 10 slices, 27 atoms, one thread: {rate:.0f} a second")
    with tempfile.TemporaryDirectory() as folder:
        source = load_molecules(options.molecules) if options.molecules else made_up(Path(folder))
        rate = samples_a_second(source)
    name = options.molecules or "made-up molecules"
    print(f"Training samples of 64 x 64 pixels on two threads, {name}: {rate:.0f} a second")


if __name__ == "__main__":
    main()
