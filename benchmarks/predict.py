"""How long a prediction takes: once the model is loaded, and as a command from the shell to its files.

usage: python benchmarks/predict.py [MODEL]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from afmol.checkpoint import DEFAULT_MODEL, load_model
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


def main(model=DEFAULT_MODEL):
    """Print the table."""
    scan = stack_of_128_pixels()
    network, _ = load_model(model)
    timed("model loaded, 128 x 128 x 10", lambda: predict(scan, network))
    with tempfile.TemporaryDirectory() as folder:
        stack = Path(folder) / "stack.npz"
        write_scan(scan, stack)
        command = [Path(sys.executable).with_name("afmol"), "predict", stack, "-o", folder, "--model", model]
        timed("afmol predict, shell to four files", lambda: subprocess.run(command, check=True, capture_output=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
