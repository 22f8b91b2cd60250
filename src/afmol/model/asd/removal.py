"""A training sample of the graph builder: atoms are removed from the true graph, one of them is to be put back.

The procedure of Oinonen et al., MRS Bulletin 2022, 4.2.2 of the report: the number of removed atoms is uniform between
none and all; one of the removed is picked and its position jittered; asked for is the removed atom nearest to that
position, for which another may be.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...data.samples import Batch
from ...elements import CATEGORIES
from .grouping import rank_within
from .nodes import N_CLASSES, PartialGraph

JITTER = (0.2, 0.2, 0.05)
"""Standard deviation of the picked position, A."""
JITTER_CUT = 0.5
"""The position is moved by this much at most, A."""


class Removal(NamedTuple):
    """What is left of each graph, and what is to be put back. Graph g is of image g modulo the number of images."""

    left: PartialGraph
    positions: Float[Tensor, "g 3"]
    """Where the new atom is said to be, A; the origin where nothing was removed."""
    classes: Int[Tensor, " g"]
    """Its true class; -1: nothing was removed."""
    bonded: Bool[Tensor, " n"]
    """Whether each atom that is left is bonded to it."""


def true_graph(batch: Batch, depth: float) -> tuple[PartialGraph, Int[Tensor, " n"]]:
    """The labelled atoms down to `depth` (A) and their bonds; the atoms' classes as ones and zeros and as numbers."""
    keep = batch.positions[:, 2] >= -depth
    bonds = (keep.cumsum(0) - 1)[batch.bonds[keep[batch.bonds].all(1)]]
    classes = torch.as_tensor(CATEGORIES, device=keep.device)[batch.elements[keep]]
    one_hot = torch.eye(N_CLASSES, device=keep.device)[classes]
    return PartialGraph(batch.positions[keep], one_hot, batch.molecule[keep], bonds), classes


def remove(
    batch: Batch, depth: float, order: str, removals: int, generator: torch.Generator, jitter: bool = True
) -> Removal:
    """`removals` partial graphs of each image.

    Args:
        order: "random"; or "x", "y", "z": the smallest coordinates are removed, the largest of them comes back first.
        generator: on the CPU.
        jitter: otherwise the position is that of the picked atom.
    """
    n_images, device = len(batch.images), batch.positions.device
    graph, classes = true_graph(batch, depth)
    graph, classes = _repeated(graph, removals, n_images), classes.repeat(removals)
    n_graphs = removals * n_images
    shuffled = torch.rand(removals * len(batch.positions), generator=generator)[: len(classes)].to(device)
    share = torch.rand(n_graphs, generator=generator).to(device)
    noise = torch.randn(n_graphs, 3, generator=generator).to(device) * torch.tensor(JITTER, device=device)

    size = torch.bincount(graph.graph, minlength=n_graphs)
    n_removed = (share * (size + 1)).long().clamp(max=size)  # rounding up would remove one too many
    rank = rank_within(graph.graph, shuffled if order == "random" else graph.positions[:, "xyz".index(order)])
    removed = rank < n_removed[graph.graph]
    picked = rank == n_removed[graph.graph] - 1
    positions = graph.positions.new_zeros(n_graphs, 3).index_put((graph.graph[picked],), graph.positions[picked])
    if jitter:
        positions = positions + noise * (JITTER_CUT / noise.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp(max=1)
        positions = torch.where((n_removed > 0)[:, None], positions, 0.0)
    away = (graph.positions - positions[graph.graph]).norm(dim=1).masked_fill(~removed, torch.inf)
    target = removed & (rank_within(graph.graph, away) == 0)
    true_classes = torch.full_like(n_removed, -1).index_put((graph.graph[target],), classes[target])
    left, bonded = _left(graph, ~removed, target)
    return Removal(left, positions, true_classes, bonded)


def _repeated(graph: PartialGraph, times: int, n_images: int) -> PartialGraph:
    """The graphs one after another several times, numbered on."""
    again = torch.arange(times, device=graph.graph.device)[:, None]
    return PartialGraph(
        graph.positions.repeat(times, 1),
        graph.classes.repeat(times, 1),
        (graph.graph + n_images * again).flatten(),
        (graph.bonds + len(graph.graph) * again[..., None]).flatten(0, 1),
    )


def _left(
    graph: PartialGraph, keep: Bool[Tensor, " n"], target: Bool[Tensor, " n"]
) -> tuple[PartialGraph, Bool[Tensor, " k"]]:
    """The atoms that are kept, with the bonds among them, and which of them are bonded to the target."""
    place = keep.cumsum(0) - 1
    bonds = place[graph.bonds[keep[graph.bonds].all(1)]]
    left = PartialGraph(graph.positions[keep], graph.classes[keep], graph.graph[keep], bonds)
    both_ways = torch.cat([graph.bonds, graph.bonds.flip(1)])
    neighbours = both_ways[target[both_ways[:, 0]] & keep[both_ways[:, 1]], 1]
    bonded = torch.zeros(len(left.graph), dtype=torch.bool, device=keep.device)
    return left, bonded.index_fill(0, place[neighbours], True)
