"""What a measured stack has that the best simulated one lacks, and what of it changes what is read.

    python benchmarks/gap.py bcb.xyz bcb_co.npz 15 15      (the last two: size in A, where the stated one is not right)

The known molecule is fitted to the stack (`afmol fit`, exponentials, --flattening 1). Then the model reads the fit; the
fit with parts of what is left, measurement less fit, added: all of it in part, what is smoother or finer than a length,
far or close slices. Last, how far each slice must be moved, and mapped affinely, to meet the fit.
"""

import sys

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize

from afmol.checkpoint import DEFAULT_MODEL, load_image_model
from afmol.files import read_molecule, read_scan
from afmol.fitting import FINE, FitConfig, fit, target
from afmol.metrics import matching
from afmol.prediction import predict
from afmol.structures import Molecule, Scan

CONFIG = FitConfig("exponential", flattening=1.0)


def said(molecule: Molecule, truth: Molecule, depth: float) -> str:
    """What is right and wrong of what was read, of atoms that are not deeper (A)."""
    pairs = matching(molecule, truth, truth.within(depth))
    found = list(zip(pairs.found.tolist(), pairs.partner.tolist(), strict=True))
    wrong = [f"{truth.symbols[b]} > {molecule.symbols[a]}" for a, b in found if molecule.classes[a] != truth.classes[b]]
    extra = "".join(molecule.symbols[k] for k in pairs.extra)
    size = "" if molecule.stretch is None else f", size x {molecule.stretch:.3f}"
    return f"{len(found)} of {len(truth)} found; wrong: {', '.join(wrong) or '-'}; extra: {extra or '-'}{size}"


def mapped(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image under a linear map (in 0.02) about its centre and a shift (pixels)."""
    n = np.array(image.shape)
    middle = (n - 1) / 2
    grid = np.stack(np.meshgrid(*(np.arange(k) for k in n), indexing="ij")) - middle[:, None, None]
    linear = np.eye(2) + 0.02 * values[:4].reshape(2, 2)
    at = np.einsum("ij,jxy->ixy", linear, grid) + (middle + values[4:])[:, None, None]
    return map_coordinates(image, at, order=1, mode="nearest")


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two images."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def best_map(image: np.ndarray, wanted: np.ndarray, linear: bool) -> np.ndarray:
    """The shift, or the linear map and shift, under which an image is most like another."""
    free = 6 if linear else 2

    def lost(x: np.ndarray) -> float:
        return -alike(mapped(image, np.concatenate([np.zeros(6 - free), x])), wanted)

    start = np.vstack([np.zeros(free), np.eye(free)])
    options = {"initial_simplex": start, "maxiter": 900, "xatol": 0.01, "fatol": 1e-6}
    return np.concatenate([np.zeros(6 - free), minimize(lost, start[0], method="Nelder-Mead", options=options).x])


def main(molecule: str, stack: str, *size: str) -> None:
    """Print all of it."""
    network, name = load_image_model(DEFAULT_MODEL)
    scan = read_scan(stack, size=(float(size[0]), float(size[1])) if size else None)
    result, truth, image = fit(read_molecule(molecule), scan, CONFIG)
    print(f"{name}: correlation {result.correlation:.3f}, tip {result.tip_charge:+.3f} e, {result.stiffness:.2f} N/m")
    measured = target(scan, FINE, CONFIG).images.numpy()
    pixel = scan.size[0] / measured.shape[0]
    simulated = target(image, FINE, CONFIG).images.numpy()
    simulated = simulated * (measured * simulated).sum((0, 1))
    left = measured - simulated
    n = left.shape[2]

    def smooth(length: float) -> np.ndarray:
        return gaussian_filter(left, (length / pixel, length / pixel, 0))

    far = (np.arange(n) < n // 2)[None, None]
    parts = {"nothing": 0 * left, **{f"{share} of it": share * left for share in (0.25, 0.5, 0.75, 1.0)}}
    parts |= {f"smoother than {length} A": smooth(length) for length in (0.3, 0.6, 1.0)}
    parts |= {f"finer than {length} A": left - smooth(length) for length in (0.3, 0.6, 1.0)}
    parts |= {"the far slices": left * far, "the close slices": left * ~far}
    for what, part in parts.items():
        read = predict(Scan((simulated + part).astype(np.float32), scan.size, scan.heights, "fit"), network)
        print(f"fit and {what:20} {said(read, truth, network.config.depth)}")
    shifts, maps = [], []
    for k in range(n):
        a, b = gaussian_filter(measured[..., k], 0.15 / pixel), simulated[..., k]
        shift, affine = best_map(a, b, linear=False), best_map(a, b, linear=True)
        xx, xy, yx, yy = 0.02 * affine[:4]
        strain = float(np.hypot((xx - yy) / 2, (xy + yx) / 2))
        shifts.append(shift)
        maps.append(affine)
        print(
            f"slice {k + 1}: {alike(a, b):.3f}, moved by {pixel * shift[4]:+.2f} {pixel * shift[5]:+.2f} A "
            f"{alike(mapped(a, shift), b):.3f}, affine {alike(mapped(a, affine), b):.3f}, strain {strain:.3f}"
        )
    alone = np.mean(maps, axis=0) * [1, 1, 1, 1, 0, 0]
    ways = {"as measured": 0 * maps[0], "each slice moved": shifts, "one linear map": alone, "each slice mapped": maps}
    for what, way in ways.items():
        each = np.broadcast_to(way, (n, 6))
        straight = np.stack([mapped(measured[..., k], each[k]) for k in range(n)], -1).astype(np.float32)
        read = predict(Scan(straight, scan.size, scan.heights, what), network)
        print(f"{what:18} {said(read, truth, network.config.depth)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
