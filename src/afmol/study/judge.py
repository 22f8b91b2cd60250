"""What a model of a study can do: whole graphs, single steps, and both after the image was shifted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.molecules import MoleculeSet
from ..data.samples import DataConfig, collate, make_sample
from ..evaluation import single_steps
from ..metrics import Comparison, Steps, compare, step_summary, summary
from ..model import Asd, ImageModel
from ..structures import Molecule, Sample

BATCH = 16
"""Samples that a model judges at once."""
SEED = 2000
"""Of the test samples: another than those of training and validation."""


def judge(
    model: ImageModel, molecules: MoleculeSet, data: DataConfig, count: int, shift: float, given: bool = False
) -> dict[str, dict[str, Any] | None]:
    """Figures of a model on `count` samples drawn as its training data from other molecules, the same for all models.

    `given`: graphs are built on the true positions, where the model can do that.

    Returns:
        "whole": of whole graphs (`metrics.summary`); "shifted": the same of the same scenes with the image moved by
        `shift` A; "steps": of single steps (`metrics.step_summary`), None where the model knows none; "losses": of
        training, the mean over these samples, the same for all seeds.
    """
    data = replace(data, seed=SEED, shard_size=BATCH)
    whole, shifted, steps, sums = Comparison(), Comparison(), Steps(), Counter[str]()
    for first in range(0, count, BATCH):
        places = range(first, min(first + BATCH, count))
        still, moved = ([make_sample(molecules, data, i, (by, 0.0)) for i in places] for by in (0.0, shift))
        sums.update({name: float(loss) * len(still) for name, loss in _losses(model, still, first).items()})
        whole += _compared(model, still, given)
        shifted += _compared(model, moved, given)
        if isinstance(model, Asd):
            steps += single_steps(model, collate(still), first)
    figures: dict[str, dict[str, Any] | None] = {"whole": summary(whole), "shifted": summary(shifted)}
    figures["losses"] = {name: total / count for name, total in sums.items()}
    return figures | {"steps": step_summary(steps) if isinstance(model, Asd) else None}


@torch.no_grad()
def _losses(model: ImageModel, samples: Sequence[Sample], seed: int) -> dict[str, Tensor]:
    return model.forward(collate(samples), torch.Generator().manual_seed(seed))


def _compared(model: ImageModel, samples: Sequence[Sample], given: bool) -> Comparison:
    known = given and isinstance(model, Asd)
    found = grown(model, samples) if known else model.predict(collate(samples).images)
    pairs = zip(found, samples, strict=True)
    return sum((compare(m, s.molecule, s.molecule.within(model.config.depth)) for m, s in pairs), Comparison())


def grown(model: Asd, samples: Sequence[Sample]) -> list[Molecule]:
    """The graphs that a model builds on the true positions of the atoms that it is asked for."""
    batch = collate(samples)
    keep = batch.positions[:, 2] >= -model.config.depth
    return model.grow(batch.images, batch.positions[keep], batch.molecule[keep])
