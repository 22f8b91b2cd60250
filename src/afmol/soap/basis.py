"""The constants of SOAP with Gaussian-type radial functions, computed in float64.

    equation                                                      variable    shape
    eta = 1 / (2 sigma^2)                                         eta                      width of the density
    alpha_ln = -ln(1e-3 / a_n^l) / a_n^2, a from 1 A to r_cut     alpha       (l+1, n)
    S_nn' = Gamma(l + 3/2) / 2 (alpha_ln + alpha_ln')^-(l + 3/2)  overlap     (n, n)
    beta_l = S^(-1/2)                                             beta        (n, n)
    alpha eta / (alpha + eta)                                     decay       (l+1, n)     1/A^2
    beta_l,nn' (pi/(alpha+eta))^(3/2) (eta/(alpha+eta))^l         mixing      (l+1, n, n')

The integral of a radial function g_nl = sum_n' beta_l,nn' r^l exp(-alpha_ln' r^2) times Y_lm with a Gaussian at r_j is
sum_n' mixing_l,nn' exp(-decay_ln' r_j^2) S_lm(r_j), S_lm = r^l Y_lm: two Gaussians multiply to a third. The definition
is that of DScribe (Himanen et al., Comput. Phys. Commun. 247, 106949 (2020)).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log, pi, sqrt

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import inv, sqrtm
from scipy.special import gamma

from ..errors import ConfigError

DECAY = 1e-3
"""What a radial function has decayed to at its a_n, and a Gaussian of the density at the padding of the cut-off."""
MOST_L, MOST_RADIAL = 9, 12


NARROWEST, FARTHEST = 1e-3, 1e3


@dataclass(frozen=True)
class SoapConfig:
    """What is expanded, and how far. The defaults are those that the report uses for its molecular graphs.

    Raises:
        ConfigError: a value out of its range.
    """

    n_species: int = 5
    """Species (or classes) that are told apart."""
    max_l: int = 2
    """Highest degree of the spherical harmonics, 0 to 9."""
    n_radial: int = 3
    """Radial functions for each degree, 1 to 12."""
    cutoff: float = 4.0
    """Where the last radial function has decayed, A, above 1; neighbours count out to `reach`."""
    sigma: float = 1.0
    """Standard deviation of the Gaussian at each atom, A."""

    def __post_init__(self) -> None:
        if self.n_species < 1:
            raise ConfigError(f"SOAP needs at least one species, not n_species = {self.n_species}.")
        if not 0 <= self.max_l <= MOST_L:
            raise ConfigError(f"SOAP works for max_l from 0 to {MOST_L}, not {self.max_l}.")
        if not 1 <= self.n_radial <= MOST_RADIAL:
            raise ConfigError(f"SOAP works for n_radial from 1 to {MOST_RADIAL}, not {self.n_radial}.")
        if not 1 < self.cutoff <= FARTHEST:
            raise ConfigError(f"The cut-off of SOAP must be longer than 1 A, to {FARTHEST:g} A, not {self.cutoff} A.")
        if not NARROWEST <= self.sigma <= FARTHEST:
            text = f"SOAP's Gaussians are {NARROWEST:g} to {FARTHEST:g} A wide; sigma = {self.sigma} A is not."
            raise ConfigError(text)

    @property
    def n_pairs(self) -> int:
        """Unordered pairs of species."""
        return self.n_species * (self.n_species + 1) // 2

    @property
    def padded_shape(self) -> tuple[int, int, int, int]:
        """Shape of an atom's power spectrum in the report's layout: pairs, n, n', l."""
        return self.n_pairs, self.n_radial, self.n_radial, self.max_l + 1

    @property
    def reach(self) -> float:
        """Distance beyond which a neighbour does not count, A: the cut-off and 3.717 sigma."""
        return self.cutoff + self.sigma * sqrt(-2 * log(DECAY))


@dataclass(frozen=True, eq=False)
class Basis:
    """See the module's text."""

    decay: Float[np.ndarray, "l n"]
    mixing: Float[np.ndarray, "l n n"]
    condition: float
    """Largest condition number of an overlap that is scaled to a unit diagonal."""


@lru_cache
def radial_basis(config: SoapConfig, precision: str = "float64") -> Basis:
    """Constants of the radial functions, for arithmetic in `precision` (in float64 themselves).

    The overlap and its root are evaluated in DScribe's order of operations (root of the inverse, general matrices), so
    that their rounding errors are the same. They matter where the overlap is ill-conditioned: condition times 1e-16.

    Raises:
        ConfigError: the overlap of the radial functions is singular in that precision.
    """
    a = np.linspace(1, config.cutoff, config.n_radial)
    eta = 1 / (2 * config.sigma**2)
    decay, mixing, condition = [], [], 1.0
    for degree in range(config.max_l + 1):
        alpha = -np.log(DECAY / a**degree) / a**2
        overlap = 0.5 * gamma(degree + 1.5) * (alpha[:, None] + alpha) ** (-degree - 1.5)
        scale = np.sqrt(np.diag(overlap))
        condition = max(condition, float(np.linalg.cond(overlap / scale / scale[:, None])))
        singular = condition * np.finfo(precision).eps >= 1
        beta = overlap if singular else sqrtm(inv(overlap))
        if singular or np.iscomplexobj(beta):
            way_out = "" if precision == "float64" else ", or use float64"
            raise ConfigError(
                f"{config.n_radial} radial functions with a cut-off of {config.cutoff} A cannot be told apart in "
                f"{precision}: lower n_radial, or raise the cut-off{way_out}."
            )
        decay.append(alpha * eta / (alpha + eta))
        mixing.append(beta * (np.pi / (alpha + eta)) ** 1.5 * (eta / (alpha + eta)) ** degree)
    return Basis(np.array(decay), np.array(mixing), condition)


@lru_cache
def harmonic_recursion(
    max_l: int,
) -> tuple[Float[np.ndarray, " l"], Float[np.ndarray, "l m"], Float[np.ndarray, "l m"]]:
    """Coefficients a, b, c of the recursion for normalised real solid harmonics S_lm = r^l Y_lm.

    S_00 = 1 / sqrt(4 pi), a_0 in the table
    S_l,l  = a_l (x S_l-1,l-1 - y S_l-1,-(l-1)),  S_l,-l = a_l (y S_l-1,l-1 + x S_l-1,-(l-1))
    S_l,m  = b_l|m| z S_l-1,m - c_l|m| r^2 S_l-2,m,  |m| < l

    from the recurrences of associated Legendre functions (Abramowitz and Stegun, 8.5.3 and 8.6.6).
    """
    a, b, c = np.zeros(max_l + 1), np.zeros((max_l + 1, max_l + 1)), np.zeros((max_l + 1, max_l + 1))
    a[0] = 1 / sqrt(4 * pi)
    for degree in range(1, max_l + 1):
        a[degree] = sqrt(3 if degree == 1 else (2 * degree + 1) / (2 * degree))  # sqrt 2 more from m = 0 to m = +-1
        m = np.arange(degree)
        b[degree, :degree] = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
        m = np.arange(degree - 1)
        c[degree, : degree - 1] = np.sqrt(
            (2 * degree + 1) * ((degree - 1) ** 2 - m**2) / ((2 * degree - 3) * (degree**2 - m**2))
        )
    return a, b, c


def prefactor(max_l: int) -> Float[np.ndarray, " l"]:
    """pi sqrt(8 / (2 l + 1)), in front of the sum over m."""
    return pi * np.sqrt(8 / (2 * np.arange(max_l + 1) + 1))


@lru_cache
def products(config: SoapConfig, padded: bool) -> Int[np.ndarray, "3 k"]:
    """l, (Z, n) and (Z', n') of each entry of a spectrum; (Z, n) is counted as Z n_radial + n.

    padded: the report's layout, pairs Z <= Z' (slowest), n, n', l. It speaks of Z as the lighter species: pairs ascend,
    as in DScribe. Otherwise DScribe's flat order: in a pair l slowest, then n, then n', and n <= n' alone where both
    species are one.
    """
    first, second = np.triu_indices(config.n_species)
    n_pairs, n_radial, _, n_l = config.padded_shape
    if padded:
        pair, n, k, degree = np.indices(config.padded_shape).reshape(4, -1)
    else:
        pair, degree, n, k = np.indices((n_pairs, n_l, n_radial, n_radial)).reshape(4, -1)
        pair, degree, n, k = np.stack([pair, degree, n, k])[:, (first != second)[pair] | (n <= k)]
    return np.stack([degree, first[pair] * n_radial + n, second[pair] * n_radial + k])
