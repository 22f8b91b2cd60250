"""The report's SOAP predictor, 4.1.1: attention over the nodes of two classes.

    figure 9     centre-nodes encoder    (n, n, 8) -> self-attention x 3 -> (n, n, 64) -> gated -> (n, 64)
                 environment encoder     (pairs, n, 3 + k) -> self-attention x 2 -> gated -> (pairs, 128)
    figure 10    head, known environment (n, m, 8 + 64), (n, m', 8 + 128) -> 4 attention layers -> (n, 16)
    figure 11    head, new environment   (n, m, 8 + 64), (n, m', 8 + 64) -> 3 attention layers -> (n, 16)

m and m' nodes are those of the two classes of an environment (a pair of classes), each a channel: the keys of one are
the queries of the other, with the same parameters. Figures 10 and 11 end in a skip connection, the channels side by
side and a gated sum over all of them. One head for each degree l. So exchanging the channels changes nothing, and
p_nn' of two different classes comes out as that of the classes exchanged: only its environment's encoding can tell.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..attention import Attention, GatedSum
from .config import SoapPredictorConfig
from .graphs import GEOMETRY, Graphs, Members, geometry, members, of_members, pairs_of

CENTRE, ENVIRONMENT = 64, 128
"""Values of the two encodings."""
CENTRE_WIDTHS = (16, 32, CENTRE)
ENVIRONMENT_WIDTHS = (ENVIRONMENT, ENVIRONMENT)


def gate(width: int) -> GatedSum:
    """The report's gated aggregation: a matrix for values, a matrix for gates."""
    return GatedSum(nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False))


class SelfAttention(nn.Module):
    """Attention layers in which keys and queries are the same, then a gated sum."""

    def __init__(self, inputs: int, widths: tuple[int, ...], config: SoapPredictorConfig) -> None:
        super().__init__()
        sizes = zip((inputs, *widths), widths, strict=False)
        self.layers = nn.ModuleList(Attention(a, a, b, config.scaled_attention) for a, b in sizes)
        self.norms = nn.ModuleList(normalisation(b, config) for b in widths)
        self.gather = gate(widths[-1])

    def forward(
        self, x: Float[Tensor, "*batch n inputs"], there: Bool[Tensor, "*batch n"]
    ) -> Float[Tensor, "*batch width"]:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x, x, there))
        return self.gather(x, there)


class Head(nn.Module):
    """Attention between the nodes of two classes in two channels that are each other's queries: figures 10 and 11."""

    def __init__(self, keys: int, queries: int, widths: tuple[int, ...], config: SoapPredictorConfig) -> None:
        super().__init__()
        scaled = config.scaled_attention
        sizes = list(zip(widths, (*widths[1:], config.component), strict=True))
        if sizes[-1][0] != config.component:  # the skip connection joins equal widths
            sizes.append((config.component, config.component))
        first = Attention(GEOMETRY + keys, GEOMETRY + queries, widths[0], scaled)
        self.layers = nn.ModuleList([first, *(Attention(a, a, b, scaled) for a, b in sizes)])
        self.norms = nn.ModuleList(normalisation(b, config) for b in (widths[0], *(b for _, b in sizes[:-1])))
        self.gather = gate(config.component)
        self.sum_over_pairs = config.sum_over_pairs

    def forward(
        self,
        channels: tuple[Float[Tensor, "batch n m g"], Float[Tensor, "batch n mm g"]],
        there: tuple[Bool[Tensor, "batch n m"], Bool[Tensor, "batch n mm"]],
        key: Float[Tensor, "batch n a"],
        query: Float[Tensor, "batch n b"],
    ) -> Float[Tensor, "batch n component"]:
        """`key` and `query`: system-wide vectors that go with the keys and the queries."""
        x, y = channels
        for k, layer in enumerate(self.layers):
            systems = None if k else (key, query)
            new_x, new_y = layer(x, y, there[1], systems), layer(y, x, there[0], systems)
            last = k == len(self.layers) - 1
            x, y = (x + new_x, y + new_y) if last else (self.norms[k](new_x), self.norms[k](new_y))
        counts = there
        if self.sum_over_pairs:
            counts = (there[0] * there[1].sum(2, keepdim=True), there[1] * there[0].sum(2, keepdim=True))
        return self.gather(torch.cat([x, y], dim=2), torch.cat(counts, dim=2))


def normalisation(width: int, config: SoapPredictorConfig) -> nn.Module:
    """Layer normalisation, or nothing."""
    return nn.LayerNorm(width) if config.normalise else nn.Identity()


class ReportNetwork(nn.Module):
    """See the module's text: (batch, n, pairs, 16 (max_l + 1)), the degree l last; zero where a class has no node."""

    def __init__(self, config: SoapPredictorConfig) -> None:
        super().__init__()
        self.config = config
        degrees = range(config.soap.max_l + 1)
        entries = config.component * len(degrees)
        self.centres = SelfAttention(GEOMETRY, CENTRE_WIDTHS, config)
        self.environments = SelfAttention(3 + entries, ENVIRONMENT_WIDTHS, config)
        self.known = nn.ModuleList(Head(CENTRE, ENVIRONMENT, config.widths, config) for _ in degrees)
        self.new = nn.ModuleList(Head(CENTRE, CENTRE, config.widths[1:], config) for _ in degrees)

    def forward(self, graphs: Graphs) -> Float[Tensor, "batch n pairs k"]:
        batch, n = graphs.classes.shape
        shape = geometry(graphs.positions)
        there = (graphs.classes >= 0)[:, None].expand(-1, n, -1)
        centres = self.centres(shape, there)
        had = [((graphs.classes == s) & graphs.old).any(1) for s in range(self.config.soap.n_species)]
        nodes = [members(graphs.classes, s) for s in range(self.config.soap.n_species)]
        seen = [of_members(shape, m) for m in nodes]
        columns = []
        for pair, (a, b) in enumerate(pairs_of(self.config.soap.n_species)):
            out = centres.new_zeros(batch, n, self.config.component, self.config.soap.max_l + 1)
            present = nodes[a].there.any(1) & nodes[b].there.any(1)
            for which, heads in ((had[a] & had[b], self.known), (present & ~(had[a] & had[b]), self.new)):
                rows = torch.nonzero(which)[:, 0]
                if not len(rows):
                    continue
                query = centres[rows]
                if heads is self.known:
                    query = self._environment(graphs, pair, rows)[:, None].expand(-1, n, -1)
                channels = (seen[a][rows], seen[b][rows])
                masks = (_for_centres(nodes[a], rows, n), _for_centres(nodes[b], rows, n))
                found = [head(channels, masks, centres[rows], query) for head in heads]
                out = out.index_put((rows,), torch.stack(found, dim=3))
            columns.append(out.flatten(2))
        return torch.stack(columns, dim=2)

    def _environment(self, graphs: Graphs, pair: int, rows: Tensor) -> Float[Tensor, "r e"]:
        """Encoding of one known environment of some graphs; SOAP comes in the scale that goes out."""
        soap = graphs.known[rows, :, pair] / self.config.scale
        return self.environments(torch.cat([graphs.positions[rows], soap], dim=2), graphs.old[rows])


def _for_centres(nodes: Members, rows: Tensor, n: int) -> Bool[Tensor, "r n m"]:
    return nodes.there[rows][:, None].expand(-1, n, -1)
