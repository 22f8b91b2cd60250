"""From a scan to a molecule, and to the files that a person takes home."""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import nn
from tqdm import tqdm

from .checkpoint import DEFAULT_MODEL, load_image_model
from .doubts import at_true_size, doubted, doubted_stretch
from .errors import AfmolError, ConfigError, ScanError
from .files import is_single_slice, make_folder, read_scan, write_file, write_molecule
from .files.molecules import sdf
from .hydrogens import with_hydrogens
from .model import ImageModel, OnePass, deepest
from .naming import Namer
from .plots import prediction_picture
from .resampling import resampled, usable
from .restraints import restrained
from .scale import scale_ratio, sized
from .structures import Molecule, Scan
from .tiling import FAINTEST, NOTHING, contrast, cut, fullest, merged, tiled
from .valences import FAINTEST_ATOM, settled

RESULTS = (".json", ".xyz", ".sdf", ".png")
"""Suffixes of the files of a prediction."""
WIDEST = 1000.0
"""Longest side of a scan, A."""
READ_AGAIN = 0.02
"""A ratio (scale.py) this far from the stated size's speaks for another one: without any error the shipped model's
spread by 0.008 on nominal stacks, by 0.017 on those as measured (LOG.md, 2026-11-30)."""
CONSISTENT, MORE_READINGS = 0.004, 4
"""What is read at a size speaks for one so near: that is it; and at most so many readings at other sizes."""
IN_PART, LEAST_PART = 0.8, 0.3
"""The part of a size's error that a first reading finds, since networks believe the size in part, and the least that is
believed of later ones (LOG.md, 2026-11-29, 2026-11-30)."""
SIZES = tuple(float(stretch) for stretch in np.exp([-0.3, -0.15, 0.15, 0.3]))
"""Sizes that are tried, stated / true, where a network is unsure of what it sees: beyond 10 % bonds say little."""
SURE, BETTER, FAINT, LEAST_KEPT = 0.95, 0.12, 0.15, 0.8
"""Mean confidence of atoms below which other sizes are tried; by how much that of all candidates, of confidence FAINT
and more, must be higher at another size; and the least share of the atoms that must be found there too."""
TOGETHER = 8
"""Scans of one shape that a network reads at once: memory."""


def predict(
    scan: Scan,
    model: str | Path | ImageModel = DEFAULT_MODEL,
    threshold: float = 0.5,
    *,
    depth: float | None = None,
    progress: bool = False,
) -> Molecule:
    """The molecule in a scan: atoms (A, the scan's frame, z = 0 at the topmost one), classes, bonds, probabilities.

    Where what the network says is no molecule by its valences, and a reading close by is one, that is the answer
    (valences.py), and its atoms are moved in the plane as lengths of bonds and widths of angles say (restraints.py);
    neither for thresholds below 0.5. Where bonds, and what the network says of the size, speak for another one, the
    scan is read again until what is read agrees with the size (scale.py), and where the network is unsure of its atoms,
    at other sizes; atoms stay in the frame of the size that was stated. What speaks against the stack or its size is in
    `warnings` (doubts.py); if it is the images, confidences are halved. A scan longer than `tiling.LONGEST` is read in
    overlapping tiles, so that memory stays bounded; z = 0 is then the topmost atom of each tile.

    Args:
        scan: any width and height up to `WIDEST`, pixel size and number of slices from 3 up.
        model: a shipped name, a weight file, or a model that is loaded.
        threshold: atoms with less confidence are left out.
        depth: atoms further below the topmost one are left out, A; None: the model's usual depth.
        progress: show a bar over the tiles, if there are several.

    Raises:
        ScanError: too few slices, a constant slice, an image too small or too large, an impossible pixel size.
        WeightsError: weights that cannot be loaded. ConfigError: a depth that the model has not learned.
    """
    network = _loaded(str(model))[0] if isinstance(model, str | Path) else model
    check_depth(network, depth)
    scan = usable(scan, WIDEST)
    how = threshold, depth, progress
    molecule, stretch = _read(scan, network, *how), 1.0
    if not len(molecule) or _surety(molecule) < SURE:
        stretch = _surest_size(scan, network, depth)
        molecule = molecule if stretch == 1.0 else _read_stretched(scan, stretch, network, *how)
    found = scale_ratio(molecule)
    if found is not None and abs(np.log(found.ratio / stretch)) >= max(READ_AGAIN, 2 * found.error):
        molecule = _consistent(scan, molecule, found.ratio, stretch, network, *how)
    molecule = doubted(scan, sized(molecule))
    true = doubted_stretch(molecule)  # the size at which bonds have their lengths
    placed = _placed([_stretched(molecule, 1 / true, 1 / true)], network, threshold)[0]
    return _stretched(placed, true, true)


def _consistent(
    scan: Scan, molecule: Molecule, ratio: float, stretch: float, network: ImageModel, *how: Any
) -> Molecule:
    """The molecule as read at the size that it then speaks for, given the one at `stretch`, which speaks for `ratio`.

    By the secant method, since networks believe the size in part.
    """
    at, part = log(stretch), IN_PART
    rest = log(ratio) - at
    for _ in range(MORE_READINGS):
        step = rest / part
        try:
            again = _read_stretched(scan, exp(at + step), network, *how)
        except ScanError:  # as it is stated it can be read, and so it was
            break
        found = scale_ratio(again)
        if found is None:  # fewer bonds than before
            break
        molecule, at = again, at + step
        before, rest = rest, log(found.ratio) - at
        if abs(rest) < CONSISTENT:
            break
        part = float(np.clip((before - rest) / step, LEAST_PART, 1.0))
    return molecule


def _surest_size(scan: Scan, network: ImageModel, depth: float | None) -> float:
    """Stated / true size at which the network is surest of what it sees; 1 unless another is better beyond doubt."""
    scan, surety, sure = fullest(scan), {}, {}
    for stretch in (1.0, *SIZES):
        with contextlib.suppress(ScanError):  # an image of no such size
            molecule = _read_stretched(scan, stretch, network, FAINT, depth, False)
            confidence = np.zeros(0) if molecule.confidence is None else molecule.confidence
            seen = molecule.taken(np.flatnonzero(confidence >= 0.5))
            if stretch == 1.0 or (scale_ratio(seen) and len(seen) >= LEAST_KEPT * sure[1.0]):
                surety[stretch], sure[stretch] = _surety(molecule), len(seen)
    best = max(surety, key=lambda stretch: surety[stretch])
    return best if surety[best] > surety[1.0] + BETTER else 1.0


def _surety(molecule: Molecule) -> float:
    """Mean confidence of the atoms."""
    return float(molecule.confidence.mean()) if len(molecule) and molecule.confidence is not None else 0.0


def _read_stretched(scan: Scan, stretch: float, network: ImageModel, *how: Any) -> Molecule:
    """The molecule in a scan whose sides are said to be longer than they are by a factor, in the frame that is said."""
    true = usable(replace(scan, size=(scan.size[0] / stretch, scan.size[1] / stretch)), WIDEST)
    return _stretched(_read(true, network, *how), stretch, stretch)


def _stretched(molecule: Molecule, x: float, y: float) -> Molecule:
    """The molecule as of an image whose sides are said to be longer by these factors."""
    ratio = None if molecule.stretch is None else molecule.stretch * sqrt(x * y)
    return replace(molecule, positions=molecule.positions * [x, y, 1.0], stretch=ratio)


def check_depth(network: ImageModel, depth: float | None) -> None:
    """ConfigError where a model has not learned to find atoms so deep."""
    most = deepest(network)
    if depth is not None and not 0 < depth <= most:
        raise ConfigError(f"This model finds atoms down to {most:g} A below the topmost one, not to {depth:g} A.")


def _read(scan: Scan, network: ImageModel, threshold: float, depth: float | None, progress: bool) -> Molecule:
    """The molecule in a scan of the size that is stated, whole or in tiles."""
    tiles = tiled(scan)
    if len(tiles) == 1:
        return _read_many([scan], network, threshold, depth)[0]
    found, least = [], FAINTEST * contrast(scan)
    for tile in tqdm(tiles, desc=scan.source, unit="tile", mininterval=1, disable=not progress):
        part = cut(scan, tile, least)
        found.append(NOTHING if part is None else _read_many([part], network, threshold, depth)[0])
    return replace(merged(tiles, found), name=scan.source)


@lru_cache(maxsize=2)
def _loaded(model: str) -> tuple[ImageModel, str]:
    return load_image_model(model)


def predict_many(
    scans: Sequence[Scan], network: ImageModel, threshold: float = 0.5, depth: float | None = None
) -> list[Molecule]:
    """As `predict`, of several scans of the sizes that are stated, without doubts: those that come to one shape go
    through the network together, on its device."""
    return _placed([sized(m) for m in _read_many(scans, network, threshold, depth)], network, threshold)


def _placed(molecules: Sequence[Molecule], network: ImageModel, threshold: float) -> list[Molecule]:
    """Molecules with their atoms where lengths of bonds and widths of angles let them be (restraints.py)."""
    return [restrained(molecule) if _whole(network, threshold) else molecule for molecule in molecules]


def _whole(network: ImageModel, threshold: float) -> bool:
    """Whether what chemistry knows of molecules is used: on a network that says elements, and unless atoms are asked
    for that are less likely than not."""
    return isinstance(network, OnePass) and threshold >= 0.5


def _read_many(scans: Sequence[Scan], network: ImageModel, threshold: float, depth: float | None) -> list[Molecule]:
    """What the network sees in each scan; atoms and classes are those of a whole molecule where such a reading is close
    (valences.py)."""
    c, whole = network.config, _whole(network, threshold)
    stacks, scales = zip(*(resampled(scan, c.pixel, c.slices, c.widest_step) for scan in scans), strict=True)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, stack in enumerate(stacks):
        groups.setdefault(stack.shape, []).append(i)
    device = next(cast(nn.Module, network).parameters()).device
    found: dict[int, Molecule] = {}
    for places in groups.values():
        for some in (places[k : k + TOGETHER] for k in range(0, len(places), TOGETHER)):
            images = torch.from_numpy(np.stack([stacks[i].transpose(2, 0, 1) for i in some])).to(device)
            molecules = network.predict(images, FAINTEST_ATOM if whole else threshold, depth)
            found |= zip(some, [_kept(m, threshold) for m in molecules] if whole else molecules, strict=True)
    return [replace(_stretched(found[i], *scales[i]), name=scan.source) for i, scan in enumerate(scans)]


def _kept(candidates: Molecule, threshold: float) -> Molecule:
    """The atoms of enough confidence, once it is settled which make a whole molecule."""
    molecule = settled(candidates)
    assert molecule.confidence is not None
    return molecule.taken(np.flatnonzero(molecule.confidence >= threshold))


def prediction_record(scan: Scan, molecule: Molecule, model: str, depth: float) -> dict:
    """A prediction as plain values, format afmol-prediction/1 (CONVENTIONS.md)."""
    n, m, alternatives, parts = len(molecule), len(molecule.bonds), molecule.alternatives(), molecule.parts()
    smiles = molecule.smiles or [None] * len(parts)
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
                "elements": [[symbol, round(p, 4)] for symbol, p in alternatives[i]],
                "confidence": round(float(confidence[i]), 4),
            }
            | ({"unseen": True} if molecule.unseen[i] else {})
            for i in range(n)
        ],
        "bonds": [
            {"atoms": [int(i), int(j)], "probability": round(float(p), 4)}
            for (i, j), p in zip(molecule.bonds, bonds, strict=True)
        ],
        "molecules": [
            {"atoms": part.tolist(), "smiles": name, "readings": _readings(molecule, part)}
            for part, name in zip(parts, smiles, strict=True)
        ],
        "warnings": list(molecule.warnings),
    }


def _readings(molecule: Molecule, part: Int[np.ndarray, " k"]) -> list[dict]:
    """Of one molecule in a scan; atoms count through the scan."""
    return [
        {"probability": round(p, 4), "changes": [[int(part[i]), symbol] for i, symbol in changes.items()]}
        for changes, p in molecule.taken(part).readings()
    ]


def write_prediction(
    scan: Scan,
    molecule: Molecule,
    out: str | Path,
    name: str,
    model: str,
    depth: float,
    reference: Molecule | None = None,
    source: str = "",
    stated: tuple[float, float] | None = None,
) -> list[Path]:
    """NAME.json (every candidate bond with its probability), NAME.xyz, NAME.sdf and NAME.png (bonds above 0.5) in OUT.

    In NAME.sdf each molecule of a scan that shows several is an entry of its own.

    Where the stated size of the scan is doubted, all of them are of the size that bonds speak for (doubts.py).

    NAME.json says that the scan came from `source`, and that its size was said to be `stated` (A): from what the scan
    itself says, if they are not given.

    Raises:
        ConfigError: a folder that cannot be written.
    """
    out, stated = Path(out), stated or scan.size
    scan, molecule = at_true_size(scan, molecule)
    bonded = molecule.with_likely_bonds()
    paths = [out / f"{name}{suffix}" for suffix in RESULTS]
    make_folder(out)
    record = prediction_record(replace(scan, source=source or scan.source), molecule, model, depth)
    record["scan"]["stated_size"] = [float(side) for side in stated]
    text = json.dumps(record, indent=1)
    write_file(paths[0], f"{text}\n".encode())
    write_molecule(bonded, paths[1])
    write_file(paths[2], b"".join(sdf(bonded.taken(part)) for part in bonded.parts()) or sdf(bonded))
    prediction_picture(scan, bonded, paths[3], reference)
    return paths


def predict_files(
    sources: Sequence[str],
    out: str | Path,
    model: str = DEFAULT_MODEL,
    threshold: float = 0.5,
    *,
    depth: float | None = None,
    hydrogens: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **reading: Any,
) -> Iterator[tuple[str, Molecule | AfmolError]]:
    """Predict stacks from files and write the results: the name of each one's results, and its molecule or mistake.

    Results are named after the stack's file; where several of a call have one name, each gets a part of the SHA-256 of
    its path besides. Results of the same stack are replaced.

    Args:
        sources: a stack each; several files of one slice each are together one stack.
        out: folder for the results; made if it is not there.
        model: a shipped name or a weight file.
        threshold: atoms with less confidence are left out.
        depth: atoms further below the topmost one are left out, A; None: the model's usual depth.
        hydrogens: add those that valences ask for and no image shows, with confidence 0 (hydrogens.py).
        overwrite: replace the results of other stacks, and other files of these names, too.
        progress: show a bar over the tiles of a large stack.
        reading: size, heights, channel, direction, as of `read_scan`.

    Raises:
        ConfigError: no sources, an impossible threshold or depth, a folder that cannot be written. WeightsError: the
        model.
    """
    if not sources:
        raise ConfigError("Name at least one stack to read; see afmol predict --help.")
    if not 0 < threshold < 1:
        raise ConfigError("The threshold is a probability between 0 and 1.")
    out = make_folder(out)  # before the work, not after it
    network, name = load_image_model(model)
    check_depth(network, depth)
    slices = len(sources) > 1 and all(is_single_slice(source) for source in sources)
    stacks: list[str | list[str]] = [list(sources)] if slices else list(sources)
    stems = result_names([s[0] if isinstance(s, list) else s for s in stacks])
    with Namer() as namer:
        for source, stem in zip(stacks, stems, strict=True):
            first, origin = (source[0], _origin(*source)) if isinstance(source, list) else (source, _origin(source))
            try:
                if not overwrite:
                    _check_results(out, stem, origin)
                scan = read_scan(source, **reading)
                molecule = predict(scan, network, threshold, depth=depth, progress=progress)
                true, molecule = at_true_size(scan, molecule)  # what is one molecule depends on it
                molecule = named(molecule, namer, hydrogens=hydrogens)
                down = network.config.depth if depth is None else depth
                write_prediction(true, molecule, out, stem, name, down, source=origin, stated=scan.size)
                yield stem, molecule
            except AfmolError as error:
                yield first, error


def named(molecule: Molecule, namer: Namer, *, hydrogens: bool = False) -> Molecule:
    """The molecule with the SMILES of each of its parts; with the hydrogens that those lack, if they are asked for."""
    pieces = [(part, molecule.taken(part)) for part in molecule.parts()]
    names = tuple(namer.smiles(piece) for _, piece in pieces)
    if not hydrogens:
        return replace(molecule, smiles=names)
    lacking = [piece for piece, name in zip(pieces, names, strict=True) if name is None]
    added = {int(part[i]): where for part, piece in lacking for i, where in namer.hydrogens(piece).items()}
    return named(with_hydrogens(molecule, added), namer)


def result_names(sources: Sequence[str]) -> list[str]:
    """A name for the results of each stack: that of its file, and a part of the SHA-256 of its path where several files
    have that name (CONVENTIONS.md). The same path gets the same name, in whatever order."""
    paths = [os.path.abspath(source) for source in dict.fromkeys(sources)]
    shared = Counter(Path(path).stem for path in {*paths})
    names = {}
    for source in sources:
        path = os.path.abspath(source)
        stem, mark = Path(path).stem, hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        names[source] = f"{stem}-{mark}" if shared[stem] > 1 else stem
    return [names[source] for source in sources]


def _origin(first: str, *further: str) -> str:
    """The whole path of a stack, of slices that of the first and the name of the last."""
    return " to ".join([os.path.abspath(first), *(Path(path).name for path in further[-1:])])


def _check_results(out: Path, name: str, source: str) -> None:
    """ConfigError if there are files of these names that are not the results of this source."""
    there = [path for path in (out / f"{name}{suffix}" for suffix in RESULTS) if os.path.lexists(path)]
    if not there:
        return
    try:
        of = str(json.loads((out / f"{name}.json").read_bytes())["scan"]["source"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        of = ""
    if of != source:
        what = f"is of another stack, {of}" if of else "is there and no result of afmol's"
        raise ConfigError(f"{there[0]} {what}; choose another folder, or --overwrite.")
