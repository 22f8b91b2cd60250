"""Training of any model: kinds of runs (runs.py), and the loop that they share (loop.py)."""

from .loop import FitConfig, fit, learning_rate
from .runs import CheckTrainConfig, PointsTrainConfig, TrainConfig, train, train_check, train_on_points, validation

__all__ = [
    "CheckTrainConfig",
    "FitConfig",
    "PointsTrainConfig",
    "TrainConfig",
    "fit",
    "learning_rate",
    "train",
    "train_check",
    "train_on_points",
    "validation",
]
