"""What the image says about one place: query attention over the U-Net's maps (Oinonen et al., MRS Bulletin 2022).

    equation, at each level                           variable       shape
    v = block(map)                                    values         batch channels nx ny nz
    k = v + ReLU(C v_coarsest)                        keys           batch channels nx ny nz
    s = softmax over channels of the query            query          batch queries 64
    l = sum_c s_c (K k)_c                             logits         batch queries nx ny nz
    a = softmax over voxels of l                      share
    e = sum over voxels of a v                                       batch queries channels
    image encoding = W (e of all levels)                             batch queries 128

Values and keys are the image's and serve every query. The query is put into the kernel, sum_c s_c K_c, before the
convolution: one channel instead of 64.

With relative coordinates the query does not say where the new atom is, so the logits do: minus the square of the
distance from it in the plane over 2 w^2, the width w learned for each level.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .convolution import ConvBlock, Map, convolution, convolved_upsampled

QUERY, ENCODING = 64, 128
FIRST_WIDTH = 1.0
"""Width of the attention around the new atom before training, A (relative coordinates)."""


class Level(NamedTuple):
    """One level of an image, ready for queries; z and channels of the keys are folded together."""

    keys: Float[Tensor, "batch c_nz nx ny"]
    values: Float[Tensor, "batch voxels channels"]
    pixel: float
    """Pixel size of the level, A."""


class QueryAttention(nn.Module):
    """The attention of one level."""

    def __init__(self, channels: int, coarsest: int, local: bool) -> None:
        super().__init__()
        self.key = convolution(channels, QUERY)
        self.coarsest = convolution(coarsest, channels)
        self.width = nn.Parameter(torch.tensor(FIRST_WIDTH)) if local else None

    def level(self, values: Map, coarsest: Float[Tensor, "batch c mx my mz"], pixel: float) -> Level:
        """What queries need of a map."""
        size = (values.shape[2], values.shape[3], values.shape[4])
        keys = values + F.relu(convolved_upsampled(self.coarsest, coarsest, size))
        keys, values = (x.permute(0, 2, 3, 4, 1) for x in (keys, values))  # as the memory is laid out: no copy
        return Level(keys.flatten(3).permute(0, 3, 1, 2), values.flatten(1, 3), pixel)

    def forward(
        self, level: Level, query: Float[Tensor, "batch r q"], places: Float[Tensor, "batch r 2"]
    ) -> Float[Tensor, "batch r channels"]:
        share = query.softmax(-1)
        assert self.key.bias is not None
        kernel = (share @ self.key.weight.flatten(1)).unflatten(2, self.key.weight.shape[1:])
        logits = _convolved(level.keys, kernel) + (share @ self.key.bias)[..., None, None, None]
        if self.width is not None:
            x, y = ((torch.arange(n, device=query.device) + 0.5) * level.pixel for n in level.keys.shape[2:])
            square = (x - places[..., :1]).square()[..., None] + (y - places[..., 1:]).square()[..., None, :]
            logits = logits - square[..., None] / (2 * self.width**2)
        return logits.flatten(2).softmax(-1) @ level.values


def _convolved(
    keys: Float[Tensor, "batch c_nz nx ny"], kernel: Float[Tensor, "batch r channels 3 3 3"]
) -> Float[Tensor, "batch r nx ny nz"]:
    """Each image's keys with its own kernels, each to one channel.

    As a convolution in the plane from all (z, channel) to all z, which processors do several times faster although two
    thirds of its kernel are zeros.
    """
    n, r, channels = kernel.shape[:3]
    nz = keys.shape[1] // channels
    band = torch.stack([torch.diag(kernel.new_ones(nz - abs(k)), k) for k in (-1, 0, 1)])
    weight = torch.einsum("nrcxyk,kzv->nrzvcxy", kernel, band).reshape(n * r * nz, nz * channels, 3, 3)
    flat = keys.reshape(1, -1, *keys.shape[2:])
    out = F.conv2d(flat, weight.contiguous(memory_format=torch.channels_last), padding=1, groups=n)
    return out.view(n, r, nz, *keys.shape[2:]).permute(0, 1, 3, 4, 2)


class ImageEncoder(nn.Module):
    """Encoding blocks beside the U-Net's encoder, and query attention over their maps."""

    def __init__(self, channels: tuple[int, ...], pixel: float, local: bool) -> None:
        super().__init__()
        self.pixel = pixel
        self.blocks = nn.ModuleList(ConvBlock(c, c, inner=True) for c in channels)
        self.attentions = nn.ModuleList(QueryAttention(c, channels[-1], local) for c in channels)
        self.encoding = nn.Linear(sum(channels), ENCODING)
        self.to(memory_format=torch.channels_last_3d)  # pyrefly: ignore[no-matching-overload]

    def levels(self, maps: list[Float[Tensor, "batch _ _ _ _"]]) -> list[Level]:
        """What queries need of the U-Net's maps."""
        values = [block(x) for block, x in zip(self.blocks, maps, strict=True)]
        return [
            attention.level(v, values[-1], 2**k * self.pixel)  # pyrefly: ignore[not-callable]
            for k, (attention, v) in enumerate(zip(self.attentions, values, strict=True))
        ]

    def forward(
        self, levels: list[Level], query: Float[Tensor, "batch r q"], places: Float[Tensor, "batch r 2"]
    ) -> Float[Tensor, "batch r e"]:
        """The encoding for each query; `places`: where in the plane each asks, A (relative coordinates)."""
        read = [attention(level, query, places) for attention, level in zip(self.attentions, levels, strict=True)]
        return self.encoding(torch.cat(read, dim=-1))


def images_of(levels: list[Level], index: Int[Tensor, " k"]) -> list[Level]:
    """The levels of some images."""
    return [Level(level.keys[index], level.values[index], level.pixel) for level in levels]
