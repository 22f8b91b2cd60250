"""Random points to train the SOAP predictor on (report, 4.1.2): batch q is a function of (configuration, q).

A mini-batch of graphs grows node by node, one batch, and so one optimisation step, an addition. The nodes' classes are
those of a partition of their number, the same for all graphs of a mini-batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ...config import config_to_dict
from ...errors import ConfigError
from ...soap import SoapConfig, power_spectrum
from .predictor import Growth


@dataclass(frozen=True)
class PointsConfig:
    """How random graphs are drawn."""

    seed: int = 0
    nodes: int = 10
    first: int = 1
    """The addition that training starts with; 2 leaves out the first node, whose SOAP is a constant (report, appendix
    D)."""
    cube: float = 1.0
    """Points are uniform within -this and this, A."""
    forcing: tuple[float, float] = (0.9, 0.5)
    """Probability, from the first step to the last, that the network is told the label of the graph before, not what it
    said itself."""
    noise: float = 0.05
    """Standard deviation of the noise on such a label, as a share of each entry (the report: a parameter)."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.nodes or self.nodes < 2:
            raise ConfigError("points.nodes must be 2 or more, points.first between 1 and that.")
        if not (min(self.forcing) >= 0 and max(self.forcing) <= 1) or self.noise < 0 or not self.cube > 0:
            raise ConfigError("points.forcing are probabilities, points.noise is not negative, points.cube positive.")


class RandomPoints:
    """Batches of `size` graphs; of a run of `steps` steps."""

    def __init__(self, config: PointsConfig, soap: SoapConfig, size: int, steps: int) -> None:
        self.config, self.soap, self.size, self.steps = config, soap, size, steps
        about = {"points": config_to_dict(config), "soap": config_to_dict(soap)}
        self.origin: dict[str, Any] = {"batch_size": size, "steps": steps} | about

    def batch(self, q: int) -> Growth:
        """Batch q: one addition of a mini-batch."""
        c = self.config
        graph, addition = divmod(q, c.nodes - c.first + 1)
        size = c.first + addition
        rng = np.random.default_rng((c.seed, graph))
        classes = draw_classes(rng, c.nodes, self.soap.n_species)
        positions = rng.uniform(-c.cube, c.cube, (self.size, c.nodes, 3))
        forced = rng.random(c.nodes) < np.interp(q / max(1, self.steps - 1), (0, 1), c.forcing)
        start = max(np.flatnonzero(forced[: size - 1]) + 1, default=0)
        noise = np.random.default_rng((c.seed, graph, size)).standard_normal
        known = self._labels(positions[:, :start], classes[:start])
        known = known * (1 + c.noise * torch.from_numpy(noise(known.shape).astype(np.float32)))
        labels = self._labels(positions[:, :size], classes[:size])
        places = torch.from_numpy(positions[:, :size].astype(np.float32))
        return Growth(places, torch.from_numpy(classes[:size]).expand(self.size, -1), labels, known)

    def _labels(self, positions: np.ndarray, classes: np.ndarray) -> torch.Tensor:
        """SOAP of each node, (graphs, nodes, pairs, k)."""
        graphs, n, _ = positions.shape
        shape = (graphs, n, self.soap.n_pairs, -1)
        if not n:
            return torch.zeros(graphs, 0, self.soap.n_pairs, self.soap.n_radial**2 * (self.soap.max_l + 1))
        soap = power_spectrum(
            positions.reshape(-1, 3), np.tile(classes, graphs), np.repeat(np.arange(graphs), n), self.soap
        )
        return torch.from_numpy(np.asarray(soap, np.float32).reshape(shape))


def draw_classes(rng: np.random.Generator, nodes: int, species: int) -> Int[np.ndarray, " n"]:
    """Classes of the nodes in the order of their addition: 2 or 3 of them, any sizes that add up, any order."""
    kinds = int(rng.integers(2, min(3, species, nodes) + 1)) if species > 1 else 1
    cuts = np.sort(rng.choice(np.arange(1, nodes), kinds - 1, replace=False))
    sizes = np.diff([0, *cuts, nodes])
    return rng.permutation(np.repeat(rng.choice(species, kinds, replace=False), sizes))
