"""A hypothesis fitted to a stack: Levenberg and Marquardt's least squares with what is known beforehand.

    equation                                             variable    of
    minimise  (W / 2) sum_s ln |d_s - a_s m_s|^2         d_s, m_s    slice: measured, simulated, of zero mean; a_s m_s
              + sum_k t_k^2 ln(1 + (v_k / t_k S_k)^2) / 2            is the part of d_s along m_s, so that scale and
              + sum_b t_b^2 ln(1 + (e_b / t_b)^2) / 2                offset of each slice do not matter
                                                         v_k, S_k    value of the hypothesis, its spread
                                                         t_k         TAIL of atoms' values, else infinite
                                                         e_b         bond, angle, plane: its error, in spreads
                                                                     (lengths.py, planes.py)
                                                         W           pixels that are independent

The first term is the likelihood of white noise whose strength in each slice is not known. What a simulation cannot show
of a measured stack is no white noise: neighbouring pixels are wrong together, and so count for fewer (`independent`).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve

from ..elements import ELEMENTS
from ..errors import MoleculeError, ScanError
from ..lengths import known_angles, known_bonds
from .charges import expected_charges
from .imaging import (
    CHARGE,
    DISPERSION,
    DISTANCE,
    DRIFT_X,
    DRIFT_Y,
    OF_ATOM,
    OF_ELEMENT,
    OF_TIP,
    SHARE,
    SPACING,
    STIFFNESS,
    Hypothesis,
    Picture,
    Target,
    normalised,
    picture_slopes,
    pictured,
)
from .planes import heights, known_planes
from .slopes import unexplained

SPREAD_OF_PLACE = (0.045, 0.045, 0.06)
"""Of x, y, z (A): the errors of the network, of sure atoms at the top."""
SPREAD_OF_CHARGE = 0.1
"""Of atoms that are not there, e; of others it depends on what lies around them (charges.py)."""
DEEPER, UNSURE, MOST_UNSURE = 0.08, 0.16, 0.085
"""What the network's errors grow by: in height, A per A of depth; in x, y, z, A, by how likely an atom is none, and how
far (300 flat validation molecules as measured)."""
TAIL = 2.5
"""Spreads from which on such an error, or that of a charge, is one of the few large ones (likeliest for the 5,007 atoms
of the same)."""
SPREAD_OF_ELEMENT = {"lennard-jones": (0.05, 0.4), "exponential": (0.08, 0.4)}
"""How wrong force models are of elements (data/conditions.py), logarithms."""
TIP_MEANS = {CHARGE: 0.03, SHARE: 0.1}
TIP_SPREADS = {STIFFNESS: 0.5, CHARGE: 0.06, SHARE: 0.4, DISTANCE: 1.0, DISPERSION: 0.5}
TIP_SPREADS |= {DRIFT_X: 0.5, DRIFT_Y: 0.5, SPACING: 0.3}
BOUNDS = {STIFFNESS: (float(np.log(0.1 / 0.4)), float(np.log(2.0 / 0.4))), DISTANCE: (-1.2, 1.8)}
BOUNDS |= {DISPERSION: (-2.5, 0.7), SPACING: (-1.5, 1.0)}
BOUNDS |= {CHARGE: (-1.0, 1.0), SHARE: (-4.0, 4.0), DRIFT_X: (-3.0, 3.0), DRIFT_Y: (-3.0, 3.0)}
"""Of the tip's values."""
FARTHEST = 0.6
"""That an atom moves along each axis, A: what is farther from where the network has it is another atom."""
MOST_CHARGE, MOST_FACTOR = 2.0, (1.0, 3.0)
"""e, beside what is expected; logarithms. Far beyond what fits end at, as charge, share and drift of the tip are: steps
that are not damped yet would overflow."""
OUTLIER = 4.0
"""Spreads from which on a distance says little (restraints.py)."""
BENT = 1.0
"""Spreads from which on a plane says little: rings that are not flat are rare, but then far from it."""
LEAST_DAMPING, TRIES = 1e-4, 6
"""Of a step, and how many steps are tried, each damped ten times as much."""
KEPT = 0.75
"""The share of what a step is to gain from which on no shorter one is tried."""
HOPEFUL = 10.0
"""How many times closer to what can be a round may come."""
ALIKE = 1.5
"""How far apart pixels may be wrong together, A."""


class Fitted(NamedTuple):
    """A hypothesis where it explains a stack best, by what has been done so far."""

    hypothesis: Hypothesis
    cost: float
    """What is minimised."""
    picture: Picture

    @property
    def image(self) -> Float[np.ndarray, "nx ny nz"]:
        """Its slices."""
        return self.picture.slices


class Slopes(NamedTuple):
    """How the image changes with the values, at a fitted hypothesis."""

    active: Int[np.ndarray, " a"]
    """Places of the values."""
    columns: Float[np.ndarray, "a nx ny nz"]
    """The change per unit."""

    def of(self, wanted: Callable[[int], bool]) -> "Slopes":
        """Some of them."""
        rows = np.flatnonzero([wanted(int(k)) for k in self.active])
        return Slopes(self.active[rows], self.columns[rows])


class Problem(NamedTuple):
    """What stays while hypotheses come and go."""

    goal: Target
    top: float
    """Height that closest approaches are counted from, A."""
    independent: float
    """Share of the pixels that count."""
    fixed: Int[np.ndarray, " k"] | None = None
    """Places of values that stay as they are; none if None."""


def cost_of(h: Hypothesis, picture: Float[np.ndarray, "nx ny nz"], problem: Problem) -> float:
    """What is minimised."""
    residual, _ = residuals(picture, problem.goal)
    pixels = problem.independent * picture[..., 0].size
    misfit = pixels / 2 * np.log(np.maximum(np.square(residual).sum((0, 1)), 1e-9)).sum()
    active = h.active
    means, spreads = beforehand(h)
    off = (h.values[active] - means[active]) / spreads[active]
    of_atoms = active < OF_ATOM * len(h.there)
    held = restraints(h)
    known = np.square(off[~of_atoms]).sum() / 2 + _robust(off[of_atoms], TAIL) + _robust(held.errors, held.tails)
    return float(misfit + known)


def _robust(errors: Float[np.ndarray, " k"], tail: float | Float[np.ndarray, " k"]) -> float:
    """Half the sum of their squares, the less of those beyond the tail."""
    return float((np.square(tail) / 2 * np.log1p(np.square(errors / tail))).sum())


def evaluated(h: Hypothesis, problem: Problem) -> Fitted | None:
    """A hypothesis as it is; None where it cannot be simulated."""
    with suppress(ScanError, MoleculeError), np.errstate(over="ignore", invalid="ignore"):
        picture = pictured(h, problem.goal, problem.top)
        cost = cost_of(h, picture.slices, problem)
        return Fitted(h, cost, picture) if np.isfinite(cost) else None  # none that float32 cannot hold
    return None


def again(f: Fitted, problem: Problem) -> Fitted:
    """The same of a problem whose pixels count otherwise."""
    return f._replace(cost=cost_of(f.hypothesis, f.image, problem))


def residuals(
    picture: Float[np.ndarray, "nx ny nz"], goal: Target
) -> tuple[Float[np.ndarray, "nx ny nz"], Float[np.ndarray, " nz"]]:
    """What an image leaves of each slice, and the factor on each of its slices."""
    centred = picture - picture.mean((0, 1))
    norm = np.maximum(np.square(centred).sum((0, 1)), 1e-20)
    factor = np.maximum((centred * goal.images).sum((0, 1)) / norm, 0.0)  # an inverted image explains nothing
    return goal.images - factor * centred, factor


def beforehand(h: Hypothesis) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Mean and spread of each value before the stack is seen."""
    n, e = len(h.there), len(ELEMENTS)
    tip = range(OF_TIP)
    means = np.concatenate([np.zeros(OF_ATOM * n + OF_ELEMENT * e), [TIP_MEANS.get(k, 0.0) for k in tip]])
    assert h.candidates.confidence is not None
    of_atoms = np.tile((*SPREAD_OF_PLACE, SPREAD_OF_CHARGE), (n, 1))
    of_atoms[:, :3] += np.minimum(UNSURE * (1 - h.candidates.confidence), MOST_UNSURE)[:, None]
    of_atoms[:, 2] += DEEPER * np.maximum(-h.candidates.positions[:, 2], 0.0)
    of_atoms[h.there, 3] = expected_charges(h.molecule()).spread
    rest = [*SPREAD_OF_ELEMENT[h.force] * e, *(TIP_SPREADS[k] for k in tip)]
    return means, np.concatenate([of_atoms.ravel(), rest])


class Restraints(NamedTuple):
    """Bonds, angles and planes."""

    errors: Float[np.ndarray, " k"]
    """In spreads."""
    atoms: Int[np.ndarray, "k 4"]
    """Their atoms among the candidates; of bonds and angles the first two count."""
    slopes: Float[np.ndarray, "k 4 3"]
    """By these atoms' places."""
    tails: Float[np.ndarray, " k"]
    """Errors from which on they say little."""


def restraints(h: Hypothesis) -> Restraints:
    """What is known of how a hypothesis' atoms lie to each other."""
    molecule, there = h.molecule(), np.flatnonzero(h.there)
    bonds, angles = known_bonds(molecule), known_angles(molecule)
    pairs, mean, spread = (np.concatenate(both) for both in zip(bonds, angles, strict=True))
    pairs = pairs.astype(int)
    apart = molecule.positions[pairs[:, 0]] - molecule.positions[pairs[:, 1]]
    distance = np.maximum(np.linalg.norm(apart, axis=1), 1e-3)
    along = apart / (distance * mean * spread)[:, None]
    planes = known_planes(molecule)
    far, by_place = heights(molecule.positions, planes.atoms)
    return Restraints(
        np.concatenate([(distance / mean - 1) / spread, far / planes.spread]),
        there[np.concatenate([np.pad(pairs, ((0, 0), (0, 2)), "edge"), planes.atoms])],
        np.concatenate([np.stack([along, -along, 0 * along, 0 * along], 1), by_place / planes.spread[:, None, None]]),
        np.concatenate([np.full(len(pairs), OUTLIER), np.full(len(far), BENT)]),
    )


def known_beforehand(
    h: Hypothesis, active: Int[np.ndarray, " a"]
) -> tuple[Float[np.ndarray, "a a"], Float[np.ndarray, " a"]]:
    """Curvature of the second and third term by some of the values, and where they pull them."""
    place = np.full(len(h.values), -1)
    place[active] = np.arange(len(active))
    errors, atoms, by_place, tails = restraints(h)
    row = np.zeros((len(errors), len(active)))
    for axis in range(3):
        for end in range(4):
            at = place[OF_ATOM * atoms[:, end] + axis]
            found = np.flatnonzero(at >= 0)
            row[found, at[found]] += by_place[found, end, axis]
    firm = 1 / (1 + np.square(errors / tails))
    own, pull = own_beforehand(h, active)
    return np.diag(own) + row.T @ (firm[:, None] * row), pull - row.T @ (firm * errors)


def own_beforehand(
    h: Hypothesis, places: Int[np.ndarray, " a"]
) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " a"]]:
    """Curvature of the second term alone by values at some places, and its pull."""
    means, spreads = (x[places] for x in beforehand(h))
    off = (h.values[places] - means) / spreads
    firm = np.where(places < OF_ATOM * len(h.there), 1 / (1 + np.square(off / TAIL)), 1.0)
    return firm / spreads**2, -firm * off / spreads


def slopes(f: Fitted, problem: Problem) -> Slopes:
    """How the image changes with the values that are free."""
    fixed = frozenset() if problem.fixed is None else frozenset(problem.fixed.tolist())
    found = Slopes(f.hypothesis.active, picture_slopes(f.hypothesis, f.picture, problem.goal))
    return found.of(lambda k: k not in fixed) if fixed else found


def seen(
    columns: Float[np.ndarray, "k nx ny nz"], f: Fitted, problem: Problem
) -> tuple[Float[np.ndarray, "k px"], Float[np.ndarray, " px"]]:
    """Changes of an image, and what it leaves of the stack, so that squares are what the first term grows by: scaled,
    and without what offset and factor of a slice make up for."""
    residual, factor = residuals(f.image, problem.goal)
    weight = np.sqrt(problem.independent * f.image[..., 0].size / np.square(residual).sum((0, 1)))
    table, (nx, ny, nz) = np.empty(columns.shape, np.float32), f.image.shape
    along, scale = normalised(f.image).reshape(nx, ny * nz), (factor * weight).astype(np.float32)
    lines = (-1, nx, ny * nz)
    unexplained(columns.reshape(lines), along, scale, table.reshape(lines))
    return table.reshape(len(columns), -1), (residual * weight).astype(np.float32).ravel()


class Step(NamedTuple):
    """Where least squares go from a hypothesis."""

    to: Hypothesis
    damping: float
    hoped: float
    """By how much less is minimised there, by least squares."""


def steps(f: Fitted, known: Slopes, problem: Problem, damping: float) -> Iterator[Step]:
    """Ever shorter ones, by slopes that may be those of a hypothesis close by."""
    h, active = f.hypothesis, known.active
    table, left = seen(known.columns, f, problem)
    with np.errstate(over="ignore", invalid="ignore"):
        curvature, pull = (table @ table.T).astype(float), (table @ left).astype(float)
    if not np.isfinite(curvature).all():  # the tip runs into an atom, and float32 cannot say how steeply
        return
    known_curvature, known_pull = known_beforehand(h, active)
    curvature += known_curvature
    pull += known_pull
    for _ in range(TRIES):
        damped = curvature + np.diag(damping * np.diag(curvature))
        values, step = h.values.copy(), cho_solve(cho_factor(damped), pull)
        values[active] += step
        yield Step(replace(h, values=within(values)), damping, float(pull @ step - step @ curvature @ step / 2))
        damping *= 10


def within(values: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Values as far as they may go."""
    values, tip = values.copy(), len(values) - OF_TIP
    elements = tip - OF_ELEMENT * len(ELEMENTS)
    most = np.array([FARTHEST, FARTHEST, FARTHEST, MOST_CHARGE])
    of_atoms = values[:elements].reshape(-1, OF_ATOM)
    of_atoms[:] = np.clip(of_atoms, -most, most)
    factors = values[elements:tip].reshape(-1, OF_ELEMENT)
    factors[:] = np.clip(factors, -np.array(MOST_FACTOR), MOST_FACTOR)
    for which, (low, high) in BOUNDS.items():
        values[tip + which] = np.clip(values[tip + which], low, high)
    return values


def improved(f: Fitted, known: Slopes, problem: Problem, damping: float) -> tuple[Fitted, float] | None:
    """The step that lowers the cost most, if one does, and how it is damped; the first that keeps what it promises."""
    best = None
    for step in steps(f, known, problem, damping):
        at = evaluated(step.to, problem)
        if best is not None and (at is None or at.cost >= best[0].cost):
            break
        best = (at, step.damping) if at is not None and at.cost < f.cost else best
        if best is not None and f.cost - best[0].cost > KEPT * step.hoped:
            break
    return best


def fitted(
    f: Fitted,
    problem: Problem,
    rounds: int,
    known: Slopes | None = None,
    enough: float = 1.0,
    hopeless: float = np.inf,
) -> tuple[Fitted, Slopes]:
    """The best that so many rounds reach, fewer where one gains less than `enough`; and slopes close by.

    Args:
        known: slopes that are good enough for all rounds; if None each takes its own.
        hopeless: a cost that is not reached any more by what is HOPEFUL times as far from it a round.
    """
    own, damping = known or slopes(f, problem), LEAST_DAMPING
    for k in range(rounds):
        found = improved(f, own, problem, damping)
        if found is None:
            break
        better, damping = found[0], max(found[1] / 10, LEAST_DAMPING)
        gained, f = f.cost - better.cost, better
        if gained < enough or f.cost > hopeless + HOPEFUL ** (rounds - k - 1):
            break
        if known is None and k < rounds - 1:
            own = slopes(f, problem)
    return f, own


def independent(f: Fitted, goal: Target) -> float:
    """The share of pixels that count, by how much what is left of the stack is alike in neighbouring pixels and slices:
    1 over the sum of the correlations to all others; 1 for white noise."""
    residual, _ = residuals(f.image, goal)
    residual = residual / np.maximum(np.sqrt(np.square(residual).sum((0, 1))), 1e-12)
    spectrum = np.square(np.abs(np.fft.fftn(residual)))
    alike = np.fft.ifftn(spectrum).real
    alike = alike / alike.flat[0]
    nx, ny, _ = alike.shape
    i, j = (np.minimum(np.arange(n), n - np.arange(n)) * side / n for n, side in zip((nx, ny), goal.size, strict=True))
    near = (np.hypot(i[:, None], j) <= ALIKE)[..., None]
    beyond_chance = alike > 3 / np.sqrt(alike.size)
    return float(1 / max(1.0, np.where(near & beyond_chance, alike, 0.0).sum()))
