"""From a stack to maps: a two-dimensional residual U-Net, the heights as channels.

    images (batch, slices, nx, ny), 0.25 A a pixel
      -> features (batch, channels[0], nx / 2, ny / 2), 0.5 A a pixel
      -> maps (batch, 4, nx, ny): atom logit, offset x, offset y (A, from the pixel's centre), z (A)

No coordinate is an input, and batch normalisation uses no statistics of the image at hand, so that away from the rim
the maps move with the image. The network works at 0.5 A, where 64 channels and more keep a CPU's matrix units busy; the
0.25 A of the maps come from sub-pixel shuffling.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CLIP = 5.0
"""Standardised values beyond this (a snapping probe, a spike) carry no more information."""


BUSY = 96
"""Side of the part of an image whose mean and deviation count, pixels. Images to train on have 64 at most; over all of
40 A that are bare but for a molecule, its atoms would be cut off at CLIP (LOG.md, 2026-11-29)."""


def standardise(images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch slices nx ny"]:
    """Each slice to zero mean and unit standard deviation where most is seen, clipped: a detector's offset and scale do
    not matter."""
    part = _busiest(images)
    mean = part.mean((2, 3), keepdim=True)
    scale = (part - mean).square().mean((2, 3), keepdim=True).sqrt()
    return ((images - mean) / scale.clamp_min(1e-12)).clamp(-CLIP, CLIP)


def _busiest(images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch slices mx my"]:
    """The part of each image, of at most BUSY pixels a side, in which its last slice, the closest, varies most."""
    nx, ny = images.shape[2:]
    mx, my = min(nx, BUSY), min(ny, BUSY)
    if (mx, my) == (nx, ny):
        return images
    closest = images[:, -1].double() - images[:, -1].double().mean((1, 2), keepdim=True)
    mean, square = (_window_sums(x, mx, my) / (mx * my) for x in (closest, closest.square()))
    variance = square - mean.square()  # -> batch nx-mx+1 ny-my+1
    at = [divmod(int(k), variance.shape[2]) for k in variance.flatten(1).argmax(1)]
    return torch.stack([image[:, x : x + mx, y : y + my] for image, (x, y) in zip(images, at, strict=True)])


def _window_sums(x: Float[Tensor, "batch nx ny"], mx: int, my: int) -> Float[Tensor, "batch kx ky"]:
    """Sums over all windows of mx x my, by running sums."""
    s = F.pad(x.cumsum(1).cumsum(2), (1, 0, 1, 0))
    return s[:, mx:, my:] - s[:, :-mx, my:] - s[:, mx:, :-my] + s[:, :-mx, :-my]


class Block(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions, with `inner` channels between them (0: as many)."""

    def __init__(self, channels: int, inner: int = 0) -> None:
        super().__init__()
        inner = inner or channels
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "batch channels nx ny"]) -> Float[Tensor, "batch channels nx ny"]:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


def _blocks(channels: int, inner: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels, inner) for _ in range(n)))


class PosNet(nn.Module):
    """See the module's text."""

    def __init__(
        self, slices: int, channels: tuple[int, ...], blocks: int, rim: int = 0, inner: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        assert rim % 2 == 0, "the features have half of the pixels"
        self.stride, self.rim = 2 ** len(channels), rim
        self.stem = nn.Conv2d(slices, channels[0], 6, stride=2, padding=2)
        levels = list(zip(channels, inner or channels, strict=True))
        self.encoder = nn.ModuleList(_blocks(c, i, blocks) for c, i in levels)
        steps = list(pairwise(channels))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in steps)
        self.decoder = nn.ModuleList(_blocks(c, i, blocks) for c, i in levels[:-1])
        self.norm = nn.BatchNorm2d(channels[0])
        self.head = nn.Conv2d(channels[0], 4 * 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        # heat of the four sub-pixels: an atom in 1 % of the pixels to begin with
        self.head.bias = nn.Parameter(torch.tensor([-4.6] * 4 + [0.0] * 12))

    def forward(
        self, images: Float[Tensor, "batch slices nx ny"]
    ) -> tuple[Float[Tensor, "batch channels hx hy"], Float[Tensor, "batch 4 nx ny"]]:
        (nx, ny), rim = images.shape[2:], self.rim
        beyond = [side for n in (ny, nx) for side in (rim, rim + -(n + 2 * rim) % self.stride)]
        x = F.pad(standardise(images), beyond, mode="replicate" if rim else "constant")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))  # -> batch channels[0] nx/2 ny/2
        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x if level == 0 else self.down[level - 1](x))  # -> batch channels[level] nx/2/2^level ...
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](skips[level] + self.up[level](x))  # -> as on the way down
        features = F.relu(self.norm(x))  # -> batch channels[0] nx/2 ny/2
        maps = F.pixel_shuffle(self.head(features).float(), 2)  # batch 16 nx/2 ny/2 -> batch 4 nx ny
        inside = slice(rim // 2, None)
        return features[:, :, inside, inside].float(), maps[:, :, rim : rim + nx, rim : rim + ny]
