"""From a stack to the grid of atom positions: the attention U-Net of the ASD model.

    images (batch, slices, nx, ny)
      -> maps of four levels, (batch, 4, nx, ny, 10), (batch, 8, nx / 2, ny / 2, 5), (batch, 16, nx / 4, ny / 4, 4),
         (batch, 32, nx / 8, ny / 8, 2)
      -> grid (batch, nx, ny, 20), atoms / A^3

Oinonen et al., MRS Bulletin 2022. 3 x 3 x 3 convolutions, two a block; average pooling over 2 x 2 x 2 voxels, its
strides in z 2, 1, 2; each skip connection is weighed by a softmax over its voxels, in the light of the coarsest map.
"""

from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .convolution import ConvBlock, Map, convolution, convolved_upsampled, upsampled
from .grid import N_Z

STRIDE = 8
"""Pixels of the image to one of the coarsest map."""
POOL_Z = (2, 1, 2)
DECODER_Z = (4, 10, N_Z)
"""Sizes in z on the way back."""


def standardised(images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch slices nx ny"]:
    """Each slice to zero mean and unit standard deviation."""
    centred = images - images.mean((2, 3), keepdim=True)
    return centred / centred.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12)


class SkipGate(nn.Module):
    """A map weighed voxel by voxel: softmax over voxels of C (ReLU(C x) + ReLU(C q)), q the enlarged coarsest map.

    Oktay et al., arXiv 1804.03999, with a softmax where theirs has a sigmoid. `mean_one`: times the number of voxels.
    """

    def __init__(self, channels: int, coarsest: int, mean_one: bool = False) -> None:
        super().__init__()
        self.mean_one = mean_one
        self.own = convolution(channels, coarsest)
        self.query = convolution(coarsest, coarsest)
        self.weight = convolution(coarsest, 1)

    def forward(self, x: Map, coarsest: Float[Tensor, "batch c mx my mz"]) -> Map:
        size = (x.shape[2], x.shape[3], x.shape[4])
        query = F.relu(convolved_upsampled(self.query, coarsest, size), inplace=True)
        weight = self.weight(F.relu(self.own(x), inplace=True) + query)
        scale = weight[0].numel() if self.mean_one else 1
        return x * (scale * weight.flatten(1).softmax(1)).view_as(weight)


class UNet(nn.Module):
    """See the module's text."""

    def __init__(self, channels: tuple[int, ...], mean_one_gates: bool = False) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(ConvBlock(a, b, inner=True) for a, b in pairwise((1, *channels)))
        skips, steps = channels[-2::-1], list(pairwise((channels[-1], *channels[:0:-1])))
        self.gates = nn.ModuleList(SkipGate(c, channels[-1], mean_one_gates) for c in skips)
        self.widen = nn.ModuleList(ConvBlock(a, b, inner=False) for a, b in steps)
        self.merge = nn.ModuleList(ConvBlock(b + c, b, inner=False) for (_, b), c in zip(steps, skips, strict=True))
        self.head = convolution(steps[-1][1], 1)
        self.to(memory_format=torch.channels_last_3d)  # pyrefly: ignore[no-matching-overload]

    def forward(self, images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch nx ny nz"]:
        """The grid alone."""
        return self.decode(self.encode(images))[:, : images.shape[2], : images.shape[3]]

    def encode(self, images: Float[Tensor, "batch slices nx ny"]) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """The four levels' maps; width and height are filled up with zeros to what the pooling divides."""
        return self.maps(standardised(images))

    def maps(self, images: Float[Tensor, "batch slices nx ny"]) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Those of images whose slices are standardised already."""
        nx, ny = images.shape[2:]
        x = F.pad(images, (0, -ny % STRIDE, 0, -nx % STRIDE))
        x = x.permute(0, 2, 3, 1)[:, None].contiguous(memory_format=torch.channels_last_3d)
        maps = [self.encoder[0](x)]
        for block, stride in zip(self.encoder[1:], POOL_Z, strict=True):
            maps.append(block(F.avg_pool3d(maps[-1], 2, stride=(2, 2, stride))))
        return maps

    def decode(self, maps: list[Float[Tensor, "batch _ _ _ _"]]) -> Float[Tensor, "batch mx my nz"]:
        """The grid, as wide as the padded image."""
        return self.head(self._decoded(maps, len(DECODER_Z)))[:, 0]

    def coarse(self, maps: list[Float[Tensor, "batch _ _ _ _"]]) -> Float[Tensor, "batch mx my mz"]:
        """The mean over the channels of the decoder's last map but one: half as fine as the grid along each axis."""
        return self._decoded(maps, len(DECODER_Z) - 1).mean(1)

    def _decoded(self, maps: list[Float[Tensor, "batch _ _ _ _"]], steps: int) -> Map:
        x, parts = maps[-1], zip(maps[-2::-1], self.gates, self.widen, self.merge, DECODER_Z, strict=True)
        for skip, gate, widen, merge, nz in islice(parts, steps):
            size = (skip.shape[2], skip.shape[3], nz)
            gated = upsampled(gate(skip, maps[-1]), size)
            x = merge(torch.cat([widen(upsampled(x, size)), gated], dim=1))
        return x
