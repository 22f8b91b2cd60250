"""The eight views of an image, quarter turns and mirror images, and where points of one lie in another."""

import torch
from jaxtyping import Float
from torch import Tensor

AT_ONCE = 8 * 64 * 64
"""Pixels of the views of small images that are read together: eight at once take half of the time of eight alone."""

View = tuple[bool, bool, bool]
VIEWS: list[View] = [(swap, x, y) for swap in (False, True) for x in (False, True) for y in (False, True)]


def together(images: Float[Tensor, "batch slices nx ny"]) -> list[list[View]]:
    """VIEWS in groups that go through the network as one batch: of one shape, and not more pixels than AT_ONCE."""
    most = max(1, AT_ONCE // images[:, 0].numel())
    same_shape = [VIEWS] if images.shape[2] == images.shape[3] else [VIEWS[:4], VIEWS[4:]]
    return [views[k : k + most] for views in same_shape for k in range(0, len(views), most)]


def turn(images: Float[Tensor, "batch channels nx ny"], view: View) -> Float[Tensor, "batch channels mx my"]:
    """One of the eight views of an image: x and y swapped, then x reversed, then y reversed, each or not."""
    swap, reverse_x, reverse_y = view
    out = images.transpose(2, 3) if swap else images
    return out.flip([axis for axis, reverse in ((2, reverse_x), (3, reverse_y)) if reverse])


def turn_points(points: Float[Tensor, "n 3"], size: Float[Tensor, " 2"], view: View) -> Float[Tensor, "n 3"]:
    """Where points (A) of an image of a size (A) lie in a view of it."""
    swap, reverse_x, reverse_y = view
    x, y, z = points.unbind(1)
    (x, y), (lx, ly) = ((y, x), size.flip(0)) if swap else ((x, y), size)
    return torch.stack([lx - x if reverse_x else x, ly - y if reverse_y else y, z], dim=1)


def points_back(points: Float[Tensor, "n 2"], size: Float[Tensor, " 2"], view: View) -> Float[Tensor, "n 2"]:
    """Where points in the plane of a view of an image of a size (A) lie in the image."""
    swap, reverse_x, reverse_y = view
    lx, ly = size.flip(0) if swap else size
    x, y = points.unbind(1)
    x, y = lx - x if reverse_x else x, ly - y if reverse_y else y
    return torch.stack([y, x] if swap else [x, y], dim=1)


def turn_back(maps: Float[Tensor, "batch 4 mx my"], view: View) -> Float[Tensor, "batch 4 nx ny"]:
    """Maps of a view, in the image's own frame; the offsets are vectors and turn too."""
    swap, reverse_x, reverse_y = view
    heat, x, y, z = turn(maps, (False, reverse_x, reverse_y)).unbind(1)
    x, y = -x if reverse_x else x, -y if reverse_y else y
    out = torch.stack([heat, y, x, z] if swap else [heat, x, y, z], dim=1)
    return out.transpose(2, 3) if swap else out
