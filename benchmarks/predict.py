"""What a prediction costs: parameters and work of a model, seconds once it is loaded, and those of the command from
the shell to its files.

usage: python benchmarks/predict.py [MODEL ...]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from afmol.checkpoint import load_image_model
from afmol.data.bending import lay_down
from afmol.data.chemistry import molecule_from_smiles
from afmol.files import write_scan
from afmol.prediction import predict
from afmol.simulation import TIPS, Grid, simulate, standard_heights

REPEATS = 9


def stack_of_128_pixels():
    """Anthraquinone, 128 x 128 x 10, 16 x 16 A."""
    molecule = lay_down(molecule_from_smiles("O=C1c2ccccc2C(=O)c2ccccc12"), np.random.default_rng(0), tilt=0.0)
    heights = standard_heights(molecule, TIPS["co-quadrupole"], 2.97)
    return simulate(molecule, TIPS["co-quadrupole"], Grid((-8.0, -8.0), (16.0, 16.0), (128, 128), heights))


def timed(what, function):
    """Print shortest and median time of REPEATS calls, after one that does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    print(f"{what:36s} {min(times):.3f} s shortest, {sorted(times)[REPEATS // 2]:.3f} s median")


def main(*models):
    """Print what each costs."""
    scan = stack_of_128_pixels()
    for name in models or ("measured", "base", "asd"):
        network, _ = load_image_model(name)
        with FlopCounterMode(display=False) as one, torch.no_grad():
            maps = network.posnet(torch.zeros(1, network.config.slices, 64, 64)) if hasattr(network, "posnet") else None
        with FlopCounterMode(display=False) as all_of_it:
            predict(scan, network)
        view = "" if maps is None else f"{one.get_total_flops() / 1e9:.2f} GFLOP for the maps of one view, "
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{name}: {parameters:.2f} M parameters, {view}{all_of_it.get_total_flops() / 1e9:.1f} for a prediction")
        timed("model loaded, 128 x 128 x 10", lambda network=network: predict(scan, network))
        with tempfile.TemporaryDirectory() as folder:
            stack = Path(folder) / "stack.npz"
            write_scan(scan, stack)
            command = [Path(sys.executable).with_name("afmol"), "predict", stack, "-o", folder, "--model", name]
            timed(
                "afmol predict, shell to its files",
                lambda c=command: subprocess.run(c, check=True, capture_output=True),
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
