"""What is wrong with a stack: a small network over the whole of it.

    images (batch, slices, nx, ny), 0.25 A a pixel
      -> features (batch, channels[-1], nx / 8, ny / 8), 2 A a pixel -> their attended mean and their maximum
         statistics of the slices: contrasts, skewnesses, correlations
      -> logits of `data.spoiled.KINDS`

Statistics alone tell reversed and shuffled stacks in 99 of 100 (LOG.md, 2026-11-25); tips and things that are no
molecules need the image.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.spoiled import KINDS, Spoiled
from .one_pass.posnet import Block, standardise


@dataclass(frozen=True)
class StackCheckConfig:
    """What a weight file needs to rebuild the model."""

    kind: Literal["stack-check"] = "stack-check"
    slices: int = 10
    """Slices that the network takes."""
    pixel: float = 0.25
    """Pixel size that the network takes, A."""
    widest_step: float = 0.14
    """Largest slice spacing that it was trained for, A."""
    channels: tuple[int, ...] = (32, 48, 96)
    """Width at 0.5, 1, 2 A a pixel."""
    blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks at each."""
    width: int = 128
    """Of the layer that decides."""


class StackCheck(nn.Module):
    """See the module's text. `forward` returns losses, `judge` logits of the kinds."""

    def __init__(self, config: StackCheckConfig) -> None:
        super().__init__()
        self.config, self.stride = config, 2 ** len(config.channels)
        n, c = config.slices, config.channels
        self.stem = nn.Conv2d(n, c[0], 6, stride=2, padding=2)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(n))) for width, n in zip(c, config.blocks, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(c))
        self.norm = nn.BatchNorm2d(c[-1])
        self.attention = nn.Conv2d(c[-1], 1, 1)
        statistics = 2 * n + n * (n - 1) // 2
        self.decide = nn.Sequential(
            nn.Linear(2 * c[-1] + statistics, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
            nn.Linear(config.width, len(KINDS)),
        )

    def judge(self, images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch kinds"]:
        """Logits of the kinds of each stack."""
        x = standardise(images)
        statistics = slice_statistics(images)
        x = self.stem(F.pad(x, (0, -images.shape[3] % self.stride, 0, -images.shape[2] % self.stride)))
        for level, blocks in enumerate(self.levels):
            x = blocks(x if level == 0 else self.down[level - 1](x))  # -> batch channels[level] nx/2/2^level ...
        x = F.relu(self.norm(x))
        weight = self.attention(x).flatten(2).float().softmax(2)
        x = x.flatten(2).float()
        pooled = torch.cat([(x * weight).sum(2), x.amax(2), statistics], 1)
        return self.decide(pooled).float()

    def forward(self, batch: Spoiled, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of a batch: cross entropy."""
        return {"kinds": F.cross_entropy(self.judge(batch.images), batch.kinds)}


def slice_statistics(images: Float[Tensor, "batch slices nx ny"]) -> Float[Tensor, "batch statistics"]:
    """Of smoothed slices without their planes: ln of their contrasts, relative to the mean of these; skewness;
    correlations."""
    flat = F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False)
    nx, ny = flat.shape[2:]
    x = torch.linspace(-1, 1, nx, device=flat.device)[:, None].expand(nx, ny)
    y = torch.linspace(-1, 1, ny, device=flat.device)[None].expand(nx, ny)
    flat = flat - flat.mean((2, 3), keepdim=True)
    for axis in (x, y):  # orthogonal to each other and to constants
        flat = flat - axis * ((flat * axis).sum((2, 3), keepdim=True) / axis.square().sum())
    deviation = flat.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    unit = (flat / deviation).flatten(2)
    contrast = deviation[..., 0, 0].log()
    alike = torch.einsum("bkp,blp->bkl", unit, unit) / unit.shape[2]
    above = torch.triu_indices(*alike.shape[1:], offset=1)
    skewness = unit.pow(3).mean(2).clamp(-5, 5)
    return torch.cat(
        [(contrast - contrast.mean(1, keepdim=True)).clamp(-5, 5), skewness, alike[:, above[0], above[1]]], 1
    )
