"""Networks that predict SOAP, for the question whether they could (report, 4.1): afmol.soap computes it."""

from .config import SoapPredictorConfig
from .points import GrowingMolecules, PointsConfig, RandomPoints
from .predictor import Growth, SoapPredictor

__all__ = ["GrowingMolecules", "Growth", "PointsConfig", "RandomPoints", "SoapPredictor", "SoapPredictorConfig"]
