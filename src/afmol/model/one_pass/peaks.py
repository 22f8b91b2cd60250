"""From maps to candidate atoms: local maxima of the heat, shifted by the predicted offset."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    keep = ~_overshadowed(positions, image, score)
    return positions[keep], image[keep], score[keep]


def _overshadowed(
    positions: Float[Tensor, "n 3"], image: Int[Tensor, " n"], score: Float[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    close = same_image_distance(positions[:, :2], image) < NEAREST
    order = torch.arange(len(score), device=score.device)
    better = (score[None] > score[:, None]) | ((score[None] == score[:, None]) & (order[None] < order[:, None]))
    return (close & better).any(1)


def same_image_distance(points: Float[Tensor, "n d"], image: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Distances between all points, infinite between points of different images."""
    # exact differences: cdist's matrix-multiply mode loses digits in float32
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.masked_fill(image[:, None] != image[None], torch.inf)
