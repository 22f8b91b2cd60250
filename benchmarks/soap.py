"""SOAP spectra and their gradients a second, beside DScribe and featomic where these are installed.

    python benchmarks/soap.py [--device cuda] [--molecules 1000]

Setting A (l 2, n 3, cut-off 4 A, sigma 1 A, five classes). Run it on a machine that does nothing else. Every figure is
the best of `REPEATS` runs after one that compiles: what else runs on the machine can only slow it down.

What is compared with what. Forward: vectors in DScribe's order, float64. Gradient: ours is the vector-Jacobian product
of a scalar loss over the batch (forward, loss and backward together), DScribe's and featomic's the whole Jacobian, the
only derivative that they offer, forward included. Training needs the product: a loss has one gradient, and a Jacobian
has to be multiplied into it first, on top of the time given here. The Jacobian itself is hundreds of times as much to
compute and to store; who needs it in full is better off with DScribe. featomic defines its radial functions otherwise;
it gets as many of them, and fewer neighbours: those within 4 A.
"""

import argparse
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afmol.soap import SETTING_A, dscribe_vector, expansion
from afmol.soap.atoms import pack

REPEATS = 5
ATOMS = (10, 30, 60)
SLOW_MOLECULES = 10
"""Molecules for the peers' Jacobians; their speed does not depend on it."""
SYMBOLS = np.array(["H", "C", "N", "O", "F"])


def patches(n_atoms: int, n_molecules: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Positions, labels and molecules: the innermost sites of a honeycomb, 1.42 A apart, shaken by 0.15 A."""
    rng = np.random.default_rng(0)
    i, j, basis = np.meshgrid(np.arange(-9, 10), np.arange(-9, 10), [0, 1], indexing="ij")
    x = 2.46 * (i + 0.5 * j).ravel()
    y = (2.46 * np.sqrt(0.75) * j + 1.42 * basis).ravel() - 0.7
    inner = np.argsort(x**2 + y**2, kind="stable")[:n_atoms]
    sites = np.column_stack([x[inner], y[inner], np.zeros(n_atoms)])
    positions = (sites + rng.normal(0, 0.15, (n_molecules, n_atoms, 3))).reshape(-1, 3)
    labels = rng.choice(5, n_molecules * n_atoms, p=[0.4, 0.4, 0.08, 0.08, 0.04])
    molecule = np.repeat(np.arange(n_molecules), n_atoms)
    return torch.from_numpy(positions).to(dtype), torch.from_numpy(labels), torch.from_numpy(molecule)


def seconds(run: Callable[[], object], finish: Callable[[], object] = lambda: None) -> float:
    """Shortest duration of a call, after one that is not counted."""
    run()
    finish()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        finish()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(n_atoms: int, n_molecules: int, dtype: torch.dtype, backend: str, threads: int) -> tuple[float, float]:
    """Centres a second: forward, and loss and gradient."""
    torch.set_num_threads(threads)
    positions, labels, molecule = patches(n_atoms, n_molecules, dtype)
    weights = torch.rand(len(positions), 360, dtype=dtype)

    def forward() -> torch.Tensor:
        return dscribe_vector(positions, labels, molecule, backend=backend)

    def gradient() -> None:
        positions.grad = None
        torch.dot(forward().flatten(), weights.flatten()).backward()

    without = seconds(forward)
    positions.requires_grad_()
    return len(positions) / without, len(positions) / seconds(gradient)


def peak() -> int:
    """Most memory that this process has held so far, bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory(n_atoms: int, n_molecules: int, backend: str, gradient: bool) -> float:
    """Memory that a centre takes at most, bytes, float64; in a process of its own."""

    def run(n: int) -> None:
        positions, labels, molecule = patches(n_atoms, n)
        p = dscribe_vector(positions.requires_grad_(gradient), labels, molecule, backend=backend)
        if gradient:
            p.backward(p.detach())

    torch.set_num_threads(1)
    run(2)
    before = peak()
    run(n_molecules)
    return (peak() - before) / (n_atoms * n_molecules)


_molecules: list[Any] = []
"""The ASE molecules of a process that runs a peer."""


def _prepare(n_atoms: int, n_molecules: int) -> None:
    from ase import Atoms

    torch.set_num_threads(1)
    positions, labels, _ = patches(n_atoms, n_molecules)
    parts = zip(positions.numpy().reshape(-1, n_atoms, 3), labels.numpy().reshape(-1, n_atoms), strict=True)
    _molecules[:] = [Atoms(SYMBOLS[z], x) for x, z in parts]


def _dscribe(gradient: bool) -> None:
    from dscribe.descriptors import SOAP

    a = SETTING_A
    engine = SOAP(species=list(SYMBOLS), r_cut=a.cutoff, n_max=a.n_radial, l_max=a.max_l, sigma=a.sigma, periodic=False)
    for molecule in _molecules:
        engine.derivatives(molecule, method="analytical", attach=True) if gradient else engine.create(molecule)


def _featomic(gradient: bool) -> None:
    # pyrefly: ignore[missing-import]
    from featomic import SoapPowerSpectrum

    a = SETTING_A
    engine = SoapPowerSpectrum(
        cutoff={"radius": a.cutoff, "smoothing": {"type": "Step"}},
        density={"type": "Gaussian", "width": a.sigma, "center_atom_weight": 1.0},
        basis={
            "type": "TensorProduct",
            "max_angular": a.max_l,
            "radial": {"type": "Gto", "max_radial": a.n_radial - 1},
        },
    )
    engine.compute(_molecules, gradients=["positions"] if gradient else [])


def peer(run: Callable[[bool], None], n_atoms: int, n_molecules: int, processes: int, gradient: bool) -> float:
    """Centres a second of a peer in some processes, each with its share of the molecules; results are not sent back."""
    context = multiprocessing.get_context("spawn")
    share = n_molecules // processes
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _prepare, (n_atoms, share))) for _ in range(processes)
        ]
        duration = seconds(lambda: [job.result() for job in [pool.submit(run, gradient) for pool in pools]])
    return n_atoms * share * processes / duration


def table(title: str, rows: dict[str, list[str]]) -> None:
    print(f"\n| {title} | {' | '.join(f'{n} atoms' for n in ATOMS)} |\n|---|{'---|' * len(ATOMS)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def on_the_cpu(n_molecules: int) -> None:
    cores = os.cpu_count() or 1
    rates: dict[str, list[tuple[float, float]]] = {}
    for name, run, processes in (
        *(("DScribe", _dscribe, n) for n in sorted({1, cores})),
        ("featomic", _featomic, 1),  # on all cores by itself
    ):
        if importlib.util.find_spec(name.lower()) is None or importlib.util.find_spec("ase") is None:
            print(f"{name} is left out: it or ASE cannot be imported.")
            continue
        few = SLOW_MOLECULES * processes
        rates[f"{name}, {processes} process{'es' * (processes > 1)}"] = [
            (peer(run, n, n_molecules, processes, False), peer(run, n, few, processes, True)) for n in ATOMS
        ]
    for dtype in (torch.float64, torch.float32):
        for backend, threads in (("torch", cores), *(("numba", n) for n in sorted({1, cores}))):
            name = f"afmol, {backend}, {str(dtype)[6:]}, {threads} thread{'s' * (threads > 1)}"
            rates[name] = [ours(n, n_molecules, dtype, backend, threads) for n in ATOMS]
    titles = (f"forward, 1000 centres/s, {n_molecules} molecules", "gradient, 1000 centres/s")
    for kind, title in enumerate(titles):
        table(title, {name: [f"{rate[kind] / 1000:.1f}" for rate in row] for name, row in rates.items()})
    numba = rates[f"afmol, numba, float64, {cores} thread{'s' * (cores > 1)}"]
    ratios = {}
    for name in ("DScribe", "featomic"):
        others = [row for key, row in rates.items() if key.startswith(name)]
        for kind, what in enumerate(("forward", "gradient")):
            best = [max(row[i][kind] for row in others) for i in range(len(ATOMS))] if others else []
            if best:
                ratios[f"{name}, {what}"] = [f"{own[kind] / b:.1f}" for own, b in zip(numba, best, strict=True)]
    if ratios:
        table(f"numba, float64, {cores} threads, by the peer's best figure", ratios)

    if not Path("/proc/self/status").exists():
        return
    rows = {}
    context = multiprocessing.get_context("spawn")
    for backend in ("torch", "numba"):
        for gradient in (False, True):
            row = []
            for n in ATOMS:
                with ProcessPoolExecutor(1, context) as pool:
                    row.append(f"{pool.submit(memory, n, n_molecules, backend, gradient).result() / 1000:.1f}")
            rows[f"{backend}, {'gradient' if gradient else 'forward'}"] = row
    table("memory, kB a centre, float64 (the vector: 2.9)", rows)


def on_a_device(device: torch.device, n_molecules: int) -> None:
    """The torch path where there are no kernels, plain and compiled."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    block = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    bandwidth = 2 * block.numel() / seconds(block.clone, finish)
    print(f"\n{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print(f"copy: {bandwidth / 1e9:.0f} GB/s, read and written")
    start_up: dict[str, list[str]] = {}
    rows: dict[str, list[str]] = {}
    for dtype in (torch.float64, torch.float32):
        for n in ATOMS:
            positions, labels, molecule = (t.to(device) for t in patches(n, n_molecules, dtype))
            weights = torch.rand(len(positions), 360, dtype=dtype, device=device)
            moved = positions.element_size() * weights.numel() + positions.nbytes + labels.nbytes + molecule.nbytes
            plain = expansion.spectrum_of_centres
            for mode in ("plain", "compiled"):
                torch._dynamo.reset()
                compiled: Any = plain if mode == "plain" else torch.compile(plain)
                setting = expansion.constants(SETTING_A, False, dtype, device)
                atoms = pack(positions, labels, molecule, SETTING_A)
                first, count = (torch.from_numpy(t).to(device) for t in (atoms.first, atoms.count))
                rest = first, count, torch.arange(n, device=device), setting, False

                def forward(x: torch.Tensor, compiled=compiled, atoms=atoms, rest=rest) -> torch.Tensor:
                    centres = torch.arange(len(x), device=x.device)
                    return compiled(x, atoms.probabilities, centres, *rest)

                def gradient(x=positions, forward=forward, weights=weights) -> None:
                    x.grad = None
                    torch.dot(forward(x).flatten(), weights.flatten()).backward()

                begin = time.perf_counter()
                positions.requires_grad_(False)
                forward(positions)
                finish()
                between = time.perf_counter()
                positions.requires_grad_()
                gradient()
                finish()
                end = time.perf_counter()
                key = f"{mode}, {str(dtype)[6:]}"
                start_up.setdefault(key, []).append(f"{between - begin:.1f} + {end - between:.1f}")
                positions.requires_grad_(False)
                t = seconds(lambda forward=forward, x=positions: forward(x), finish)
                rows.setdefault(f"{key}, forward, million centres/s", []).append(f"{len(positions) / t / 1e6:.2f}")
                rows.setdefault(f"{key}, share of bandwidth", []).append(f"{100 * moved / t / bandwidth:.0f} %")
                positions.requires_grad_()
                t = seconds(gradient, finish)
                rows.setdefault(f"{key}, gradient, million centres/s", []).append(f"{len(positions) / t / 1e6:.2f}")
            positions.requires_grad_(False)
            t = seconds(lambda x=positions, z=labels, m=molecule: dscribe_vector(x, z, m, backend="torch"), finish)
            key = f"with checks and chunks, {str(dtype)[6:]}, forward, million centres/s"
            rows.setdefault(key, []).append(f"{len(positions) / t / 1e6:.2f}")
    table(f"torch, {n_molecules} molecules", rows)
    table("first call, s: forward + gradient", start_up)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--device", help="measure torch there too; a GPU is used if there is one")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} before the start")
    on_the_cpu(arguments.molecules)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else None)
    if device:
        on_a_device(torch.device(device), arguments.molecules)


if __name__ == "__main__":
    main()
