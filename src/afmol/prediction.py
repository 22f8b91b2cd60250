"""From a scan to a molecule, and to the files that a person takes home."""

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .checkpoint import DEFAULT_MODEL, load_model
from .errors import ConfigError, ScanError
from .files import write_file, write_molecule
from .model import ModelConfig, Ours
from .plots import prediction_picture
from .simulation.artefacts import resample_slices
from .structures import Molecule, Scan

FEWEST_SLICES = 3
SHORTEST_SIDE = 4.0
"""A: a smaller image holds no molecule."""
LONGEST_SIDE = 300.0
"""A: a larger image should be cropped to the molecule first."""
PIXELS = (0.01, 1.0)
"""A: pixel sizes that can be right; atoms are a good 1 A apart."""


def predict(scan: Scan, model: str | Path | Ours = DEFAULT_MODEL, threshold: float = 0.5) -> Molecule:
    """The molecule in a scan: atoms (A, the scan's frame, z = 0 at the topmost one), classes, bonds, probabilities.

    Args:
        scan: any width, height, pixel size and number of slices from 3 up.
        model: a shipped name, a weight file, or a model that is loaded.
        threshold: atoms with less confidence are left out.

    Raises:
        ScanError: too few slices, a constant slice, an image too small or too large, an impossible pixel size.
        WeightsError: weights that cannot be loaded.
    """
    network = model if isinstance(model, Ours) else _loaded(str(model))[0]
    images, scale = prepare(scan, network.config)
    (found,) = network.predict(images, threshold)
    return Molecule(
        found.positions * [*scale, 1.0],
        found.numbers,
        found.bonds,
        None,
        found.class_probabilities,
        found.confidence,
        found.bond_probabilities,
        scan.source,
    )


@lru_cache(maxsize=2)
def _loaded(model: str) -> tuple[Ours, str]:
    return load_model(model)


def check(scan: Scan) -> None:
    """Raise the ScanError that says why no model can read this scan, if there is a reason."""
    nz = scan.data.shape[2]
    if nz < FEWEST_SLICES:
        raise ScanError(f"{nz} slice{'s' if nz > 1 else ''} only; at least {FEWEST_SLICES} heights are needed.")
    flat = np.flatnonzero(np.ptp(scan.data, axis=(0, 1)) == 0)
    if len(flat):
        what = "Every slice" if len(flat) == nz else f"Slice {flat[0] + 1} of {nz}"
        raise ScanError(f"{what} is constant: there is no image to read.")
    if min(scan.size) < SHORTEST_SIDE:
        raise ScanError(
            f"The image measures {scan.size[0]:g} x {scan.size[1]:g} A; at least {SHORTEST_SIDE:g} A a side are needed "
            "(is the size in Angstrom?)."
        )
    if not all(PIXELS[0] <= p <= PIXELS[1] for p in scan.pixel):
        raise ScanError(
            f"The pixels measure {scan.pixel[0]:g} x {scan.pixel[1]:g} A, outside {PIXELS[0]:g}-{PIXELS[1]:g} A "
            "(is the size in Angstrom?)."
        )
    if max(scan.size) > LONGEST_SIDE:
        raise ScanError(
            f"The image measures {scan.size[0]:g} x {scan.size[1]:g} A; crop it to the molecule "
            f"(at most {LONGEST_SIDE:g} A a side)."
        )


def prepare(scan: Scan, config: ModelConfig) -> tuple[Float[Tensor, "1 slices nx ny"], tuple[float, float]]:
    """The scan as the network wants it, and the factors that turn its x and y (A) into the scan's."""
    check(scan)
    data = torch.from_numpy(_slices_for(scan, config).astype(np.float32)).permute(2, 0, 1)[None]
    shape = [max(8, round(side / config.pixel)) for side in scan.size]
    images = F.interpolate(data, shape, mode="bilinear", antialias=True, align_corners=False)
    return images, (scan.size[0] / (shape[0] * config.pixel), scan.size[1] / (shape[1] * config.pixel))


def _slices_for(scan: Scan, config: ModelConfig) -> Float[np.ndarray, "nx ny slices"]:
    """The network's number of slices, by interpolation.

    Unknown heights: spread over the whole stack. Known heights: from the closest slice up, at the stack's own spacing
    or the widest that the network knows; repeats of a height are averaged.
    """
    nz = scan.data.shape[2]
    if scan.heights is None:
        return resample_slices(scan.data, np.linspace(0, nz - 1, config.slices))
    heights, place = np.unique(np.round(scan.heights, 3), return_inverse=True)
    if len(heights) < FEWEST_SLICES:
        raise ScanError(f"{len(heights)} different heights only; at least {FEWEST_SLICES} are needed.")
    data = np.stack([scan.data[..., place == k].mean(-1) for k in range(len(heights))], axis=-1)  # close to far
    step = min((heights[-1] - heights[0]) / (config.slices - 1), config.step[1])
    at = np.interp(heights[0] + step * np.arange(config.slices), heights, np.arange(len(heights)))
    return resample_slices(data, at[::-1])


def prediction_record(scan: Scan, molecule: Molecule, model: str, depth: float) -> dict:
    """A prediction as plain values, format afmol-prediction/1 (CONVENTIONS.md)."""
    n, m = len(molecule), len(molecule.bonds)
    probabilities = molecule.class_probabilities if molecule.class_probabilities is not None else np.zeros((n, 5))
    confidence = molecule.confidence if molecule.confidence is not None else np.ones(n)
    bonds = molecule.bond_probabilities if molecule.bond_probabilities is not None else np.ones(m)
    return {
        "format": "afmol-prediction/1",
        "scan": {"source": scan.source, "shape": list(scan.data.shape), "size": [float(s) for s in scan.size]},
        "model": {"name": model, "depth": depth},
        "atoms": [
            {
                "position": [round(float(v), 4) for v in molecule.positions[i]],
                "class": int(molecule.classes[i]),
                "element": molecule.symbols[i],
                "class_probabilities": [round(float(v), 4) for v in probabilities[i]],
                "confidence": round(float(confidence[i]), 4),
            }
            for i in range(n)
        ],
        "bonds": [
            {"atoms": [int(i), int(j)], "probability": round(float(p), 4)}
            for (i, j), p in zip(molecule.bonds, bonds, strict=True)
        ],
    }


def confident_bonds(molecule: Molecule, threshold: float = 0.5) -> Molecule:
    """The molecule with the bonds that are more probable than not."""
    if molecule.bond_probabilities is None:
        return molecule
    keep = molecule.bond_probabilities > threshold
    return Molecule(
        molecule.positions,
        molecule.numbers,
        molecule.bonds[keep],
        molecule.charges,
        molecule.class_probabilities,
        molecule.confidence,
        molecule.bond_probabilities[keep],
        molecule.name,
    )


def write_prediction(
    scan: Scan,
    molecule: Molecule,
    out: str | Path,
    name: str,
    model: str,
    depth: float,
    reference: Molecule | None = None,
) -> list[Path]:
    """NAME.json (every candidate bond with its probability), NAME.xyz, NAME.sdf and NAME.png (bonds above 0.5) in OUT.

    Raises:
        ConfigError: a folder that cannot be written.
    """
    out = Path(out)
    bonded = confident_bonds(molecule)
    paths = [out / f"{name}{suffix}" for suffix in (".json", ".xyz", ".sdf", ".png")]
    make_folder(out)
    text = json.dumps(prediction_record(scan, molecule, model, depth), indent=1)
    write_file(paths[0], f"{text}\n".encode())
    write_molecule(bonded, paths[1])
    write_molecule(bonded, paths[2])
    prediction_picture(scan, bonded, paths[3], reference)
    return paths


def make_folder(out: Path) -> None:
    """Create a folder for results; ConfigError if that cannot be done or it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {out} cannot be made: {error.strerror}.") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"The folder {out} cannot be written.")
