"""What speaks against a stack: its images, for a small network that knows spoiled ones; bonds of impossible lengths.

images -> resampled -> StackCheck -> probabilities of KINDS -> a sentence, if the likeliest is not "good"
molecule -> scale.py: bonds against what they are -> a sentence
"""

from dataclasses import replace
from functools import cache
from typing import cast

import numpy as np
import torch

from .checkpoint import STACK_CHECK, load_model
from .data.spoiled import KINDS
from .model import StackCheck
from .resampling import constant, resampled, with_images
from .scale import scale_ratio
from .structures import Molecule, Scan
from .tiling import fullest

LIKELY = 0.6
"""Probability of everything but a good stack from which one is doubted: of 800 good ones 11 are, of 100 of
flat molecules by a Xe tip 94 (benchmarks/doubts.py)."""
SENTENCES = {
    "reversed": "the contrast grows toward the first slice: are the slices reversed? The last must be the closest.",
    "negated": "dark and bright look exchanged: is it the frequency shift, with its sign?",
    "order": "the slices do not follow one another as images at falling heights do: is it a stack, in order?",
    "tip": "this does not look like a CO tip's image, rather like one of a larger probe (Xe): elements may be wrong.",
    "nothing": "this looks like noise or a bare surface rather than like a molecule.",
    "lattice": "the image repeats itself like a lattice: afmol knows single molecules, not surfaces.",
}
"""What is said of each of the KINDS."""
MOST_STRETCH, SUREST, UNSURE = 0.05, 3.0, 0.3
"""A ratio of bond lengths this far from 1, and this many standard errors, is doubted, and UNSURE times the mean
probability that a class is wrong farther: without any error of the size ln of the ratio spreads by 0.008 on nominal
stacks and by 0.017 on those as measured, where classes are less sure (LOG.md, 2026-11-30)."""
NOT_A_STACK = 0.5
"""Factor on the confidence of atoms in a stack that is doubted for its images."""


def doubted(scan: Scan, molecule: Molecule) -> Molecule:
    """The molecule with what speaks against it as warnings, and with less confidence where the images do."""
    about_images, size = image_doubts(scan), size_doubt(scan, molecule)
    confidence = molecule.confidence
    if about_images and confidence is not None:
        confidence = NOT_A_STACK * confidence
    return replace(molecule, confidence=confidence, warnings=(*molecule.warnings, *about_images, *size))


def image_doubts(scan: Scan) -> list[str]:
    """What speaks against the images of a stack of at least three slices, a sentence each; constant ones are none."""
    number = 1 + np.flatnonzero(~constant(scan.data))
    scan = with_images(scan)
    same = np.flatnonzero((scan.data[..., 1:] == scan.data[..., :-1]).all((0, 1)))
    if len(same):
        return [f"slices {number[same[0]]} and {number[same[0] + 1]} are the same image; leave one of them out."]
    likely = kinds(scan)
    if 1 - likely["good"] < LIKELY:
        return []
    return [SENTENCES[max(SENTENCES, key=lambda kind: likely[kind])]]


@torch.no_grad()
def kinds(scan: Scan) -> dict[str, float]:
    """Probability of each of the KINDS; of a scan that is read in tiles, of the part with the most contrast."""
    network = _stack_check()
    c = network.config
    stack, _ = resampled(fullest(scan), c.pixel, c.slices, c.widest_step)
    images = torch.from_numpy(np.ascontiguousarray(stack.transpose(2, 0, 1)))[None]
    return dict(zip(KINDS, network.judge(images)[0].softmax(0).tolist(), strict=True))


@cache
def _stack_check() -> StackCheck:
    return cast(StackCheck, load_model(STACK_CHECK)[0])


def size_doubt(scan: Scan, molecule: Molecule) -> list[str]:
    """Whether the bonds are too long or too short for the stated size."""
    ratio = doubted_stretch(molecule)
    if ratio == 1.0:
        return []
    how = "long" if ratio > 1 else "short"
    stated, true = (" x ".join(f"{side / r:.1f}" for side in scan.size) for r in (1.0, ratio))
    return [f"bonds are {100 * abs(ratio - 1):.0f} % too {how}: is the size {stated} or {true} A?"]


def other_size(scan: Scan, stretch: float) -> str:
    """What is said of a stack that was read as of another size, stated / true, without bonds that prove it."""
    stated, read = (" x ".join(f"{side / r:.1f}" for side in scan.size) for r in (1.0, stretch))
    return f"the network is surer of what it sees if the size is about {read} A: is {stated} A right?"


def doubted_stretch(molecule: Molecule) -> float:
    """By how much lengths are longer than they are in nature (scale.sized), where that is beyond doubt; else 1."""
    found = scale_ratio(molecule)
    if found is None or molecule.stretch is None:
        return 1.0
    p = molecule.class_probabilities
    wrong = 0.0 if p is None else float(1 - p.max(1).mean())
    if abs(np.log(molecule.stretch)) < max(MOST_STRETCH, SUREST * found.error) + UNSURE * wrong:
        return 1.0
    return molecule.stretch


def at_true_size(scan: Scan, molecule: Molecule) -> tuple[Scan, Molecule]:
    """Scan and predicted molecule as of the size that bonds speak for, where the stated one is doubted; else as they
    are."""
    ratio = doubted_stretch(molecule)
    if ratio == 1.0:
        return scan, molecule
    true = (scan.size[0] / ratio, scan.size[1] / ratio)
    positions = molecule.positions / [ratio, ratio, 1.0]
    return replace(scan, size=true), replace(molecule, positions=positions, stretch=1.0)
