"""Whether figures move when the molecule is moved by 2 A in the image, turned by any angle, or mirrored.

    python benchmarks/invariance.py molecules/test.npz [molecules] [nominal|charged|random|measured] [model]

Flat molecules of the yardstick (CONVENTIONS.md), 5 A of room around them. Moved ones are other parts of the same image,
noise and all, mirrored ones the same pixels the other way round; turned ones are simulated anew with other noise, and
"other noise" says what that alone does. "cut to 3 A of room" is the same image with less around the molecule.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from tqdm import tqdm

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.conditions import simulate_sample
from afmol.data.molecules import FLAT, load_molecules
from afmol.evaluation import AT_ONCE, YARDSTICK, drawn
from afmol.metrics import Comparison, compare, summary
from afmol.prediction import predict_many
from afmol.simulation.artefacts import white_noise
from afmol.structures import Molecule, Sample, Scan

PIXEL, ROOM, MOVE = YARDSTICK.pixel, 40, 16
"""A; pixels around the molecule, and of a move of 2 A."""
ANGLES = (10, 45, 100, 200)
FIGURES = ("precision", "recall", "class_accuracy", "bond_f1", "exact_graph_rate", "xy_error", "z_error")


def part(whole: Sample, x: int = 0, y: int = 0, rim: int = MOVE) -> Sample:
    """The image without a rim of some pixels, that part of it moved by (x, y) pixels."""
    scan, truth = whole
    x, y = rim + x, rim + y
    nx, ny = (n - 2 * rim for n in scan.data.shape[:2])
    data = scan.data[x : x + nx, y : y + ny]
    positions = truth.positions - [x * PIXEL, y * PIXEL, 0.0]
    return Sample(replace(scan, data=data, size=(nx * PIXEL, ny * PIXEL)), replace(truth, positions=positions))


def mirrored(sample: Sample) -> Sample:
    """x the other way round."""
    scan, truth = sample
    positions = [scan.size[0], 0.0, 0.0] + truth.positions * [-1, 1, 1]
    return Sample(replace(scan, data=scan.data[::-1]), replace(truth, positions=positions))


def views(molecule: Molecule, how, noise: np.random.Generator) -> Iterator[tuple[str, Sample]]:
    """Each kind of image of a molecule that has been laid down."""
    for angle in (0, *ANGLES):
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turned = molecule.positions @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        low = turned[:, :2].min(0) - (ROOM + MOVE) * PIXEL
        nx, ny = (np.ceil(np.ptp(turned[:, :2], axis=0) / PIXEL).astype(int) + 2 * (ROOM + MOVE)).tolist()
        clean = simulate_sample(replace(molecule, positions=turned), how, tuple(low), (nx, ny), PIXEL)
        truth = replace(molecule, positions=turned - [*low, 0.0])

        def noisy(clean: Scan = clean, truth: Molecule = truth) -> Sample:
            return Sample(replace(clean, data=white_noise(clean.data, YARDSTICK.noise, noise)), truth)

        whole = noisy()
        if angle:
            yield f"turned by {angle} degrees", part(whole)
            continue
        yield "as it is", part(whole)
        for x, y in ((MOVE, 0), (0, -MOVE), (-11, 11)):
            yield f"moved by {-x * PIXEL:g}, {-y * PIXEL:g} A", part(whole, x, y)
        yield "mirrored", mirrored(part(whole))
        yield "cut to 3 A of room", part(whole, rim=2 * MOVE)
        yield "other noise", part(noisy())


def main(data: str, count: int = 600, conditions: str = "nominal", model: str = DEFAULT_MODEL) -> None:
    """Print a table."""
    network, name = load_image_model(model)
    molecules = load_molecules(data, "test")
    chosen = np.random.default_rng((0, 0)).permutation(np.flatnonzero(molecules.flatness < FLAT))[:count]
    counts: dict[str, Comparison] = {}

    def samples() -> Iterator[tuple[str, Sample]]:
        for i in tqdm(chosen.tolist(), mininterval=1):
            rng = np.random.default_rng((0, 1, i))
            yield from views(*drawn(molecules[i], conditions, rng), rng)

    rest = samples()
    while chunk := list(islice(rest, AT_ONCE)):
        found = predict_many([scan for _, (scan, _) in chunk], network)
        for molecule, (what, (_, truth)) in zip(found, chunk, strict=True):
            counts[what] = counts.get(what, Comparison()) + compare(molecule, truth, truth.within(network.config.depth))

    print(f"{name}: {len(chosen)} flat molecules, {conditions}; {', '.join(FIGURES)}; largest change in points")
    figures = {what: np.array([summary(c)[key] for key in FIGURES]) for what, c in counts.items()}
    first = figures["as it is"]
    for what, row in figures.items():
        change = 100 * np.abs(row - first)[:5].max()
        print(f"{what:24}" + " ".join(f"{x:.4f}" for x in row) + f"  {change:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:])
