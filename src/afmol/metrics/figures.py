"""Figures of counts: as plain values for JSON, and as a table for a terminal."""

from typing import Any

import numpy as np

from ..elements import CLASS_NAMES, ELEMENTS
from .comparison import DEPTH_BIN, N_SIZE_BINS, NONE, SIZE_BIN, Comparison
from .confusion import (
    bond_figures,
    calibration_error,
    class_figures,
    class_precision,
    class_recall,
    plain,
    ratio,
)


def summary(comparison: Comparison) -> dict[str, Any]:
    """Figures of a comparison, ready for JSON: numbers, lists, dicts; None where there is nothing to divide.

    `class_*` are over matched atoms; in `end_to_end_class_*` a missed atom counts against recall and a spurious one
    against precision (its accuracy: atoms found with the right class over all that there are or were predicted). Macro
    F1 is the mean over the classes that occur or were predicted. Lengths in A. `element_*`: over matched atoms, in the
    order of ELEMENTS. `by_size` (bins of 4 reference atoms, from `atoms_from` on; the last one open) and `by_depth`
    (bins of 0.2 A below the topmost reference atom): of the atoms asked for those found, of these those of the right
    class. `paper`: the same by the paper's definitions, with `missing` and `extra` atoms a molecule, in all and
    `by_size`.
    """
    c = comparison
    matched = c.classes[:NONE, :NONE]
    n_matched, n_reference, n_predicted = matched.sum(), c.classes[:NONE].sum(), c.classes[:, :NONE].sum()
    figures = {
        "molecules": c.molecules,
        "reference_atoms": n_reference,
        "predicted_atoms": n_predicted,
        "matched_atoms": n_matched,
        "ignored_atoms": c.ignored,
        "precision": ratio(n_matched, n_predicted),
        "recall": ratio(n_matched, n_reference),
        "f1": ratio(2 * n_matched, n_predicted + n_reference),
        "heavy_recall": ratio(c.classes[1:NONE, :NONE].sum(), c.classes[1:NONE].sum()),
        **class_figures("class", matched),
        **class_figures("end_to_end_class", c.classes),
        "class_count": c.classes[:NONE].sum(1),
        "class_confusion": c.classes,
        "element_count": c.elements.sum(1),
        "element_precision": class_precision(c.elements),
        "element_recall": class_recall(c.elements),
        "element_confusion": c.elements,
        "by_size": [
            {"atoms_from": SIZE_BIN * b + 1, "molecules": n, "exact_graph_rate": ratio(exact, n), **_found(*counts)}
            for b, (n, exact, *counts) in enumerate(c.by_size.tolist())
            if n
        ],
        "by_depth": [
            {"depth_from": round(DEPTH_BIN * b, 1), **_found(*counts)}
            for b, counts in enumerate(c.by_depth.tolist())
            if counts[0]
        ],
        **bond_figures("bond", c.bonds),
        **bond_figures("rule_bond", c.rule_bonds),
        "exact_graph_rate": ratio(c.exact, c.molecules),
        "xy_error": ratio(c.xy_errors[0], n_matched),
        "xy_rms": np.sqrt(ratio(c.xy_errors[1], n_matched)),
        "z_error": ratio(c.z_errors[0], n_matched),
        "z_rms": np.sqrt(ratio(c.z_errors[1], n_matched)),
        "atom_calibration_error": calibration_error(c.calibration[0]),
        "class_calibration_error": calibration_error(c.calibration[1]),
        "bond_calibration_error": calibration_error(c.calibration[2]),
    }
    by_size = [
        {"atoms_from": SIZE_BIN * b + 1, **_paper_figures(c, slice(b, b + 1))}
        for b in range(N_SIZE_BINS)
        if c.paper_counts[b, 0]
    ]
    return plain({**figures, "paper": {**_paper_figures(c, slice(None)), "by_size": by_size}})


def _found(asked: int, found: int, right: int) -> dict[str, Any]:
    return {"atoms": asked, "recall": ratio(found, asked), "class_accuracy": ratio(right, found)}


def _paper_figures(c: Comparison, bins: slice) -> dict[str, Any]:
    molecules, reference, missing, extra, with_hausdorff = c.paper_counts[bins].sum(0)
    hausdorff, matching = c.paper_lengths[bins].sum(0)
    classes = c.paper_classes[bins].sum(0)
    return {
        "molecules": molecules,
        "reference_atoms": reference,
        "missing": ratio(missing, molecules),
        "extra": ratio(extra, molecules),
        **class_figures("class", classes),
        "class_confusion": classes,
        **bond_figures("bond", c.paper_bonds[bins].sum(0)),
        **bond_figures("rule_bond", c.paper_rule_bonds[bins].sum(0)),
        "hausdorff_distance": ratio(hausdorff, with_hausdorff),
        "matching_distance": ratio(matching, reference - missing),
    }


def table(figures: dict[str, Any]) -> str:
    """A `summary` as text for a terminal: a row a class, then each figure by our and by the paper's definition, then a
    row an element, a bin of sizes, a bin of depths.

    "rule": bonds of the distance table.
    """
    paper = figures["paper"]
    heads = ("matched atoms", "end to end", "paper")
    lines = [" " * 20 + "".join(f"{h:^24}" for h in heads)]
    lines.append(f"{'class':<14}{'n':>6}" + f"{'precis.':>8}{'recall':>8}{'F1':>8}" * 3)
    for k, name in enumerate(CLASS_NAMES):
        sources = ((figures, "class"), (figures, "end_to_end_class"), (paper, "class"))
        cells = (s[f"{prefix}_{m}"][k] for s, prefix in sources for m in ("precision", "recall", "f1"))
        lines.append(f"{name:<14}{figures['class_count'][k]:>6}" + "".join(map(_cell, cells)))

    heads = "".join(f"{h:>8}" for h in ("ours", "rule", "paper", "rule"))
    lines += ["", f"{'molecules: ' + str(figures['molecules']):<32}{heads}"]
    for title, key in _LINES.items():
        cells = (_cell(s[k]) if k in s else " " * 8 for s in (figures, paper) for k in (key, f"rule_{key}"))
        lines.append(f"{title:<32}{''.join(cells)}".rstrip())

    lines += ["", f"{'matched atoms of':<20}{'n':>8}{'precis.':>8}{'recall':>8}"]
    columns = (figures[f"element_{name}"] for name in ("count", "precision", "recall"))
    for element, (n, *shares) in zip(ELEMENTS, zip(*columns, strict=True), strict=True):
        if n or shares != [None, None]:  # there, or said to be
            lines.append(f"{element.symbol:<20}{n:>8}{''.join(map(_cell, shares))}")

    lines += ["", f"{'':<20}{'atoms':>8}{'recall':>8}{'class':>8}{'molec.':>8}{'exact':>8}"]
    for title, bins in (("atoms, from", figures["by_size"]), ("depth in A, from", figures["by_depth"])):
        for b in bins:
            start, n, recall, accuracy, *whole = (b[k] for k in _BINNED if k in b)
            shown = f"{whole[0]:>8}{_cell(whole[1])}" if whole else ""
            lines.append(f"{f'{title} {start}':<20}{n:>8}{_cell(recall)}{_cell(accuracy)}{shown}")
    return "\n".join(lines)


_BINNED = ("atoms_from", "depth_from", "atoms", "recall", "class_accuracy", "molecules", "exact_graph_rate")


_LINES = {
    "atoms precision": "precision",
    "atoms recall": "recall",
    "atoms F1": "f1",
    "heavy atoms recall": "heavy_recall",
    "missing atoms a molecule": "missing",
    "extra atoms a molecule": "extra",
    "class accuracy": "class_accuracy",
    "class macro F1": "class_macro_f1",
    "class macro F1, end to end": "end_to_end_class_macro_f1",
    "bonds precision": "bond_precision",
    "bonds recall": "bond_recall",
    "bonds F1": "bond_f1",
    "exact graphs": "exact_graph_rate",
    "error in the plane, A": "xy_error",
    "error in height, A": "z_error",
    "matching distance, A": "matching_distance",
    "Hausdorff distance, A": "hausdorff_distance",
    "calibration error, atoms": "atom_calibration_error",
    "calibration error, classes": "class_calibration_error",
    "calibration error, bonds": "bond_calibration_error",
}


def _cell(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.3f}"
