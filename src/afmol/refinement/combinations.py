"""What many changes of a hypothesis are worth together, by least squares from what each of them does alone.

    equation                                                  variable   of
    minimise  sum_s (w_s / 2) |r_s - B_s x - sum_o D_os|^2    r_s        slice: what is left of it, as in fit.py
              + (x + u)^T P (x + u) / 2 - p^T (x + u)         B_s        its slopes by the values
              over x                                          D_os       option: what it changes in the slice, once its
                                                                         own surroundings have been fitted
                                                              w_s        W by the square of r_s
                                                              u          how far fitting them moved values
                                                              P, p       what is known beforehand: curvature and pull

An atom's forces add to those of others, so what options change adds up, nearly; what atoms, tip and forces make up for
is projected out. A combination costs a tenth of a millisecond, so that thousands can be looked at. Values of atoms that
are gone do not count; those of atoms and elements that come do.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve

from ..elements import element_index
from .fit import Fitted, Problem, beforehand, evaluated, fitted, known_beforehand, seen, slopes
from .imaging import OF_ATOM, OF_ELEMENT, Hypothesis, picture_slopes

ROUNDS = 3
"""In which what an option does is fitted."""
HOPELESS = 1000.0
"""An option that costs so much more is not fitted on."""


class Option(NamedTuple):
    """An atom otherwise."""

    atom: int
    number: int
    """Atomic number; 0: no atom."""
    price: float
    """By how much the network thinks less of it, natural logarithm."""


Combination = frozenset[int]
"""Places of options, of different atoms."""


@dataclass(frozen=True, eq=False)
class Combinations:
    """The sums of a least-squares problem: rows are the values that are free, those that come with options, options."""

    options: Sequence[Option | None]
    """None where an option cannot be simulated."""
    products: Float[np.ndarray, "r r"]
    """Of rows, weighted."""
    pull: Float[np.ndarray, " r"]
    """Of rows with what is left."""
    curvature: Float[np.ndarray, "c c"]
    """Of what is known beforehand of the values."""
    known: Float[np.ndarray, " c"]
    """Its pull."""
    moved: Float[np.ndarray, "o c"]
    """By each option."""
    pixels: float
    """That count, in all slices."""
    of_atom: dict[int, Int[np.ndarray, " k"]]
    """The free values of each atom."""
    own: Sequence[Int[np.ndarray, " k"]]
    """The values that come with each option."""
    free: int
    """Values that are free without any."""

    off: Float[np.ndarray, " o"]
    """By how much more each option changes it alone than least squares say."""

    def gained(self, combination: Combination) -> float:
        """By how much it changes what is minimised but for its options' prices."""
        chosen, c = sorted(combination), len(self.curvature)
        options = [self.options[o] for o in chosen]
        gone = [self.of_atom[o.atom] for o in options if o and not o.number]
        rows = np.delete(np.arange(self.free), np.concatenate(gone)) if gone else np.arange(self.free)
        rows = np.concatenate([rows, *(self.own[o] for o in chosen)])
        changes = c + np.array(chosen, int)
        block, curvature = self.products[np.ix_(rows, rows)], self.curvature[np.ix_(rows, rows)]
        along = self.products[np.ix_(rows, changes)].sum(1)
        moved = self.moved[chosen][:, rows].sum(0)
        known = self.known[rows] - curvature @ moved
        x = cho_solve(cho_factor(block + curvature, check_finite=False), self.pull[rows] - along + known)
        square = x @ block @ x + 2 * x @ along + self.products[np.ix_(changes, changes)].sum()
        square -= 2 * (self.pull[rows] @ x + self.pull[changes].sum())
        image = self.pixels / 2 * np.log(max(1e-6, 1 + square / self.pixels)) + self.off[chosen].sum()
        beforehand = (
            (x + 2 * moved) @ curvature @ x / 2 + moved @ curvature @ moved / 2 - self.known[rows] @ (x + moved)
        )
        return float(image + beforehand)


def combinations(f: Fitted, problem: Problem, options: Sequence[Option], threads: int) -> Combinations:
    """The sums, for a hypothesis that is fitted."""
    h, base = f.hypothesis, slopes(f, problem)
    with ThreadPoolExecutor(threads) as pool:
        effects = list(pool.map(lambda o: effect(f, problem, o), options))
    places = [*base.active.tolist()]
    own, own_rows = [], []
    for e in effects:
        own.append(np.arange(len(places), len(places) + (len(e.places) if e else 0)))
        if e is not None:
            places += e.places.tolist()
            own_rows.append(e.columns)
    at = np.array(places)
    changes = np.stack([np.zeros_like(f.image) if e is None else e.image for e in effects])
    rows = np.concatenate([base.columns, *own_rows, changes]).astype(np.float32)
    flat, left = seen(rows, f, problem)
    curvature, known = np.zeros((len(at), len(at))), np.zeros(len(at))
    a = len(base.active)
    curvature[:a, :a], known[:a] = known_beforehand(h, base.active)
    means, spreads = beforehand(h)
    curvature[range(a, len(at)), range(a, len(at))] = spreads[at[a:]] ** -2.0
    known[a:] = -(h.values[at[a:]] - means[at[a:]]) / spreads[at[a:]] ** 2
    sums = Combinations(
        [o if e else None for o, e in zip(options, effects, strict=True)],
        (flat @ flat.T).astype(float),
        (flat @ left).astype(float),
        curvature,
        known,
        np.stack([np.zeros(len(at)) if e is None else e.moved[at] for e in effects]),
        problem.independent * f.image.size,
        {int(i): np.flatnonzero(base.active // OF_ATOM == i) for i in np.flatnonzero(h.there)},
        own,
        a,
        np.zeros(len(options)),
    )
    alone = [0.0 if e is None else e.gained - sums.gained(frozenset({k})) for k, e in enumerate(effects)]
    return replace(sums, off=np.array(alone))


class Effect(NamedTuple):
    """What an option does to the image."""

    image: Float[np.ndarray, "nx ny nz"]
    """The change."""
    places: Int[np.ndarray, " k"]
    """Of the values that come with it."""
    columns: Float[np.ndarray, "k nx ny nz"]
    """Their slopes."""
    moved: Float[np.ndarray, " p"]
    """How far fitting moved each value."""
    gained: float
    """What is minimised after it, less before."""


def effect(f: Fitted, problem: Problem, option: Option) -> Effect | None:
    """Once all is fitted to it, in a few rounds; None if it cannot be simulated."""
    after = changed(f.hypothesis, {option.atom: option.number})
    at = evaluated(after, problem)
    if at is None:
        return None
    at, _ = fitted(at, problem, ROUNDS, hopeless=f.cost + HOPELESS)
    new = np.setdiff1d(after.active, f.hypothesis.active)
    if len(new):
        columns = picture_slopes(at.hypothesis, at.picture, problem.goal)[np.isin(after.active, new)]
    else:
        columns = np.zeros((0, *f.image.shape), np.float32)
    return Effect(at.image - f.image, new, columns, at.hypothesis.values - after.values, at.cost - f.cost)


def changed(h: Hypothesis, made: dict[int, int]) -> Hypothesis:
    """A hypothesis with some atoms otherwise, 0: gone; an element that is new in it has the forces of its model."""
    there, numbers, values = h.there.copy(), h.numbers.copy(), h.values.copy()
    for atom, number in made.items():
        there[atom] = number > 0
        if number:
            numbers[atom] = number
            element = int(element_index(numbers[atom : atom + 1])[0])
            if element not in element_index(h.numbers[h.there]):
                at = OF_ATOM * len(there) + OF_ELEMENT * element
                values[at : at + OF_ELEMENT] = 0.0
    return replace(h, there=there, numbers=numbers, values=values)


def searched(
    options: Sequence[Option | None], score: Callable[[Combination], float], width: int, depth: int
) -> dict[Combination, float]:
    """All combinations that were looked at and their scores: from none, one option more at a time to the best ones."""
    found: dict[Combination, float] = {}
    front: list[Combination] = [frozenset()]
    for _ in range(depth):
        new: dict[Combination, float] = {}
        for combination in front:
            taken = {option.atom for o in combination if (option := options[o])}
            for o, option in enumerate(options):
                if option is None or option.atom in taken or (more := combination | {o}) in new:
                    continue
                new[more] = score(more)
        found |= new
        front = sorted(new, key=new.__getitem__)[:width]
    return found
