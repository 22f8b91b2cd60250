"""From a scan to a molecule, and to the files that a person takes home."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from .checkpoint import DEFAULT_MODEL, load_model
from .files import make_folder, write_file, write_molecule
from .model import OnePass
from .plots import prediction_picture
from .resampling import resampled
from .structures import Molecule, Scan


def predict(scan: Scan, model: str | Path | OnePass = DEFAULT_MODEL, threshold: float = 0.5) -> Molecule:
    """The molecule in a scan: atoms (A, the scan's frame, z = 0 at the topmost one), classes, bonds, probabilities.

    Args:
        scan: any width, height, pixel size and number of slices from 3 up.
        model: a shipped name, a weight file, or a model that is loaded.
        threshold: atoms with less confidence are left out.

    Raises:
        ScanError: too few slices, a constant slice, an image too small or too large, an impossible pixel size.
        WeightsError: weights that cannot be loaded.
    """
    network = model if isinstance(model, OnePass) else _loaded(str(model))[0]
    c = network.config
    stack, scale = resampled(scan, c.pixel, c.slices, c.step[1])
    (found,) = network.predict(torch.from_numpy(stack.transpose(2, 0, 1)[None].copy()), threshold)
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
def _loaded(model: str) -> tuple[OnePass, str]:
    return load_model(model)


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
