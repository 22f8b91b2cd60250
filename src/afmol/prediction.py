"""From a scan to a molecule, and to the files that a person takes home."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from .checkpoint import DEFAULT_MODEL, load_image_model
from .errors import AfmolError, ConfigError
from .files import is_single_slice, make_folder, read_scan, write_file, write_molecule
from .model import ImageModel
from .plots import prediction_picture
from .resampling import resampled
from .structures import Molecule, Scan

TOGETHER = 8
"""Scans of one shape that a network reads at once: memory."""


def predict(scan: Scan, model: str | Path | ImageModel = DEFAULT_MODEL, threshold: float = 0.5) -> Molecule:
    """The molecule in a scan: atoms (A, the scan's frame, z = 0 at the topmost one), classes, bonds, probabilities.

    Args:
        scan: any width, height, pixel size and number of slices from 3 up.
        model: a shipped name, a weight file, or a model that is loaded.
        threshold: atoms with less confidence are left out.

    Raises:
        ScanError: too few slices, a constant slice, an image too small or too large, an impossible pixel size.
        WeightsError: weights that cannot be loaded.
    """
    network = _loaded(str(model))[0] if isinstance(model, str | Path) else model
    return predict_many([scan], network, threshold)[0]


@lru_cache(maxsize=2)
def _loaded(model: str) -> tuple[ImageModel, str]:
    return load_image_model(model)


def predict_many(scans: Sequence[Scan], network: ImageModel, threshold: float = 0.5) -> list[Molecule]:
    """As `predict`, of several scans: those that come to one shape go through the network together, on its device."""
    c = network.config
    stacks, scales = zip(*(resampled(scan, c.pixel, c.slices, c.widest_step) for scan in scans), strict=True)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, stack in enumerate(stacks):
        groups.setdefault(stack.shape, []).append(i)
    device = next(cast(nn.Module, network).parameters()).device
    found: dict[int, Molecule] = {}
    for places in groups.values():
        for some in (places[k : k + TOGETHER] for k in range(0, len(places), TOGETHER)):
            images = torch.from_numpy(np.stack([stacks[i].transpose(2, 0, 1) for i in some])).to(device)
            found |= zip(some, network.predict(images, threshold), strict=True)
    return [
        replace(found[i], positions=found[i].positions * [*scales[i], 1.0], name=scan.source)
        for i, scan in enumerate(scans)
    ]


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
    bonded = molecule.with_likely_bonds()
    paths = [out / f"{name}{suffix}" for suffix in (".json", ".xyz", ".sdf", ".png")]
    make_folder(out)
    text = json.dumps(prediction_record(scan, molecule, model, depth), indent=1)
    write_file(paths[0], f"{text}\n".encode())
    write_molecule(bonded, paths[1])
    write_molecule(bonded, paths[2])
    prediction_picture(scan, bonded, paths[3], reference)
    return paths


def predict_files(
    sources: Sequence[str],
    out: str | Path,
    model: str = DEFAULT_MODEL,
    threshold: float = 0.5,
    **reading: Any,
) -> Iterator[tuple[str, Molecule | AfmolError]]:
    """Predict stacks from files and write the results: the name of each one's results, and its molecule or mistake.

    Args:
        sources: a stack each; several files of one slice each are together one stack.
        out: folder for the results; made if it is not there.
        model: a shipped name or a weight file.
        threshold: atoms with less confidence are left out.
        reading: size, heights, channel, direction, as of `read_scan`.

    Raises:
        ConfigError: no sources, an impossible threshold, a folder that cannot be written. WeightsError: the model.
    """
    if not sources:
        raise ConfigError("Name at least one stack to read; see afmol predict --help.")
    if not 0 < threshold < 1:
        raise ConfigError("The threshold is a probability between 0 and 1.")
    network, name = load_image_model(model)
    slices = len(sources) > 1 and all(is_single_slice(source) for source in sources)
    used: set[str] = set()
    for source in [list(sources)] if slices else sources:
        first = source[0] if isinstance(source, list) else source
        try:
            scan = read_scan(source, **reading)
            molecule = predict(scan, network, threshold)
            stem = _unused(Path(first).resolve().stem, used)
            write_prediction(scan, molecule, out, stem, name, network.config.depth)
            yield stem, molecule
        except ConfigError:
            raise
        except AfmolError as error:
            yield first, error


def _unused(stem: str, used: set[str]) -> str:
    """A name for the results that no other scan of this call has: NAME, NAME_2, ..."""
    name, n = stem, 1
    while name in used:
        n += 1
        name = f"{stem}_{n}"
    used.add(name)
    return name
