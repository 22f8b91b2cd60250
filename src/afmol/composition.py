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

from .elements import BY_SYMBOL, CATEGORIES, ELEMENTS, NUMBERS, element_index
from .errors import ConfigError
from .structures import Molecule

Formula = Int[np.ndarray, " 11"]
"""Atoms of each of ELEMENTS; ANY: as many as there may be."""
ANY = 1_000_000
LARGEST = 1000
"""Atoms of a formula: what has more is a mistake."""
MOST_LOST = 4
"""Atoms that are likely there and for which a formula has no place: of 500 validation stacks that were read with the
right formula none had more (LOG.md, 2026-11-30)."""
LEAST = 1e-9
"""Probabilities are taken as at least this."""


def parsed(text: str) -> Formula:
    """The formula that a text such as C24H8O6 stands for, or C24H?O6, whose hydrogens nobody has counted.

    Raises:
        ConfigError: no formula, an element that afmol does not know, too many atoms.
    """
    if not re.fullmatch(r"([A-Z][a-z]?([?]|[0-9]{0,9}))+", text):
        raise ConfigError(f"A formula is written like C24H8O6, or C24H?O6 if a number is not known, not {text[:40]!r}.")
    counts = np.zeros(len(ELEMENTS), np.int64)
    for symbol, n in re.findall(r"([A-Z][a-z]?)([?]|[0-9]*)", text):
        if symbol not in BY_SYMBOL:
            raise ConfigError(f"The formula has {symbol}; afmol knows {', '.join(BY_SYMBOL)}.")
        counts[element_index(np.array([BY_SYMBOL[symbol].number]))] += ANY if n == "?" else int(n or 1)
    counted = counts[counts < ANY].sum()
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
    """The molecule with no more atoms of each element than the formula has, in each of its parts.

    Args:
        molecule: with confidence and probabilities of elements.
        formula: of one molecule.
    """
    assert molecule.confidence is not None
    assert molecule.element_probabilities is not None
    here, elements = molecule.confidence[:, None], molecule.element_probabilities
    # an atom of which it is open what it is, is there all the same: elements count beside the likeliest one
    most = np.maximum(elements.max(1, keepdims=True), LEAST)
    cost = -np.log(np.maximum(np.concatenate([here * elements / most, 1 - here], axis=1), LEAST))
    weight = np.log(np.concatenate([np.broadcast_to(most, elements.shape), np.ones_like(most)], axis=1))
    chosen, probability = np.zeros(len(molecule), int), np.zeros(cost.shape)
    for part in _molecules(molecule):
        room = np.append(formula, len(part))
        chosen[part] = _cheapest(cost[part], room)
        probability[part] = softmax(weight[part] - _least(cost[part], chosen[part], room), axis=1)
    there = probability[:, :-1].sum(1)
    elements = probability[:, :-1] / np.maximum(there, LEAST)[:, None]
    kept = np.flatnonzero(chosen < len(ELEMENTS))
    return replace(
        molecule,
        numbers=np.where(chosen < len(ELEMENTS), NUMBERS[np.minimum(chosen, len(ELEMENTS) - 1)], molecule.numbers),
        confidence=there,
        element_probabilities=elements,
        class_probabilities=np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1),
    ).taken(kept)


def _molecules(molecule: Molecule) -> list[Int[np.ndarray, " k"]]:
    """The atoms of each molecule: those that bonds join, an atom without any with the nearest of them. How close they
    are does not count: two carboxylic acids share no atom."""
    parts = molecule.parts(touching=0.0)
    joined = [part for part in parts if len(part) > 1]
    if not joined:
        return parts
    alone = np.concatenate([part for part in parts if len(part) == 1] or [np.zeros(0, int)])
    distance = [
        np.linalg.norm(molecule.positions[alone][:, None] - molecule.positions[part], axis=2).min(1) for part in joined
    ]
    nearest = np.argmin(distance, axis=0)
    return [np.concatenate([part, alone[nearest == k]]) for k, part in enumerate(joined)]


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
