"""How plausible a graph is by itself: how common its atoms' surroundings are in the training molecules.

    equation                                             variable   of
    unlikelihood = - sum_i ln f(s_i) + sum_b ln f(k_b)   s_i        atom: its element and the kinds of its neighbours
                                                         k_b        bond: the kinds of its two atoms
                                                         f          share of all atoms, of all bonds

A kind is an element and how many neighbours it shows (lengths.py). This is the probability of a graph of which two
surroundings have to agree only on the bond that they share, that of Bethe (Yedidia et al., IEEE Trans. Inf. Theory 51,
2282 (2005)), exact for trees. The table is made by tools/environments.py.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ..elements import BY_SYMBOL
from ..lengths import MOST_NEIGHBOURS, Kind, ordered

UNSEEN_ATOM, UNSEEN_BOND = 3e-7, 1e-3
"""Shares that surroundings and bonds which no training molecule has count as: a bond makes up for one of the two atoms
that share it, which is no excuse for what is not known."""
Environment = tuple[int, tuple[Kind, ...]]
"""Atomic number, and the kinds of the neighbours, sorted."""


def neighbours(atoms: int, bonds: Int[np.ndarray, "m 2"]) -> list[list[int]]:
    """Of each atom."""
    near: list[list[int]] = [[] for _ in range(atoms)]
    for i, j in bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    return near


def unlikelihood(numbers: Sequence[int], near: Sequence[Sequence[int]], among: Iterable[int] | None = None) -> float:
    """Natural logarithm of how many times less probable a graph is than one of no atoms.

    Args:
        numbers: atomic numbers; 0: no atom.
        near: the neighbours of each atom, if they are there.
        among: the part of these atoms alone; all parts add up.
    """
    return _unlikelihood(_table(), numbers, near, among)


def felt(atoms: Iterable[int], near: Sequence[Sequence[int]]) -> set[int]:
    """The atoms whose part changes if these do."""
    first = {j for i in atoms for j in (i, *near[i])}
    return {j for i in first for j in (i, *near[i])}


def _unlikelihood(
    table: "_Table", numbers: Sequence[int], near: Sequence[Sequence[int]], among: Iterable[int] | None = None
) -> float:
    kinds: dict[int, Kind] = {}

    def kind(i: int) -> Kind:
        if i not in kinds:
            kinds[i] = numbers[i], min(len([j for j in near[i] if numbers[j]]), MOST_NEIGHBOURS)
        return kinds[i]

    total = 0.0
    for i in range(len(numbers)) if among is None else among:
        if numbers[i]:
            own, others = kind(i), [kind(j) for j in near[i] if numbers[j]]
            total -= table.atoms.get((own[0], tuple(sorted(others))), table.no_atom)
            total += sum(table.bonds.get(ordered(own, other), table.no_bond) for other in others) / 2
    return total


class _Table(NamedTuple):
    """Natural logarithms of shares."""

    atoms: dict[Environment, float]
    bonds: dict[tuple[Kind, Kind], float]
    no_atom: float
    no_bond: float


@cache
def _table() -> _Table:
    return _read((resources.files("afmol.refinement") / "environments.csv").read_text().splitlines())


def _read(lines: Sequence[str]) -> _Table:
    atoms: Counter[Environment] = Counter()
    bonds: Counter[tuple[Kind, Kind]] = Counter()
    for row in csv.DictReader(lines):
        z, count = BY_SYMBOL[row["element"]].number, int(row["atoms"])
        around = tuple((BY_SYMBOL[s].number, int(n)) for s, n in re.findall(r"([A-Z][a-z]?)(\d)", row["neighbours"]))
        atoms[z, around] = count
        for other in around:  # each bond twice, once from each end
            bonds[ordered((z, min(len(around), MOST_NEIGHBOURS)), other)] += count
    log = lambda counts: {key: float(np.log(n / counts.total())) for key, n in counts.items()}  # noqa: E731
    return _Table(log(atoms), log(bonds), float(np.log(UNSEEN_ATOM)), float(np.log(UNSEEN_BOND)))
