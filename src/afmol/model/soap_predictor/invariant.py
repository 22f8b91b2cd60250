"""Our SOAP predictor: sums over pairs of neighbours of products of learned functions of invariants.

    equation                                                        variable         shape
    r_ij, cos a_ijk (0 where j or k is the centre itself)           distance, cosine (batch, n, m), (batch, n, m, m')
    f_c(r_ij), g_c(r_ik): networks of Gaussians of the distance     first, second    (batch, n, m, channels)
    h_c(cos a_ijk): a network                                       angular          (batch, n, m, m', channels)
    s_c = sum_jk f_c g_c h_c, j and k of the two classes            sums             (batch, n, channels)
    SOAP of that pair of classes = W s                                               (batch, n, k)

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
        centres = torch.linspace(0, self.reach, GAUSSIANS, device=distance.device, dtype=distance.dtype)
        width = self.reach / (GAUSSIANS - 1)
        gaussians = torch.exp(-0.5 * ((distance[..., None] - centres) / width) ** 2)
        share = (distance / self.reach).clamp(max=1)
        return self.net(gaussians) * (0.5 * (torch.cos(torch.pi * share) + 1))[..., None]


class InvariantNetwork(nn.Module):
    """See the module's text: (batch, n, pairs, k), zero where a class has no node."""

    def __init__(self, config: SoapPredictorConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.widths[:2]
        self.first, self.second = (Radial(config.soap.reach, hidden, channels) for _ in range(2))
        self.angular = nn.Sequential(
            *(nn.Linear(1, hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, channels),
        )
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
            terms = self.angular(cosine[..., None]) * second[b][:, :, None]  # -> batch n m m' channels
            columns.append(self.out((terms.sum(3) * first[a]).sum(2)))
        return torch.stack(columns, dim=2)


def _places(positions: Float[Tensor, "batch n 3"], nodes: Members) -> Float[Tensor, "batch m 3"]:
    return positions.gather(1, nodes.place[..., None].expand(-1, -1, 3))
