"""Whether what was read can be a molecule: the most probable reading whose valences are all full, if it is not far off.

    equation                                               variable       of
    minimise  sum cost_ik z_ik, at most STRENGTH           z_ik  0, 1     an atom: its class and valence, or no atom
    such that sum_k z_ik = 1                               w_ij  0, 1     a bond: whether both of its atoms are there
              sum_j (w_ij + x_ij) = sum_k valence_k z_ik   x_ij  0, 1, 2  a bond: its order - 1

A network says of each atom what it is; that a ring has a hydrogen too few or a nitrogen too many, no atom alone shows.
Where a reading that is at most exp(STRENGTH) times less probable is a whole molecule, neutral and without unpaired
electrons, that is the answer. HiGHS finds it (scipy.optimize.milp). Pieces of molecules whose rest is not seen have no
such reading, and stay as the network says them. Where the formula is known, the whole molecule is the one that has it.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.special import expit

from .composition import ANY, Formula, complete
from .elements import CATEGORIES, NUMBERS, element_index
from .hydrogens import STRAIGHT, angle
from .structures import Molecule

STRENGTH = 2.0
"""Natural logarithm of how many times more probable a whole molecule is, all else equal. Of 1, 2, 3 and 4 the best on
validation molecules, flat ones as measured and others (LOG.md, 2026-11-29)."""
STRENGTH_OF_FORMULA = 25.0
"""The same of a whole molecule that has the formula which is known: a formula is no matter of likelihood. 3 to 30 do as
well on validation molecules (LOG.md, 2026-11-30)."""
FAINTEST_ATOM = float(expit(-STRENGTH))
"""Candidates of less confidence are part of no answer."""
LEAST_ATOMS = 6
"""What is smaller is rather a part of a molecule."""
MOST_NODES = 200
"""Of the search, which so ends on any machine alike; a molecule that takes more stays as it is."""

OPTIONS = np.array([[0, 1, 0], [1, 4, 0], [2, 3, 0], [2, 5, 1], [3, 2, 0], [3, 4, 1], [3, 6, 2], [4, 1, 0], [-1, 0, 0]])
"""What an atom may be: class, valence, and how many oxygens with no other neighbour it takes for that: those of nitro
groups, N-oxides, sulfoxides, sulfones. The last one: no atom."""
CLASS, VALENCE, OXYGENS = OPTIONS.T
OXYGEN, ABSENT = 4, 8
"""Places in OPTIONS."""
SULFUR = int(element_index(np.array([16]))[0])
LEAST = 1e-9
"""Probabilities are taken as at least this."""


def settled(candidates: Molecule, strength: float = STRENGTH, formula: Formula | None = None) -> Molecule:
    """The likely atoms of a network's candidates, or in each part those of its whole reading, if there is one.

    Atoms that come in by it, or as another class, get the probability that it has beside the network's reading, all
    other classes the rest of it; where a whole formula is known, probabilities stay as they are (composition.py).

    Args:
        candidates: with confidence, FAINTEST_ATOM and more, and probabilities of classes, elements and bonds.
        strength: see STRENGTH; candidates of less than expit(-strength) are part of no answer.
        formula: that of a whole molecule, as far as it is known (composition.py).
    """
    confidence, classes, elements = _probabilities(candidates)
    numbers, keep = candidates.numbers.copy(), confidence >= 0.5
    for part in candidates.parts() if formula is None else candidates.parts(touching=0.0):  # one molecule each
        if len(part) < LEAST_ATOMS:
            continue
        reading = _whole(candidates.taken(part).with_likely_bonds(), strength, formula)
        if reading is None:
            continue
        said, cost = reading
        sure = float(expit(strength - cost))
        keep[part] = said >= 0
        for i, new in zip(part[said >= 0], said[said >= 0], strict=True):
            numbers[i] = NUMBERS[np.where(new == CATEGORIES, elements[i], -1.0).argmax()]
            if formula is not None and complete(formula):
                continue
            confidence[i] = confidence[i] if confidence[i] >= 0.5 else sure
            if new != candidates.classes[i]:
                share = np.full(len(classes[i]), (1 - sure) / (1 - classes[i, new]))
                share[new] = sure / classes[i, new]
                classes[i] *= share
                elements[i] *= share[CATEGORIES]
    values = {"class_probabilities": classes, "element_probabilities": elements, "confidence": confidence}
    return replace(candidates, numbers=numbers, **values).taken(np.flatnonzero(keep))


def _probabilities(molecule: Molecule) -> list[Float[np.ndarray, "..."]]:
    """Copies of confidence and of the classes' and elements' probabilities."""
    values = (molecule.confidence, molecule.class_probabilities, molecule.element_probabilities)
    assert all(value is not None for value in values)
    return [np.array(value) for value in values]


def _whole(molecule: Molecule, strength: float, formula: Formula | None) -> tuple[Int[np.ndarray, " n"], float] | None:
    """The class of each atom in the whole reading, -1 for no atom, and what it costs: the natural logarithm of how many
    times less probable it is than the network's own. None if there is none.

    Args:
        molecule: one part, its likely bonds alone.
    """
    cost = _costs(molecule)
    possible = cost <= strength
    if (possible.sum(1) == 1).all() or (formula is not None and formula[formula < ANY].sum() > len(molecule)):
        return None  # nothing is in doubt; or it is not all there
    (n, k), m = cost.shape, len(molecule.bonds)
    z, w, x = np.arange(n * k).reshape(n, k), n * k + np.arange(m), n * k + m + np.arange(m)
    bonds_of: list[list[int]] = [[] for _ in range(n)]
    near: list[list[int]] = [[] for _ in range(n)]
    terms: list[tuple[np.ndarray, np.ndarray]] = []
    bounds: list[tuple[float, float]] = []

    def constrain(low: Any, high: Any, variables: Any, factors: Any) -> None:
        variables = np.array(variables, int).ravel()
        terms.append((variables, np.broadcast_to(factors, variables.shape)))
        bounds.append((low, high))

    most = np.concatenate([possible.ravel(), np.ones(m), np.full(m, 2)]).astype(float)
    for b, (i, j) in enumerate(molecule.bonds.tolist()):
        for end, other in ((i, j), (j, i)):
            bonds_of[end].append(b)
            near[end].append(other)
            constrain(-np.inf, 1, [w[b], z[end, ABSENT]], 1)
        constrain(1, np.inf, [w[b], z[i, ABSENT], z[j, ABSENT]], 1)
        constrain(-np.inf, 0, [x[b], w[b]], [1, -2])
    for i in range(n):
        constrain(1, 1, z[i], 1)
        orders = np.concatenate([w[bonds_of[i]], x[bonds_of[i]]])
        constrain(0, 0, np.concatenate([orders, z[i]]), np.concatenate([np.ones(len(orders)), -VALENCE]))
        ends = [z[j, OXYGEN] for j in near[i] if len(near[j]) == 1]
        for o in np.flatnonzero(OXYGENS * possible[i]):
            constrain(-np.inf, 0, [z[i, o], *ends], [OXYGENS[o], *[-1] * len(ends)])
        if len(near[i]) > 2:
            most[x[bonds_of[i]]] = np.minimum(most[x[bonds_of[i]]], 1)  # no triple bond
        arms = molecule.positions[near[i]] - molecule.positions[i]
        if len(arms) > 1 and all(angle(a, b) < STRAIGHT for a, b in combinations(arms, 2)):
            more = z[i, VALENCE > 4]  # bent: one double bond, but in nitro groups and sulfones
            constrain(-np.inf, 1, [*x[bonds_of[i]], *more], [*[1] * len(arms), *[-1] * len(more)])
    least = min(LEAST_ATOMS, LEAST_ATOMS if formula is None else formula[formula < ANY].sum())
    constrain(least, np.inf, z[:, :ABSENT], 1)  # no atoms at all have no valence open
    if formula is not None:
        for c in range(5):
            if (of_class := formula[c == CATEGORIES].sum()) < ANY:
                constrain(of_class, of_class, z[:, c == CLASS], 1)
    price = np.concatenate([np.where(possible, cost, 0.0).ravel(), np.zeros(2 * m)])
    constrain(-np.inf, strength, z.ravel(), price[z.ravel()])

    row = np.repeat(np.arange(len(terms)), [len(variables) for variables, _ in terms])
    column, factor = (np.concatenate(part) for part in zip(*terms, strict=True))
    found = milp(
        price,
        constraints=LinearConstraint(coo_array((factor, (row, column))).tocsr(), *np.transpose(bounds)),
        integrality=np.concatenate([np.ones(n * k), np.zeros(m), np.ones(m)]),
        bounds=Bounds(0, most),
        options={"node_limit": MOST_NODES, "mip_rel_gap": 0.0},
    )
    if not found.success:
        return None
    return CLASS[found.x[z].argmax(1)], float(found.fun)


def _costs(molecule: Molecule) -> Float[np.ndarray, "n k"]:
    """Of each of the OPTIONS: how much less probable it is than what the network says, natural logarithms."""
    confidence, classes, elements = _probabilities(molecule)
    there = np.log(np.maximum(confidence, 1 - confidence)) - np.log(np.maximum([confidence, 1 - confidence], LEAST))
    of_class = np.log(classes.max(1, keepdims=True)) - np.log(np.maximum(classes, LEAST))
    cost = there[0][:, None] + of_class[:, CLASS]
    sulfur = elements[:, SULFUR] / np.maximum(classes[:, 3], LEAST)
    cost[:, OXYGENS * (CLASS == 3) > 0] -= np.log(np.maximum(sulfur, LEAST))[:, None]
    cost[:, ABSENT] = there[1]
    return cost
