"""From candidate atoms to a graph: messages between neighbours, then existence, element, position and bonds.

    equation                                  variable   shape
    h_i = W (f(x_i), z_i) + V t_i             h          n width     image features at the atom, its depth as first read
    t_i                                       told       n elements  what is known of its element already, or zeros
    e_ij = MLP(h_i, h_j, r_ij, f(midpoint))   e          pair width  a neighbour pair, both directions
    e_ij += MLP(e_ij, h_i, h_j)                                      a round
    h_i  += MLP(h_i, sum_j e_ij)                                     a round
    xy_i += sum_j a(e_ij) u_ij                xy         n 2         u_ij: unit vector from i to j in the plane
    s = sum w(e_ij) s(e_ij) / sum w(e_ij)     stretch    batch       over all pairs of an image

In the plane only distances enter, so that shifting, turning or mirroring the atoms changes nothing but what the image
says. What is told of elements is what a person knows, or what the network said when it was asked before, so that atoms
which the image leaves open follow from their neighbours. The depth is relative to the topmost atom: read at a pixel it
is 0.1 A off and more, and the neighbours help to correct it. In the plane they do so along the lines to them, so that
corrections turn with the atoms (as in Satorras et al., E(n) equivariant graph neural networks, ICML 2021, equation 4).
Pairs also say how much larger the image is stated to be than it is: what they are should lie so far apart.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...elements import ELEMENTS
from ..neighbours import same_image_distance

CUTOFF = 3.2
"""Neighbours exchange messages up to this distance in the image plane, A."""
LONGEST_BOND = 2.7
"""Bonds are predicted for pairs closer than this in the image plane, A (I-I: 2.67)."""
N_RADIAL = 16


@dataclass(frozen=True, eq=False)
class Graph:
    """What the network says of candidate atoms; logits."""

    exists: Float[Tensor, " n"]
    elements: Float[Tensor, "n e"]
    xy: Float[Tensor, "n 2"]
    """Place in the image plane, A: the candidate's own and a correction."""
    z: Float[Tensor, " n"]
    """Depth, A: likewise."""
    pairs: Int[Tensor, "m 2"]
    """Neighbours i < j."""
    bonds: Float[Tensor, " m"]
    stretch: Float[Tensor, " batch"] | None = None
    """ln of stated over true size of each image; None: the network says nothing of it."""


def sample_features(
    features: Float[Tensor, "batch channels nx ny"],
    points: Float[Tensor, "n d"],
    image: Int[Tensor, " n"],
    pixel: float,
) -> Float[Tensor, "n channels"]:
    """Bilinear interpolation of feature maps at points (A); `pixel` is that of the maps."""
    nx, ny = features.shape[2:]
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    x = (points[:, 0] / pixel - 0.5).clamp(0, nx - 1)
    y = (points[:, 1] / pixel - 0.5).clamp(0, ny - 1)
    ix, iy = x.floor().long().clamp(max=nx - 2), y.floor().long().clamp(max=ny - 2)
    wx, wy = (x - ix)[:, None], (y - iy)[:, None]
    corner = (image * nx + ix) * ny + iy
    near = rows[corner] * (1 - wy) + rows[corner + 1] * wy
    far = rows[corner + ny] * (1 - wy) + rows[corner + ny + 1] * wy
    return near * (1 - wx) + far * wx


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width))


class BondNet(nn.Module):
    """See the module's text."""

    def __init__(
        self,
        channels: int,
        width: int,
        rounds: int,
        told: bool = False,
        shifts: bool = False,
        sizes: bool = False,
    ) -> None:
        super().__init__()
        self.node = nn.Linear(channels + 1, width)
        self.middle = nn.Linear(channels, width)
        self.pair = _mlp(3 * width + 2 * N_RADIAL + 1, width)
        self.pair_rounds = nn.ModuleList(_mlp(3 * width, width) for _ in range(rounds))
        self.node_rounds = nn.ModuleList(_mlp(2 * width, width) for _ in range(rounds))
        self.exists = nn.Linear(width, 1)
        self.elements = nn.Linear(width, len(ELEMENTS))
        self.depth = nn.Linear(width, 1)
        self.bonds = nn.Linear(width, 1)
        nn.init.zeros_(self.depth.weight)
        self.told = nn.Linear(len(ELEMENTS), width, bias=False) if told else None
        if self.told is not None:
            nn.init.zeros_(self.told.weight)  # a network that starts from one without it says what that said
        self.shift = nn.Linear(width, 1) if shifts else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)
            nn.init.zeros_(self.shift.bias)
        self.size = nn.Linear(width, 2) if sizes else None
        if self.size is not None:
            nn.init.zeros_(self.size.weight)  # the stated size is right
            nn.init.zeros_(self.size.bias)

    def forward(
        self,
        features: Float[Tensor, "batch channels nx ny"],
        positions: Float[Tensor, "n 3"],
        image: Int[Tensor, " n"],
        pixel: float,
        pairs: Int[Tensor, "p 2"] | None = None,
        told: Float[Tensor, "n e"] | None = None,
    ) -> Graph:
        """Logits for atoms at `positions` (A).

        Args:
            pairs: saves finding the `neighbours` again.
            told: probabilities of elements that are known already; a row of zeros says nothing. For a network that was
                built to be told.
        """
        half = neighbours(positions, image) if pairs is None else pairs
        i, j = torch.cat([half, half.flip(1)]).unbind(1)  # i < j, then the same pairs the other way round
        r = positions[j] - positions[i]  # -> 2p 3
        shape = torch.cat([_radial(r[:, :2].norm(dim=1)), _radial(r.norm(dim=1)), r[:, 2:]], dim=1)
        middle = self.middle(sample_features(features, (positions[i] + positions[j]) / 2, image[i], pixel))
        h = self.node(torch.cat([sample_features(features, positions, image, pixel), positions[:, 2:]], dim=1))
        if told is not None:
            assert self.told is not None
            h = h + self.told(told)
        e = self.pair(torch.cat([h[i], h[j], middle, shape], dim=1))  # -> 2p width
        for pair, node in zip(self.pair_rounds, self.node_rounds, strict=True):
            e = e + pair(torch.cat([e, h[i], h[j]], dim=1))  # -> 2p width
            h = h + node(torch.cat([h, torch.zeros_like(h).index_add(0, i, e)], dim=1))  # -> n width
        logits = self.bonds(e)[:, 0]
        logits = (logits[: len(half)] + logits[len(half) :]) / 2  # -> p
        xy, z = positions[:, :2], positions[:, 2] + self.depth(h)[:, 0]
        if self.shift is not None:
            xy = xy.index_add(0, i, self.shift(e) * F.normalize(r[:, :2]))
        stretch = None
        if self.size is not None:
            said, weight = self.size(e).unbind(1)
            weight, none = F.softplus(weight), torch.zeros(len(features), device=e.device)
            total = none.index_add(0, image[i], weight).clamp_min(1e-6)
            stretch = none.index_add(0, image[i], weight * said) / total  # -> batch
        return Graph(self.exists(h)[:, 0], self.elements(h), xy, z, half, logits, stretch)


def neighbours(positions: Float[Tensor, "n 3"], image: Int[Tensor, " n"]) -> Int[Tensor, "p 2"]:
    """Pairs i < j of one image closer than CUTOFF in its plane."""
    return torch.nonzero((same_image_distance(positions[:, :2], image) < CUTOFF).triu(1))


def bondable(graph: Graph, positions: Float[Tensor, "n 3"]) -> Graph:
    """The graph with the pairs that are close enough for a bond."""
    i, j = graph.pairs.unbind(1)
    short = (positions[i, :2] - positions[j, :2]).norm(dim=1) < LONGEST_BOND
    return replace(graph, pairs=graph.pairs[short], bonds=graph.bonds[short])


def _radial(distance: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Gaussians on 0.6-3.2 A."""
    centres = torch.linspace(0.6, CUTOFF, N_RADIAL, device=distance.device)
    return torch.exp(-0.5 * ((distance[:, None] - centres) / (centres[1] - centres[0])) ** 2)
