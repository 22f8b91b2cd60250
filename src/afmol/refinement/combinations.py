"""What many changes of a hypothesis are worth together, by least squares from what each of them does alone.

    equation                                                  variable   of
    minimise  sum_s (w_s / 2) |r_s - B_s x - sum_o D_os|^2    r_s        slice: what is left of it, as in fit.py
              + (x + u)^T P (x + u) / 2 - p^T (x + u)         B_s        its slopes by the values
              over x                                          D_os       option: what it changes in the slice, once it
                                                                         has been fitted by itself
                                                              w_s        W by the square of r_s
                                                              u          how far that moved values
                                                              P, p       what is known beforehand: curvature and pull

An atom's forces add to those of others, so what options change adds up, nearly; what atoms, tip and forces make up for
is projected out. A combination takes less than a millisecond, so that thousands can be looked at. Values of atoms that
are gone do not count; those of atoms and elements that come do.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve

from ..elements import element_index
from .fit import Fitted, Problem, evaluated, fitted, known_beforehand, own_beforehand, seen, slopes, within
from .imaging import OF_ATOM, OF_ELEMENT, Hypothesis, normalised, picture_slopes

SMALL = 3000
"""Pixels of images in which all is looked at."""
SEEN, FELT, FREE = 4.5, 3.5, 4.0
"""In larger ones what an option does is seen up to SEEN from its atom along x and y, with the atoms up to FELT farther,
of which those up to FREE from it move, A."""
ROUNDS = 3
"""In which that is fitted."""
HOPELESS = 1000.0
"""An option that costs so much more is not fitted on."""
TOO_MUCH = 1e5
"""An option that changes an image by so many times more than what is left of it, squared, is none, as one whose values
do by the square of that: sums in float32 could not tell what makes up for it."""


class Option(NamedTuple):
    """An atom otherwise, alone or with hydrogens at it."""

    made: tuple[tuple[int, int], ...]
    """Atoms, the first in the middle, and their atomic numbers; 0: no atom."""
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
    of_atom: dict[int, Int[np.ndarray, " _"]]
    """The free values of each atom."""
    own: Sequence[Int[np.ndarray, " _"]]
    """The values that come with each option."""
    places: Int[np.ndarray, " c"]
    """Of all these values in a hypothesis."""
    free: int
    """How many are free without any option."""
    off: Float[np.ndarray, " o"]
    """By how much more each option changes alone what is minimised than least squares say."""

    def gained(self, combination: Combination) -> float:
        """By how much it changes what is minimised but for its options' prices."""
        return self._solved(combination)[0]

    def values(self, combination: Combination, h: Hypothesis) -> Float[np.ndarray, " p"]:
        """Those of a hypothesis once least squares and its options have moved them."""
        _, rows, moved = self._solved(combination)
        values = h.values.copy()
        values[self.places[rows]] += moved  # of an element that two options bring the last counts
        return within(values)

    def _solved(self, combination: Combination) -> tuple[float, Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """What is gained, the values that count, and how far they move."""
        chosen = sorted(combination)
        options = [self.options[o] for o in chosen]
        none = np.zeros(0, int)
        own = np.concatenate([none, *(self.own[o] for o in chosen)])
        gone = np.concatenate([none, *(self.of_atom[i] for o in options if o for i, z in o.made if not z)])
        rows, changes = np.concatenate([np.arange(self.free), own]), len(self.curvature) + np.array(chosen, int)
        moved, change = self.moved[chosen][:, rows].sum(0), self.products[changes].sum(0)
        moved[gone] = 0.0
        pull = self.pull[rows] - change[rows] + self.known[rows] - self._times(self.curvature, own, moved)
        x = self._least(pull, own, gone)
        square = x @ (self._times(self.products, own, x) + 2 * (change[rows] - self.pull[rows]))
        square += change[changes].sum() - 2 * self.pull[changes].sum()
        image = self.pixels / 2 * np.log(max(1e-6, 1 + square / self.pixels)) + self.off[chosen].sum()
        moved += x
        gained = image + moved @ self._times(self.curvature, own, moved) / 2 - self.known[rows] @ moved
        return float(gained), rows, moved

    def _times(
        self, matrix: Float[np.ndarray, "r r"], own: Int[np.ndarray, " k"], x: Float[np.ndarray, " _"]
    ) -> Float[np.ndarray, " _"]:
        """The block of a symmetric matrix of what is free and of own values, times these."""
        n = self.free
        across = matrix[own, :n]
        return np.concatenate(
            [matrix[:n, :n] @ x[:n] + x[n:] @ across, across @ x[:n] + matrix[own[:, None], own] @ x[n:]]
        )

    def _least(
        self, pull: Float[np.ndarray, " _"], own: Int[np.ndarray, " k"], gone: Int[np.ndarray, " g"]
    ) -> Float[np.ndarray, " _"]:
        """Where the sum of squares is least, `gone` held. What is free without options is eliminated once for all, so
        that a combination takes a system of a few rows."""
        inverse, follow, curvature = self._eliminated
        n, at = self.free, own - self.free
        follow, free = follow[at], inverse @ pull[:n]
        held = np.linalg.inv(inverse[gone[:, None], gone])
        back = follow[:, gone] @ held
        those = np.linalg.solve(
            curvature[at[:, None], at] + back @ follow[:, gone].T, pull[n:] - follow @ pull[:n] + back @ free[gone]
        )
        free -= those @ follow
        free -= inverse[:, gone] @ (held @ free[gone])
        free[gone] = 0.0
        return np.concatenate([free, those])

    @cached_property
    def _eliminated(self) -> tuple[Float[np.ndarray, "f f"], Float[np.ndarray, "w f"], Float[np.ndarray, "w w"]]:
        """The inverse of the curvature by what is free without options; how far that goes as own values of options go;
        the curvature by own values when it does."""
        n, c = self.free, len(self.curvature)
        whole = self.products[:c, :c] + self.curvature
        inverse = np.asarray(cho_solve(cho_factor(whole[:n, :n]), np.eye(n)))
        follow = whole[n:, :n] @ inverse
        return inverse, follow, whole[n:, n:] - follow @ whole[:n, n:]


def combinations(
    f: Fitted, problem: Problem, options: Sequence[Option], threads: int, known_effects: "Effects"
) -> Combinations:
    """The sums, for a hypothesis that is fitted.

    Args:
        known_effects: of hypotheses before, in large images taken again where what is close to an option is the same;
            then those of this one.
    """
    h, base = f.hypothesis, slopes(f, problem)
    keys = [_surroundings(f, o) for o in options]
    with ThreadPoolExecutor(threads) as pool:
        effects = list(
            pool.map(
                lambda o, key: known_effects[key] if key in known_effects else effect(f, problem, o), options, keys
            )
        )
    known_effects.clear()
    known_effects |= {key: e for key, e in zip(keys, effects, strict=True) if key and e}
    possible, a = [e for e in effects if e is not None], len(base.active)
    ends = a + np.cumsum([0, *(0 if e is None else len(e.places) for e in effects)])
    at = np.concatenate([base.active, *(e.places for e in possible)])
    changes = np.stack([np.zeros_like(f.image) if e is None else e.image for e in effects])
    rows = np.concatenate([base.columns, *(e.columns for e in possible), changes]).astype(np.float32)
    flat, left = seen(rows, f, problem)
    pixels = problem.independent * f.image.size
    own = [np.arange(start, end) for start, end in pairwise(ends)]
    square = np.einsum("ij,ij->i", flat, flat, dtype=float) / (TOO_MUCH * pixels)
    useless = [square[len(at) + k] > 1 or (square[of] > TOO_MUCH).any() for k, of in enumerate(own)]
    for k in np.flatnonzero(useless):
        flat[[len(at) + k, *own[k]]] = 0.0
    curvature, known = np.zeros((len(at), len(at))), np.zeros(len(at))
    curvature[:a, :a], known[:a] = known_beforehand(h, base.active)
    curvature[range(a, len(at)), range(a, len(at))], known[a:] = own_beforehand(h, at[a:])
    sums = Combinations(
        [None if e is None or far else o for o, e, far in zip(options, effects, useless, strict=True)],
        (flat @ flat.T).astype(float),
        (flat @ left).astype(float),
        curvature,
        known,
        np.stack([np.zeros(len(at)) if e is None else e.moved[at] for e in effects]),
        pixels,
        {int(i): np.flatnonzero(base.active // OF_ATOM == i) for i in np.flatnonzero(h.there)},
        own,
        at,
        a,
        np.zeros(len(options)),
    )
    alone = [
        0.0 if e is None or e.gained is None else e.gained - sums.gained(frozenset({k})) for k, e in enumerate(effects)
    ]
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
    gained: float | None
    """By how much it changes what is minimised; None if only its surroundings were looked at."""


def effect(f: Fitted, problem: Problem, option: Option) -> Effect | None:
    """Once all is fitted to it, in a few rounds; in a large image by what the surroundings show, tip and forces held.
    None if it cannot be simulated."""
    h, n = f.hypothesis, len(f.hypothesis.there)
    whole, middle = changed(h, option.made), option.made[0][0]
    new_in_whole = np.setdiff1d(whole.active, h.active)
    if small(f):
        base, around, after, window = h, problem, whole, (slice(None), slice(None))
        in_whole, fixed = np.arange(len(h.values)), problem.fixed
    else:
        base, around, kept, window = near_to(h, problem, middle)
        after = near_to(whole, problem, middle)[0]
        atoms = (OF_ATOM * kept[:, None] + np.arange(OF_ATOM)).ravel()
        in_whole = np.concatenate([atoms, np.arange(OF_ATOM * n, len(h.values))])
        tip_and_forces = np.arange(len(atoms), len(in_whole))
        assert around.fixed is not None
        fixed = np.union1d(around.fixed, tip_and_forces[~np.isin(in_whole[len(atoms) :], new_in_whole)])
    before, at = evaluated(base, around), evaluated(after, around)
    if before is None or at is None:
        return None
    at, _ = fitted(at, around._replace(fixed=fixed), ROUNDS, hopeless=before.cost + HOPELESS)
    new = np.isin(in_whole[after.active], new_in_whole)
    image, columns = np.zeros_like(f.image), np.zeros((int(new.sum()), *f.image.shape), np.float32)
    image[window] = at.image - before.image
    if new.any():
        columns[:, *window] = picture_slopes(at.hypothesis, at.picture, around.goal)[new]
    moved = np.zeros(len(h.values))
    moved[in_whole] = at.hypothesis.values - after.values
    gained = at.cost - before.cost if base is h else None
    return Effect(image, in_whole[after.active[new]], columns, moved, gained)


Effects = dict[tuple[int, ...], Effect]
"""By `_surroundings`."""


def _surroundings(f: Fitted, option: Option) -> tuple[int, ...]:
    """What an option's effect in a large image depends on; nothing in a small one, where it depends on all."""
    h = f.hypothesis
    if small(f):
        return ()
    off = np.abs(h.candidates.positions - h.candidates.positions[option.made[0][0]])[:, :2].max(1)
    near = np.where(h.there, h.numbers, 0)[off < SEEN]
    return (*chain(*option.made), h.steps, *near.tolist())


def small(f: Fitted) -> bool:
    """Whether all of an image is looked at for each option."""
    return f.image[..., 0].size <= SMALL


def near_to(
    h: Hypothesis, problem: Problem, atom: int
) -> tuple[Hypothesis, Problem, Int[np.ndarray, " k"], tuple[slice, ...]]:
    """The part of an image around one of the candidates, what is there of a hypothesis, of which the closest atoms
    alone are free; which candidates those are, and which pixels."""
    goal, place = problem.goal, h.candidates.positions[atom]
    window, origin, size = [], [], []
    for at, n, side in zip(place[:2], goal.images.shape[:2], goal.size, strict=True):
        pixel = side / n
        low = int(np.clip(round((at - SEEN) / pixel), 0, max(0, n - 8)))
        high = int(np.clip(round((at + SEEN) / pixel), low + 8, n))
        window.append(slice(low, high))
        origin.append(low * pixel)
        size.append((high - low) * pixel)
    off = np.abs(h.candidates.positions - place)[:, :2].max(1)
    kept = np.flatnonzero(off < SEEN + FELT)
    few = h.candidates.taken(kept)
    n = len(h.there)
    values = np.concatenate([h.values[: OF_ATOM * n].reshape(n, OF_ATOM)[kept].ravel(), h.values[OF_ATOM * n :]])
    far = np.flatnonzero(np.linalg.norm(few.positions - place, axis=1) > FREE)
    fixed = (OF_ATOM * far[:, None] + np.arange(OF_ATOM)).ravel()
    images = normalised(goal.images[window[0], window[1]])
    there = goal._replace(images=images, size=(size[0], size[1]))
    moved = replace(few, positions=few.positions - [*origin, 0.0])
    part = replace(h, candidates=moved, there=h.there[kept], numbers=h.numbers[kept], values=values)
    return part, problem._replace(goal=there, fixed=fixed), kept, tuple(window)


def changed(h: Hypothesis, made: Iterable[tuple[int, int]]) -> Hypothesis:
    """A hypothesis with some atoms otherwise, 0: gone; an element that is new in it has the forces of its model."""
    there, numbers, values = h.there.copy(), h.numbers.copy(), h.values.copy()
    for atom, number in made:
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
            taken = {atom for o in combination if (option := options[o]) for atom, _ in option.made}
            for o, option in enumerate(options):
                if option is None or (more := combination | {o}) in new or any(a in taken for a, _ in option.made):
                    continue
                new[more] = score(more)
        found |= new
        front = sorted(new, key=new.__getitem__)[:width]
    return found
