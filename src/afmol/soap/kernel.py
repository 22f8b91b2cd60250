"""The power spectrum and its vector-Jacobian product on the CPU; equations and symbols as in expansion.py.

LANES centres of one molecule are worked on at once. They share their neighbours, so that one loop over neighbours
serves them all, and what was a number becomes a SIMD vector. These vectors are a type of our own (`Lanes`): LLVM makes
them by itself only where it can prove that arrays do not overlap, and where offsets depend on a setting it cannot.

A centre's coefficients lie in the order (species, l, n, m), and its harmonics as (l, m).

The product. With D = dL/dc and r = r_j - r_i, harmonics S, Gaussians g = exp(-decay r^2):
dL/dr = sum D g dS/dr - 2 r sum D decay g S, where sum D g dS/dr comes from the recursion for S, followed backward.

All compiled functions stand in this one file, since numba's cache on disk notices changes only there.
"""

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from . import expansion
from .atoms import PackedAtoms
from .basis import SoapConfig, harmonic_recursion, prefactor, products, radial_basis

LANES = 16
"""Centres at once: the float32 numbers in the widest SIMD register; faster than 8 in float64 too."""
FEWEST_PAIRS = 20_000
"""Pairs of a centre and a neighbour for which a further thread pays (about 0.3 ms of work)."""

# Vectors of LANES numbers

instruction: Any = intrinsic  # its types are those of the definition, not those of the calls


class Lanes(types.Type):
    """A number for each of LANES centres, for numba."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.dtype).get_value_type(), LANES))


def _address(context, builder, signature, arguments):
    """Pointer to the vector that starts at element `arguments[1]` of the array `arguments[0]`."""
    array = signature.args[0]
    start = context.make_array(array)(context, builder, arguments[0]).data
    vector = context.get_value_type(Lanes(array.dtype))
    return builder.bitcast(builder.gep(start, [arguments[1]]), vector.as_pointer())


@instruction
def load(typing_context, array, start):
    """The LANES numbers from array[start] on."""

    def code(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature, arguments), align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), code


@instruction
def store(typing_context, array, start, lanes):
    """array[start : start + LANES] = lanes."""

    def code(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments)
        builder.store(arguments[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@instruction
def spread(typing_context, number):
    """The same number in all lanes."""

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    return Lanes(number)(number), code


@instruction
def total(typing_context, lanes):
    """Sum over the lanes."""

    def code(context, builder, signature, arguments):
        parts = [builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), i)) for i in range(LANES)]
        while len(parts) > 1:
            parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return lanes.dtype(lanes), code


def _arithmetic(name: str) -> Callable:
    """A vector instruction, of which LLVM may fuse a product and a sum."""

    @instruction
    def apply(typing_context, a, b):
        def code(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments, flags=("contract",))

        return a(a, b), code

    return apply


_add, _subtract, _multiply = _arithmetic("fadd"), _arithmetic("fsub"), _arithmetic("fmul")


def _lanes(a, b) -> bool:
    return isinstance(a, Lanes) and a == b


overload(operator.add)(lambda a, b: (lambda a, b: _add(a, b)) if _lanes(a, b) else None)
overload(operator.sub)(lambda a, b: (lambda a, b: _subtract(a, b)) if _lanes(a, b) else None)
overload(operator.mul)(lambda a, b: (lambda a, b: _multiply(a, b)) if _lanes(a, b) else None)


@instruction
def nearer(typing_context, lanes, a, limit):
    """`lanes` where a <= limit, else 0."""

    def code(context, builder, signature, arguments):
        x, a, limit = arguments
        return builder.select(builder.fcmp_ordered("<=", a, limit), x, ir.Constant(x.type, None))

    return lanes(lanes, lanes, lanes), code


@instruction
def larger(typing_context, a, b):
    """The larger of two numbers in each lane."""

    def code(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return a(a, b), code


@instruction
def _into_exponent(typing_context, lanes):
    """The lowest bits of each number as the exponent of another, whose mantissa is 1."""
    bits, mantissa = (64, 52) if lanes.dtype == types.float64 else (32, 23)

    def code(context, builder, signature, arguments):
        whole = ir.VectorType(ir.IntType(bits), LANES)
        moved = builder.shl(builder.bitcast(arguments[0], whole), ir.Constant(whole, [mantissa] * LANES))
        return builder.bitcast(moved, arguments[0].type)

    return lanes(lanes), code


# The kernels


class Tables(NamedTuple):
    """The constants of basis.py as the kernels want them."""

    entries: np.ndarray
    """(3, entries): l, and where the coefficients of (Z, n, l) and (Z', n', l) start."""
    rows: np.ndarray
    """(4, Z * n * l): l, where these coefficients start, first and last (exclusive) of its terms."""
    terms: np.ndarray
    """(2, 2 * entries): entries in which a row occurs, and where the coefficients of the other factor start."""
    decay: np.ndarray
    """(l, n), times log2 e."""
    mixing: np.ndarray
    """(l, n, n')."""
    mixing_transposed: np.ndarray
    """(l, n', n)."""
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    """Recursion of the harmonics."""
    factor: np.ndarray
    """(l,)."""
    power: np.ndarray
    """Polynomial for 2^x, |x| <= 1/2, highest power first."""
    zero: Any
    one: Any
    reach2: Any
    """Square of the reach."""
    lowest: Any
    """Lowest exponent of 2."""
    shift: Any
    """Added to a whole number, it leaves that number's exponent in the lowest bits."""
    ln2: Any
    """Natural logarithm of 2."""


jit: Any = njit(nogil=True, error_model="numpy")


@jit
def _first(degree):
    """Where the harmonics of a degree start."""
    return degree * degree * LANES


@jit
def _row(species, degree, n, n_l, n_radial):
    """Where the coefficients of a species, degree and radial function start."""
    return ((species * n_l * n_l + degree * degree) * n_radial + n * (2 * degree + 1)) * LANES


@jit
def _room(vectors, dtype):
    """Room for a number of vectors."""
    return np.empty(vectors * LANES, dtype)


@jit
def _power_of_two(x, tables):
    """2^x for x <= 0; about 1e-308 (float32: 1e-38) where that is too small."""
    shift = spread(tables.shift)
    x = larger(x, spread(tables.lowest))
    shifted = x + shift
    rest = x - (shifted - shift)
    value = spread(tables.power[0])
    for k in range(1, tables.power.size):
        value = value * rest + spread(tables.power[k])
    return value * _into_exponent(shifted)


@jit
def _gaussian(degree, n, r2, tables):
    """exp(-decay r^2), 0 out of reach."""
    return nearer(_power_of_two(spread(-tables.decay[degree, n]) * r2, tables), r2, spread(tables.reach2))


@jit
def _harmonics(x, y, z, r2, tables, s):
    """Fill `s` with the solid harmonics S_lm by the recursion of basis.harmonic_recursion."""
    store(s, 0, spread(tables.a[0]))
    for degree in range(1, tables.a.size):
        here, below, twice = _first(degree), _first(degree - 1), _first(degree - 2)
        a = spread(tables.a[degree])
        high = load(s, here - LANES)
        low = load(s, below) if degree > 1 else spread(tables.zero)
        store(s, here, a * (y * high + x * low))
        store(s, here + 2 * degree * LANES, a * (x * high - y * low))
        for m in range(2 * degree - 1):  # from -(l - 1)
            order = abs(m - degree + 1)
            value = spread(tables.b[degree, order]) * z * load(s, below + m * LANES)
            if order < degree - 1:
                value = value - spread(tables.c[degree, order]) * r2 * load(s, twice + (m - 1) * LANES)
            store(s, here + (m + 1) * LANES, value)


@jit
def _harmonics_backward(x, y, z, r2, tables, s, ds):
    """From `ds`, derivatives by the harmonics, those by x, y, z and r2; overwrites `ds`."""
    zero = spread(tables.zero)
    dx, dy, dz, dr2 = zero, zero, zero, zero
    for degree in range(tables.a.size - 1, 0, -1):
        here, below, twice = _first(degree), _first(degree - 1), _first(degree - 2)
        for m in range(2 * degree - 1):
            order = abs(m - degree + 1)
            d = load(ds, here + (m + 1) * LANES)
            d_b, at = spread(tables.b[degree, order]) * d, below + m * LANES
            dz = dz + d_b * load(s, at)
            store(ds, at, load(ds, at) + d_b * z)
            if order < degree - 1:
                d_c, at = spread(tables.c[degree, order]) * d, twice + (m - 1) * LANES
                dr2 = dr2 - d_c * load(s, at)
                store(ds, at, load(ds, at) - d_c * r2)
        a, at = spread(tables.a[degree]), here - LANES
        d_low, d_high, high = a * load(ds, here), a * load(ds, here + 2 * degree * LANES), load(s, at)
        dx, dy = dx + d_high * high, dy + d_low * high
        store(ds, at, load(ds, at) + d_low * y + d_high * x)
        if degree > 1:
            low = load(s, below)
            dx, dy = dx + d_low * low, dy - d_high * low
            store(ds, below, load(ds, below) + d_low * x - d_high * y)
    return dx, dy, dz, dr2


@jit
def _place(block, positions, centre):
    """Fill `centre` with x, y, z of the centres of a block; lanes too many repeat the last centre."""
    for lane in range(LANES):
        for axis in range(3):
            centre[axis * LANES + lane] = positions[min(block[0] + lane, block[1] - 1), axis]


@jit
def _towards(j, positions, centre):
    """r from the centres to neighbour j, and its square."""
    x = spread(positions[j, 0]) - load(centre, 0)
    y = spread(positions[j, 1]) - load(centre, LANES)
    z = spread(positions[j, 2]) - load(centre, 2 * LANES)
    return x, y, z, x * x + y * y + z * z


@jit
def _reached(r2, tables):
    """Whether a neighbour counts for any of the centres."""
    return total(nearer(spread(tables.one), r2, spread(tables.reach2))) > 0


@jit
def _mix(mixing, bare, c):
    """c_n = sum_n' mixing_nn' bare_n' for each species and degree."""
    n_l, n_radial, _ = mixing.shape
    for species in range(c.size // _row(1, 0, 0, n_l, n_radial)):
        for degree in range(n_l):
            start, step = _row(species, degree, 0, n_l, n_radial), (2 * degree + 1) * LANES
            for n in range(n_radial):
                for m in range(start, start + step, LANES):
                    value = spread(mixing[degree, n, 0]) * load(bare, m)
                    for k in range(1, n_radial):
                        value = value + spread(mixing[degree, n, k]) * load(bare, m + k * step)
                    store(c, m + n * step, value)


@jit
def _expand(block, positions, probabilities, tables, centre, s, bare, c):
    """Fill `c` with the expansion coefficients of the centres of a block; `bare` holds them before mixing."""
    n_l, n_radial = tables.decay.shape
    bare[:] = 0
    _place(block, positions, centre)
    for j in range(block[2], block[3]):
        x, y, z, r2 = _towards(j, positions, centre)
        if not _reached(r2, tables):
            continue
        _harmonics(x, y, z, r2, tables, s)
        for degree in range(n_l):
            for n in range(n_radial):
                gaussian = _gaussian(degree, n, r2, tables)
                for species in range(probabilities.shape[1]):
                    if probabilities[j, species] != 0:
                        weighted = spread(probabilities[j, species]) * gaussian
                        at, row = _first(degree), _row(species, degree, n, n_l, n_radial)
                        for m in range(0, (2 * degree + 1) * LANES, LANES):
                            store(bare, row + m, load(bare, row + m) + weighted * load(s, at + m))
    _mix(tables.mixing, bare, c)


@jit
def _expand_backward(j, r2, probabilities, tables, all_species, s, d_bare, ds, sums):
    """Fill `ds` with derivatives by the harmonics, `sums` with those by P_jZ; returns those of the Gaussians by r2."""
    n_l, n_radial = tables.decay.shape
    ds[:] = 0
    sums[:] = 0
    dr2 = spread(tables.zero)
    for degree in range(n_l):
        for n in range(n_radial):
            gaussian = _gaussian(degree, n, r2, tables)
            slope = spread(-tables.decay[degree, n] * tables.ln2)
            for species in range(probabilities.shape[1]):
                if not all_species and probabilities[j, species] == 0:
                    continue
                weighted = spread(probabilities[j, species]) * gaussian
                at, row = _first(degree), _row(species, degree, n, n_l, n_radial)
                value = spread(tables.zero)
                for m in range(0, (2 * degree + 1) * LANES, LANES):
                    d = load(d_bare, row + m)
                    value = value + d * load(s, at + m)
                    store(ds, at + m, load(ds, at + m) + weighted * d)
                dr2 = dr2 + slope * weighted * value
                store(sums, species * LANES, load(sums, species * LANES) + gaussian * value)
    return dr2


@jit
def _multiply_backward(block, tables, dp, c, dc, p):
    """Fill `dc` with dL/dc, 0 for lanes too many; `p` is room for dL/dp."""
    entries, rows, terms = tables.entries, tables.rows, tables.terms
    p[:] = 0
    for lane in range(block[1] - block[0]):
        row = dp[block[0] + lane]
        for k in range(row.size):
            p[k * LANES + lane] = row[k]
    for k in range(entries.shape[1]):
        store(p, k * LANES, spread(tables.factor[entries[0, k]]) * load(p, k * LANES))
    for q in range(rows.shape[1]):
        degree, row, start, stop = rows[0, q], rows[1, q], rows[2, q], rows[3, q]
        for m in range(0, (2 * degree + 1) * LANES, LANES):
            value = load(p, terms[0, start]) * load(c, terms[1, start] + m)
            for t in range(start + 1, stop):
                value = value + load(p, terms[0, t]) * load(c, terms[1, t] + m)
            store(dc, row + m, value)


@njit(nogil=True, error_model="numpy", cache=True)
def spectra(blocks, positions, probabilities, tables, out):
    """Spectra of the centres of `blocks` (first and last centre, first and last neighbour) into `out` (atoms, k).

    The interpreter's lock is released: several threads may call it at once.
    """
    n_l, n_radial = tables.decay.shape
    dtype = positions.dtype
    bare, c = np.empty((2, _row(probabilities.shape[1], 0, 0, n_l, n_radial)), dtype)
    centre, s, p = _room(3, dtype), np.empty(_first(n_l), dtype), _room(tables.entries.shape[1], dtype)
    for block in blocks:
        _expand(block, positions, probabilities, tables, centre, s, bare, c)
        for k in range(tables.entries.shape[1]):
            degree, left, right = tables.entries[0, k], tables.entries[1, k], tables.entries[2, k]
            value = load(c, left) * load(c, right)
            for m in range(LANES, (2 * degree + 1) * LANES, LANES):
                value = value + load(c, left + m) * load(c, right + m)
            store(p, k * LANES, spread(tables.factor[degree]) * value)
        for lane in range(block[1] - block[0]):
            row = out[block[0] + lane]
            for k in range(row.size):
                row[k] = p[k * LANES + lane]


@njit(nogil=True, error_model="numpy", cache=True)
def spectra_vjp(blocks, positions, probabilities, tables, dp, all_species, d_positions, d_probabilities):
    """Add the derivatives of sum dp * p over the centres of `blocks` to `d_positions` and `d_probabilities`.

    Unless `all_species`, derivatives by probabilities are right only where these are not 0, and all cost less. Several
    threads may call it at once if each has its own sums.
    """
    n_l, n_radial = tables.decay.shape
    n_species, dtype = probabilities.shape[1], positions.dtype
    bare, c, dc = np.empty((3, _row(n_species, 0, 0, n_l, n_radial)), dtype)
    s, ds = np.empty((2, _first(n_l)), dtype)
    centre, sums, p = _room(3, dtype), _room(n_species, dtype), _room(tables.entries.shape[1], dtype)
    for block in blocks:
        _expand(block, positions, probabilities, tables, centre, s, bare, c)
        _multiply_backward(block, tables, dp, c, dc, p)
        _mix(tables.mixing_transposed, dc, bare)  # `bare` holds its derivatives from here on
        dx_i = dy_i = dz_i = spread(tables.zero)
        for j in range(block[2], block[3]):
            x, y, z, r2 = _towards(j, positions, centre)
            if not _reached(r2, tables):
                continue
            _harmonics(x, y, z, r2, tables, s)
            dr2_radial = _expand_backward(j, r2, probabilities, tables, all_species, s, bare, ds, sums)
            dx, dy, dz, dr2 = _harmonics_backward(x, y, z, r2, tables, s, ds)
            twice = dr2 + dr2_radial + dr2 + dr2_radial
            dx, dy, dz = dx + twice * x, dy + twice * y, dz + twice * z
            dx_i, dy_i, dz_i = dx_i + dx, dy_i + dy, dz_i + dz
            d_positions[j, 0] += total(dx)
            d_positions[j, 1] += total(dy)
            d_positions[j, 2] += total(dz)
            for species in range(n_species):
                d_probabilities[j, species] += total(load(sums, species * LANES))
        store(centre, 0, dx_i)
        store(centre, LANES, dy_i)
        store(centre, 2 * LANES, dz_i)
        for lane in range(block[1] - block[0]):
            for axis in range(3):
                d_positions[block[0] + lane, axis] -= centre[axis * LANES + lane]


# What torch sees


def spectrum(atoms: PackedAtoms, config: SoapConfig, padded: bool) -> Float[Tensor, "n k"]:
    """As `expansion.spectrum` of the mean density, for tensors on the CPU; on all threads that torch may use."""
    return _Spectrum.apply(atoms.positions, atoms.probabilities, atoms, config, padded)


class _Spectrum(torch.autograd.Function):
    """The kernels; a gradient that is itself to be differentiated comes from the reference."""

    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, probabilities: Tensor, atoms: PackedAtoms, config: SoapConfig, padded: bool
    ) -> Tensor:
        ctx.save_for_backward(positions, probabilities)
        ctx.atoms, ctx.config, ctx.padded = atoms, config, padded
        arguments = _arguments(atoms, config, padded)
        # numpy asks for huge pages, torch does not: with small ones their mapping takes longer than all the rest
        p = np.empty((len(positions), arguments[2].entries.shape[1]), arguments[0].dtype)
        _in_threads(lambda blocks: spectra(blocks, *arguments, p), _blocks(atoms))
        return torch.from_numpy(p)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dp,) = outputs
        positions, probabilities = ctx.saved_tensors
        atoms = replace(ctx.atoms, positions=positions, probabilities=probabilities)
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            p = expansion.spectrum(atoms, ctx.config, ctx.padded)
            inputs = [t for t, wants in zip((positions, probabilities), wanted, strict=True) if wants]
            gradients = iter(torch.autograd.grad(p, inputs, dp, create_graph=True))
            return *(next(gradients) if wants else None for wants in wanted), None, None, None
        arguments = (*_arguments(atoms, ctx.config, ctx.padded), np.ascontiguousarray(dp.numpy()), wanted[1])

        def product(blocks: Int[np.ndarray, "b 4"]) -> tuple[np.ndarray, np.ndarray]:
            sums = np.zeros_like(arguments[0]), np.zeros_like(arguments[1])
            spectra_vjp(blocks, *arguments, *sums)
            return sums

        parts = zip(*_in_threads(product, _blocks(atoms)), strict=True)
        return *(torch.from_numpy(sum(part)) for part in parts), None, None, None


def _arguments(atoms: PackedAtoms, config: SoapConfig, padded: bool) -> tuple[np.ndarray, np.ndarray, Tables]:
    """Positions, probabilities and tables as the kernels want them."""
    positions, probabilities = (t.detach().contiguous().numpy() for t in (atoms.positions, atoms.probabilities))
    return positions, probabilities, _tables(config, padded, positions.dtype)


@lru_cache
def _tables(config: SoapConfig, padded: bool, dtype: np.dtype) -> Tables:
    """The constants for a setting, layout and precision."""
    basis, n_l, n_radial = radial_basis(config), config.max_l + 1, config.n_radial
    degree, *factors = products(config, padded)
    starts = [_row.py_func(k // n_radial, degree, k % n_radial, n_l, n_radial) for k in factors]
    mantissa, exponents, terms = (52, 1022, 10) if dtype == np.float64 else (23, 126, 6)
    power = Chebyshev.interpolate(np.exp2, terms, domain=[-0.5, 0.5]).convert(kind=Polynomial).coef[::-1]
    entries = np.stack([degree, *starts])
    constants = (
        *(basis.decay / log(2), basis.mixing, basis.mixing.transpose(0, 2, 1), *harmonic_recursion(config.max_l)),
        *(prefactor(config.max_l), power),
        *(0, 1, config.reach**2, -exponents, 1.5 * 2**mantissa + exponents + 1, log(2)),
    )
    return Tables(entries, *_occurrences(entries), *(np.asarray(c, dtype, order="C")[()] for c in constants))


def _occurrences(entries: Int[np.ndarray, "3 k"]) -> tuple[Int[np.ndarray, "4 r"], Int[np.ndarray, "2 t"]]:
    """Tables.rows and Tables.terms: the same products, sorted by each of their factors."""
    degree, left, right = entries
    row, other = np.concatenate([left, right]), np.concatenate([right, left])
    order = np.argsort(row, kind="stable")
    terms = np.stack([order % len(left) * LANES, other[order]])
    rows, start, count = np.unique(row[order], return_index=True, return_counts=True)
    return np.stack([np.tile(degree, 2)[order][start], rows, start, start + count]), terms


def _blocks(atoms: PackedAtoms) -> Int[np.ndarray, "b 4"]:
    """First and last centre, first and last neighbour (exclusive) of each block of at most LANES centres."""
    first, count = atoms.first, atoms.count
    start = np.flatnonzero((np.arange(len(first)) - first) % LANES == 0)
    end = first[start] + count[start]
    return np.stack([start, np.minimum(start + LANES, end), first[start], end], axis=1)


def _in_threads(work: Callable, blocks: Int[np.ndarray, "b 4"]) -> list:
    """Results of `work` on shares of the blocks with about as many neighbours each, a thread a share."""
    pairs = LANES * np.cumsum(blocks[:, 3] - blocks[:, 2])
    total = pairs[-1] if len(blocks) else 0
    threads = max(1, min(torch.get_num_threads(), total // FEWEST_PAIRS))
    if threads == 1:
        return [work(blocks)]
    shares = np.split(blocks, np.searchsorted(pairs, total * np.arange(1, threads) / threads))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, shares))
