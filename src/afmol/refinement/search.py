"""Which reading explains a stack best: atoms that come and go and change, as long as that explains more than it costs.

    candidates -> reading of the network -> force model, oscillation, height -> fit
               -> each change alone -> combinations that look best (combinations.py) -> each fitted -> the best one
               -> ... -> what each change would have cost

A reading costs what the network says against it and how uncommon its atoms' surroundings are (environments.py), and
gains by how well it explains the stack once its own values are fitted (fit.py). The search moves on to the best reading
that it has not been to, even if that is a little worse than the one that it is at: what is wrong together comes right
one after the other.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..elements import CATEGORIES, ELEMENTS, NUMBERS, by_class, element_index
from ..errors import MoleculeError, ScanError
from ..limits import check_claim
from ..structures import Molecule, Scan
from .combinations import Combination, Effects, Option, changed, combinations, searched
from .environments import felt, neighbours, unlikelihood
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
from .imaging import DISTANCE, OF_ATOM, OF_ELEMENT, OF_TIP, Hypothesis, Target, start, target
from .missed import with_missed

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
"""What one change may cost by the network, natural logarithm."""
MOST_OPTIONS = 80
MOST_HYDROGENS = 3
"""That change together with the atom that they are at."""
STRENGTH = 0.5
"""Of what is plausible by itself."""
TRUST = (1.0, 0.2)
"""In least squares."""
WIDTH, TOGETHER = 20, 6
"""Of the search through combinations, and how many changes they are of."""
PROPOSED = 6
"""By each trust."""
MOST_MOVES, PATIENCE = 12, 3
"""From hypothesis to hypothesis, and how many of them in a row may be no better."""
TABLES = 4
"""Of slopes of all values, in float32, that are in memory at a time."""
UNTRIED = 6.0
"""What was not tried costs at least so much."""
REFUSED = 0.5
"""What was tried and not made costs at least so much: the answer has the largest probability."""
TOO_SURE = 4.0
"""How many times too much differences of what is minimised say: fits end in minima that are not the deepest, and what
models lack is not independent of what is compared. By validation molecules (docs/refinement.md)."""
SUREST = 0.99
"""Of an atom: what deep atoms explain may be that places, charges and forces are wrong elsewhere, however many standard
deviations it makes (60 validation molecules; LOG.md, 2026-12-01)."""
WORTH = 0.5
"""What is better is so by that, natural logarithm."""
ROUNDS = 12
"""In which what is compared is fitted, at most."""
Graph = tuple[int, ...]
"""The atomic number of each candidate, 0 where no atom is."""


@dataclass(frozen=True, eq=False)
class Refined:
    """The reading that explains a stack best."""

    candidates: Molecule
    """All candidates; those in the reading where the fit has them and of the elements that it has, with the
    probabilities that network and simulation together give."""
    correlation: float
    """Of the stack and its simulation, mean over slices."""


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
    candidates = with_missed(candidates, *_among(candidates, reading))
    there, numbers = _among(candidates, reading)
    rows = OF_ATOM * len(candidates) + (1 + OF_ATOM + OF_ELEMENT) * MOST_OPTIONS
    claimed = TABLES * 4 * rows * goal.images.size
    check_claim(claimed, f"To refine {len(candidates)} possible atoms in an image of this size", ScanError)
    problem = Problem(goal, float(candidates.positions[there, 2].max()), 1.0)
    with threadpool_limits(1, "blas"):  # threads of its own in each of ours would wait for each other
        return _searched(start(candidates, there, numbers, goal.known), problem, threads, progress)


def _searched(h: Hypothesis, problem: Problem, threads: int, progress: bool) -> Refined:
    """From the network's reading on."""
    goal = problem.goal
    here = begun(h, problem, progress)
    problem = problem._replace(independent=LEAST_INDEPENDENT)
    best, idle = here, 0
    been, fits, effects = set[Graph](), dict[Graph, Hypothesis](), Effects()
    bar = tqdm(total=MOST_MOVES, desc="refine: atoms and elements", mininterval=1, disable=not progress)
    for _ in range(MOST_MOVES):
        problem = problem._replace(independent=max(problem.independent, independent(here, goal)))
        here, known = fitted(again(here, problem), problem, ROUNDS)  # or a change gains what the fit has left to gain
        best = again(best, problem)
        if not been or total(here) < total(best) - WORTH:
            best = here = oscillating(here, known, problem)
            idle = 0
        else:
            idle += 1
        been.add(graph(here.hypothesis))
        fits[graph(here.hypothesis)] = here.hypothesis
        if idle == PATIENCE:
            break
        new = [h for h in proposed(here, problem, threads, effects) if graph(h) not in been]
        ends = _all_fitted([fits.get(graph(h), h) for h in new], problem, threads)
        fits |= {graph(f.hypothesis): f.hypothesis for f in ends}
        if not ends:
            break
        here = min(ends, key=total)
        bar.update()
    bar.close()
    best = here if total(here) < total(best) - WORTH else best  # where the last move ended
    at_end = [f for h in fits.values() if (f := evaluated(h, problem)) is not None]
    return Refined(
        likely(best.hypothesis, [(f.hypothesis, total(f) - total(best)) for f in at_end]), correlation(best, goal)
    )


def graph(h: Hypothesis) -> Graph:
    """What is where."""
    return tuple(np.where(h.there, h.numbers, 0).tolist())


def _all_fitted(hypotheses: Sequence[Hypothesis], problem: Problem, threads: int) -> list[Fitted]:
    """Those that can be simulated."""

    def one(h: Hypothesis) -> Fitted | None:
        at = evaluated(h, problem)
        return None if at is None else fitted(at, problem, ROUNDS)[0]

    with ThreadPoolExecutor(threads) as pool:
        return [f for f in pool.map(one, hypotheses) if f is not None]


def likely(h: Hypothesis, others: Sequence[tuple[Hypothesis, float]]) -> Molecule:
    """The candidates with what it costs to have them otherwise as probabilities.

    Args:
        others: hypotheses that were fitted, and how much more is minimised by them.
    """
    sure, elements = probabilities(h.candidates)
    places = np.arange(len(sure))
    options = np.column_stack([sure[:, None] * elements, 1 - sure])
    own = _option(h)
    cost = np.log(options[places, own])[:, None] - np.log(options)
    cost = np.where(h.there[:, None] | (np.arange(len(ELEMENTS) + 1) == len(ELEMENTS)), np.maximum(cost, UNTRIED), cost)
    tried = np.full_like(cost, np.inf)
    for other, more in others:
        option = _option(other)
        tried[places, option] = np.minimum(tried[places, option], max(more / TOO_SURE, REFUSED))
    cost = np.where(np.isfinite(tried), tried, cost)
    cost[places, own] = 0.0
    p = softmax(-cost, axis=1)
    confidence = 1 - p[:, -1]
    of_elements = p[:, :-1] / np.maximum(confidence, 1e-9)[:, None]
    shifts = h.values[: OF_ATOM * len(sure)].reshape(-1, OF_ATOM)[:, :3]
    return replace(
        h.candidates,
        positions=h.candidates.positions + np.where(h.there[:, None], shifts, 0.0),
        numbers=np.where(h.there, h.numbers, NUMBERS[of_elements.argmax(1)]),
        confidence=np.minimum(confidence, SUREST),
        element_probabilities=of_elements,
        class_probabilities=by_class(of_elements),
    )


def _option(h: Hypothesis) -> Int[np.ndarray, " n"]:
    """What each atom is: its place among ELEMENTS, or behind them if it is not there."""
    return np.where(h.there, element_index(h.numbers), len(ELEMENTS))


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
    """Cost with what the network and the training molecules say of the hypothesis."""
    h = f.hypothesis
    sure, elements = probabilities(h.candidates)
    of_each = elements[np.arange(len(sure)), element_index(h.numbers)]
    said = float(np.log(np.where(h.there, sure * of_each, 1 - sure)).sum())
    return f.cost - said + STRENGTH * unlikelihood(graph(h), bonded(h.candidates))


def bonded(candidates: Molecule) -> list[list[int]]:
    """The atoms that each may be bonded to."""
    return neighbours(len(candidates), candidates.bonds[candidates.likely])


def options(h: Hypothesis) -> list[Option]:
    """What may be otherwise, the likeliest first: an atom comes that is bonded to one there, goes, is another element;
    it has more or fewer hydrogens besides."""
    sure, elements = probabilities(h.candidates)
    near, own, found = bonded(h.candidates), element_index(h.numbers), []
    prices: dict[tuple[int, int], float] = {}
    for i, there in enumerate(h.there.tolist()):
        now = sure[i] * elements[i, own[i]] if there else 1 - sure[i]
        if there:
            prices[i, 0] = float(np.log(now / (1 - sure[i])))
        for k, z in enumerate(NUMBERS.tolist()):
            if (then := sure[i] * elements[i, k]) > POSSIBLE and not (there and k == own[i]):
                prices[i, z] = float(np.log(now / then))
    for (i, z), price in prices.items():
        if h.there[i] or any(h.there[j] for j in near[i]):
            found.append(Option(((i, z),), price))
    hydrogen = np.where(h.there, h.numbers == 1, elements[:, 0] > 0.5)
    for i in np.flatnonzero(h.there & ~hydrogen).tolist():
        around = sorted((j for j in near[i] if hydrogen[j]), key=lambda j: (not h.there[j], -sure[j]))[:MOST_HYDROGENS]
        for z in (int(h.numbers[i]), *(z for j, z in prices if j == i and z > 1)):
            for count in range(len(around) + 1):
                wanted = [(i, z)] if z != h.numbers[i] else []
                wanted += [(j, int(k < count)) for k, j in enumerate(around) if h.there[j] != (k < count)]
                if len(wanted) > 1 and all(change in prices for change in wanted):
                    found.append(Option(tuple(wanted), sum(prices[change] for change in wanted)))
    return sorted((o for o in found if o.price < DEAREST), key=lambda o: o.price)[:MOST_OPTIONS]


def proposed(f: Fitted, problem: Problem, threads: int, effects: Effects) -> list[Hypothesis]:
    """Other hypotheses that look best by least squares, and that look best where these are trusted less: far from
    where they were taken they say little, and what is plausible by itself says more."""
    h = f.hypothesis
    near, before = bonded(h.candidates), graph(h)
    sums = combinations(f, problem, options(h), threads, effects)
    parts_before = [unlikelihood(before, near, [i]) for i in range(len(before))]

    def made(chosen: Combination) -> list[tuple[int, int]]:
        return [change for k in chosen if (o := sums.options[k]) for change in o.made]

    @cache
    def parts(chosen: Combination) -> tuple[float, float]:
        after = list(before)
        for atom, number in made(chosen):
            after[atom] = number
        parts_of = felt([atom for atom, _ in made(chosen)], near)
        plausible = STRENGTH * (unlikelihood(after, near, parts_of) - sum(parts_before[i] for i in parts_of))
        return sums.gained(chosen), plausible + sum(o.price for k in chosen if (o := sums.options[k]))

    found: dict[Graph, Hypothesis] = {}
    for trust in TRUST:

        def score(chosen: Combination, trust: float = trust) -> float:
            image, known = parts(chosen)
            return trust * image + known

        scores, wanted = searched(sums.options, score, WIDTH, TOGETHER), len(found) + PROPOSED
        for chosen in sorted(scores, key=scores.__getitem__):
            after = changed(h, made(chosen))
            found.setdefault(graph(after), replace(after, values=sums.values(chosen, after)))
            if len(found) == wanted:
                break
    return list(found.values())
