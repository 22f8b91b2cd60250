"""The ASD model of Oinonen et al. and its modification with SOAP; see asd.py."""

from .asd import Asd
from .config import AsdConfig

__all__ = ["Asd", "AsdConfig"]
