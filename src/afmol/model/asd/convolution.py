"""Three-dimensional convolutions: the residual block, and the convolution of a map that is brought up in size.

Maps are (batch, channels, nx, ny, nz), in memory with the channels last: twice as fast on CPUs as channels first.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channels nx ny nz"]


def convolution(inputs: int, outputs: int) -> nn.Conv3d:
    """3 x 3 x 3, zeros around the map."""
    return nn.Conv3d(inputs, outputs, 3, padding=1)


class ConvBlock(nn.Module):
    """Two convolutions and a shortcut, 1 x 1 x 1 where the channels change: ReLU(C2 ReLU(C1 x) + S x).

    `inner`: a ReLU on the second convolution too, before the sum (encoder), or not (decoder).
    """

    def __init__(self, inputs: int, outputs: int, inner: bool) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs)
        self.second = convolution(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)
        self.inner = inner

    def forward(self, x: Float[Tensor, "batch inputs nx ny nz"]) -> Float[Tensor, "batch outputs nx ny nz"]:
        y = self.second(F.relu(self.first(x), inplace=True))
        return F.relu((F.relu(y, inplace=True) if self.inner else y) + self.shortcut(x), inplace=True)


def upsampled(x: Float[Tensor, "batch channels mx my mz"], size: tuple[int, int, int]) -> Map:
    """Trilinear interpolation to another size."""
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def convolved_upsampled(
    conv: nn.Conv3d, x: Float[Tensor, "batch inputs mx my mz"], size: tuple[int, int, int]
) -> Float[Tensor, "batch outputs nx ny nz"]:
    """conv(upsampled(x, size)), the channels mixed before the map is large.

    Interpolation acts on each axis and on no channel, so that with A_k the interpolation matrix of an axis, moved by
    the kernel's k-th place: sum_abc W_abc (A_a x A_b x A_c) x = sum_abc (A_a x A_b x A_c) (W_abc x). For the 8-fold
    enlarged map of the finest gate that is 1/19 of the work. The bias goes in at the kernel's centre, where the rows of
    all A are sums of weights that add up to 1.
    """
    outputs, (n, _, mx, my, mz) = conv.out_channels, x.shape
    ax, ay, az = (_moved_interpolation(m, to, x) for m, to in zip((mx, my, mz), size, strict=True))
    assert conv.bias is not None
    bias = F.pad(conv.bias, (13 * outputs, 13 * outputs))
    mixed = F.linear(x.permute(0, 2, 3, 4, 1), conv.weight.permute(2, 3, 4, 0, 1).flatten(0, 3), bias)
    mixed = mixed.view(n, mx, my, mz, 3, 3, 3, outputs).permute(0, 4, 1, 5, 2, 6, 3, 7)
    y = ax @ mixed.reshape(n, 3 * mx, -1)
    y = ay @ y.view(n, size[0], 3 * my, -1)
    y = az @ y.view(n, size[0], size[1], 3 * mz, outputs)
    return y.permute(0, 4, 1, 2, 3)


def _moved_interpolation(m: int, n: int, like: Tensor) -> Float[Tensor, "n k"]:
    """Linear interpolation of m values to n, at the place before, at and after each: columns (3, m), zero outside."""
    eye = torch.eye(m, dtype=like.dtype, device=like.device)
    matrix = F.interpolate(eye[None], size=n, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.cat([padded[k : k + n] for k in range(3)], dim=1)
