"""SOAP: smooth overlap of atomic positions, exact, batched, differentiable, of labels or of class probabilities."""

from .basis import SoapConfig
from .similarity import average, linear, normalised, rematch
from .spectrum import SETTING_A, SETTING_B, dscribe_vector, power_spectrum

__all__ = [
    "SETTING_A",
    "SETTING_B",
    "SoapConfig",
    "average",
    "dscribe_vector",
    "linear",
    "normalised",
    "power_spectrum",
    "rematch",
]
