"""How many stacks are doubted: good ones, spoiled ones, and things that are no molecules.

    python benchmarks/doubts.py molecules/test.npz [stacks of a kind] [model]

Stacks of the yardstick (CONVENTIONS.md), spoiled by code of its own, not by that which the network learned from
(`afmol.data.spoiled`). With a model, good stacks are read too, and whether any warning is given, and stacks of a wrong
size: whether they are doubted, and the error of the size that is found.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from afmol import predict
from afmol.checkpoint import load_image_model
from afmol.data.bending import lay_down
from afmol.data.molecules import FLAT, MoleculeSet, load_molecules
from afmol.doubts import SENTENCES, image_doubts
from afmol.evaluation import EvaluationConfig, ForceParameters, Shapes, evaluation_samples
from afmol.simulation import TIPS, grid_around, simulate
from afmol.simulation.artefacts import white_noise
from afmol.structures import Scan

SIZE, SHAPE = (16.0, 16.0), (64, 64, 10)
FACTORS = (1 / 1.3, 1 / 1.06, 1.0, 1.06, 1.3)
CONDITIONS: tuple[ForceParameters, ...] = ("nominal", "charged", "random", "measured")
SHAPES: tuple[Shapes, ...] = ("flat", "all")
MANY = 9
"""Visible atoms."""
WHAT = {sentence: kind for kind, sentence in SENTENCES.items()}


def spoiled(scan: Scan, rng: np.random.Generator) -> dict[str, Scan]:
    """A stack as people send it by mistake."""
    d = scan.data
    order = rng.permutation(d.shape[2])
    while abs(np.corrcoef(order, np.arange(d.shape[2]))[0, 1]) > 0.5:
        order = rng.permutation(d.shape[2])
    repeated = np.repeat(d[..., [0, *rng.choice(range(1, d.shape[2]), 4, replace=False)]], 2, axis=2)
    ways = {"reversed": d[..., ::-1], "negated": -d, "shuffled": d[..., order], "slices repeated": repeated}
    return {name: replace(scan, data=data) for name, data in ways.items()}


def xenon(molecules: MoleculeSet, which: np.ndarray, rng: np.random.Generator) -> tuple[Scan, bool]:
    """One of the molecules as a Xe tip images it, and whether it shows many atoms: few look alike by any tip."""
    molecule = lay_down(molecules[int(rng.choice(which))], rng, 5.0)
    scan = simulate(molecule, TIPS["xe"], grid_around(molecule, TIPS["xe"], margin=3.0, pixel=0.125))
    many = np.count_nonzero(molecule.within(0.8)) >= MANY
    return replace(scan, data=white_noise(scan.data, 0.05, rng)), bool(many)


def no_molecules(rng: np.random.Generator) -> dict[str, Scan]:
    """Noise, surfaces and lattices."""
    white = rng.standard_normal(SHAPE)
    grain = gaussian_filter(white[..., 0], rng.uniform(1, 3))
    own = gaussian_filter(rng.standard_normal(SHAPE), (1.5, 1.5, 0))
    x, y = np.meshgrid(*[(np.arange(64) + 0.5) / 4] * 2, indexing="ij")
    planes = 0.3 * np.arange(10) * (rng.normal() * x / 8 + rng.normal() * y / 8)[..., None]
    step = np.tanh((x - 8 - rng.normal()) / rng.uniform(0.3, 1))[..., None]
    angles, period = np.pi / 3 * np.arange(3) + rng.uniform(0, np.pi), rng.uniform(2.3, 5)
    waves = sum(np.cos(2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / period) for a in angles)
    pointed = np.stack([(1 + k) * np.exp(0.1 * k * waves) for k in range(1, 11)], -1)
    stacks = {
        "white noise": white,
        "noise, smoothed in the plane": gaussian_filter(white, (2, 2, 0)),
        "noise, smoothed in height too": gaussian_filter(white, (2, 2, 1.5)),
        "one pattern, growing": (1 + 0.1 * np.arange(10)) * (grain / grain.std())[..., None] + own / own.std() / 5,
        "bare, tilted": planes + white,
        "a step": step + 0.1 * white,
        "lattice": pointed + 0.05 * white,
    }
    return {name: Scan(data, SIZE) for name, data in stacks.items()}


def all_stacks(molecules: MoleculeSet, count: int) -> Iterator[tuple[str, Scan]]:
    """Stacks with their names."""
    config = EvaluationConfig(count, seed=5)
    flat = np.flatnonzero(molecules.flatness < FLAT)
    for conditions in CONDITIONS:
        for shapes in SHAPES:
            for k, sample in enumerate(evaluation_samples(molecules, shapes, conditions, config)):
                rng = np.random.default_rng((5, k))
                yield f"good, {shapes}, {conditions}", sample.scan
                if conditions in ("nominal", "measured"):
                    yield from ((f"{n}, {shapes}, {conditions}", s) for n, s in spoiled(sample.scan, rng).items())
                if conditions == "nominal":
                    scan, many = xenon(molecules, flat if shapes == "flat" else np.arange(len(molecules)), rng)
                    yield f"Xe tip, {shapes}, {f'{MANY} or more' if many else 'fewer'} atoms", scan
    for k in range(count):
        yield from no_molecules(np.random.default_rng((6, k))).items()


def main(data: str, count: int = 100, model: str = "") -> None:
    """Print what is doubted, and how sizes are found."""
    molecules = load_molecules(data, "test")
    said: dict[str, Counter[str]] = {}
    for name, scan in all_stacks(molecules, count):
        doubts = image_doubts(scan)
        said.setdefault(name, Counter())[WHAT.get(doubts[0], "repeated") if doubts else "good"] += 1
    for name, kinds in said.items():
        print(f"{name:36} doubted {1 - kinds['good'] / kinds.total():.3f}  {dict(kinds.most_common())}")
    if model:
        good(molecules, count, model)
        sizes(molecules, count, model)


def good(molecules: MoleculeSet, count: int, model: str) -> None:
    """How many good stacks are warned of when they are read, for their images or for their size."""
    network, config, said = load_image_model(model)[0], EvaluationConfig(count, seed=5), Counter[str]()
    for conditions in CONDITIONS:
        for shapes in SHAPES:
            for scan, _ in evaluation_samples(molecules, shapes, conditions, config):
                warnings = predict(scan, network).warnings
                kinds = [WHAT.get(w, "size" if "size" in w else "repeated") for w in warnings]
                said[" and ".join(kinds) or "nothing"] += 1
    print(f"good stacks, read: warned of {1 - said['nothing'] / said.total():.4f}  {dict(said.most_common())}")


def sizes(molecules: MoleculeSet, count: int, model: str) -> None:
    """How stacks of a wrong size are read."""
    network, config = load_image_model(model)[0], EvaluationConfig(count, seed=5)
    for conditions in ("nominal", "measured"):
        scans = [sample.scan for sample in evaluation_samples(molecules, "flat", conditions, config)]
        for factor in FACTORS:
            doubted, errors = 0, []
            for scan in tqdm(scans, desc=f"size x {factor:.2f}", mininterval=1):
                found = predict(replace(scan, size=(scan.size[0] * factor, scan.size[1] * factor)), network)
                doubted += any("bonds are" in warning for warning in found.warnings)
                errors.append(np.log((found.stretch or np.nan) / factor))
            low, middle, high = np.nanquantile(errors, (0.16, 0.5, 0.84))
            print(
                f"size x {factor:.2f}, flat, {conditions}: doubted {doubted / len(scans):.3f}, ln (found / true size) "
                f"{middle:+.3f} ({low:+.3f} to {high:+.3f}), within 1.5 %: {np.mean(np.abs(errors) < 0.015):.3f}"
            )


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:4])
