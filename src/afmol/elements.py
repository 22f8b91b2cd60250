"""The elements that afmol knows: classes, radii, Lennard-Jones parameters, colours."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Element:
    """One element.

    Sources: `covalent_radius` Cordero et al., Dalton Trans. 2008, 2832; `lj_radius`, `lj_depth` atomtypes.ini of ppafm
    (AMBER 2003 / OPLS, Gromos for Si); `colour` after Jmol.
    """

    symbol: str
    number: int
    """Atomic number."""
    category: int
    """Class of the ASD model: 0 H; 1 C, Si; 2 N, P; 3 O, S; 4 halogens."""
    covalent_radius: float
    """Angstrom."""
    lj_radius: float
    """Half the distance of the Lennard-Jones minimum between two such atoms, Angstrom."""
    lj_depth: float
    """Depth of that minimum, eV."""
    colour: str


ELEMENTS = (
    Element("H", 1, 0, 0.31, 1.4870, 0.000681, "#e8e8e8"),
    Element("C", 6, 1, 0.76, 1.9080, 0.003729, "#505050"),
    Element("N", 7, 2, 0.71, 1.7800, 0.007372, "#3050f8"),
    Element("O", 8, 3, 0.66, 1.6612, 0.009106, "#e02020"),
    Element("F", 9, 4, 0.57, 1.7500, 0.002645, "#70d040"),
    Element("Si", 14, 1, 1.11, 1.9000, 0.025490, "#c0a080"),
    Element("P", 15, 2, 1.07, 2.1000, 0.008673, "#ff8000"),
    Element("S", 16, 3, 1.05, 2.0000, 0.010841, "#d8c020"),
    Element("Cl", 17, 4, 1.02, 1.9480, 0.011491, "#1fb01f"),
    Element("Br", 35, 4, 1.20, 2.2200, 0.013876, "#a62929"),
    Element("I", 53, 4, 1.39, 2.3500, 0.017345, "#940094"),
)
CLASS_NAMES = ("H", "C, Si", "N, P", "O, S", "F, Cl, Br, I")
BOND_TOLERANCE = 1.2
"""Two atoms closer than this times the sum of their covalent radii are bonded (REFERENCE: 1.2 x the bond length)."""

BY_NUMBER = {e.number: e for e in ELEMENTS}
BY_SYMBOL = {e.symbol: e for e in ELEMENTS}
NUMBERS = np.array([e.number for e in ELEMENTS])
CATEGORIES = np.array([e.category for e in ELEMENTS])
"""Class of each entry of ELEMENTS."""

_INDEX = np.full(119, -1)
_INDEX[NUMBERS] = np.arange(len(ELEMENTS))


def element_index(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Place of each atomic number in ELEMENTS; -1 where afmol does not know the element."""
    return _INDEX[numbers]


def by_class(elements: Float[np.ndarray, "n 11"]) -> Float[np.ndarray, "n 5"]:
    """Probabilities of classes, from those of elements."""
    return np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)


def table(field: str) -> Float[np.ndarray, " 119"]:
    """A numeric field of ELEMENTS as a table over atomic numbers, NaN where unknown."""
    out = np.full(119, np.nan)
    out[NUMBERS] = [getattr(e, field) for e in ELEMENTS]
    return out


def bonds_by_distance(
    positions: Float[np.ndarray, "n 3"], numbers: Int[np.ndarray, " n"], tolerance: float = BOND_TOLERANCE
) -> Int[np.ndarray, "m 2"]:
    """Bonds of the distance table: pairs (i < j) closer than `tolerance` times the sum of covalent radii."""
    radius = table("covalent_radius")[numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    close: Bool[np.ndarray, "n n"] = distance < tolerance * (radius[:, None] + radius[None])
    return np.argwhere(np.triu(close, 1))
