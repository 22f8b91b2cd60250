"""Which reading explains a stack best: atoms that come and go and change, as long as that explains more than it costs.

    candidates -> reading of the network -> force model, oscillation, height -> fit -> each change tried alone
               -> those that gain most, together -> fit -> ... -> what each change would have cost

A change costs what the network says against it (the logarithm of how many times less probable it is), and gains or
costs by how well the changed molecule explains the stack once its own values are fitted (fit.py).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax
from tqdm import tqdm

from ..elements import CATEGORIES, ELEMENTS, NUMBERS, by_class, element_index
from ..errors import MoleculeError, ScanError
from ..limits import check_claim
from ..structures import Molecule, Scan
from .fit import (
    Fitted,
    Problem,
    Slopes,
    again,
    evaluated,
    fitted,
    independent,
    residuals,
    slopes,
)
from .imaging import DISTANCE, OF_ATOM, OF_ELEMENT, OF_TIP, Hypothesis, Target, normalised, start, target

FORCE_MODELS = ("lennard-jones", "exponential")
OSCILLATIONS = (4, 7, 10, 14)
DISTANCES = {"lennard-jones": (-0.5, 0.0, 0.4), "exponential": (-0.8, -0.3, 0.1)}
"""Tried to begin with."""
STAGES = 6
"""Of the first fit: as long as little is explained few pixels count, so that atoms stay where the network has them
until the tip is known."""
LEAST_INDEPENDENT = 0.001
BEHIND = 40.0
"""A force model that explains so much less, natural logarithm, is given up."""
POSSIBLE = 0.001
"""Elements and atoms of less probability are not tried."""
DEAREST = 14.0
"""What a change may cost by the network, natural logarithm."""
MOST_CHANGES = 40
MOST_NEIGHBOURS = np.array([{1: 1, 8: 2, 9: 1, 17: 1, 35: 1, 53: 1}.get(int(z), 4) for z in NUMBERS])
"""Of each of ELEMENTS, which is neutral."""
MOST_ROUNDS = 8
TABLES = 4
"""Of slopes of all values, in float32, that are in memory at a time."""
UNTRIED = 8.0
"""What was not tried costs at least so much."""
REFUSED = 1.0
"""What was tried and not made costs at least so much: the answer has the largest probability."""
WORTH = 5.0
"""What a change has to gain, natural logarithm."""
CONVERGED = 12
"""Rounds of what changes are compared with, at most."""
TRY_ROUNDS = 6
"""In which a change is fitted."""
SEEN, FELT, FREE = 4.5, 3.5, 4.0
"""A change is tried in the image up to SEEN from its atom along x and y, with the atoms up to FELT farther, of which
those up to FREE from it move, A."""
APART = 2.6
"""Changes farther apart than this, A, are made together."""
CLEAR = 10.0
"""What each of them has to gain."""


@dataclass(frozen=True, eq=False)
class Refined:
    """The reading that explains a stack best."""

    candidates: Molecule
    """All candidates; those in the reading where the fit has them and of the elements that it has, with the
    probabilities that network and simulation together give."""
    correlation: float
    """Of the stack and its simulation, mean over slices."""


class Change(NamedTuple):
    """An atom otherwise, and its hydrogens with it."""

    atoms: tuple[tuple[int, int], ...]
    """Which of the candidates becomes what; 0: no atom. The first one is what the change is about."""
    price: float
    """By how much the network thinks less of it, natural logarithm."""


def refined(candidates: Molecule, reading: Molecule, scan: Scan, threads: int = 1, progress: bool = False) -> Refined:
    """The candidates' reading that explains a scan best.

    Args:
        candidates: what the network holds possible, with confidence and probabilities.
        reading: what it holds likeliest; each of its atoms is one of the candidates, at its place.
        scan: of the size at which bonds have their lengths.
        threads: to work on.
        progress: show bars.

    Raises:
        MoleculeError: the reading cannot be simulated. ScanError: it takes too much memory.
    """
    goal = target(scan)
    there, numbers = _among(candidates, reading)
    claimed = TABLES * 4 * OF_ATOM * len(candidates) * goal.images.size
    check_claim(claimed, f"To refine {len(candidates)} possible atoms in an image of this size", ScanError)
    problem = Problem(goal, float(candidates.positions[there, 2].max()), 1.0)
    best = begun(start(candidates, there, numbers, goal.known), problem, progress)
    tried: dict[Change, float] = {}
    known: dict[Change, float] = {}
    for k in range(MOST_ROUNDS):
        problem = problem._replace(independent=max(LEAST_INDEPENDENT, independent(best, goal)))
        best, _ = fitted(again(best, problem), problem, CONVERGED)  # or a change gains what the fit has left to gain
        tried = tries(best, problem, threads, known, f"refine: changes, {k + 1}" if progress else "")
        good = sorted((gain, change) for change, gain in tried.items() if gain < -WORTH)
        chosen = _together(good, candidates)
        for some in ([chosen] if len(chosen) > 1 else []) + [[change] for _, change in good[:3]]:
            h = best.hypothesis
            for change in some:
                h = changed(h, change)
            at = evaluated(h, problem)
            if at is None:
                continue
            at, _ = fitted(at, problem, 4)
            gained = total(at) - total(best)
            if len(some) == 1:
                tried[some[0]] = gained
            if gained < -WORTH:
                best = at
                known = {c: gain for c, gain in tried.items() if _far(c, some, candidates)}
                break
        else:
            break
    else:
        tried = tries(best, problem, threads, known, "refine: probabilities" if progress else "")
    return Refined(likely(best.hypothesis, tried), correlation(best, goal))


def likely(h: Hypothesis, tried: Mapping[Change, float]) -> Molecule:
    """The candidates with what each change costs as probabilities."""
    sure, elements = probabilities(h.candidates)
    places = np.arange(len(sure))
    options = np.column_stack([sure[:, None] * elements, 1 - sure])
    own = np.where(h.there, element_index(h.numbers), len(ELEMENTS))
    cost = np.log(options[places, own])[:, None] - np.log(options)
    cost = np.where(h.there[:, None] | (np.arange(len(ELEMENTS) + 1) == len(ELEMENTS)), np.maximum(cost, UNTRIED), cost)
    cost[places, own] = 0.0
    found: dict[tuple[int, int], float] = {}
    for change, gain in tried.items():
        atom, number = change.atoms[0]
        option = int(element_index(np.array([number]))[0]) if number else len(ELEMENTS)
        found[atom, option] = min(gain, found.get((atom, option), np.inf))
    for (atom, option), gain in found.items():
        cost[atom, option] = max(gain, REFUSED)
    p = softmax(-cost, axis=1)
    confidence = 1 - p[:, -1]
    of_elements = p[:, :-1] / np.maximum(confidence, 1e-9)[:, None]
    shifts = h.values[: OF_ATOM * len(sure)].reshape(-1, OF_ATOM)[:, :3]
    return replace(
        h.candidates,
        positions=h.candidates.positions + np.where(h.there[:, None], shifts, 0.0),
        numbers=np.where(h.there, h.numbers, NUMBERS[of_elements.argmax(1)]),
        confidence=confidence,
        element_probabilities=of_elements,
        class_probabilities=by_class(of_elements),
    )


def correlation(f: Fitted, goal: Target) -> float:
    """Mean over slices."""
    residual, _ = residuals(f.image, goal)
    return float(np.sqrt(1 - np.minimum(1, np.square(residual).sum((0, 1)))).mean())


def _among(candidates: Molecule, reading: Molecule) -> tuple[Bool[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Which candidates are read, and as what."""
    there, numbers = np.zeros(len(candidates), bool), candidates.numbers.copy()
    apart = np.linalg.norm(reading.positions[:, None, :2] - candidates.positions[None, :, :2], axis=2)
    nearest = apart.argmin(1)
    there[nearest], numbers[nearest] = True, reading.numbers
    return there, numbers


def begun(h: Hypothesis, problem: Problem, progress: bool = False) -> Fitted:
    """The network's reading fitted, by the force model, oscillation and height that suit it."""
    by_force = []
    n = OF_ATOM * len(h.there)
    bar = tqdm(total=len(FORCE_MODELS) + STAGES, desc="refine: tip and forces", mininterval=1, disable=not progress)
    for force in FORCE_MODELS:
        bar.update()
        found = []
        for steps in OSCILLATIONS:
            for distance in DISTANCES[force]:
                values = h.values.copy()
                values[len(values) - OF_TIP + DISTANCE] = distance
                at = evaluated(replace(h, force=force, steps=steps, values=values), problem)
                if at is not None:
                    found.append(at)
        found.sort(key=lambda f: f.cost)
        if not found:
            continue
        best = found[0]
        for _ in range(3):  # tip and forces alone
            better, _ = fitted(best, problem, 1, slopes(best, problem).of(lambda k: k >= n))
            if better is best or better.cost > best.cost - 20:
                best = better
                break
            best = better
        by_force.append(best)
    if not by_force:
        raise MoleculeError("What was read cannot be simulated: the tip would go into it.")
    for stage in range(STAGES):
        by_force = [stepped(f, problem, stage) for f in by_force]
        counts = [independent(f, problem.goal) for f in by_force]
        scores = [again(f, problem._replace(independent=max(counts))).cost for f in by_force]
        order = np.argsort(scores)
        by_force = [by_force[k] for k in order if scores[k] < min(scores) + BEHIND]
        bar.update()
    bar.close()
    return by_force[0]


def stepped(f: Fitted, problem: Problem, stage: int) -> Fitted:
    """A few rounds with as many pixels as count by what is left of the stack."""
    here = problem._replace(independent=max(LEAST_INDEPENDENT, independent(f, problem.goal)))
    at, known = fitted(again(f, here), here, 3)
    return oscillating(at, known, here) if stage % 2 else at


def oscillating(f: Fitted, known: Slopes, problem: Problem) -> Fitted:
    """The same with the oscillation that suits it."""
    for stride in (3, 1):
        for sign in (1, -1):
            while 3 <= (steps := f.hypothesis.steps + sign * stride) <= 16:
                at = evaluated(replace(f.hypothesis, steps=steps), problem)
                at = None if at is None else fitted(at, problem, 3, known)[0]
                if at is None or at.cost >= f.cost:
                    break
                f = at
    return f


def probabilities(candidates: Molecule) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n e"]]:
    """Of an atom, and of each element, neither nought nor one."""
    assert candidates.confidence is not None
    assert candidates.element_probabilities is not None
    assert candidates.class_probabilities is not None
    best_of = np.stack([candidates.element_probabilities[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    share = candidates.element_probabilities / np.maximum(best_of[:, CATEGORIES], 1e-9)
    elements = share * candidates.class_probabilities[:, CATEGORIES]
    return np.clip(candidates.confidence, 1e-4, 1 - 1e-4), np.clip(elements, 1e-4, 1.0)


def total(f: Fitted) -> float:
    """Cost with what the network says of the hypothesis."""
    h = f.hypothesis
    sure, elements = probabilities(h.candidates)
    of_each = elements[np.arange(len(sure)), element_index(h.numbers)]
    return f.cost - float(np.log(np.where(h.there, sure * of_each, 1 - sure)).sum())


def changes(h: Hypothesis) -> list[Change]:
    """What may be otherwise, the likeliest first: an atom comes that is bonded to one there, goes, is another element;
    or is another element and its hydrogens come or go with it."""
    sure, elements = probabilities(h.candidates)
    bonds = h.candidates.bonds[h.candidates.likely]
    near: list[list[int]] = [[] for _ in h.there]
    for i, j in bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    own = element_index(h.numbers)
    price_of = np.log(np.where(h.there, sure * elements[np.arange(len(sure)), own], 1 - sure))

    def priced(atoms: tuple[tuple[int, int], ...]) -> Change:
        new = [
            np.log(1 - sure[i] if z == 0 else sure[i] * elements[i, element_index(np.array([z]))[0]]) for i, z in atoms
        ]
        return Change(atoms, float(sum(price_of[i] for i, _ in atoms) - sum(new)))

    found = []
    for i, there in enumerate(h.there.tolist()):
        if not there and not any(h.there[j] for j in near[i]):
            continue
        options = [
            int(NUMBERS[k]) for k in np.flatnonzero(elements[i] * sure[i] > POSSIBLE) if k != own[i] or not there
        ]
        hydrogens = [j for j in near[i] if h.numbers[j] == 1 and len(near[j]) == 1]
        seen = tuple((j, 0) for j in hydrogens if h.there[j])
        unseen = tuple((j, 1) for j in hydrogens if not h.there[j] and sure[j] > POSSIBLE)
        for z in options:
            found.append(priced(((i, z),)))
            if z > 1 and there:
                found += [priced(((i, z), *some)) for some in (seen, unseen) if some]
        if there and 1 - sure[i] > POSSIBLE:
            found.append(priced(((i, 0),)))
    found = [c for c in found if c.price < DEAREST and not crowded(h, changed(h, c), near)]
    return sorted(found, key=lambda change: change.price)[:MOST_CHANGES]


def crowded(before: Hypothesis, after: Hypothesis, near: Sequence[Sequence[int]]) -> bool:
    """Whether an atom has more neighbours than its element can have, and more beyond that than before."""

    def beyond(h: Hypothesis) -> Int[np.ndarray, " n"]:
        neighbours = np.array([h.there[list(others)].sum() for others in near])
        return np.where(h.there, np.maximum(0, neighbours - MOST_NEIGHBOURS[element_index(h.numbers)]), 0)

    return bool((beyond(after) > beyond(before)).any())


def changed(h: Hypothesis, change: Change) -> Hypothesis:
    """A hypothesis with some atoms otherwise; an element that is new in it has the force model's own values."""
    there, numbers, values = h.there.copy(), h.numbers.copy(), h.values.copy()
    for atom, number in change.atoms:
        there[atom] = number > 0
        if number:
            numbers[atom] = number
            element = int(element_index(numbers[atom : atom + 1])[0])
            if element not in element_index(h.numbers[h.there]):
                at = OF_ATOM * len(there) + OF_ELEMENT * element
                values[at : at + OF_ELEMENT] = 0.0
    return replace(h, there=there, numbers=numbers, values=values)


def tries(
    f: Fitted, problem: Problem, threads: int, known: Mapping[Change, float], told: str = ""
) -> dict[Change, float]:
    """Each change, and by how much it raises what is minimised, by what its surroundings show.

    Args:
        known: of changes that need not be tried again.
        told: what a bar says, none if empty.
    """

    def tried(change: Change) -> float:
        if change in known:
            return known[change]
        base, around, places = near_to(f.hypothesis, problem, change.atoms[0][0])
        before = evaluated(base, around)
        there = dict(zip(places.tolist(), range(len(places)), strict=True))
        at = evaluated(changed(base, change._replace(atoms=tuple((there[i], z) for i, z in change.atoms))), around)
        if before is None or at is None:
            return np.inf
        before, _ = fitted(before, around, 2)
        return total(fitted(at, around, TRY_ROUNDS, hopeless=before.cost)[0]) - total(before)

    which = changes(f.hypothesis)
    with ThreadPoolExecutor(threads) as pool:
        gains = tqdm(pool.map(tried, which), told, len(which), leave=False, mininterval=1, disable=not told)
        return dict(zip(which, gains, strict=True))


def near_to(h: Hypothesis, problem: Problem, atom: int) -> tuple[Hypothesis, Problem, Int[np.ndarray, " k"]]:
    """The part of an image around one of the candidates, what is there of a hypothesis, of which the closest atoms
    alone are free, and which candidates those are."""
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
    return part, problem._replace(goal=there, fixed=fixed), kept


def _together(good: list[tuple[float, Change]], candidates: Molecule) -> list[Change]:
    """The changes that gain most, as far from each other as not to matter to each other."""
    chosen: list[Change] = []
    for gain, change in good:
        place = candidates.positions[change.atoms[0][0]]
        near = any(np.linalg.norm(candidates.positions[c.atoms[0][0]] - place) < APART for c in chosen)
        if gain < -CLEAR and not near:
            chosen.append(change)
    return chosen


def _far(change: Change, made: Sequence[Change], candidates: Molecule) -> bool:
    """Whether a change is so far from those that were made that it is worth what it was."""
    place = candidates.positions[change.atoms[0][0]]
    return all(np.linalg.norm(candidates.positions[c.atoms[0][0]] - place) > FREE + APART for c in made)
