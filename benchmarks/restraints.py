"""What lengths of bonds and widths of angles do for places: how far atoms are off before and after (restraints.py).

    python benchmarks/restraints.py molecules/val.npz [molecules] [model]

Samples of the yardstick (CONVENTIONS.md), of the validation part, flat and of any shape, nominal and as measured.
"""

import sys
import time

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.molecules import load_molecules
from afmol.evaluation import EvaluationConfig, ForceParameters, Shapes, evaluation_samples, predicted
from afmol.metrics import compare, summary, total
from afmol.restraints import restrained
from afmol.valences import FAINTEST_ATOM, settled

KINDS: tuple[tuple[Shapes, ForceParameters], ...] = (
    ("flat", "nominal"),
    ("flat", "measured"),
    ("all", "nominal"),
    ("all", "measured"),
)


def main(data: str, count: int = 150, model: str = DEFAULT_MODEL) -> None:
    """Print a table."""
    network, name = load_image_model(model)
    molecules, config = load_molecules(data, "validation"), EvaluationConfig(count, seed=1)
    print(f"{name}: {count} molecules of a kind; error in the plane before and after, A; ms a molecule")
    for shapes, conditions in KINDS:
        samples = evaluation_samples(molecules, shapes, conditions, config)
        before = [(settled(found), truth) for found, truth in predicted(network, samples, FAINTEST_ATOM)]
        start = time.perf_counter()
        after = [(restrained(found), truth) for found, truth in before]
        spent = 1e3 * (time.perf_counter() - start) / len(after)
        depth = network.config.depth
        a, b = (summary(total(compare(m, t, t.within(depth)) for m, t in of))["xy_error"] for of in (before, after))
        print(f"{shapes + ', ' + conditions:16} {a:.4f} {b:.4f} {spent:6.1f}")


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:])
