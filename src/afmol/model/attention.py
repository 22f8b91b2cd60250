"""Attention with values for each key and query, and gated aggregation (report, 4.0 figure 8 and 4.1.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .pair_means import mean_of_pairs


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

    What all have in common (a system-wide vector) goes into u and w, as their last entries; its part of the first layer
    is worked out once. Since sum_j a_ij = 1, V is applied to the mean of the hidden layer, once a key instead of once a
    pair.
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
        systems: tuple[Float[Tensor, "*batch c"], Float[Tensor, "*batch d"]] | None = None,
    ) -> Float[Tensor, "*batch k width"]:
        """`there`: which queries count, at least one; None: all. `systems`: the vectors that all keys, and all queries,
        have in common."""
        if systems is None:
            key, query = self.key(keys), self.query(queries)
        else:
            key, query = _with_system(self.key, keys, systems[0]), _with_system(self.query, queries, systems[1])
        logits = self.scale * key @ query.mT
        share = (logits if there is None else logits.masked_fill(~there[..., None, :], -torch.inf)).softmax(-1)
        of_key, of_query = self.mix.weight.chunk(2, dim=1)
        hidden = mean_of_pairs(key @ of_key.T, F.linear(query, of_query, self.mix.bias), share)
        return self.value(hidden)


def _with_system(
    layers: nn.Sequential, nodes: Float[Tensor, "*batch n a"], system: Float[Tensor, "*batch c"]
) -> Float[Tensor, "*batch n width"]:
    """layers((node, system)) for each node."""
    first = layers[0]
    assert isinstance(first, nn.Linear)
    of_node, of_system = first.weight.split([nodes.shape[-1], system.shape[-1]], dim=1)
    return layers[1:](nodes @ of_node.T + F.linear(system, of_system, first.bias)[..., None, :])


class GatedSum(nn.Module):
    """Gated aggregation: sum_i sigmoid(gate(u_i)) value(u_i), entry by entry."""

    def __init__(self, value: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(
        self,
        vectors: Float[Tensor, "*batch n inputs"],
        counts: Bool[Tensor, "*batch n"] | Int[Tensor, "*batch n"] | None = None,
    ) -> Float[Tensor, "*batch outputs"]:
        """The sum over the last axis but one. `counts`: how often each vector counts; None: once."""
        gated = self._gated(vectors)
        return (gated if counts is None else gated * counts[..., None]).sum(-2)

    def by_graph(
        self, vectors: Float[Tensor, "n inputs"], graph: Int[Tensor, " n"], n_graphs: int
    ) -> Float[Tensor, "g outputs"]:
        """A sum for each graph of packed vectors; zero for an empty one."""
        gated = self._gated(vectors)
        return gated.new_zeros(n_graphs, gated.shape[1]).index_add(0, graph, gated)

    def _gated(self, vectors: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return torch.sigmoid(self.gate(vectors)) * self.value(vectors)
