"""Time of the ASD model for a molecule of 30 atoms, 128 x 128 x 10: the U-Net, the peaks, the graph builder's steps.

usage: python benchmarks/asd.py [THREADS]

The weights are random ones, the atoms are put where a training molecule's might be: the time is that of any others.
"""

import sys
import time

import torch

from afmol.model import AsdConfig, build
from afmol.model.asd.grid import position_grid
from afmol.model.asd.peaks import find_peaks

REPEATS, ATOMS, SIDE = 9, 30, 128


def median(function):
    """Median time of REPEATS calls, s, after one that does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


@torch.no_grad()
def main(threads="2"):
    """Print the table."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = build(AsdConfig()).eval()
    images = torch.randn(1, 10, SIDE, SIDE)
    k = torch.arange(ATOMS)
    positions = torch.stack([4.0 + 1.4 * (k % 6), 4.0 + 1.5 * (k // 6), -0.1 * (k % 5)], dim=1)
    image = torch.zeros(ATOMS, dtype=torch.long)
    grid = position_grid(positions, image, 1, (SIDE, SIDE), model.config.pixel)
    found, _, _ = find_peaks(grid, model.config.pixel)
    assert len(found) == ATOMS
    maps = model.unet.encode(images)
    parts = {
        "U-Net, down": median(lambda: model.unet.encode(images)),
        "U-Net, up": median(lambda: model.unet.decode(maps)),
        "peaks": median(lambda: find_peaks(grid, model.config.pixel)),
        f"{ATOMS} steps of the graph builder": median(lambda: model.grow(images, positions, image)),
    }
    parts[f"{ATOMS} steps of the graph builder"] -= parts["U-Net, down"]  # which `grow` does too
    for name, seconds in (parts | {"all": sum(parts.values())}).items():
        print(f"{name:32s} {seconds:.3f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
