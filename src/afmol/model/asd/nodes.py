"""From the atoms of a partial graph to node features: the original's messages and the report's figure 15.

    original                                          report
    (1, n, 8)    position, class                      (15, n, 35)   position, class, SOAP of a pair of classes
    (1, n, 20)   linear                               (15, n, 20)   two-layer MLP
    (1, n, 20)   rounds of messages                   (15, n, 20)   rounds of messages, each pair of classes apart
                                                      (n, 15, 128)  rounds of attention over the 15 of a node
    (n, 20)                                           (n, 128)      gated aggregation of the 15

Messages: Oinonen et al., MRS Bulletin 2022, after Gilmer et al., arXiv 1704.01212. A node's state is updated by a GRU
from the sum over its bonds of MLP(own state, neighbour's state).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...elements import CLASS_NAMES
from ...soap import SETTING_A
from ..attention import Attention, GatedSum, mlp
from .config import AsdConfig

N_CLASSES = len(CLASS_NAMES)
STATE, MESSAGE_HIDDEN = 20, 64
"""Values of a node's state and of a message; width of the layers that make messages."""
ATTENTION = 128
SOAP_ENTRIES = SETTING_A.n_radial**2 * (SETTING_A.max_l + 1)
"""Values of one pair of classes."""
SOAP_SHAPE = SETTING_A.n_pairs, SOAP_ENTRIES


class PartialGraph(NamedTuple):
    """The atoms and bonds found so far, of several graphs, packed."""

    positions: Float[Tensor, "n 3"]
    """A."""
    classes: Float[Tensor, "n 5"]
    """Ones and zeros, or probabilities."""
    graph: Int[Tensor, " n"]
    """Graph that each atom belongs to."""
    bonds: Int[Tensor, "m 2"]
    """Pairs of atoms, counted through all graphs."""
    soap: Float[Tensor, "n pairs entries"] | None = None
    """What a network said of their SOAP; None: it is to be computed."""


class MessagePassing(nn.Module):
    """See the module's text; states of several environments side by side, with the same parameters."""

    def __init__(self, symmetric: bool) -> None:
        super().__init__()
        self.message = nn.Sequential(
            *(nn.Linear(2 * STATE, MESSAGE_HIDDEN), nn.ReLU()),
            *(nn.Linear(MESSAGE_HIDDEN, MESSAGE_HIDDEN), nn.ReLU()),
            nn.Linear(MESSAGE_HIDDEN, STATE),
        )
        self.update = nn.GRUCell(STATE, STATE)
        self.symmetric = symmetric

    def forward(
        self, states: Float[Tensor, "e n state"], bonds: Int[Tensor, "m 2"], rounds: int
    ) -> Float[Tensor, "e n state"]:
        i, j = torch.cat([bonds, bonds.flip(1)]).unbind(1)
        for _ in range(rounds):
            message = self.message(torch.cat([states[:, i], states[:, j]], dim=2))  # -> e 2m state
            if self.symmetric:  # the other order of a bond is half the list away
                message = (message + message.roll(len(bonds), 1)) / 2
            received = torch.zeros_like(states).index_add(1, i, message)  # -> e n state
            states = self.update(received.flatten(0, 1), states.flatten(0, 1)).view_as(states)
        return states


class NodeNet(nn.Module):
    """See the module's text. `initial` gives a node its state, `forward` processes states along bonds."""

    def __init__(self, config: AsdConfig) -> None:
        super().__init__()
        self.n_pairs = SETTING_A.n_pairs if config.soap == "report" else 1
        plain = 3 + N_CLASSES
        if config.soap == "none":
            self.first, self.width = nn.Linear(plain, STATE), STATE
            self.attentions, self.gather = nn.ModuleList(), None
        else:
            self.first, self.width = mlp(plain + SOAP_ENTRIES, MESSAGE_HIDDEN, STATE), ATTENTION
            widths = [STATE] + [ATTENTION] * (config.attention_layers - 1)
            self.attentions = nn.ModuleList(Attention(w, w, ATTENTION, config.scaled_attention) for w in widths)
            self.gather = GatedSum(*(nn.Linear(ATTENTION, ATTENTION, bias=False) for _ in range(2)))
        self.messages = MessagePassing(config.symmetric_messages)

    def initial(
        self,
        positions: Float[Tensor, "n 3"],
        classes: Float[Tensor, "n 5"],
        soap: Float[Tensor, "n pairs entries"] | None,
    ) -> Float[Tensor, "e n state"]:
        """States before any message."""
        inputs = torch.cat([positions, classes], dim=1).expand(self.n_pairs, -1, -1)
        return self.first(inputs if soap is None else torch.cat([inputs, soap.transpose(0, 1)], dim=2))

    def forward(
        self, states: Float[Tensor, "e n state"], bonds: Int[Tensor, "m 2"], rounds: int
    ) -> Float[Tensor, "n width"]:
        """Features of the nodes after messages and, with SOAP, attention over the pairs of classes."""
        states = self.messages(states, bonds, rounds)
        if self.gather is None:
            return states[0]
        features = states.transpose(0, 1)  # -> n e state
        for attention in self.attentions:
            features = attention(features, features)  # -> n e 128
        return self.gather(features)  # -> n 128
