"""What can be chosen in the SOAP predictor: the report's network, ours, and how they are trained."""

from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError
from ...soap import SETTING_B, SoapConfig


@dataclass(frozen=True)
class SoapPredictorConfig:
    """What a weight file needs to rebuild the predictor. "report" below is section 4.1 of the report.

    Raises:
        ConfigError: values that do not fit together.
    """

    kind: Literal["soap-predictor"] = "soap-predictor"
    network: Literal["report", "invariant"] = "report"
    """The report's attention over nodes, or ours: sums over pairs of neighbours of invariant inputs."""
    soap: SoapConfig = SETTING_B
    normalise: bool = True
    """Layer normalisation after each attention (the report names normalisation layers but not their places)."""
    scaled_attention: bool = False
    """Divide the products of keys and queries by the root of their length."""
    sum_over_pairs: bool = False
    """Report's network: a node's part of a head's sum counts as often as it saw nodes of the other class. Attention is
    a mean over those, SOAP a sum; without it the network has to find their number elsewhere (LOG.md, 2026-11-28)."""
    scale: float = 1.0
    """The network's output is multiplied by this: SOAP's entries reach hundreds."""
    widths: tuple[int, ...] = (64, 32, 16)
    """Report: widths of the attention layers of a head but the last, which has one SOAP component's. Ours: width of the
    sums over pairs, then of the hidden layer."""

    def __post_init__(self) -> None:
        if not self.scale > 0 or min(self.widths, default=0) < 1 or len(self.widths) < 2:
            raise ConfigError("model.scale must be positive, model.widths two numbers or more, positive.")

    @property
    def component(self) -> int:
        """Entries of one pair of species for one degree l."""
        return self.soap.n_radial**2
