"""Our SOAP predictor: sums over pairs of neighbours of products of learned functions of invariants.

    equation                                                        variable         shape
    r_ij, cos a_ijk (0 where j or k is the centre itself)           distance, cosine (batch, n, m), (batch, n, m, m')
    f_c(r_ij), g_c(r_ik): networks of Gaussians of the distance     first, second    (batch, n, m, channels)
    h_c(cos a_ijk) = sum_b w_bc G_b(cos a_ijk), G_b Gaussians       angular: w       (b, channels)
    s_c = sum_jk f_c g_c h_c, j and k of the two classes            sums             (batch, n, channels)
    SOAP of that pair of classes = W s                                               (batch, n, k)

Since h is linear in its Gaussians, the sum over k is a product of matrices, and nothing is kept of triples but G.

The same functions serve all pairs of classes and all degrees l: to them a class is just a label. Turning or shifting
the graph changes nothing, nor does what was known of it before. Distances count as far as SOAP sees (its `reach`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .config import SoapPredictorConfig
from .graphs import Graphs, Members, members, pairs_of

GAUSSIANS = 24
"""Of the distance, from 0 to SOAP's reach."""
ANGULAR_GAUSSIANS = 8
"""Of the cosine, from -1 to 1."""


def gaussians(values: Float[Tensor, "*shape"], low: float, high: float, count: int) -> Float[Tensor, "*shape b"]:
    """`count` Gaussians of each value, from `low` to `high`, as wide as they are apart."""
    centres = torch.linspace(low, high, count, device=values.device, dtype=values.dtype)
    return torch.exp(-0.5 * ((values[..., None] - centres) * ((count - 1) / (high - low))) ** 2)


class Radial(nn.Module):
    """Functions of the distance that go to zero at `reach` (A)."""

    def __init__(self, reach: float, hidden: int, channels: int) -> None:
        super().__init__()
        self.reach = reach
        self.net = nn.Sequential(
            *(nn.Linear(GAUSSIANS, hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, channels),
        )

    def forward(self, distance: Float[Tensor, "batch n m"]) -> Float[Tensor, "batch n m channels"]:
        share = (distance / self.reach).clamp(max=1)
        values = self.net(gaussians(distance, 0.0, self.reach, GAUSSIANS))
        return values * (0.5 * (torch.cos(torch.pi * share) + 1))[..., None]


class InvariantNetwork(nn.Module):
    """See the module's text: (batch, n, pairs, k), zero where a class has no node."""

    def __init__(self, config: SoapPredictorConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.widths[:2]
        self.first, self.second = (Radial(config.soap.reach, hidden, channels) for _ in range(2))
        places = torch.linspace(-1, 1, ANGULAR_GAUSSIANS)[:, None] ** torch.arange(ANGULAR_GAUSSIANS)
        decay = 0.5 ** torch.arange(ANGULAR_GAUSSIANS)[:, None]
        self.angular = nn.Parameter(places @ (decay * torch.randn(ANGULAR_GAUSSIANS, channels)) / 2)
        self.out = nn.Linear(channels, config.component * (config.soap.max_l + 1), bias=False)

    def forward(self, graphs: Graphs) -> Float[Tensor, "batch n pairs k"]:
        p = graphs.positions
        nodes = [members(graphs.classes, s) for s in range(self.config.soap.n_species)]
        away = [_places(p, m)[:, None] - p[:, :, None] for m in nodes]  # species: batch n m 3
        distance = [x.norm(dim=3) for x in away]
        unit = [x / d.clamp_min(1e-6)[..., None] for x, d in zip(away, distance, strict=True)]
        first, second = (
            [net(d) * m.there[:, None, :, None] for d, m in zip(distance, nodes, strict=True)]
            for net in (self.first, self.second)
        )
        columns = []
        for a, b in pairs_of(self.config.soap.n_species):
            cosine = unit[a] @ unit[b].mT  # -> batch n m m'
            basis = gaussians(cosine, -1.0, 1.0, ANGULAR_GAUSSIANS).movedim(-1, 2)  # -> batch n b m m'
            around = first[a][:, :, None] * (basis @ second[b][:, :, None])  # -> batch n b m channels
            columns.append(self.out((around.sum(3) * self.angular).sum(2)))
        return torch.stack(columns, dim=2)


def _places(positions: Float[Tensor, "batch n 3"], nodes: Members) -> Float[Tensor, "batch m 3"]:
    return positions.gather(1, nodes.place[..., None].expand(-1, -1, 3))
