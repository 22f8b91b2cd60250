"""Stacks that are none of a molecule imaged by a CO tip, in order: what `StackCheck` learns.

    kind      how it is made
    good      a training sample (samples.py), of a size that is stated rightly or not
    reversed  its slices from close to far
    negated   its values times -1
    order     its slices in no order; or one of them, again and again, with other noise
    tip       the same molecule imaged by a Xe tip
    nothing   noise of any grain, planes, steps, smears: no molecule
    lattice   waves of two or three directions, pointed or not, that grow toward the surface

Scene i is a function of (configuration, i) and gives two stacks: a good one and one of another kind.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..errors import ConfigError
from ..simulation import TIPS, Tip
from .molecules import MoleculeSet
from .samples import DataConfig, add_artefacts, make_sample, stored_form

KINDS = ("good", "reversed", "negated", "order", "tip", "nothing", "lattice")
Stack = Float[np.ndarray, "nx ny n"]


@dataclass(frozen=True)
class SpoiledConfig:
    """How stacks are spoiled."""

    scale: float = 0.3
    """Largest error of ln (stated / true size), of any kind of stack: sizes are doubted elsewhere (scale.py)."""
    sides: tuple[int, int] = (44, 88)
    """Shortest and longest side of an image, pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1 or not 16 <= self.sides[0] <= self.sides[1]:
            raise ConfigError("spoiled.scale is 0 to 1, spoiled.sides ascend from 16.")


class Spoiled(NamedTuple):
    """A batch of stacks."""

    images: Float[Tensor, "batch slices nx ny"]
    kinds: Int[Tensor, " batch"]
    """Place in KINDS."""


class SpoiledStacks:
    """Batches of `size` stacks, half of them good."""

    def __init__(self, molecules: MoleculeSet, data: DataConfig, config: SpoiledConfig, size: int) -> None:
        if size % 2:
            raise ConfigError(f"Stacks come in pairs: batch_size must be even, not {size}.")
        self.molecules, self.data, self.config, self.size = molecules, data, config, size
        about = {"molecules": molecules.sha256, "data": stored_form(data), "spoiled": vars(config)}
        self.origin: dict[str, Any] = {"batch_size": size} | about

    def batch(self, q: int) -> Spoiled:
        """Batch q; its images are of one shape."""
        low, high = self.config.sides
        nx, ny = (int(side) for side in np.random.default_rng((self.data.seed, 7, q)).integers(low, high + 1, 2))
        data = replace(self.data, windows=((nx, ny),))
        scenes = range(q * self.size // 2, (q + 1) * self.size // 2)
        rows = [row for i in scenes for row in scene(self.molecules, data, self.config, i)]
        stacks, kinds = zip(*rows, strict=True)
        return Spoiled(
            torch.from_numpy(np.stack([stack.transpose(2, 0, 1) for stack in stacks]).astype(np.float32)),
            torch.tensor([KINDS.index(kind) for kind in kinds]),
        )


def scene(molecules: MoleculeSet, data: DataConfig, config: SpoiledConfig, i: int) -> list[tuple[Stack, str]]:
    """A good stack and one of another kind, each with its kind."""
    rng = np.random.default_rng((data.seed, 6, i))
    there = replace(data, pixel=data.pixel * float(np.exp(config.scale * rng.uniform(-1, 1))))  # called data.pixel
    good = make_sample(molecules, there, i).scan.data
    kind = KINDS[rng.integers(1, len(KINDS))]
    if kind == "tip":
        bare = replace(there, measured=replace(there.measured, exponential_share=0.0, clearance=(2.8, 4.2)))
        bad = make_sample(molecules, bare, i, tip=xe_tip(rng)).scan.data
    elif kind in DRAWN:
        window = data.windows[0]
        bad = add_artefacts(DRAWN[kind](rng, (*window, data.slices), data.pixel), rng, data)
    else:
        bad = SPOILS[kind](good, rng)
    return [(good, "good"), (bad, kind)]


def xe_tip(rng: np.random.Generator) -> Tip:
    """The preset "xe", with its charge and stiffness as uncertain as those of CO tips are."""
    charge, stiffness = rng.uniform(0.0, 0.4), np.exp(rng.uniform(np.log(0.12), np.log(0.4)))
    return replace(TIPS["xe"], charges=(charge,), stiffness=float(stiffness))


def in_no_order(stack: Stack, rng: np.random.Generator) -> Stack:
    """The slices shuffled, far from any order; or one of them again and again, with noise of its own."""
    n = stack.shape[2]
    if rng.random() < 0.3:
        same = np.repeat(stack[..., [rng.integers(n)]], n, axis=2)
        grain = gaussian_filter(rng.standard_normal(stack.shape), (*[rng.uniform(0, 1.5)] * 2, 0))
        return same + rng.uniform(0.05, 0.5) * same.std() / grain.std() * grain.astype(stack.dtype)
    place = rng.permutation(n)
    while abs(np.corrcoef(place, np.arange(n))[0, 1]) > 0.5:
        place = rng.permutation(n)
    return stack[..., place]


def nothing(rng: np.random.Generator, shape: tuple[int, int, int], _: float) -> Stack:
    """Noise of one or two grains, with or without a common pattern, a plane, steps of the surface."""
    nx, ny, n = shape
    stack = np.zeros(shape)
    for _ in range(rng.integers(1, 3)):
        grain, depth = np.exp(rng.uniform(np.log(0.2), np.log(8.0))), rng.choice([0.0, rng.uniform(0.5, 4.0)])
        field_ = gaussian_filter(rng.standard_normal(shape), (grain, grain, depth))
        stack += rng.uniform(0.2, 1) * field_ / field_.std()
    if rng.random() < 0.4:
        grain = np.exp(rng.uniform(np.log(0.3), np.log(8.0)))
        common = gaussian_filter(rng.standard_normal((nx, ny)), grain)
        stack += rng.uniform(0.3, 3) * (common / common.std())[..., None]
    x, y = np.linspace(-1, 1, nx)[:, None], np.linspace(-1, 1, ny)[None]
    if rng.random() < 0.4:
        stack += (rng.normal() * x + rng.normal() * y)[..., None] * rng.uniform(0, 3)
    if rng.random() < 0.3:
        angle = rng.uniform(0, 2 * np.pi)
        edge = (np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.6, 0.6)) / rng.uniform(0.02, 0.3)
        stack += rng.uniform(0.5, 4) * np.tanh(edge)[..., None]
    if rng.random() < 0.3:
        stack = gaussian_filter(stack, (rng.uniform(0, 12), 0, 0))
    return (stack * np.exp(rng.uniform(-0.1, 0.35) * np.arange(n))).astype(np.float32)


def lattice(rng: np.random.Generator, shape: tuple[int, int, int], pixel: float) -> Stack:
    """A surface: waves of two or three directions that grow, and grow pointed, from slice to slice."""
    nx, ny, n = shape
    x, y = pixel * np.arange(nx)[:, None], pixel * np.arange(ny)[None]
    waves = np.zeros((nx, ny))
    for strength in (1.0, *([rng.uniform(0, 1)] * int(rng.random() < 0.3))):
        period, turn = rng.uniform(1.8, 6.0), rng.uniform(0, np.pi)
        three = rng.random() < 0.6
        angles = turn + (np.pi / 3 * np.arange(3) if three else np.array([0.0, rng.uniform(np.pi / 3, np.pi / 2)]))
        for angle in angles:
            along = x * np.cos(angle) + y * np.sin(angle)
            phase = rng.uniform(0, 2 * np.pi)
            waves += strength * rng.uniform(0.7, 1.3) * np.cos(2 * np.pi * along / period + phase)
    waves *= rng.choice([-1, 1]) / waves.std()
    k, point = np.arange(n), rng.uniform(0, 0.15)
    grown = np.exp(rng.uniform(0, 0.4) * k) * np.exp(waves[..., None] * point * (1 + k))
    if rng.random() < 0.3:
        grown += rng.uniform(0.2, 1) * waves[..., None]
    return grown.astype(np.float32)


SPOILS: dict[str, Callable[[Stack, np.random.Generator], Stack]] = {
    "reversed": lambda stack, rng: stack[..., ::-1],
    "negated": lambda stack, rng: -stack,
    "order": in_no_order,
}
DRAWN: dict[str, Callable[[np.random.Generator, tuple[int, int, int], float], Stack]] = {
    "nothing": nothing,
    "lattice": lattice,
}
