"""Single steps of a model that builds the graph atom by atom: the position is given, class and bonds are asked for.

The paper's single-step statistics (Oinonen et al., MRS Bulletin 2022): the class is the argmax, the bonds to all atoms
of the partial graph are those with a probability of at least one half. Precision is the diagonal over the column's sum,
recall over the row's. Counts add up.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..elements import CLASS_NAMES
from .comparison import zeros
from .confusion import bond_figures, class_confusion, class_figures, plain

COLUMNS = ("precision", "recall", "f1")
LEAST = 0.5
"""Probability from which a bond is predicted; the paper's whole-graph statistics ask for more than this."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Counts over single steps; `a + b` counts both, `Steps()` none. Confusions are [true, predicted]."""

    classes: Int[np.ndarray, "5 5"] = field(default_factory=zeros(5, 5))
    bonds: Int[np.ndarray, "2 2"] = field(default_factory=zeros(2, 2))
    rule_bonds: Int[np.ndarray, "2 2"] = field(default_factory=zeros(2, 2))
    """The same for the bonds that the distance table draws from positions and predicted classes."""

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_steps(
    true_class: Int[np.ndarray, " g"],
    class_probabilities: Float[np.ndarray, "g 5"],
    bonded: Bool[np.ndarray, " n"],
    bond_probabilities: Float[np.ndarray, " n"],
    rule: Bool[np.ndarray, " n"],
) -> Steps:
    """Counts of g steps with n atoms, in all, in their partial graphs.

    Args:
        true_class: of the atom that each step adds.
        class_probabilities: what the model says of it; logits will do.
        bonded: whether each atom of a partial graph is bonded to the added one.
        bond_probabilities: what the model says of that.
        rule: whether the distance table bonds them.
    """
    truth = bonded.astype(int)
    return Steps(
        class_confusion(true_class, class_probabilities.argmax(1)),
        class_confusion(truth, (bond_probabilities >= LEAST).astype(int), 2),
        class_confusion(truth, rule.astype(int), 2),
    )


def step_summary(steps: Steps) -> dict[str, Any]:
    """Figures of single steps, ready for JSON."""
    figures = {
        "steps": steps.classes.sum(),
        **class_figures("class", steps.classes),
        "class_confusion": steps.classes,
        **bond_figures("bond", steps.bonds),
        **bond_figures("rule_bond", steps.rule_bonds),
    }
    return plain(figures)


def step_table(figures: dict[str, Any]) -> str:
    """A `step_summary` as text for a terminal: a row a class, the bonds, and those that the distance table draws."""
    rows = [(name, *(figures[f"class_{m}"][k] for m in COLUMNS)) for k, name in enumerate(CLASS_NAMES)]
    rows += [
        (name, *(figures[f"{key}_{m}"] for m in COLUMNS)) for name, key in (("bonds", "bond"), ("rule", "rule_bond"))
    ]
    head = f"{'single steps: ' + str(figures['steps']):<20}{'precis.':>8}{'recall':>8}{'F1':>8}"
    rows.append(("class accuracy", figures["class_accuracy"]))
    body = (f"{name:<20}" + "".join(f"{'-' if v is None else f'{v:.3f}':>8}" for v in values) for name, *values in rows)
    return "\n".join([head, *body])
