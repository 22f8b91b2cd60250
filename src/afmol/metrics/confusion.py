"""Confusion matrices [true, predicted] and what is read from them; calibration of probabilities."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..elements import CLASS_NAMES

N_CLASSES = len(CLASS_NAMES)
N_CALIBRATION_BINS = 10


def class_confusion(
    true: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], n_classes: int = N_CLASSES
) -> Int[np.ndarray, "c c"]:
    """Confusion matrix [true, predicted] of labels 0 ... n_classes - 1 (the paper's single step: the argmax)."""
    for labels in (true, predicted):
        assert not labels.size or (labels.min() >= 0 and labels.max() < n_classes), "labels outside the classes"
    return np.bincount(true * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def class_precision(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Diagonal / column sum; NaN for a class that was never predicted."""
    return ratio(confusion.diagonal(), confusion.sum(0))


def class_recall(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Diagonal / row sum; NaN for a class that never occurs."""
    return ratio(confusion.diagonal(), confusion.sum(1))


def class_f1(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Harmonic mean of precision and recall; NaN for a class that neither occurs nor was predicted."""
    return ratio(2 * confusion.diagonal(), confusion.sum(0) + confusion.sum(1))


def calibration_tally(probability: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "10 3"]:
    """Over ten equal bins of the probability: how many, the sum of their probabilities, how many were hits."""
    place = np.clip((probability * N_CALIBRATION_BINS).astype(int), 0, N_CALIBRATION_BINS - 1)
    columns = (np.ones(len(place)), probability, hit)
    return np.stack([np.bincount(place, c, minlength=N_CALIBRATION_BINS) for c in columns], axis=1).astype(float)


def calibration_error(tally: Float[np.ndarray, "10 3"]) -> float:
    """Expected calibration error: |mean probability - fraction of hits| of each bin, weighted by its size; NaN: empty.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """
    return float(ratio(np.abs(tally[:, 1] - tally[:, 2]).sum(), tally[:, 0].sum()))


def ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def class_figures(name: str, confusion: Int[np.ndarray, "c c"]) -> dict[str, Any]:
    f1 = class_f1(confusion)[:N_CLASSES]
    return {
        f"{name}_accuracy": ratio(np.trace(confusion), confusion.sum()),
        f"{name}_macro_f1": ratio(np.nansum(f1), np.isfinite(f1).sum()),
        f"{name}_precision": class_precision(confusion)[:N_CLASSES],
        f"{name}_recall": class_recall(confusion)[:N_CLASSES],
        f"{name}_f1": f1,
    }


def bond_figures(name: str, confusion: Int[np.ndarray, "2 2"]) -> dict[str, Any]:
    return {
        f"{name}_precision": class_precision(confusion)[1],
        f"{name}_recall": class_recall(confusion)[1],
        f"{name}_f1": class_f1(confusion)[1],
        f"{name}_confusion": confusion,
    }


def plain(value: Any) -> Any:
    """Numpy to plain Python, NaN to None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if value != value else value
