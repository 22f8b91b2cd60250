"""What a microscope adds to the ideal image: pure functions on stacks (nx, ny, nz), each seeded by its generator."""

import numpy as np
from jaxtyping import Float

Stack = Float[np.ndarray, "nx ny nz"]


def white_noise(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """Gaussian noise; its standard deviation is `share` of each slice's range (maximum - minimum)."""
    scale = share * np.ptp(stack, axis=(0, 1))
    return stack + scale.astype(stack.dtype) * rng.standard_normal(stack.shape, dtype=np.float32)


def line_noise(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """An offset a scan line (fast axis x), as from slow drift of the tip; standard deviation `share` of the range."""
    scale = share * np.ptp(stack, axis=(0, 1))
    return stack + scale.astype(stack.dtype) * rng.standard_normal((1, *stack.shape[1:]), dtype=np.float32)


def background_tilt(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """A plane through every slice, as from a tilted sample; it rises by normal(`share`) of each slice's range."""
    nx, ny, _ = stack.shape
    slope = (share * rng.standard_normal(2)).astype(np.float32)
    plane = slope[0] * np.linspace(-0.5, 0.5, nx, dtype=np.float32)[:, None] + slope[1] * np.linspace(
        -0.5, 0.5, ny, dtype=np.float32
    )
    return stack + plane[..., None] * np.ptp(stack, axis=(0, 1))


def slice_drift(stack: Stack, step: float, rng: np.random.Generator) -> Stack:
    """Shifts between slices (a random walk of `step` pixels, the last slice stays), bilinear, edges repeated."""
    nz = stack.shape[2]
    walk = np.cumsum(step * rng.standard_normal((nz, 2)), axis=0)
    walk -= walk[-1]
    return np.stack([_shifted(stack[..., k], walk[k]) for k in range(nz)], axis=-1)


def _shifted(image: Float[np.ndarray, "nx ny"], shift: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "nx ny"]:
    for axis in (0, 1):
        n = image.shape[axis]
        at = np.clip(np.arange(n) - shift[axis], 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        weight = (at - low).astype(image.dtype)
        weight = weight[:, None] if axis == 0 else weight[None]
        image = (1 - weight) * image.take(low, axis) + weight * image.take(low + 1, axis)
    return image


def cut_outs(stack: Stack, most: int, rng: np.random.Generator) -> Stack:
    """Up to `most` rectangles (at most a quarter of the width) set to their slice's mean, as where a scan failed."""
    out = stack.copy()
    nx, ny, nz = stack.shape
    for _ in range(rng.integers(0, most + 1)):
        wx, wy = rng.integers(1, max(2, nx // 4)), rng.integers(1, max(2, ny // 4))
        x, y, k = rng.integers(0, nx - wx + 1), rng.integers(0, ny - wy + 1), rng.integers(0, nz)
        out[x : x + wx, y : y + wy, k] = stack[..., k].mean()
    return out


def compressed(stack: Stack, strength: float) -> Stack:
    """A detector or feedback that saturates: each slice's values above its minimum follow v^(1 - strength)."""
    low, width = stack.min((0, 1)), np.ptp(stack, axis=(0, 1)) + 1e-12
    return low + width * ((stack - low) / width) ** np.float32(1 - strength)


def fewer_slices(stack: Stack, kept: int) -> Stack:
    """`kept` evenly spaced slices, the others interpolated from them: what a coarser measurement looks like."""
    nz = stack.shape[2]
    return resample_slices(resample_slices(stack, np.linspace(0, nz - 1, kept)), np.linspace(0, kept - 1, nz))


def resample_slices(stack: Stack, at: Float[np.ndarray, " m"]) -> Float[np.ndarray, "nx ny m"]:
    """Linear interpolation at fractional slice numbers."""
    low = np.clip(np.floor(at).astype(int), 0, max(stack.shape[2] - 2, 0))
    weight = (at - low).astype(stack.dtype)
    return (1 - weight) * stack[..., low] + weight * stack[..., np.minimum(low + 1, stack.shape[2] - 1)]
