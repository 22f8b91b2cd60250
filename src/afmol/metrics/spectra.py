"""How far predicted SOAP vectors are off: by degree l, by what the classes have in common, by the size of the graph."""

from dataclasses import dataclass, field, fields
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .comparison import zeros
from .confusion import plain

CASES = ("one class", "one class, another centre", "two classes, centre of one", "two classes, another centre")
"""What the two classes of an environment and the class of its centre can have in common (report, 4.1.2)."""
DEGREES, SIZES = 10, 256
"""Room for l = 0 ... 9 and for graphs of up to 255 nodes."""


@dataclass(frozen=True, eq=False)
class SpectrumErrors:
    """Sums over entries, [degree l, case, nodes of the graph]; `a + b` counts both, `SpectrumErrors()` none."""

    errors: Float[np.ndarray, "degree case size"] = field(
        default_factory=zeros(DEGREES, len(CASES), SIZES, dtype=float)
    )
    """Of squared errors."""
    squares: Float[np.ndarray, "degree case size"] = field(
        default_factory=zeros(DEGREES, len(CASES), SIZES, dtype=float)
    )
    """Of the squared entries themselves."""
    entries: Int[np.ndarray, "degree case size"] = field(default_factory=zeros(DEGREES, len(CASES), SIZES))

    def __add__(self, other: "SpectrumErrors") -> "SpectrumErrors":
        return SpectrumErrors(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_spectra(
    found: Float[np.ndarray, "graphs n pairs nn l"],
    truth: Float[np.ndarray, "graphs n pairs nn l"],
    classes: Int[np.ndarray, "graphs n"],
    counts: Bool[np.ndarray, "graphs n pairs"],
) -> SpectrumErrors:
    """Counts of graphs of up to n nodes, of class -1 where there is none.

    Args:
        found, truth: SOAP of each node, padded layout, pairs of classes Z <= Z' ascending, the degree l last.
        classes: of the nodes.
        counts: nodes and pairs that count.
    """
    _, _, pairs, _, degrees = truth.shape
    species = round((sqrt(8 * pairs + 1) - 1) / 2)
    one, other = np.triu_indices(species)
    centre = classes[..., None]
    case = 2 * (one != other) + ((centre != one) & (centre != other))  # graphs n pairs
    size = np.broadcast_to((classes >= 0).sum(1)[:, None, None], case.shape)
    place = (case * SIZES + size)[counts]
    length = len(CASES) * SIZES

    def summed(values: Float[np.ndarray, "graphs n pairs nn l"]) -> Float[np.ndarray, "degree case size"]:
        each = values.sum(3, dtype=float)[counts]
        sums = [np.bincount(place, of_degree, length) for of_degree in each.T]
        return np.stack([*sums, *[np.zeros(length)] * (DEGREES - degrees)]).reshape(DEGREES, len(CASES), SIZES)

    entries = summed(np.ones_like(truth)).astype(int)
    return SpectrumErrors(summed((found - truth) ** 2), summed(truth**2), entries)


def spectrum_summary(errors: SpectrumErrors) -> dict[str, Any]:
    """Mean squared errors, and relative ones (root of the sums of squares), ready for JSON.

    "by_size": for each number of nodes that there is. None where nothing was counted.
    """

    def figures(axes: tuple[int, ...]) -> tuple[list[float | None], list[float | None]]:
        error, square, n = (getattr(errors, f.name).sum(axes) for f in fields(errors))
        mse = [e / k if k else None for e, k in zip(error, n, strict=True)]
        return mse, [sqrt(e / s) if s else None for e, s in zip(error, square, strict=True)]

    sizes = np.flatnonzero(errors.entries.sum((0, 1)))
    by_degree, by_case, by_size = figures((1, 2)), figures((0, 2)), figures((0, 1))
    total = [getattr(errors, f.name).sum() for f in fields(errors)]
    degrees = int(np.flatnonzero(errors.entries.sum((1, 2))).max(initial=-1)) + 1
    return plain(
        {
            "entries": total[2],
            "mse": total[0] / total[2] if total[2] else None,
            "relative": sqrt(total[0] / total[1]) if total[1] else None,
            "mse_by_degree": by_degree[0][:degrees],
            "relative_by_degree": by_degree[1][:degrees],
            "mse_by_case": dict(zip(CASES, by_case[0], strict=True)),
            "relative_by_case": dict(zip(CASES, by_case[1], strict=True)),
            "sizes": sizes,
            "mse_by_size": [by_size[0][s] for s in sizes],
            "relative_by_size": [by_size[1][s] for s in sizes],
        }
    )
