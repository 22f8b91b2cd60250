"""What a molecule is made of, where that is known: a formula, as mass spectrometry or the synthesis gives it.

    equation                                    variable    of
    minimise  sum_i cost_i(o_i)                 o_i         an atom: its element, or no atom
    such that sum_i [o_i = e] <= n_e            n_e         an element: how many the formula has

An image can show fewer atoms than there are, but not more. Each atom takes a place of an element, or none, so that the
reading is the most probable one (scipy.optimize.linear_sum_assignment). The probability of each option of an atom is
that of the best reading in which it has that option, beside the best ones in which it has the others; where no element
runs short that is what the network said.
"""

import re
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from .elements import BY_SYMBOL, CATEGORIES, ELEMENTS, NUMBERS, by_class, element_index
from .errors import ConfigError
from .structures import Molecule

Formula = Int[np.ndarray, " 11"]
"""Atoms of each of ELEMENTS; ANY: as many as there may be."""
ANY = 1_000_000
LARGEST = 1000
"""Atoms of a formula: what has more is a mistake."""
MOST_LOST = 4
"""Atoms of a molecule that are likely there and for which a formula has no place: of 500 validation stacks that were
read with the right formula none had more (LOG.md, 2026-11-30)."""
FORBIDDEN = 1e6
"""The cost of what cannot be."""
LEAST = 1e-9
"""Probabilities are taken as at least this."""


def parsed(text: str) -> Formula:
    """The formula that a text such as C24H8O6 stands for, or C24H?O6, whose hydrogens nobody has counted.

    Raises:
        ConfigError: no formula, an element that afmol does not know, too many atoms.
    """
    if not re.fullmatch(r"([A-Z][a-z]?([?]|[0-9]{0,9}))+", text):
        raise ConfigError(f"A formula is written like C24H8O6, or C24H?O6 if a number is not known, not {text[:40]!r}.")
    counts, counted = np.zeros(len(ELEMENTS), np.int64), 0
    for symbol, n in re.findall(r"([A-Z][a-z]?)([?]|[0-9]*)", text):
        if symbol not in BY_SYMBOL:
            raise ConfigError(f"The formula has {symbol}; afmol knows {', '.join(BY_SYMBOL)}.")
        many = 0 if n == "?" else int(n or 1)
        counts[element_index(np.array([BY_SYMBOL[symbol].number]))] += ANY if n == "?" else many
        counted += many
    if not counts.any() or counted > LARGEST:
        raise ConfigError(f"A formula has 1 to {LARGEST} atoms, not {counted}.")
    return np.minimum(counts, ANY)


def complete(formula: Formula) -> bool:
    """Whether all numbers are known."""
    return bool((formula < ANY).all())


def written(formula: Formula) -> str:
    """As chemists write it: C, H, then by the alphabet; C6H6."""
    symbols = {e.symbol: int(n) for e, n in zip(ELEMENTS, formula, strict=True) if n}
    order = sorted(symbols, key=lambda symbol: (symbol != "C", symbol != "H", symbol))
    return "".join(symbol + {1: "", ANY: "?"}.get(symbols[symbol], str(symbols[symbol])) for symbol in order)


def formula_of(molecule: Molecule) -> Formula:
    """Of all atoms together."""
    return np.bincount(element_index(molecule.numbers), minlength=len(ELEMENTS))


def composed(molecule: Molecule, formula: Formula) -> Molecule:
    """The molecule with no more atoms of each element than the formula has, in each of its molecules.

    Where one has the formula's classes already, as valences may have it (valences.py), they stay, whatever the network
    says; its probabilities are those of the formula alone all the same, but that the answer has the largest.

    Args:
        molecule: with confidence and probabilities of classes and elements.
        formula: of one molecule.
    """
    here, classes, elements = molecule.confidence, molecule.class_probabilities, molecule.element_probabilities
    assert here is not None
    assert classes is not None
    assert elements is not None
    # Of its likeliest class an atom is the likeliest element; and it is there also where it is open what it is.
    best_of = np.stack([elements[:, c == CATEGORIES].max(1) for c in range(5)], axis=1)[:, CATEGORIES]
    of_class = classes[:, CATEGORIES]
    score = of_class * elements / np.maximum(best_of, LEAST) / np.maximum(classes.max(1, keepdims=True), LEAST)
    cost = -np.log(np.maximum(np.column_stack([here[:, None] * score, 1 - here]), LEAST))
    weight = np.log(np.column_stack([elements / np.maximum(score, LEAST), np.ones(len(here))]).clip(LEAST))
    chosen, probability = np.zeros(len(molecule), int), np.zeros(cost.shape)
    wanted = np.bincount(CATEGORIES, formula, minlength=5)
    for joined, part in _molecules(molecule):
        room = np.append(formula, len(part))
        chosen[part] = _cheapest(cost[part], room)
        probability[part] = softmax(weight[part] - _least(cost[part], chosen[part], room), axis=1)
        if complete(formula) and (np.bincount(molecule.classes[joined], minlength=5) == wanted).all():
            other = CATEGORIES[None] != molecule.classes[joined][:, None]
            chosen[part] = len(ELEMENTS)
            chosen[joined] = _cheapest(np.where(other, FORBIDDEN, cost[joined, :-1]), formula)
    kept = np.flatnonzero(chosen < len(ELEMENTS))
    there = probability[kept, :-1].sum(1)
    elements = _foremost(probability[kept, :-1] / np.maximum(there, LEAST)[:, None], chosen[kept])
    return replace(
        molecule.taken(kept),
        numbers=NUMBERS[chosen[kept]],
        confidence=np.maximum(there, 1 - there),
        element_probabilities=elements,
        class_probabilities=by_class(elements),
    )


def _foremost(elements: Float[np.ndarray, "n e"], answers: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n e"]:
    """Probabilities of elements of which the answer's class and, in it, the answer have the largest, if need be in
    exchange for what had it."""
    elements = elements.copy()
    for p, answer in zip(elements, answers, strict=True):
        own = CATEGORIES[answer] == CATEGORIES
        best = np.where(own, p, -1.0).argmax()
        p[[answer, best]] = p[[best, answer]]
        classes = by_class(p[None])[0]
        first, most, mine = classes.argmax(), classes.max(), p[own].sum()
        if most > mine:
            others = p[first == CATEGORIES] * (mine / most)
            p[own] = p[own] * (most / mine) if mine > 0 else np.where(np.flatnonzero(own) == answer, most, 0.0)
            p[first == CATEGORIES] = others
    return elements


def _molecules(molecule: Molecule) -> list[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " l"]]]:
    """The atoms of each molecule: those that bonds join, and with them the atoms without any that are nearest to it.

    How close they are does not count: two carboxylic acids share no atom.
    """
    parts = molecule.parts(touching=0.0)
    joined = [part for part in parts if len(part) > 1]
    if not joined:
        return [(part, part) for part in parts]
    alone = np.concatenate([part for part in parts if len(part) == 1] or [np.zeros(0, int)])
    distance = [
        np.linalg.norm(molecule.positions[alone][:, None] - molecule.positions[part], axis=2).min(1) for part in joined
    ]
    nearest = np.argmin(distance, axis=0)
    return [(part, np.concatenate([part, alone[nearest == k]])) for k, part in enumerate(joined)]


def _cheapest(cost: Float[np.ndarray, "n k"], room: Int[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
    """The option of each atom in the cheapest reading that has room for all."""
    places = np.repeat(np.arange(len(room)), np.minimum(room, len(cost)))
    return places[linear_sum_assignment(cost[:, places])[1]]


def _least(
    cost: Float[np.ndarray, "n k"], chosen: Int[np.ndarray, " n"], room: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "n k"]:
    """By how much the cheapest reading in which an atom has an option costs more than the cheapest of all, `chosen`.

    One atom goes from option o to o', one of those there on, and so forth, until one comes to o or to where there is
    room; and if there is room in o then, another may come. The cheapest such chain is the shortest path from o' to o
    over the options and one node more, "room".
    """
    k = len(room)
    way = np.full((k + 1, k + 1), np.inf)
    for a in np.unique(chosen):
        way[a, :k] = (cost[chosen == a] - cost[chosen == a, a][:, None]).min(0)
    taken = np.bincount(chosen, minlength=k)
    way[:k, k] = np.where(taken < room, 0.0, np.inf)
    way[k, :k] = 0.0
    way[:, :k][:, room == 0] = np.inf
    np.fill_diagonal(way, 0.0)
    for middle in range(k + 1):
        way = np.minimum(way, way[:, middle, None] + way[middle])
    rows = np.arange(len(cost))
    return cost - cost[rows, chosen][:, None] + way[:k, :k][:, chosen].T + np.where(room == 0, np.inf, 0.0)
