"""The SOAP predictor: the SOAP vectors of all nodes of a graph to which a node was added.

    graph, SOAP of the graph before -> network -> SOAP of the graph now -> next node

In training, what the network is told of the graph before is, as drawn, a noisy label or its own prediction (report,
4.1.2).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .config import SoapPredictorConfig
from .graphs import Graphs
from .invariant import InvariantNetwork
from .report import ReportNetwork


class Growth(NamedTuple):
    """Graphs that grow node by node, and what is asked for: SOAP of the last of them."""

    positions: Float[Tensor, "batch n 3"]
    """A, in the order in which they are added; smaller graphs are filled up in front."""
    classes: Int[Tensor, "batch n"]
    """-1: no node."""
    labels: Float[Tensor, "batch n pairs k"]
    """SOAP in the whole graph."""
    known: Float[Tensor, "batch s pairs k"]
    """Noisy SOAP in the graph of the first s nodes, from which on the network goes by what it says itself."""

    def counts(self, n_species: int) -> Bool[Tensor, "batch n pairs"]:
        """Nodes and pairs of classes that a graph has; of the others SOAP is zero, and so is what a network says."""
        has = (self.classes[:, :, None] == torch.arange(n_species, device=self.classes.device)).any(1)
        one, other = torch.triu_indices(n_species, n_species, device=has.device)
        return (self.classes >= 0)[:, :, None] & (has[:, one] & has[:, other])[:, None]


class SoapPredictor(nn.Module):
    """See the module's text. `forward` returns losses, `soap` what the network says."""

    def __init__(self, config: SoapPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ReportNetwork(config) if config.network == "report" else InvariantNetwork(config)

    def soap(self, graphs: Graphs) -> Float[Tensor, "batch n pairs k"]:
        """SOAP of each node; a pair's entries in the order (n, n', l)."""
        return self.config.scale * self.network(graphs)

    def forward(self, batch: Growth, generator: torch.Generator) -> dict[str, Tensor]:
        """ "soap": mean squared error of the entries of all pairs of classes that a graph has."""
        counts = batch.counts(self.config.soap.n_species)
        return {"soap": F.mse_loss(self.grown(batch)[counts], batch.labels[counts])}

    def grown(self, batch: Growth) -> Float[Tensor, "batch n pairs k"]:
        """SOAP in the whole graph, from what is known of its first nodes on; only the last step has a gradient."""
        known, n = batch.known, batch.positions.shape[1]
        if self.config.network == "invariant":  # which does not ask for the past: one step is enough
            known = known.new_zeros(len(known), n - 1, *known.shape[2:])
        with torch.no_grad():
            for size in range(known.shape[1] + 1, n):
                known = self.soap(_with_new(batch, known, size))
        return self.soap(_with_new(batch, known, n))


def _with_new(batch: Growth, known: Float[Tensor, "batch s pairs k"], size: int) -> Graphs:
    """The graphs of the first `size` nodes, the last of which is new."""
    old = (batch.classes[:, :size] >= 0) & (torch.arange(size, device=known.device) < size - 1)
    filled = F.pad(known, (0, 0, 0, 0, 0, 1))
    return Graphs(batch.positions[:, :size], batch.classes[:, :size], filled, old)
