"""The figures of a model's card: what stands between the two marks of CARD.md is written anew.

    afmol evaluate --model MODEL --data molecules/test.npz --conditions nominal random measured -o results
    python tools/card.py MODEL results/evaluation.json src/afmol/weights/NAME.md

MODEL is a shipped name or a weight file. The text around the marks is by hand.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from afmol.checkpoint import load_image_model
from afmol.elements import CLASS_NAMES, ELEMENTS
from afmol.model import deepest

START, END = "<!-- figures: tools/card.py -->", "<!-- end of figures -->"
ROWS = {
    "precision": "precision",
    "recall": "recall",
    "class accuracy": "class_accuracy",
    "bond F1": "bond_f1",
    "the distance rule: bond F1": "rule_bond_f1",
    "exact graphs": "exact_graph_rate",
    "xy error, A": "xy_error",
    "z error, A": "z_error",
    "calibration error: atoms": "atom_calibration_error",
    "classes": "class_calibration_error",
    "bonds": "bond_calibration_error",
}


def size_of(model: str) -> str:
    """What the weights are, in a sentence."""
    network, _ = load_image_model(model)
    c, count = network.config, sum(p.numel() for p in network.parameters())
    stack = torch.zeros(1, c.slices, 64, 64)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network.posnet(stack)
    more = f", on request to {deepest(network)} A" if deepest(network) > c.depth else ""
    asked = f"{c.slices} slices of {c.pixel} A a pixel; atoms down to {c.depth} A below the topmost one{more}"
    work = f"{flops.get_total_flops() / 1e9:.2f} GFLOP for the maps of 16 x 16 A, one view"
    return f"{count / 1e6:.2f} M parameters, {2 * count / 1e6:.1f} MB in 16 bits. {asked}. {work}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures(record: dict) -> str:
    """Tables of an evaluation: a column for each kind of sample."""
    kinds = {name.replace(" force parameters", ""): f for name, f in record.items() if isinstance(f, dict)}
    header = [f"{name} ({f['molecules']})" for name, f in kinds.items()]

    def row(name: str, values: list) -> list[str]:
        return [name, *("-" if v is None else v if isinstance(v, str) else f"{v:.3f}" for v in values)]

    rows = [row(name, [f[key] for f in kinds.values()]) for name, key in ROWS.items()]

    def of_kinds(prefix: str, names: Iterable[str]) -> list[list[str]]:
        """Precision / recall (count) of classes or elements."""
        return [
            row(
                name,
                [
                    cell([f[f"{prefix}_{m}"][k] for m in ("precision", "recall")], f[f"{prefix}_count"][k])
                    for f in kinds.values()
                ],
            )
            for k, name in enumerate(names)
        ]

    def binned(where: str, start: str, values: tuple[str, ...], count: str) -> list[list[str]]:
        """A row for each bin that any kind of sample has."""
        starts = sorted({b[start] for f in kinds.values() for b in f.get(where, [])})
        bins = [{b[start]: b for b in f.get(where, [])} for f in kinds.values()]
        return [
            row(f"{a}", [cell([b[a][v] for v in values], b[a][count]) if a in b else None for b in bins])
            for a in starts
        ]

    return "\n\n".join(
        [
            f"Simulated from {record['data']}, noise {100 * record['noise']:.0f} % of the range (CONVENTIONS.md):",
            table(["", *header], rows),
            "Classes of matched atoms, precision / recall (atoms):",
            table(["class", *header], of_kinds("class", CLASS_NAMES)),
            "Elements of matched atoms, the same:",
            table(["element", *header], of_kinds("element", [e.symbol for e in ELEMENTS])),
            "By size of the molecule, as many visible atoms or up to 3 more: exact graphs (molecules):",
            table(["atoms", *header], binned("by_size", "atoms_from", ("exact_graph_rate",), "molecules")),
            "By depth below the topmost atom, from so many A on: recall / class accuracy (atoms):",
            table(["depth", *header], binned("by_depth", "depth_from", ("recall", "class_accuracy"), "atoms")),
        ]
    )


def cell(values: list[float | None], count: int) -> str:
    """Shares of a count."""
    return " / ".join("-" if v is None else f"{v:.3f}" for v in values) + f" ({count})"


def main(model: str, evaluation: str, card: str) -> None:
    """Write the figures into the card."""
    path = Path(card)
    before, found, rest = path.read_text().partition(START)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        sys.exit(f"{card} lacks the marks {START} and {END}.")
    text = figures(json.loads(Path(evaluation).read_text()))
    path.write_text(f"{before}{START}\n\n{size_of(model)}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
