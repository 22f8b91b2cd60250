"""Which of the conditions that measured stacks show make molecules hard to read: each narrowed alone.

    python benchmarks/conditions.py molecules/test.npz [molecules] [model]

Flat molecules by the yardstick as measured (`afmol.data.conditions.MEASURED`), the same molecules in each row.
"""

import sys
from dataclasses import replace

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.data.conditions import MEASURED, Measured
from afmol.data.molecules import load_molecules
from afmol.evaluation import EvaluationConfig, compared, evaluation_samples
from afmol.metrics import summary

QUADRUPOLE = replace(MEASURED, charged_share=0.0, quadrupole=(1.0, 1.0))
NARROWED: dict[str, Measured] = {
    "all as measured": MEASURED,
    "groups not bent": replace(MEASURED, group_bend=0.0),
    "exponentials' factors 1": replace(MEASURED, pauli_scale=(1.0, 1.0), decay_scale=(1.0, 1.0)),
    "Lennard-Jones alone": replace(MEASURED, exponential_share=0.0),
    "exponentials alone": replace(MEASURED, exponential_share=1.0),
    "stiffness 0.25 N/m": replace(MEASURED, stiffness=(0.25, 0.25)),
    "closest approach 2.7 A": replace(MEASURED, clearance=(2.7, 2.7)),
    "closest approach 3.0 A": replace(MEASURED, clearance=(3.0, 3.0)),
    "closest approach 3.4 A": replace(MEASURED, clearance=(3.4, 3.4)),
    "charges x 1": replace(MEASURED, charge_scale=(1.0, 1.0)),
    "tip +0.05 e": replace(MEASURED, charged_share=1.0, tip_charge=(0.05, 0.05)),
    "tip +0.12 e": replace(MEASURED, charged_share=1.0, tip_charge=(0.12, 0.12)),
    "tip 0 e": replace(MEASURED, charged_share=1.0, tip_charge=(0.0, 0.0)),
    "quadrupole": QUADRUPOLE,
    "quadrupole, charges x 1": replace(QUADRUPOLE, charge_scale=(1.0, 1.0)),
}
FIGURES = ("precision", "recall", "class_accuracy", "exact_graph_rate")


def main(data: str, count: int = 100, model: str = DEFAULT_MODEL) -> None:
    """Print a table."""
    network, name = load_image_model(model)
    molecules, config = load_molecules(data, "test"), EvaluationConfig(molecules=count)
    print(f"{name}: precision, recall, class accuracy, exact graphs; {count} flat molecules")
    for what, measured in NARROWED.items():
        found = summary(compared(network, evaluation_samples(molecules, "flat", "measured", config, measured)))
        print(f"{what:24}" + " ".join(f"{found[name]:.3f}" for name in FIGURES), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(n) for n in sys.argv[2:3]), *sys.argv[3:4])
