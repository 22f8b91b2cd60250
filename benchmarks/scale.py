"""What a wrong size of the stack does, and what reading it again at the size that its bonds have mends.

    python benchmarks/scale.py molecules/test.npz [molecules] [model]

Flat molecules by the yardstick, nominal and as measured; the stated size is wrong by a factor.
"""

import sys
from dataclasses import replace

import numpy as np

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.molecules import load_molecules
from afmol.evaluation import EvaluationConfig, ForceParameters, evaluation_samples
from afmol.metrics import Comparison, compare, summary
from afmol.prediction import predict, predict_many

FACTORS = (0.94, 0.97, 1.0, 1.03, 1.06)


def main(data: str, count: int = 100, model: str = DEFAULT_MODEL) -> None:
    """Print a table."""
    network, name = load_image_model(model)
    config = EvaluationConfig(molecules=count)
    print(f"{name}. After one reading, and as predict reads it: error of the size that is found, %, median and")
    print("95 % of stacks; precision, recall, class accuracy, exact graphs")
    conditions: tuple[ForceParameters, ...] = ("nominal", "measured")
    for condition in conditions:
        samples = list(evaluation_samples(load_molecules(data, "test"), "flat", condition, config))
        for factor in FACTORS:
            scans = [replace(s, size=(s.size[0] * factor, s.size[1] * factor)) for s, _ in samples]
            row = [f"{condition} {factor:.2f}"]
            for found in (predict_many(scans, network), [predict(scan, network) for scan in scans]):
                counts = Comparison()
                for molecule, (_, truth) in zip(found, samples, strict=True):
                    there = replace(molecule, positions=molecule.positions / [factor, factor, 1])
                    counts += compare(there, truth, truth.within(network.config.depth))
                f = summary(counts)
                names = ("precision", "recall", "class_accuracy", "exact_graph_rate")
                sizes = [m.stretch or 1.0 for m in found]
                off = 100 * np.abs(np.array(sizes) / factor - 1)
                row.append(
                    f"{np.median(off):4.1f} {np.quantile(off, 0.95):4.1f} " + " ".join(f"{f[n]:.3f}" for n in names)
                )
            print("  ".join(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:4])
