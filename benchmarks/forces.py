"""An image and its gradient by each force model, under a tip of three charges and of one; one thread, in turns.

usage: python benchmarks/forces.py [ROUNDS]
"""

import sys
import time

import torch

from afmol.data.chemistry import molecule_from_smiles
from afmol.simulation import FORCES, TIPS, Grid, force_stacks, simulate, standard_heights

PTCDA = "O=C1OC(=O)c2ccc3c4ccc5C(=O)OC(=O)c6ccc(c7ccc1c2c37)c4c56"
CASES = {
    "lennard-jones, 3 charges": ("lennard-jones", "co-quadrupole"),
    "lennard-jones, 1 charge": ("lennard-jones", "co-charge"),
    "exponential, 3 charges": ("exponential", "co-quadrupole"),
    "exponential, 1 charge": ("exponential", "co-charge"),
}


def timed(molecule, force, tip):
    """Seconds of `simulate`, of `force_stacks`, and of its gradient: 128 x 128 pixels, 11 slices."""
    grid = Grid(
        (-8.0, -8.0),
        (16.0, 16.0),
        (128, 128),
        standard_heights(molecule, tip, force.standard_distance, 11, force=force),
    )
    times = [time.perf_counter()]
    simulate(molecule, tip, grid, force=force, parallel=False)
    times.append(time.perf_counter())
    numbers = {
        name: torch.tensor(v, dtype=torch.float32, requires_grad=True)
        for name, v in force.defaults(molecule.numbers).items()
    }
    positions, charges = (
        torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (molecule.positions, molecule.charges)
    )
    owner = torch.zeros(len(molecule), dtype=torch.long)
    times.append(time.perf_counter())
    stack = force_stacks(force, positions, charges, numbers, owner, grid, tip)
    times.append(time.perf_counter())
    loss = stack.square().sum()
    start = time.perf_counter()
    loss.backward()
    return times[1] - times[0], times[3] - times[2], time.perf_counter() - start


def main(rounds="15"):
    """Print the table."""
    torch.set_num_threads(1)
    molecule, best = molecule_from_smiles(PTCDA), {}
    for n in range(int(rounds) + 1):  # the first compiles
        for name, (force, tip) in CASES.items():
            seconds = timed(molecule, FORCES[force], TIPS[tip])
            if n:
                best[name] = tuple(map(min, zip(best.get(name, seconds), seconds, strict=True)))
    first = best[next(iter(CASES))][0]
    print(f"{len(molecule)} atoms, 128 x 128 x 11      simulate  ratio  forward  backward  backward / forward")
    for name, (alone, forward, backward) in best.items():
        times = "  ".join(f"{1e3 * s:6.1f} ms" for s in (alone, forward, backward))
        print(f"{name:26s} {times}  {alone / first:.2f} of the first, {backward / forward:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
