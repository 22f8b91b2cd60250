"""sum_j a_ij ReLU(k_i + q_j): what attention with a value for each key and query comes to (attention.py).

The pairs' hidden layers are never stored: on a CPU a compiled loop makes each, uses it and forgets it, forward and
backward, 5 to 9 times as fast as torch (benchmarks/pair_means.py). Elsewhere torch forms them, a few of the batch at
a time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numba import njit
from torch import Tensor

AT_ONCE = 2**20
"""Values of pairs that torch forms together."""
FEWEST_VALUES = 2**20
"""Values of pairs for which a further thread pays (about 0.3 ms of work)."""

compiled: Any = njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True)
"""Decorates the loops. Not all of fastmath: what is not finite must stay so, for training to stop at it."""


def mean_of_pairs(
    keys: Float[Tensor, "*batch k width"], queries: Float[Tensor, "*batch q width"], share: Float[Tensor, "*batch k q"]
) -> Float[Tensor, "*batch k width"]:
    """The sum over queries for each key; `share` are the a_ij."""
    k, q, a = (x.reshape(-1, *x.shape[-2:]) for x in (keys, queries, share))
    alike = keys.dtype == queries.dtype == share.dtype and keys.dtype in (torch.float32, torch.float64)
    means = _Means.apply(k, q, a) if alike and keys.device.type == "cpu" else reference(k, q, a)
    return means.view_as(keys)


def reference(
    keys: Float[Tensor, "n k width"], queries: Float[Tensor, "n q width"], share: Float[Tensor, "n k q"]
) -> Float[Tensor, "n k width"]:
    """In torch, on any device."""
    rows = max(1, AT_ONCE // max(1, share.shape[1] * share.shape[2] * keys.shape[2]))
    parts = zip(*(x.split(rows) for x in (keys, queries, share)), strict=True)
    return torch.cat([(a[:, :, None] @ F.relu(k[:, :, None] + q[:, None]))[:, :, 0] for k, q, a in parts])


@compiled
def _forward(keys, queries, share, out):
    """out += the sums. The interpreter's lock is released: several threads may call it, on rows of their own."""
    n, n_keys, width = keys.shape
    zero = keys.dtype.type(0)
    for b in range(n):
        for i in range(n_keys):
            key, total = keys[b, i], out[b, i]
            for j in range(queries.shape[1]):
                a, query = share[b, i, j], queries[b, j]
                for c in range(width):
                    total[c] += a * max(key[c] + query[c], zero)


@compiled
def _backward(keys, queries, share, gradient, d_keys, d_queries, d_share):
    """Add the derivatives of sum gradient * sums to those of keys and queries, and set those of share."""
    n, n_keys, width = keys.shape
    zero = keys.dtype.type(0)
    for b in range(n):
        for i in range(n_keys):
            key, g, d_key = keys[b, i], gradient[b, i], d_keys[b, i]
            for j in range(queries.shape[1]):
                a, query, d_query, product = share[b, i, j], queries[b, j], d_queries[b, j], zero
                for c in range(width):
                    hidden = key[c] + query[c]
                    flow = g[c] if hidden > zero else zero
                    product += hidden * flow
                    d_key[c] += a * flow
                    d_query[c] += a * flow
                d_share[b, i, j] = product


def _in_threads(work: Callable[..., None], *arrays: np.ndarray) -> None:
    """work(*arrays), their rows shared among the threads that torch may use."""
    keys, queries = arrays[:2]
    values = keys.size * queries.shape[1]
    threads = max(1, min(torch.get_num_threads(), values // FEWEST_VALUES, len(keys)))
    if threads == 1:
        return work(*arrays)
    parts = zip(*(np.array_split(x, threads) for x in arrays), strict=True)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: work(*part), parts))


class _Means(torch.autograd.Function):
    """The loops; a gradient that is itself to be differentiated comes from torch."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, queries: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(keys, queries, share)
        arrays = [x.numpy(force=True) for x in (keys, queries, share)]
        out = np.zeros(keys.shape, arrays[0].dtype)
        _in_threads(_forward, *arrays, out)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = outputs
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(reference(*inputs), inputs, gradient, create_graph=True)
        arrays = [x.numpy(force=True) for x in (*inputs, gradient)]
        derivatives = [np.zeros_like(x) for x in arrays[:3]]
        _in_threads(_backward, *arrays, *derivatives)
        return tuple(map(torch.from_numpy, derivatives))
