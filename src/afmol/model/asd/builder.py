"""One step of the graph builder: the class of a new atom and its bonds to the atoms found before.

    1. partial graph (with SOAP) -> node features -> graph encoding       gated sum over the nodes
    2. graph encoding, position of the new atom -> query -> image encoding
    3. image encoding, graph encoding -> class
    4. SOAP of old and new atoms with that class                          report; said by a network: its figure 6
    5. old atoms processed again; the new one initialised and left so
    6. each old atom, the new one, image encoding -> bond

Original: Oinonen et al., MRS Bulletin 2022; report: 4.2.1, points 1 to 6. In the original the node features of 5 are
those of 1 after further rounds of messages, which is the same as all rounds from the start.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...soap import SETTING_A, power_spectrum
from ..attention import GatedSum, mlp
from ..soap_predictor import SoapPredictor, SoapPredictorConfig
from ..soap_predictor.graphs import Graphs
from .config import AsdConfig
from .encoding import ENCODING, QUERY, ImageEncoder, Level
from .grouping import rank_within
from .nodes import N_CLASSES, STATE, NodeNet, PartialGraph

HIDDEN = 32
"""Width of the hidden layers of gates and heads."""
ALIKE = 8
"""Graphs of about one size that a network reads at once."""
PREDICTORS = {
    "report": SoapPredictorConfig(network="report", soap=SETTING_A, scale=100.0, widths=(64, 32, 9)),
    "invariant": SoapPredictorConfig(network="invariant", soap=SETTING_A, scale=100.0, widths=(48, 64)),
}
"""Networks that say SOAP; the report's with the 9 entries of setting A where its own setting has 16, normalised
and with means over pairs: with sums, after as many steps, its error is eight times as large (LOG.md, 2026-11-28)."""


class GraphBuilder(nn.Module):
    """See the module's text. Graphs are packed; graph g is of image g modulo the number of images."""

    def __init__(self, config: AsdConfig) -> None:
        super().__init__()
        self.config = config
        self.nodes = nn.ModuleList(NodeNet(config) for _ in range(1 if config.shared else 2))
        width, state = self.class_nodes.width, self.class_nodes.n_pairs * STATE
        self.graph_encoding = GatedSum(mlp(width, HIDDEN, ENCODING), mlp(width, HIDDEN, ENCODING))
        self.query = mlp(ENCODING + 3, QUERY, QUERY)
        self.class_head = mlp(2 * ENCODING, HIDDEN, N_CLASSES)
        self.bond_head = mlp(width + state + ENCODING, HIDDEN, 1)
        self.soap_predictor = (
            None if config.soap_of_new == "computed" else SoapPredictor(PREDICTORS[config.soap_of_new])
        )

    @property
    def class_nodes(self) -> NodeNet:
        return self.nodes[0]  # pyrefly: ignore[bad-return]

    @property
    def bond_nodes(self) -> NodeNet:
        return self.nodes[-1]  # pyrefly: ignore[bad-return]

    def classify(
        self, encoder: ImageEncoder, levels: list[Level], old: PartialGraph, new: Float[Tensor, "g 3"]
    ) -> tuple[Float[Tensor, "g 5"], Float[Tensor, "g e"]]:
        """Class logits of the new atom of each graph, and the image encoding that they come from."""
        positions, place = self._frame(old, new)
        states = self.class_nodes.initial(positions, old.classes, self._scaled(self._known(old)))
        features = self.class_nodes(states, old.bonds, self.config.class_rounds)  # e n 20 -> n width
        graph = self.graph_encoding.by_graph(features, old.graph, len(new))  # -> g 128
        query = self.query(torch.cat([graph, place], dim=1))  # -> g 64
        n_images = len(levels[0].keys)
        by_image = (t.view(-1, n_images, t.shape[1]).transpose(0, 1) for t in (query, new[:, :2]))
        image = encoder(levels, *by_image).transpose(0, 1).flatten(0, 1)
        return self.class_head(torch.cat([image, graph], dim=1)), image

    def bond(
        self,
        old: PartialGraph,
        new: Float[Tensor, "g 3"],
        logits: Float[Tensor, "g 5"],
        image: Float[Tensor, "g e"],
        soap: Float[Tensor, "m pairs entries"] | None,
    ) -> Float[Tensor, " n"]:
        """Logit of a bond between each old atom and the new one of its graph, whose class has the given logits.

        `soap`: of old and new atoms, see `soap_with_new`.
        """
        net, n = self.bond_nodes, len(old.graph)
        positions, place = self._frame(old, new)
        both = self._scaled(soap)
        of_old, of_new = (None, None) if both is None else (both[:n], both[n:] * self.config.new_node_soap)
        features = net(net.initial(positions, old.classes, of_old), old.bonds, self.config.bond_rounds)
        fresh = net.initial(place, logits.softmax(1), of_new).transpose(0, 1).flatten(1)
        return self.bond_head(torch.cat([features, fresh[old.graph], image[old.graph]], dim=1))[:, 0]

    def soap_with_new(
        self, old: PartialGraph, new: Float[Tensor, "g 3"], classes: Float[Tensor, "g 5"], computed: bool = False
    ) -> Float[Tensor, "m pairs entries"] | None:
        """SOAP of the old atoms and then the new ones, in the graphs that hold both; None where the model has none.

        `computed`: whatever a network would say.
        """
        graph = torch.cat([old.graph, torch.arange(len(new), device=new.device)])
        classes = torch.cat([old.classes, classes])
        if self.soap_predictor is None or computed:
            return self.spectrum(torch.cat([old.positions, new]), classes, graph)
        slot = rank_within(graph, torch.arange(len(graph), device=graph.device))  # a graph's new atom is its last
        shape = len(new), int(slot.max()) + 1
        known = self._known(old)
        assert known is not None
        graphs = Graphs(
            new.new_zeros(*shape, 3).index_put((graph, slot), torch.cat(self._frame(old, new))),
            torch.full(shape, -1, device=graph.device).index_put((graph, slot), classes.argmax(1)),
            new.new_zeros(*shape, *known.shape[1:]).index_put((old.graph, slot[: len(old.graph)]), known),
            torch.arange(shape[1], device=graph.device) < torch.bincount(old.graph, minlength=shape[0])[:, None],
        )
        return self._said(graphs)[graph, slot]

    def _said(self, graphs: Graphs) -> Float[Tensor, "batch n pairs entries"]:
        """SOAP as the network says it, of graphs of about one size together: two thirds of the time."""
        assert self.soap_predictor is not None
        size = (graphs.classes >= 0).sum(1)
        by_size, n = size.argsort(), graphs.classes.shape[1]
        parts = []
        for rows in by_size.split(ALIKE):
            largest = int(size[rows].max())
            part = self.soap_predictor.soap(Graphs(*(t[rows, :largest] for t in graphs)))
            parts.append(F.pad(part, (0, 0, 0, 0, 0, n - largest)))
        return torch.cat(parts)[by_size.argsort()]

    def kept_classes(self, logits: Float[Tensor, "g 5"]) -> Float[Tensor, "g 5"]:
        """What a predicted atom is from then on: its probable class, or the probabilities where SOAP takes them."""
        if self.config.soap_gradient == "none":
            return F.one_hot(logits.argmax(1), N_CLASSES).to(logits)
        return logits.softmax(1)

    def _frame(self, old: PartialGraph, new: Float[Tensor, "g 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "g 3"]]:
        """Positions of old and new atoms as the networks see them. z keeps its zero, the topmost nucleus: a property of
        the image, not of its frame."""
        if self.config.coordinates == "absolute":
            return old.positions, new
        origin = torch.cat([new[:, :2], torch.zeros_like(new[:, 2:])], dim=1)
        return old.positions - origin[old.graph], new - origin

    def _known(self, old: PartialGraph) -> Float[Tensor, "n pairs entries"] | None:
        return self.spectrum(old.positions, old.classes, old.graph) if old.soap is None else old.soap

    def spectrum(
        self, positions: Float[Tensor, "n 3"], classes: Float[Tensor, "n 5"], graph: Int[Tensor, " n"]
    ) -> Float[Tensor, "n pairs entries"] | None:
        """SOAP of each atom in its own graph, setting A; None where the model has none."""
        if self.config.soap == "none":
            return None
        expected = self.config.soap_gradient == "expected"
        return torch.as_tensor(power_spectrum(positions, classes, graph, expected=expected)).flatten(2)

    def _scaled(self, soap: Float[Tensor, "n pairs entries"] | None) -> Float[Tensor, "n pairs entries"] | None:
        return None if soap is None else soap / self.config.soap_scale
