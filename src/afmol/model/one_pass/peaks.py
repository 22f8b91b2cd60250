"""From maps to candidate atoms: local maxima of the heat, shifted by the predicted offset."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..neighbours import overshadowed

DENSEST = 9
"""At most one candidate in so many pixels of an image; atoms are 16 pixels apart at the least."""
NEAREST = 0.5
"""Two atoms never appear closer than this in the image plane (A); the weaker candidate is dropped."""


def find_peaks(
    maps: Float[Tensor, "batch 4 nx ny"], pixel: float, threshold: float
) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Positions (A), image and heat of every local maximum (3 x 3 pixels) of the heat above `threshold`."""
    heat = maps[:, 0].sigmoid()
    top = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0]
    score = torch.where((heat == top) & (heat >= threshold), heat, 0.0).flatten(1)
    score, place = score.topk(-(-score.shape[1] // DENSEST), dim=1)
    image, rank = torch.nonzero(score > 0, as_tuple=True)
    place, score = place[image, rank], score[image, rank]
    ix, iy = place // maps.shape[3], place % maps.shape[3]
    offset = maps[image, 1:, ix, iy]
    corner = torch.stack([(ix + 0.5) * pixel, (iy + 0.5) * pixel, torch.zeros_like(score)], dim=1)
    positions = corner + offset
    keep = ~overshadowed(positions[:, :2], image, score, NEAREST)
    return positions[keep], image[keep], score[keep]
