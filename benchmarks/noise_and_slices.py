"""How figures depend on the noise, and on how many slices there are and how far apart.

    python benchmarks/noise_and_slices.py molecules/test.npz [molecules] [nominal|charged|random|measured] [model]

Flat molecules by the yardstick (CONVENTIONS.md): 10 slices, nominal ones 0.1 A apart; the same molecules in each row.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.molecules import load_molecules
from afmol.evaluation import EvaluationConfig, compared, evaluation_samples
from afmol.metrics import summary
from afmol.structures import Sample, Scan

NOISE = (0.0, 0.02, 0.05, 0.1, 0.2)
SLICES = {
    "all 10": slice(None),
    "the closest 7": slice(3, None),
    "the closest 5": slice(5, None),
    "the closest 3": slice(7, None),
    "the farthest 5": slice(None, 5),
    "every second": slice(1, None, 2),
    "every third": slice(0, None, 3),
}
"""Of ten, the farthest first."""
FIGURES = ("precision", "recall", "class_accuracy", "bond_f1", "exact_graph_rate", "xy_error", "z_error")


def with_slices(samples: Iterator[Sample], which: slice) -> Iterator[Sample]:
    """The same stacks of fewer slices."""
    for scan, truth in samples:
        heights = None if scan.heights is None else scan.heights[which]
        yield Sample(Scan(scan.data[..., which], scan.size, heights), truth)


def main(data: str, count: int = 100, conditions: str = "nominal", model: str = DEFAULT_MODEL) -> None:
    """Print a table."""
    network, name = load_image_model(model)
    molecules, config = load_molecules(data, "test"), EvaluationConfig(molecules=count)
    print(f"{name}: {count} flat molecules, {conditions}; {', '.join(FIGURES)}")
    for noise in NOISE:
        row(
            f"noise {noise:g}", network, evaluation_samples(molecules, "flat", conditions, replace(config, noise=noise))
        )
    for what, which in SLICES.items():
        samples = evaluation_samples(molecules, "flat", conditions, config)
        row(f"slices: {what}", network, with_slices(samples, which))


def row(what: str, network, samples: Iterator[Sample]) -> None:
    """Print the figures of some samples."""
    found = summary(compared(network, samples))
    print(f"{what:24}" + " ".join(f"{found[name]:.3f}" for name in FIGURES), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:])
