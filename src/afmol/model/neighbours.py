"""Points of several images, packed: distances within an image, and which of two that are too close is to go."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def same_image_distance(points: Float[Tensor, "n d"], image: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Distances between all points, infinite between points of different images."""
    # exact differences: cdist's matrix-multiply mode loses digits in float32
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.masked_fill(image[:, None] != image[None], torch.inf)


def overshadowed(
    points: Float[Tensor, "n d"], image: Int[Tensor, " n"], score: Float[Tensor, " n"], nearest: float
) -> Bool[Tensor, " n"]:
    """Which points have a better one (of equal ones, an earlier one) closer than `nearest` in their image."""
    close = same_image_distance(points, image) < nearest
    order = torch.arange(len(score), device=score.device)
    better = (score[None] > score[:, None]) | ((score[None] == score[:, None]) & (order[None] < order[:, None]))
    return (close & better).any(1)
