"""The ASD model: a grid of atom positions from the image, then the molecular graph, atom by atom.

    images -> U-Net -> position grid -> peaks -> positions, put in an order
    images -> U-Net's encoder -> levels
    partial graph, next position, levels -> graph builder -> class, bonds -> partial graph with that atom

The original model (Oinonen et al., MRS Bulletin 2022) and its modification with SOAP (the report), as one code; see
config.py for what can be chosen. Defaults: 578,068 parameters read the image, 625,082 all in all.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...data.samples import Batch
from ...elements import CATEGORIES, NUMBERS
from ...errors import ConfigError
from ...structures import Molecule
from .builder import GraphBuilder
from .config import AsdConfig
from .crop import cropped
from .encoding import ImageEncoder, Level, images_of
from .grid import position_grid
from .grouping import rank_within
from .nodes import N_CLASSES, SOAP_SHAPE, PartialGraph
from .peaks import find_peaks
from .removal import Removal, remove, true_graph
from .unet import UNet, standardised

POSITION_WEIGHT = 100.0
"""Weight of the grid's mean squared error beside the two cross entropies."""
SOAP_UNIT = 100.0
"""Unit of SOAP's entries, which reach 1500, in the loss of SOAP."""
LEAST_BOND = 0.01
"""Bonds less probable than this are not reported."""
COMMONEST = NUMBERS[[list(CATEGORIES).index(c) for c in range(N_CLASSES)]]
"""H, C, N, O, F: the element that a predicted atom of each class is given, the commonest one in our training molecules
(of the halogens F 40 %, Cl 30 %, Br 23 %, I 7 %)."""
ORDERS = 4096
"""Numbers that decide the order in which atoms are added at random; always the same, image by image."""


class SingleSteps(NamedTuple):
    """One step of the graph builder for each image of a batch, from true partial graphs; those where all atoms are
    there already are left out."""

    classes: Int[Tensor, " g"]
    """True class of the atom that is added."""
    class_logits: Float[Tensor, "g 5"]
    sizes: Int[Tensor, " g"]
    """Atoms of the partial graph."""
    graph: Int[Tensor, " n"]
    """Step that each atom of a partial graph belongs to."""
    bonded: Bool[Tensor, " n"]
    """Whether that atom is bonded to the added one."""
    bonds: Float[Tensor, " n"]
    """Predicted probability of that."""
    old_classes: Int[Tensor, " n"]
    """Class of that atom."""
    lengths: Float[Tensor, " n"]
    """Its distance from the added one, A."""


class Asd(nn.Module):
    """See the module's text. `forward` returns losses, `predict` molecules, `single_steps` what statistics need."""

    def __init__(self, config: AsdConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.channels, config.mean_one_gates)
        self.encoder = ImageEncoder(config.channels, config.pixel, local=config.coordinates == "relative")
        self.builder = GraphBuilder(config)
        self.requires_grad_(config.train == "all")
        for part in self._trained():
            part.requires_grad_(True)

    def take(self, other: "Asd") -> None:
        """Start from another model's weights: all of them where the two differ in their training alone, unless the
        graph builder is trained here; else those of the CNN, which every variant has. The widths of a local attention
        stay as they are if the other has none.

        Raises:
            ConfigError: another CNN.
        """
        mine, theirs = (replace(m.config, train="all", removals=1, crop=0, order="random") for m in (self, other))
        if mine == theirs and self.config.train not in ("graph", "builder"):
            self.load_state_dict(other.state_dict())
        elif (mine.channels, mine.mean_one_gates) == (theirs.channels, theirs.mean_one_gates):
            self.unet.load_state_dict(other.unet.state_dict())
            self.encoder.load_state_dict(other.encoder.state_dict(), strict=False)
        else:
            raise ConfigError(
                "The weights to start from have another CNN: model.channels or model.mean_one_gates differ."
            )

    def _trained(self) -> list[nn.Module]:
        builder = self.builder
        serve_classes = [builder.class_nodes, builder.graph_encoding, builder.query, builder.class_head]
        match self.config.train:
            case "cnn":
                return [self.unet, self.encoder, *serve_classes]
            case "coarse":
                stages = [part[:-1] for part in (self.unet.gates, self.unet.widen, self.unet.merge)]
                return [self.unet.encoder, *stages, self.encoder, *serve_classes]
            case "classes":
                return [self.unet.encoder, self.encoder, *serve_classes]
            case "graph":
                return [self.encoder, builder]
            case "builder":
                return [builder]
            case "bonds":  # nodes that classes share stay as they are
                return [builder.bond_head, *([] if self.config.shared else [builder.bond_nodes])]
        return [self]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a training batch, each a scalar; their sum is minimised.

        "position": 100 times the mean squared error of the grid. "class": cross entropy. "bond": binary cross entropy,
        the mean over each partial graph's atoms. The latter are means over all graphs, as published: those from which
        nothing was removed count as 0.
        """
        c = self.config
        batch = batch._replace(images=standardised(batch.images))
        if c.crop and self.training:
            batch = cropped(batch, min(c.crop, *batch.images.shape[2:]), c.pixel, generator)
        maps = self.unet.maps(batch.images)
        losses = {}
        if c.train in ("all", "cnn", "coarse"):
            losses["position"] = self._position_loss(batch, maps)
        with torch.autocast(batch.images.device.type, enabled=False):
            task = remove(batch, c.depth, c.order, c.removals, generator)
            levels = self.encoder.levels([x.float() for x in maps])
            logits, image = self.builder.classify(self.encoder, levels, task.left, task.positions)
            n_graphs = len(logits)
            if c.train != "bonds":
                losses["class"] = F.cross_entropy(logits, task.classes, ignore_index=-1, reduction="sum") / n_graphs
            if c.train not in ("cnn", "coarse", "classes"):
                soap = self.builder.soap_with_new(task.left, task.positions, self.builder.kept_classes(logits))
                if c.soap_weight and soap is not None:
                    losses["soap"] = c.soap_weight * self._soap_loss(task, logits, soap)
                bonds = self.builder.bond(task.left, task.positions, logits, image, soap)
                each = F.binary_cross_entropy_with_logits(bonds, task.bonded.float(), reduction="none")
                graph = task.left.graph
                weight = (task.classes >= 0).float() / torch.bincount(graph, minlength=n_graphs).clamp_min(1)
                losses["bond"] = (weight[graph] * each).sum() / n_graphs
        return losses

    def _position_loss(self, batch: Batch, maps: list[Float[Tensor, "batch _ _ _ _"]]) -> Float[Tensor, ""]:
        nx, ny = batch.images.shape[2:]
        atoms, _ = true_graph(batch, self.config.depth)
        with torch.autocast(batch.images.device.type, enabled=False):
            wanted = position_grid(atoms.positions, atoms.graph, len(batch.images), (nx, ny), self.config.pixel)
        if self.config.train == "coarse":
            wanted = F.avg_pool3d(wanted[:, None], 2)[:, 0]
            grid = self.unet.coarse(maps)[:, : nx // 2, : ny // 2].float()
        else:
            grid = self.unet.decode(maps)[:, :nx, :ny].float()
        return POSITION_WEIGHT * F.mse_loss(grid, wanted)

    def _soap_loss(
        self, task: Removal, logits: Float[Tensor, "g 5"], soap: Float[Tensor, "m pairs entries"]
    ) -> Float[Tensor, ""]:
        """Mean squared error of SOAP where an atom was added; see `AsdConfig.soap_weight`."""
        there, truth = task.classes >= 0, F.one_hot(task.classes.clamp_min(0), N_CLASSES).to(logits)
        meant = truth if self.config.soap_of_new == "computed" else self.builder.kept_classes(logits.detach())
        wanted = self.builder.soap_with_new(task.left, task.positions, meant, computed=True)
        assert wanted is not None
        counts = torch.cat([there[task.left.graph], there])
        return ((soap - wanted)[counts] / SOAP_UNIT).square().mean() if counts.any() else soap.sum() * 0.0

    @torch.no_grad()
    def single_steps(self, batch: Batch, generator: torch.Generator) -> SingleSteps:
        """One removal an image as in training, the position of the removed atom given as it is."""
        c = self.config
        task = remove(batch, c.depth, c.order, 1, generator, jitter=False)
        levels = self.encoder.levels(self.unet.encode(batch.images))
        logits, image = self.builder.classify(self.encoder, levels, task.left, task.positions)
        soap = self.builder.soap_with_new(task.left, task.positions, self.builder.kept_classes(logits))
        bonds = self.builder.bond(task.left, task.positions, logits, image, soap).sigmoid()
        there, graph = task.classes >= 0, task.left.graph
        sizes, mine, place = torch.bincount(graph, minlength=len(there))[there], there[graph], there.cumsum(0) - 1
        lengths = (task.left.positions - task.positions[graph]).norm(dim=1)
        about_old = (task.bonded, bonds, task.left.classes.argmax(1), lengths)
        return SingleSteps(task.classes[there], logits[there], sizes, place[graph[mine]], *(t[mine] for t in about_old))

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "batch slices nx ny"],
        threshold: float = 0.5,
        depth: float | None = None,
        order: str | None = None,
    ) -> list[Molecule]:
        """The molecule in each stack, image frame, A; an empty one where nothing is found.

        Args:
            threshold: least confidence of an atom; 0.5 is the published limit, see `find_peaks`.
            depth: deeper atoms are left out, A; None: none. The labels end at the configuration's depth, and what is
                found below it is off by the errors of depth.
            order: "random", "x", "y" or "z"; None: as the model was trained.
        """
        maps = self.unet.encode(images)
        grid = self.unet.decode(maps)[:, : images.shape[2], : images.shape[3]]
        positions, image, confidence = find_peaks(grid, self.config.pixel)
        keep = confidence >= threshold
        if depth is not None:
            keep &= positions[:, 2] >= -depth
        return self._molecules(maps, positions[keep], image[keep], confidence[keep], order)

    @torch.no_grad()
    def grow(
        self,
        images: Float[Tensor, "batch slices nx ny"],
        positions: Float[Tensor, "n 3"],
        image: Int[Tensor, " n"],
        order: str | None = None,
    ) -> list[Molecule]:
        """As `predict`, on given positions (A) of atoms in place of those of the grid, with confidence 1.

        `image`: which image each atom is in.
        """
        return self._molecules(self.unet.encode(images), positions, image, torch.ones_like(positions[:, 0]), order)

    def _molecules(
        self,
        maps: list[Tensor],
        positions: Float[Tensor, "n 3"],
        image: Int[Tensor, " n"],
        confidence: Float[Tensor, " n"],
        order: str | None,
    ) -> list[Molecule]:
        place = addition_order(positions, image, order or self.config.order)
        positions, image, confidence = positions[place], image[place], confidence[place]
        classes, pairs, bonds = self._grow(self.encoder.levels(maps), positions, image)
        found = PartialGraph(positions, classes, image, pairs)
        return [_molecule(found, confidence, bonds, image == b) for b in range(len(maps[0]))]

    def _grow(
        self, levels: list[Level], positions: Float[Tensor, "n 3"], image: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n 5"], Int[Tensor, "m 2"], Float[Tensor, " m"]]:
        """The graphs of atoms at `positions` (A, image by image), added in this order, one to each image at a time.

        Returns:
            class probabilities, and all pairs of atoms (earlier, later) of an image with the probability of a bond. A
            bond more probable than not is part of the graph from then on.
        """
        n_images, device = len(levels[0].keys), positions.device
        rank = rank_within(image, torch.arange(len(image), device=device))
        size = torch.bincount(image, minlength=n_images)
        probabilities, kept = positions.new_zeros(2, len(positions), N_CLASSES)
        said = None if self.config.soap_of_new == "computed" else positions.new_zeros(len(positions), *SOAP_SHAPE)
        pairs, bonds = [torch.zeros(0, 2, dtype=torch.long, device=device)], [positions.new_zeros(0)]
        bonded, running = pairs[0], levels
        for step in range(int(size.max()) if len(image) else 0):
            new = torch.nonzero(rank == step)[:, 0]
            active = size > step
            if len(new) < len(running[0].keys):
                running = images_of(levels, image[new])
            old = torch.nonzero((rank < step) & active[image])[:, 0]
            graph = (active.cumsum(0) - 1)[image[old]]
            place = torch.empty_like(rank).index_copy(0, old, torch.arange(len(old), device=device))
            left = PartialGraph(
                *(positions[old], kept[old], graph, place[bonded[active[image[bonded[:, 0]]]]]),
                soap=None if said is None else said[old],
            )
            logits, encoding = self.builder.classify(self.encoder, running, left, positions[new])
            probabilities[new], kept[new] = logits.softmax(1), self.builder.kept_classes(logits)
            soap = self.builder.soap_with_new(left, positions[new], kept[new])
            if said is not None and soap is not None:
                said[torch.cat([old, new])] = soap
            bond = self.builder.bond(left, positions[new], logits, encoding, soap).sigmoid()
            pairs.append(torch.stack([old, new[graph]], dim=1))
            bonds.append(bond)
            bonded = torch.cat([bonded, pairs[-1][bond > 0.5]])
        return probabilities, torch.cat(pairs), torch.cat(bonds)


def addition_order(positions: Float[Tensor, "n 3"], image: Int[Tensor, " n"], order: str) -> Int[Tensor, " n"]:
    """The atoms image by image, from the largest coordinate down or at random; an image's order is its own."""
    if order == "random":
        keys = torch.rand(ORDERS, generator=torch.Generator().manual_seed(0)).to(positions)
        key = keys[rank_within(image, torch.arange(len(image), device=image.device)) % ORDERS]
    else:
        key = -positions[:, "xyz".index(order)]
    by_key = key.argsort(stable=True)
    return by_key[image[by_key].argsort(stable=True)]


def _molecule(
    found: PartialGraph, confidence: Float[Tensor, " n"], bonds: Float[Tensor, " m"], mine: Bool[Tensor, " n"]
) -> Molecule:
    """The atoms `mine` as a Molecule with z = 0 at the topmost one.

    A predicted z above 0 is noise: it is set to 0, and all are raised only if none is there.
    """
    positions = found.positions[mine]
    if len(positions):
        z = positions[:, 2]
        positions = torch.cat([positions[:, :2], (z - z.max().clamp(max=0)).clamp(max=0)[:, None]], dim=1)
    classes = found.classes[mine].double().numpy(force=True)
    use = mine[found.bonds].all(1) & (bonds >= LEAST_BOND)
    pairs = (mine.cumsum(0) - 1)[found.bonds[use]]
    return Molecule(
        positions.double().numpy(force=True),
        COMMONEST[classes.argmax(1)],
        pairs.numpy(force=True),
        None,
        classes,
        confidence[mine].double().numpy(force=True),
        bonds[use].double().numpy(force=True),
    )
