"""How alike atoms and molecules are, from their SOAP vectors.

    equation                                                          variable     shape
    k(i, j) = p_i . p_j, or divided by |p_i| |p_j|                    environments n m
    average  K(A, B) = mean of k(i, j) over i in A, j in B            kernel       molecules molecules
    REMatch  K(A, B) = sum_ij P_ij k(i, j), P the coupling with       coupling     molecules atoms atoms
    rows 1/|A| and columns 1/|B| that maximises K + alpha entropy

K is then divided by sqrt(K(A, A) K(B, B)), so that a molecule has similarity 1 with itself. Both after De, Bartok,
Csanyi, Ceriotti, Phys. Chem. Chem. Phys. 18, 13754 (2016); P = u exp((k - 1) / alpha) v by Sinkhorn's iteration.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConfigError, MoleculeError

Array = np.ndarray | Tensor
TOLERANCE = 1e-10
"""Sinkhorn's iteration ends when no row of the coupling is off its sum by more than this share (1e-5 in float32)."""
MAX_STEPS = 10_000


def linear(a: Float[Array, "n f"], b: Float[Array, "m f"]) -> Float[Array, "n m"]:
    """Similarity p_i . p_j of each environment in `a` with each in `b`."""
    return a @ b.T


def normalised(a: Float[Array, "n f"], b: Float[Array, "m f"]) -> Float[Array, "n m"]:
    """`linear` of vectors scaled to length 1: from 0 to 1, and 1 for an environment with itself."""
    return linear(_unit(a), _unit(b))


def average(vectors: Float[Array, "n f"], molecule: Int[Array, "..."]) -> Float[Array, "m m"]:
    """Average similarity of all pairs of molecules, in ascending order of their numbers in `molecule`.

    The environments' similarity is the `normalised` one.

    Raises:
        MoleculeError: not one molecule number for each vector.
    """
    padded, present = _by_molecule(_unit(vectors), molecule)
    mean = padded.sum(1) / present.sum(1, keepdim=True)
    return _scaled(mean @ mean.T, vectors)


def rematch(vectors: Float[Array, "n f"], molecule: Int[Array, "..."], alpha: float = 0.5) -> Float[Array, "m m"]:
    """REMatch similarity of all pairs of molecules, in ascending order of their numbers in `molecule`.

    The environments' similarity is the `normalised` one. alpha towards 0 matches each atom with its best partner,
    a large alpha comes near `average`. Differentiable in the vectors.

    Raises:
        MoleculeError: not one molecule number for each vector.
        ConfigError: alpha is not positive.
    """
    if not alpha > 0:
        raise ConfigError(f"REMatch needs a positive alpha, not {alpha}.")
    padded, present = _by_molecule(_unit(vectors), molecule)
    marginal = (present / present.sum(1, keepdim=True)).log()
    pairs = zip(padded, marginal, strict=True)
    # a molecule at a time with all others bounds the memory
    rows = [_matched(torch.einsum("nf,bmf->bnm", a, padded), w, marginal, alpha) for a, w in pairs]
    return _scaled(torch.stack(rows), vectors)


def _matched(
    environments: Float[Tensor, "b n m"], row: Float[Tensor, " n"], columns: Float[Tensor, "b m"], alpha: float
) -> Float[Tensor, " b"]:
    """sum_ij P_ij k(i, j) for each b; `row` and `columns` are the logarithms of what P sums to, -inf: no atom."""
    tolerance = TOLERANCE if environments.dtype == torch.float64 else 1e-5
    gibbs = (environments - 1) / alpha
    v = columns
    for _ in range(MAX_STEPS):
        u = row - (gibbs + v[:, None, :]).logsumexp(2)
        v = columns - (gibbs + u[:, :, None]).logsumexp(1)
        coupling = (u[:, :, None] + gibbs + v[:, None, :]).exp()
        if ((coupling.sum(2) - row.exp()).abs() <= tolerance * row.exp()).all():
            break
    return (coupling * environments).sum((1, 2))


def _unit(vectors: Float[Array, "n f"]) -> Float[Array, "n f"]:
    """Vectors scaled to length 1."""
    return vectors / (vectors**2).sum(1)[:, None] ** 0.5


def _by_molecule(
    vectors: Float[Array, "n f"], molecule: Int[Array, "..."]
) -> tuple[Float[Tensor, "m a f"], Float[Tensor, "m a"]]:
    """Vectors molecule by molecule, filled up with zeros, and where there is one (1 or 0)."""
    vectors = torch.as_tensor(vectors)
    molecule = torch.as_tensor(molecule, device=vectors.device)
    if molecule.shape != vectors.shape[:1]:
        raise MoleculeError(
            f"{len(vectors)} vectors need {len(vectors)} molecule numbers, not {tuple(molecule.shape)}."
        )
    molecule, order = molecule.sort(stable=True)
    _, index, sizes = molecule.unique_consecutive(return_inverse=True, return_counts=True)
    slot = torch.arange(len(index), device=vectors.device) - (sizes.cumsum(0) - sizes)[index]
    padded = vectors.new_zeros(len(sizes), int(sizes.max()) if len(sizes) else 0, vectors.shape[1])
    present = vectors.new_zeros(padded.shape[:2])
    return padded.index_put((index, slot), vectors[order]), present.index_put((index, slot), vectors.new_ones(()))


def _scaled(kernel: Float[Tensor, "m m"], like: Array) -> Float[Array, "m m"]:
    """The kernel with a diagonal of 1, of the kind that was given."""
    root = kernel.diagonal().sqrt()
    kernel = kernel / (root[:, None] * root)
    return kernel if isinstance(like, Tensor) else kernel.numpy()
