"""Parts of images to train on: where the atoms are, without the empty rim.

A part keeps what the whole image says: its slices are standardised over the whole image and z = 0 stays at the topmost
nucleus of the whole image, so that what is learned on parts holds for whole images.
"""

import torch
from torch import Tensor

from ...data.samples import Batch
from .grouping import rank_within


def cropped(batch: Batch, side: int, pixel: float, generator: torch.Generator) -> Batch:
    """`side` x `side` pixels of each image and the atoms in them, an atom drawn at random somewhere among them.

    Args:
        side: at most the images' own.
        pixel: A.
        generator: on the CPU.
    """
    n_images, _, *shape = batch.images.shape
    device, room = batch.positions.device, torch.tensor(shape, device=batch.positions.device) - side
    order = torch.rand(len(batch.positions), generator=generator).to(device)
    place = torch.rand(n_images, 2, generator=generator).to(device)
    first = rank_within(batch.molecule, order) == 0
    centre = (room.to(place) + side) / 2
    atom = centre.expand(n_images, 2).index_put((batch.molecule[first],), batch.positions[first, :2] / pixel)
    start = (atom - side * place).long().clamp(min=torch.zeros_like(room), max=room)
    images = torch.stack([_part(x, s, side) for x, s in zip(batch.images, start.tolist(), strict=True)])

    positions = batch.positions.clone()
    positions[:, :2] -= pixel * start[batch.molecule]
    inside = ((positions[:, :2] > 0) & (positions[:, :2] < side * pixel)).all(1)
    bonds = (inside.cumsum(0) - 1)[batch.bonds[inside[batch.bonds].all(1)]]
    left = {"positions": positions[inside], "elements": batch.elements[inside], "molecule": batch.molecule[inside]}
    return batch._replace(images=images, bonds=bonds, **left)


def _part(image: Tensor, start: list[int], side: int) -> Tensor:
    return image[:, start[0] : start[0] + side, start[1] : start[1] + side]
