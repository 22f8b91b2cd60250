"""Attention with values for each key and query, and gated aggregation (report, 4.0 figure 8 and 4.1.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

AT_ONCE = 2**20
"""Values of pairs that are formed together."""


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two layers, ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Attention(nn.Module):
    """One output for each key, a mean over queries of values that belong to that key and query alone.

        equation                                            variable    shape
        k_i = MLP(u_i), q_j = MLP(w_j)                      key, query  ... keys width, ... queries width
        a_ij = softmax over j of k_i q_j                    share       ... keys queries
        v_ij = MLP(k_i, q_j) = V ReLU(M (k_i, q_j) + c) + d
        o_i = sum_j a_ij v_ij                                           ... keys width

    What all have in common (a system-wide vector) goes into u and w. Since sum_j a_ij = 1, V is applied to the mean of
    the hidden layer, once a key instead of once a pair.
    """

    def __init__(self, keys: int, queries: int, width: int, scaled: bool = False) -> None:
        super().__init__()
        self.key = mlp(keys, width, width)
        self.query = mlp(queries, width, width)
        self.mix, self.value = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.scale = width**-0.5 if scaled else 1.0

    def forward(
        self,
        keys: Float[Tensor, "*batch k a"],
        queries: Float[Tensor, "*batch q b"],
        there: Bool[Tensor, "*batch q"] | None = None,
    ) -> Float[Tensor, "*batch k width"]:
        """`there`: which queries count, at least one; None: all."""
        key, query = self.key(keys), self.query(queries)
        logits = self.scale * key @ query.mT
        share = (logits if there is None else logits.masked_fill(~there[..., None, :], -torch.inf)).softmax(-1)
        of_key, of_query = self.mix.weight.chunk(2, dim=1)
        hidden = _mean_of_pairs(key @ of_key.T, F.linear(query, of_query, self.mix.bias), share)
        return self.value(hidden.view_as(key))


def _mean_of_pairs(
    keys: Float[Tensor, "*batch k width"], queries: Float[Tensor, "*batch q width"], share: Float[Tensor, "*batch k q"]
) -> Float[Tensor, "n k width"]:
    """sum_j share_ij ReLU(keys_i + queries_j), a few of the batch at a time: two to three times as fast on a CPU, whose
    caches the pairs of all would not fit."""
    rows = max(1, AT_ONCE // max(1, share.shape[-2] * share.shape[-1] * keys.shape[-1]))
    parts = (x.reshape(-1, *x.shape[-2:]).split(rows) for x in (keys, queries, share))
    means = [a[:, :, None] @ F.relu(k[:, :, None] + q[:, None], inplace=True) for k, q, a in zip(*parts, strict=True)]
    return torch.cat(means)[:, :, 0]


class GatedSum(nn.Module):
    """Gated aggregation: sum_i sigmoid(gate(u_i)) value(u_i), entry by entry."""

    def __init__(self, value: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(
        self, vectors: Float[Tensor, "*batch n inputs"], there: Bool[Tensor, "*batch n"] | None = None
    ) -> Float[Tensor, "*batch outputs"]:
        """The sum over the last axis but one. `there`: which vectors count; None: all."""
        gated = self._gated(vectors)
        return (gated if there is None else gated * there[..., None]).sum(-2)

    def by_graph(
        self, vectors: Float[Tensor, "n inputs"], graph: Int[Tensor, " n"], n_graphs: int
    ) -> Float[Tensor, "g outputs"]:
        """A sum for each graph of packed vectors; zero for an empty one."""
        gated = self._gated(vectors)
        return gated.new_zeros(n_graphs, gated.shape[1]).index_add(0, graph, gated)

    def _gated(self, vectors: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return torch.sigmoid(self.gate(vectors)) * self.value(vectors)
