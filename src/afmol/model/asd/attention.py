"""Attention with values for each key and query, and gated aggregation (report, 4.0 figure 8 and 4.1.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


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
        self, keys: Float[Tensor, "*batch k a"], queries: Float[Tensor, "*batch q b"]
    ) -> Float[Tensor, "*batch k width"]:
        key, query = self.key(keys), self.query(queries)
        share = (self.scale * key @ query.mT).softmax(-1)
        of_key, of_query = self.mix.weight.chunk(2, dim=1)
        pairs = (key @ of_key.T)[..., :, None, :] + F.linear(query, of_query, self.mix.bias)[..., None, :, :]
        return self.value((share[..., None, :] @ F.relu(pairs, inplace=True))[..., 0, :])


class GatedSum(nn.Module):
    """Gated aggregation: sum_i sigmoid(gate(u_i)) value(u_i), entry by entry."""

    def __init__(self, value: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(self, vectors: Float[Tensor, "*batch n inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The sum over the last axis but one."""
        return self._gated(vectors).sum(-2)

    def by_graph(
        self, vectors: Float[Tensor, "n inputs"], graph: Int[Tensor, " n"], n_graphs: int
    ) -> Float[Tensor, "g outputs"]:
        """A sum for each graph of packed vectors; zero for an empty one."""
        gated = self._gated(vectors)
        return gated.new_zeros(n_graphs, gated.shape[1]).index_add(0, graph, gated)

    def _gated(self, vectors: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return torch.sigmoid(self.gate(vectors)) * self.value(vectors)
