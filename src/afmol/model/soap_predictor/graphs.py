"""A batch of graphs whose last node is new, side by side, and what the networks see of it.

    positions            (batch, n, 3)            A
    classes              (batch, n)               -1: no node
    known                (batch, n, pairs, k)     SOAP in the graph without the new node, as far as it is known
    old                  (batch, n)               nodes of that graph
    of a class           (batch, m), (batch, m)   places of its nodes, and whether there is one
    geometry             (batch, n, m, 8)         centre 3, node 3, distance, angle origin - centre - node

One row a graph, filled up with nodes of class -1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GEOMETRY = 8
"""Values that describe a centre and a node."""


class Graphs(NamedTuple):
    """See the module's text."""

    positions: Float[Tensor, "batch n 3"]
    classes: Int[Tensor, "batch n"]
    known: Float[Tensor, "batch n pairs k"]
    old: Bool[Tensor, "batch n"]


class Members(NamedTuple):
    """The nodes of one class of each graph."""

    place: Int[Tensor, "batch m"]
    there: Bool[Tensor, "batch m"]


def members(classes: Int[Tensor, "batch n"], species: int) -> Members:
    """The nodes of a class in their order, filled up to the longest list."""
    mine = classes == species
    order = torch.argsort((~mine).byte(), dim=1, stable=True)[:, : int(mine.sum(1).max()) if len(mine) else 0]
    return Members(order, mine.gather(1, order))


def of_members(values: Float[Tensor, "batch n m k"], nodes: Members) -> Float[Tensor, "batch n _ k"]:
    """The rows of a class among the nodes of `values`' third axis."""
    index = nodes.place[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index)


def geometry(positions: Float[Tensor, "batch n 3"]) -> Float[Tensor, "batch n n 8"]:
    """For each centre and node: both positions, their distance, the angle at the centre between origin and node
    (radians; 0 for the centre itself)."""
    n = positions.shape[1]
    centre = positions[:, :, None].expand(-1, -1, n, -1)
    node = positions[:, None].expand(-1, n, -1, -1)
    away = node - centre
    cross, dot = torch.linalg.cross(-centre, away).norm(dim=3), (-centre * away).sum(3) + 0.0  # no -0: its angle is pi
    return torch.cat([centre, node, away.norm(dim=3)[..., None], torch.atan2(cross, dot)[..., None]], dim=3)


def pairs_of(n_species: int) -> list[tuple[int, int]]:
    """Pairs of species in SOAP's order."""
    return [(a, b) for a in range(n_species) for b in range(a, n_species)]
