"""The power spectrum in plain torch: the reference, on any device, differentiable as often as one likes.

    equation                                                variable      shape
    r_ij                                                    r             centres neighbours 3
    P_jZ                                                    weight        centres neighbours z     0 out of reach
    S_lm(r_ij) = r^l Y_lm, polynomials in x, y, z           harmonics     centres neighbours 2l+1, each l
    exp(-decay_ln' r_ij^2)                                  gaussian      centres neighbours n'
    c_nlm^Z(i) = sum_j P_jZ sum_n' mixing_l,nn' exp() S_lm  c             centres z*n 2l+1
    p_nn'l^ZZ' = pi sqrt(8/(2l+1)) sum_m c_nlm^Z c_n'lm^Z'  p             centres l z*n z*n

The sum over neighbours runs over the bare Gaussians; `mixing` follows, since it does not depend on the neighbour. The
centre is one of its neighbours.

Expected spectrum. Labels drawn independently with probabilities P have, in the mean over all labelings, the p above
(the plug-in value) plus what the products of an atom with itself lack, since a label is 0 or 1:
pi sqrt(8/(2l+1)) sum_j (delta_ZZ' P_jZ - P_jZ P_jZ') sum_m phi_j,nlm phi_j,n'lm. By the addition theorem
sum_m S_lm^2 = (2l+1)/(4 pi) r^(2l), so this is a function of distances alone.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import pi
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .atoms import PackedAtoms
from .basis import SoapConfig, harmonic_recursion, prefactor, products, radial_basis

CHUNK, CHUNK_ON_DEVICE = 2**25, 2**28
"""Numbers that the intermediate results of one chunk of centres may hold, about, on the CPU and elsewhere."""


class Constants(NamedTuple):
    """The constants of basis.py as tensors; b and c for m from -(l - 1) and from -(l - 2), a list over l."""

    decay: Float[Tensor, "l n"]
    mixing: Float[Tensor, "l n n"]
    a: list[float]
    b: list[Float[Tensor, " _"]]
    c: list[Float[Tensor, " _"]]
    factor: list[float]
    entries: Int[Tensor, " k"]
    """Which of the flat products (l, z*n, z*n) make up the spectrum."""
    reach2: float
    """Square of the reach, A^2."""


@lru_cache
def constants(config: SoapConfig, padded: bool, dtype: torch.dtype, device: torch.device) -> Constants:
    """The constants for a setting, layout, precision and device."""
    # what is first needed in inference mode may later be needed for a gradient
    with torch.inference_mode(False):
        return _constants(config, padded, dtype, device)


def _constants(config: SoapConfig, padded: bool, dtype: torch.dtype, device: torch.device) -> Constants:
    def tensor(array: Float[np.ndarray, "..."]) -> Float[Tensor, "..."]:
        return torch.as_tensor(array, dtype=dtype, device=device)

    basis, (a, b, c) = radial_basis(config), harmonic_recursion(config.max_l)
    orders = [np.abs(np.arange(1 - degree, degree)) for degree in range(config.max_l + 1)]
    degree, left, right = products(config, padded)
    width = config.n_species * config.n_radial
    return Constants(
        tensor(basis.decay),
        tensor(basis.mixing),
        a.tolist(),
        [tensor(row[m]) for row, m in zip(b, orders, strict=True)],
        [tensor(row[m[1:-1]]) for row, m in zip(c, orders, strict=True)],
        prefactor(config.max_l).tolist(),
        torch.as_tensor((degree * width + left) * width + right, device=device),
        config.reach**2,
    )


def spectrum(
    atoms: PackedAtoms, config: SoapConfig, padded: bool, expected: bool = False, chunk: int | None = None
) -> Float[Tensor, "n k"]:
    """The power spectrum of each atom of `atoms`, in the report's layout or DScribe's, see basis.products.

    Chunks of centres bound the memory, of the gradient too: beyond one chunk intermediate results are not stored but
    computed again. The precision is that of the positions, under torch.autocast too; where matrix products may be in
    TF32 (not torch's default), float32 has but three digits.
    """
    positions, probabilities = atoms.positions, atoms.probabilities
    chunk = chunk or (CHUNK if positions.device.type == "cpu" else CHUNK_ON_DEVICE)
    first, count = (torch.from_numpy(t).to(positions.device) for t in (atoms.first, atoms.count))
    setting = constants(config, padded, positions.dtype, positions.device)
    parts = []
    bounds = list(_chunks(atoms, config, chunk))
    again = len(bounds) > 1 and torch.is_grad_enabled()
    with torch.autocast(positions.device.type, enabled=False):
        for start, stop, neighbours in bounds:
            centres = torch.arange(start, stop, device=positions.device)
            slots = torch.arange(neighbours, device=positions.device)
            own = positions, probabilities, centres, first[start:stop], count[start:stop], slots, setting, expected
            parts.append(
                checkpoint(spectrum_of_centres, *own, use_reentrant=False) if again else spectrum_of_centres(*own)
            )
    return torch.cat(parts)


def _chunks(atoms: PackedAtoms, config: SoapConfig, chunk: int) -> Iterator[tuple[int, int, int]]:
    """First and last centre (exclusive) and the most neighbours in each chunk."""
    n_harmonics = (config.max_l + 1) ** 2
    n_products = (config.max_l + 1) * (config.n_species * config.n_radial) ** 2
    start, count = 0, atoms.count
    if not count.size:
        yield 0, 0, 0
    while start < len(count):
        # as many as fit if none had more neighbours than these; then as many as do fit
        size, stop = 0, len(count)
        while stop > start + 1:
            size = (2 * config.n_radial * n_harmonics + 8) * int(count[start:stop].max()) + 3 * n_products
            if (stop - start) * size <= chunk:
                break
            stop = start + max(1, min(chunk // size, (stop - start) // 2))
        yield start, stop, int(count[start:stop].max())
        start = stop


def spectrum_of_centres(
    positions: Float[Tensor, "n 3"],
    probabilities: Float[Tensor, "n z"],
    centres: Int[Tensor, " c"],
    first: Int[Tensor, " c"],
    count: Int[Tensor, " c"],
    slots: Int[Tensor, " j"],
    setting: Constants,
    expected: bool,
) -> Float[Tensor, "c k"]:
    """Spectra of some centres whose neighbours are the `count` atoms from `first` on; `slots` counts the most of them.

    Neighbours are padded to as many slots for each centre: products of matrices then do the sums.
    """
    present: Bool[Tensor, "c j"] = slots < count[:, None]
    j = first[:, None] + torch.where(present, slots, 0)
    r = _rows(positions, j) - positions.index_select(0, centres)[:, None]
    r2 = r.square().sum(-1, keepdim=True)
    weight = _rows(probabilities, j) * (present[..., None] & (r2 <= setting.reach2))
    p = []
    for degree, harmonics in enumerate(solid_harmonics(r, r2, setting)):
        gaussian = torch.exp(-setting.decay[degree] * r2)
        phi = (gaussian[..., None] * harmonics[:, :, None, :]).flatten(2)
        c = (weight.mT @ phi).unflatten(2, (gaussian.shape[2], 2 * degree + 1))
        c = (setting.mixing[degree] @ c).flatten(1, 2)
        product = c @ c.mT
        if expected:
            squares = r2**degree * (2 * degree + 1) / (4 * pi)
            product = product + _label_noise(squares, gaussian @ setting.mixing[degree].mT, weight)
        p.append(setting.factor[degree] * product)
    return torch.stack(p, 1).flatten(1).index_select(1, setting.entries)


def _rows(table: Float[Tensor, "n w"], index: Int[Tensor, "c j"]) -> Float[Tensor, "c j w"]:
    """Rows of a table; the gradient of index_select is a plain sum, that of table[index] sorts first."""
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


def _label_noise(
    squares: Float[Tensor, "c j 1"], radial: Float[Tensor, "c j n"], weight: Float[Tensor, "c j z"]
) -> Float[Tensor, "c k k"]:
    """sum_j (delta_ZZ' P_jZ - P_jZ P_jZ') R_n R_n' sum_m S_lm^2, k = z*n; `squares` holds the sum over m."""
    variance = torch.diag_embed(weight) - weight[..., :, None] * weight[..., None, :]
    radials = squares[..., None] * radial[..., :, None] * radial[..., None, :]
    z, n = weight.shape[2], radial.shape[2]
    sums = (variance.flatten(2).mT @ radials.flatten(2)).unflatten(2, (n, n)).unflatten(1, (z, z))
    return sums.transpose(2, 3).flatten(1, 2).flatten(2)


def solid_harmonics(
    r: Float[Tensor, "c j 3"], r2: Float[Tensor, "c j 1"], setting: Constants
) -> list[Float[Tensor, "c j _"]]:
    """Real solid harmonics S_lm, m from -l to l, for each degree l. Polynomials: smooth at r = 0 too."""
    x, y, z = r.split(1, dim=-1)
    harmonics = [torch.full_like(x, setting.a[0])]
    for degree in range(1, len(setting.a)):
        a, below = setting.a[degree], harmonics[degree - 1]
        low, high = below[..., :1], below[..., -1:]  # m = -(l - 1) and l - 1
        if degree == 1:
            low = torch.zeros_like(low)  # there is but one with m = 0
        inner = setting.b[degree] * z * below
        if degree > 1:
            inner = inner - torch.nn.functional.pad(setting.c[degree] * r2 * harmonics[degree - 2], (1, 1))
        harmonics.append(torch.cat([a * (y * high + x * low), inner, a * (x * high - y * low)], dim=-1))
    return harmonics
