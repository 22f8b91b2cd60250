"""What a microscope adds to the ideal image: pure functions on stacks (nx, ny, nz), each seeded by its generator.

x is the fast scan axis, y the slow one. The ranges given are those of usable measurements.
"""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

Stack = Float[np.ndarray, "nx ny nz"]


def white_noise(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """Gaussian noise; its standard deviation is `share` of each slice's range (maximum - minimum)."""
    scale = share * np.ptp(stack, axis=(0, 1))
    return stack + scale.astype(stack.dtype) * rng.standard_normal(stack.shape, dtype=np.float32)


def pink_noise(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """1/f noise in time, of drifting electronics and a changing tip: pixels of a line go together, lines less so.

    Standard deviation `share` of each slice's range, 0 to 0.05.
    """
    nx, ny, nz = stack.shape
    spectrum = np.fft.rfft(rng.standard_normal((nx * ny, nz)), axis=0)
    spectrum[0] = 0  # the mean is an offset, which no reader of images minds
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))[:, None]
    noise = np.fft.irfft(spectrum, nx * ny, axis=0)
    noise *= share * np.ptp(stack, axis=(0, 1)) / noise.std(0)
    return stack + noise.reshape(ny, nx, nz).transpose(1, 0, 2).astype(stack.dtype)


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


def linear_drift(stack: Stack, pixels: Float[np.ndarray, " 2"]) -> Stack:
    """Slices that move evenly by `pixels` in x and y from the first to the last, which stays; bilinear, edges
    repeated."""
    nz = stack.shape[2]
    back = [(k / max(1, nz - 1) - 1) * pixels for k in range(nz)]
    return np.stack([_shifted(stack[..., k], back[k]) for k in range(nz)], axis=-1)


def rounded(stack: Stack, levels: int = 256) -> Stack:
    """A stack that was kept as pictures: each slice rounded to so many even levels, 0 to levels - 1, of its range."""
    low, width = stack.min((0, 1)), np.ptp(stack, axis=(0, 1)) + 1e-12
    return np.round((stack - low) / width * (levels - 1)).astype(stack.dtype)


def _shifted(image: Float[np.ndarray, "nx ny"], shift: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "nx ny"]:
    for axis in (0, 1):
        n = image.shape[axis]
        at = np.clip(np.arange(n) - shift[axis], 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        weight = (at - low).astype(image.dtype)
        weight = weight[:, None] if axis == 0 else weight[None]
        image = (1 - weight) * image.take(low, axis) + weight * image.take(low + 1, axis)
    return image


def scan_drift(stack: Stack, pixels: float, rng: np.random.Generator) -> Stack:
    """Drift while a slice is scanned: from its first line to its last it moves by normal(`pixels`) in x and in y.

    Every slice alike; bilinear, edges repeated. What stands in the middle line stays where it is. 0 to 2 pixels.
    """
    nx, ny, _ = stack.shape
    passed = np.linspace(-0.5, 0.5, ny)
    drift = pixels * rng.standard_normal(2)
    x = np.clip(np.arange(nx)[:, None] - drift[0] * passed, 0, nx - 1)
    y = np.clip(np.broadcast_to(np.arange(ny) - drift[1] * passed, (nx, ny)), 0, ny - 1)
    ix, iy = np.minimum(x.astype(int), nx - 2), np.minimum(y.astype(int), ny - 2)
    wx, wy = ((t - i)[..., None].astype(stack.dtype) for t, i in ((x, ix), (y, iy)))
    near = (1 - wy) * stack[ix, iy] + wy * stack[ix, iy + 1]
    far = (1 - wy) * stack[ix + 1, iy] + wy * stack[ix + 1, iy + 1]
    return (1 - wx) * near + wx * far


def blurred(stack: Stack, width: float) -> Stack:
    """A Gaussian of standard deviation `width` pixels over each slice: a slow loop, vibration. 0 to 0.5 A."""
    return gaussian_filter(stack, (width, width, 0), mode="nearest")


def height_errors(stack: Stack, share: float, rng: np.random.Generator) -> Stack:
    """Slices at other heights than stated, by normal(`share`) of their distance: creep, a piezo that is not calibrated.

    Interpolated; the outermost slices can move inwards alone. 0 to 0.3.
    """
    nz = stack.shape[2]
    return resample_slices(stack, np.clip(np.arange(nz) + share * rng.standard_normal(nz), 0, nz - 1))


def wider_oscillation(stack: Stack, slices: int) -> Stack:
    """An amplitude larger than stated: each slice becomes the mean over itself and up to `slices` - 1 above it.

    Weighted by the half circle that the frequency shift gives to heights (Giessibl, Phys. Rev. B 56, 16010 (1997)).
    1 (nothing) to 5 slices.
    """
    weights = np.sqrt(1 - np.linspace(-1, 1, slices + 2)[1:-1] ** 2).astype(stack.dtype)
    out = np.empty_like(stack)
    for k in range(stack.shape[2]):
        used = weights[: k + 1]
        out[..., k] = stack[..., k - len(used) + 1 : k + 1] @ used[::-1] / used.sum()
    return out


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
