"""What valences settle: figures of a network alone, and of the whole readings that are so many times less probable.

    python benchmarks/valences.py molecules/val.npz [molecules] [flat|all] [nominal|charged|random|measured] [model]

Samples of the yardstick (CONVENTIONS.md), of the validation part; strengths are natural logarithms (afmol.valences).
"""

import sys
import time
from typing import get_args

import numpy as np
from scipy.special import expit

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.molecules import load_molecules
from afmol.evaluation import EvaluationConfig, ForceParameters, Shapes, evaluation_samples, predicted
from afmol.metrics import compare, summary, total
from afmol.structures import Molecule
from afmol.valences import settled

STRENGTHS = (1.0, 2.0, 3.0, 4.0)
FIGURES = ("precision", "recall", "class_accuracy", "exact_graph_rate", "class_calibration_error")


def main(
    data: str, count: int = 200, shapes: str = "flat", conditions: str = "measured", model: str = DEFAULT_MODEL
) -> None:
    """Print a table."""
    if shapes not in get_args(Shapes) or conditions not in get_args(ForceParameters):
        sys.exit(__doc__)
    network, name = load_image_model(model)
    samples = evaluation_samples(
        load_molecules(data, "validation"), shapes, conditions, EvaluationConfig(count, seed=1)
    )
    pairs = list(predicted(network, samples, float(expit(-STRENGTHS[-1]))))
    print(f"{name}: {count} molecules, {shapes}, {conditions}; {', '.join(FIGURES)}; ms a molecule")
    for strength in (None, *STRENGTHS):
        start = time.perf_counter()
        read = [(_read(found, strength), truth) for found, truth in pairs]
        spent = 1e3 * (time.perf_counter() - start) / len(pairs)
        figures = summary(total(compare(found, truth, truth.within(network.config.depth)) for found, truth in read))
        shown = " ".join(f"{figures[figure]:.3f}" for figure in FIGURES)
        print(f"{'network alone' if strength is None else f'strength {strength:g}':16}{shown} {spent:6.1f}")


def _read(found: Molecule, strength: float | None) -> Molecule:
    """The likely atoms of a network's candidates, or those that valences settle."""
    least = 0.5 if strength is None else float(expit(-strength))
    candidates = found.taken(np.flatnonzero(found.confidence >= least))
    return candidates if strength is None else settled(candidates, strength)


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:])
