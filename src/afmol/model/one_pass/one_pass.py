"""One pass: PosNet finds atoms, BondNet judges and connects them.

It is trained with true (jittered) positions in a quarter of the samples and with its own peaks in the others: a graph
network that has seen only true positions breaks when it is used. Whether an atom is there it learns from its own peaks
alone: where positions are given all are true, those of atoms that nobody can see too. With `feedback`, BondNet is asked
again, told what it said of the elements, so that they are decided together; it learns that from its own answers in half
of the samples, and from true elements of some of the atoms in the other half. All of those are there, so that from them
it does not learn whether an atom is.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...data.samples import Batch
from ...elements import CATEGORIES, NUMBERS, by_class
from ...errors import ConfigError
from ...precision import quick_convolutions
from ...structures import Molecule
from ..neighbours import overshadowed, same_image_distance
from .graph import BondNet, Graph, bondable, neighbours
from .peaks import find_peaks
from .posnet import PosNet
from .views import points_back, together, turn, turn_back, turn_points


@dataclass(frozen=True)
class OnePassConfig:
    """What a weight file needs to rebuild the model."""

    kind: Literal["one-pass"] = "one-pass"
    slices: int = 10
    """Slices that the network takes."""
    pixel: float = 0.25
    """Pixel size that the network takes, A."""
    widest_step: float = 0.14
    """Largest slice spacing that it was trained for, A."""
    depth: float = 0.8
    """Atoms are reported down to this far below the topmost one, A, unless another depth is asked for."""
    deepest: float = 0.0
    """Largest depth that can be asked for, A: atoms are learned down to it; 0: `depth`."""
    channels: tuple[int, ...] = (96, 128, 192)
    """Width at 0.5, 1, 2 A a pixel."""
    blocks: int = 3
    """Residual blocks a level, on the way down and up."""
    inner: tuple[int, ...] = ()
    """Width within the residual blocks of each level, if not `channels`."""
    width: int = 96
    """Width of the graph network."""
    rounds: int = 4
    """Rounds of messages."""
    feedback: int = 0
    """How often the graph network is asked again, told what it said of the elements."""
    shifts: bool = False
    """Whether the graph network corrects where atoms are in the plane, as it does in depth."""
    sizes: bool = False
    """Whether the graph network says how much larger the image is stated to be than it is. It learns that where samples
    say it: simulated ones and those of `afmol dataset make`, but not imported ones."""
    rim: int = 0
    """Pixels, an even number, by which the image goes on beyond its edges as it ends there, for the network alone: it
    reads atoms near an edge better so (LOG.md, 2026-11-29)."""

    def __post_init__(self) -> None:
        if self.rim < 0 or self.rim % 2:
            raise ConfigError("model.rim is an even number of pixels, 0 or more.")
        if self.inner and (len(self.inner) != len(self.channels) or min(self.inner) < 1):
            raise ConfigError("model.inner is a width, 1 or more, for each of model.channels.")


SPARE_DEPTH = 0.2
"""Atoms are learned and reported this much deeper than they are asked for, so that noise in z loses none there, A."""
CANDIDATE = 0.15
"""Heat from which a local maximum is a candidate atom."""
MATCH = 0.5
"""A candidate within this distance of a labelled atom in the image plane stands for it, A."""
BENEATH = 0.6
"""Of two labelled atoms closer than this in the image plane, A, the lower one is not seen: a hydrogen that points up
hides what it is bonded to. It is no label, or one place would have two depths and two elements."""
HEAT_SIGMA = 0.25
"""Width of an atom's Gaussian in the heat map, A (the original's)."""
GIVEN = 0.25
"""Share of the samples of a batch whose true positions are given."""
SPAN = 10.0
"""Errors of sizes are counted as those of this length, A, that of a molecule."""
LEAST_BOND = 0.01
"""Bonds less probable than this are not reported."""


class OnePass(nn.Module):
    """See the module's text. `forward` returns losses, `predict` molecules."""

    def __init__(self, config: OnePassConfig) -> None:
        super().__init__()
        self.config = config
        self.posnet = PosNet(config.slices, config.channels, config.blocks, config.rim, config.inner)
        parts = config.feedback > 0, config.shifts, config.sizes
        self.bondnet = BondNet(config.channels[0], config.width, config.rounds, *parts)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a training batch, each a scalar; their sum is minimised."""
        batch = uncovered(batch)
        features, maps = self.posnet(batch.images)
        with torch.autocast(maps.device.type, enabled=False):
            positions, image, truth, own = self._nodes(batch, maps.detach(), generator)
            pairs, pixel = neighbours(positions, image), 2 * self.config.pixel
            graph = bondable(self.bondnet(features, positions, image, pixel, pairs), positions)
            losses = self._map_losses(batch, maps) | self._graph_losses(batch, graph, truth, own)
            losses |= self._size_loss(batch, graph, image[own])
            if self.config.feedback:
                told, asked = self._told(batch, graph.elements.detach(), image, truth, generator)
                again = bondable(self.bondnet(features, positions, image, pixel, pairs, told), positions)
                wanted = torch.where(asked, truth, -1)
                further = self._graph_losses(batch, again, truth, own & asked)  # what is told of is there
                further["elements"] = self._element_loss(batch, again, wanted)
                further |= self._size_loss(batch, again, image[own & asked])
                losses |= {f"{name}_again": loss for name, loss in further.items()}
            return losses

    def take(self, other: "OnePass") -> None:
        """Start from the weights of a model that differs in `feedback`, `deepest`, `shifts`, `sizes`, `rim` alone.

        Raises:
            ConfigError: another model.
        """
        may = {name: getattr(self.config, name) for name in ("feedback", "deepest", "shifts", "sizes", "rim")}
        if replace(other.config, **may) != self.config:
            raise ConfigError(
                "The weights to start from are of a model of another configuration: only model.feedback, "
                "model.deepest, model.shifts, model.sizes and model.rim may differ."
            )
        self.load_state_dict(other.state_dict(), strict=False)

    def _wanted(self, batch: Batch) -> Tensor:
        """Which labelled atoms are to be found; deeper ones are neither right nor wrong."""
        return batch.positions[:, 2] >= -(max(self.config.depth, self.config.deepest) + SPARE_DEPTH)

    def _nodes(
        self, batch: Batch, maps: Float[Tensor, "batch 4 nx ny"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"], Int[Tensor, " n"], Bool[Tensor, " n"]]:
        """Positions and images of the graph's nodes, the labelled atom that each stands for (-1: none), and whether it
        is a peak of the maps.

        Their depth is always the map's: a graph network that had seen true depths would trust what it is given.
        """
        device = maps.device
        use_truth = (torch.rand(len(batch.images), generator=generator) < GIVEN).to(device)
        jitter = torch.randn(batch.positions.shape, generator=generator).to(device) * 0.07
        given = torch.nonzero(self._wanted(batch) & use_truth[batch.molecule])[:, 0]
        found, image, _ = find_peaks(maps, self.config.pixel, CANDIDATE)
        others = ~use_truth[image]
        found, image = found[others], image[others]
        truth = match(found, image, batch.positions, batch.molecule)
        near = (batch.positions + jitter)[given]
        ix, iy = ((near[:, k] / self.config.pixel).long().clamp(0, maps.shape[2 + k] - 1) for k in (0, 1))
        near[:, 2] = maps[batch.molecule[given], 3, ix, iy]
        return (
            torch.cat([near, found]),
            torch.cat([batch.molecule[given], image]),
            torch.cat([given, truth]),
            torch.arange(len(given) + len(found), device=device) >= len(given),
        )

    def _told(
        self,
        batch: Batch,
        said: Float[Tensor, "n e"],
        image: Int[Tensor, " n"],
        truth: Int[Tensor, " n"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "n e"], Bool[Tensor, " n"]]:
        """What the graph network is told when it is asked again, and of which nodes it is to say the element.

        In half of the images of each node what it said itself (logits `said`), and all are asked for; in the others
        the true element of a random share of the atoms, and the others are asked for.
        """
        n_images, device = len(batch.images), image.device
        own = (torch.rand(n_images, generator=generator) < 0.5).to(device)[image]
        share = torch.rand(n_images, generator=generator).to(device)[image]
        known = (torch.rand(len(image), generator=generator).to(device) < share) & ~own & (truth >= 0)
        told = torch.where(own[:, None], said.softmax(1), 0.0)
        told[known] = F.one_hot(batch.elements[truth[known]], said.shape[1]).to(said)
        return told, ~known

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

        # deeper atoms teach depth too (where no higher one stands), or all that is found would seem to lie high
        free = inside & (target[place.clamp_min(0)] < 0.1)
        near = (pick | free) & (distance2 < (1.5 * pixel) ** 2)
        wish = torch.cat([batch.positions[:, None, :2] - centre, batch.positions[:, None, 2:].expand(-1, 49, 1)], -1)
        got = maps[:, 1:].permute(0, 2, 3, 1).flatten(0, 2)[place[near]]
        error = (got - wish[near]).abs().sum(0) / near.sum().clamp_min(1)
        return {"heat": heat, "offset": error[:2].sum(), "z": error[2]}

    def _graph_losses(
        self, batch: Batch, graph: Graph, truth: Int[Tensor, " n"], own: Bool[Tensor, " n"]
    ) -> dict[str, Tensor]:
        real = truth >= 0
        there = torch.isin(truth, torch.nonzero(self._wanted(batch)))  # a candidate for a deeper atom is to be dropped
        exists = F.binary_cross_entropy_with_logits(graph.exists[own], there[own].float(), reduction="sum")
        depth = (graph.z[real] - batch.positions[truth[real], 2]).abs().sum()
        i, j = truth[graph.pairs].sort(1).values.unbind(1)
        n = len(batch.positions)
        bonded = (i >= 0) & torch.isin(i * n + j, batch.bonds[:, 0] * n + batch.bonds[:, 1])
        bonds = F.binary_cross_entropy_with_logits(graph.bonds, bonded.float(), reduction="sum")
        n_atoms = real.sum().clamp_min(1)
        elements = self._element_loss(batch, graph, truth)
        losses = {"exists": exists / n_atoms, "elements": elements, "depth": depth / n_atoms, "bonds": bonds / n_atoms}
        if self.config.shifts:
            found = real & own  # given positions are off at random, as peaks are not
            error = graph.xy[found] - batch.positions[truth[found], :2]
            losses["xy"] = error.norm(dim=1).sum() / found.sum().clamp_min(1)
        return losses

    def _size_loss(self, batch: Batch, graph: Graph, images: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Of images that show atoms, the network's own peaks, and whose true size is known."""
        if graph.stretch is None:
            return {}
        seen = torch.isin(torch.arange(len(batch.images), device=images.device), images)
        error = (graph.stretch - batch.stretch)[seen & batch.stretch.isfinite()]
        return {"size": SPAN * error.abs().sum() / max(1, len(error))}

    def _element_loss(self, batch: Batch, graph: Graph, truth: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean cross entropy over the nodes that stand for an atom."""
        real = truth >= 0
        entropy = F.cross_entropy(graph.elements[real], batch.elements[truth[real]], reduction="sum")
        return entropy / real.sum().clamp_min(1)

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "batch slices nx ny"],
        threshold: float = 0.5,
        depth: float | None = None,
        elements: Bool[Tensor, "batch e"] | None = None,
    ) -> list[Molecule]:
        """The molecule in each stack, image frame, A; an empty one where nothing is found.

        The mean over the eight views of an image (quarter turns and mirror images), so that turning or mirroring the
        image turns or mirrors the molecule and changes nothing else. `elements`: those that there can be in each stack,
        in the order of ELEMENTS; all if None.
        """
        groups = together(images)
        with quick_convolutions(images.device):  # as in training
            seen = [self.posnet(torch.cat([turn(images, view) for view in group])) for group in groups]
        turned_back = [
            turn_back(m, view)
            for group, (_, maps) in zip(groups, seen, strict=True)
            for view, m in zip(group, maps.split(len(images)), strict=True)
        ]
        positions, image, _ = find_peaks(torch.stack(turned_back).mean(0), self.config.pixel, CANDIDATE)
        pairs = neighbours(positions, image)
        size = torch.tensor(images.shape[2:], device=images.device) * self.config.pixel

        def asked(told: Tensor | None) -> Graph:
            """The mean over views, the graphs of a group's as one."""
            n, many = len(positions), []
            for group, (features, _) in zip(groups, seen, strict=True):
                k = torch.arange(len(group), device=images.device)
                points = torch.cat([turn_points(positions, size, view) for view in group])
                where = (image + len(images) * k[:, None]).flatten()
                joined = (pairs + n * k[:, None, None]).flatten(0, 1)
                known = None if told is None else told.repeat(len(group), 1)
                many.append(self.bondnet(features, points, where, 2 * self.config.pixel, joined, known))
            counts = {"exists": n, "elements": n, "xy": n, "z": n, "bonds": len(pairs)}
            counts |= {"stretch": len(images)} if self.config.sizes else {}
            said = {
                name: torch.cat([getattr(g, name).unflatten(0, (len(v), k)) for v, g in zip(groups, many, strict=True)])
                for name, k in counts.items()
            }
            views = [view for group in groups for view in group]
            said["xy"] = torch.stack([points_back(xy, size, view) for xy, view in zip(said["xy"], views, strict=True)])
            graph = Graph(pairs=pairs, **{name: value.mean(0) for name, value in said.items()})
            if elements is None:
                return graph
            return replace(graph, elements=graph.elements.masked_fill(~elements[image], -torch.inf))

        graph = asked(None)
        for _ in range(self.config.feedback):
            graph = asked(graph.elements.softmax(1))
        graph = bondable(graph, positions)
        depth = self.config.depth if depth is None else depth
        stretch = [None] * len(images) if graph.stretch is None else graph.stretch.exp().tolist()
        found = [_molecule(graph, image == b, threshold, depth) for b in range(len(images))]
        return [replace(molecule, stretch=s) for molecule, s in zip(found, stretch, strict=True)]


def _molecule(graph: Graph, mine: Bool[Tensor, " n"], threshold: float, depth: float) -> Molecule:
    """The candidates `mine` that are confident enough, and not too deep, as a Molecule with z = 0 at the topmost one.

    A predicted z above 0 is noise: it is set to 0, and all are raised only if none is there. (To put the highest at 0
    would push a flat molecule down by the largest error among its atoms.)
    """
    confidence = graph.exists.sigmoid()
    keep = mine & (confidence >= threshold)
    likely = keep & (confidence >= 0.5)
    high = likely if likely.any() else keep  # what is hardly there is not the topmost atom
    top = graph.z[high].max().clamp(max=0) if high.any() else 0.0
    z = (graph.z - top).clamp(max=0)
    keep &= z >= -(depth + SPARE_DEPTH)
    bonds = graph.bonds.sigmoid()
    use = keep[graph.pairs].all(1) & (bonds >= LEAST_BOND)
    pairs = (keep.cumsum(0) - 1)[graph.pairs[use]]

    elements = graph.elements[keep].softmax(1).double().numpy(force=True)
    classes = by_class(elements)
    best = CATEGORIES[None] == classes.argmax(1)[:, None]
    return Molecule(
        torch.cat([graph.xy[keep], z[keep, None]], 1).double().numpy(force=True),
        NUMBERS[np.where(best, elements, -1).argmax(1)],
        pairs.numpy(force=True),
        None,
        classes,
        confidence[keep].double().numpy(force=True),
        bonds[use].double().numpy(force=True),
        element_probabilities=elements,
    )


def uncovered(batch: Batch) -> Batch:
    """The batch without the labelled atoms that lie beneath others."""
    p, m = batch.positions, batch.molecule
    kept = ~overshadowed(p[:, :2], m, p[:, 2], BENEATH)
    place = kept.cumsum(0) - 1
    bonds = place[batch.bonds[kept[batch.bonds].all(1)]]
    return batch._replace(positions=p[kept], elements=batch.elements[kept], molecule=m[kept], bonds=bonds)


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
