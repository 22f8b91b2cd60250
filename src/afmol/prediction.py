"""From a scan to a molecule."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool
from scipy.special import expit, log_ndtr, logit
from torch import nn
from tqdm import tqdm

from .checkpoint import DEFAULT_MODEL, load_image_model
from .composition import MOST_LOST, Formula, complete, composed, parsed, written
from .doubts import MOST_STRETCH, doubted, doubted_stretch, image_doubts, other_size
from .elements import ELEMENTS
from .errors import ConfigError, MoleculeError, ScanError
from .model import ImageModel, OnePass, deepest
from .resampling import resampled, usable
from .restraints import restrained
from .scale import scale_ratio, sized
from .structures import Molecule, Scan
from .tiling import FAINTEST, LONGEST, NOTHING, contrast, cut, fullest, merged, tiled
from .valences import FAINTEST_ATOM, LEAST_ATOMS, STRENGTH, STRENGTH_OF_FORMULA, settled

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
DEPTH_ERROR = 0.15
"""Standard deviation of a predicted depth near the largest that is asked for, A (0.11 nominal, 0.16 as measured; any
from 0.1 to 0.3 A reports much the same atoms; LOG.md, 2026-11-30)."""
REFINED_DEPTH_ERROR = 0.08
"""The same of a reading that was refined: of 20 validation molecules 0.05 and 0.07 report the same atoms, 0.10 and 0.15
one too many."""
FAINTEST_REFINED = 0.03
"""Candidates of less confidence are not tried where a reading is refined."""
TOGETHER = 8
"""Scans of one shape that a network reads at once: memory."""


def predict(
    scan: Scan,
    model: str | Path | ImageModel = DEFAULT_MODEL,
    threshold: float = 0.5,
    *,
    depth: float | None = None,
    formula: str | None = None,
    progress: bool = False,
    refine: bool = False,
) -> Molecule:
    """The molecule in a scan: atoms (A, the scan's frame, z = 0 at the topmost one), classes, bonds, probabilities.

    Where what the network says is no molecule by its valences, and a reading close by is one, that is the answer
    (valences.py), and its atoms are moved in the plane as lengths of bonds and widths of angles say (restraints.py);
    neither for thresholds below 0.5. Where bonds, and what the network says of the size, speak for another one, the
    scan is read again until what is read agrees with the size (scale.py), and where the network is unsure of its atoms,
    at other sizes; atoms stay in the frame of the size that was stated. What speaks against the stack or its size is in
    `warnings` (doubts.py); if it is the images, confidences are halved. A scan longer than `tiling.LONGEST` is read in
    overlapping tiles, so that memory stays bounded; z = 0 is then the topmost atom of the tiles that have atoms in
    common.

    Args:
        scan: any width and height up to `WIDEST`, pixel size and number of slices from 3 up.
        model: a shipped name, a weight file, or a model that is loaded.
        threshold: atoms with less confidence are left out, and those that are rather deeper than `depth` (`asked_for`).
        depth: atoms further below the topmost one are left out, A, sure ones from 0.2 A further; None: the model's
            usual depth.
        formula: of the molecule, such as C24H8O6, or C24H?O6 where a number is not known: there are no other elements,
            and in each molecule of the scan no more atoms of any (composition.py).
        progress: show a bar over the tiles, if there are several, and over what is tried to refine.
        refine: test the reading by simulation and change what explains the stack badly (refinement/): half a
            minute of a core for a molecule of 15 atoms, up to five for one of 40. Then `explained` says how much is.
            Not where the images are doubted.

    Raises:
        ScanError: fewer than three slices that show anything, an image too small or too large, an impossible pixel
        size, or an image too large to be refined. WeightsError: weights that cannot be loaded. ConfigError: a threshold
        that is no probability, a depth that the model has not learned, a formula that is none or that the model cannot
        use, a model whose readings cannot be refined.
    """
    check_threshold(threshold)
    network = _loaded(str(model)) if isinstance(model, str | Path) else model
    check_depth(network, depth)
    known = known_formula(formula, network, threshold)
    if refine:
        check_refinement(network, threshold)
    stated, scan = scan, usable(scan, WIDEST)
    how = threshold, depth, known, progress
    molecule, stretch, surest = _read(scan, network, *how), 1.0, 1.0
    if not len(molecule) or _surety(molecule) < SURE:
        with contextlib.suppress(ScanError):  # a scan that would be too large; as it is stated it can be read
            surest = _surest_size(scan, network, depth)
            if surest != 1.0:
                molecule, stretch = _read_stretched(scan, surest, network, *how), surest
    found = scale_ratio(molecule)
    if found is not None and abs(np.log(found.ratio / stretch)) >= max(READ_AGAIN, 2 * found.error):
        molecule, stretch = _consistent(scan, molecule, found.ratio, stretch, network, *how)
    molecule = doubted(stated, sized(molecule))
    true = doubted_stretch(molecule)  # the size at which bonds have their lengths
    if surest != 1.0 and true == 1.0 and abs(log(stretch)) >= MOST_STRETCH:
        molecule = replace(molecule, warnings=(*molecule.warnings, other_size(scan, stretch)))
    molecule = _stretched(molecule, 1 / true, 1 / true)
    placed = _placed([molecule], network, threshold)[0]
    if refine and len(molecule) > 1 and not image_doubts(stated):
        size = scan.size[0] / true, scan.size[1] / true
        placed = refined_reading(placed, replace(scan, size=size), network, threshold, depth, known, progress)
    return _stretched(placed, true, true)


def refined_reading(
    molecule: Molecule,
    scan: Scan,
    network: ImageModel,
    threshold: float = 0.5,
    depth: float | None = None,
    formula: Formula | None = None,
    progress: bool = False,
) -> Molecule:
    """What explains a scan best, of what the network holds possible (refinement/); `molecule`, if that fails.

    Args:
        molecule: as it was read. Its warnings stay.
        scan: of the size at which bonds have their lengths.
        progress: show bars.

    Raises:
        ScanError: an image that is too large.
    """
    from .refinement import refined  # compiles when it is first used

    if len(tiled(scan)) > 1:
        raise ScanError(f"An image that is refined is at most {LONGEST:g} A long; cut one molecule out of it.")
    most = deepest(network)
    candidates = _candidates([scan], network, threshold, most, [formula], FAINTEST_REFINED)[0]
    reading = _decided(candidates, network, threshold, most, formula)
    if len(reading) < 2:
        return molecule
    try:
        found = refined(candidates, reading, scan, torch.get_num_threads(), progress)
    except MoleculeError:  # no tip of those tried stays above what was read
        return molecule
    assert found.candidates.confidence is not None
    possible = found.candidates.taken(np.flatnonzero(found.candidates.confidence >= FAINTEST_ATOM))
    return replace(
        _decided(possible, network, threshold, depth, formula, REFINED_DEPTH_ERROR),
        name=molecule.name,
        warnings=molecule.warnings,
        stretch=molecule.stretch,
        explained=found.correlation,
    )


def check_refinement(network: ImageModel, threshold: float) -> None:
    """ConfigError where readings cannot be refined."""
    if not _whole(network, threshold):
        raise ConfigError("Readings of models that say elements (one-pass) can be refined, from a threshold of 0.5 on.")


def _consistent(
    scan: Scan, molecule: Molecule, ratio: float, stretch: float, network: ImageModel, *how: Any
) -> tuple[Molecule, float]:
    """The molecule as read at the size that it then speaks for, and that size, stated / true, given the one at
    `stretch`, which speaks for `ratio`.

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
    return molecule, exp(at)


def _surest_size(scan: Scan, network: ImageModel, depth: float | None) -> float:
    """Stated / true size at which the network is surest of what it sees; 1 unless another is better beyond doubt."""
    scan, surety, sure = fullest(scan), {}, {}
    for stretch in (1.0, *SIZES):
        with contextlib.suppress(ScanError):  # an image of no such size
            molecule = _read_stretched(scan, stretch, network, FAINT, depth, None, False)
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


def check_threshold(threshold: float) -> None:
    """ConfigError for what is no probability."""
    if not 0 < threshold < 1:
        raise ConfigError("The threshold is a probability between 0 and 1.")


def check_depth(network: ImageModel, depth: float | None) -> None:
    """ConfigError where a model has not learned to find atoms so deep."""
    most = deepest(network)
    if depth is not None and not 0 < depth <= most:
        raise ConfigError(f"This model finds atoms down to {most:g} A below the topmost one, not to {depth:g} A.")


def check_formulas(network: ImageModel, threshold: float = 0.5) -> None:
    """ConfigError where a formula would change nothing."""
    if not _whole(network, threshold):
        raise ConfigError("A formula is of use to models that say elements (one-pass), from a threshold of 0.5 on.")


def known_formula(formula: str | None, network: ImageModel, threshold: float) -> Formula | None:
    """What a formula says. ConfigError where it is none, or would change nothing."""
    if formula is None:
        return None
    check_formulas(network, threshold)
    return parsed(formula)


def _read(
    scan: Scan,
    network: ImageModel,
    threshold: float,
    depth: float | None,
    formula: Formula | None,
    progress: bool,
) -> Molecule:
    """The molecule in a scan of the size that is stated, whole or in tiles."""
    tiles = tiled(scan)
    if len(tiles) == 1:
        return _read_many([scan], network, threshold, depth, [formula])[0]
    found, least = [], FAINTEST * contrast(scan)
    for tile in tqdm(tiles, desc=scan.source, unit="tile", mininterval=1, disable=not progress):
        part = cut(scan, tile, least)
        found.append(
            NOTHING if part is None else _candidates([part], network, threshold, depth, [formula], FAINTEST_ATOM)[0]
        )
    whole = merged(tiles, found)  # decided once: a molecule may lie in two tiles
    return replace(_decided(whole, network, threshold, depth, formula), name=scan.source)


def _loaded(model: str) -> ImageModel:
    """Shipped weights, or those that the file holds now."""
    path = Path(model)
    return _network(
        os.path.abspath(path) if path.is_file() else model, path.stat().st_mtime_ns if path.is_file() else 0
    )


@lru_cache(maxsize=2)
def _network(model: str, written: int) -> ImageModel:
    return load_image_model(model)[0]


def predict_many(
    scans: Sequence[Scan],
    network: ImageModel,
    threshold: float = 0.5,
    depth: float | None = None,
    formulas: Sequence[Formula | None] | None = None,
) -> list[Molecule]:
    """As `predict`, of several scans of the sizes that are stated, without doubts: those that come to one shape go
    through the network together, on its device. `formulas`: of each scan's molecule, where they are known."""
    if formulas is not None:
        check_formulas(network, threshold)
    read = _read_many(scans, network, threshold, depth, formulas or [None] * len(scans))
    return _placed([sized(m) for m in read], network, threshold)


def _placed(molecules: Sequence[Molecule], network: ImageModel, threshold: float) -> list[Molecule]:
    """Molecules with their atoms where lengths of bonds and widths of angles let them be (restraints.py)."""
    return [restrained(molecule) if _whole(network, threshold) else molecule for molecule in molecules]


def _whole(network: ImageModel, threshold: float) -> bool:
    """Whether what chemistry knows of molecules is used: on a network that says elements, and unless atoms are asked
    for that are less likely than not."""
    return isinstance(network, OnePass) and threshold >= 0.5


def _read_many(
    scans: Sequence[Scan],
    network: ImageModel,
    threshold: float,
    depth: float | None,
    formulas: Sequence[Formula | None],
) -> list[Molecule]:
    """What the network sees in each scan, as far as it is decided to be there."""
    seen = _candidates(scans, network, threshold, depth, formulas, FAINTEST_ATOM)
    return [_decided(m, network, threshold, depth, formula) for m, formula in zip(seen, formulas, strict=True)]


def _candidates(
    scans: Sequence[Scan],
    network: ImageModel,
    threshold: float,
    depth: float | None,
    formulas: Sequence[Formula | None],
    faintest: float,
) -> list[Molecule]:
    """What may be in each scan: of a network that chemistry helps, atoms as faint as `faintest` too."""
    c, least = network.config, faintest if _whole(network, threshold) else threshold
    if not scans:
        return []
    stacks, scales = zip(*(resampled(scan, c.pixel, c.slices, c.widest_step) for scan in scans), strict=True)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, stack in enumerate(stacks):
        groups.setdefault(stack.shape, []).append(i)
    device = next(cast(nn.Module, network).parameters()).device
    found: dict[int, Molecule] = {}
    for places in groups.values():
        for some in (places[k : k + TOGETHER] for k in range(0, len(places), TOGETHER)):
            images = torch.from_numpy(np.stack([stacks[i].transpose(2, 0, 1) for i in some])).to(device)
            known = [formulas[i] for i in some]
            told = {} if all(f is None for f in known) else {"elements": _elements_of(known, device)}
            found |= zip(some, network.predict(images, least, depth, **told), strict=True)
    return [replace(_stretched(found[i], *scales[i]), name=scan.source) for i, scan in enumerate(scans)]


def _decided(
    candidates: Molecule,
    network: ImageModel,
    threshold: float,
    depth: float | None,
    formula: Formula | None,
    depth_error: float = DEPTH_ERROR,
) -> Molecule:
    """The atoms that are reported; they and their classes are those of a whole molecule where such a reading is close
    (valences.py), and of no more atoms than a formula has (composition.py)."""
    if not len(candidates):
        return candidates
    molecule = _as_composed(candidates, formula) if _whole(network, threshold) else candidates
    if not isinstance(network, OnePass):
        return molecule
    return asked_for(molecule, threshold, _border(network, depth), depth_error)


def _elements_of(formulas: Sequence[Formula | None], device: torch.device) -> Bool[torch.Tensor, "n e"]:
    """Which elements there can be."""
    there = [np.ones(len(ELEMENTS), bool) if formula is None else formula > 0 for formula in formulas]
    return torch.from_numpy(np.stack(there)).to(device)


def _as_composed(candidates: Molecule, formula: Formula | None) -> Molecule:
    """The likely atoms, as valences and a formula let them be."""
    if formula is None:
        return settled(candidates)
    strength = STRENGTH_OF_FORMULA if complete(formula) else STRENGTH
    molecule = composed(settled(candidates, strength, formula), formula)
    assert candidates.confidence is not None
    likely = candidates.taken(np.flatnonzero(candidates.confidence >= 0.5))
    molecules = max(1, sum(len(part) >= LEAST_ATOMS for part in likely.parts()))
    if len(likely) - len(molecule) <= MOST_LOST * molecules:
        return molecule
    warning = f"atoms that the image shows have no place in {written(formula)}: is that the formula?"
    return replace(molecule, warnings=(*molecule.warnings, warning))


def _border(network: OnePass, depth: float | None) -> float | None:
    """The largest depth that is asked for, A, if the network has learned deeper atoms. Of one that has not, atoms that
    deep are none, and its confidence says so itself."""
    asked = network.config.depth if depth is None else depth
    return asked if asked < deepest(network) else None


def asked_for(molecule: Molecule, threshold: float, depth: float | None, depth_error: float = DEPTH_ERROR) -> Molecule:
    """The atoms of which it is probable enough that they are there and, of a network that has learned deeper ones, no
    deeper than asked for (A): sure ones come down to SPARE_DEPTH more (one_pass.py).

    Confidence, p, is that an atom is there, at whatever depth. What is deeper is neither right nor wrong, so it is the
    choice between an atom that is asked for, p F((z + depth) / depth_error), and none, 1 - p, that decides whether it
    is reported; F: the normal distribution. The topmost of those that are has z = 0.
    """
    assert molecule.confidence is not None
    probable = molecule.confidence
    if depth is not None:
        probable = expit(logit(probable) + log_ndtr((molecule.positions[:, 2] + depth) / depth_error))
    asked = molecule.taken(np.flatnonzero(probable >= threshold))
    return replace(asked, positions=asked.positions - [0.0, 0.0, asked.positions[:, 2].max()]) if len(asked) else asked
