"""Our model, one pass: PosNet finds atoms, BondNet judges and connects them.

It is trained with true (jittered) positions in half of the samples and with its own peaks in the other half: a graph
network that has seen only true positions breaks when it is used.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..dataset import Batch
from ..elements import CATEGORIES, NUMBERS
from ..structures import Molecule
from .gnn import BondNet, Graph
from .peaks import find_peaks, same_image_distance
from .posnet import PosNet


@dataclass(frozen=True)
class ModelConfig:
    """What a weight file needs to rebuild the model."""

    slices: int = 10
    """Slices that the network takes."""
    pixel: float = 0.25
    """Pixel size that the network takes, A."""
    step: tuple[float, float] = (0.06, 0.14)
    """Slice spacings that it was trained for, A."""
    depth: float = 0.8
    """Atoms are asked for down to this far below the topmost one, A."""
    channels: tuple[int, ...] = (96, 128, 192)
    """Width at 0.5, 1, 2 A a pixel."""
    blocks: int = 2
    """Residual blocks a level, on the way down and up."""
    width: int = 96
    """Width of the graph network."""
    rounds: int = 3
    """Rounds of messages."""


SPARE_DEPTH = 0.2
"""Atoms are learned and reported this much deeper than `depth`, so that noise in z loses none at the border, A."""
CANDIDATE = 0.15
"""Heat from which a local maximum is a candidate atom."""
MATCH = 0.5
"""A candidate within this distance of a labelled atom in the image plane stands for it, A."""
HEAT_SIGMA = 0.25
"""Width of an atom's Gaussian in the heat map, A (the original's)."""


class Ours(nn.Module):
    """See the module's text. `forward` returns losses, `predict` molecules."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.posnet = PosNet(config.slices, config.channels, config.blocks)
        self.bondnet = BondNet(config.channels[0], config.width, config.rounds)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a training batch, each a scalar; their sum is minimised."""
        features, maps = self.posnet(batch.images)
        with torch.autocast(maps.device.type, enabled=False):
            positions, image, truth = self._nodes(batch, maps.detach(), generator)
            graph = self.bondnet(features, positions, image, 2 * self.config.pixel)
            return self._map_losses(batch, maps) | self._graph_losses(batch, graph, truth)

    def _wanted(self, batch: Batch) -> Tensor:
        """Which labelled atoms are to be found; deeper ones are neither right nor wrong."""
        return batch.positions[:, 2] >= -(self.config.depth + SPARE_DEPTH)

    def _nodes(
        self, batch: Batch, maps: Float[Tensor, "batch 4 nx ny"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Positions and images of the graph's nodes, and the labelled atom that each stands for (-1: none)."""
        device = maps.device
        use_truth = (torch.rand(len(batch.images), generator=generator) < 0.5).to(device)
        jitter = torch.randn(batch.positions.shape, generator=generator).to(device) * 0.07
        given = torch.nonzero(self._wanted(batch) & use_truth[batch.molecule])[:, 0]
        found, image, _ = find_peaks(maps, self.config.pixel, CANDIDATE)
        own = ~use_truth[image]
        found, image = found[own], image[own]
        truth = match(found, image, batch.positions, batch.molecule)
        return (
            torch.cat([(batch.positions + jitter)[given], found]),
            torch.cat([batch.molecule[given], image]),
            torch.cat([given, truth]),
        )

    def _map_losses(self, batch: Batch, maps: Float[Tensor, "batch 4 nx ny"]) -> dict[str, Tensor]:
        """Heat: penalty-reduced focal loss (Zhou et al., arXiv 1904.07850); offset and z: mean absolute error, A."""
        wanted, pixel = self._wanted(batch), self.config.pixel
        _, _, nx, ny = maps.shape
        place, centre = _patches(batch, 3, pixel, nx, ny)
        distance2 = (centre - batch.positions[:, None, :2]).square().sum(-1)
        inside = place >= 0
        gauss = torch.exp(-distance2 / (2 * HEAT_SIGMA**2))
        gauss[torch.arange(len(gauss)), gauss.argmax(1)] = 1.0  # the nearest pixel is the atom

        pick = wanted[:, None] & inside
        target = torch.zeros(maps[:, 0].numel(), device=maps.device)
        target = target.scatter_reduce(0, place[pick], gauss[pick], "amax")
        weight = torch.ones_like(target)
        weight[place[~wanted[:, None] & inside & (gauss > 0.1)]] = 0.0
        weight = torch.where(target > 0.1, 1.0, weight)
        logit = maps[:, 0].flatten()
        p = logit.sigmoid()
        positive = (target == 1) * (1 - p).square() * F.logsigmoid(logit)
        negative = (target < 1) * (1 - target).pow(4) * p.square() * F.logsigmoid(-logit)
        n_atoms = wanted.sum().clamp_min(1)
        heat = -(weight * (positive + negative)).sum() / n_atoms

        near = pick & (distance2 < (1.5 * pixel) ** 2)
        wish = torch.cat([batch.positions[:, None, :2] - centre, batch.positions[:, None, 2:].expand(-1, 49, 1)], -1)
        got = maps[:, 1:].permute(0, 2, 3, 1).flatten(0, 2)[place[near]]
        error = (got - wish[near]).abs().sum(0) / near.sum().clamp_min(1)
        return {"heat": heat, "offset": error[:2].sum(), "z": error[2]}

    def _graph_losses(self, batch: Batch, graph: Graph, truth: Int[Tensor, " n"]) -> dict[str, Tensor]:
        real = truth >= 0
        asked = ~real | torch.isin(truth, torch.nonzero(self._wanted(batch)))
        exists = F.binary_cross_entropy_with_logits(graph.exists[asked], real[asked].float(), reduction="sum")
        elements = F.cross_entropy(graph.elements[real], batch.elements[truth[real]], reduction="sum")
        i, j = truth[graph.pairs].sort(1).values.unbind(1)
        n = len(batch.positions)
        bonded = (i >= 0) & torch.isin(i * n + j, batch.bonds[:, 0] * n + batch.bonds[:, 1])
        bonds = F.binary_cross_entropy_with_logits(graph.bonds, bonded.float(), reduction="sum")
        n_atoms = real.sum().clamp_min(1)
        return {"exists": exists / n_atoms, "elements": elements / n_atoms, "bonds": bonds / n_atoms}

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "batch slices nx ny"], threshold: float = 0.5) -> list[Molecule]:
        """The molecule in each stack, image frame, A; an empty one where nothing is found."""
        features, maps = self.posnet(images)
        positions, image, _ = find_peaks(maps, self.config.pixel, CANDIDATE)
        graph = self.bondnet(features, positions, image, 2 * self.config.pixel)
        confidence = graph.exists.sigmoid()
        keep = confidence >= threshold
        bonds = graph.bonds.sigmoid()
        kept = keep[graph.pairs].all(1)
        return [
            _molecule(
                positions.double().numpy(force=True),
                graph.elements.softmax(1).double().numpy(force=True),
                confidence.double().numpy(force=True),
                (keep & (image == b)).numpy(force=True),
                graph.pairs[kept & (image[graph.pairs[:, 0]] == b)].numpy(force=True),
                bonds[kept & (image[graph.pairs[:, 0]] == b)].double().numpy(force=True),
                self.config.depth + SPARE_DEPTH,
            )
            for b in range(len(images))
        ]


def _molecule(
    positions: Float[np.ndarray, "n 3"],
    elements: Float[np.ndarray, "n e"],
    confidence: Float[np.ndarray, " n"],
    keep: np.ndarray,
    pairs: Int[np.ndarray, "m 2"],
    bonds: Float[np.ndarray, " m"],
    depth: float,
) -> Molecule:
    """Atoms `keep` as a Molecule with z = 0 at the topmost one, those deeper than `depth` left out."""
    if keep.any():
        z = positions[:, 2] - positions[keep, 2].max()
        positions = np.column_stack([positions[:, :2], z])
        keep = keep & (z >= -depth)
    classes = np.stack([elements[:, c == CATEGORIES].sum(1) for c in range(5)], axis=1)
    best = CATEGORIES[None] == classes.argmax(1)[:, None]
    numbers = NUMBERS[np.where(best, elements, -1).argmax(1)]
    place = np.cumsum(keep) - 1
    use = keep[pairs].all(1)
    return Molecule(
        positions[keep], numbers[keep], place[pairs[use]], None, classes[keep], confidence[keep], bonds[use]
    )


def match(
    found: Float[Tensor, "n 3"], image: Int[Tensor, " n"], atoms: Float[Tensor, "k 3"], molecule: Int[Tensor, " k"]
) -> Int[Tensor, " n"]:
    """The labelled atom that each candidate stands for: mutual nearest in the plane and within MATCH; -1: none."""
    if len(found) == 0 or len(atoms) == 0:
        return torch.full((len(found),), -1, device=found.device)
    both = torch.cat([found[:, :2], atoms[:, :2]])
    distance = same_image_distance(both, torch.cat([image, molecule]))[: len(found), len(found) :]
    nearest, atom = distance.min(1)
    mutual = distance.argmin(0)[atom] == torch.arange(len(found), device=found.device)
    return torch.where(mutual & (nearest < MATCH), atom, -1)


def _patches(
    batch: Batch, reach: int, pixel: float, nx: int, ny: int
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k 2"]]:
    """Flat map index (-1: outside the image) and centre (A) of the pixels around each atom."""
    around = torch.arange(-reach, reach + 1, device=batch.positions.device)
    grid = torch.cartesian_prod(around, around)
    pixels = (batch.positions[:, None, :2] / pixel).floor().long() + grid
    inside = (pixels >= 0).all(-1) & (pixels[..., 0] < nx) & (pixels[..., 1] < ny)
    place = (batch.molecule[:, None] * nx + pixels[..., 0]) * ny + pixels[..., 1]
    return torch.where(inside, place, -1), (pixels + 0.5) * pixel
