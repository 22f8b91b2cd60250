"""What the SOAP predictor learns from: batch q is a function of (configuration, q).

Random points (report, 4.1.2): a mini-batch of graphs grows node by node, one batch, and so one optimisation step, an
addition. The nodes' classes are those of a partition of their number, the same for all graphs of a mini-batch.

Molecules: atoms are added at random; each graph of a batch is at any of its additions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ...config import config_to_dict
from ...data.molecules import MoleculeSet
from ...elements import CATEGORIES, CLASS_NAMES, element_index
from ...errors import ConfigError
from ...soap import SoapConfig, power_spectrum
from ...structures import Molecule
from .predictor import Growth


@dataclass(frozen=True)
class PointsConfig:
    """How random graphs are drawn."""

    seed: int = 0
    nodes: int = 10
    """Of a whole graph; of molecules the most: larger ones are left out."""
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
        start = _told(forced[: size - 1])
        labels = spectra(list(positions[:, :size]), [classes[:size]] * self.size, self.soap, size)
        known = spectra(list(positions[:, :start]), [classes[:start]] * self.size, self.soap, start)
        places = torch.from_numpy(positions[:, :size].astype(np.float32))
        known = _noisy(known, c.noise, np.random.default_rng((c.seed, graph, size)))
        return Growth(places, torch.from_numpy(classes[:size]).expand(self.size, -1), labels, known)


class GrowingMolecules:
    """Batches of `size` partial graphs of molecules; of a run of `steps` steps."""

    def __init__(self, molecules: MoleculeSet, config: PointsConfig, soap: SoapConfig, size: int, steps: int) -> None:
        if soap.n_species < len(CLASS_NAMES):
            raise ConfigError(f"Atoms of molecules have {len(CLASS_NAMES)} classes: set model.soap.n_species.")
        if not (molecules.n_atoms <= config.nodes).any():
            raise ConfigError(f"No molecule has {config.nodes} atoms or fewer (points.nodes).")
        self.molecules = molecules.where(molecules.n_atoms <= config.nodes)
        self.config, self.soap, self.size, self.steps = config, soap, size, steps
        about = {"points": config_to_dict(config), "soap": config_to_dict(soap), "molecules": molecules.sha256}
        self.origin: dict[str, Any] = {"batch_size": size, "steps": steps} | about

    def batch(self, q: int) -> Growth:
        """Batch q: graphs to which a last atom was added."""
        c = self.config
        rng = np.random.default_rng((c.seed, q))
        graphs = [
            partial_graph(self.molecules[i], c.first, rng)
            for i in rng.integers(len(self.molecules), size=self.size).tolist()
        ]
        positions, classes = [p for p, _ in graphs], [k for _, k in graphs]
        n = max(map(len, classes))
        forced = rng.random(n) < np.interp(q / max(1, self.steps - 1), (0, 1), c.forcing)
        start = _told(forced[: n - 1])
        before = [(p[:left], k[:left]) for p, k in graphs for left in [max(0, len(k) - (n - start))]]
        known = spectra([p for p, _ in before], [k for _, k in before], self.soap, start)
        filled = [np.pad(p, ((n - len(p), 0), (0, 0))) for p in positions]
        labels = [np.pad(k, (n - len(k), 0), constant_values=-1) for k in classes]
        return Growth(
            torch.from_numpy(np.stack(filled).astype(np.float32)),
            torch.from_numpy(np.stack(labels)),
            spectra(positions, classes, self.soap, n),
            _noisy(known, c.noise, rng),
        )


def partial_graph(
    molecule: Molecule, least: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "s 3"], Int[np.ndarray, " s"]]:
    """Positions (A, from the molecule's middle on) and classes of some atoms at random, `least` or more."""
    n = len(molecule.numbers)
    order = rng.permutation(n)[: int(rng.integers(min(least, n), n + 1))]
    return (molecule.positions - molecule.positions.mean(0))[order], CATEGORIES[element_index(molecule.numbers[order])]


def spectra(
    positions: list[Float[np.ndarray, "_ 3"]], classes: list[Int[np.ndarray, " _"]], soap: SoapConfig, n: int
) -> Float[torch.Tensor, "graphs n pairs k"]:
    """SOAP of each node in its own graph; smaller graphs are filled up in front, with zeros."""
    sizes = [len(p) for p in positions]
    filled = torch.zeros(len(sizes), n, soap.n_pairs, soap.n_radial**2 * (soap.max_l + 1))
    if sum(sizes):
        graph = np.repeat(np.arange(len(sizes)), sizes)
        found = np.asarray(power_spectrum(np.concatenate(positions), np.concatenate(classes), graph, soap), np.float32)
        there = torch.arange(n) >= n - torch.tensor(sizes)[:, None]
        filled[there] = torch.from_numpy(found).flatten(2)
    return filled


def _told(forced: Bool[np.ndarray, " n"]) -> int:
    """Size of the largest graph whose label is told."""
    return int(max(np.flatnonzero(forced) + 1, default=0))


def _noisy(known: torch.Tensor, noise: float, rng: np.random.Generator) -> torch.Tensor:
    return known * (1 + noise * torch.from_numpy(rng.standard_normal(known.shape).astype(np.float32)))


def draw_classes(rng: np.random.Generator, nodes: int, species: int) -> Int[np.ndarray, " n"]:
    """Classes of the nodes in the order of their addition: 2 or 3 of them, any sizes that add up, any order."""
    kinds = int(rng.integers(2, min(3, species, nodes) + 1)) if species > 1 else 1
    cuts = np.sort(rng.choice(np.arange(1, nodes), kinds - 1, replace=False))
    sizes = np.diff([0, *cuts, nodes])
    return rng.permutation(np.repeat(rng.choice(species, kinds, replace=False), sizes))
